"""What a block computes, apart from how it is spelt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

HIDDEN, HEADS, INNER = 24, 4, 20  # no two sizes of a head, the heads, and a run are equal


@dataclass(frozen=True)
class Plan:
    """A transformer block, or one half of it.

    Attributes:
        family: The name under which it is counted.
        part: ``attention``, ``mlp``, ``block`` for both, or ``image`` for GroupNorm and SiLU.
        opset: Of the default domain.
        half: fp16 weights and activations, with fp32 islands.
        sizes: Of batch and sequence in the run; the model has symbols.
        norm: ``rms`` or ``layer``.
        place: Of the norms: ``pre``, ``post``, ``parallel`` (one norm for both halves),
            ``sandwich`` (before and behind each half), or ``behind`` (before the residual).
        plus_one: The weight of an RMSNorm is stored less 1.
        modulated: Norms without weights, scaled and shifted by what is computed of a condition.
        kv_heads: Key/value heads; each serves ``HEADS // kv_heads`` query heads.
        rope: ``half``, ``pairs``, ``parts``, or empty.
        mask: ``additive``, ``keep``, ``padding``, ``causal``, ``window``, ``apart`` (causal, and
            padding added behind), ``before`` (padding added before), or empty.
        bias: Biases of the linear layers.
        packed: q, k, and v from one projection, gate and up from another.
        qk_norm: An RMSNorm of each head of q and k.
        cache: Keys and values of the past stand before the new ones.
        cross: Keys and values are projected from another input.
        guard: Masked with -inf, and 0 where a row of the softmax is NaN.
        scaled: Scores are divided by the root of the head size.
        position: What is added to the scores: ``given``, ``table``, ``alibi``, or nothing.
        sinks: Each head has a score more, of no key.
        softcap: Scores are bent by tanh.
        act: ``silu``, ``gelu``, ``gelu_tanh``, ``quick_gelu``, ``relu``, or ``relu2``.
        up_first: In what is packed, up stands before gate.
        gated: The activation is multiplied by a second projection.
    """

    family: str
    part: str = "block"
    opset: int = 18
    half: bool = False
    sizes: tuple[int, int] = (2, 5)
    norm: str = "rms"
    place: str = "pre"
    plus_one: bool = False
    modulated: bool = False
    kv_heads: int = HEADS
    rope: str = ""
    mask: str = ""
    bias: bool = False
    packed: bool = False
    qk_norm: bool = False
    cache: bool = False
    cross: bool = False
    guard: bool = False
    scaled: bool = True
    position: str = ""
    sinks: bool = False
    softcap: bool = False
    act: str = "silu"
    up_first: bool = False
    gated: bool = True

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of weights and activations."""
        return np.dtype(np.float16 if self.half else np.float32)


FAMILIES = (
    Plan("llama", kv_heads=2, rope="half", mask="causal"),
    Plan("mistral", kv_heads=2, rope="half", mask="additive"),
    Plan("qwen3", kv_heads=2, rope="half", mask="causal", qk_norm=True),
    Plan("sdpa", kv_heads=2, rope="half", mask="causal", guard=True),
    Plan("sdpa keep", kv_heads=1, rope="half", mask="keep", guard=True, act="gelu"),
    Plan("cross", norm="layer", mask="padding", bias=True, cross=True, act="relu", gated=False),
    Plan("gemma", kv_heads=1, rope="half", mask="keep", softcap=True, act="gelu_tanh"),
    Plan("phi", rope="half", mask="causal", packed=True),
    Plan("decode", kv_heads=2, rope="half", mask="additive", cache=True),
    Plan("pairs", rope="pairs", mask="causal", norm="layer", place="parallel",
         act="gelu_tanh", gated=False, bias=True),
    Plan("parts", kv_heads=2, rope="parts", mask="padding"),
    Plan("bert", norm="layer", place="post", mask="padding", bias=True, act="gelu", gated=False),
    Plan("gpt2", norm="layer", mask="causal", bias=True, packed=True, act="gelu_tanh",
         gated=False),
    Plan("vit", norm="layer", bias=True, act="gelu", gated=False),
    Plan("t5", position="given", mask="padding", scaled=False, act="relu", gated=False),
    Plan("t5 gated", position="table", mask="padding", scaled=False, act="gelu_tanh"),
    Plan("opt", norm="layer", mask="additive", bias=True, act="relu", gated=False),
    Plan("neox", norm="layer", place="parallel", rope="half", mask="keep", bias=True,
         packed=True, act="gelu", gated=False),
    Plan("window", kv_heads=2, rope="half", mask="window"),
    Plan("bloom", norm="layer", position="alibi", mask="causal", bias=True, packed=True,
         act="gelu_tanh", gated=False),
    Plan("swin", norm="layer", position="table", bias=True, act="gelu", gated=False),
    Plan("gpt2 apart", norm="layer", mask="apart", bias=True, packed=True, act="gelu_tanh",
         gated=False),
    Plan("alibi before", position="alibi", mask="before", packed=True),
    Plan("gemma2", kv_heads=2, rope="half", mask="window", softcap=True, place="sandwich",
         plus_one=True, act="gelu_tanh"),
    Plan("olmo2", rope="half", mask="causal", qk_norm=True, place="behind"),
    Plan("dit", norm="layer", modulated=True, bias=True, act="gelu_tanh", gated=False),
    Plan("dit rms", modulated=True, qk_norm=True),
    Plan("clip", norm="layer", mask="causal", bias=True, act="quick_gelu", gated=False),
    Plan("nemotron", kv_heads=2, rope="half", mask="causal", act="relu2", gated=False),
    Plan("phi3", kv_heads=2, rope="half", mask="causal", packed=True),
    Plan("glm", kv_heads=2, rope="half", mask="causal", packed=True, up_first=True),
    Plan("gpt oss", kv_heads=2, rope="half", mask="window", sinks=True, bias=True),
    Plan("unet", part="image", norm="group"),
)  # fmt: skip
_PARTS = ("attention",) * 3 + ("mlp",) * 5 + ("block",)
_SIZES = ((2, 5), (1, 4), (3, 1))
OPSETS = tuple(range(13, 26))


def draw(random: np.random.Generator, opsets: tuple[int, ...] = OPSETS) -> Plan:
    """Return a plan drawn at random; two of three are fp32."""

    def one(options: Any) -> Any:
        return options[random.integers(len(options))]

    family = one(FAMILIES)
    return replace(
        family,
        part=family.part if family.part == "image" else one(_PARTS),
        opset=one(opsets),
        half=one((False, False, True)),
        sizes=one(_SIZES),
    )

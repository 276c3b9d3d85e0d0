"""The ops and shapes that ``benchmarks.kernels`` times, and what each is in plain torch.

To add an op, add its function and its rows to ``CASES``; nothing else knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional

Shape = tuple[int, ...]
Tensors = tuple[torch.Tensor, ...]
EPSILON = 1e-5


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Args:
        op: Its plugin name.
        shape: Of its first input.
        inputs: The shape of each input. The first ``rotated`` of them, and all outputs, are other
            memory in each launch; the rest are weights.
        outputs: The shape of each output.
        torch: What the op computes, on the inputs.
        attributes: Of the op.
        rotated: How many inputs are activations.
        read: The part of the activations that has to be read.
        note: What tells it from another case of its op and shape.
    """

    op: str
    shape: Shape
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    torch: Callable[..., torch.Tensor | Tensors]
    attributes: Mapping[str, float | int | str] = field(default_factory=dict)
    rotated: int = 1
    read: float = 1.0
    note: str = ""

    @property
    def name(self) -> str:
        """Such as ``RmsNorm 64x4096``."""
        size = "x".join(map(str, self.shape))
        return f"{self.op} {size} {self.note}".strip()

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns: what is reduced together, and the rest."""
        count = _elements(self.shape)
        groups = self.attributes.get("num_groups")
        rows = self.shape[0] * int(groups) if groups else count // self.shape[-1]
        return rows, count // rows

    def bytes(self, element: int) -> int:
        """What has to be moved at least: inputs read once, outputs written once."""
        read = sum(map(_elements, self.inputs[: self.rotated])) * self.read
        rest = sum(map(_elements, self.inputs[self.rotated :]))
        return int(read + rest + sum(map(_elements, self.outputs))) * element


def _elements(shape: Shape) -> int:
    return torch.Size(shape).numel()


# ---- what the ops compute, as models write it


def rms_norm(x: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
    """As Llama: the norm in fp32, the weight in the model's type."""
    wide = x.float()
    return gamma * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)).to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor) -> Tensors:
    """Residual add and norm; the sum is used again."""
    total = x + residual
    return rms_norm(total, gamma), total


def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor
) -> Tensors:
    """Residual add and norm; the sum is used again."""
    total = x + residual
    return functional.layer_norm(total, gamma.shape, gamma, beta, EPSILON), total


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU behind one projection."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Scale, additive mask, softmax in fp32."""
    return torch.softmax(scores * 0.125 + mask, -1, dtype=torch.float32).to(scores.dtype)


def causal_softmax(scores: torch.Tensor) -> torch.Tensor:
    """Scale, lower-right triangle, softmax in fp32."""
    queries, keys = scores.shape[-2:]
    hidden = torch.ones(queries, keys, dtype=torch.bool, device=scores.device)
    hidden = hidden.triu(keys - queries + 1)
    logits = (scores * 0.125).masked_fill(hidden, float("-inf"))
    return torch.softmax(logits, -1, dtype=torch.float32).to(scores.dtype)


def group_norm_silu(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """As the ResNet blocks of UNets and VAEs."""
    return functional.silu(functional.group_norm(x, 32, gamma, beta, EPSILON))


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The halves of a head turned against each other, as Llama."""
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


def qk_norm_rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    q_gamma: torch.Tensor,
    k_gamma: torch.Tensor,
) -> Tensors:
    """32 query heads and 8 of keys and of values, apart, each key and query normed, as Qwen3."""
    size = q_gamma.shape[0]
    heads = [part * size for part in (32, 8, 8)]
    q, k, v = (t.unflatten(-1, (-1, size)).transpose(1, 2) for t in qkv.split(heads, -1))
    q, k = rms_norm(q, q_gamma), rms_norm(k, k_gamma)
    return rope(q, cos, sin).contiguous(), rope(k, cos, sin).contiguous(), v.contiguous()


# ---- the table

ROWS = (
    (32768, 768), (16384, 4096), (8192, 14336), (2048, 4096), (64, 4096), (1, 4096),
    (1024, 65536), (16384, 4095),
)  # fmt: skip
IMAGES = ((2, 320, 64, 64), (2, 1280, 16, 16), (1, 128, 512, 512))


def _row_cases(rows: int, cols: int) -> list[Case]:
    x, one = (rows, cols), (cols,)
    make = partial(Case, shape=x)
    return [
        make("RmsNorm", inputs=(x, one), outputs=(x,), torch=rms_norm),
        make("AddRmsNorm", inputs=(x, x, one), outputs=(x, x), torch=add_rms_norm, rotated=2),
        make(
            "AddLayerNorm",
            inputs=(x, x, one, one),
            outputs=(x, x),
            torch=add_layer_norm,
            rotated=2,
        ),
        make("GatedAct", inputs=((rows, 2 * cols),), outputs=(x,), torch=silu_mul, note="packed"),
    ]


def _softmax_cases() -> list[Case]:
    scale = {"scale": 0.125}
    bert, llama, cross = (8, 12, 384, 384), (2, 32, 2048, 2048), (2, 16, 1024, 77)
    return [
        Case("MaskedSoftmax", bert, (bert, (8, 1, 1, 384)), (bert,), softmax, scale),
        Case("MaskedSoftmax", llama, (llama, (1, 1, 2048, 2048)), (llama,), softmax, scale),
        Case("MaskedSoftmax", cross, (cross, (2, 1, 1, 77)), (cross,), softmax, scale),
        Case(
            "MaskedSoftmax",
            llama,
            (llama,),
            (llama,),
            causal_softmax,
            {**scale, "causal": 1},
            read=2049 / 4096,
            note="causal",
        ),
    ]


def _image_cases() -> list[Case]:
    return [
        Case("GroupNormSilu", x, (x, (x[1],), (x[1],)), (x,), group_norm_silu, {"num_groups": 32})
        for x in IMAGES
    ]


def _rope_cases(batch: int, length: int) -> list[Case]:
    x, angles, packed = (batch, 32, length, 128), (length, 128), (batch, length, 48 * 128)
    apart = (x, (batch, 8, length, 128), (batch, 8, length, 128))
    heads = {"num_heads": 32, "kv_num_heads": 8, "norm": 1, "epsilon": EPSILON}
    weights = (angles, angles, (128,), (128,))
    return [
        Case("Rope", x, (x, angles, angles), (x,), rope),
        Case("QkNormRope", packed, (packed, *weights), apart, qk_norm_rope, heads),
    ]


CASES = [
    *(case for rows, cols in ROWS for case in _row_cases(rows, cols)),
    *_softmax_cases(),
    *_image_cases(),
    *(
        case
        for batch, length in ((4, 4096), (1, 2048), (64, 1))
        for case in _rope_cases(batch, length)
    ),
]

# ---- the grid of the plots: our kernels alone

GRID_ROWS = (1, 16, 256, 4096, 65536)
GRID_COLS = (128, 1024, 4096, 16384, 65536)
GRID_ELEMENTS = 1 << 27  # of a row op's tensor


def grid_cases() -> list[Case]:
    """Each op over rows and columns; those of the RoPE ops are positions and heads of 128."""
    return [
        case
        for rows in GRID_ROWS
        for cols in GRID_COLS
        if rows * cols <= GRID_ELEMENTS
        for case in _grid_of(rows, cols)
    ]


def _grid_of(rows: int, cols: int) -> list[Case]:
    x, heads, groups = (rows, cols), cols // 128, (1, rows, cols)
    split, packed, angles = (1, heads, rows, 128), (1, rows, 3 * cols), (rows, 128)
    norm = {"num_groups": rows}
    rotation = {"num_heads": heads, "kv_num_heads": heads, "norm": 1}
    weights = (angles, angles, (128,), (128,))
    return [
        *_row_cases(rows, cols),
        Case("MaskedSoftmax", x, (x,), (x,), causal_softmax, {"scale": 0.125}),
        Case("GroupNormSilu", groups, (groups, (rows,), (rows,)), (groups,), group_norm_silu, norm),
        Case("Rope", x, (split, angles, angles), (split,), rope),
        Case("QkNormRope", x, (packed, *weights), (split,) * 3, qk_norm_rope, rotation),
    ]

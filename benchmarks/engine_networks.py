"""The networks of benchmarks.engine_speed, from transformers' configurations, with random weights.

`NETWORKS` are those that goals are for. `OTHERS` are what `--lower auto` meets besides: one image
or sentence at a time, fp32 (``-fp32``, where torch multiplies in TF32 as TensorRT does), norms
beside attention rather than before it, convolutions between the products, biases of positions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

HIDDEN = 2048  # of Llama, in heads of 64
CACHED = 2048  # tokens before the one that "decode" computes
FP32 = "-fp32"
NETWORKS = ("bert", "vit", "llama2048", "llama128", "decode")
OTHERS = (
    *("bert-fp32", "vit-fp32", "llama2048-fp32", "llama128-fp32", "decode-fp32"),
    *("bert1", "vit1", "gpt2", "opt", "neox", "gptj", "gemma", "qwen", "t5", "deberta"),
    *("clip", "dinov2", "whisper", "wav2vec2", "convnext", "swin", "decoder", "decoder-fp32"),
)
LAYERS = "of what is too large in whole, such as Llama (default: 4)"
_DECODER = (512, 512, 256, 128)  # channels of the image decoder, from 64 x 64 on

Made = tuple[Any, tuple[Any, ...]]
"""A module with its inputs."""
Row = tuple[Callable[..., Any], Callable[..., Any], Mapping[str, Any], Callable[[Any], Any]]
"""A model, its configuration, what that is given, and what draws the inputs."""


def network(name: str, layers: int, hidden: int = HIDDEN) -> Made:
    """The torch module and its example inputs, on the CPU, always the same."""
    import torch

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    kind = name.removesuffix(FP32)
    module, inputs = (_llamas(layers, hidden) | _others(layers))[kind](generator)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 1:  # ones and zeros, of which two norms could not be told apart
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    given = tuple(to_dtype(name, tensor) for tensor in inputs)
    return _wrapped(module, cached=kind == "decode"), given


def to_dtype(name: str, tensor: Any) -> Any:
    """A module or a tensor in the type that a network computes in; integers stay."""
    wide = name.endswith(FP32) or not getattr(tensor, "is_floating_point", lambda: True)()
    return tensor if wide else tensor.half()


def _tokens(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    import torch

    return lambda generator: (torch.randint(0, 30000, shape, generator=generator),)


def _floats(*shape: int) -> Callable[[Any], tuple[Any, ...]]:
    import torch

    return lambda generator: (torch.randn(*shape, generator=generator),)


def _llamas(layers: int, hidden: int) -> Mapping[str, Callable[[Any], Made]]:
    """Those of `NETWORKS`."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTConfig, ViTModel

    llama = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=4096,
    )

    def decode(g: Any) -> Made:
        (token,) = _tokens(1, 1)(g)
        past = [_floats(1, 8, CACHED, 64)(g)[0] for _ in range(2 * layers)]
        return LlamaModel(llama), (token, *past)

    return {
        "bert": lambda g: (BertModel(BertConfig(), add_pooling_layer=False), _tokens(8, 384)(g)),
        "vit": lambda g: (
            ViTModel(ViTConfig(), add_pooling_layer=False),
            _floats(32, 3, 224, 224)(g),
        ),
        "llama2048": lambda g: (LlamaModel(llama), _tokens(1, 2048)(g)),
        "llama128": lambda g: (LlamaModel(llama), _tokens(1, 128)(g)),
        "decode": decode,
    }


def _others(layers: int) -> Mapping[str, Callable[[Any], Made]]:
    """Those of `OTHERS`: what is small as it is, of what is large some layers."""
    rows = _decoders(layers) | _encoders(layers) | _images()
    return {
        name: lambda g, model=model, config=config, sizes=sizes, drawn=drawn: (
            model(config(**sizes)),
            drawn(g),
        )
        for name, (model, config, sizes, drawn) in rows.items()
    }


def _decoders(layers: int) -> dict[str, Row]:
    import transformers as hf

    vocabulary = {"vocab_size": 32000}
    wide = vocabulary | {"hidden_size": 2048, "num_hidden_layers": layers}
    gptj = {"n_embd": 2048, "n_layer": layers, "n_head": 16}
    opt = {"ffn_dim": 8192, "num_attention_heads": 32}
    neox = {"num_attention_heads": 16, "intermediate_size": 8192}
    gemma = {"intermediate_size": 16384, "num_attention_heads": 8, "num_key_value_heads": 1}
    qwen = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14}
    prompt = _tokens(1, 256)
    return {
        "gpt2": (hf.GPT2Model, hf.GPT2Config, {}, _tokens(1, 512)),
        "opt": (hf.OPTModel, hf.OPTConfig, wide | opt, _tokens(1, 512)),
        "neox": (hf.GPTNeoXModel, hf.GPTNeoXConfig, wide | neox, prompt),
        "gptj": (hf.GPTJModel, hf.GPTJConfig, vocabulary | gptj, prompt),
        "gemma": (hf.GemmaModel, hf.GemmaConfig, wide | gemma | {"head_dim": 256}, prompt),
        "qwen": (hf.Qwen2Model, hf.Qwen2Config, wide | qwen | {"num_key_value_heads": 2}, prompt),
    }


def _encoders(layers: int) -> dict[str, Row]:
    import transformers as hf

    deep = {"vocab_size": 32000, "num_hidden_layers": layers}
    t5 = {"d_model": 768, "d_ff": 2048, "num_layers": layers, "num_heads": 12}
    gated = {"feed_forward_proj": "gated-gelu", "vocab_size": 32000}
    places = {"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]}
    deberta = {"hidden_size": 768, "num_attention_heads": 12, "share_att_key": True}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8, "decoder_layers": 1}
    whisper = {"encoder_layers": layers, "encoder_ffn_dim": 2048, "d_model": 512}
    return {
        "bert1": (hf.BertModel, hf.BertConfig, {}, _tokens(1, 128)),
        "t5": (hf.T5EncoderModel, hf.T5Config, t5 | gated, _tokens(8, 256)),
        "deberta": (
            hf.DebertaV2Model,
            hf.DebertaV2Config,
            deep | deberta | places,
            _tokens(8, 128),
        ),
        "clip": (hf.CLIPTextModel, hf.CLIPTextConfig, clip, _tokens(2, 77)),
        "whisper": (
            lambda config: hf.WhisperModel(config).encoder,
            hf.WhisperConfig,
            whisper | heads,
            _floats(1, 80, 3000),
        ),
        "wav2vec2": (hf.Wav2Vec2Model, hf.Wav2Vec2Config, {}, _floats(1, 80000)),
    }


def _images() -> dict[str, Row]:
    import transformers as hf

    images = _floats(8, 3, 224, 224)
    return {
        "vit1": (hf.ViTModel, hf.ViTConfig, {}, _floats(1, 3, 224, 224)),
        "dinov2": (hf.Dinov2Model, hf.Dinov2Config, {}, images),
        "convnext": (hf.ConvNextModel, hf.ConvNextConfig, {}, images),
        "swin": (hf.SwinModel, hf.SwinConfig, {}, images),
        "decoder": (lambda config: _image_decoder(), dict, {}, _floats(1, _DECODER[0], 64, 64)),
    }


def _image_decoder() -> Any:
    """Latents to an image as in latent diffusion (Rombach et al. 2022): GroupNorm, SiLU, Conv."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, channels: int, out: int) -> None:
            super().__init__()
            self.skip = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()
            parts = (nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
            again = (nn.GroupNorm(32, out), nn.SiLU(), nn.Conv2d(out, out, 3, padding=1))
            self.branch = nn.Sequential(*parts, *again)

        def forward(self, x: Any) -> Any:
            return self.skip(x) + self.branch(x)

    made: list[nn.Module] = []
    for channels, out in zip((_DECODER[0], *_DECODER), _DECODER, strict=False):
        made += [Block(channels, out), Block(out, out)]
        if out != _DECODER[-1]:
            made += [nn.Upsample(scale_factor=2.0), nn.Conv2d(out, out, 3, padding=1)]
    return nn.Sequential(*made, nn.Conv2d(_DECODER[-1], 3, 3, padding=1))


def _wrapped(module: Any, *, cached: bool) -> Any:
    """A module of tensors alone: the last hidden state, and the cache where there is one."""
    import torch
    from transformers import DynamicCache

    takes = inspect.signature(module.forward).parameters
    options = {"use_cache": False} if "use_cache" in takes else {}

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any, *past: Any) -> Any:
            if not cached:
                made = self.inner(x, **options)
                return getattr(made, "last_hidden_state", made)
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            place = torch.full((1, 1), past[0].shape[2], device=x.device)
            made = self.inner(x, past_key_values=cache, use_cache=True, position_ids=place)
            new = [t for item in made.past_key_values.layers for t in (item.keys, item.values)]
            return (made.last_hidden_state, *new)

    return Plain().eval()

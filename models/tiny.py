"""Seeded Llama, BERT, and ViT graphs at any size, spelt as exporters spell them.

``python -m models.tiny llama --layers 32 -o llama32.onnx`` writes one; tests and benchmarks call
the functions. Nothing here is trained, and nothing here needs torch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from onnx import TensorProto

from models.builder import Graph


def llama(
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocab: int = 256,
    dtype: type[np.floating] = np.float32,
    seed: int = 0,
    nan_guard: bool = False,
) -> Graph:
    """A Llama prefill: pre-RMSNorm, RoPE by halves, grouped-query attention, SwiGLU.

    Inputs: input_ids, attention_mask, position_ids, all int64 [batch, seq]; output logits.
    ``nan_guard`` writes attention as torch lowers scaled_dot_product_attention: half of the scale
    on q and half on k, and zeros where a row of the softmax is NaN.
    """
    g = Graph("llama", dtype=dtype, seed=seed)
    ids, mask, positions = (
        g.input(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask", "position_ids")
    )
    x = g.add("Gather", g.weight("embed.weight", vocab, hidden, scale=1.0), ids)
    bias = _causal_padding_bias(g, mask)
    cos, sin = _rope_tables(g, positions, hidden // heads)
    for layer in range(layers):
        name = f"layers.{layer}"
        normed = _rms_norm(g, x, f"{name}.input_norm.weight", hidden)
        attended = _llama_attention(
            g, normed, name, hidden, heads, kv_heads, (cos, sin), bias, nan_guard
        )
        x = g.add("Add", x, attended)
        normed = _rms_norm(g, x, f"{name}.post_norm.weight", hidden)
        gate = _linear(g, normed, f"{name}.gate", hidden, intermediate)
        up = _linear(g, normed, f"{name}.up", hidden, intermediate)
        act = g.add("Mul", g.add("Mul", gate, g.add("Sigmoid", gate)), up)
        x = g.add("Add", x, _linear(g, act, f"{name}.down", intermediate, hidden))
    logits = _linear(g, _rms_norm(g, x, "norm.weight", hidden), "lm_head", hidden, vocab)
    g.output(logits, "logits", ["batch", "seq", vocab])
    return g


def bert(
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    intermediate: int = 128,
    vocab: int = 256,
    dtype: type[np.floating] = np.float32,
    seed: int = 0,
) -> Graph:
    """A BERT encoder: post-LayerNorm, biased projections, erf GELU, additive padding mask.

    Inputs: input_ids, attention_mask, int64 [batch, seq]; output last_hidden_state.
    """
    g = Graph("bert", dtype=dtype, seed=seed)
    ids, mask = (
        g.input(name, TensorProto.INT64, ["batch", "seq"])
        for name in ("input_ids", "attention_mask")
    )
    words = g.add("Gather", g.weight("embed.weight", vocab, hidden, scale=1.0), ids)
    x = _layer_norm(g, words, "embed.norm", hidden)
    bias = _padding_bias(g, mask)
    for layer in range(layers):
        name = f"layers.{layer}"
        attended = _attention(g, x, name, hidden, heads, bias)
        x = _layer_norm(g, g.add("Add", attended, x), f"{name}.attention_norm", hidden)
        inner = _gelu(g, _linear(g, x, f"{name}.up", hidden, intermediate, bias=True))
        out = _linear(g, inner, f"{name}.down", intermediate, hidden, bias=True)
        x = _layer_norm(g, g.add("Add", out, x), f"{name}.output_norm", hidden)
    g.output(x, "last_hidden_state", ["batch", "seq", hidden])
    return g


def vit(
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    intermediate: int = 128,
    image: int = 32,
    patch: int = 8,
    dtype: type[np.floating] = np.float32,
    seed: int = 0,
) -> Graph:
    """A ViT encoder without mask: pre-LayerNorm, biased projections, erf GELU.

    Input: pixel_values [batch, 3, image, image]; output last_hidden_state.
    """
    g = Graph("vit", dtype=dtype, seed=seed)
    element = TensorProto.FLOAT16 if dtype is np.float16 else TensorProto.FLOAT
    pixels = g.input("pixel_values", element, ["batch", 3, image, image])
    weight = g.weight("patch.weight", hidden, 3, patch, patch, scale=(3 * patch * patch) ** -0.5)
    conv = g.add("Conv", pixels, weight, g.weight("patch.bias", hidden), strides=[patch, patch])
    count = (image // patch) ** 2
    flat = g.add("Reshape", conv, np.array([0, hidden, count]))
    x = g.add("Transpose", flat, perm=[0, 2, 1])
    x = g.add("Add", x, g.weight("position", 1, count, hidden, scale=0.02))
    for layer in range(layers):
        name = f"layers.{layer}"
        normed = _layer_norm(g, x, f"{name}.norm_1", hidden)
        x = g.add("Add", _attention(g, normed, name, hidden, heads, None), x)
        normed = _layer_norm(g, x, f"{name}.norm_2", hidden)
        inner = _gelu(g, _linear(g, normed, f"{name}.up", hidden, intermediate, bias=True))
        x = g.add("Add", _linear(g, inner, f"{name}.down", intermediate, hidden, bias=True), x)
    g.output(_layer_norm(g, x, "norm", hidden), "last_hidden_state", ["batch", count, hidden])
    return g


ARCHITECTURES = {"llama": llama, "bert": bert, "vit": vit}


def _linear(g: Graph, x: str, name: str, rows: int, cols: int, *, bias: bool = False) -> str:
    y = g.add("MatMul", x, g.weight(f"{name}.weight", rows, cols))
    return g.add("Add", g.weight(f"{name}.bias", cols, scale=0.1), y) if bias else y


def _rms_norm(g: Graph, x: str, name: str, hidden: int) -> str:
    """The computation is an fp32 island where the model is fp16."""
    island = g.dtype is np.float16
    wide = g.add("Cast", x, to=TensorProto.FLOAT) if island else x
    one, two, epsilon = (np.float32(value) for value in (1.0, 2.0, 1e-5))
    mean = g.add("ReduceMean", g.add("Pow", wide, two), np.array([-1]), keepdims=1)
    root = g.add("Sqrt", g.add("Add", mean, epsilon))
    y = g.add("Mul", wide, g.add("Div", one, root))
    if island:
        y = g.add("Cast", y, to=TensorProto.FLOAT16)
    return g.add("Mul", g.weight(name, hidden, scale=0.1, mean=1.0), y)


def _layer_norm(g: Graph, x: str, name: str, hidden: int) -> str:
    gamma = g.weight(f"{name}.weight", hidden, scale=0.1, mean=1.0)
    beta = g.weight(f"{name}.bias", hidden, scale=0.1)
    return g.add(
        "LayerNormalization",
        x,
        gamma,
        beta,
        axis=-1,
        epsilon=1e-12 if g.dtype is np.float32 else 1e-5,
    )


def _gelu(g: Graph, x: str) -> str:
    erf = g.add("Erf", g.add("Div", x, 2.0**0.5))
    return g.add("Mul", g.add("Mul", x, g.add("Add", erf, 1.0)), 0.5)


def _causal_padding_bias(g: Graph, mask: str) -> str:
    """[batch, 1, seq, seq]: 0 where a query may look, the type's minimum elsewhere."""
    seq = g.add("Squeeze", g.add("Shape", mask, start=1, end=2))
    steps = g.add("Range", np.int64(0), seq, np.int64(1))
    rows = g.add("Unsqueeze", steps, np.array([1]))
    causal = g.add("LessOrEqual", g.add("Unsqueeze", steps, np.array([0])), rows)
    kept = g.add("Unsqueeze", g.add("Cast", mask, to=TensorProto.BOOL), np.array([1, 2]))
    lowest = float(np.finfo(g.dtype).min)
    return g.add("Where", g.add("And", causal, kept), 0.0, lowest)


def _padding_bias(g: Graph, mask: str) -> str:
    """[batch, 1, 1, seq], added to the scores."""
    element = TensorProto.FLOAT16 if g.dtype is np.float16 else TensorProto.FLOAT
    kept = g.add("Cast", g.add("Unsqueeze", mask, np.array([1, 2])), to=element)
    return g.add("Mul", g.add("Sub", 1.0, kept), float(np.finfo(g.dtype).min))


def _rope_tables(g: Graph, positions: str, head_dim: int) -> tuple[str, str]:
    """The tables cos and sin, [batch, 1, seq, head_dim], computed in fp32."""
    inverse = (10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)).astype(np.float32)
    wide = g.add("Cast", g.add("Unsqueeze", positions, np.array([2])), to=TensorProto.FLOAT)
    angles = g.add("Mul", wide, inverse.reshape(1, 1, -1))
    angles = g.add("Unsqueeze", g.add("Concat", angles, angles, axis=-1), np.array([1]))
    tables = [g.add(op, angles) for op in ("Cos", "Sin")]
    if g.dtype is np.float16:
        tables = [g.add("Cast", table, to=TensorProto.FLOAT16) for table in tables]
    return tables[0], tables[1]


def _rope(g: Graph, x: str, tables: tuple[str, str], head_dim: int) -> str:
    half, last = head_dim // 2, np.iinfo(np.int64).max
    first = g.add("Slice", x, np.array([0]), np.array([half]), np.array([3]))
    second = g.add("Slice", x, np.array([half]), np.array([last]), np.array([3]))
    turned = g.add("Concat", g.add("Neg", second), first, axis=-1)
    return g.add("Add", g.add("Mul", x, tables[0]), g.add("Mul", turned, tables[1]))


def _llama_attention(
    g: Graph,
    x: str,
    name: str,
    hidden: int,
    heads: int,
    kv_heads: int,
    tables: tuple[str, str],
    bias: str,
    nan_guard: bool,
) -> str:
    head_dim = hidden // heads
    batch, seq = (g.add("Shape", x, start=axis, end=axis + 1) for axis in (0, 1))
    projected = []
    for part, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
        y = _linear(g, x, f"{name}.{part}", hidden, count * head_dim)
        shape = g.add("Concat", batch, seq, np.array([count]), np.array([head_dim]), axis=0)
        projected.append(g.add("Transpose", g.add("Reshape", y, shape), perm=[0, 2, 1, 3]))
    q, k = (_rope(g, part, tables, head_dim) for part in projected[:2])
    wide = [np.array([n]) for n in (kv_heads, heads // kv_heads, heads, head_dim)]
    repeated = []
    for part in (k, projected[2]):
        shape = g.add("Concat", batch, wide[0], wide[1], seq, wide[3], axis=0)
        grown = g.add("Expand", g.add("Unsqueeze", part, np.array([2])), shape)
        merged = g.add("Concat", batch, wide[2], seq, wide[3], axis=0)
        repeated.append(g.add("Reshape", grown, merged))
    core = _guarded_dot_product if nan_guard else _scaled_dot_product
    y = core(g, q, repeated[0], repeated[1], head_dim, bias)
    return _linear(g, _join_heads(g, y, hidden), f"{name}.o", hidden, hidden)


def _attention(g: Graph, x: str, name: str, hidden: int, heads: int, bias: str | None) -> str:
    head_dim = hidden // heads
    parts = []
    for part in ("q", "k", "v"):
        y = _linear(g, x, f"{name}.{part}", hidden, hidden, bias=True)
        y = g.add("Reshape", y, np.array([0, -1, heads, head_dim]))
        parts.append(g.add("Transpose", y, perm=[0, 2, 1, 3]))
    y = _scaled_dot_product(g, *parts, head_dim, bias)
    return _linear(g, _join_heads(g, y, hidden), f"{name}.o", hidden, hidden, bias=True)


def _scaled_dot_product(g: Graph, q: str, k: str, v: str, head_dim: int, bias: str | None) -> str:
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2]))
    scores = g.add("Mul", scores, head_dim**-0.5)
    if bias is not None:
        scores = g.add("Add", scores, bias)
    return g.add("MatMul", g.add("Softmax", scores, axis=-1), v)


def _guarded_dot_product(g: Graph, q: str, k: str, v: str, head_dim: int, bias: str) -> str:
    root = head_dim**-0.25
    k = g.add("Mul", g.add("Transpose", k, perm=[0, 1, 3, 2]), root)
    scores = g.add("MatMul", g.add("Mul", q, root), k)
    odds = g.add("Softmax", g.add("Add", scores, bias), axis=-1)
    return g.add("MatMul", g.add("Where", g.add("IsNaN", odds), 0.0, odds), v)


def _join_heads(g: Graph, x: str, hidden: int) -> str:
    return g.add("Reshape", g.add("Transpose", x, perm=[0, 2, 1, 3]), np.array([0, -1, hidden]))


def main() -> None:
    """Writes one model to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("architecture", choices=ARCHITECTURES)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the .onnx file")
    parser.add_argument("--layers", type=int, default=2, help="transformer layers (default: 2)")
    parser.add_argument("--hidden", type=int, default=64, help="hidden size (default: 64)")
    parser.add_argument("--intermediate", type=int, default=128, help="MLP size (default: 128)")
    parser.add_argument("--fp16", action="store_true", help="fp16 weights and activations")
    parser.add_argument("--external", action="store_true", help="weights in a file beside it")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    args = parser.parse_args()
    graph = ARCHITECTURES[args.architecture](
        layers=args.layers,
        hidden=args.hidden,
        intermediate=args.intermediate,
        dtype=np.float16 if args.fp16 else np.float32,
        seed=args.seed,
    )
    print(graph.write(args.output, external=args.external))


if __name__ == "__main__":
    main()

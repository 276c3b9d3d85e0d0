"""Bundles in which each batch has its own number of keys: one CUDA graph for whatever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest

import opfuse
from opfuse.engine import gpu
from opfuse.numerics.compare import compare
from opfuse.runtime import Engine
from opfuse.runtime.bundle import Bundle
from tests.small import model

Arrays = dict[str, np.ndarray]

BATCH, HEADS, KV_HEADS = 3, 4, 2
TOLERANCE = 2e-2
SIZES = (64, 128)  # of a head
SHAPES = ((1, 300), (5, 130), (70, 130), (300, 300))  # queries, keys; the last has most of both


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    if gpu.absent():
        pytest.skip(f"not run: {gpu.absent()}")
    pytest.importorskip("cuda.bindings")


def built(
    folder: Path, made: onnx.ModelProto, most: Mapping[str, tuple[int, ...]], heads: int
) -> Path:
    """The bundle of a model beside it; its attention has lengths, and so many heads of keys."""
    file = folder / "model.onnx"
    onnx.save(made, file)
    path = file.with_suffix(".opfuse")
    dims = {value.name: value.type.tensor_type.shape.dim for value in made.graph.input}
    least = {name: tuple(dim.dim_value or 1 for dim in own) for name, own in dims.items()}
    profile = {"min_shapes": least, "opt_shapes": most, "max_shapes": most}
    try:
        opfuse.build(file, path, backend="segmented", lower="plugin", **profile)
    except opfuse.MissingComponent as error:
        pytest.skip(f"not run: {error.what}")
    steps = Bundle.open(path).schedule.plugins()
    (attention,) = [step.attributes for step in steps if step.op == "FlashAttention"]
    assert (attention["lengths"], attention["kv_num_heads"]) == (1, heads)
    return path


def hold(
    path: Path,
    given: Arrays,
    counted: Callable[[np.ndarray], Arrays],
    expected: Callable[[np.ndarray], Arrays],
    lengths: list[list[int]],
) -> None:
    """Run one shape with different lengths in turn: by its graph, which is made once, and without.

    ``counted`` and ``expected`` make the inputs and the outputs that belong to lengths [batch].
    """
    with Engine.load(path) as engine, Engine.load(path, graphs=False) as single:
        capture = mock.patch.object(engine.device, "capture", wraps=engine.device.capture)
        with capture as captured:
            for row in lengths:
                now = np.array(row)
                feeds = given | counted(now)
                found, eager = engine.run(feeds), single.run(feeds)
                for name, want in expected(now).items():
                    off = compare(want.astype(np.float32), found[name].astype(np.float32))
                    assert off.within(TOLERANCE), (row, name, off)
                    assert found[name].tobytes() == eager[name].tobytes(), (row, name)
        assert captured.call_count == 1


def verified(file: Path, path: Path) -> None:
    """The two commands draw lengths of their own, and time and compare the graph."""
    assert opfuse.verify(file, path).passed
    (measured,) = opfuse.bench(path, iterations=5, warm_up=2).engines
    assert measured.graph.median_us > 0


def lengths_up_to(keys: int, least: int = 0) -> list[list[int]]:
    """Numbers of keys of three batches in turn: all, one, none, odd, and all again."""
    few = max(keys // 2 | 1, 1)
    rows = ([keys] * 3, [1, keys, few], [least, 1, keys - 1], [few, least, 65], [least] * 3)
    return [*map(list, rows), [keys] * 3]


def drawn(seed: int, **shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(s).astype(np.float16) for name, s in shapes.items()}


def attended(given: Arrays, lengths: np.ndarray, causal: bool) -> np.ndarray:
    """Attention in float64, [batch, heads, queries, size]; the last query stands at the last key.

    A row that sees no key is NaN.
    """
    q, k, v = (given[name].astype(np.float64) for name in "qkv")
    k, v = (np.repeat(tensor, q.shape[1] // tensor.shape[1], 1) for tensor in (k, v))
    ends = lengths[:, None, None, None]
    columns = np.arange(k.shape[2])
    seen = columns < ends
    if causal:
        seen = seen & (columns <= np.arange(q.shape[2])[:, None] + ends - q.shape[2])
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])) * seen
    with np.errstate(invalid="ignore"):
        return weights / weights.sum(-1, keepdims=True) @ v


STANDARD = """
    a = Attention<is_causal=1>(q, k, v, , , , n)
    y = Tanh(a)
"""
MASKED = """
    size = Shape<start=2, end=3>(k)
    count = Squeeze(size)
    keys = Range(zero, count, one)
    ends = Unsqueeze(n, [1, 2, 3])
    short = Less(keys, ends)
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    product = MatMul(q, kt)
    scores = Mul(product, {scale})
    logits = Where(short, scores, -inf)
    p = Softmax<axis=-1>(logits)
    a = MatMul(p, v)
    y = Tanh(a)
"""
WHOLE = {"zero": np.array(0), "one": np.array(1)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["nonpad_kv_seqlen", "a mask"])
def test_lengths_change_between_runs(tmp_path: Path, kind: str, size: int) -> None:
    """Rows that see no key are 0 by the standard operator, and NaN where all is masked."""
    standard = kind == "nonpad_kv_seqlen"
    text = STANDARD if standard else MASKED.format(scale=float(size**-0.5))
    heads = KV_HEADS if standard else HEADS
    inputs = f"T[B, {HEADS}, Q, {size}] q, int64[B] n" + "".join(
        f", T[B, {heads}, K, {size}] {name}" for name in "kv"
    )
    made = model(text, inputs, weights={} if standard else WHOLE, dtype="float16", opset=24)
    most = shapes(*SHAPES[-1], size, heads)
    path = built(tmp_path, made, {**most, "n": (BATCH,)}, heads)
    for seed, (queries, keys) in enumerate(SHAPES):
        given = drawn(seed, **shapes(queries, keys, size, heads))

        def expected(lengths: np.ndarray, given: Arrays = given) -> Arrays:
            y = attended(given, lengths, causal=standard)
            return {"y": np.tanh(np.nan_to_num(y) if standard else y)}

        hold(path, given, lambda lengths: {"n": lengths}, expected, lengths_up_to(keys))
    verified(tmp_path / "model.onnx", path)


def shapes(queries: int, keys: int, size: int, kv_heads: int) -> dict[str, tuple[int, ...]]:
    """Of q, k, and v."""
    of_keys = (BATCH, kv_heads, keys, size)
    return {"q": (BATCH, HEADS, queries, size), "k": of_keys, "v": of_keys}


CACHED = """
    ones = ReduceSum<keepdims=0>(held, [1])
    last = Sub(ones, [1])
    lengths = Cast<to=6>(last)
    width = Shape<start=1, end=2>(held)
    total = Cast<to=6>(width)
    a, nk, nv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1>(
        q, k, v, pk, pv, lengths, total, cos, sin)
    y = Tanh(a)
"""


@pytest.mark.parametrize("size", SIZES)
def test_a_cache_that_fills_up(tmp_path: Path, size: int) -> None:
    """GroupQueryAttention turns a token and puts it behind what its batch holds; zeros follow."""
    most = 512
    angles = np.arange(most)[:, None] / 100.0 ** (np.arange(size // 2) / size)
    turns = {name: getattr(np, name)(angles).astype(np.float16) for name in ("cos", "sin")}
    of_q, of_k = (f"T[B, 1, {heads * size}]" for heads in (HEADS, KV_HEADS))
    cache, made_long = (f"T[B, {KV_HEADS}, {keys}, {size}]" for keys in "PN")
    made = model(
        CACHED,
        f"{of_q} q, {of_k} k, {of_k} v, {cache} pk, {cache} pv, int64[B, N] held",
        f"{of_q} y, {made_long} nk, {made_long} nv",
        turns,
        dtype="float16",
        opset=20,
    )
    own = {
        "q": (BATCH, 1, HEADS * size),
        **dict.fromkeys("kv", (BATCH, 1, KV_HEADS * size)),
        **dict.fromkeys(("pk", "pv"), (BATCH, KV_HEADS, most, size)),
    }
    path = built(tmp_path, made, {**own, "held": (BATCH, most)}, KV_HEADS)
    given = drawn(0, **own)

    def counted(lengths: np.ndarray) -> Arrays:
        return {"held": (np.arange(most) < lengths[:, None]).astype(np.int64)}

    def expected(lengths: np.ndarray) -> Arrays:
        q, k, v = (heads_of(given[name], size) for name in "qkv")
        cos, sin = (turns[name][lengths - 1][:, None, None] for name in ("cos", "sin"))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        held = counted(lengths)["held"][:, None, :, None]
        keys, values = (given[name].astype(np.float64) * held for name in ("pk", "pv"))
        batches = np.arange(BATCH)
        keys[batches, :, lengths - 1], values[batches, :, lengths - 1] = k[:, :, 0], v[:, :, 0]
        y = attended({"q": q, "k": keys, "v": values}, lengths, causal=False)
        return {"y": np.tanh(y.reshape(BATCH, 1, -1)), "nk": keys, "nv": values}

    hold(path, given, counted, expected, lengths_up_to(most, least=1))
    verified(tmp_path / "model.onnx", path)


def heads_of(rows: np.ndarray, size: int) -> np.ndarray:
    """[batch, 1, heads * size] as [batch, heads, 1, size], in float64."""
    return rows.reshape(BATCH, 1, -1, size).swapaxes(1, 2).astype(np.float64)


def turned(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """RoPE by halves."""
    low, high = np.split(x, 2, -1)
    return np.concatenate((low * cos - high * sin, high * cos + low * sin), -1)

"""A model in pieces computes what the whole does, with the weights of one piece in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest

from models import tiny
from opfuse import child
from opfuse.numerics import stored
from opfuse.numerics.chunks import Chunked
from opfuse.numerics.stored import InFile, InMemory, Joined

ROOT = Path(__file__).parents[2]


def weights_of(model, base_dir):
    return {t.name: stored.of_tensor(t, base_dir) for t in model.graph.initializer}


def feeds():
    ids = np.random.default_rng(1).integers(0, 256, (2, 7))
    mask = np.ones((2, 7), np.int64)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": np.tile(np.arange(7), (2, 1))}


@pytest.mark.parametrize("limit", [1, 40_000, 200_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_pieces_compute_what_the_whole_does(tmp_path, limit, dtype):
    path = tiny.llama(dtype=dtype).write(tmp_path / "model.onnx", external=True)
    model = onnx.load(path, load_external_data=False)
    weights = weights_of(model, tmp_path)
    whole, pieces = Chunked(model, weights), Chunked(model, weights, limit)
    assert len(whole.pieces) == 1
    assert len(pieces.pieces) > 1
    expected = whole.run(feeds())["logits"]
    actual = pieces.run(feeds())["logits"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 if dtype == np.float32 else 2e-2)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_above_the_limit_is_multiplied_block_by_block(tmp_path, transposed):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((600, 500)).astype(np.float32)
    table.tofile(tmp_path / "table")
    on_disk = InFile(onnx.TensorProto.FLOAT, table.shape, tmp_path / "table", 0)
    turn = "t = Transpose<perm = [1, 0]>(w)\ny = MatMul(x, t)"
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        f"g (float[n, k] x, float[600, 500] w) => (float[n, m] y) {{\n"
        f"{turn if transposed else 'y = MatMul(x, w)'}\n}}"
    )
    x = rng.standard_normal((3, 500 if transposed else 600)).astype(np.float32)
    runner = Chunked(model, {"w": on_disk}, 100_000)
    assert [piece.heavy for piece in runner.pieces] == ["w"]
    expected = x @ (table.T if transposed else table)
    np.testing.assert_allclose(runner.run({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


def test_a_gemm_above_the_limit_adds_its_bias():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float16[n, 500] x, float16[600, 500] w, float16[600] b) => (float16[n, m] y) {
            y = Gemm<transB = 1>(x, w, b)
        }"""
    )
    rng = np.random.default_rng(0)
    values = {"w": rng.standard_normal((600, 500)), "b": rng.standard_normal(600)}
    halves = {name: array.astype(np.float16) for name, array in values.items()}
    runner = Chunked(model, {name: InMemory(array) for name, array in halves.items()}, 1_000_000)
    x = rng.standard_normal((3, 500)).astype(np.float16)
    assert runner.pieces[0].heavy == "w"
    whole = Chunked(model, {name: InMemory(array) for name, array in halves.items()})
    assert whole.pieces[0].heavy == ""
    actual = runner.run({"x": x})["y"]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, whole.run({"x": x})["y"], rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_joined_weight_is_multiplied_part_by_part(axis, transposed):
    from opfuse.numerics.product import matmul

    rng = np.random.default_rng(0)
    parts = tuple(InMemory(rng.standard_normal((40, 40)).astype(np.float32)) for _ in range(3))
    weight = Joined(parts, axis)
    full = weight.array().T if transposed else weight.array()
    x = rng.standard_normal((2, 5, full.shape[0])).astype(np.float32)
    actual = matmul(x, weight, transposed=transposed)
    np.testing.assert_allclose(actual, x @ full, rtol=1e-4, atol=1e-4)


def test_branches_may_read_what_an_earlier_piece_made():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        g (float[4] x, bool c, float[4] a, float[4] b) => (float[4] y) {
            p = Add(x, a)
            q = Mul(x, b)
            y = If (c) <
                then_branch = t () => (float[4] r) { r = Add(p, q) },
                else_branch = e () => (float[4] s) { s = Identity(b) }
            >
        }"""
    )
    a, b, x = (np.full(4, value, np.float32) for value in (1, 2, 3))
    weights = {"a": InMemory(a), "b": InMemory(b)}
    runner = Chunked(model, weights, 1)
    assert len(runner.pieces) > 1
    for chosen, expected in ((True, x + a + x * b), (False, b)):
        result = runner.run({"x": x, "c": np.array(chosen)})["y"]
        np.testing.assert_array_equal(result, expected)


def peak_of_run(folder, limit):
    """In a child: the growth of memory while a model of 300 MB runs."""
    model = onnx.load(Path(folder) / "model.onnx", load_external_data=False)
    runner = Chunked(model, weights_of(model, Path(folder)), limit)
    memory = psutil.Process()
    before, peak = memory.memory_info().rss, 0
    run_piece = runner._run_piece

    def watched(*args):
        nonlocal peak
        result = run_piece(*args)
        peak = max(peak, memory.memory_info().rss - before)
        return result

    runner._run_piece = watched
    runner.run({"x": np.ones((1, 1024), np.float32)})
    return peak


def test_memory_stays_near_one_piece(tmp_path, monkeypatch):
    layers, size = 75, 1024
    rng = np.random.default_rng(0)
    with (tmp_path / "data").open("wb") as file:
        for _ in range(layers):
            file.write((rng.standard_normal((size, size), np.float32) / 32).tobytes())
    nodes, tensors = [], []
    for layer in range(layers):
        nodes.append(f"x{layer + 1} = MatMul({'x' if layer == 0 else f'x{layer}'}, w{layer})")
        tensor = onnx.TensorProto(name=f"w{layer}", data_type=1, dims=[size, size])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", layer * size * size * 4)):
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]>\n'
        f"g (float[n, {size}] x) => (float[n, {size}] x{layers}) {{\n" + "\n".join(nodes) + "\n}"
    )
    model.graph.initializer.extend(tensors)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "probe.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.numerics.test_chunks import peak_of_run\n"
    )
    peak = child.run("probe:peak_of_run", (str(tmp_path), 20 << 20))
    assert peak < 80 << 20


def test_sizes_that_come_of_an_inputs_own_are_inferred_with_its_rank():
    """onnxruntime 1.31 takes ``sizes`` for empty where the rank of q is not known."""
    numbers = {"zero": 0, "one": [1], "from": [0], "to": [2], "side": [64], "half": [2, 2]}
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]>\n'
        "g (float[b, 3, 64, 64] q) => (float[o, c, h, w] y) {\n"
        "shape = Shape(q)\n"
        "count = Gather(shape, zero)\n"
        "batch = Unsqueeze(count, from)\n"
        "size = Concat<axis = 0>(batch, side, side)\n"
        "ones = ConstantOfShape(size)\n"
        "x = Unsqueeze(ones, from)\n"
        "again = Shape<start = 0, end = 1>(q)\n"
        "own = Concat<axis = 0>(one, again, side, side)\n"
        "front = Slice(own, from, to, from)\n"
        "sizes = Concat<axis = 0>(front, half)\n"
        'y = Resize<mode = "nearest">(x, , , sizes)\n}'
    )
    arrays = {name: np.array(value) for name, value in numbers.items()}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    runner = Chunked(model, {name: InMemory(array) for name, array in arrays.items()})
    assert runner.run({"q": np.zeros((2, 3, 64, 64), np.float32)})["y"].shape == (1, 2, 2, 2)

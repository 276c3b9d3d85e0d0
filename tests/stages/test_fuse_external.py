"""Weights in files beside the model: fused without being read, or read from where they lie."""

from __future__ import annotations

import onnx
import pytest

from opfuse.graph.weights import ConcatValues
from opfuse.stages.fuse import export, fuse
from opfuse.stages.load import load
from opfuse.stages.normalise import normalise
from opfuse.stages.save import save
from tests.small import compare, draw, model, session

WIDE = 17_000  # fp32 values that are not read as a matter of course
NORM = """
    square = Mul(x, x)
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-5)
    root = Sqrt(variance)
    unit = Div(x, root)
    y = Mul(unit, gamma)
"""
GATED = """
    gate = MatMul(x, wg)
    up = MatMul(x, wu)
    s = Sigmoid(gate)
    a = Mul(gate, s)
    y = Mul(a, up)
"""
GEMM = "h = Gemm<transB=1>(x, w, b)\ny = Relu(h)"
TURNED = "t = Transpose<perm=[1, 0]>(w)\np = MatMul(x, t)\nh = Add(p, b)\ny = Relu(h)"
CASES = {
    "gamma": (NORM, f"T[S, {WIDE}] x", {"gamma": (WIDE,)}, "RmsNorm"),
    "gamma with leading ones": (NORM, f"T[S, {WIDE}] x", {"gamma": (1, WIDE)}, "RmsNorm"),
    "gate and up": (GATED, "T[S, 150] x", {"wg": (150, 170), "wu": (150, 170)}, "gate_up_merge"),
    "bias": (GEMM, "T[S, 3] x", {"w": (WIDE, 3), "b": (WIDE,)}, "GemmAct"),
    "a turned weight": (TURNED, "T[S, 3] x", {"w": (WIDE, 3), "b": (WIDE,)}, "GemmAct"),
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a case into a folder that is not the current one, and return the model's path."""

    def written(name: str):
        text, inputs, weights, _ = CASES[name]
        made = model(text, inputs, weights=weights, opset=17)
        folders = [tmp_path / folder for folder in ("models", "elsewhere")]
        for folder in folders:
            folder.mkdir()
        path = folders[0] / "model.onnx"
        onnx.save(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        monkeypatch.chdir(folders[1])
        return path

    return written


@pytest.mark.parametrize("name", CASES)
def test_external_weights_fuse_as_others_do(write, tmp_path, name):
    path, kind = write(name), CASES[name][-1]
    source = load(path)
    fused = fuse(normalise(source))
    assert not kind or fused.counts[kind] == 1
    output = tmp_path / "fused.onnx"
    save(fused.graph, export(fused, source), source, output)
    before, after = onnx.load(path), onnx.load(output)
    onnx.checker.check_model(after, full_check=True)
    drawn = draw(before, {"S": 3}, 0)
    for want, have in zip(*(session(m).run(None, drawn) for m in (before, after)), strict=True):
        compare(path.name, want, have)


def test_merged_weights_are_not_held(write):
    fused = fuse(normalise(load(write("gate and up"))))
    lazy = [getattr(t, "_values", None) for t in fused.graph.tensors().values()]
    (merged,) = [values for values in lazy if isinstance(values, ConcatValues)]
    assert [part.name for part in merged.parts] == ["wg", "wu"]

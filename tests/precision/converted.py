"""Small models in ONNX's text format, fused and converted, and run where overflow shows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import opfuse
from tests.small import draw, session

ELEMENTS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
ROUNDING = {"fp16": 4e-3, "bf16": 4e-2}


@dataclass(frozen=True)
class Converted:
    """A model before and after, and what the report says of the conversion."""

    before: onnx.ModelProto
    after: onnx.ModelProto
    report: Mapping[str, object]
    precision: str

    @property
    def ops(self) -> list[str]:
        """The operators that stand in the converted graph, in its order."""
        return [node.op_type for node in self.after.graph.node]

    @property
    def kept(self) -> dict[str, str]:
        """Why each node that a rule keeps in fp32 is there."""
        return {item["node"]: item["reason"] for item in self.report["kept"]}

    def types(self) -> dict[str, str]:
        """The type of every tensor, by ONNX's own inference and the initializers."""
        inferred = onnx.shape_inference.infer_shapes(self.after, strict_mode=True).graph
        infos = (*inferred.value_info, *inferred.input, *inferred.output)
        found = {info.name: info.type.tensor_type.elem_type for info in infos}
        found |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
        return {name: TensorProto.DataType.Name(t).lower() for name, t in found.items()}

    def casts(self) -> list[tuple[str, str]]:
        """Source and target type of every Cast between floating-point types in the graph."""
        types = self.types()
        casts = [node for node in self.after.graph.node if node.op_type == "Cast"]
        found = [(types[node.input[0]], types[node.output[0]]) for node in casts]
        return [pair for pair in found if all("float" in name for name in pair)]

    def same(self, feeds: Mapping[str, np.ndarray], rounding: float | None = None) -> None:
        """Assert that every output is finite and right in the reference evaluator.

        Unlike onnxruntime on a CPU, it rounds behind every operator, so overflow shows.
        """
        want = session(self.before).run(None, dict(feeds))
        types = {i.name: i.type.tensor_type.elem_type for i in self.after.graph.input}
        typed = {
            name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(types[name]))
            for name, array in feeds.items()
        }
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            have = ReferenceEvaluator(self.after).run(None, typed)
        for a, b in zip(want, have, strict=True):
            wide = np.asarray(b).astype(np.float64)
            assert np.isfinite(wide).all()
            scale = np.sqrt(np.mean(np.square(a.astype(np.float64)))) or 1.0
            error = float(np.abs(wide - a).max() / scale)
            assert error <= (rounding or ROUNDING[self.precision]), error


def convert(
    model: onnx.ModelProto,
    folder: Path,
    precision: str = "fp16",
    samples: Mapping[str, np.ndarray] | None = None,
    **options: object,
) -> Converted:
    """Fuse and convert ``model``; ``samples`` are what it is calibrated with.

    The proof is left out: what a test asserts of the result is more.
    """
    options = {"prove": False, **options}
    for node in model.graph.node:
        node.name = node.name or node.output[0]
    source, target = folder / "model.onnx", folder / "converted.onnx"
    onnx.save(model, source)
    if samples is not None:
        np.savez(folder / "samples.npz", **samples)
        options["calibrate"] = [folder / "samples.npz"]
    report = opfuse.fuse(source, target, precision=precision, **options).as_dict()
    after = onnx.load(target)
    onnx.checker.check_model(after, full_check=True)
    return Converted(model, after, report["precision"], precision)


def feeds(model: onnx.ModelProto, seed: int = 0, **dims: int) -> dict[str, np.ndarray]:
    """Random inputs."""
    return draw(model, dims, seed)

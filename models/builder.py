"""Writes ONNX graphs node by node; weights stay recipes until they are written, so size is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_PIECE = 4 << 20  # elements
_PAGE = 4096


@dataclass(frozen=True)
class Weight:
    """A random weight: ``mean`` plus normal values times ``scale``, from a generator of its own."""

    name: str
    shape: tuple[int, ...]
    dtype: type[np.floating]
    scale: float
    mean: float
    seed: tuple[int, int]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize

    def blocks(self) -> Iterator[bytes]:
        """The values in row-major order, a few megabytes at a time."""
        random = np.random.default_rng(self.seed)
        left = prod(self.shape)
        while left:
            count = min(left, _PIECE)
            values = random.standard_normal(count, np.float32) * np.float32(self.scale)
            yield (values + np.float32(self.mean)).astype(self.dtype).tobytes()
            left -= count


@dataclass
class Graph:
    """A graph under construction.

    Methods that add a node return the name of its (first) output; numbers and arrays among the
    inputs become constants.
    """

    name: str
    opset: int = 18
    dtype: type[np.floating] = np.float32
    seed: int = 0
    nodes: list[NodeProto] = field(default_factory=list)
    weights: list[Weight] = field(default_factory=list)
    constants: dict[str, TensorProto] = field(default_factory=dict)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)

    def input(self, name: str, dtype: int, shape: Sequence[int | str]) -> str:
        """Adds a graph input; strings in the shape are symbolic dimensions."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, tensor: str, name: str, shape: Sequence[int | str]) -> None:
        """Makes a tensor a graph output of that name."""
        self.add("Identity", tensor, output=name)
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        self.outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def add(self, op: str, *inputs: object, output: str = "", **attributes: object) -> str:
        """Adds a node with one output."""
        return self.split(op, *inputs, outputs=[output] if output else 1, **attributes)[0]

    def split(
        self, op: str, *inputs: object, outputs: int | list[str], **attributes: object
    ) -> list[str]:
        """Adds a node with several outputs."""
        name = f"{op}_{len(self.nodes)}"
        if isinstance(outputs, int):
            outputs = [f"{name}_out{index}" for index in range(outputs)]
        names = [item if isinstance(item, str) else self._constant(item) for item in inputs]
        self.nodes.append(helper.make_node(op, names, outputs, name=name, **attributes))
        return outputs

    def weight(self, name: str, *shape: int, scale: float | None = None, mean: float = 0.0) -> str:
        """Adds a random weight; without ``scale`` it keeps the variance of what it multiplies."""
        scale = shape[0] ** -0.5 if scale is None else scale
        seed = (self.seed, len(self.weights))
        self.weights.append(Weight(name, shape, self.dtype, scale, mean, seed))
        return name

    def model(self) -> onnx.ModelProto:
        """The model with its weights inline."""
        tensors = []
        for weight in self.weights:
            tensor = self._tensor(weight)
            tensor.raw_data = b"".join(weight.blocks())
            tensors.append(tensor)
        return self._assembled(tensors)

    def write(self, path: Path, *, external: bool = False) -> Path:
        """Writes the model; ``external`` streams the weights into ``<path>.data`` beside it."""
        if not external:
            path.write_bytes(self.model().SerializeToString(deterministic=True))
            return path
        data = path.with_name(path.name + ".data")
        tensors = []
        with data.open("wb") as file:
            for weight in self.weights:
                file.write(bytes(-file.tell() % _PAGE))
                tensor = self._tensor(weight)
                tensor.data_location = TensorProto.EXTERNAL
                place = {"location": data.name, "offset": file.tell(), "length": weight.size}
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                for block in weight.blocks():
                    file.write(block)
        path.write_bytes(self._assembled(tensors).SerializeToString(deterministic=True))
        return path

    def _constant(self, value: object) -> str:
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(self.dtype)
        key = f"const_{array.dtype}_{array.shape}_{array.tobytes().hex()[:32]}"
        name = self.constants.setdefault(key, numpy_helper.from_array(array, "")).name
        if not name:
            name = self.constants[key].name = f"const_{len(self.constants)}"
        return name

    def _tensor(self, weight: Weight) -> TensorProto:
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(weight.dtype))
        return TensorProto(name=weight.name, data_type=dtype, dims=weight.shape)

    def _assembled(self, tensors: list[TensorProto]) -> onnx.ModelProto:
        initializers = [*self.constants.values(), *tensors]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tiny")

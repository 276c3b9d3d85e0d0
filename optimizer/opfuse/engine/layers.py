"""Reads the layers of a built engine, from the inspector's JSON or the builder's listing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# custom_layer: how Myelin, which compiles whole graphs in TensorRT-RTX, calls a plugin.
_PLUGIN_TYPES = {"custom_layer", "PluginV3", "PLUGIN_V3"}
_NAMES = {"float": "fp32", "half": "fp16", "bfloat16": "bf16"}
_LISTED = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<type>\w+), ")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_OLD_DATATYPE = re.compile(r"\b(FP32|FP16|BF16|FP8|INT64|INT32|INT8|UINT8|BOOL)\b", re.IGNORECASE)
_ORIGIN = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
# Myelin's gemm, correlation (a convolution), and runtime_fusion (a product and its neighbours);
# CaskConvolution, CaskGemmMatrixMultiply, and others of older builders.
_PRODUCT = re.compile(
    r"gemm|matmul|matrix_?multiply|conv|correlation|runtime_fusion|mha|attention|einsum",
    re.IGNORECASE,
)
_FLOATS = ("fp32", "fp16", "bf16", "fp8", "tf32")
# Ops of the plugin library that multiply matrices.
_PRODUCT_OPS = ("FlashAttention", "PackedAttention", "GemmAct", "GatedGemm")
# What Myelin appends to the name of the ONNX node that a layer comes from.
_SUFFIX = re.compile(r"(\.\d+)?_myl\d+_\d+$")


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: its type, its outputs' data types, the ONNX nodes in it, its inputs'.

    An origin is the name of a node, or ``inner | node`` where it stands in a function's body.
    """

    name: str
    type: str
    dtypes: tuple[str, ...]
    origins: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @property
    def nodes(self) -> set[str]:
        """The nodes of the graph that it computes, by name."""
        outer = {origin.rpartition(" | ")[2].partition(" (")[0] for origin in self.origins}
        return outer | {_SUFFIX.sub("", self.name)}


def dtype_name(name: str) -> str:
    """TensorRT's name of a data type ("HALF", "Float") as the command line spells it."""
    return _NAMES.get(name.lower(), name.lower())


def from_inspector(text: str) -> list[Layer]:
    """The layers in what ``IEngineInspector`` gives as JSON at detailed verbosity."""
    layers = json.loads(text).get("Layers", [])
    return [_from_json(layer) for layer in layers if isinstance(layer, dict)]


def from_listing(text: str) -> list[Layer]:
    """The layers in the message that the builder logs at the end, one layer a line."""
    found = ((line, _LISTED.match(line)) for line in text.splitlines())
    return [_from_line(line, match) for line, match in found if match is not None]


def count_types(layers: Iterable[Layer]) -> dict[str, int]:
    """Layers by type, most frequent first."""
    return dict(Counter(layer.type for layer in layers).most_common())


def count_dtypes(layers: Iterable[Layer]) -> dict[str, int]:
    """Outputs of all layers by data type, most frequent first."""
    return dict(Counter(dtype for layer in layers for dtype in layer.dtypes).most_common())


def count_plugins(layers: Iterable[Layer], ops: Mapping[str, str]) -> dict[str, int]:
    """Plugin layers by op, where ``ops`` tells the op of each node that was parsed as a plugin."""
    plugins = [layer for layer in layers if layer.type in _PLUGIN_TYPES]
    return dict(Counter(_op(layer, ops) for layer in plugins).most_common())


def products(layers: Iterable[Layer], ops: Mapping[str, str]) -> dict[str, list[Layer]]:
    """Layers that multiply matrices, convolve, or attend, by the type that they compute in.

    That is the lowest type of their inputs: an attention may read an fp32 mask beside fp16 values,
    and a product may give fp32 to what is fused behind it.

    Args:
        layers: Those of an engine.
        ops: The op of each node that was parsed as a plugin.
    """
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.type in _PLUGIN_TYPES:
            if _op(layer, ops) not in _PRODUCT_OPS:
                continue
        elif not _PRODUCT.search(layer.type):
            continue
        types = [t for t in layer.inputs or layer.dtypes if t in _FLOATS]
        if types:
            found.setdefault(min(types, key=_bits), []).append(layer)
    return found


def _bits(dtype: str) -> int:
    return int("".join(filter(str.isdigit, dtype)))


def _op(layer: Layer, ops: Mapping[str, str]) -> str:
    names = [*layer.origins, layer.name]
    return next((ops[name] for name in names if name in ops), layer.type)


def _from_json(layer: Mapping[str, Any]) -> Layer:
    return Layer(
        layer.get("Name", ""),
        layer.get("LayerType", "?"),
        _types(layer.get("Outputs", [])),
        tuple(_ORIGIN.findall(layer.get("Metadata", ""))),
        _types(layer.get("Inputs", [])),
    )


def _types(tensors: Iterable[Any]) -> tuple[str, ...]:
    dtypes = []
    for tensor in tensors:
        text = tensor.get("Datatype", "")
        old = _OLD_DATATYPE.search(tensor.get("Format/Datatype", ""))
        if text or old:
            dtypes.append(dtype_name(text or (old.group(1) if old else "")))
    return tuple(dtypes)


def _from_line(line: str, match: re.Match[str]) -> Layer:
    return Layer(
        match["name"],
        match["type"],
        _listed_types(line, " Outputs: ["),
        tuple(_ORIGIN.findall(line.rpartition(", Metadata:")[2])),
        _listed_types(line, " Inputs: ["),
    )


def _listed_types(line: str, heading: str) -> tuple[str, ...]:
    tensors = line.partition(heading)[2]
    tensors = "" if tensors.startswith("]") else tensors.partition("}], ")[0]
    return tuple(map(dtype_name, _DATATYPE.findall(tensors)))

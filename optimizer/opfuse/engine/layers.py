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


@dataclass(frozen=True)
class Layer:
    """A layer of the engine: its type, the data types of its outputs, the ONNX nodes in it."""

    name: str
    type: str
    dtypes: tuple[str, ...]
    origins: tuple[str, ...]


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


def _op(layer: Layer, ops: Mapping[str, str]) -> str:
    names = [*layer.origins, layer.name]
    return next((ops[name] for name in names if name in ops), layer.type)


def _from_json(layer: Mapping[str, Any]) -> Layer:
    dtypes = []
    for output in layer.get("Outputs", []):
        text = output.get("Datatype", "")
        old = _OLD_DATATYPE.search(output.get("Format/Datatype", ""))
        if text or old:
            dtypes.append(dtype_name(text or (old.group(1) if old else "")))
    return Layer(
        layer.get("Name", ""),
        layer.get("LayerType", "?"),
        tuple(dtypes),
        tuple(_ORIGIN.findall(layer.get("Metadata", ""))),
    )


def _from_line(line: str, match: re.Match[str]) -> Layer:
    outputs = line.partition(" Outputs: [")[2]
    outputs = "" if outputs.startswith("]") else outputs.partition("}], ")[0]
    return Layer(
        match["name"],
        match["type"],
        tuple(map(dtype_name, _DATATYPE.findall(outputs))),
        tuple(_ORIGIN.findall(line.rpartition(", Metadata:")[2])),
    )

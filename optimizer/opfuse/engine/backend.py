"""What a backend is, what it is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from opfuse.engine.layers import Layer
from opfuse.engine.profile import Range
from opfuse.errors import EngineError


class ShapesRefused(EngineError):
    """The shapes of the profile do not go together in the model; the message has the sizes."""


@dataclass(frozen=True)
class Request:
    """One build, in terms that travel to the child process.

    ``model`` is a file that opfuse wrote itself, with its external data beside it. Without
    ``engine`` the model is only parsed. ``ranges`` has an entry for every dynamic input. The file
    ``timing_cache`` is read where it exists, and written.
    """

    model: Path
    engine: Path | None
    ranges: dict[str, Range]
    plugin_library: Path | None = None
    embed_plugins: bool = True
    timing_cache: Path | None = None
    verbose: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine; dynamic dimensions are -1 in ``shape``.

    ``mode`` is "input" or "output", ``dtype`` is "fp16", "int64", ... ``range`` is the profile
    of a dynamic input.
    """

    name: str
    mode: str
    dtype: str
    shape: tuple[int, ...]
    range: Range | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What was built, as read back from the engine.

    ``layers`` counts the layers of the built engine, ``layer_types`` counts them by TensorRT's
    type name, ``plugin_layers`` those that run a plugin by op name, ``dtypes`` the outputs of all
    layers by data type. ``products`` counts matrix products, convolutions, and attentions by the
    type that they compute in, ``fp32_products`` are those in fp32. ``read_from`` says where these
    come from: the engine inspector, the builder's own listing where no GPU can load the engine, or
    the parsed network. ``left`` maps the plugin nodes that the backend gave back to TensorRT to the
    reason. ``cache`` is empty where no cache was used; else it has ``hit`` and the ``key``.
    """

    backend: str
    version: str
    why: str
    path: str
    bytes: int
    sha256: str
    layers: int
    layer_types: dict[str, int]
    plugin_layers: dict[str, int]
    dtypes: dict[str, int]
    io: tuple[TensorInfo, ...]
    read_from: str
    products: dict[str, int] = field(default_factory=dict)
    fp32_products: tuple[Layer, ...] = ()
    notes: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)
    cache: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def from_dict(facts: Mapping[str, Any]) -> EngineInfo:
        """Take back what `dataclasses.asdict` gave and JSON has carried."""
        io = tuple(_tensor(item) for item in facts["io"])
        layers = tuple(_layer(item) for item in facts["fp32_products"])
        notes = tuple(facts["notes"])
        return EngineInfo(**{**facts, "io": io, "fp32_products": layers, "notes": notes})


def _tensor(facts: Mapping[str, Any]) -> TensorInfo:
    levels = facts["range"] and Range(*(tuple(dims) for dims in facts["range"]))
    return TensorInfo(**{**facts, "shape": tuple(facts["shape"]), "range": levels})


def _layer(facts: Mapping[str, Any]) -> Layer:
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Layer(**lists)


class Backend(Protocol):
    """One way to build an engine."""

    name: str
    """As the command line spells it."""

    build: str
    """``"module:function"`` that takes a `Request` to an `EngineInfo`, in a child process.

    That of "segmented" takes a list to a list: one request for each segment.
    """

    uses_timing_cache: bool
    """Whether kernel timings are worth keeping between builds."""

    def lacks(self) -> tuple[str, str] | None:
        """What is missing on this machine and how to get it; None where nothing is."""

    def version(self) -> str:
        """The version of the TensorRT that builds; empty where only running it would tell."""

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables that the child process needs; ``folder`` is private and outlives it."""

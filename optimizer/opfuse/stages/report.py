"""What a run found and did: for machines as JSON, for people as text (report_text.py)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse.errors import InputError
from opfuse.files import write_atomically
from opfuse.graph.collectives import rank_of
from opfuse.graph.match import Match, NearMiss
from opfuse.graph.protos import opset_of, type_name

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from opfuse.explanation.result import Explanation
    from opfuse.numerics.whole import Comparison
    from opfuse.precision.result import Precision
    from opfuse.stages.load import Source

SCHEMA = 1
SUFFIXES = (".json", ".txt", ".html", ".md", ".sarif", ".xml")
COMPARISON_SUFFIXES = (".json", ".txt")
BENCH_SUFFIXES = (".json", ".svg")


@dataclasses.dataclass(frozen=True)
class Report:
    """One run over one model.

    Args:
        model: Facts of the file: path, bytes, opset, nodes, inputs, outputs, notes.
        matches: The fusions that were applied.
        misses: The candidates that were left alone, with their reasons.
        counts: How many of each kind stand in the fused graph, for every kind there is.
        proof: The comparison with the original; None where none was asked for.
        lowering: For each fusion what it became in the engine; empty without an engine.
        engine: Facts read back from the built engine; None without an engine.
        timings: Seconds of each stage.
        precision: The conversion to another type; None where none was asked for.
        explanation: Anchors, savings, and layers; None where nobody asked for them.
        unwritten: The files that a dry run did not write; None where it was none.
        asked: Options of a build that its engine depends on and nothing else here tells.
    """

    model: Mapping[str, Any]
    matches: tuple[Match, ...] = ()
    misses: tuple[NearMiss, ...] = ()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    proof: Any = None
    lowering: tuple[Any, ...] = ()
    engine: Any = None
    timings: Mapping[str, float] = dataclasses.field(default_factory=dict)
    explanation: Explanation | None = None
    precision: Precision | None = None
    unwritten: tuple[str, ...] | None = None
    asked: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The report in the stable schema that the JSON file has."""
        converted = {} if self.precision is None else self.precision.as_dict()
        explained = {} if self.explanation is None else self.explanation.as_dict()
        return {
            "schema": SCHEMA,
            "model": plain(self.model),
            **({"asked": plain(self.asked)} if self.asked else {}),
            "fusions": {kind: self._fusion(kind) for kind in self._all_kinds()},
            "proof": _proof(self.proof),
            **({"precision": plain(converted)} if converted else {}),
            "lowering": plain(self.lowering),
            "engine": plain(self.engine),
            **({} if self.unwritten is None else {"dry_run": {"would_write": [*self.unwritten]}}),
            "timings_s": {name: round(seconds, 4) for name, seconds in self.timings.items()},
            **({"explanation": plain(explained)} if explained else {}),
        }

    def as_json(self) -> str:
        """The same as text, with a stable order of keys; only the timings differ between runs."""
        return json.dumps(self.as_dict(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Writes the report in the format of the path's suffix.

        Raises:
            InputError: The suffix is not known, or the file cannot be written.
        """
        check_suffix(path, SUFFIXES)
        # Names of files need not be text: those bytes are told as \\udcXX.
        write_atomically(path, self._text(path.suffix).encode(errors="backslashreplace"))

    def _text(self, suffix: str) -> str:
        if suffix == ".json":
            return self.as_json()
        if suffix == ".html":
            from opfuse.explanation.page import page

            return page(self.as_dict(), self.explanation)
        if suffix == ".txt":
            from opfuse.stages.report_text import as_text

            return as_text(self)
        from opfuse import formats

        return formats.of_report(self.as_dict(), suffix)

    def nearly(self, kind: str) -> list[NearMiss]:
        """The candidates of a kind that were left alone, in a stable order."""
        return sorted((miss for miss in self.misses if miss.kind == kind), key=_position)

    def _all_kinds(self) -> list[str]:
        return sorted({*self.counts, *(miss.kind for miss in self.misses)})

    def _fusion(self, kind: str) -> dict[str, Any]:
        nearly = [
            {"node": miss.node, "reason": miss.reason, "advice": miss.advice}
            for miss in self.nearly(kind)
        ]
        return {"fused": self.counts.get(kind, 0), "nearly": nearly}


def describe(
    source: Source, fused: ModelProto, output: Path | None, *, hashed: bool
) -> dict[str, Any]:
    """The facts of the model that a report begins with; its hash ties an engine to it."""
    graph = source.proto.graph
    weights = {item.name for item in graph.initializer}
    rank = rank_of(source.proto)
    return {
        "path": str(source.path),
        "bytes": source.path.stat().st_size,
        **({"sha256": source.sha256()} if hashed else {}),
        "opset": opset_of(source.proto),
        "producer": f"{source.proto.producer_name} {source.proto.producer_version}".strip(),
        "inputs": [_value(item) for item in graph.input if item.name not in weights],
        "outputs": [_value(item) for item in graph.output],
        "nodes": len(graph.node),
        "fused_nodes": len(fused.graph.node),
        "output": None if output is None else str(output),
        "notes": list(source.notes),
        **({} if rank is None else {"rank": dataclasses.asdict(rank)}),
    }


def check_suffix(path: Path, known: Iterable[str]) -> None:
    """Refuses a report file whose suffix names no format.

    Raises:
        InputError: The suffix is none of the known ones.
    """
    if path.suffix not in known:
        had = f"the unknown suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise InputError(f"report {path} has {had}", f"use one of {', '.join(known)}")


def comparison_as_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison of two models, in the stable schema that its JSON has."""
    facts: dict[str, Any] = plain(comparison)
    verdict = {"passed": comparison.passed, "max_rel_err": plain(comparison.max_rel_err)}
    return {"schema": SCHEMA, **verdict, **facts}


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the comparison of two models as .json or .txt.

    Raises:
        InputError: The file cannot be written.
    """
    if path.suffix == ".json":
        write_json(comparison_as_dict(comparison), path)
        return
    from opfuse.stages.report_text import comparison_as_text

    write_atomically(path, comparison_as_text(comparison).encode(errors="backslashreplace"))


def write_json(value: Any, path: Path) -> None:
    """Writes ``value`` as ``plain`` gives it.

    Raises:
        InputError: The file cannot be written.
    """
    text = json.dumps(plain(value), indent=1) + "\n"
    write_atomically(path, text.encode(errors="backslashreplace"))


def plain(value: Any) -> Any:
    """A value as JSON has it: dataclasses and mappings as objects, other containers as arrays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


def _value(item: ValueInfoProto) -> dict[str, Any]:
    tensor = item.type.tensor_type
    dims = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
    return {"name": item.name, "dtype": type_name(tensor.elem_type), "shape": dims}


def _position(miss: NearMiss) -> tuple[str, str, str]:
    return (miss.anchor, miss.node, miss.reason)


def _proof(proof: Any) -> dict[str, Any] | None:
    if proof is None:
        return None
    facts: dict[str, Any] = plain(proof)
    failures = facts.pop("failed")
    ordered = {
        "matches": facts.pop("matches"),
        "failed": len(failures),
        "max_rel_err": facts.pop("max_rel_err"),
    }
    return {**ordered, "failures": failures, **facts}

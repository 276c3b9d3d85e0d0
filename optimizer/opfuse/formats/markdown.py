"""GitHub's Markdown, for the summary of a job or a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from opfuse.formats.finding import FAILED, visible

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&$@])")
_MOST = 50  # rows of near-misses; a job summary holds a megabyte


def check_as_markdown(check: Mapping[str, Any], verdict: str) -> str:
    """A check from its JSON form; ``verdict`` is the line that sums it up."""
    return _joined(_check(check, verdict))


def report_as_markdown(report: Mapping[str, Any]) -> str:
    """What build, fuse, or explain found, from the report's JSON form."""
    return _joined(_report(report))


def _check(check: Mapping[str, Any], verdict: str) -> Iterator[str]:
    mark = "✅" if check["passed"] else "❌"
    yield f"### {mark} opfuse check: {_cell(PurePath(check['model']).name)}"
    yield _cell(verdict)
    found = check["expectations"]
    failed = [item for item in found if item["status"] == FAILED]
    if failed:
        rows = [(_place(item), item["message"], item["fix"]) for item in failed]
        yield _table(("failed", "what changed", "what to do"), rows)
    if check["changes"]:
        rows = [(c["place"], _value(c["old"]), _value(c["new"])) for c in check["changes"]]
        yield _table(("changed in the lock", "locked", "now"), rows)
    yield from _nearly([(m["kind"], m["node"], m["reason"], m["advice"]) for m in check["nearly"]])
    if found:
        rows = [(_place(item), item["status"], item["message"]) for item in found]
        yield _folded(f"{len(found)} expectations", _table(("expectation", "", "note"), rows))


def _report(report: Mapping[str, Any]) -> Iterator[str]:
    model = report["model"]
    yield f"### opfuse: {_cell(PurePath(model['path']).name)}"
    yield f"{model['nodes']} nodes became {model['fused_nodes']}; opset {model['opset']}."
    kinds = [
        (kind, item["fused"], len(item["nearly"]) or "")
        for kind, item in report["fusions"].items()
        if item["fused"] or item["nearly"]
    ]
    if kinds:
        yield _table(("fusion", "fused", "nearly"), kinds, numbers=2)
    yield from _nearly(
        [
            (kind, miss["node"], miss["reason"], miss["advice"])
            for kind, item in report["fusions"].items()
            for miss in item["nearly"]
        ]
    )
    yield _proof(report["proof"])
    if "precision" in report:
        yield from _precision(report["precision"])
    if report["engine"] is not None:
        engine = report["engine"]
        rows = [(n.replace("_", " "), _value(engine[n])) for n in _ENGINE if engine.get(n)]
        yield _table(("engine", ""), rows)


_ENGINE = ("backend", "version", "bytes", "layers", "plugin_layers", "products", "path")


def _proof(proof: Mapping[str, Any] | None) -> str:
    if proof is None:
        return "Nothing was compared with the original."
    whole = proof["whole"]
    reason = whole["not_run"] if whole else "a fusion was undone"
    model = f"not the whole model: {_cell(reason)}" if reason else "and the whole model"
    undone = f"{proof['failed']} undone" if proof["failed"] else "all as the original"
    return (
        f"Proof: {proof['matches']} distinct fusions, {undone}, {model}; "
        f"largest relative error {proof['max_rel_err']:.1e}."
    )


def _precision(facts: Mapping[str, Any]) -> Iterator[str]:
    products = ", ".join(f"{count} in {name}" for name, count in facts["products"].items())
    yield f"Precision {facts['precision']}: products {products}; {facts['casts']} Casts."
    kept = [(item["node"], item["op"], item["reason"]) for item in facts["kept"]]
    if kept:
        title = f"{len(kept)} nodes stay in fp32"
        yield _folded(title, _table(("node", "operator", "because"), kept[:_MOST]))


def _nearly(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        table = _table(("kind", "blocking node", "reason", "what to do"), rows[:_MOST])
        more = f"\n\n{len(rows) - _MOST} more: see opfuse explain." if len(rows) > _MOST else ""
        yield _folded(f"{len(rows)} nearly fused", table + more)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """A table; the last columns hold numbers where it is said how many."""
    marks = ["---"] * (len(head) - numbers) + ["--:"] * numbers
    lines = [head, marks, *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    """Text in which nothing is markup."""
    return _SPECIAL.sub(r"\\\1", visible(value))


def _place(item: Mapping[str, str]) -> str:
    return f"{item['section']}.{item['name']}" if item["name"] else item["section"]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)


def _joined(parts: Iterator[str]) -> str:
    return "\n\n".join(parts) + "\n"

"""What a report tells, apart from how a format spells it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opfuse import lockfile

ERROR, WARNING, NOTE = "error", "warning", "note"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

RULES = {
    "near-miss": (WARNING, "A candidate for a fusion that was left alone"),
    "undone-fusion": (ERROR, "A fusion that the proof refuted and that was undone"),
    "kept-in-fp32": (NOTE, "A node that a conversion to another precision keeps in fp32"),
    "lock": (ERROR, "Something is not as opfuse.lock has it"),
}
"""Each kind of finding with its level and what it is."""


@dataclass(frozen=True)
class Finding:
    """One thing to look at: ``file`` and ``line`` are where, ``node`` is one of the model there."""

    rule: str
    message: str
    file: str
    line: int = 1
    node: str = ""
    fix: str = ""

    @property
    def text(self) -> str:
        """The message with what to do about it."""
        return f"{self.message}; try: {self.fix}" if self.fix else self.message


@dataclass(frozen=True)
class Case:
    """One test case; ``message`` is its failure, or what is known of a passed one."""

    suite: str
    name: str
    status: str = PASSED
    message: str = ""


def of_report(report: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what build, fuse, or explain found, from the report's JSON form."""
    file = report["model"]["path"]
    for kind, item in report["fusions"].items():
        for miss in item["nearly"]:
            text = f"{kind} not fused: {miss['node']}: {miss['reason']}"
            yield Finding("near-miss", text, file, node=miss["node"], fix=miss["advice"])
    for failure in (report["proof"] or {}).get("failures", ()):
        for node in failure["nodes"]:
            text = f"{failure['kind']} at {node} undone: {failure['reason']}"
            yield Finding("undone-fusion", text, file, node=node)
    for kept in report.get("precision", {}).get("kept", ()):
        yield Finding("kept-in-fp32", _kept(kept), file, node=kept["node"])


def cases_of_report(report: Mapping[str, Any]) -> Iterator[Case]:
    """Yield a case for each kind of fusion, each near-miss, the proof, precision, and engine."""
    for kind, item in report["fusions"].items():
        if item["fused"]:
            yield Case("fusions", kind, PASSED, f"{item['fused']} fused")
        for miss in item["nearly"]:
            name = f"{kind} at {miss['node']}"
            yield Case("fusions", name, SKIPPED, f"not fused: {miss['reason']}; {miss['advice']}")
    if (proof := report["proof"]) is not None:
        error = f"largest relative error {proof['max_rel_err']:.1e}"
        yield Case("proof", "distinct fusions", PASSED, f"{proof['matches']} compared, {error}")
        for failure in proof["failures"]:
            yield Case("proof", failure["kind"], FAILED, f"undone: {failure['reason']}")
        if proof["whole"] is not None:
            reason = proof["whole"]["not_run"]
            yield Case("proof", "whole model", SKIPPED if reason else PASSED, reason)
    if "precision" in report:
        told = ", ".join(f"{n} {name}" for name, n in report["precision"]["products"].items())
        yield Case("precision", report["precision"]["precision"], PASSED, f"products: {told}")
    if report["engine"] is not None:
        engine = report["engine"]
        yield Case("engine", engine["backend"], PASSED, f"{engine['layers']} layers")


def of_check(check: Mapping[str, Any], lock: str) -> Iterator[Finding]:
    """Yield what a check found, from its JSON form; ``lock`` is the text of the lock."""
    for item in check["expectations"]:
        if item["status"] == FAILED:
            line = lockfile.line_of(lock, item["section"], *filter(None, [item["name"]]))
            fix = item["fix"]
            yield Finding("lock", item["message"], check["lock"], line, item["node"], fix)
    for miss in check["nearly"]:
        text = f"{miss['kind']} not fused: {miss['node']}: {miss['reason']}"
        yield Finding("near-miss", text, check["model"], node=miss["node"], fix=miss["advice"])
    for kept in check["kept"]:
        yield Finding("kept-in-fp32", _kept(kept), check["model"], node=kept["node"])


def cases_of_check(check: Mapping[str, Any]) -> Iterator[Case]:
    """Yield a case for each expectation."""
    for item in check["expectations"]:
        message = f"{item['message']}; try: {item['fix']}" if item["fix"] else item["message"]
        name = item["name"] or item["section"]
        yield Case(item["section"], name, item["status"], message)


def _kept(kept: Mapping[str, str]) -> str:
    return f"{kept['node']} ({kept['op']}) stays in fp32: {kept['reason']}"


def visible(text: object) -> str:
    """Text that comes from a model, on one line and without control characters."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))

"""Compares each distinct fusion, and then the whole model, with the original on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_graphsurgeon as gs
from onnx import ModelProto

from opfuse import child
from opfuse.config import Config
from opfuse.errors import EngineError
from opfuse.files import scratch
from opfuse.graph.match import Match
from opfuse.graph.weights import DerivedValues
from opfuse.numerics import extract, stored
from opfuse.numerics.case import Case
from opfuse.numerics.handover import Handover
from opfuse.numerics.prover import Verdict
from opfuse.numerics.stored import Stored
from opfuse.numerics.whole import Comparison, Subject
from opfuse.progress import Progress
from opfuse.stages.load import Source

_TASK = "the proof"


@dataclass(frozen=True)
class Failure:
    """A fusion that is not proven: ``nodes`` are the places in the user's model."""

    signature: str
    kind: str
    nodes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Proof:
    """What was compared.

    Attributes:
        matches: How many distinct fusions were compared; those whose weights are too large to be
            run alone are compared in the whole model, and fail where that cannot be run.
        failed: Those to be undone; the whole model is compared only where there are none.
        max_rel_err: The largest relative error that passed, the whole model's included.
        whole: The whole model against the original.
    """

    matches: int
    failed: tuple[Failure, ...]
    max_rel_err: float
    whole: Comparison | None

    @property
    def vetoes(self) -> Mapping[str, str]:
        """What to fuse without: signature to reason."""
        return {failure.signature: failure.reason for failure in self.failed}


def prove(
    source: Source,
    model: ModelProto,
    graph: gs.Graph,
    matches: Sequence[Match],
    config: Config,
    progress: Progress,
) -> Proof:
    """Prove that the fused model computes what the original does.

    Runs in child processes; a fusion that kills its process fails and takes no other with it.

    Args:
        source: The original.
        model: The fused model; external values still lie in the source's files.
        graph: What ``model`` was exported from; it holds the merged weights.
        matches: The fusions that were applied.
        config: For the seed, the tolerance, and the time limit.
        progress: Told about every fusion.

    Raises:
        EngineError: The process cannot start.
        TimeLimit: ``config.time_limit`` has passed.
    """
    first = extract.distinct(matches)
    cases, refused, large = _cases(first, model, source.base_dir)
    with scratch() as folder:
        pair = None if refused else _pair(source, model, graph, folder)
        run = _Run(cases, pair, config, progress)
        run.finish()
    verdicts = [*refused, *run.verdicts]
    if run.whole is not None and (run.whole.not_run or not run.whole.passed):
        verdicts += large
    failed = tuple(_failure(v, matches) for v in verdicts if v.reason)
    errors = [verdict.max_rel_err for verdict in verdicts if not verdict.reason]
    if run.whole is not None and run.whole.passed:
        errors.append(run.whole.max_rel_err)
    return Proof(len(first), failed, max(errors, default=0.0), run.whole)


class _Run:
    """The judging of all cases over as many child processes as it takes."""

    def __init__(
        self,
        cases: Sequence[Case],
        pair: tuple[Subject, Subject] | None,
        config: Config,
        progress: Progress,
    ) -> None:
        self.verdicts: list[Verdict] = []
        self.whole: Comparison | None = None
        self._cases, self._pair = cases, pair
        self._config, self._progress = config, progress
        self._last: Mapping[str, Any] = {}

    def finish(self) -> None:
        """Judge every case, going on behind one that kills the process."""
        while self._advance():
            pass

    def _advance(self) -> bool:
        """Run one child to its end; tell whether cases are left."""
        left = self._cases[len(self.verdicts) :]
        pair = None if any(verdict.reason for verdict in self.verdicts) else self._pair
        self._last = {}
        try:
            self.whole = child.run(
                "opfuse.numerics.worker:prove",
                (left, pair, self._config.seed, self._config.rtol, dict(self._config.opt_shapes)),
                task=_TASK,
                time_limit=self._config.time_limit,
                on_event=self._note,
            )
        except EngineError as death:
            self._bury(death)
            return len(self.verdicts) < len(self._cases)
        return False

    def _note(self, event: Mapping[str, Any]) -> None:
        self._last = event
        if "verdict" in event:
            self.verdicts.append(event["verdict"])
        self._progress.step(str(event["text"]), len(self.verdicts), len(self._cases))

    def _bury(self, death: EngineError) -> None:
        """Blame what was running.

        Raises:
            EngineError: Nothing was.
        """
        if "model" in self._last:
            ours = self._last["model"] == "fused"
            self.whole = Comparison(
                {}, 0.0, not_run="" if ours else death.what, refused=death.what if ours else ""
            )
        elif "case" in self._last and "verdict" not in self._last:
            signature = self._cases[len(self.verdicts)].signature
            self.verdicts.append(Verdict(signature, death.what, 0.0))
        else:
            raise death


def _cases(
    first: Mapping[str, Match], model: ModelProto, base_dir: Path
) -> tuple[list[Case], list[Verdict], list[Verdict]]:
    """The jobs, verdicts on what cannot be made one, and on what only the whole model proves."""
    cases: list[Case] = []
    refused: list[Verdict] = []
    large: list[Verdict] = []
    for signature, match in first.items():
        try:
            cases.append(extract.build(match, model, base_dir))
        except extract.CannotProve as reason:
            left = large if isinstance(reason, extract.TooLarge) else refused
            left.append(Verdict(signature, f"cannot be proven alone: {reason}", 0.0))
    return cases, refused, large


def _pair(
    source: Source, model: ModelProto, graph: gs.Graph, folder: Path
) -> tuple[Subject, Subject]:
    """The original and the fused model, written for the child."""
    merged: dict[str, Stored] = {
        name: stored.of_constant(tensor, source.base_dir)
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and isinstance(tensor._values, DerivedValues)
    }
    handover = Handover(folder)
    original = handover.subject(source.proto, source.base_dir)
    return original, handover.subject(model, source.base_dir, merged)


def _failure(verdict: Verdict, matches: Sequence[Match]) -> Failure:
    same = [match for match in matches if match.signature == verdict.signature]
    nodes = tuple(dict.fromkeys(match.anchor for match in same))
    return Failure(verdict.signature, same[0].kind, nodes, verdict.reason)

"""`opfuse bench` and `opfuse verify` with several ranks: one process is one rank.

Started by hand, the command starts itself once for each rank; started by torchrun, mpirun, or srun
it is a rank. Rank 0 is the one that reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse import pipeline
from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.progress import Progress
from opfuse.stages.report import BENCH_SUFFIXES, COMPARISON_SUFFIXES, write_comparison, write_json

if TYPE_CHECKING:
    from opfuse.runtime.schedule import Schedule
    from opfuse.runtime.timing import Measurement
    from opfuse.stages.bench import Bench
    from opfuse.stages.members import Members
    from opfuse.stages.verify import Comparison


@dataclass(frozen=True)
class Started:
    """The ranks ran in processes of their own, and ended with this exit code."""

    code: int


@dataclass(frozen=True)
class Prospect:
    """What a dry run found: what would run where.

    ``same_model`` tells whether the model to compare with is the one that was sharded.
    """

    tp: int
    bundles: tuple[str, ...]
    facts: dict[str, Any]
    gpus: int
    same_model: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"schema": 1, "dry_run": True, **asdict(self)}


@dataclass(frozen=True)
class TogetherBench:
    """The ranks as one engine, and others beside them.

    Attributes:
        tp: How many ranks.
        ranks: What rank 0 measured; it has the times of every rank.
        others: Engines on one GPU.
    """

    tp: int
    ranks: Measurement
    others: Bench | None

    @property
    def efficiency(self) -> tuple[float, ...]:
        """For each of the others: its time over that of the ranks times their number."""
        mine = self.ranks.graph.median_us * self.tp
        engines = () if self.others is None else self.others.engines
        return tuple(item.graph.median_us / mine for item in engines)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        engines = () if self.others is None else self.others.engines
        return {
            "schema": 1,
            "tp": self.tp,
            "engines": [self.ranks, *engines],
            "efficiency": self.efficiency,
        }


def bench(
    folder: Path, others: Sequence[Path], config: Config, progress: Progress, argv: Sequence[str]
) -> TogetherBench | Prospect | Started | None:
    """Time the ranks in ``folder``; None on the ranks that do not report.

    Args:
        folder: From `opfuse shard`, with a bundle for each rank.
        others: Engines or models for one GPU, which rank 0 times afterwards.
        config: Its ``tp`` is the number of ranks.
        progress: Told about each stage.
        argv: The command line, for the processes that are started.
    """
    from opfuse.stages import members as of
    from opfuse.stages.bench import measured
    from opfuse.stages.start import start

    pipeline.check_reports(config, BENCH_SUFFIXES)
    members = of.read(folder, config.tp)
    of.refuse_ranks(others)
    if config.dry_run:
        of.check_others(others)
        return _prospect(config, members)[0]
    place = of.place(members)
    if place is None:
        of.require_gpus(members)
        return Started(start(argv, config.tp))
    with progress.stage("bench"):
        found = measured(members.bundles[place.rank], config, progress, place.local_rank)
    if place.rank:
        return None
    rest = None
    if others:
        first, *more = others
        rest = pipeline.bench(first, more, replace(config, reports=()), progress)
    result = TogetherBench(config.tp, found, rest)
    for path in config.reports:
        if path.suffix != ".json":
            raise InputError(f"no plot is made of {config.tp} ranks", "name a .json file")
        write_json(result.as_dict(), path)
    return result


def verify(
    folder: Path, model: Path, config: Config, progress: Progress, argv: Sequence[str]
) -> Comparison | Prospect | Started | None:
    """Compare what all ranks in ``folder`` compute with ``model``; as for :func:`bench`."""
    from opfuse.stages import members as of
    from opfuse.stages.start import start
    from opfuse.stages.verify import verify_ranks

    pipeline.check_reports(config, COMPARISON_SUFFIXES)
    if config.layers or config.bisect:
        option = "--layers" if config.layers else "--bisect"
        raise InputError(f"{option} is for one bundle", "leave it out with --tp")
    members = of.read(folder, config.tp)
    if config.dry_run:
        prospect, schedule = _prospect(config, members)
        return replace(prospect, same_model=of.check_model(members, schedule, model))
    place = of.place(members)
    if place is None:
        of.require_gpus(members)
        return Started(start(argv, config.tp))
    with progress.stage("verify"):
        bundle = members.bundles[place.rank]
        comparison = verify_ranks(bundle, members.parts, model, config)
    if place.rank:
        return None
    for path in config.reports:
        write_comparison(comparison, path)
    return comparison


def _prospect(config: Config, members: Members) -> tuple[Prospect, Schedule]:
    """And rank 0's schedule."""
    from opfuse.stages.members import check, gpus

    facts, schedule = check(members)
    return Prospect(config.tp, tuple(map(str, members.bundles)), facts, gpus()), schedule

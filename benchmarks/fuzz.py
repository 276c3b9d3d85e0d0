"""Differential fuzzing: blocks in random spellings, and blocks broken in known ways.

Every spelling must fuse and compute what the canonical spelling of its block does. Every mutant
must keep its own numbers, and a fusion that it loses must have a near-miss line. Guards alone are
on trial: nothing is proved here. From the repository root:
``python -m benchmarks.fuzz --spellings 10000 --mutants 10000 --seed 0``. A case hangs on its seed
and index alone: ``--seed S --first I --spellings 1 --mutants 0`` writes it again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.pool
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.fuzzing.cases import Verdict, mutant, save, spelling
from benchmarks.measure import print_table

_ROUND = 500  # cases of each kind between two looks at the clock
_RESULTS = ("fused", "refused", "narrower", "counts", "silent", "wrong", "crash", "generator")
_SHOWN = 20


def main() -> int:
    """Run the cases, print counts per kind, and return 1 if any failed."""
    args = _arguments()
    start = time.perf_counter()
    verdicts: list[Verdict] = []
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for verdict in _verdicts(args, pool):
            verdicts.append(verdict)
            if verdict.failed:
                _report(verdict, args.seed, args.save, sum(v.failed for v in verdicts))
    _print(verdicts, time.perf_counter() - start, args)
    return int(any(verdict.failed for verdict in verdicts))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--spellings", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--mutants", type=int, default=1000, help="(default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (default: 0)")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--minutes", type=float, help="go on with further cases for so long")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--save", type=Path, help="folder for the models of failed cases")
    return parser.parse_args()


def _verdicts(args: argparse.Namespace, pool: multiprocessing.pool.Pool) -> Iterator[Verdict]:
    end = time.monotonic() + 60 * args.minutes if args.minutes else None
    counts = {spelling: args.spellings, mutant: args.mutants}
    if end is not None:
        counts = dict.fromkeys(counts, _ROUND)
    first = args.first
    while True:
        for judge, count in counts.items():
            indices = range(first, first + count)
            yield from pool.imap_unordered(partial(judge, args.seed), indices, chunksize=20)
        first += max(counts.values())
        if end is None or time.monotonic() > end:
            return


def _report(verdict: Verdict, seed: int, folder: Path | None, number: int) -> None:
    place = f", {save(verdict, seed, folder)}" if folder else ""
    if number <= _SHOWN or folder:
        where = f"--seed {seed} --first {verdict.index}"
        print(f"{verdict.result}: {verdict.kind} of {verdict.label} ({where}{place})")
        print(f"    {verdict.detail}", flush=True)


def _print(verdicts: list[Verdict], seconds: float, args: argparse.Namespace) -> None:
    for kind, title in (("spelling", "spellings of"), ("mutant", "broken by")):
        own = [verdict for verdict in verdicts if verdict.kind == kind]
        if own:
            print_table(("", *_RESULTS, "all"), _rows(own, title))
            print()
    fused = Counter[str]()
    for verdict in verdicts:
        fused.update(verdict.counts)
    print_table(("fused", "count"), [(k, str(c)) for k, c in sorted(fused.items()) if c])
    failed = sum(verdict.failed for verdict in verdicts)
    rate = len(verdicts) / seconds
    print(f"\n{len(verdicts)} cases, seed {args.seed}, {failed} failed; {seconds:.0f} s, "
          f"{rate:.0f} cases/s with {args.jobs} processes")  # fmt: skip


def _rows(verdicts: Iterable[Verdict], title: str) -> list[list[str]]:
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        for label in (verdict.label, f"all {title.split()[0]}"):
            counts.setdefault(label, Counter())[verdict.result] += 1
    return [
        [label, *(str(found[result] or "-") for result in _RESULTS), str(found.total())]
        for label, found in sorted(counts.items())
    ]


if __name__ == "__main__":
    sys.exit(main())

"""The table that opfuse ships for an architecture, from the locks that --tune wrote on one.

``python -m benchmarks.engine_table GPU LOCK...`` prints it: for each op the sizes at which it was
measured (opfuse.engine.estimate) and the time of its region with the plugin over that without, the
best way of each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from opfuse.engine.verdicts import LEAVE, NATIVE, SECTION, Verdict, plugins_of, read, row

_SOURCE = "benchmarks.engine_table: elements of an op's first output and first two inputs, and the"
_SOURCE += " time of its region with the plugin over that without"


def ratio(us: Mapping[str, float], op: str) -> float:
    """What a plugin makes of the time of its region, beside the best that the others can do."""

    def best(names: Sequence[str]) -> float:
        return min((us[name] for name in names), default=float("inf"))

    having = [name for name in us if op in plugins_of(name)]
    return best(having) / best([name for name in us if name not in having])


def table(gpu: str, locks: Sequence[Path]) -> dict[str, Any]:
    """The table of all verdicts; where several have the same size, the median counts."""
    ops: dict[str, dict[tuple[int, ...], list[float]]] = {}
    targets = set()
    for lock in locks:
        section = json.loads(lock.read_text()).get(SECTION, {})
        for target in section:
            targets.add(target.partition(" ")[2])
            for verdict in read(section, target).values():
                for op, sizes, found in _points(verdict):
                    ops.setdefault(op, {}).setdefault(sizes, []).append(found)
    (tensorrt,) = targets
    return {
        "gpu": gpu,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "tensorrt": tensorrt,
        "source": _SOURCE,
        "ops": {
            op: [[sizes, round(median(found), 3)] for sizes, found in sorted(points.items())]
            for op, points in sorted(ops.items())
        },
    }


def _points(verdict: Verdict) -> list[tuple[str, tuple[int, ...], float]]:
    us = next(iter(verdict.us.values()), {})
    if LEAVE not in us or len(set(us) - {LEAVE, NATIVE}) == 0:
        return []
    return [
        (row(op, verdict.kinds), tuple(verdict.work[op]), ratio(us, op))
        for op in verdict.ops
        if op in verdict.work
    ]


def written(facts: Mapping[str, Any]) -> str:
    """The table as JSON, an op on a line."""
    lines = [f"  {json.dumps(op)}: {json.dumps(found)}" for op, found in facts["ops"].items()]
    rest = {key: value for key, value in facts.items() if key != "ops"}
    head = json.dumps(rest, indent=1).removesuffix("\n}")
    return head + ',\n "ops": {\n' + ",\n".join(lines) + "\n }\n}\n"


def main() -> None:
    """Print the table of the locks that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gpu")
    parser.add_argument("locks", nargs="+", type=Path)
    args = parser.parse_args()
    print(written(table(args.gpu, args.locks)), end="")


if __name__ == "__main__":
    main()

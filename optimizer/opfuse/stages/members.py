"""The folder of a sharded model whose ranks were built: which bundle is whose, and of one start."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opfuse.engine import gpu
from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.runtime import world
from opfuse.runtime.bundle import Bundle, rank_in
from opfuse.sharding.result import KIND, PLAN


@dataclass(frozen=True)
class Members:
    """The ranks of a folder.

    Attributes:
        folder: It holds the plan, and a bundle for each rank.
        bundles: They, by rank.
        parts: The inputs and outputs that ranks have parts of: axis and positions, by name.
        sha256: What the plan is known by.
    """

    folder: Path
    bundles: tuple[Path, ...]
    parts: Mapping[str, tuple[int, tuple[np.ndarray[Any, Any], ...]]]
    sha256: str


def read(folder: Path, tp: int) -> Members:
    """Find the bundles of ``tp`` ranks in a folder that `opfuse shard` wrote.

    Raises:
        InputError: It is none, of another number of ranks, or a rank is not built.
    """
    path = folder / PLAN
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        known = plan.get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        known = False
    if not known:
        raise InputError(f"{folder} has no {PLAN} of opfuse shard", "name the folder that it wrote")
    if plan["ranks"] != tp:
        raise InputError(f"{folder} is cut for {plan['ranks']} ranks, not {tp}", "give that --tp")
    bundles = tuple(folder / f"{Path(name).stem}.opfuse" for name in plan["files"])
    for name, bundle in zip(plan["files"], bundles, strict=True):
        if not bundle.is_file():
            raise InputError(
                f"there is no {bundle}",
                f"opfuse build {folder / name} -o {bundle} --backend segmented",
            )
    parts = {
        port["name"]: (int(port["axis"]), tuple(np.asarray(part) for part in port["ranks"]))
        for port in (*plan["inputs"], *plan["outputs"])
    }
    return Members(folder, bundles, parts, str(plan["sha256"]))


def place(members: Members) -> world.World | None:
    """Which rank this process is; None where nobody has started several.

    Raises:
        InputError: The launcher has started another number of them.
    """
    found = world.find()
    if found is not None and found.size != len(members.bundles):
        raise InputError(
            f"{found.size} processes were started for {len(members.bundles)} ranks",
            f"start {len(members.bundles)}",
        )
    return found


def require_gpus(members: Members) -> None:
    """Refuse a machine with fewer GPUs than ranks.

    Raises:
        MissingComponent: It is one.
    """
    want = len(members.bundles)
    if reason := gpu.absent():
        raise MissingComponent(
            f"{want} ranks run on {want} GPUs: {reason}", "run this on a machine that has them"
        )
    if (have := gpu.count()) < want:
        raise MissingComponent(
            f"{want} ranks run on {want} GPUs, and this machine has {have}",
            "cut the model for fewer ranks, or start them on several hosts with torchrun or mpirun",
        )


def refuse_ranks(others: Sequence[Path]) -> None:
    """Refuse bundles that do not run alone, where engines for one GPU are wanted.

    Raises:
        InputError: One is a rank's.
    """
    for path in others:
        if (rank := rank_in(path)) is not None:
            raise InputError(
                f"{path} is rank {rank.rank} of {rank.size}", "name an engine of the whole model"
            )


def gpus() -> int:
    """How many GPUs this machine has."""
    return gpu.count()


def check(members: Members) -> dict[str, Any]:
    """Compare the bundles as the ranks would when they meet; the facts that all of them share.

    Raises:
        InputError: A bundle is damaged, or of no rank.
        EngineError: They do not belong together.
    """
    facts: dict[str, Any] = {}
    for rank, path in enumerate(members.bundles):
        opened = Bundle.open(path)
        if opened.rank is None:
            raise InputError(f"{path} is no rank's bundle", "build it from the rank's .onnx")
        if opened.rank.rank != rank:
            raise EngineError(f"{path} is rank {opened.rank.rank}", "build each from its own .onnx")
        lock = opened.lock
        own = {
            "plan": opened.rank.plan,
            "ranks": opened.rank.size,
            "opfuse": lock.opfuse,
            "tensorrt": f"{lock.module} {lock.tensorrt}",
            "library": lock.library,
        }
        facts = facts or {**own, "plan": members.sha256, "ranks": len(members.bundles)}
        for name, value in own.items():
            if value != facts[name]:
                raise EngineError(
                    f"{path} has {name} {value}, want {facts[name]}",
                    "build all ranks of one opfuse shard alike",
                )
    return facts

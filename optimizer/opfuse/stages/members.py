"""The folder of a sharded model whose ranks were built: which bundle is whose, and of one start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opfuse.engine import gpu
from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.files import is_module
from opfuse.graph.collectives import refuse_ranks as refuse_ranks_of
from opfuse.runtime import agreement, world
from opfuse.runtime.bundle import Bundle, is_bundle, rank_in
from opfuse.runtime.schedule import Schedule
from opfuse.sharding.result import PLAN, plan_in, refuse_folders
from opfuse.stages.load import content_hash, load


@dataclass(frozen=True)
class Members:
    """The ranks of a folder.

    Attributes:
        folder: It holds the plan, and a bundle for each rank.
        bundles: They, by rank.
        parts: The inputs and outputs that ranks have parts of: axis and positions, by name.
        sha256: What the plan is known by.
        model_sha256: Of the model that was sharded; empty where the plan does not tell.
    """

    folder: Path
    bundles: tuple[Path, ...]
    parts: Mapping[str, tuple[int, tuple[np.ndarray[Any, Any], ...]]]
    sha256: str
    model_sha256: str = ""


def read(folder: Path, tp: int) -> Members:
    """Find the bundles of ``tp`` ranks in a folder that `opfuse shard` wrote.

    Raises:
        InputError: It is none, of another number of ranks, or a rank is not built.
    """
    plan = plan_in(folder)
    if plan is None:
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
    return Members(folder, bundles, parts, str(plan["sha256"]), str(plan.get("model_sha256", "")))


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
    """Refuse what does not run alone, where engines or models for one GPU are wanted.

    Raises:
        InputError: One is a rank's, or is not there.
    """
    refuse_folders(others)
    for path in others:
        if not path.is_file() and not is_module(path):
            raise InputError(f"there is no {path}", "name an engine or a model")
        if (rank := rank_in(path)) is not None:
            raise InputError(
                f"{path} is rank {rank.rank} of {rank.size}", "name an engine of the whole model"
            )


def check_others(others: Sequence[Path]) -> None:
    """Read what the ranks would be timed beside.

    Raises:
        InputError: It cannot be read, or is a rank's.
    """
    for path in others:
        if path.suffix == ".onnx":
            refuse_ranks_of(load(path).proto)
        elif path.suffix == ".opfuse" or is_bundle(path):
            Bundle.open(path)


def gpus() -> int:
    """How many GPUs this machine has."""
    return gpu.count()


def check(members: Members) -> tuple[dict[str, Any], Schedule]:
    """Compare the bundles as the ranks do when they meet; each is read once.

    Returns:
        What is told of all of them, and rank 0's schedule.

    Raises:
        InputError: A bundle is damaged, or of no rank.
        EngineError: They do not belong together.
    """
    told, schedules = [], []
    for path in members.bundles:
        opened = Bundle.open(path)
        if opened.rank is None:
            raise InputError(f"{path} is no rank's bundle", "build it from the rank's .onnx")
        if opened.rank.plan != members.sha256:
            raise EngineError(
                f"{path} is of another plan than {members.folder}", agreement.TOGETHER
            )
        told.append(agreement.facts(opened, opened.rank))
        schedules.append(opened.schedule)
    if found := agreement.difference(told):
        raise EngineError(f"{members.folder}: {found}", agreement.TOGETHER)
    lock = opened.lock
    facts = {
        "plan": members.sha256,
        "ranks": len(members.bundles),
        "opfuse": lock.opfuse,
        "tensorrt": f"{lock.module} {lock.tensorrt}",
        "library": lock.library,
    }
    return facts, schedules[0]


def check_model(members: Members, schedule: Schedule, model: Path) -> bool | None:
    """Whether a model is the one that was sharded; None where the plan does not say which was.

    Args:
        members: The ranks.
        schedule: That of one of them.
        model: An ONNX model.

    Raises:
        InputError: It is no model, or has other inputs or outputs than the ranks.
    """
    source = load(model)
    refuse_ranks_of(source.proto)
    graph = source.proto.graph
    weights = {item.name for item in graph.initializer}
    for what, ours, theirs in (
        ("inputs", schedule.inputs, [item for item in graph.input if item.name not in weights]),
        ("outputs", schedule.outputs, graph.output),
    ):
        mine, other = {item.name for item in ours}, {item.name for item in theirs}
        if odd := sorted(mine ^ other):
            raise InputError(
                f"the {what} of {model} are not those of the ranks: only one side has {odd[0]!r}",
                "name the model that was sharded",
            )
    return content_hash(source) == members.model_sha256 if members.model_sha256 else None

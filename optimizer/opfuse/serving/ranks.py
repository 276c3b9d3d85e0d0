"""The engines of a sharded model as Triton's TensorRT backend takes them, all in one process.

It gives every rank the whole inputs, returns what rank 0 makes, and hands its NCCL communicator to
TensorRT's own collectives (docs/multi_device.md there).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opfuse.errors import InputError
from opfuse.serving.subject import Subject, examine
from opfuse.sharding.result import PLAN, plan_in

OLDEST = 11  # the first TensorRT that such a Triton is built with
_BUILD = "opfuse build {0} -o {1} --backend tensorrt --lower native --report {2}"


@dataclass(frozen=True)
class Ranks:
    """One engine for each rank; what is told of the first holds for all."""

    engines: tuple[Subject, ...]

    @property
    def first(self) -> Subject:
        """That of rank 0."""
        return self.engines[0]

    def settings(self) -> tuple[str, ...]:
        """What the configuration says beyond that of one engine."""
        gpus = ",".join(map(str, range(len(self.engines))))
        pairs = {
            "enable_multi_device": "true",
            "multi_device_gpus": gpus,
            "multi_device_per_rank_engines": "true",
        }
        return (
            "instance_group [ { kind: KIND_MODEL count: 1 } ]",
            *(
                f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}'
                for key, value in pairs.items()
            ),
        )

    def notes(self) -> tuple[str, ...]:
        """What one should know."""
        return (
            "Triton's TensorRT backend has to be built with "
            "-DTRITON_ENABLE_TENSORRT_MULTI_DEVICE=ON, for this TensorRT and NCCL",
            f"one process runs all {len(self.engines)} ranks, on GPUs 0 to "
            f"{len(self.engines) - 1}, with one profile and without CUDA graphs",
        )


def examine_ranks(folder: Path) -> Ranks:
    """Find and compare the engines in a folder of `opfuse shard`.

    Raises:
        InputError: It is none, or Triton cannot serve what is in it.
        MissingComponent: Nobody knows the inputs of an engine: there is no report of its build.
    """
    plan = _plan(folder)
    for kind in ("inputs", "outputs"):
        for port in plan[kind]:
            raise InputError(
                f"each rank has a part of {port['name']!r} alone; Triton gives every rank all of "
                "the inputs, and returns the outputs of rank 0",
                "serve it by processes of your own (docs/shard.md)",
            )
    names = [Path(name) for name in plan["files"]]
    engines = tuple(_engine(folder, name, rank, plan) for rank, name in enumerate(names))
    for subject in engines:
        mine, first = _same(subject), _same(engines[0])
        if mine != first:
            raise InputError(
                f"{subject.path} was built otherwise than {engines[0].path}",
                "build all ranks by one TensorRT with one set of options",
            )
    return Ranks(engines)


def _plan(folder: Path) -> Mapping[str, Any]:
    plan = plan_in(folder)
    if plan is None:
        raise InputError(f"{folder} has no {PLAN} of opfuse shard", "name an engine, or its folder")
    return plan


def _engine(folder: Path, name: Path, rank: int, plan: Mapping[str, Any]) -> Subject:
    path = folder / f"{name.stem}.engine"
    fix = _BUILD.format(folder / name, path, path.with_suffix(".json"))
    if not path.is_file():
        bundled = path.with_suffix(".opfuse").is_file()
        hint = ", and a bundle takes a process for each rank" if bundled else ""
        raise InputError(f"there is no {path}{hint}", fix)
    subject = examine(path, None)
    if not subject.for_tensorrt:
        raise InputError(f"{path} was built by {subject.maker}: Triton runs TensorRT's alone", fix)
    if int(subject.version.split(".")[0]) < OLDEST:
        raise InputError(f"{path} is of TensorRT {subject.version}, want {OLDEST} or later", fix)
    if subject.speaks:
        raise InputError(
            f"{path} speaks to other ranks by plugins, which Triton's communicator does not reach",
            fix,
        )
    stated = subject.rank or {}
    if (stated.get("rank"), stated.get("plan")) != (rank, plan["sha256"]):
        raise InputError(f"{path} is not rank {rank} of {folder / PLAN}", fix)
    return subject


def _same(subject: Subject) -> tuple[object, ...]:
    return subject.version, subject.plugins, subject.embedded, subject.ports

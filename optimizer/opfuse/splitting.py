"""Sharding: the first stages of the pipeline, and then one file for each rank."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opfuse.config import Config
from opfuse.errors import InputError
from opfuse.files import check_output, pending_folder, translated
from opfuse.pipeline import fuse_and_prove, fuse_model
from opfuse.progress import Progress
from opfuse.sharding.result import KIND, PLAN, plan_in
from opfuse.stages.report import plain

if TYPE_CHECKING:
    from opfuse.numerics.whole import Comparison
    from opfuse.sharding.result import Plan
    from opfuse.stages.load import Source
    from opfuse.stages.shard import Sharded

_SCHEMA = 1


@dataclass(frozen=True)
class Shards:
    """What was written into a folder.

    Attributes:
        folder: It holds the plan, and a model for each rank.
        plan: What was split and what was not.
        proof: The ranks against the model; None where nobody asked for it.
    """

    folder: Path
    plan: Plan
    proof: Comparison | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as it stands in the folder."""
        proof = self.proof
        proven: dict[str, Any] | None = None
        if proof is not None:
            proven = {
                "max_rel_err": proof.max_rel_err,
                "tolerance": proof.tolerance,
                "not_run": proof.not_run,
            }
        return {"schema": _SCHEMA, "kind": KIND, **plain(self.plan), "proof": proven}


def shard(config: Config, progress: Progress | None = None) -> Shards:
    """Cuts one model into ``config.tp`` models and proves that together they compute the same.

    Raises:
        OpfuseError: Any foreseen failure; the folder is then as it was.
    """
    progress = progress or Progress()
    target = _checked_target(config)
    with progress.stage("load"):
        from opfuse.graph.collectives import refuse_ranks
        from opfuse.stages.load import load
        from opfuse.stages.shapes import check_shapes

        source = load(config.model)
        refuse_ranks(source.proto)
        check_shapes(source, config)
    if config.prove:
        fused, model, _ = fuse_and_prove(source, config, progress)
    else:
        fused, model = fuse_model(source, {}, progress)
    with progress.stage("shard"):
        from opfuse.stages.fuse import fuse_sums
        from opfuse.stages.load import content_hash
        from opfuse.stages.shard import shard as cut
        from opfuse.stages.shard import weight_bytes, with_sums

        whole = weight_bytes(model)
        digest = content_hash(source)
        sharded = cut(fused, source.path, source.base_dir, config.tp, vocab=config.shard_vocab)
        fused = fuse_sums(fused, source.base_dir)
        sharded = with_sums(sharded, fused, digest)
    with pending_folder(target) as folder:
        plan = _write(source, fused, sharded, whole, folder, progress)
        proof = _prove(source, plan, folder, config, progress) if config.prove else None
        shards = Shards(target, plan, proof)
        text = json.dumps(shards.as_dict(), indent=1) + "\n"
        (folder / PLAN).write_text(text, encoding="utf-8")
    return shards


def _write(
    source: Source, fused: Any, sharded: Sharded, whole: int, folder: Path, progress: Progress
) -> Plan:
    """Writes the ranks one after the other; their weights come straight from the source."""
    from opfuse.graph.collectives import Rank, state
    from opfuse.stages.fuse import export
    from opfuse.stages.save import save
    from opfuse.stages.shard import weight_bytes, with_files

    files, own = [], 0
    with progress.stage("save"):
        for rank in range(sharded.plan.ranks):
            progress.step(f"rank {rank}", rank, sharded.plan.ranks)
            sharded.cutter.set_rank(rank)
            model = export(fused, source)
            state(model, Rank(rank, sharded.plan.ranks, sharded.plan.sha256))
            files.append(f"rank{rank}.onnx")
            save(fused.graph, model, source, folder / files[-1])
            own = weight_bytes(model)
    return with_files(sharded.plan, files, whole, own)


def _prove(
    source: Source, plan: Plan, folder: Path, config: Config, progress: Progress
) -> Comparison:
    from opfuse.stages.shard import parts_of
    from opfuse.stages.shard_proof import prove_ranks

    with progress.stage("prove"):
        files = [folder / name for name in plan.files]
        return prove_ranks(source, files, parts_of(plan), config, progress)


def _checked_target(config: Config) -> Path:
    """Refuses, before any work, a number of ranks that is none and a folder that is another's."""
    if config.tp < 2:
        raise InputError(f"{config.tp} ranks are none to share with", "give --tp 2 or more")
    target = config.output
    if target is None:
        raise InputError("shard has no output folder", "name one with -o or --output")
    if not target.exists():
        check_output(target)
        return target
    if not target.is_dir():
        raise InputError(f"output {target} is no folder", "name another one")
    with translated(target):
        if any(target.iterdir()) and plan_in(target) is None:
            raise InputError(
                f"output folder {target} holds other files", "name a new one, or an empty one"
            )
    if config.model.resolve().parent.is_relative_to(target.resolve()):
        raise InputError(f"the model lies in the output folder {target}", "name another one")
    return target

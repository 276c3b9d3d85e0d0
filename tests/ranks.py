"""Small models, cut and run rank by rank, beside the models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from opfuse.graph.collectives import Rank, state
from opfuse.numerics.ranks import Ranks
from opfuse.numerics.whole import Subject
from opfuse.sharding.result import Plan
from opfuse.stages.fuse import export, fuse, fuse_sums
from opfuse.stages.load import Source, content_hash
from opfuse.stages.normalise import normalise
from opfuse.stages.save import save
from opfuse.stages.shard import parts_of, shard, with_sums
from tests import small


@dataclass(frozen=True)
class Cut:
    """A model, its ranks, and what was told of them."""

    before: onnx.ModelProto
    ranks: tuple[onnx.ModelProto, ...]
    folder: Path
    plan: Plan

    def runner(self) -> Ranks:
        """All ranks, ready to run in step."""
        paths = [self.folder / f"rank{rank}.onnx" for rank in range(len(self.ranks))]
        return Ranks([Subject(path, self.folder, {}) for path in paths], parts_of(self.plan))

    def same(self, *sizes: Mapping[str, int], **feeds: np.ndarray) -> None:
        """Assert that the ranks give what the model gives."""
        original, together = small.session(self.before), self.runner()
        for number, dims in enumerate(sizes or ({},)):
            drawn = small.draw(self.before, dims, number) | feeds
            names = [output.name for output in self.before.graph.output]
            have = together.run(drawn)
            for name, want in zip(names, original.run(None, drawn), strict=True):
                small.compare(f"{name}, sizes {dims}", want, have[name])

    def products(self) -> list[tuple[str, tuple[int, ...]]]:
        """How each product is split, and each rank's weight."""
        return [(item.how, item.part) for item in self.plan.products]

    def reasons(self) -> list[str]:
        """Why what stayed whole did."""
        return [item.reason for item in self.plan.left]

    def ops(self, rank: int = 0) -> list[str]:
        """The operators of one rank, in order."""
        return [node.op_type for node in self.ranks[rank].graph.node]

    def weights(self, name: str) -> list[np.ndarray]:
        """Each rank's part of a weight."""
        return [
            onnx.numpy_helper.to_array(tensor)
            for model in self.ranks
            for tensor in model.graph.initializer
            if tensor.name.startswith(f"{name}/part")
        ]


def cut(before: onnx.ModelProto, ranks: int, folder: Path, *, vocab: bool = False) -> Cut:
    """Fuse ``before`` and cut it for ``ranks`` ranks, written to ``folder``."""
    copy = onnx.ModelProto.FromString(before.SerializeToString())
    source = Source(Path("model.onnx"), copy, folder)
    fused = fuse(normalise(source))
    made = shard(fused, source.path, folder, ranks, vocab=vocab)
    fused = fuse_sums(fused, folder)
    made = with_sums(made, fused, content_hash(source))
    models = []
    for rank in range(ranks):
        made.cutter.set_rank(rank)
        path = folder / f"rank{rank}.onnx"
        written = export(fused, source)
        state(written, Rank(rank, ranks, made.plan.sha256))
        save(fused.graph, written, source, path)
        models.append(onnx.load(path))
        onnx.checker.check_model(models[-1], full_check=True)
    return Cut(before, tuple(models), folder, made.plan)

"""The proof of a widening against what it takes together, with a definition that may be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from opfuse.config import Config
from opfuse.fusions import DEFINITIONS
from opfuse.progress import Progress
from opfuse.stages.fuse import export, fuse, widen
from opfuse.stages.load import Source
from opfuse.stages.normalise import normalise
from opfuse.stages.prove import Proof, prove


def prove_widening(
    monkeypatch: pytest.MonkeyPatch,
    op: str,
    made: onnx.ModelProto,
    right: str = "",
    wrong: str = "",
) -> Proof:
    """Prove what widening adds; ``wrong`` stands for ``right`` in the body of ``op``."""
    definition = DEFINITIONS[op]
    changed = replace(definition, body=lambda uses: definition.body(uses).replace(right, wrong))
    source = Source(Path("model.onnx"), made, Path())
    fused = fuse(normalise(source))
    count = len(fused.matches)
    monkeypatch.setitem(DEFINITIONS, op, changed)
    fused = widen(fused, {op}, Path())
    after, config = export(fused, source), Config(Path("model.onnx"))
    return prove(source, after, fused.graph, fused.matches[count:], config, Progress(), whole=False)

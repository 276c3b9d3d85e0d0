"""Whatever a guard says, there is something to do about it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import opfuse.fusions
from opfuse.graph.advice import of_mismatch, of_reason

ROOMS = sorted(Path(opfuse.fusions.__file__).parent.glob("*.py"))


def reasons(path: Path) -> list[str]:
    """The texts of all refusals in a file, ``…`` for what is filled in."""
    tree = ast.parse(path.read_text())
    texts = {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == "reason"
    }
    calls = [
        node.args[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Miss"
        and len(node.args) < 3
    ]
    return [_text(texts.get(getattr(call, "id", ""), call)) for call in calls]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.stem)
def test_every_refusal_has_advice(path):
    assert [text for text in reasons(path) if not of_reason(text)] == []


@pytest.mark.parametrize(
    ("found", "reason", "advice"),
    [
        ("", "is computed, want a constant", "constant folding"),
        ("", "is a graph input, want Mul", "missing from the export"),
        ("Cast", "is Cast, want Mul", "one floating-point type"),
        ("Dropout", "is Dropout, want Softmax", "model.eval()"),
        ("DequantizeLinear", "is DequantizeLinear, want MatMul", "behind the fused op"),
        ("Clip", "is Clip, want Mul", "take the Clip out"),
    ],
)
def test_structures_that_differ(found, reason, advice):
    assert advice in of_mismatch(found, reason)

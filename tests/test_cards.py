"""The shipped models: everything that their cards count is found, and the numbers stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import opfuse

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

MODELS = Path(__file__).resolve().parent.parent / "models"
CARDS = sorted(MODELS.glob("cards/*.toml"))


def test_every_shipped_model_has_a_card():
    files = {tomllib.loads(card.read_text())["file"] for card in CARDS}
    assert files == {path.name for path in MODELS.glob("*.onnx")}


def test_shipped_models_are_small():
    assert sum(path.stat().st_size for path in MODELS.glob("*.onnx")) < 3_000_000


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_card(path, tmp_path):
    card = tomllib.loads(path.read_text())
    report = opfuse.fuse(MODELS / card["file"], tmp_path / "fused.onnx").as_dict()
    found = {kind: item["fused"] for kind, item in report["fusions"].items() if item["fused"]}
    assert found == card["expect"], report["fusions"]
    assert report["proof"]["failed"] == 0
    assert report["proof"]["whole"]["not_run"] == ""
    assert report["proof"]["max_rel_err"] < card["rtol"]

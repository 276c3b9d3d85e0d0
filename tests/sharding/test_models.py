"""The shipped models, and a Llama of more heads, cut for 2, 4, and 8 ranks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from models import tiny
from opfuse import child
from opfuse.numerics.ranks import compare_ranks
from opfuse.numerics.whole import Subject
from opfuse.stages.shard import parts_of
from tests.ranks import cut

MODELS = Path(__file__).resolve().parents[2] / "models"
LAYERS = {"llama": 2, "llama_fp16": 2, "bert": 3, "gpt2_fp16": 3, "t5_encoder_fp16": 3, "vit": 3}

# Its residual stream is fp32 between fp16 layers, with a limit before each cast.
WITHOUT_NORM = ("t5_encoder_fp16",)


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """The comparison tells its steps to the process that started its own."""
    monkeypatch.setattr(child, "emit", lambda event: None)


def proven(path: Path, ranks: int, folder: Path, *, vocab: bool = False):
    made = cut(onnx.load(path), ranks, folder, vocab=vocab)
    files = [Subject(folder / f"rank{rank}.onnx", folder, {}) for rank in range(ranks)]
    original = Subject(path, path.parent, {})
    result = compare_ranks(original, files, parts_of(made.plan), 0, None, {})
    assert result.passed, result
    assert not result.not_run
    return made.plan


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("name", LAYERS)
def test_all_layers_are_split(tmp_path, name, ranks):
    plan = proven(MODELS / f"{name}.onnx", ranks, tmp_path)
    assert len(plan.attentions) == LAYERS[name]
    assert not [item for item in plan.left if item.op == "FlashAttention"]
    sums = 2 * LAYERS[name]
    alone = sums if name in WITHOUT_NORM else 0
    want = {"AllReduce": alone, "AllGather": 0, "AllReduceAddNorm": sums - alone}
    assert plan.collectives == want
    assert len(plan.apart) == alone


@pytest.mark.parametrize("vocab", [False, True])
def test_eight_ranks_with_a_share_of_a_key_each(tmp_path, vocab):
    path = tiny.llama(heads=8, kv_heads=2, hidden=64).write(tmp_path / "m.onnx")
    plan = proven(path, 8, tmp_path, vocab=vocab)
    assert {(a.heads, a.kv_heads, a.replicated_kv) for a in plan.attentions} == {(1, 1, True)}


def test_eight_ranks_of_four_heads_split_the_rest(tmp_path):
    plan = proven(MODELS / "llama.onnx", 8, tmp_path)
    assert plan.attentions == ()
    assert {product.how for product in plan.products} == {"column", "row"}

"""Heads that lie beside the batch, as ``torch.nn.MultiheadAttention`` lays them."""

from __future__ import annotations

import pytest

from opfuse.errors import InputError
from tests.ranks import Cut, cut
from tests.small import model

ROWS = ({"B": 2, "S": 5}, {"B": 1, "S": 1}, {"B": 3, "S": 4})
WEIGHTS = {"w": (6, 48), "b": (48,), "wo": (16, 6), "bo": (6,)}
LAID = (
    "x_t = Transpose<perm=[1, 0, 2]>(x)\nraw = MatMul(x_t, w)\nqkv = Add(raw, b)\n"
    "qp, kp, vp = Split<axis=-1>(qkv, [16, 16, 16])\n"
    + "".join(f"{n}m = Reshape({n}p, [0, -1, 4])\n" for n in "qkv")
)
TURNED = "".join(f"{n}b = Transpose<perm=[1, 0, 2]>({n}m)\n" for n in "qkv")
ATTEND = "raw_s = MatMul(q, kt)\nscaled = Mul(raw_s, 0.5)\np = Softmax<axis=-1>(scaled)\n"
SIZES = (
    "s1 = Shape<start=0, end=1>(x_t)\nb1 = Shape<start=1, end=2>(x_t)\n"
    "sizes = Concat<axis=0>(b1, [4], s1, [4])\nof_keys = Concat<axis=0>(b1, [4], [4], s1)\n"
)
TAKEN = "o_t = Transpose<perm=[1, 0, 2]>(o)\nflat = Reshape(o_t, {})\n"
BEHIND = "part = MatMul(flat, wo)\ny = Add(part, bo)\n"

IN_BATCH = (
    LAID
    + TURNED
    + "q = Identity(qb)\nkt = Transpose<perm=[0, 2, 1]>(kb)\n"
    + ATTEND
    + "o = MatMul(p, vb)\n"
)
SPLIT_AGAIN = (
    LAID
    + TURNED
    + SIZES
    + "q = Reshape(qb, sizes)\nk = Reshape(kb, sizes)\nv = Reshape(vb, sizes)\n"
    "kt = Transpose<perm=[0, 1, 3, 2]>(k)\n"
    + ATTEND
    + "o4 = MatMul(p, v)\no = Transpose<perm=[2, 0, 1, 3]>(o4)\nflat = Reshape(o, [-1, 16])\n"
)
KEYS_TURNED = SPLIT_AGAIN.replace(
    "kb = Transpose<perm=[1, 0, 2]>(km)", "kb = Transpose<perm=[1, 2, 0]>(km)"
).replace(
    "k = Reshape(kb, sizes)\nv = Reshape(vb, sizes)\nkt = Transpose<perm=[0, 1, 3, 2]>(k)\n",
    "kt = Reshape(kb, of_keys)\nv = Reshape(vb, sizes)\n",
)
FORMS = {
    "in the batch": IN_BATCH + TAKEN.format("[-1, 16]") + BEHIND,
    "in the batch, and the sequence kept": IN_BATCH + TAKEN.format("[0, -1, 16]") + BEHIND,
    "split again": SPLIT_AGAIN + BEHIND,
    "split again, the keys turned": KEYS_TURNED + BEHIND,
}


def sharded(text: str, ranks: int, tmp_path, **changes: object) -> Cut:
    case = {"text": text, "inputs": "T[B, S, 6] x", "weights": WEIGHTS} | changes
    return cut(model(**case), ranks, tmp_path)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("form", FORMS)
def test_heads_beside_the_batch_are_split(tmp_path, form, ranks):
    made = sharded(FORMS[form], ranks, tmp_path)
    made.same(*ROWS)
    assert made.products() == [("column", (6, 48 // ranks)), ("row", (16 // ranks, 6))]
    (attention,) = made.plan.attentions
    assert (attention.heads, attention.kv_heads) == (4 // ranks, 4 // ranks)


def test_as_many_heads_as_the_rows_say(tmp_path):
    """Rows of 8 of 16 features are two heads."""
    text = FORMS["in the batch"].replace("[0, -1, 4]", "[0, -1, 8]")
    made = sharded(text, 2, tmp_path)
    made.same(*ROWS)
    (attention,) = made.plan.attentions
    assert attention.heads == 1


OTHERWISE = {
    "the sequence behind the heads": ("o_t = Transpose<perm=[1, 0, 2]>(o)", "o_t = Identity(o)"),
    "as they lie": ("flat = Reshape(o_t, [-1, 16])", "flat = Reshape(o_t, [0, 0, 4])"),
    "returned": ("y = Add", "z = Neg(o)\ny = Add"),
    "keys of another batch": ("km = Reshape(kp, [0, -1, 4])", "km = Reshape(other, [0, -1, 4])"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_is_laid_otherwise_stays(tmp_path, what):
    text = FORMS["in the batch"].replace(*OTHERWISE[what])
    changes: dict[str, object] = {"weights": {**WEIGHTS, "wo": (4, 6)}} if "lie" in what else {}
    if what == "returned":
        changes["outputs"] = "T y, T z"
    if "other" in text:
        changes["inputs"] = "T[B, S, 6] x, T[S, C, 8] other"
    with pytest.raises(InputError, match="nothing in it can be split"):
        sharded(text, 2, tmp_path, **changes)

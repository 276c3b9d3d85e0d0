"""A table decides by rows of similar sizes, says which rows it lacks, and is well formed."""

from __future__ import annotations

import pytest

from opfuse.engine import estimate
from opfuse.engine.estimate import by_table, ratio
from opfuse.engine.verdicts import LEAVE, decide, read


def table(**ops: float) -> dict[str, object]:
    rows = {op.replace("_", " "): [[[1000, 1000, 10], found]] for op, found in ops.items()}
    return {"gpu": "a GPU", "date": "a day", "ops": rows}


def test_a_row_decides_at_its_sizes_and_all_rows_far_from_them():
    rows = [((1000, 1000, 10), 1.25), ((64000, 1000, 640), 0.8)]
    assert ratio(rows, (1000, 1000, 10)) == pytest.approx(1.25, abs=0.01)
    assert ratio(rows, (64000, 1000, 640)) == pytest.approx(0.8, abs=0.01)
    assert ratio(rows, (8000, 1000, 80)) == pytest.approx(1.0, abs=0.01)
    assert ratio(rows, (10**9, 10**9, 10**9)) == pytest.approx(1.0, abs=0.05)
    assert ratio(rows, ()) == pytest.approx(1.0)  # sizes that a lock of old does not tell


def test_sizes_that_write_as_much_are_others():
    """A product of one row and of many may write as much, and be of another kernel."""
    one, many = (4096, 4096, 4096 * 4096), (4096, 64 * 4096, 64 * 4096)
    rows = [(one, 0.5), (many, 1.5)]
    assert ratio(rows, one) < 0.6
    assert ratio(rows, many) > 1.4


def test_a_row_that_noise_moved_is_outvoted():
    rows = [((1024 * n, 1024 * n, 1024), 1.2 if n == 4 else 0.8) for n in (1, 2, 3, 4, 5, 6, 8)]
    assert ratio(rows, (3500, 3500, 1024)) < 1


def test_the_table_decides_and_says_so():
    told = "the table of a GPU of a day"
    taken = by_table(table(A=0.8), ("A", "B"), {"A": [1000, 1000, 10]})
    assert (taken.choice, taken.source, taken.lacks) == ("A", told, ("B",))
    assert taken.reason("A") == f"{told}: 0.80 of the time that TensorRT takes"
    assert taken.reason("B") == f"{told} has no B: A without it"
    assert by_table(table(A=1.2), ("A",), {}).choice == LEAVE
    assert by_table(table(A=0.995), ("A",), {}).choice == LEAVE
    unknown = by_table({}, ("A",), {"A": [5]})
    assert unknown.reason("A") == "opfuse ships no table of this GPU, --tune measures: leave"
    assert unknown.lacks == ()


def test_a_product_that_is_more_exact_may_lose_a_twentieth():
    found = by_table(table(A=1.04, GatedGemm=1.04), ("A", "GatedGemm"), {})
    assert found.choice == "GatedGemm"
    assert found.reason("A") == "the table of a GPU of a day: 1.04 of the time that TensorRT takes"


@pytest.mark.parametrize(
    ("found", "choice", "sparing"),
    [(0.998, "A", ""), (1.02, LEAVE, "A"), (1.06, LEAVE, "")],
)
def test_a_plugin_that_saves_an_engine(found, choice, sparing):
    made = by_table(table(A=found), ("A",), {}, apart=True)
    assert (made.choice, made.sparing) == (choice, sparing)
    assert by_table(table(A=found), ("A",), {}).sparing == ""


def test_an_unusual_kind_has_rows_of_its_own():
    assert by_table(table(A=0.5), ("A",), {}).choice == "A"
    left = by_table(table(A=0.5), ("A",), {}, kinds={"A": "fp32"})
    assert left.reason("A") == "the table of a GPU of a day has no A fp32: leave"
    both = table(A=0.5, A_fp32=0.9)
    assert by_table(both, ("A",), {}, kinds={"A": "fp32"}).choice == "A"
    times = {"opt": {LEAVE: [2.0] * 5, "A": [1.0] * 5}}
    made = decide(times, ("A",), "", {"A": [3, 2, 1]}, kinds={"A": "fp32"})
    (kept,) = read({"x": {"key": made.as_dict()}}, "x").values()
    assert kept.kinds == made.kinds == {"A": "fp32"}
    assert kept.work == made.work == {"A": [3, 2, 1]}


def test_shipped_tables_are_well_formed():
    for path in estimate._TABLES.glob("sm_*.json"):
        facts = estimate.table(path.stem.removeprefix("sm_"))
        assert {"gpu", "date", "tensorrt", "ops"} <= facts.keys()
        for rows in facts["ops"].values():
            assert rows
            for sizes, found in rows:
                assert 2 <= len(sizes) <= 3
                assert min(sizes) > 0
                assert 0 < found < 100
    assert estimate.table("1.0") == {}

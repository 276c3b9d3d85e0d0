"""What follows from times: a plugin has to win by more than the noise, and lose nowhere."""

from __future__ import annotations

import pytest

from opfuse.engine.verdicts import LEAVE, Verdict, decide, read, target_of

STEADY = [100.0, 101.0, 99.0, 100.5, 99.5]


def times(**variants: list[float]) -> dict[str, list[float]]:
    return {"leave": STEADY, **variants}


def shifted(by: float) -> list[float]:
    return [value + by for value in STEADY]


def test_the_fastest_that_wins_is_taken():
    found = decide({"opt": times(A=shifted(-10), B=shifted(-20))}, ("A", "B"), "library")
    assert found.choice == "B"
    assert found.us["opt"] == {"leave": 100.0, "A": 90.0, "B": 80.0}
    assert (found.form_of("A"), found.form_of("B")) == ("leave", "plugin")


@pytest.mark.parametrize("gain", [-5.0, 0.0, 0.2])
def test_less_than_three_thousandths_are_no_gain(gain):
    assert decide({"opt": times(A=shifted(-gain))}, ("A",), "").choice == LEAVE


@pytest.mark.parametrize(("gain", "choice"), [(-4.0, "GemmAct"), (0.0, "GemmAct"), (-6.0, LEAVE)])
def test_a_plugin_that_is_more_exact_may_lose_a_twentieth(gain, choice):
    found = {"opt": times(GemmAct=shifted(-gain)), "max": times(GemmAct=shifted(-gain))}
    assert decide(found, ("GemmAct",), "").choice == choice
    assert decide({"opt": times(**{"GemmAct+A": shifted(0.0)})}, ("A",), "").choice == LEAVE


@pytest.mark.parametrize(
    ("loss", "native", "choice", "sparing"),
    [
        (2.0, 0.0, LEAVE, "A"),
        (6.0, 0.0, LEAVE, ""),
        (1.0, -1.0, "native", "A"),
        (4.0, -2.0, "native", ""),
        (-1.0, 0.0, "A", ""),
        (0.2, 0.0, "A", ""),
    ],
)
def test_a_plugin_that_saves_an_engine_may_lose_a_twentieth_if_memory_is_short(
    loss, native, choice, sparing
):
    found = {"opt": times(A=shifted(loss), native=shifted(native))}
    made = decide(found, ("A",), "", apart=True)
    (kept,) = read({"x": {"key": made.as_dict()}}, "x").values()
    for verdict in (made, kept):
        assert (verdict.choice, verdict.sparing) == (choice, sparing)
        assert verdict.spared().choice == (sparing or choice)
        assert verdict.spared().reason("A").endswith("than TensorRT alone") is bool(sparing)
        assert "than TensorRT alone" not in verdict.reason("A")
    assert decide(found, ("A",), "").sparing == ""


@pytest.mark.parametrize(("loss", "sparing"), [(-0.2, ""), (1.0, "A+B"), (6.0, "")])
def test_only_all_plugins_of_a_group_save_its_engine(loss, sparing):
    """One that leaves another one to TensorRT is worth what it gains, and no more."""
    found = {"opt": times(B=shifted(-60), **{"A+B": shifted(loss - 60)})}
    made = decide(found, ("A", "B"), "", apart=True)
    assert (made.choice, made.sparing) == ("A+B" if loss < 0.3 else "B", sparing)


def test_a_gain_within_the_noise_is_none():
    noisy = [60.0, 140.0, 70.0, 130.0, 95.0]
    assert decide({"opt": times(A=noisy)}, ("A",), "").choice == LEAVE


def test_a_plugin_that_loses_at_one_point_is_left():
    points = {"opt": times(A=shifted(-20)), "max": times(A=shifted(5))}
    assert decide(points, ("A",), "").choice == LEAVE
    points["max"] = times(A=shifted(0.2))
    assert decide(points, ("A",), "").choice == "A"


@pytest.mark.parametrize("broken", [{}, {"opt": {}}, {"opt": {"leave": [], "A": [1.0]}}])
def test_what_could_not_be_timed_is_left(broken):
    assert decide(broken, ("A",), "").choice == LEAVE
    both = {"opt": times(A=shifted(-20)), "min": {"leave": STEADY}}
    assert decide(both, ("A",), "").choice == LEAVE


def test_verdicts_survive_the_lock():
    made = decide({"opt": times(A=shifted(-10))}, ("A",), "abc")
    section = {"sm_90 x 1": {"key": made.as_dict(), "torn": {"choice": "A"}}, "sm_80 x 1": {}}
    (found,) = read(section, "sm_90 x 1").values()
    assert (found.choice, found.us, found.ops, found.library) == ("A", made.us, ("A",), "abc")
    assert found.reason("A") == "from the lock: opt: leave 100.0 A 90.0 us"
    assert read(section, "sm_80 x 1") == read(None, "sm_90 x 1") == read([], "") == {}


def test_targets():
    assert target_of("9.0", "segmented tensorrt-rtx 1.4") == "sm_90 segmented tensorrt-rtx 1.4"
    assert Verdict("A+B", ("A", "B")).form_of("B") == "plugin"


def test_a_plugin_has_a_tactic():
    found = {"opt": times(**{"GemmAct": shifted(-1.0), "GemmAct@3": shifted(-9.0)})}
    verdict = decide(found, ("GemmAct",), "")
    assert (verdict.choice, verdict.form_of("GemmAct")) == ("GemmAct@3", "plugin")
    assert (verdict.tactic_of("GemmAct"), verdict.tactic_of("Rope")) == (3, 0)
    tie = decide({"opt": times(**{"GemmAct@3": shifted(0.0)})}, ("GemmAct",), "")
    assert tie.choice == "GemmAct@3"


def test_a_lock_with_an_odd_tactic_says_nothing():
    torn = {"choice": "GemmAct@", "ops": ["GemmAct"], "us": {}}
    section = {"t": {"a": torn, "b": {**torn, "choice": "GemmAct@x"}}}
    section["t"]["c"] = {**torn, "sparing": "GemmAct@x"}
    assert [item.tactic_of("GemmAct") for item in read(section, "t").values()] == [0]

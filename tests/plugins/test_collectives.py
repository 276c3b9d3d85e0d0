"""What the collectives and their communicator do and refuse where there is no GPU."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from opfuse.errors import EngineError
from opfuse.graph.collectives import MOST_BY_PLUGIN
from opfuse.runtime import abi
from opfuse.runtime.abi import AttributeValue, Plugin, PluginError, Tensor
from opfuse.runtime.communicator import Communicator

FLOAT, HALF = 1, 10
ROWS, WEIGHT = Tensor(HALF, (3, 64)), Tensor(HALF, (64,))


@pytest.fixture(scope="module")
def handle(plugin_library: Path) -> ctypes.CDLL:
    return abi.load(plugin_library)


@pytest.mark.parametrize(
    ("norm", "parameters"), [("rms", 1), ("rms", 2), ("layer", 2), ("layer", 3)]
)
def test_a_norm_has_its_weights_and_perhaps_a_bias(
    handle: ctypes.CDLL, norm: str, parameters: int
) -> None:
    with Plugin(handle, "AllReduceAddNorm", {"norm": norm, "group_size": 4}) as plugin:
        assert plugin.infer([ROWS, ROWS, *[WEIGHT] * parameters], 2) == (ROWS, ROWS)
        assert plugin.workspace_size([ROWS, ROWS, *[WEIGHT] * parameters]) == 0


@pytest.mark.parametrize(
    ("norm", "inputs", "message"),
    [
        ("layer", [ROWS, ROWS, WEIGHT], "beta is missing"),
        ("rms", [ROWS, ROWS, WEIGHT, WEIGHT, WEIGHT], "input 4 has an unsupported type"),
        ("rms", [ROWS, Tensor(HALF, (1, 64)), WEIGHT], "residual has not the shape of x"),
        ("rms", [ROWS, Tensor(FLOAT, (3, 64)), WEIGHT], "input 1 has an unsupported type"),
        ("layer", [ROWS, ROWS, WEIGHT, Tensor(HALF, (1,))], "beta has 1 elements, need 64"),
        ("rms", [ROWS, ROWS, WEIGHT, Tensor(HALF, (1,))], "bias has 1 elements, need 64"),
    ],
)
def test_what_does_not_fit_is_refused(
    handle: ctypes.CDLL, norm: str, inputs: list[Tensor], message: str
) -> None:
    attributes: dict[str, AttributeValue] = {"norm": norm}
    with (
        Plugin(handle, "AllReduceAddNorm", attributes) as plugin,
        pytest.raises(PluginError, match=message),
    ):
        plugin.infer(inputs, 2)


@pytest.mark.parametrize(
    ("axis", "shape"), [(0, (12, 5, 7)), (1, (3, 20, 7)), (-1, (3, 5, 28)), (-3, (12, 5, 7))]
)
def test_gathered_along_an_axis(handle: ctypes.CDLL, axis: int, shape: tuple[int, ...]) -> None:
    with Plugin(handle, "AllGather", {"axis": axis, "group_size": 4}) as plugin:
        assert plugin.infer([Tensor(HALF, (3, 5, 7))], 1) == (Tensor(HALF, shape),)


def test_an_axis_that_is_not_there_is_refused(handle: ctypes.CDLL) -> None:
    with (
        Plugin(handle, "AllGather", {"axis": 2, "group_size": 4}) as plugin,
        pytest.raises(PluginError, match="x has 2 axes, and no axis 2"),
    ):
        plugin.infer([ROWS], 1)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs"),
    [
        ("AllReduce", [ROWS], [ROWS]),
        ("AllReduceAddNorm", [ROWS, ROWS, WEIGHT], [ROWS, ROWS]),
        ("AllGather", [ROWS], [Tensor(HALF, (6, 64))]),
    ],
)
def test_without_a_communicator_nothing_is_computed(
    handle: ctypes.CDLL, op: str, inputs: list[Tensor], outputs: list[Tensor]
) -> None:
    message = "cut for 2 ranks, and this process is none: start it with torchrun or mpirun"
    with Plugin(handle, op, {"group_size": 2}) as plugin, pytest.raises(PluginError, match=message):
        plugin.enqueue(inputs, outputs)


def test_an_empty_tensor_needs_no_gpu(handle: ctypes.CDLL) -> None:
    empty = Tensor(HALF, (0, 64))
    with Plugin(handle, "AllReduceAddNorm", {}) as plugin:
        plugin.enqueue([empty, empty, WEIGHT], [empty, empty])
    for op in ("AllReduce", "AllGather"):
        with Plugin(handle, op, {}) as plugin:
            plugin.enqueue([empty], [empty])


def test_there_is_no_communicator_to_ask(handle: ctypes.CDLL) -> None:
    assert handle.opfuse_comm_state() == -1
    assert handle.opfuse_comm_transport() == b""
    handle.opfuse_comm_abort()
    assert handle.opfuse_comm_state() == -1
    assert handle.opfuse_comm_close() == 0


@pytest.mark.parametrize(
    ("rank", "size", "message"),
    [
        (0, 9, "9 ranks, need 1 to 8"),
        (0, 0, "0 ranks, need 1 to 8"),
        (2, 2, "no such rank"),
        (-1, 2, "no such rank"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(
    handle: ctypes.CDLL, rank: int, size: int, message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        Communicator(handle, rank, size, lambda card: [card] * size)


def test_the_plugins_reach_as_many_ranks_as_shard_says(handle: ctypes.CDLL) -> None:
    Plugin(handle, "AllReduce", {"group_size": MOST_BY_PLUGIN}).close()
    with pytest.raises(PluginError, match=f"need 1 to {MOST_BY_PLUGIN}"):
        Plugin(handle, "AllReduce", {"group_size": MOST_BY_PLUGIN + 1})


def test_an_unknown_way_is_refused(handle: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPFUSE_ALLREDUCE", "ring")
    message = "OPFUSE_ALLREDUCE is 'ring', need one-shot, two-shot, or nccl"
    with pytest.raises(EngineError, match=re.escape(message)):
        Communicator(handle, 0, 2, lambda card: [card] * 2)


def test_cards_that_were_not_asked_for_are_refused(handle: ctypes.CDLL) -> None:
    assert handle.opfuse_comm_join(bytes(1024)) == -1
    assert b"no communicator was opened" in handle.opfuse_last_error()

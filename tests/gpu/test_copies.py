"""Copies with strides on a GPU: every move, unit, and address, with nothing written around."""

from __future__ import annotations

import pytest

from opfuse.runtime import abi
from opfuse.runtime.copies import Move
from opfuse.runtime.library import find
from tests.gpu.harness import Buffers, torch
from tests.runtime.test_copies import CASES

BIG = {
    "a cache": (Move("Concat", {"axis": 2}, ("a", "b"), ("y",)), [(2, 8, 2048, 64), (2, 8, 1, 64)]),
    "patches": (
        Move("Transpose", {"perm": (0, 2, 4, 1, 3, 5)}, ("a",), ("y",)),
        [(4, 3, 14, 16, 14, 16)],
    ),
    "ten parts": (
        Move("Concat", {"axis": 1}, tuple("abcdefghij"), ("y",)),
        [(300, size, 3) for size in range(10)],
    ),
    "its parts": (
        Move("Split", {"axis": 1, "sizes": (5, 0, 7, 1)}, ("a",), tuple("wxyz")),
        [(1000, 13, 6)],
    ),
}


@pytest.fixture(scope="module")
def library():
    return abi.load(find())


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("offset", [0, 1, 4])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
@pytest.mark.parametrize("name", [*CASES, *BIG])
def test_moves(library, name, kind, offset, early):
    move, shapes = {**CASES, **BIG}[name]
    buffers = Buffers(offset)
    drawn = {n: torch.rand(s, dtype=kind) for n, s in zip(move.inputs, shapes, strict=True)}
    tensors = {name: buffers.place(values) for name, values in drawn.items()}
    for name, shape in zip(move.outputs, move.shapes(shapes), strict=True):
        tensors[name] = buffers.empty(shape, kind)
    boxes = move.boxes(shapes, kind.itemsize)
    ends = [(tensors[box.source].data_ptr(), tensors[box.target].data_ptr()) for box in boxes]
    copied = [abi.Copied(box, *pair, early) for box, pair in zip(boxes, ends, strict=True)]
    torch.cuda.synchronize()
    abi.copy(library, copied, torch.cuda.current_stream().cuda_stream)
    for name, want in zip(move.outputs, expected(move, drawn), strict=True):
        assert torch.equal(tensors[name].cpu(), want)
    buffers.check_guards()


def expected(move, drawn):
    """What torch makes of the move."""
    arrays, numbers = [drawn[name] for name in move.inputs], move.numbers
    if move.op == "Concat":
        return [torch.cat(arrays, numbers["axis"])]
    if move.op == "Split":
        return torch.split(arrays[0], numbers["sizes"], numbers["axis"])
    if move.op == "Transpose":
        return [arrays[0].permute(numbers["perm"]).contiguous()]
    ends = (numbers["starts"], numbers["ends"], numbers["steps"])
    return [arrays[0][tuple(slice(*own) for own in zip(*ends, strict=True))]]


def test_a_chain_keeps_its_order(library):
    """Copies that read what the one ahead wrote, many times in one graph."""
    a, b = torch.zeros(2, 1 << 20, dtype=torch.int32, device="cuda")
    move = Move("Transpose", {"perm": (0,)}, ("a",), ("b",))
    (box,) = move.boxes([tuple(a.shape)], 4)
    torch.cuda.synchronize()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(20):
            abi.copy(library, [abi.Copied(box, a.data_ptr(), b.data_ptr())], stream.cuda_stream)
            abi.copy(library, [abi.Copied(box, b.data_ptr(), a.data_ptr())], stream.cuda_stream)
            a += 1
    graph.replay()
    torch.cuda.synchronize()
    assert a.eq(20).all()
    assert b.eq(19).all()


def test_misuse_is_refused(library):
    box = Move("Transpose", {"perm": (0,)}, ("a",), ("b",)).boxes([(1 << 37,)], 1)[0]
    with pytest.raises(abi.PluginError, match="invalid argument"):
        abi.copy(library, [abi.Copied(box, 256, 256)])

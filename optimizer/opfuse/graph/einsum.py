"""An Einsum of two tensors that is a matrix product is written as MatMul, transposed around it."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from opfuse.graph.equation import written_out
from opfuse.graph.rewriter import Rewriter


@dataclass(frozen=True)
class _Product:
    """The letters of a product: those of both operands and the result, of one, and the summed."""

    batch: str
    left: str
    right: str
    summed: str


def product(rewriter: Rewriter, node: gs.Node) -> gs.Tensor | None:
    """``bqhd,bkhd->bhqk`` is a MatMul of what is transposed to bhqd and bhdk."""
    shapes = [rewriter.shape(tensor) or () for tensor in node.inputs]
    terms = _terms(node, [len(shape) for shape in shapes])
    if terms is None:
        return None
    a, b, out = terms
    letters = _product(a, b, out)
    if letters is None:
        return None
    sizes = [shapes[0][a.index(c)] == shapes[1][b.index(c)] for c in a if c in b]
    if not all(sizes):  # one of them may be 1, and is repeated
        return None
    orders = letters.batch + letters.left + letters.summed, letters.batch + letters.summed
    first = _turned(rewriter, node.inputs[0], a, orders[0], node)
    second = _turned(rewriter, node.inputs[1], b, orders[1] + letters.right, node)
    result = rewriter.emit("MatMul", [first, second], {}, node.outputs[0])
    return _turned(rewriter, result, letters.batch + letters.left + letters.right, out, node)


def _terms(node: gs.Node, ranks: list[int]) -> tuple[str, str, str] | None:
    """Return the letters of both operands and of the result, if that is all there is."""
    found = written_out(str(node.attrs.get("equation", "")), ranks)
    if found is None or len(found[0]) != 2:
        return None
    (a, b), out = found
    plain = all(part.isalpha() and len(set(part)) == len(part) for part in (a, b, out))
    return (a, b, out) if plain else None


def _product(a: str, b: str, out: str) -> _Product | None:
    batch = "".join(c for c in out if c in a and c in b)
    left = "".join(c for c in out if c in a and c not in b)
    right = "".join(c for c in out if c in b and c not in a)
    summed = "".join(c for c in a if c in b and c not in out)
    alone = set(a + b) - set(batch + left + right + summed)
    if alone or len(summed) != 1 or len(right) != 1 or set(out) - set(a + b):
        return None
    # A matrix multiplies any number of axes; a batch of them one.
    return _Product(batch, left, right, summed) if len(left) == 1 or (left and not batch) else None


def _turned(rewriter: Rewriter, x: gs.Tensor, have: str, want: str, node: gs.Node) -> gs.Tensor:
    if have == want:
        return x
    perm = [have.index(letter) for letter in want]
    return rewriter.emit("Transpose", [x], {"perm": perm}, node.outputs[0])

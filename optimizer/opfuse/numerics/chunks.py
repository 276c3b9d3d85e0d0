"""Runs a model in pieces, so that only the weights of one piece are in memory at a time.

A single weight above the limit is mapped; where it is the operand of a matrix product, the product
is made block by block and the pages that were read are given back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, ValueInfoProto, helper
from onnx.helper import (
    make_empty_tensor_value_info,
    make_graph,
    make_model,
    np_dtype_to_tensor_dtype,
)

from opfuse.graph.protos import HALVES, reads, unsized
from opfuse.numerics import stored
from opfuse.numerics.compare import Array
from opfuse.numerics.defined import as_defined
from opfuse.numerics.product import matmul
from opfuse.numerics.session import CannotRun, OnnxRuntime, Reference, Runner
from opfuse.numerics.stored import Joined, Stored

LIMIT = 192 << 20  # bytes of weights in one piece
_INLINE = 1 << 16  # bytes up to which a weight is written into the piece's model


@dataclass
class Piece:
    """Consecutive nodes and the names of the weights that they read.

    ``heavy`` is the weight of a lone product that is computed block by block, ``alone`` is set for
    a lone node that ONNX's own evaluator runs.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)
    nbytes: int = 0
    heavy: str = ""
    alone: bool = False


class Chunked:
    """A model ready to run in pieces.

    Args:
        model: Its nodes are sorted; its initializers need not have values.
        weights: The values of every initializer.
        limit: Bytes of weights that one piece may hold.
        alone: Operators that onnxruntime has no kernel for in the types of the model.
    """

    def __init__(
        self,
        model: ModelProto,
        weights: Mapping[str, Stored],
        limit: int = LIMIT,
        alone: Collection[str] = (),
    ) -> None:
        self._model, self._weights, self._limit = model, weights, limit
        self._alone = alone
        self._only: Runner | None = None  # the session, where one piece holds the whole model
        self.outputs = [info.name for info in model.graph.output]
        nodes = list(model.graph.node)
        self._transposed = self._giant_transposes(nodes)
        self.pieces = self._split(n for n in nodes if n.output[0] not in self._transposed)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return every graph output by name.

        Raises:
            CannotRun: onnxruntime refuses a piece or the inputs.
        """
        live = dict(feeds)
        last = self._last_uses()
        for number, piece in enumerate(self.pieces):
            made = [name for node in piece.nodes for name in node.output]
            wanted = [name for name in made if name and last.get(name, -1) > number]
            live.update(self._run_piece(piece, live, wanted))
            for name in [name for name in live if last.get(name, -1) <= number]:
                del live[name]
        return {name: self._output(name, live) for name in self.outputs}

    def _output(self, name: str, live: Mapping[str, Array]) -> Array:
        found = live[name] if name in live else self._weights[name].array()
        if not hasattr(found, "dtype"):
            raise CannotRun(f"output {name} is not a tensor")
        return found

    def _run_piece(
        self, piece: Piece, live: Mapping[str, Array], wanted: list[str]
    ) -> dict[str, Array]:
        if not wanted:
            return {}
        if piece.heavy:
            return {wanted[0]: self._multiply(piece.nodes[0], piece.heavy, live)}
        feeds = {name: live[name] for name in sorted(reads(piece.nodes)) if name in live}
        large = [n for n in sorted(piece.weights) if self._weights[n].nbytes > _INLINE]
        feeds.update((name, self._weights[name].array()) for name in large)
        runner = self._only or self._open(piece, feeds, wanted)
        if len(self.pieces) == 1:
            self._only = runner
        return dict(zip(wanted, runner.run(feeds), strict=True))

    def _multiply(self, node: NodeProto, heavy: str, live: Mapping[str, Array]) -> Array:
        transposed = node.input[1] in self._transposed or _attribute(node, "transB", 0) == 1
        result = matmul(live[node.input[0]], self._weights[heavy], transposed=transposed)
        if len(node.input) < 3:
            return result
        bias = node.input[2]
        return result + (live[bias] if bias in live else self._weights[bias].array())

    def _open(self, piece: Piece, feeds: Mapping[str, Array], wanted: list[str]) -> Runner:
        small = [n for n in sorted(piece.weights) if self._weights[n].nbytes <= _INLINE]
        graph = make_graph(
            piece.nodes,
            "piece",
            [_input(name, array) for name, array in feeds.items()],
            [make_empty_tensor_value_info(name) for name in wanted],
            [stored.to_proto(name, self._weights[name]) for name in small],
        )
        model = make_model(
            graph,
            ir_version=self._model.ir_version,
            opset_imports=self._model.opset_import,
            functions=self._model.functions,
        )
        return Reference(model) if piece.alone else OnnxRuntime(as_defined(model))

    def _split(self, nodes: Iterable[NodeProto]) -> list[Piece]:
        pieces = [Piece()]
        for node in nodes:
            heavy = self._heavy(node)
            alone = node.op_type in self._alone
            names = {name for name in reads([node]) if name in self._weights}
            cost = sum(self._cost(name) for name in names - pieces[-1].weights)
            full = pieces[-1].nbytes + cost > self._limit
            lone = heavy or alone or pieces[-1].heavy or pieces[-1].alone
            if pieces[-1].nodes and (full or lone):
                pieces.append(Piece())
                cost = sum(self._cost(name) for name in names)
            piece = pieces[-1]
            piece.nodes.append(node)
            piece.weights |= names
            piece.nbytes += cost
            piece.heavy, piece.alone = heavy, alone
        return pieces

    def _cost(self, name: str) -> int:
        """The bytes that feeding a weight takes; a joined one is a copy beside its parts."""
        value = self._weights[name]
        return 2 * value.nbytes if isinstance(value, Joined) else value.nbytes

    def _is_giant(self, name: str) -> bool:
        """Whether a matrix takes more than the limit; onnxruntime makes halves float32 copies."""
        value = self._weights.get(name)
        if value is None or len(value.shape) != 2:
            return False
        copy = 2 * value.nbytes if value.element in HALVES else 0
        return self._cost(name) + copy > self._limit

    def _heavy(self, node: NodeProto) -> str:
        """The weight above the limit that ``node`` multiplies with, or ""."""
        if not _is_product(node):
            return ""
        name = self._transposed.get(node.input[1], node.input[1])
        return name if self._is_giant(name) else ""

    def _giant_transposes(self, nodes: list[NodeProto]) -> dict[str, str]:
        """Transposed weights above the limit that only products read: result to weight."""
        found = {
            node.output[0]: node.input[0]
            for node in nodes
            if node.op_type == "Transpose" and self._is_giant(node.input[0])
        }
        for node in nodes:
            factor = node.input[1:2] if node.op_type == "MatMul" and not node.domain else ()
            for name in reads([node]) - set(factor):
                found.pop(name, None)
        return {name: weight for name, weight in found.items() if name not in self.outputs}

    def _last_uses(self) -> dict[str, int]:
        """The last piece that reads each value; graph outputs are read behind the last."""
        last = {name: n for n, piece in enumerate(self.pieces) for name in reads(piece.nodes)}
        return {**last, **dict.fromkeys(self.outputs, len(self.pieces))}


def _is_product(node: NodeProto) -> bool:
    """Whether ``node`` is x @ W, x @ W.T, or either with a bias."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return False
    plain = {"alpha": 1, "beta": 1, "transA": 0}
    return all(_attribute(node, name, value) == value for name, value in plain.items())


def _attribute(node: NodeProto, name: str, default: float) -> float:
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else helper.get_attribute_value(found)


def _input(name: str, values: Array) -> ValueInfoProto:
    if not hasattr(values, "dtype"):
        raise CannotRun(f"{name} is not a tensor")
    return unsized(name, int(np_dtype_to_tensor_dtype(values.dtype)), values.shape)

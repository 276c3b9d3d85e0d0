"""What each input and output of a node may be: of the node's own precision, or of any, or fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs
from onnx import FunctionProto, TensorProto

from opfuse.fusions import DEFINITIONS
from opfuse.graph import edit
from opfuse.graph.collectives import is_ours
from opfuse.graph.pattern import OPFUSE
from opfuse.precision.types import FLOATS, Clash, allowed, body_types, formal, schema

_FLOAT = TensorProto.FLOAT
# They read a tensor of any type and give none that depends on it.
_READS_ANY = ("Shape", "Size", "IsNaN", "IsInf", "NonZero")


@dataclass(frozen=True)
class Signature:
    """How a node may be typed.

    Attributes:
        types: The element type of each input now; 0 for an absent or unknown one.
        results: The same for the outputs.
        main: Inputs that are in the node's precision.
        loose: Inputs that may be in fp32 or in the low type, whatever the node's precision.
        outputs: Outputs that are in the node's precision.
        fixed: Why the node keeps the types that it has; "" where it need not.
        rounded: Values inside a fused op that it computes in its precision and not in fp32.
    """

    types: tuple[int, ...]
    results: tuple[int, ...]
    main: frozenset[int] = frozenset()
    loose: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()
    fixed: str = ""
    rounded: tuple[str, ...] = ()

    @property
    def free(self) -> bool:
        """Whether there is a precision to choose."""
        return not self.fixed and bool(self.main or self.outputs)


class Signatures:
    """Signatures of the nodes of one graph for one low type."""

    def __init__(
        self,
        opset: int,
        low: int,
        types: Mapping[int, int],
        functions: Mapping[str, FunctionProto],
    ) -> None:
        """Take what is known.

        Args:
            opset: Of the default domain.
            low: The element type that is wanted.
            types: The element type of each tensor, by its id.
            functions: The definitions of the fused ops, by name.
        """
        self._opset, self._low, self._types, self._functions = opset, low, types, functions
        self._rounded: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {}

    def of(self, node: gs.Node) -> Signature:
        """Return the signature of ``node``."""
        types = tuple(self._types.get(id(tensor), 0) for tensor in node.inputs)
        results = tuple(self._types.get(id(tensor), 0) for tensor in node.outputs)
        if any(edit.subgraphs(node)):
            return Signature(types, results, fixed="has a body of its own")
        if node.op == "Cast" and edit.is_standard(node):
            return self._cast(types, results)
        if {*types, *results} & (FLOATS - {_FLOAT, self._low}):
            return Signature(types, results, fixed="computes in another floating-point type")
        if node.domain == OPFUSE and node.op in self._functions:
            return self._fused(node, types, results)
        if is_ours(node.domain or "", node.op):  # a sum over ranks goes with what they send
            floats = frozenset(self._convertible(types))
            return Signature(types, results, floats, outputs=frozenset(self._convertible(results)))
        return self._standard(node, types, results)

    def _convertible(self, types: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i, element in enumerate(types) if element in (_FLOAT, self._low))

    def _cast(self, types: tuple[int, ...], results: tuple[int, ...]) -> Signature:
        """A Cast takes either float type; one from another type gives either."""
        if self._convertible(types):
            return Signature(types, results, loose=frozenset({0}))
        if types[0] and self._convertible(results):
            return Signature(types, results, outputs=frozenset({0}))
        return Signature(types, results)

    def _fused(self, node: gs.Node, types: tuple[int, ...], results: tuple[int, ...]) -> Signature:
        floats = self._convertible(types)
        function = self._functions[node.op]
        wide = DEFINITIONS[node.op].in_fp32
        loose = frozenset(i for i in floats if function.input[i] in wide)
        mixed = [
            _FLOAT if i in loose else self._low if i in floats else t for i, t in enumerate(types)
        ]
        key = (node.op, tuple(mixed))
        try:
            if key not in self._rounded:
                self._rounded[key] = _rounded(function, mixed, self._low)
        except Clash as reason:
            return Signature(types, results, fixed=f"its definition does not: {reason}")
        outputs = frozenset(self._convertible(results))
        main = frozenset(floats) - loose
        return Signature(types, results, main, loose, outputs, rounded=self._rounded[key])

    def _standard(
        self, node: gs.Node, types: tuple[int, ...], results: tuple[int, ...]
    ) -> Signature:
        found = schema(node.op, node.domain or "", self._opset)
        if found is None:
            return Signature(types, results, fixed="another domain's operator")
        if any(
            not t and not tensor.is_empty() for t, tensor in zip(types, node.inputs, strict=True)
        ):
            return Signature(types, results, fixed="the type of an input is not known")
        floats = self._convertible(types)
        able = [i for i in floats if self._low in allowed(found, formal(found.inputs, i))]
        if node.op in _READS_ANY and len(able) == len(floats):
            return Signature(types, results, loose=frozenset(floats))
        variables = {formal(found.inputs, index) for index in able}
        mine = [i for i in self._convertible(results) if formal(found.outputs, i) in variables]
        if node.op == "ConstantOfShape":
            mine = list(self._convertible(results))
        if floats and not able:
            return Signature(types, results, fixed=f"{node.op} does not take that type")
        return Signature(types, results, frozenset(able), outputs=frozenset(mine))


def _rounded(function: FunctionProto, types: Sequence[int], low: int) -> tuple[str, ...]:
    """What the body computes in ``low`` on its way."""
    given = {*function.input, *function.output}
    inside = body_types(function, types)
    return tuple(name for name, t in inside.items() if t == low and name not in given)

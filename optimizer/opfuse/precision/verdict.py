"""Which precision the rules, the weights, and the measured ranges ask of each node."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import onnx_graphsurgeon as gs
from onnx import FunctionProto

from opfuse.graph import edit
from opfuse.graph.bodies import INNER
from opfuse.graph.facts import Facts
from opfuse.graph.pattern import OPFUSE
from opfuse.precision import rules
from opfuse.precision.constants import LIMITS, Weights
from opfuse.precision.signature import Signature
from opfuse.precision.signs import Signs
from opfuse.precision.types import FLOATS


@dataclass(frozen=True)
class Verdict:
    """What is asked of a node.

    ``low`` is True or False where it has to be in the low type or in fp32, None where it goes with
    its neighbours. ``reason`` says why it is in fp32; ``kept`` whether that is worth telling.
    ``wide`` lets a node without such neighbours be in fp32.
    """

    low: bool | None
    reason: str = ""
    kept: bool = False
    wide: bool = False


# Of what a tiny value is added to: so many times as large, and so large, that what is lost (3 % of
# a scale of 1e-6, and 3e-8 of a product) is below the last digit of the sum.
_FAR, _BESIDE = 128.0, 2.0**-10
_FULL = 2.0**-4  # of a result: an epsilon below fp16's normal numbers is none of its digits
_EXPONENT = 9.0  # e to it is the margin
_MILD = frozenset({"Exp", "Pow", "Softmax", "Softplus"})  # in some cases
_IMAGES = 4  # axes: batch, channels, height, width
_EITHER = Verdict(None)
_WIDE = Verdict(None, wide=True)
_LOW = Verdict(True)


class Judge:
    """Judges the nodes of one graph."""

    def __init__(
        self,
        low: int,
        facts: Facts,
        weights: Weights,
        ranges: Mapping[str, float],
        exact: Mapping[int, str],
        functions: Mapping[str, FunctionProto],
        ends: Collection[int],
    ) -> None:
        """Take what is known.

        ``ranges`` are largest magnitudes by name of the tensor, ``ends`` the ids of the outputs.
        """
        self._low, self._facts, self._weights = low, facts, weights
        self._ranges, self._exact, self._limits = ranges, exact, LIMITS[low]
        self._ends, self._signs = ends, Signs(facts, weights)
        self._products = {
            name
            for name, function in functions.items()
            if any(node.op_type in rules.PRODUCTS for node in function.node)
        }

    def of(self, node: gs.Node, signature: Signature) -> Verdict:
        """Return the verdict on ``node``."""
        if not signature.free:
            told = bool(signature.fixed) and bool(FLOATS & {*signature.types, *signature.results})
            return Verdict(False, signature.fixed, kept=told)
        own = {signature.types[i] for i in signature.main}
        own |= {signature.results[i] for i in signature.outputs}
        if own == {self._low}:
            return _EITHER if node.op in rules.MOVES and edit.is_standard(node) else _LOW
        if id(node) in self._exact:
            return Verdict(False, self._exact[id(node)], kept=node.op in rules.IN_FP32)
        reason = self._out_of_range(node, signature) or self._quantised(node)
        return Verdict(False, reason, kept=True) if reason else self._by_rule(node)

    def _by_rule(self, node: gs.Node) -> Verdict:
        if not edit.is_standard(node):
            return _LOW if node.op in self._products and node.domain == OPFUSE else _EITHER
        if self._low in rules.UNBUILT.get(node.op, ()):
            return Verdict(False, "TensorRT does not build it in that type", kept=True)
        if node.op in rules.PRODUCTS:
            return _LOW
        if node.op in _MILD and self._is_mild(node):
            return _WIDE
        if node.op in rules.IN_FP32:
            return Verdict(False, rules.IN_FP32[node.op], kept=True)
        if node.op in rules.REDUCTIONS:
            long = node.op != "ReduceMean" and self._is_long(node)
            return Verdict(False, rules.SUMS, kept=True) if long else _WIDE
        if node.op in rules.EITHER:
            return _EITHER
        return Verdict(False, "there is no rule for this operator", kept=True)

    def _out_of_range(self, node: gs.Node, signature: Signature) -> str:
        """Say which weight or activation the low type does not hold."""
        inputs = [node.inputs[index] for index in sorted(signature.main)]
        for tensor in inputs:
            if isinstance(tensor, gs.Constant):
                reason = self._weights.refusal(tensor)
                if reason and not (self._weights.is_tiny(tensor) and self._bears(node, tensor)):
                    return reason
        value = node.attrs.get("value")
        if node.op == "ConstantOfShape" and isinstance(value, gs.Constant):
            reason = self._weights.refusal(value)
            if reason:
                return reason
        outputs = [node.outputs[index] for index in sorted(signature.outputs)]
        tensors = [t for t in inputs if not isinstance(t, gs.Constant)] + outputs
        reasons = [self._exceeds(node, t.name, self._is_lost(t)) for t in tensors]
        inside = (f"{node.name}{INNER}{name}" for name in signature.rounded)
        reasons += [self._exceeds(node, name, lost=False) for name in inside]
        return next(filter(None, reasons), "") or self._sums_beyond(node)

    def _bears(self, node: gs.Node, constant: gs.Constant) -> bool:
        """Whether it does not matter if a tiny constant of ``node`` loses its digits."""
        value = self._facts.value(constant)
        if node.op in rules.GUARDS and value is not None and value.size == 1 and value.item() > 0:
            # Beside something of its own size an epsilon counts, digit for digit.
            return node.op != "Add" or self._largest(node.outputs[0]) >= _FULL
        return all(map(self._is_lost, node.outputs))

    def _is_lost(self, tensor: gs.Tensor, steps: int = 4) -> bool:
        """Whether all that is done with a tensor is adding it to something far larger.

        So it is with the branches of a network before they are trained, scaled by 1e-6.
        """
        if not tensor.outputs or id(tensor) in self._ends or tensor.name not in self._ranges:
            return False
        if not steps:
            return False
        for reader in tensor.outputs:
            if reader.op in rules.MOVES and edit.is_standard(reader):
                if not self._is_lost(reader.outputs[0], steps - 1):
                    return False
            elif reader.op not in rules.ADDS:
                return False
            else:
                beside = [self._largest(t) for t in reader.inputs[:2] if t is not tensor]
                if max(beside, default=0.0) < max(_BESIDE, _FAR * self._largest(tensor)):
                    return False
        return True

    def _largest(self, tensor: gs.Tensor) -> float:
        return self._ranges.get(tensor.name, 0.0)

    def _sums_beyond(self, node: gs.Node) -> str:
        """Say which sum inside of a reduction the low type does not hold."""
        if node.op == "ReduceL2":
            largest = self._largest(node.outputs[0]) ** 2
            if largest > self._limits.margin or 0 < largest < self._limits.smallest:
                return f"the squares in it add up to {largest:.3g}"
        if node.op == "ReduceMean" and not self._pools(node):
            largest = self._largest(node.inputs[0]) * (self._terms(node) or 1)
            if largest > self._limits.largest:
                return f"the sum in it may reach {largest:.3g}"
        return ""

    def _exceeds(self, node: gs.Node, name: str, lost: bool) -> str:
        largest = self._ranges.get(name, 0.0)
        shown = name.replace(INNER, "'s ")
        if node.op == "Cast" and largest > self._limits.count:
            return f"{shown} counts to {largest:g}"
        if largest > self._limits.margin:
            return f"{shown} reaches {largest:.3g}, the margin is {self._limits.margin:g}"
        if 0 < largest < self._limits.smallest and not lost:
            return f"{shown} stays below {largest:.2g}, which is no normal number there"
        return ""

    def _quantised(self, node: gs.Node) -> str:
        if node.op not in rules.PRODUCTS:
            return ""
        sources = filter(None, map(edit.producer, node.inputs))
        quantised = any(source.op == "DequantizeLinear" for source in sources)
        return "computes with quantised values" if quantised else ""

    def _is_mild(self, node: gs.Node) -> bool:
        """Whether an operator that may grow fast does not.

        So are a root, a square, or a cube; an exponential of what is never positive, which is off
        by a rounding of 1 at most; a softplus, whose slope is below 1, where no runtime's
        exponential in it overflows; and a softmax, which TensorRT computes in fp32 between its
        ends (benchmarks/results/sums_h100.txt). The ranges see whether the result overflows.
        """
        if node.op in ("Softmax", "Exp") and self._is_undone(node.outputs[0]):
            return False
        if node.op == "Softmax":
            return True
        if node.op == "Exp":
            return self._signs.never_positive(node.inputs[0])
        if node.op == "Softplus":
            return 0 < self._largest(node.inputs[0]) <= _EXPONENT
        value = self._facts.value(node.inputs[1])
        return value is not None and all(item in (0.5, 1, 2, 3) for item in value.ravel())

    def _is_undone(self, tensor: gs.Tensor, steps: int = 4) -> bool:
        """Whether digits of a tiny value count: a logarithm, quotient, or the largest is taken.

        What is 1e-9 in fp32 is 0 in fp16, and its logarithm is not -20.7 but minus infinity. Of two
        experts that round to one value, a TopK behind a router takes the first.
        """
        for reader in tensor.outputs:
            if not edit.is_standard(reader):
                continue
            if reader.op in ("Log", "Reciprocal", "TopK") or (
                reader.op == "Div" and reader.inputs[1] is tensor
            ):
                return True
            passes = reader.op in rules.MOVES | rules.GUARDS and steps > 0
            if passes and any(self._is_undone(made, steps - 1) for made in reader.outputs):
                return True
        return False

    def _is_long(self, node: gs.Node) -> bool:
        """Whether a sum is of more values than were tried, or of as many as an input is long."""
        terms = self._terms(node)
        return terms is None or terms > rules.LONG

    def _pools(self, node: gs.Node) -> bool:
        """Whether a mean is a global pooling of images or volumes, which TensorRT makes alike."""
        shape = self._facts.shape(node.inputs[0])
        axes = self._axes(node)
        if shape is None or len(shape) < _IMAGES or axes is None:
            return False
        return sorted(axis % len(shape) for axis in axes) == list(range(2, len(shape)))

    def _axes(self, node: gs.Node) -> list[int] | None:
        """The axes of a reduction, empty for all of them; None where they are not known."""
        axes = node.attrs.get("axes")
        if axes is None and len(node.inputs) > 1:
            value = self._facts.value(node.inputs[1])
            axes = [None] if value is None else value.ravel().tolist()
        known = [axis for axis in axes or () if isinstance(axis, int)]
        return known if len(known) == len(axes or ()) else None

    def _terms(self, node: gs.Node) -> int | None:
        """How many values each result of a reduction comes from; None where nobody knows."""
        shape = self._facts.shape(node.inputs[0])
        axes = self._axes(node)
        if shape is None or axes is None:
            return None
        sizes = [shape[axis] for axis in axes] if axes else list(shape)
        known = [size for size in sizes if isinstance(size, int)]
        return prod(known) if len(known) == len(sizes) else None

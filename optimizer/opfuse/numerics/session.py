"""Runs a model on the CPU: onnxruntime with its optimizer off, else ONNX's own evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto
from onnx.inliner import inline_selected_functions

from opfuse.graph.protos import all_nodes, every_node
from opfuse.numerics.compare import Array

# Numbers of inputs: an Attention with a mask, all angles.
_DOUBTFUL = {"Attention": range(4, 9), "RotaryEmbedding": range(3, 5)}
_NO_KERNEL = "NOT_IMPLEMENTED"
# onnxruntime 1.23, the last for Python 3.10: with its optimizer off it mistypes a Cast from float16
# to float16 behind a MatMul, which it would have removed.
_NEEDS_BASIC = "InsertedPrecisionFreeCast"


class CannotRun(Exception):
    """The model or these inputs are refused; the text is the runtime's reason in one line."""


class Runner(Protocol):
    """A model that is ready to run."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return the outputs in the model's order.

        Raises:
            CannotRun: These inputs do not fit.
        """


class OnnxRuntime:
    """onnxruntime on the CPU, node by node as written: it must not fuse on its own.

    It hides fp16 overflow, for it computes chains of fp16 operators in fp32.

    Raises:
        CannotRun: It refuses the model, for instance for want of a bfloat16 kernel.
    """

    def __init__(self, model: ModelProto) -> None:
        try:
            self._session = _session(model, "ORT_DISABLE_ALL")
        except Exception as error:  # onnxruntime's exceptions share no base class
            if _NEEDS_BASIC not in str(error):
                raise CannotRun(one_line(error)) from None
            self._session = _session(model, "ORT_ENABLE_BASIC")
        self._names = {item.name for item in self._session.get_inputs()}

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """As :meth:`Runner.run`; what the model has no input for is left out."""
        values = {name: array for name, array in feeds.items() if name in self._names}
        try:
            return list(self._session.run(None, values))
        except Exception as error:  # as above
            raise CannotRun(one_line(error)) from None


def _session(model: ModelProto, level: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Reference:
    """``onnx.reference``: NumPy, one rounding for each operator, every type, slow."""

    def __init__(self, model: ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        try:
            self._evaluator = ReferenceEvaluator(model)
        except Exception as error:  # whatever an operator's Python code raises
            raise CannotRun(one_line(error)) from None

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """As :meth:`Runner.run`; what the model has no input for is left out."""
        wanted = {n: a for n, a in feeds.items() if n in self._evaluator.input_names}
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                return [np.asarray(value) for value in self._evaluator.run(None, wanted)]
        except Exception as error:  # as above
            raise CannotRun(one_line(error)) from None


def open_model(model: ModelProto) -> Runner:
    """The fastest runner that has kernels for the model.

    Raises:
        CannotRun: The model is refused for another reason than a missing kernel.
    """
    if uses_bfloat16(model):
        return Reference(model)
    try:
        return OnnxRuntime(model)
    except CannotRun as refusal:
        if _NO_KERNEL not in str(refusal):
            raise
        return Reference(model)


def as_defined(model: ModelProto) -> ModelProto:
    """The model with what onnxruntime's kernels take amiss written out as ONNX defines it.

    That for Attention of opset 23 and 24 gives 0 where a row of an additive mask is the lowest
    number throughout, not the mean of the values, and takes no mask of one row for all; that for
    RotaryEmbedding takes neither angles nor positions of one batch for all.
    """
    found = {("", node.op_type) for node in every_node(model) if _is_doubtful(node)}
    if not found:
        return model
    found |= _callers(model, found)
    try:
        return inline_selected_functions(model, sorted(found), inline_schema_functions=True)
    except RuntimeError:  # a type is not known to it, as behind an operator of another domain
        return model


def _is_doubtful(node: NodeProto) -> bool:
    return not node.domain and len(node.input) in _DOUBTFUL.get(node.op_type, ())


def _callers(model: ModelProto, called: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the local functions from which one of ``called`` is reached."""
    found = set(called)
    while True:
        callers = {
            (function.domain, function.name)
            for function in model.functions
            if any((node.domain, node.op_type) in found for node in all_nodes(function.node))
        }
        if callers <= found:
            return callers
        found |= callers


def uses_bfloat16(model: ModelProto) -> bool:
    """Whether an input or a weight is bfloat16, for which onnxruntime has no CPU kernels."""
    graph = model.graph
    return any(
        element == TensorProto.BFLOAT16
        for element in (
            *(info.type.tensor_type.elem_type for info in graph.input),
            *(tensor.data_type for tensor in graph.initializer),
        )
    )


def one_line(error: object) -> str:
    """The message of a library's exception without its line breaks, cut to a readable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."

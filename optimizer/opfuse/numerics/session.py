"""Runs a model on the CPU: onnxruntime with its optimizer off, else ONNX's own evaluator."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from onnx import ModelProto, TensorProto

from opfuse.numerics.compare import Array
from opfuse.numerics.defined import as_defined

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
    """``onnx.reference``: NumPy, one rounding for each operator, every type, slow.

    It runs the model as defined, for it takes an operator amiss itself.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator

        try:
            self._evaluator = ReferenceEvaluator(as_defined(model))
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

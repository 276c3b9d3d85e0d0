"""The TensorRT that an engine was built by: found, compared, and asked to load it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onnx import TensorProto

from opfuse.errors import EngineError, MissingComponent

_RTX_MAGIC = b"vtrt"
_VERSION_AT = 24  # four bytes in the header of TensorRT for RTX: 1.4.0.76 reads 01 04 00 4c
_INSTALL = {
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13",
    "tensorrt": "pip install 'opfuse[tensorrt]'",
}
ELEMENTS = {
    "FLOAT": TensorProto.FLOAT,
    "HALF": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "INT64": TensorProto.INT64,
    "INT32": TensorProto.INT32,
    "INT8": TensorProto.INT8,
    "UINT8": TensorProto.UINT8,
    "BOOL": TensorProto.BOOL,
}
"""ONNX element types by TensorRT's names for them."""


@dataclass(frozen=True)
class Port:
    """An input or output of an engine; dynamic dimensions are -1."""

    name: str
    element: int
    shape: tuple[int, ...]
    is_input: bool


def module_of(plan: bytes) -> str:
    """Which TensorRT writes engines that begin like this one."""
    return "tensorrt_rtx" if plan.startswith(_RTX_MAGIC) else "tensorrt"


def written_by(plan: bytes) -> str:
    """The version that an engine's header names; empty where it names none."""
    if not plan.startswith(_RTX_MAGIC) or len(plan) < _VERSION_AT + 4:
        return ""
    return ".".join(map(str, plan[_VERSION_AT : _VERSION_AT + 4]))


def import_module(name: str) -> ModuleType:
    """The Python module of a TensorRT.

    Raises:
        MissingComponent: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = _INSTALL.get(name, f"install {name}")
        raise MissingComponent(f"{name} cannot be imported: {error}", fix) from None


class Loader:
    """Loads engines; it has to live as long as they do.

    Args:
        api: From `import_module`.
        libraries: Plugin libraries that the engines do not hold themselves.
    """

    def __init__(self, api: ModuleType, libraries: Sequence[Path] = ()) -> None:
        self.api = api
        self._messages: list[str] = []
        self._cache: Any = None
        self._logger = _logger(api, self._messages)
        self._runtime = api.Runtime(self._logger)
        # An engine with an embedded plugin library runs code of its own.
        self._runtime.engine_host_code_allowed = True
        for library in libraries:
            if self._runtime.get_plugin_registry().load_library(str(library)) is None:
                raise EngineError(f"TensorRT cannot load {library}{self._last()}")

    def load(self, plan: bytes, what: str) -> Any:
        """An ``ICudaEngine``.

        Raises:
            EngineError: TensorRT refuses it; the message has its reason.
        """
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            by, here = written_by(plan), self.api.__version__
            fix = "build it for this GPU and this TensorRT"
            if plan.startswith(_RTX_MAGIC):
                fix += "; TensorRT itself runs on more of them: pip install 'opfuse[tensorrt]'"
            if by and by != here:
                fix = f"it was built by version {by}, {here} is installed: install that, or rebuild"
            raise EngineError(f"TensorRT cannot load {what}{self._last()}", fix)
        return engine

    def context(self, engine: Any) -> Any:
        """An execution context whose scratch memory the caller manages.

        TensorRT for RTX makes kernels for a shape before its first run, not in the background:
        what a graph captures is what stays. All contexts share them: the 36 segments of BERT-base
        gave their first result after 2.3 s, with a cache for each engine after 13.6 s (H100).
        """
        strategy = self.api.ExecutionContextAllocationStrategy.USER_MANAGED
        special = getattr(self.api, "DynamicShapesKernelSpecializationStrategy", None)
        if special is None:
            context = engine.create_execution_context(strategy)
        else:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = special.EAGER
            if self._cache is None:
                self._cache = config.create_runtime_cache()
            config.set_runtime_cache(self._cache)
            context = engine.create_execution_context(config)
        if context is None:
            raise EngineError(f"TensorRT makes no execution context{self._last()}")
        return context

    @contextmanager
    def profiling(self, context: Any, times: list[tuple[str, float]]) -> Iterator[None]:
        """Append name and microseconds of every layer that ``context`` runs in the block."""
        context.profiler = _profiler(self.api, times)
        try:
            yield
        finally:
            context.profiler = None

    def complaint(self, what: str) -> EngineError:
        """The error for a call that TensorRT answered with False, with what it logged."""
        return EngineError(f"TensorRT refuses {what}{self._last()}")

    def _last(self) -> str:
        return "".join(f"\n  | {line}" for line in self._messages[-4:])


def ports(engine: Any) -> tuple[Port, ...]:
    """The inputs and outputs of an engine.

    Raises:
        EngineError: One has a type that opfuse does not know.
    """
    found = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        if kind not in ELEMENTS:
            raise EngineError(f"tensor {name!r} has type {kind}, which opfuse cannot pass on")
        shape = tuple(engine.get_tensor_shape(name))
        mode = engine.get_tensor_mode(name).name
        found.append(Port(name, ELEMENTS[kind], shape, mode == "INPUT"))
    return tuple(found)


def _profiler(api: ModuleType, times: list[tuple[str, float]]) -> Any:
    """What TensorRT tells the time of each layer, in milliseconds."""

    def start(self: Any) -> None:
        api.IProfiler.__init__(self)

    def report(self: Any, name: str, ms: float) -> None:
        times.append((name, ms * 1e3))

    return type("Profile", (api.IProfiler,), {"__init__": start, "report_layer_time": report})()


def _logger(api: ModuleType, messages: list[str]) -> Any:
    """A logger that keeps what goes wrong."""

    def start(self: Any) -> None:
        api.ILogger.__init__(self)

    def log(self: Any, severity: Any, message: str) -> None:
        if severity.name in ("ERROR", "INTERNAL_ERROR"):
            messages.append(" ".join(message.split())[:400])
            del messages[:-16]

    return type("Log", (api.ILogger,), {"__init__": start, "log": log})()

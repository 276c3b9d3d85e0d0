"""One GPU through cuda-python: memory, streams, graphs, and the events that time them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opfuse.engine import gpu
from opfuse.engine.gpu import Gpu
from opfuse.errors import EngineError, MissingComponent

INSTALL = "pip install 'opfuse[run]'"
_DLPACK_CUDA = 2
_ADDRESS_BYTES = 32
_NO_MEMORY = 2
_BROKEN = 700  # CUDA's errors from here on leave the process without a usable context


def open_device(index: int = 0) -> Device:
    """The GPU of this number.

    Raises:
        MissingComponent: There is no GPU, or cuda-python is not installed.
    """
    if reason := gpu.absent():
        raise MissingComponent(
            f"engines run on a GPU: {reason}",
            "run this on a machine with an NVIDIA GPU; opfuse build needs none",
        )
    try:
        from cuda.bindings import runtime
    except ImportError:
        raise MissingComponent("cuda-python is not installed", INSTALL) from None
    here = gpu.current(index)
    if here is None:
        raise MissingComponent(
            f"there is no GPU number {index}, only {gpu.count()} in all",
            "name one that nvidia-smi lists, and start no more ranks than there are",
        )
    return Device(runtime, here, index)


class Device:
    """A GPU by ``cuda.bindings.runtime``; addresses, streams, graphs, and events are integers.

    ``dlpack`` is the kind and the number that DLPack has for it.

    Raises:
        EngineError: From every method, where CUDA refuses; the message has CUDA's name for it.
    """

    def __init__(self, runtime: Any, here: Gpu, index: int) -> None:
        self.gpu = here
        self.dlpack = (_DLPACK_CUDA, index)
        self._runtime = runtime
        self._index = index
        self.enter()

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error) != 0:
            raise EngineError(f"CUDA: {name} gives {error.name}", _fix(int(error)))
        return results[0] if len(results) == 1 else results

    @property
    def address(self) -> str:
        """Where it is on this host, such as ``0000:1b:00.0``."""
        text: bytes = self._call("cudaDeviceGetPCIBusId", _ADDRESS_BYTES, self._index)
        return text.split(b"\0")[0].decode()

    def enter(self) -> None:
        """Make this the device of the calling thread."""
        self._call("cudaSetDevice", self._index)

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes."""
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        """Give memory back once nothing on the device uses it; 0 is nothing."""
        self._call("cudaFree", address)

    def open_stream(self) -> int:
        """A stream that waits for no other."""
        return int(self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking))

    def close_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cudaStreamDestroy", stream)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy bytes in the order of the stream; either address may be the host's."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream has done everything."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """A graph of what ``work`` puts on the stream; nothing of it runs.

        Other threads may allocate meanwhile: the mode is that of this thread alone.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BaseException:
            self._runtime.cudaStreamEndCapture(stream)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Run a graph in the order of the stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy(self, graph: int) -> None:
        """Free a graph."""
        self._call("cudaGraphExecDestroy", graph)

    def open_event(self) -> int:
        """An event that tells time."""
        return int(self._call("cudaEventCreate"))

    def record(self, event: int, stream: int) -> None:
        """Mark the stream's place now."""
        self._call("cudaEventRecord", event, stream)

    def mark(self, event: int, stream: int) -> None:
        """Have a graph that is being captured mark the stream's place whenever it runs."""
        external = self._runtime.cudaEventRecordExternal
        self._call("cudaEventRecordWithFlags", event, stream, external)

    def elapsed_us(self, start: int, end: int) -> float:
        """Microseconds between two events, of which the second is waited for."""
        self._call("cudaEventSynchronize", end)
        return float(self._call("cudaEventElapsedTime", start, end)) * 1e3

    def close_event(self, event: int) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", event)

    def used_bytes(self) -> int:
        """Device memory in use, by whoever uses it."""
        free, total = self._call("cudaMemGetInfo")
        return int(total) - int(free)


def _fix(error: int) -> str:
    if error == _NO_MEMORY:
        return (
            "nvidia-smi shows who has the GPU's memory; smaller shapes, and fewer contexts "
            "or CUDA graphs, take less of it"
        )
    return "start the process again" if error >= _BROKEN else ""

"""Runs native code in a child process: raised stack, time limit, and a Ctrl-C that works.

TensorRT ignores SIGINT while it builds, overflows the default 8 MB stack on a chain of 4,000
nodes, and dies of SIGSEGV or SIGFPE on some small valid models. None of that may take the
command line down, so whoever calls TensorRT or onnxruntime does it through :func:`run`.
"""

from __future__ import annotations

import importlib
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from opfuse.errors import EngineError, OpfuseError, TimeLimit

Event = Mapping[str, Any]

STACK_BYTES = 256 << 20
"""Stack of the child: TensorRT takes about 3 KB a node. A runaway recursion still ends at once,
where an unlimited stack would fill the memory of the machine."""

_HEADER = struct.Struct("<Q")
_TAIL_BYTES = 16_384
_EXIT_GRACE_S = 5.0
_LONGEST_WAIT_S = 3600.0  # at a time: epoll counts milliseconds in an int
_PR_SET_PDEATHSIG = 1

# The stack limit counts at exec (it places the mmap area), so a first interpreter sets it and
# execs the second. A preexec_fn would do the same after fork() of a process that may have threads.
_RAISE_LIMITS = f"""
import ctypes, os, resource, signal, sys
parent, stack, *command = sys.argv[1:]
hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
soft = int(stack) if hard == resource.RLIM_INFINITY else min(int(stack), hard)
resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, signal.SIGKILL)
if os.getppid() != int(parent):
    os._exit(0)
os.execv(sys.executable, [sys.executable, *command])
"""

# `python -m` would put the working directory first on sys.path, and with it any tensorrt.py there.
_START = "import sys; sys.path[:] = sys.argv[2:]; from opfuse import child; child.serve()"

_HINTS = {
    signal.SIGKILL: "possibly out of memory",
    signal.SIGSEGV: "a segmentation fault in native code",
    signal.SIGBUS: "a bus error in native code, or a full disk under a mapped file",
    signal.SIGFPE: "a division by zero in native code",
    signal.SIGILL: "this processor lacks an instruction that the library uses",
    signal.SIGABRT: "the library gave up",
}


class ChildBug(RuntimeError):
    """An exception that opfuse did not foresee, with the traceback that it had in the child."""


def run(
    function: str,
    args: Sequence[Any] = (),
    *,
    task: str = "the child process",
    time_limit: float | None = None,
    stack_bytes: int = STACK_BYTES,
    on_event: Callable[[Event], None] | None = None,
    on_output: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Call ``function(*args)`` in a fresh interpreter and return what it returns.

    Args:
        function: ``"module:name"``. It may call :func:`emit` to report progress.
        args: Picklable arguments; large data travels as files, not as arguments.
        task: What the child does, as the subject of a sentence, for error messages.
        time_limit: Seconds of wall time, or None.
        stack_bytes: Stack of the child's main thread, as far as the system's hard limit allows.
        on_event: Called in this process with each event that the child emits.
        on_output: Called with what the child prints, as it comes. Without it the output only
            shows in error messages.
        env: Variables to set in the child beside those of this process.

    Raises:
        OpfuseError: The one that the function raised, of the same class.
        EngineError: A signal killed the child, or it ended without an answer.
        TimeLimit: The limit has passed; the child is dead.
        ChildBug: Any other exception of the function.
        SystemExit: With code 143, on SIGTERM in the main thread; the child is dead.
        KeyboardInterrupt: On Ctrl-C in the main thread; the child is dead.
    """
    with _sigterm_exits():
        child = _Child(task, (function, tuple(args)), stack_bytes, env)
        try:
            child.listen(time_limit, on_event or (lambda event: None), on_output)
            return child.answer()
        finally:
            child.end()


def emit(event: Event) -> None:
    """Send a picklable event to the parent; outside a child process it goes nowhere."""
    _send("event", dict(event))


class _Child:
    """One child process with the pipe that its messages come through."""

    def __init__(
        self,
        task: str,
        call: tuple[str, tuple[Any, ...]],
        stack: int,
        env: Mapping[str, str] | None,
    ) -> None:
        self.task = task
        self.tail = b""
        self.message: tuple[str, Any] | None = None
        self._buffer = bytearray()
        self._events, events_in_child = os.pipe()
        command = [sys.executable, "-I", "-S", "-c", _RAISE_LIMITS, str(os.getpid()), str(stack)]
        command += ["-c", _START, str(events_in_child), *sys.path]
        with open(os.memfd_create("opfuse-call"), "wb") as request:
            pickle.dump(call, request)
            request.seek(0)
            self._process = subprocess.Popen(
                command,
                stdin=request,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                pass_fds=(events_in_child,),
                start_new_session=True,
            )
        os.close(events_in_child)

    def listen(
        self,
        time_limit: float | None,
        on_event: Callable[[Event], None],
        on_output: Callable[[str], None] | None,
    ) -> None:
        """Read events and output until the child closes its end of the event pipe."""
        deadline = None if time_limit is None else time.monotonic() + time_limit
        output = self._output()
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            selector.register(output, selectors.EVENT_READ)
            while self._events in selector.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeLimit(
                        f"{self.task} took longer than the time limit of {time_limit:g} s",
                        "raise --time-limit",
                    )
                for key, _ in selector.select(min(left or _LONGEST_WAIT_S, _LONGEST_WAIT_S)):
                    chunk = os.read(key.fd, 65_536)
                    if not chunk:
                        selector.unregister(key.fd)
                    elif key.fd == output:
                        self._take_output(chunk, on_output)
                    else:
                        self._take_events(chunk, on_event)
        os.set_blocking(output, False)
        while chunk := self._read_rest(output):
            self._take_output(chunk, on_output)

    def answer(self) -> Any:
        """The function's result, or the exception that stands for how the child ended."""
        if self.message is None:
            self._raise_died()
        kind, payload = self.message
        if kind == "result":
            return payload
        if kind == "foreseen":
            error, what, fix = payload
            raise error(what, fix)
        raise ChildBug(f"{self.task} failed with an error that opfuse did not foresee:\n{payload}")

    def end(self) -> None:
        """Kill the child and what it started, where they still live, and release the pipes."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._events)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _output(self) -> int:
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _read_rest(self, output: int) -> bytes:
        try:
            return os.read(output, 65_536)
        except BlockingIOError:  # a process that the child started holds the pipe open
            return b""

    def _take_output(self, chunk: bytes, on_output: Callable[[str], None] | None) -> None:
        self.tail = (self.tail + chunk)[-_TAIL_BYTES:]
        if on_output is not None:
            on_output(chunk.decode(errors="replace"))

    def _take_events(self, chunk: bytes, on_event: Callable[[Event], None]) -> None:
        self._buffer += chunk
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + _HEADER.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            kind, payload = pickle.loads(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if kind == "event":
                on_event(payload)
            else:
                self.message = kind, payload

    def _raise_died(self) -> NoReturn:
        try:
            code = self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            raise EngineError(f"{self.task} stopped answering{self._last_words()}") from None
        if code >= 0:
            raise EngineError(f"{self.task} ended with exit code {code}{self._last_words()}")
        number = signal.Signals(-code)
        hint = f" ({_HINTS[number]})" if number in _HINTS else ""
        raise EngineError(
            f"{self.task} was killed by {number.name}{hint}{self._last_words()}",
            "give it more memory" if number is signal.SIGKILL else "",
        )

    def _last_words(self) -> str:
        lines = self.tail.decode(errors="replace").strip().splitlines()[-8:]
        return "".join(f"\n  | {line[:300]}" for line in lines)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """SIGTERM raises SystemExit(143) inside, unless the program has a handler of its own."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit_143)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_143(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


_to_parent: int | None = None
_sending = threading.Lock()


def serve() -> NoReturn:
    """The child's side: take the call from stdin, send back how it ended, leave at once."""
    global _to_parent
    _to_parent = int(sys.argv[1])
    os.set_inheritable(_to_parent, False)
    function, args = pickle.load(sys.stdin.buffer)
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*args)
        _send("result", result)
    except OpfuseError as error:
        _send("foreseen", (type(error), error.what, error.fix))
    except MemoryError:
        _send("foreseen", (EngineError, "out of memory in the child process", ""))
    except Exception:
        _send("bug", traceback.format_exc())
    sys.stdout.flush()
    sys.stderr.flush()
    # Without the interpreter's teardown: destructors of native libraries crash in it.
    os._exit(0)


def _send(kind: str, payload: Any) -> None:
    if _to_parent is None:
        return
    body = pickle.dumps((kind, payload))
    message = memoryview(_HEADER.pack(len(body)) + body)
    with _sending:
        while message:
            message = message[os.write(_to_parent, message) :]

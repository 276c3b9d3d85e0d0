"""One thread for whatever TensorRT does for the first time: it compiles then, and recurses deeply.

Seen on an H100 with TensorRT for RTX 1.4: eight threads that met 131 new shapes at once, with the
specialisation of kernels off, ended the process without a word; the cause was not found. Where one
thread had met the shapes first, 1,000 runs from eight threads were right.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from opfuse.child import STACK_BYTES

T = TypeVar("T")


class Cold:
    """Runs work one at a time on a thread with a large stack.

    Args:
        enter: What the thread does first.
    """

    def __init__(self, enter: Callable[[], None]) -> None:
        self._executor = ThreadPoolExecutor(1, "opfuse-cold", initializer=enter)
        before = threading.stack_size(STACK_BYTES)
        try:
            self.do(lambda: None)  # the thread exists from here on
        finally:
            threading.stack_size(before)

    def do(self, work: Callable[[], T]) -> T:
        """Wait for ``work``, and return or raise what it does; work may not call this itself."""
        return self._executor.submit(work).result()

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown()

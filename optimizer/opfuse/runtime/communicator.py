"""The ranks of a process group, as the plugin library's collectives reach them.

One process is one rank on one GPU. How the ranks find each other is the caller's: each hands over
a card of 512 bytes, and gets all of them back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

from opfuse.errors import EngineError
from opfuse.runtime.abi import CARD_BYTES

WELL, ABORTED, TIMED_OUT = 0, 1, 2
ENVIRONMENT = "OPFUSE_ALLREDUCE"  # one-shot, two-shot, or nccl: the way of every sum

Exchange = Callable[[bytes], Sequence[bytes]]


class Communicator:
    """This process's end, at most one a process; ``close`` it once all ranks have finished.

    Args:
        library: From :func:`opfuse.runtime.abi.load`; its ops use this communicator from now on.
        rank: Which rank this process is; its GPU is the current device.
        size: How many there are, 1 to 8.
        exchange: Hands this rank's card to all others, and returns the cards by rank.
        timeout_ms: How long a kernel waits for the others before it gives up.
        nccl: The path of libnccl.so; None looks for ``libnccl.so.2``, "" does without.

    Raises:
        EngineError: A rank cannot be reached, or is of another kind; the message says which.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        rank: int,
        size: int,
        exchange: Exchange,
        timeout_ms: int = 20_000,
        nccl: str | None = None,
    ) -> None:
        self._library = library
        card = ctypes.create_string_buffer(CARD_BYTES)
        path = None if nccl is None else nccl.encode()
        self._call(library.opfuse_comm_open(rank, size, timeout_ms, path, card))
        try:
            cards = b"".join(exchange(card.raw))
            self._need(len(cards) == size * CARD_BYTES, "not every rank has handed over its card")
            self._call(library.opfuse_comm_join(cards))
        except BaseException:
            self.close()
            raise

    def _call(self, status: int) -> None:
        self._need(status == 0, self._library.opfuse_last_error().decode(errors="replace"))

    def _need(self, condition: bool, message: str) -> None:
        if not condition:
            raise EngineError(message, "see that all ranks run on GPUs of one host, or with NCCL")

    @property
    def transport(self) -> str:
        """What carries the data, such as ``"peer memory, NCCL 2.28.9"``."""
        return str(self._library.opfuse_comm_transport().decode())

    def state(self) -> int:
        """``WELL``, or why every result since is rubbish: ``ABORTED`` or ``TIMED_OUT``."""
        return int(self._library.opfuse_comm_state())

    def abort(self) -> None:
        """End all kernels that wait for other ranks; any thread may call it."""
        self._library.opfuse_comm_abort()

    def close(self) -> None:
        """Frees it; a second call does nothing."""
        self._call(self._library.opfuse_comm_close())

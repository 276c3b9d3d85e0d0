"""The ranks of one start as this process sees them: met once, compared, and watched.

The first rank's bundle that a process loads makes its group: it meets the others, and all compare
what they are about to run. From then on a rank that is lost aborts every kernel that waits for it,
and ends the process: no host code is left waiting.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from opfuse.errors import EngineError, InputError, MissingComponent, OpfuseError
from opfuse.runtime import agreement, world
from opfuse.runtime.communicator import TIMED_OUT, WELL, Communicator
from opfuse.runtime.meeting import LIMIT_S, Meeting, RankLost
from opfuse.runtime.world import World

LIMIT = "OPFUSE_RANKS_TIMEOUT"  # seconds for the ranks to come, and to answer each other
NCCL = "OPFUSE_NCCL"  # the path of libnccl.so.2
GRACE_S = 5.0
_BUSY_S = 600.0  # for ranks that are there and at work: should one die, the others are told at once


class Group:
    """This process among the others.

    Args:
        place: Who this is.
        limit_s: Seconds for the ranks to come, and to answer each other.
        grace_s: Seconds that a process has to end by itself once a rank is lost.

    Raises:
        RankLost: Not all come.
    """

    def __init__(self, place: World, limit_s: float, grace_s: float = GRACE_S) -> None:
        self.world, self._grace_s = place, grace_s
        self._patience_ms = int(limit_s * 1000 * 2 / 3)
        self._meeting = Meeting(place, limit_s)
        self._communicator: Communicator | None = None
        self._users = 0
        self._ended = threading.Event()
        self._meeting.on_loss(self._end)

    @property
    def transport(self) -> str:
        """What carries the data between the GPUs."""
        return "" if self._communicator is None else self._communicator.transport

    def agree(self, mine: Mapping[str, Any]) -> None:
        """Compare what all ranks are about to run; on a difference all of them raise.

        Raises:
            RankLost: They differ; the message says in what and which.
        """
        told = [json.loads(data) for data in self.share(json.dumps(dict(mine)).encode())]
        if found := agreement.difference(told):
            raise RankLost(found, agreement.TOGETHER)

    def share(self, mine: bytes, limit_s: float | None = None) -> list[bytes]:
        """What each rank gives, by rank; all of them have to call it.

        Raises:
            RankLost: One does not.
        """
        return self._meeting.exchange(mine, limit_s)

    def open(self, library: ctypes.CDLL) -> None:
        """Let the collectives of ``library`` reach the other ranks; the first call does it.

        Raises:
            EngineError: A rank cannot be reached.
        """
        self._users += 1
        if self._communicator is None:
            here = self.world.rank, self.world.size
            exchange = partial(self.share, limit_s=_BUSY_S)  # some may still load their weights
            self._communicator = Communicator(
                library, *here, exchange, self._patience_ms, nccl_library()
            )

    def check(self) -> None:
        """Refuse results that were made while a rank was lost.

        Raises:
            RankLost: One is.
        """
        if self._meeting.lost:
            raise RankLost(self._meeting.lost, "start all ranks again")
        state = WELL if self._communicator is None else self._communicator.state()
        if state == TIMED_OUT:
            reason = f"a kernel waited longer than {self._patience_ms / 1000:g} s for another rank"
            self._meeting.stop(reason)
            raise RankLost(reason, "see what the other ranks printed, and start all of them again")
        if state != WELL:
            raise RankLost("the collectives were aborted", "start all ranks again")

    def failed(self, error: BaseException) -> None:
        """Tell the others of what ends this rank, unless the loss of one has ended it.

        Raises:
            RankLost: It has.
        """
        if not isinstance(error, RankLost):
            self.check()
        self.stop(error.what if isinstance(error, OpfuseError) else type(error).__name__)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of whatever ends this block, so that they do not wait."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def stop(self, reason: str) -> None:
        """Leave the ranks because of a failure of this one; the others end."""
        self._ended.set()
        if not self._meeting.lost:
            self._meeting.stop(reason)
        _forget(self)

    def close(self) -> None:
        """Leave in peace once all ranks are here; the last user of the group does."""
        self._users -= 1
        if self._users > 0 or self._ended.is_set():
            return
        if not self._meeting.lost:
            self.share(b"", _BUSY_S)  # nobody frees what another one still reads
        self._ended.set()
        if self._communicator is not None:
            with suppress(EngineError):
                self._communicator.close()
        self._meeting.leave()
        _forget(self)

    def _end(self, reason: str) -> None:
        """End the process; a loss is told here where the main thread does not tell it first."""
        if self._communicator is not None:
            self._communicator.abort()
        if self._ended.wait(self._grace_s):
            time.sleep(self._grace_s)
        with suppress(OSError, ValueError):
            sys.stderr.write(f"opfuse: error: {reason}\n")
            sys.stderr.flush()
        os._exit(RankLost.exit_code)


_group: Group | None = None
_making = threading.Lock()


def join(size: int, what: object) -> Group:
    """The group of this process, which the first call makes.

    Args:
        size: How many ranks there have to be.
        what: The bundle, for messages.

    Raises:
        InputError: No launcher has started this process.
        RankLost: The launcher has started another number of ranks, or not all come.
    """
    global _group
    with _making:
        if _group is None:
            place = world.find()
            if place is None:
                raise InputError(
                    f"{what} is one of {size} ranks, and this process is none of several",
                    f"opfuse bench --tp {size} DIR, or torchrun --nproc-per-node {size} SCRIPT",
                )
            _group = Group(place, _limit_s())
        if _group.world.size != size:
            found = f"{what} is one of {size} ranks, and {_group.world.size} were started"
            _group.stop(found)
            raise RankLost(found, f"start {size}")
        return _group


def _forget(group: Group) -> None:
    global _group
    if _group is group:
        _group = None


def _limit_s() -> float:
    text = os.environ.get(LIMIT, str(LIMIT_S))
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < 1e6:
        raise InputError(f"{LIMIT}={text!r} is no number of seconds", "give one such as 30")
    return found


def nccl_library() -> str | None:
    """The path of NCCL: named, or that of the wheel; None leaves it to the system."""
    if named := os.environ.get(NCCL):
        if not Path(named).is_file():
            raise MissingComponent(f"{NCCL} names {named}, which is not there", f"correct {NCCL}")
        return named
    try:
        wheel = importlib.util.find_spec("nvidia.nccl")
    except (ImportError, ValueError):
        return None
    places = [] if wheel is None else wheel.submodule_search_locations or []
    files = [Path(place, "lib", "libnccl.so.2") for place in places]
    return next((str(path) for path in files if path.is_file()), None)


def gpu_name(device: Any) -> str:
    """Which GPU of which host."""
    return f"{socket.gethostname()} {device.address}"

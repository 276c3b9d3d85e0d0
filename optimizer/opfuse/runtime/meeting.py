"""Where the ranks meet: one socket from each to rank 0, for exchanges and as a sign of life.

Rank 0 listens, the others call. Whatever one rank gives to a round of :meth:`Meeting.exchange`
reaches all. The sockets stay open: one that closes before its rank has said goodbye is a rank that
died, and rank 0 tells the others. Nothing but JSON and bytes is read from them.
"""

from __future__ import annotations

import json
import queue
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from opfuse.errors import EngineError
from opfuse.runtime.world import World

LIMIT_S = 30.0
_TRIED_PORTS = 16
_HEADER = struct.Struct("<cIQ")  # kind, round or rank, bytes behind it
_HELLO, _GIVE, _ALL, _LOST, _GOODBYE = b"H", b"G", b"A", b"L", b"B"
_LARGEST = 1 << 34
_AGAIN_S = 0.1
_TOLD_WITHIN_S = 2.0
_FIRST_WORD_S = 1.0  # of whoever calls, and of whoever is called


class RankLost(EngineError):
    """A rank is gone, or has stopped with a reason of its own; the message names it."""


Told = Callable[[str], None]


class Meeting:
    """All ranks, met.

    Args:
        world: Who this is, and where rank 0 is.
        limit_s: How long the ranks may take to come, and to answer a round.

    Raises:
        RankLost: Not all ranks came in time.
    """

    def __init__(self, world: World, limit_s: float = LIMIT_S) -> None:
        self.world, self.limit_s = world, limit_s
        self._round = 0
        self._answers: queue.Queue[list[bytes] | None] = queue.Queue()
        self._given: dict[int, dict[int, bytes]] = {}
        self._left: set[int] = set()
        self._lost = ""
        self._told: Told | None = None
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        deadline = time.monotonic() + limit_s
        if world.rank == 0:
            self._peers = _wait_for_all(world, deadline)
        else:
            self._peers = {0: _call(world, deadline)}
        for peer in self._peers.values():
            _keep_alive(peer)
        threading.Thread(target=self._listen, name="opfuse ranks", daemon=True).start()

    @property
    def lost(self) -> str:
        """Which rank is gone and why; empty while all are there."""
        return self._lost

    def on_loss(self, told: Told) -> None:
        """Call ``told`` with the reason, in a thread of its own, when a rank is lost."""
        with self._lock:
            self._told = told
            late = self._lost
        if late:
            told(late)

    def exchange(self, mine: bytes, limit_s: float | None = None) -> list[bytes]:
        """What each rank gave to this round, by rank; all ranks have to come to it.

        Args:
            mine: What this rank gives.
            limit_s: Seconds to wait for the others; None takes the limit of the meeting.

        Raises:
            RankLost: One does not come.
        """
        number, self._round = self._round, self._round + 1
        if self.world.rank == 0:
            self._take(0, number, mine)
        else:
            self._send(0, _GIVE, number, mine)
        wait = self.limit_s if limit_s is None else limit_s
        # Rank 0 knows who is missing, and tells: the others give it time for that.
        wait += _TOLD_WITHIN_S if self.world.rank else 0.0
        try:
            found = self._answers.get(timeout=wait)
        except queue.Empty:
            found = None
            self._lose(self._missing(number, wait))
        if found is None:
            raise RankLost(self._lost, "see what that rank printed, and start all ranks again")
        return found

    def stop(self, reason: str) -> None:
        """Tell the others why this rank ends; they end too."""
        text = f"rank {self.world.rank} stopped: {reason}".encode()
        for peer in list(self._peers):
            with suppress(OSError):
                self._send(peer, _LOST, self.world.rank, text)
        self._hang_up()

    def leave(self) -> None:
        """Say goodbye: from now on the sockets may close."""
        for peer in list(self._peers):
            with suppress(OSError):
                self._send(peer, _GOODBYE, self.world.rank, b"")
        self._hang_up()

    # -- the listening thread -------------------------------------------------------------------

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        kind, number, data = _receive(key.fileobj)  # type: ignore[arg-type]
                    except (OSError, ValueError):
                        selector.unregister(key.fileobj)
                        if key.data not in self._left:
                            self._lose(f"rank {key.data} is gone: its process has ended")
                        continue
                    self._heed(key.data, kind, number, data)

    def _heed(self, rank: int, kind: bytes, number: int, data: bytes) -> None:
        if kind == _GIVE:
            self._take(rank, number, data)
        elif kind == _ALL:
            self._answers.put(_unpack(data, self.world.size))
        elif kind == _GOODBYE:
            self._left.add(rank)
        elif kind == _LOST:
            self._left.add(rank)
            self._lose(data.decode(errors="replace"))

    def _take(self, rank: int, number: int, data: bytes) -> None:
        """Rank 0 keeps what was given until all have, and hands it round."""
        with self._lock:
            given = self._given.setdefault(number, {})
            given[rank] = data
            if len(given) < self.world.size:
                return
            del self._given[number]
        blobs = [given[index] for index in range(self.world.size)]
        packed = _pack(blobs)
        for peer in self._peers:
            with suppress(OSError):  # whoever is gone is noticed by the listening thread
                self._send(peer, _ALL, number, packed)
        self._answers.put(blobs)

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._lost:
                return
            self._lost = reason
            told = self._told
        self._answers.put(None)
        if self.world.rank == 0:
            for peer in self._peers:
                with suppress(OSError):
                    self._send(peer, _LOST, 0, reason.encode())
        if told is not None:
            threading.Thread(target=told, args=(reason,), daemon=True).start()

    def _missing(self, number: int, wait: float) -> str:
        with self._lock:
            given = self._given.get(number, {})
            absent = [rank for rank in range(self.world.size) if rank not in given]
        who = _ranks(absent) if self.world.rank == 0 else "another rank"
        return f"{who} did not answer within {wait:g} s"

    def _send(self, peer: int, kind: bytes, number: int, data: bytes) -> None:
        with self._sending:
            self._peers[peer].sendall(_HEADER.pack(kind, number, len(data)) + data)

    def _hang_up(self) -> None:
        self._left.update(range(self.world.size))
        for peer in self._peers.values():
            with suppress(OSError):
                peer.shutdown(socket.SHUT_WR)


def _wait_for_all(world: World, deadline: float) -> dict[int, socket.socket]:
    """Rank 0's side: listen until everybody has called."""
    listener = _listener(world)
    met: dict[int, socket.socket] = {}
    try:
        while len(met) < world.size - 1:
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                absent = [rank for rank in range(1, world.size) if rank not in met]
                raise RankLost(
                    f"{_ranks(absent)} of {world.size} did not come to port "
                    f"{listener.getsockname()[1]} in time",
                    "start all ranks, each with its own file",
                ) from None
            rank = _greeted(caller, world)
            if rank is None or rank in met:
                caller.close()
            else:
                met[rank] = caller
    except BaseException:
        for peer in met.values():
            peer.close()
        raise
    finally:
        listener.close()
    return met


def _listener(world: World) -> socket.socket:
    """A socket on the first port that is free."""
    family = socket.getaddrinfo(world.host, world.port, type=socket.SOCK_STREAM)[0]
    for port in range(world.port, world.port + _TRIED_PORTS):
        listener = socket.socket(family[0], socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((world.host, port))
            listener.listen(world.size)
        except OSError:
            listener.close()
        else:
            return listener
    raise RankLost(
        f"no port of {world.host} from {world.port} on is free for rank 0",
        "set MASTER_PORT to another one on all ranks",
    )


def _greeted(caller: socket.socket, world: World) -> int | None:
    """Which rank of this job calls; None for a stranger."""
    caller.settimeout(_FIRST_WORD_S)
    try:
        kind, _, data = _receive(caller)
        said: Any = json.loads(data)
        if kind != _HELLO or said["job"] != world.job or not 0 < said["rank"] < world.size:
            return None
        caller.sendall(_HEADER.pack(_HELLO, 0, 0))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    caller.settimeout(None)
    return int(said["rank"])


def _call(world: World, deadline: float) -> socket.socket:
    """Another rank's side: call the ports in turn until rank 0 of this job answers."""
    hello = json.dumps({"job": world.job, "rank": world.rank}).encode()
    while True:
        for port in range(world.port, world.port + _TRIED_PORTS):
            try:
                caller = socket.create_connection((world.host, port), _FIRST_WORD_S)
            except OSError:
                continue
            try:
                caller.sendall(_HEADER.pack(_HELLO, world.rank, len(hello)) + hello)
                kind, _, data = _receive(caller)
                if kind == _HELLO and not data:
                    caller.settimeout(None)
                    return caller
            except (OSError, ValueError):
                pass
            caller.close()
        if time.monotonic() > deadline:
            raise RankLost(
                f"rank 0 of {world.size} was not found at {world.host}, port {world.port} and up, "
                "in time",
                "start all ranks, each with its own file",
            )
        time.sleep(_AGAIN_S)


def _receive(peer: socket.socket) -> tuple[bytes, int, bytes]:
    """One message.

    Raises:
        OSError: The other side has hung up.
        ValueError: It is none of ours.
    """
    kind, number, size = _HEADER.unpack(_read(peer, _HEADER.size))
    if kind not in (_HELLO, _GIVE, _ALL, _LOST, _GOODBYE) or size > _LARGEST:
        raise ValueError("no message of opfuse")
    return kind, number, _read(peer, size)


def _read(peer: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = peer.recv(min(size, 1 << 20))
        if not part:
            raise ConnectionResetError("the other side has hung up")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _pack(blobs: list[bytes]) -> bytes:
    return struct.pack(f"<{len(blobs)}Q", *map(len, blobs)) + b"".join(blobs)


def _unpack(data: bytes, count: int) -> list[bytes]:
    sizes = struct.unpack_from(f"<{count}Q", data)
    at, found = struct.calcsize(f"<{count}Q"), []
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return found


def _keep_alive(peer: socket.socket) -> None:
    """Let the system notice a host that is gone without a word, within half a minute."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _ranks(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers))
    return f"rank {listed}" if len(numbers) == 1 else f"ranks {listed}"

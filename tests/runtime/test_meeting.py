"""The sockets that ranks meet over: strangers, other jobs, taken ports, and large gifts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from opfuse.runtime.meeting import Meeting, RankLost
from opfuse.runtime.world import World
from tests.runtime.ports import free_port

SOURCE = Path(sys.modules["opfuse"].__file__).parent.parent


def worlds(size, port=None, job="job"):
    port = free_port() if port is None else port
    return [World(rank, size, rank, "127.0.0.1", port, job) for rank in range(size)]


@pytest.fixture
def met():
    """Meetings of ranks that are threads; they part in the end."""
    made = []

    def meet(places, limit_s=5.0):
        with ThreadPoolExecutor(len(places)) as pool:
            found = list(pool.map(lambda place: Meeting(place, limit_s), places))
        made.extend(found)
        return found

    yield meet
    for meeting in made:
        meeting.leave()


def together(meetings, gifts):
    with ThreadPoolExecutor(len(meetings)) as pool:
        return list(pool.map(Meeting.exchange, meetings, gifts))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_everybody_gets_everything_in_order(met, size):
    meetings = met(worlds(size))
    for turn in range(3):
        gifts = [bytes([rank]) * (turn * rank) for rank in range(size)]
        assert together(meetings, gifts) == [gifts] * size


def test_gifts_larger_than_a_socket_holds(met):
    gifts = [bytes(3 << 20), b"", b"x" * (5 << 20)]
    assert together(met(worlds(3)), gifts) == [gifts] * 3


def test_a_port_that_is_taken(met):
    """As torchrun's own store takes the first."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        meetings = met(worlds(2, port))
        assert together(meetings, [b"a", b"b"])[0] == [b"a", b"b"]


def test_two_jobs_on_one_port_do_not_mix(met):
    port = free_port()
    meetings = met([*worlds(2, port, "first"), *worlds(2, port, "second")])
    assert together(meetings, [b"a", b"b", b"c", b"d"]) == [[b"a", b"b"]] * 2 + [[b"c", b"d"]] * 2


@pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"", b"\0" * 64, b"H" + b"\xff" * 12])
def test_a_stranger_at_the_port(met, words):
    places = worlds(2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Meeting, places[0], 8.0)
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", places[0].port))
                break
            except OSError:
                time.sleep(0.01)
        stranger.sendall(words)
        stranger.close()
        (second,) = met([places[1]])
        assert together([first.result(), second], [b"a", b"b"])[1] == [b"a", b"b"]
        first.result().leave()


def test_a_rank_that_does_not_answer_is_named(met):
    meetings = met(worlds(3), limit_s=1.0)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(meetings[rank].exchange, b"") for rank in (0, 2)]
        for one in waiting:
            with pytest.raises(RankLost, match="rank 1 did not answer within 1 s"):
                one.result()


def test_a_loss_is_told_once_and_to_late_comers_too(met):
    told, heard = [], threading.Event()
    meetings = met(worlds(3))
    meetings[2].on_loss(lambda reason: (told.append(reason), heard.set()))
    meetings[1].stop("it is tired")
    assert heard.wait(5)
    late = []
    meetings[2].on_loss(late.append)
    assert told == late == ["rank 1 stopped: it is tired"]
    with pytest.raises(RankLost, match="it is tired"):
        meetings[0].exchange(b"")


def test_a_goodbye_is_no_loss(met):
    meetings = met(worlds(2))
    meetings[1].leave()
    time.sleep(0.2)
    assert meetings[0].lost == ""


def test_a_rank_of_this_job_that_is_there_already(met):
    places = worlds(2)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(Meeting, places[0], 3.0)
        both = [pool.submit(Meeting, replace(places[1]), 1.0) for _ in range(2)]
        outcomes = [one.exception() for one in both]
        assert [type(one) for one in outcomes if one is not None] == [RankLost]
        for one in (first, *both):
            if one.exception() is None:
                one.result().leave()


MEET = """
import os
from opfuse.runtime import world
from opfuse.runtime.meeting import Meeting
meeting = Meeting(world.find(), 60)
words = meeting.exchange(os.environ["START"].encode())
meeting.exchange(b"")
meeting.leave()
print(f"{meeting.world.rank} {meeting.world.local_rank} {b' '.join(words).decode()}")
"""


@pytest.mark.parametrize("launcher", ["mpirun", "mpiexec"])
def test_an_mpi_that_is_here_starts_ranks_that_meet(launcher):
    """Two starts at once: those of one meet nobody of the other."""
    if (program := shutil.which(launcher)) is None:
        pytest.skip(f"not run: there is no {launcher}")
    known = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OPFUSE_JOB")
    bare = {name: text for name, text in os.environ.items() if name not in known}
    bare |= dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    # Open MPI counts processors, under two names in its versions.
    bare["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    bare |= {"OMPI_MCA_rmaps_base_oversubscribe": "1", "PYTHONPATH": str(SOURCE)}
    starts = [
        subprocess.Popen(
            [program, "-n", "3", sys.executable, "-c", MEET],
            env={**bare, "START": name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for name, start in zip("ab", starts, strict=True):
        out, err = start.communicate(timeout=120)
        assert start.returncode == 0, err
        ranks, places, *words = zip(*(line.split() for line in out.splitlines()), strict=True)
        assert sorted(ranks) == sorted(places) == ["0", "1", "2"]  # not always alike
        assert words == [(name,) * 3] * 3

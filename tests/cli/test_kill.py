"""kill -9 in the middle of every stage: `python -m benchmarks.kills` with few kills.

OPFUSE_KILLS=100 does as many as were asked for.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.kills import Ground, run
from opfuse.files import Pending, pending_folder

KILLS = int(os.environ.get("OPFUSE_KILLS", "8"))


@pytest.mark.timeout(60 * KILLS)
def test_a_killed_run_leaves_nothing_half(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    done = run(Ground(tmp_path), KILLS, seed=0)
    assert [fault for item in done for fault in item.faults] == []
    assert {item.job for item in done[:KILLS]} >= {"fuse", "build", "build segmented", "package"}


def killed(block):
    """Runs a block in a process that then dies as kill -9 would have it."""
    child = os.fork()
    if child == 0:
        with block:
            os._exit(0)
    os.waitpid(child, 0)


def test_a_folder_that_was_left_is_swept(tmp_path):
    target = tmp_path / "repository" / "model"
    target.parent.mkdir()
    killed(pending_folder(target))
    assert len(list(tmp_path.glob(".opfuse-*.tmp"))) == 1
    with pending_folder(target) as folder:
        (folder / "file").write_text("whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]
    assert (target / "file").read_text() == "whole"


def test_what_is_still_written_is_not_swept(tmp_path):
    """Not even by a process that cannot see the writer's, as in another container."""
    with Pending(tmp_path) as first:
        first.file.write(b"first")
        (written,) = tmp_path.iterdir()
        child = os.fork()
        if child == 0:
            os.closerange(3, 100)  # the locks of the parent
            with Pending(tmp_path):
                os._exit(0 if written.exists() else 1)
        assert os.waitpid(child, 0)[1] == 0
        first.publish(tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"first"


def test_the_number_of_a_process_that_is_gone_does_not_matter(tmp_path):
    """The names of temporary files tell the process, which may be another one by now."""
    stale = tmp_path / f".opfuse-elsewhere-{os.getpid()}-0123abcd.tmp"
    stale.write_bytes(b"half")
    with Pending(tmp_path):
        assert not stale.exists()

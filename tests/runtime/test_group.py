"""Ranks as processes: they meet, agree, sum, and end together whatever becomes of one of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from models import tiny
from opfuse.graph.collectives import SPEAKING, Rank, state
from tests import small
from tests.engine_models import plugin_ops, plugins
from tests.ranks import cut
from tests.runtime import host
from tests.runtime.ports import free_port

OPS = plugin_ops()
pytestmark = pytest.mark.skipif(
    not OPS.issuperset(SPEAKING), reason="the plugin library has no collectives, or is not built"
)
SOURCE = Path(sys.modules["opfuse"].__file__).parent.parent
ROOT = Path(__file__).resolve().parents[2]
FAST = {"OPFUSE_RANKS_TIMEOUT": "6"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles and lowered models of the two ranks of a Llama, and the Llama."""
    folder = tmp_path_factory.mktemp("ranks")
    made = cut(tiny.llama(layers=1).model(), 2, folder, vocab=True)
    found = []
    for rank in range(2):
        own = folder / f"built{rank}"
        own.mkdir()
        model = host.lowered(folder / f"rank{rank}.onnx", own, OPS)
        host.bundle(model, own, plugins(), own / "model.opfuse")
        onnx.save(model, own / "lowered.onnx")
        found.append((own / "model.opfuse", own / "lowered.onnx"))
    return found, made.before


TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def torchrun(size):
    port = free_port()
    texts = ("127.0.0.1", str(port))
    return lambda *own: dict(
        zip(TORCHRUN, (str(own[0]), str(size), str(own[1]), *texts), strict=True)
    )


def mpirun(size):
    """Open MPI names no address, only the job."""
    names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    job = {"PMIX_NAMESPACE": f"test.{os.getpid()}.{time.monotonic_ns()}"}
    return lambda *own: dict(zip(names, (str(own[0]), str(size), str(own[1])), strict=True)) | job


PLACES = {"torchrun": torchrun, "mpirun": mpirun}


class Ranks:
    """Processes of one start."""

    def __init__(self, job, files, size=2, numbers=None, local=None, launcher="torchrun"):
        bare = {name: text for name, text in os.environ.items() if name not in TORCHRUN}
        place = PLACES[launcher](size)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.runtime.rank_process", job, *map(str, files[at])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={
                    **bare,
                    **FAST,
                    **place(rank, rank if local is None else local[rank]),
                    "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}",
                },
            )
            for at, rank in enumerate(range(size) if numbers is None else numbers)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()

    def ready(self, word):
        for process in self.processes:
            assert process.stdout.readline().strip() == word, process.stderr.read()

    def end(self, rank=0, given="", within=30.0):
        out, err = self.processes[rank].communicate(given, timeout=within)
        return self.processes[rank].returncode, out, err


def test_all_ranks_together_are_the_model(bundles):
    files, before = bundles
    given = small.draw(before, {"batch": 2, "seq": 5}, 0)
    (want,) = small.session(before).run(None, given)
    text = json.dumps({name: array.tolist() for name, array in given.items()})
    with Ranks("run", files) as ranks:
        for process in ranks.processes:
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None
        for rank in range(2):
            code, out, err = ranks.end(rank)
            assert code == 0, err
            found = np.asarray(json.loads(out)["logits"], want.dtype)
            small.compare(f"rank {rank}", want, found)


def test_verify_compares_every_rank_with_the_model(bundles, tmp_path):
    files, before = bundles
    onnx.save(before, tmp_path / "model.onnx")
    (tmp_path / "parts.json").write_text("[]")
    extra = [tmp_path / "model.onnx", tmp_path / "parts.json"]
    with Ranks("verify", [(*own, *extra) for own in files]) as ranks:
        ends = [ranks.end(rank) for rank in range(2)]
        assert [code for code, _, _ in ends] == [0, 0], ends[0][2]
        passed, outputs, error, refused = json.loads(ends[0][1])
        assert (passed, outputs, refused) == (True, 1, "")
        assert 0 < error < 1e-4


def test_verify_finds_what_one_rank_computes_otherwise(bundles, tmp_path):
    files, before = bundles
    changed = onnx.ModelProto.FromString(before.SerializeToString())
    weight = max(changed.graph.initializer, key=lambda item: len(item.raw_data))
    weight.raw_data = weight.raw_data[4:] + weight.raw_data[:4]
    onnx.save(changed, tmp_path / "model.onnx")
    (tmp_path / "parts.json").write_text("[]")
    extra = [tmp_path / "model.onnx", tmp_path / "parts.json"]
    with Ranks("verify", [(*own, *extra) for own in files]) as ranks:
        code, out, err = ranks.end(0)
        assert (code, json.loads(out)[0]) == (0, False), err


@pytest.mark.parametrize("launcher", PLACES)
def test_bench_has_the_times_of_every_rank(bundles, launcher):
    with Ranks("bench", bundles[0], launcher=launcher) as ranks:
        ends = [ranks.end(rank) for rank in range(2)]
        assert [code for code, _, _ in ends] == [0, 0], ends[0][2]
        found = json.loads(ends[0][1])
        assert found == json.loads(ends[1][1])
        assert [item["rank"] for item in found] == [0, 1]
        sums = 4  # of the embedding, two with norms, and the scores
        told = {(item["collectives_us"], item["transport"]) for item in found}
        assert told == {(sums, "sockets")}


def test_a_rank_that_loads_longer_than_the_others_may_wait_is_no_loss(bundles, monkeypatch):
    monkeypatch.setenv("SLOW_RANK", "1")
    with Ranks("bench", bundles[0]) as ranks:
        assert [ranks.end(rank)[0] for rank in range(2)] == [0, 0]


@pytest.mark.parametrize(("job", "word"), [("serve", "serving"), ("wait", "waiting")])
@pytest.mark.parametrize("dead", [0, 1])
def test_kill_9_of_one_rank_ends_the_other(bundles, job, word, dead):
    """Also where its main thread never looks: the watchdog ends the process."""
    with Ranks(job, bundles[0]) as ranks:
        ranks.ready(word)
        began = time.monotonic()
        ranks.processes[dead].send_signal(signal.SIGKILL)
        code, _, err = ranks.end(1 - dead)
        assert (code, time.monotonic() - began < 15) == (4, True), err
        assert f"rank {dead} is gone" in err
        assert "Traceback" not in err


def test_a_rank_that_fails_tells_the_others_why(bundles):
    with Ranks("fail", bundles[0]) as ranks:
        assert ranks.end(1)[0] == 2
        code, _, err = ranks.end(0)
        assert code == 4
        assert "rank 1 stopped: the inputs given and those of the engine differ" in err


def test_a_rank_that_never_comes(bundles):
    with Ranks("run", bundles[0], numbers=[0]) as ranks:
        code, _, err = ranks.end(0)
        assert code == 4
        assert "rank 1 of 2 did not come" in err


def test_rank_0_never_comes(bundles):
    with Ranks("run", bundles[0][1:], numbers=[1]) as ranks:
        code, _, err = ranks.end(0)
        assert code == 4
        assert "rank 0 of 2 was not found at 127.0.0.1" in err


def test_more_processes_than_ranks(bundles):
    with Ranks("run", [*bundles[0], bundles[0][1]], size=3) as ranks:
        for rank in range(3):
            code, _, err = ranks.end(rank)
            assert code == 4
            assert "is one of 2 ranks, and 3 were started" in err


def test_two_processes_with_one_file(bundles):
    with Ranks("run", [bundles[0][0]] * 2) as ranks:
        for rank in range(2):
            code, _, err = ranks.end(rank)
            assert code == 4
            assert "rank 1 was given the file of rank 0" in err


def test_two_processes_on_one_gpu(bundles):
    with Ranks("run", bundles[0], local=[0, 0]) as ranks:
        for rank in range(2):
            code, _, err = ranks.end(rank)
            assert code == 4
            assert "ranks 0 and 1 are on one GPU" in err


def test_ranks_of_two_plans(bundles, tmp_path):
    """Weights of another checkpoint: everything else is alike."""
    _, lowered = bundles[0][1]
    model = onnx.load(lowered)
    state(model, Rank(1, 2, "another"))
    host.bundle(model, tmp_path, plugins(), tmp_path / "other.opfuse")
    with Ranks("run", [bundles[0][0], (tmp_path / "other.opfuse", lowered)]) as ranks:
        for rank in range(2):
            code, _, err = ranks.end(rank)
            assert code == 4
            assert "ranks 0 and 1 differ in what was sharded (the plan)" in err


def test_without_a_launcher(bundles):
    bundle, lowered = bundles[0][0]
    bare = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.rank_process", "run", str(bundle), str(lowered)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**bare, "PYTHONPATH": f"{SOURCE}{os.pathsep}{ROOT}"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "is one of 2 ranks, and this process is none of several" in done.stderr
    assert "opfuse bench --tp 2 DIR" in done.stderr

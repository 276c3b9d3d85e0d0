"""Which rank a process is, by the variables of its launcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from opfuse.errors import InputError
from opfuse.runtime.world import find

LAUNCHERS = ("RANK", "WORLD", "OMPI_", "PMI", "SLURM_", "MASTER_", "OPFUSE_JOB", "TORCHELASTIC")
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "7",
}


def test_torchrun():
    found = find(TORCHRUN)
    assert (found.rank, found.size, found.local_rank) == (5, 8, 1)
    assert (found.host, found.port) == ("node0", 29501)
    assert find(TORCHRUN | {"RANK": "0"}).job == found.job
    assert find(TORCHRUN | {"TORCHELASTIC_RUN_ID": "8"}).job != found.job


@pytest.mark.parametrize(
    "names",
    [
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    ],
)
def test_launchers_that_name_no_address(names):
    """On one host the ranks of a job meet at a port that follows from the job."""
    job = {"PMIX_NAMESPACE": "12.1"}
    worlds = [find(dict(zip(names, (rank, "4", rank), strict=True)) | job) for rank in "0123"]
    assert [(w.rank, w.size, w.local_rank, w.host) for w in worlds] == [
        (rank, 4, rank, "127.0.0.1") for rank in range(4)
    ]
    assert len({(w.port, w.job) for w in worlds}) == 1
    other = find(dict(zip(names, ("0", "4", "0"), strict=True)) | {"PMIX_NAMESPACE": "13.1"})
    assert other.job != worlds[0].job


def test_mpirun_on_two_hosts_needs_an_address():
    given = {
        "OMPI_COMM_WORLD_RANK": "0",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
        "PMIX_NAMESPACE": "12.1",
    }
    with pytest.raises(InputError, match="2 of 4 ranks are on this host"):
        find(given)
    assert find(given | {"MASTER_ADDR": "node0"}).host == "node0"


def test_two_steps_of_one_allocation_are_two_starts():
    given = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}
    first, second = (find(given | {"SLURM_STEP_ID": number}) for number in "01")
    assert first.job != second.job
    assert find(given | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}).job == first.job


@pytest.mark.parametrize("address", [{}, {"MASTER_ADDR": "node0"}], ids=["one host", "several"])
def test_a_start_that_nothing_names(address):
    """Ranks of two such starts would take each other for their own."""
    given = {"PMI_RANK": "0", "PMI_SIZE": "2", **address}
    with pytest.raises(InputError, match="nothing tells these ranks from those of another start"):
        find(given)
    assert find(given | {"MASTER_PORT": "29500"}).port == 29500
    assert "OPFUSE_JOB=a" in find(given | {"OPFUSE_JOB": "a"}).job


MPICH = "from opfuse.runtime.world import find; print(find().job)"


def test_a_launcher_that_names_no_job_is_known_by_its_process(tmp_path):
    """MPICH's proxy, played by a shell of its name, starts the ranks."""
    starter = tmp_path / "hydra_pmi_proxy"
    starter.symlink_to(shutil.which("bash"))
    rank = f"{sys.executable} -c '{MPICH}'"
    script = f'PMI_RANK=0 {rank}; PMI_RANK=1 sh -c "{rank}"; true'
    bare = {name: text for name, text in os.environ.items() if not name.startswith(LAUNCHERS)}
    environment = {**bare, "PMI_SIZE": "2"}
    jobs = [
        subprocess.run(
            [starter, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert all(job.startswith("hydra_pmi_proxy=") for ranks in jobs for job in ranks)
    assert [len(ranks) for ranks in jobs] == [2, 2]
    assert [len(set(ranks)) for ranks in jobs] == [1, 1]
    assert jobs[0][0] != jobs[1][0]


def test_no_launcher():
    assert find({"MASTER_ADDR": "node0", "RANK": "0"}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "8"}, "RANK=8 and WORLD_SIZE=8 make no rank"),
        ({"RANK": "one"}, "RANK='one' is no number"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1' is no number"),
    ],
)
def test_what_makes_no_sense(change, message):
    with pytest.raises(InputError, match=message):
        find(TORCHRUN | change)

"""Which of several processes this one is, as torchrun, mpirun, and srun tell it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opfuse.errors import InputError

HERE = "127.0.0.1"
_PARENT, _BEGAN = 1, 19  # fields of /proc/PID/stat behind the name
_PORTS = range(20_000, 30_000)  # below those that systems give out by themselves

# Rank, size, and rank on this host; the first launcher whose names are all there is the one.
_LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
_LOCAL_SIZES = (
    *("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    *("MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"),
)
# What all ranks of one start have in common, and those of another start do not.
_JOBS = (
    *(("OPFUSE_JOB",), ("TORCHELASTIC_RUN_ID",), ("PMIX_NAMESPACE",), ("OMPI_MCA_ess_base_jobid",)),
    *(("PMI_JOBID",), ("SLURM_JOB_ID", "SLURM_STEP_ID"), ("SLURM_JOB_ID",)),
)
_STARTERS = ("hydra_", "mpiexec", "mpirun")  # MPICH and its like name no job: their process is it


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        local_rank: Its number on this host: that of its GPU.
        host, port: Where rank 0 can be met; the ports that follow are tried too.
        job: What tells these ranks from others that meet on the same host.
    """

    rank: int
    size: int
    local_rank: int
    host: str
    port: int
    job: str


def find(environment: Mapping[str, str] | None = None) -> World | None:
    """The world that a launcher has put this process into; None without a launcher.

    Raises:
        InputError: What a launcher says makes no sense, or does not tell where rank 0 is.
    """
    given = os.environ if environment is None else environment
    for names in _LAUNCHERS:
        if names[0] in given and names[1] in given:
            rank, size = (_number(given, name) for name in names[:2])
            local = _number(given, names[2]) if names[2] in given else rank
            if not 0 <= rank < size:
                raise InputError(
                    f"{names[0]}={rank} and {names[1]}={size} make no rank", "start all ranks anew"
                )
            return World(rank, size, local, *_meeting(given, size))
    return None


def _meeting(given: Mapping[str, str], size: int) -> tuple[str, int, str]:
    """Where rank 0 is, and the name of the job.

    mpirun and srun name no address: on one host it follows from the name of the job.
    """
    named = next((names for names in _JOBS if all(map(given.get, names))), ())
    job = " ".join(f"{name}={given[name]}" for name in named)
    local = next((_number(given, name) for name in _LOCAL_SIZES if name in given), size)
    if "MASTER_ADDR" not in given and local < size:
        raise InputError(
            f"{local} of {size} ranks are on this host, and nothing says where rank 0 is",
            "set MASTER_ADDR, and MASTER_PORT to a free port there, on all ranks",
        )
    if not job and "MASTER_ADDR" not in given:
        job = _starter()
    if not job and "MASTER_PORT" not in given:
        raise InputError(
            "nothing tells these ranks from those of another start",
            "set OPFUSE_JOB to a text that no other start has, on all ranks",
        )
    if "MASTER_PORT" in given:
        port = _number(given, "MASTER_PORT")
    else:
        digest = hashlib.sha256(job.encode()).digest()
        port = _PORTS[int.from_bytes(digest[:4], "big") % len(_PORTS)]
    own = port + ("TORCHELASTIC_RUN_ID" in given)  # torchrun itself listens on the port
    return given.get("MASTER_ADDR", HERE), own, f"{job} port={port} size={size}"


def _starter() -> str:
    """The process of an MPI launcher that this one comes from, and when it began; empty without."""
    process = os.getppid()
    try:
        while process > 1:
            text = Path(f"/proc/{process}/stat").read_text()
            name = text[text.index("(") + 1 : text.rindex(")")]
            fields = text[text.rindex(")") + 2 :].split()
            if name.startswith(_STARTERS):
                return f"{name}={process} since {fields[_BEGAN]}"
            process = int(fields[_PARENT])
    except (OSError, ValueError, IndexError):
        pass
    return ""


def _number(given: Mapping[str, str], name: str) -> int:
    text = given[name]
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise InputError(f"{name}={text!r} is no number", "start all ranks by one launcher")
    return number

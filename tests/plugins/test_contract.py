"""Every creator, driven as TensorRT drives it, without TensorRT: see contract/main.cpp."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = "".join(path.read_text() for path in HERE.parents[1].glob("plugins/*/*.cpp"))
OPS = sorted(re.findall(r"OPFUSE_REGISTER_OP\(opfuse::(\w+)\)", SOURCES))
TESTS = re.findall(r'\{"(\w+)", test_', (HERE / "contract" / "main.cpp").read_text())

Contract = tuple[Path, Path]


def run(contract: Contract, *arguments: str) -> subprocess.CompletedProcess[str]:
    program, plugins = contract
    sanitizers = {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run(
        [program, plugins, *arguments],
        env={**os.environ, **sanitizers},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("test", TESTS)
def test_contract(contract: Contract, test: str, op: str) -> None:
    done = run(contract, test, op)
    assert done.returncode == 0, done.stderr


def test_every_creator_and_test_is_listed(contract: Contract) -> None:
    done = run(contract, "--list")
    assert sorted(done.stdout.splitlines()) == sorted(f"{t} {o}" for t in TESTS for o in OPS)


def test_the_contract_can_fail(contract: Contract) -> None:
    """A test of an op that is not there must not pass."""
    done = run(contract, "identity", "NoSuchOp")
    assert done.returncode == 1
    assert "no creator of NoSuchOp" in done.stderr

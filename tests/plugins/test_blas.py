"""cuBLASLt is one of GemmAct's tactics where it is: here an empty library of its name plays it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BLAS = 14  # Tactic::kBlas
FUNCTIONS = [
    "cublasLtCreate", "cublasLtMatmul", "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate", "cublasLtMatmulDescSetAttribute", "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceSetAttribute", "cublasLtMatrixLayoutCreate",
]  # fmt: skip
# Prints, of each op with its attributes, its tactics, and the scratch memory that tactic 14 needs.
PROGRAM = """
import json, sys
from pathlib import Path
from opfuse.runtime import abi
library = abi.load(Path(sys.argv[1]))
tensors = [abi.Tensor(10, shape) for shape in ((128, 2048), (2048, 3072))]
found = []
for op, attributes in json.loads(sys.argv[2]):
    given = tensors + [abi.Tensor(10, (128, 3072))] * attributes.get("residual", 0)
    with abi.Plugin(library, op, attributes) as plugin:
        tactics = plugin.tactics(given)
    with abi.Plugin(library, op, {**attributes, "tactic": 14}) as plugin:
        found.append((tactics, plugin.workspace_size(given)))
print(json.dumps(found))
"""
FUSED: list[tuple[str, dict[str, object]]] = [
    ("GemmAct", {"activation": "none"}),
    ("GemmAct", {"activation": "none", "residual": 1}),
    ("GemmAct", {"activation": "relu"}),
    ("GemmAct", {"activation": "gelu_tanh"}),
]
NOT_FUSED: list[tuple[str, dict[str, object]]] = [
    ("GemmAct", {"activation": "gelu"}),
    ("GemmAct", {"activation": "silu"}),
    ("GemmAct", {"activation": "relu", "residual": 1}),
    ("GatedGemm", {"activation": "gelu_tanh"}),
]


def found_with(
    library: Path, folder: Path, ops: list[tuple[str, dict[str, object]]]
) -> list[tuple[list[int], int]]:
    """What PROGRAM prints where ``folder`` is looked into for libraries."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", PROGRAM, str(library), json.dumps(ops)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [(tactics, size) for tactics, size in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def blas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcublasLt.so.13 whose functions all fail."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("g++")
    if not compiler:
        pytest.skip("not run: it needs a C compiler")
    folder = tmp_path_factory.mktemp("blas")
    source = folder / "blas.c"
    source.write_text("".join(f"int {name}(void) {{ return 1; }}\n" for name in FUNCTIONS))
    output = str(folder / "libcublasLt.so.13")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", output, str(source)], check=True)
    return folder


def test_it_is_a_tactic_where_its_epilogue_is_the_same(plugin_library: Path, blas: Path) -> None:
    for (tactics, workspace), op in zip(
        found_with(plugin_library, blas, FUSED), FUSED, strict=True
    ):
        assert tactics[0] == BLAS, op
        assert len(tactics) > 1
        assert 1 << 20 <= workspace <= 32 << 20
    for (tactics, _), op in zip(
        found_with(plugin_library, blas, NOT_FUSED), NOT_FUSED, strict=True
    ):
        assert tactics, op
        assert BLAS not in tactics, op


def test_without_it_there_are_the_other_tactics(
    plugin_library: Path, blas: Path, tmp_path: Path
) -> None:
    for major in (12, 13):
        (tmp_path / f"libcublasLt.so.{major}").write_text("no library")
    without = found_with(plugin_library, tmp_path, FUSED)
    for others, whole in zip(without, found_with(plugin_library, blas, FUSED), strict=True):
        assert others[0] == whole[0][1:]

"""The house rules as tests: sizes, who imports whom, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "optimizer" / "opfuse"
MODULES = sorted(PACKAGE.rglob("*.py"))
PYTHON = sorted({*MODULES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("models/*.py")})
CUDA = sorted(p for p in ROOT.glob("plugins/**/*") if p.suffix in (".cu", ".cuh", ".cpp", ".h"))

FILE_LINES, FUNCTION_LINES = 400, 40
# A layer may import what stands at or below its own place. Leaves are free for all.
LAYERS = ("cli", "pipeline", "stages", "formats", "gate", "serving", "explanation", "precision")
LAYERS += ("sharding", "fusions", "graph", "leaf")
LEAVES = {"cache", "errors", "config", "files", "progress", "child", "shape_syntax", "opfuse"}
LEAVES |= {"lockfile"}
FRONT = {"cli", "__main__", "arguments", "terminal", "versions", "api", "__init__"}
NATIVE = {"engine", "runtime", "numerics"}
NATIVE_USERS = {"stages/build", "stages/prove", "stages/verify", "stages/library", "stages/shapes"}
NATIVE_USERS |= {"stages/bench", "stages/tune", "stages/precision", "stages/check"}
NATIVE_USERS |= {"stages/package", "stages/shard_proof", "serving/subject"}
NATIVE_USERS |= {"stages/members"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE).with_suffix(""))


def layer_of(name: str) -> str:
    top = name.split("/")[0]
    if top in FRONT:
        return "cli"
    if top in LEAVES:
        return "leaf"
    if top in ("bisecting", "checking", "original", "splitting", "together"):
        return "pipeline"
    return top


def run_time_imports(path: Path) -> set[str]:
    """The modules that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def our_imports(path: Path) -> set[str]:
    """The files of the package that a file imports, as ``graph/match``."""
    names = {name_of(module) for module in MODULES}
    found = {name.removeprefix("opfuse.").replace(".", "/") for name in run_time_imports(path)}
    return found & names


@pytest.mark.parametrize("path", [*PYTHON, *CUDA], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_are_short(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = [
        f"{node.name}: {length} lines"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, functions) and (length := code_lines(node)) > FUNCTION_LINES
    ]
    assert long == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it is useful."""
    total = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is None:
        return total
    return total - (first.end_lineno - first.lineno + 1)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    name = name_of(path)
    own = layer_of(name)
    if own in NATIVE:
        return
    upward = [
        other
        for other in our_imports(path)
        if layer_of(other) in LAYERS and LAYERS.index(layer_of(other)) < LAYERS.index(own)
    ]
    assert upward == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_native_code_is_reached_from_few_stages(path):
    name = name_of(path)
    if layer_of(name) in NATIVE or name in NATIVE_USERS:
        return
    assert [other for other in our_imports(path) if layer_of(other) in NATIVE] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_tensorrt_is_imported_in_two_places_only(path):
    if name_of(path).split("/")[0] in ("engine", "runtime"):
        return
    assert [name for name in run_time_imports(path) if name.startswith("tensorrt")] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_stages_do_not_run_each_other(path):
    """They may share types; only the pipeline knows their order."""
    name = name_of(path)
    if not name.startswith("stages/"):
        return
    shared = {"stages/load", "stages/normalise", "stages/report", "stages/report_text"}
    shared |= {"stages/explain_text", "stages/precision_text", "stages/check_text"}
    assert {other for other in our_imports(path) if other.startswith("stages/")} <= shared


def test_kernels_know_cuda_only():
    headers = [path for path in CUDA if path.suffix == ".cuh"]
    assert [path for path in headers if "NvInfer" in path.read_text()] == []


def tracked_text() -> list[Path]:
    """Every text file that git tracks, where this is a checkout."""
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    paths = [ROOT / name for name in listing.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix != ".onnx"]


def test_no_path_of_one_machine():
    machine = re.compile(r"(?<![\w.])/(?:work|root|farm|home)/\w")
    found = [path for path in tracked_text() if machine.search(path.read_text(errors="replace"))]
    assert found == []


def test_the_long_lines_rule_holds_for_cuda():
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in CUDA
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 100
    ]
    assert long == []

"""An engine or bundle -> the folder that a server loads it from, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import opfuse
from opfuse.errors import InputError, MissingComponent
from opfuse.files import check_output, file_hash, pending_folder, translated
from opfuse.runtime import bundle, library
from opfuse.serving import signature, triton
from opfuse.serving.ranks import Ranks, examine_ranks
from opfuse.serving.subject import Subject, examine

TWIN = "libopfuse_plugins_registered.so"
_FACTS = "opfuse.json"
_SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
_MODEL_PY = '''\
"""Written by opfuse package: runs the engine beside it, with the opfuse of Triton's Python."""

from pathlib import Path

from opfuse.runtime.triton import TritonModel


class TritonPythonModel(TritonModel):
    path = Path(__file__).with_name("{name}")
'''


@dataclass(frozen=True)
class Packaged:
    """What was written.

    Args:
        model: The name that clients ask for.
        folder: The model's folder in the repository.
        backend: Triton's: "tensorrt" for engines of TensorRT, "python" for all else.
        max_batch_size: Above 0, Triton joins requests along the first dimension.
        files: Every file, relative to the folder, with its SHA-256.
        serve: The command that starts the server, or the one and the other.
        notes: What one should know.
    """

    model: str
    folder: str
    backend: str
    max_batch_size: int
    files: Mapping[str, str]
    serve: tuple[str, ...]
    notes: tuple[str, ...]


def package(
    path: Path,
    repository: Path,
    name: str | None,
    report: Path | None,
    max_batch: int | None,
    plugin_library: Path | None,
) -> Packaged:
    """Writes a model into a Triton model repository.

    Args:
        path: The engine or bundle, or the folder of `opfuse shard` with an engine for each rank.
        repository: The folder of models; it is made where its parent is there.
        name: The model's name; None takes that of the file.
        report: The JSON report of the build; None takes the one beside the engine.
        max_batch: The largest batch that Triton may join; None decides.
        plugin_library: The library that the engine was built with; None takes the package's.

    Raises:
        InputError: The engine, the report, or the repository cannot be used.
        MissingComponent: Nobody knows the inputs: no report and no GPU; or there is no library.
    """
    name = path.stem if name is None else name
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is no name for a model", "give --name, of up to 128 letters and digits"
        )
    target = repository / name
    _check_target(repository, target)
    together = examine_ranks(path) if path.is_dir() else None
    engine = examine(path, report) if together is None else together.first
    _refuse_one_rank(engine, together)
    beside = _beside(engine, plugin_library)
    made = _described(engine, name, target, max_batch, beside)
    settings: tuple[str, ...] = ()
    if together is not None:
        made, settings = replace(made, notes=(*made.notes, *together.notes())), together.settings()
    remarks = ("Written by opfuse package.", *made.serve, *made.notes)
    ports = engine.ports
    text = triton.config(name, made.backend, ports, made.max_batch_size, remarks, settings)
    with _made(repository), pending_folder(target) as folder:
        (folder / "config.pbtxt").write_text(text)
        _write(folder, engine, made, beside)
        for rank, one in enumerate(() if together is None else together.engines):
            _add_rank(folder / "1", one.path, rank)
        files = {
            str(file.relative_to(folder)): file_hash(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        made = replace(made, files=files)
        (folder / _FACTS).write_text(json.dumps(_facts(engine, made), indent=1) + "\n")
    return made


@contextmanager
def _made(repository: Path) -> Iterator[None]:
    """Makes the folder of models; it goes again where nothing comes of it."""
    new = not repository.is_dir()
    with translated(repository):
        repository.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # it holds the model
                repository.rmdir()


def _check_target(repository: Path, target: Path) -> None:
    if not repository.is_dir():
        check_output(repository)
        if repository.exists():
            raise InputError(f"the repository {repository} is no folder", "name a folder")
        return
    if target.is_symlink() or (target.exists() and not (target / _FACTS).is_file()):
        raise InputError(
            f"{target} is there, and opfuse package has not written it",
            "remove it, or give the model another --name",
        )
    check_output(target / "x" if target.exists() else target)


def _beside(engine: Subject, explicit: Path | None) -> Path | None:
    """The plugin library that has to stand beside the engine; None where it needs none.

    Triton opens a library without asking it for anything: that takes the one that registers itself.

    Raises:
        MissingComponent: It is not there, or is for another TensorRT.
    """
    if not engine.plugins or engine.embedded:
        return None
    own = engine.path.parent / library.FILE_NAME
    found = own if explicit is None and own.is_file() else library.find(explicit)
    if not engine.for_tensorrt:
        return found
    twin = found.with_name(TWIN)
    if not twin.is_file():
        twin = library.find().with_name(TWIN)
    if not twin.is_file():
        raise MissingComponent(f"there is no {TWIN} beside {found}", "install opfuse again")
    headers = library.describe(found).headers
    if headers.split(".")[0] != engine.version.split(".")[0]:
        raise MissingComponent(
            f"{twin} was compiled for TensorRT {headers}, the engine was built by {engine.version}",
            "set TENSORRT_ROOT to that TensorRT and install opfuse again, or embed the plugins",
        )
    return twin


def _described(
    engine: Subject, name: str, target: Path, max_batch: int | None, beside: Path | None
) -> Packaged:
    command = f"tritonserver --model-repository={quote(str(target.parent))}"
    made = Packaged(name, str(target), "python", 0, {}, (command,), ())
    if not engine.for_tensorrt:
        low = [port.name for port in engine.ports if port.dtype == "bf16"]
        if low:
            raise InputError(
                f"{low[0]!r} is bf16, which Triton's Python backend cannot hand to NumPy",
                "build with inputs and outputs of another type (--io-precision keep)",
            )
        if max_batch:
            raise InputError(
                "--max-batch is for engines of TensorRT; the Python backend joins no requests",
                "leave it out: requests may have any batch that the engine takes",
            )
        needs = (
            f"Triton's Python needs pip install 'opfuse[run]=={opfuse.__version__}' "
            f"{engine.maker.replace('_', '-')}-cu13=={engine.version}"
        )
        return replace(made, notes=(needs,))
    serve = [command]
    notes = [f"Triton's TensorRT has to be {engine.version}: no other runs this engine"]
    if engine.embedded:
        serve = [f"{command} --backend-config=tensorrt,version-compatible=true"]
        notes.append("that flag lets Triton run the code that is in engines: serve your own only")
    elif beside is not None:
        twin = quote(str(target / "plugins" / beside.name))
        serve = [
            f"{command} --backend-config=tensorrt,plugins={twin}",
            f"LD_PRELOAD={twin} {command}",
        ]
        notes.append("one of the two, not both; the library serves all models of this opfuse")
    limit = signature.batch_limit(engine.ports, max_batch)
    if limit:
        notes.append(f"Triton may join requests to batches of up to {limit}")
    return replace(
        made, backend="tensorrt", max_batch_size=limit, serve=tuple(serve), notes=tuple(notes)
    )


def _write(folder: Path, engine: Subject, made: Packaged, beside: Path | None) -> None:
    version = folder / "1"
    version.mkdir()
    if made.backend == "tensorrt":
        file, place = version / "model.plan", folder / "plugins"
    else:
        suffix = ".opfuse" if bundle.is_bundle(engine.path) else ".engine"
        file, place = version / f"model{suffix}", version
        (version / "model.py").write_text(_MODEL_PY.format(name=file.name))
    shutil.copyfile(engine.path, file)
    if beside is not None:
        place.mkdir(exist_ok=True)
        shutil.copyfile(beside, place / beside.name)


def _refuse_one_rank(engine: Subject, together: Ranks | None) -> None:
    if engine.rank is not None and together is None:
        raise InputError(
            f"{engine.path} is rank {engine.rank['rank']} of {engine.rank['size']}, which does not "
            "run alone",
            "name the folder with the engines of all ranks; bundles take a process for each rank",
        )


def _add_rank(version: Path, engine: Path, rank: int) -> None:
    """The name that Triton looks for; it looks whether there is a model.plan as well."""
    file = version / f"model.plan.rank{rank}"
    shutil.copyfile(engine, file)
    if rank == 0:
        (version / "model.plan").unlink()
        (version / "model.plan").symlink_to(file.name)


def _facts(engine: Subject, made: Packaged) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "opfuse": opfuse.__version__,
        "built_by": {"tensorrt": engine.maker, "version": engine.version},
        "sha256": dict(made.files),
    }

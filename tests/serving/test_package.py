"""`opfuse package`: model repositories that are whole, of engines that nothing here can load."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace

import onnx
import pytest

import opfuse
from opfuse.cli import main
from opfuse.engine import gpu
from opfuse.errors import InputError, MissingComponent
from opfuse.runtime import library
from opfuse.runtime.schedule import Value
from opfuse.serving import subject
from tests.engine_models import plugins

SYMBOL = b"\0opfuse_tensorrt_headers\0"
needs_plugins = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")
needs_no_gpu = pytest.mark.skipif(not gpu.absent(), reason="a GPU would load the engine")


def report(digest, *, plugin_layers=None, version="10.14.1"):
    tensor = {"range": None, "dtype": "fp32"}
    return {
        "model": {
            "inputs": [{"name": "x", "dtype": "FLOAT", "shape": ["batch", 4]}],
            "outputs": [{"name": "y", "dtype": "FLOAT", "shape": ["batch", 2]}],
        },
        "engine": {
            "sha256": digest,
            "version": version,
            "plugin_layers": plugin_layers or {},
            "io": [
                {**tensor, "name": "x", "mode": "input", "shape": [-1, 4],
                 "range": [[1, 4], [2, 4], [8, 4]]},
                {**tensor, "name": "y", "mode": "output", "shape": [-1, 2]},
            ],
        },
    }  # fmt: skip


@pytest.fixture
def engine(tmp_path):
    """A file that begins as TensorRT's engines do, with its report beside it."""

    def make(content=b"weights", **facts):
        path = tmp_path / "net.engine"
        path.write_bytes(b"ftrt" + content)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(report(digest, **facts)))
        return path

    return make


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_engine_without_plugins(engine, tmp_path, parse_config):
    made = opfuse.package(engine(), tmp_path / "repository")
    model = tmp_path / "repository" / "net"
    assert files(tmp_path / "repository") == [
        "net/1/model.plan", "net/config.pbtxt", "net/opfuse.json"]  # fmt: skip
    assert (model / "1" / "model.plan").read_bytes() == b"ftrtweights"
    config = parse_config((model / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("net", "tensorrt", 8)
    assert [list(item.dims) for item in (*config.input, *config.output)] == [[4], [2]]
    assert made.serve == (f"tritonserver --model-repository={tmp_path / 'repository'}",)
    assert "10.14.1" in made.notes[0]
    facts = json.loads((model / "opfuse.json").read_text())
    for name, digest in facts["sha256"].items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest


def test_an_engine_that_holds_its_plugins(engine, tmp_path):
    made = opfuse.package(engine(SYMBOL, plugin_layers={"Rope": 2}), tmp_path)
    assert made.serve[0].endswith("--backend-config=tensorrt,version-compatible=true")
    assert not (tmp_path / "net" / "plugins").exists()


@needs_plugins
def test_an_engine_that_does_not(engine, tmp_path):
    headers = library.describe(plugins()).headers
    made = opfuse.package(engine(plugin_layers={"Rope": 2}, version=f"{headers}.9"), tmp_path)
    twin = tmp_path / "net" / "plugins" / "libopfuse_plugins_registered.so"
    assert twin.read_bytes() == plugins().with_name(twin.name).read_bytes()
    command = f"tritonserver --model-repository={tmp_path}"
    assert made.serve == (
        f"{command} --backend-config=tensorrt,plugins={twin}", f"LD_PRELOAD={twin} {command}"
    )  # fmt: skip
    remarks = (tmp_path / "net" / "config.pbtxt").read_text()
    assert all(f"# {line}\n" in remarks for line in made.serve)


@needs_plugins
def test_a_library_for_another_tensorrt(engine, tmp_path):
    with pytest.raises(MissingComponent, match=r"the engine was built by 99\.1"):
        opfuse.package(engine(plugin_layers={"Rope": 2}, version="99.1"), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_it_replaces_its_own_folder_at_once(engine, tmp_path):
    opfuse.package(engine(), tmp_path)
    old = (tmp_path / "net").stat().st_ino
    opfuse.package(engine(b"other"), tmp_path, max_batch=0)
    assert (tmp_path / "net" / "1" / "model.plan").read_bytes() == b"ftrtother"
    assert "max_batch_size: 0" in (tmp_path / "net" / "config.pbtxt").read_text()
    assert (tmp_path / "net").stat().st_ino != old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "net.engine", "net.json"]


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two"])
def test_a_failure_leaves_the_old_model(engine, tmp_path, monkeypatch, exchange):
    opfuse.package(engine(), tmp_path)
    before = {name: (tmp_path / "net" / name).read_bytes() for name in files(tmp_path / "net")}

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("opfuse.files._sync" if exchange else "shutil.copyfile", fail)
    with pytest.raises(InputError, match="no room to write"):
        opfuse.package(engine(b"other"), tmp_path)
    assert {n: (tmp_path / "net" / n).read_bytes() for n in files(tmp_path / "net")} == before
    with pytest.raises(InputError, match="no room to write"):
        opfuse.package(tmp_path / "net.engine", tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net", "net.engine", "net.json"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.write_bytes(b""), "empty"),
        (lambda p: p.write_bytes(b"\x89PNG"), "a PNG image"),
        (lambda p: p.write_bytes(b"some text"), "a text file"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "is damaged"),
        (lambda p: p.unlink(), "No such file"),
        (lambda p: (p.unlink(), p.mkdir()), "has no plan.json of opfuse shard"),
    ],
    ids=["empty", "image", "text", "zip", "missing", "folder"],
)
def test_files_that_are_no_engines(engine, tmp_path, change, says):
    path = engine()
    change(path)
    with pytest.raises(InputError, match=says):
        opfuse.package(path, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@needs_no_gpu
def test_without_a_report_nobody_knows_the_inputs(engine, tmp_path):
    path = engine()
    path.write_bytes(b"ftrt of another build")
    with pytest.raises(MissingComponent, match="only TensorRT can tell") as caught:
        opfuse.package(path, tmp_path / "r")
    assert "--build-report" in caught.value.fix


class Loaded:
    """An engine as TensorRT would tell of it on a GPU."""

    inputs = (Value("x", onnx.TensorProto.FLOAT16, ("?", 4)),)
    outputs = (Value("y", onnx.TensorProto.INT64, ("?",)),)

    def usual_shapes(self):
        return {"x": (2, 4)}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_on_a_gpu_tensorrt_tells_the_inputs(engine, tmp_path, monkeypatch, parse_config):
    path = engine()
    path.with_suffix(".json").unlink()
    monkeypatch.setattr(gpu, "absent", lambda: "")
    monkeypatch.setattr(subject.Engine, "load", lambda path: Loaded())
    monkeypatch.setattr(subject, "import_module", lambda _: SimpleNamespace(__version__="10.14.1"))
    made = opfuse.package(path, tmp_path)
    assert "10.14.1" in made.notes[0]
    config = parse_config((tmp_path / "net" / "config.pbtxt").read_text())
    assert config.max_batch_size == 0  # nobody knows what the first dimension is
    assert [list(item.dims) for item in (*config.input, *config.output)] == [[-1, 4], [-1]]
    assert list(config.model_warmup[0].inputs["x"].dims) == [2, 4]
    assert opfuse.package(path, tmp_path, max_batch=4).max_batch_size == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is no report"), ("[" * 100_000, "is no report"), ("[]", "is no report"),
     ('{"engine": null}', "is no report"), ('{"engine": {"sha256": "0"}}', "another engine")],
)  # fmt: skip
def test_reports_of_something_else(engine, tmp_path, text, says):
    path = engine()
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=says):
        opfuse.package(path, tmp_path / "r", report=tmp_path / "r.json")
    with pytest.raises(InputError, match="No such file"):
        opfuse.package(path, tmp_path / "r", report=tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": None}, "not iterable"),
        ({"shape": ["x", 4]}, r"cannot have the shape \['x', 4\]"),
        ({"shape": [-2, 4]}, "cannot have the shape"),
        ({"shape": [True, 4]}, "cannot have the shape"),
        ({"range": [[1, 4], [2, 4]]}, "not enough values"),
        ({"range": "abc"}, "cannot have the shape"),
        ({"range": [[1, 4], [2], [8, 4]]}, "cannot have the shape"),
        ({"range": [[1, 4], [2, 5], [8, 4]]}, "cannot have the shape"),
        ({"range": [[0, 4], [2, 4], [8, 4]]}, "cannot have the shape"),
        ({"name": 5}, "is no tensor"),
        ({"name": ""}, "is no tensor"),
        ({"dtype": None}, "is no tensor"),
        ({"dtype": "fp8"}, "which Triton has not"),
        ({"mode": "both"}, "not in tuple"),
    ],
    ids=str,
)
def test_reports_with_something_wrong_in_them(engine, tmp_path, change, says):
    path = engine()
    facts = json.loads(path.with_suffix(".json").read_text())
    facts["engine"]["io"][0] |= change
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=says):
        opfuse.package(path, tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("lost", ["io", "version", "plugin_layers"])
def test_a_report_that_lacks_something(engine, tmp_path, lost):
    path = engine()
    facts = json.loads(path.with_suffix(".json").read_text())
    del facts["engine"][lost]
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=f"lacks '{lost}'"):
        opfuse.package(path, tmp_path / "r")


def test_a_report_without_outputs(engine, tmp_path):
    path = engine()
    facts = json.loads(path.with_suffix(".json").read_text())
    facts["engine"]["io"].pop()
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="no outputs"):
        opfuse.package(path, tmp_path / "r")


def test_repositories_that_cannot_be(engine, tmp_path):
    path = engine()
    (tmp_path / "file").touch()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "net").mkdir()
    (tmp_path / "others" / "link").symlink_to(tmp_path)
    for repository, name, says in [
        (tmp_path / "file", None, "is no folder"),
        (tmp_path / "not" / "there", None, "does not exist"),
        (tmp_path / "others", None, "has not written it"),
        (tmp_path / "others", "link", "has not written it"),
        (tmp_path, "..", "is no name"),
        (tmp_path, "a/b", "is no name"),
        (tmp_path, "", "is no name"),
        (tmp_path, ".hidden", "is no name"),
        (tmp_path, "a" * 129, "is no name"),
    ]:
        with pytest.raises(InputError, match=says):
            opfuse.package(path, repository, name=name)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "no model repository"),
        (["--triton", "r", "--max-batch", "-1"], 2, "negative"),
        (["--triton", "r", "--max-batch", "9"], 2, "batches of 1 to 8"),
        (["--triton", "r"], 0, ""),
    ],
)
def test_the_command(engine, tmp_path, monkeypatch, capsys, options, code, says):
    monkeypatch.chdir(tmp_path)
    assert main(["package", str(engine()), *options]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    if code == 0:
        assert "tritonserver --model-repository=r" in captured.out
        assert main(["package", "net.engine", "--triton", "r", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["backend"] == "tensorrt"


def test_an_engine_of_tensorrt_for_rtx_is_served_by_the_python_backend(engine, tmp_path):
    path = engine()
    path.write_bytes(b"vtrt" + bytes(20) + bytes([1, 7, 1, 116]))
    facts = report(hashlib.sha256(path.read_bytes()).hexdigest(), version="1.7.1.116")
    path.with_suffix(".json").write_text(json.dumps(facts))
    made = opfuse.package(path, tmp_path)
    assert (made.backend, made.max_batch_size) == ("python", 0)
    assert files(tmp_path / "net") == [
        "1/model.engine",
        "1/model.py",
        "config.pbtxt",
        "opfuse.json",
    ]
    with pytest.raises(InputError, match="joins no requests"):
        opfuse.package(path, tmp_path, max_batch=4)
    for item in facts["engine"]["io"]:
        item["dtype"] = "bf16"
    path.with_suffix(".json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="'x' is bf16"):
        opfuse.package(path, tmp_path)

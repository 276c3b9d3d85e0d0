"""The .opfuse file: equal contents give equal bytes, and no byte of it can change unnoticed."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile

import pytest

from opfuse.errors import InputError
from opfuse.runtime import bundle
from opfuse.runtime.bundle import Bundle, write
from opfuse.runtime.schedule import EngineStep, PluginStep, Schedule, Value

SCHEDULE = Schedule(
    inputs=(Value("x", 1, ("batch", 4)),),
    outputs=(Value("y", 1, ("batch", 4)),),
    between=(Value("h", 1, ("batch", 4)),),
    constants=(Value("gamma", 1, (4,)),),
    steps=(
        EngineStep.alone("engines/0", ("x",), ("h",)),
        PluginStep("RmsNorm", "'n' (RmsNorm)", {"epsilon": 1e-6}, ("h", "gamma"), ("y",)),
    ),
)
LOCK = {
    "module": "tensorrt_rtx",
    "tensorrt": "1.4.0.76",
    "gpu": None,
    "library": "",
    "architectures": [],
    "opfuse": "0.1.0",
}
MANIFEST = {
    "schedule": SCHEDULE.as_dict(),
    "lock": LOCK,
    "constants": {"gamma": "constants/0"},
    "profile": {"x": [[1, 4], [1, 4], [8, 4]]},
}
MEMBERS = {"engines/0": b"an engine" * 50, "constants/0": bytes(16), "fused.onnx": b"a model"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.opfuse"
    write(path, MANIFEST, MEMBERS)
    return path


def test_what_was_written_is_read(path):
    opened = Bundle.open(path)
    assert opened.schedule == SCHEDULE
    assert opened.read("engines/0") == MEMBERS["engines/0"]
    assert opened.constants == {"gamma": "constants/0"}
    assert opened.holds("fused.onnx")
    assert bundle.is_bundle(path)


def test_equal_contents_give_equal_bytes(path, tmp_path):
    other = tmp_path / "other.opfuse"
    digest, size = write(other, MANIFEST, MEMBERS)
    assert other.read_bytes() == path.read_bytes()
    assert size == len(other.read_bytes())
    assert hashlib.sha256(other.read_bytes()).hexdigest() == digest


def test_members_may_be_files(path, tmp_path):
    (tmp_path / "model").write_bytes(MEMBERS["fused.onnx"])
    other = tmp_path / "other.opfuse"
    write(other, MANIFEST, {**MEMBERS, "fused.onnx": tmp_path / "model"})
    assert other.read_bytes() == path.read_bytes()


def test_any_zip_tool_reads_it(path):
    command = [sys.executable, "-m", "zipfile", "-t", str(path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    with zipfile.ZipFile(path) as archive:
        assert json.loads(archive.read("manifest.json"))["schema"] == 3


def test_every_flipped_byte_is_refused(path):
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 150)
    for place in [0, len(whole) - 1, *places]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError) as error:
            Bundle.open(path)
        assert "build it again" in error.value.fix


def test_the_damaged_member_is_named(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"an engine", b"AN engine", 1))
    with pytest.raises(InputError, match=r"damaged: engines/0 differs"):
        Bundle.open(path)


def test_a_truncated_file_is_refused(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="no opfuse bundle, or is damaged"):
        Bundle.open(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_what_is_no_bundle_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(InputError, match="no opfuse bundle"):
        Bundle.open(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*no such"):
        Bundle.open(tmp_path / "no such.opfuse")


@pytest.mark.parametrize(("schema", "fix"), [(2, "^build it again"), (4, "^update opfuse")])
def test_another_format_is_refused(path, monkeypatch, schema, fix):
    monkeypatch.setattr(bundle, "SCHEMA", schema)
    write(path, MANIFEST, MEMBERS)
    monkeypatch.undo()
    with pytest.raises(InputError, match=f"has format {schema}, this opfuse reads 3") as refused:
        Bundle.open(path)
    assert re.match(fix, refused.value.fix)


def test_a_manifest_that_lacks_something_is_refused(path):
    write(path, {"schedule": SCHEDULE.as_dict(), "lock": LOCK}, MEMBERS)
    with pytest.raises(InputError, match="its manifest lacks 'constants'"):
        Bundle.open(path)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_add", full)
    with pytest.raises(InputError, match="no room"):
        write(path, MANIFEST, MEMBERS)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["x.opfuse"]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (SCHEDULE.steps[::-1], "step 0 reads 'h' before it is written"),
        (SCHEDULE.steps[:1], "no step writes the output 'y'"),
        ((*SCHEDULE.steps, SCHEDULE.steps[0]), "step 2 writes 'h', which is not its to write"),
    ],
)
def test_a_schedule_in_the_wrong_order_is_refused(path, steps, message):
    broken = Schedule(
        SCHEDULE.inputs, SCHEDULE.outputs, SCHEDULE.between, SCHEDULE.constants, steps
    )
    write(path, {**MANIFEST, "schedule": broken.as_dict()}, MEMBERS)
    with pytest.raises(InputError, match=message):
        Bundle.open(path)


def test_lifetimes_are_from_the_first_to_the_last_step_that_touches():
    assert SCHEDULE.lifetimes() == {"h": (0, 1)}

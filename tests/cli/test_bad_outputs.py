"""Outputs that cannot be written: exit code 2, and what was there stays as it was."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from models import tiny


def test_output_folder_missing(cli, llama, tmp_path):
    path = tmp_path / "no" / "out.onnx"
    cli("fuse", llama, "-o", path).refused(2, str(path.parent), "does not exist", "mkdir -p")
    assert not path.parent.exists()


def test_output_is_a_directory(cli, llama, tmp_path):
    cli("fuse", llama, "-o", tmp_path).refused(2, str(tmp_path), "is a directory")


def test_output_folder_is_a_file(cli, llama):
    cli("fuse", llama, "-o", llama / "out.onnx").refused(2, str(llama), "is not a directory")


def test_output_below_a_file(cli, llama):
    path = llama / "no" / "out.onnx"
    cli("fuse", llama, "-o", path).refused(2, str(path.parent), "Not a directory")


def test_output_is_a_link_to_itself(cli, llama, tmp_path):
    path = tmp_path / "loop"
    path.symlink_to(path)
    cli("fuse", llama, "-o", path).refused(2, str(path), "symbolic links")
    assert path.is_symlink()


def test_output_name_too_long(cli, llama, tmp_path):
    cli("fuse", llama, "-o", tmp_path / ("x" * 300)).refused(2, "File name too long")


def test_a_dash_is_no_output(cli, llama):
    cli("fuse", llama, "-o", "-").refused(2, "nothing goes to stdout")


def test_a_link_is_replaced_and_its_target_kept(cli, llama, tmp_path, old_output):
    link = tmp_path / "link.onnx"
    link.symlink_to(old_output)
    assert cli("fuse", llama, "-o", link, "--no-prove").code == 0
    assert not link.is_symlink()


def test_output_is_a_device_and_stays_one(cli, llama):
    cli("fuse", llama, "-o", os.devnull).refused(2, os.devnull, "not a regular file")
    assert not os.path.isfile(os.devnull)


def test_output_folder_not_writable(spawn, llama, tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    result = spawn("fuse", llama, "-o", folder / "out.onnx", powerless=True)
    result.refused(2, str(folder), "not writable")
    assert list(folder.iterdir()) == []


def test_output_file_not_writable(spawn, llama, old_output):
    old_output.chmod(0o444)
    result = spawn("fuse", llama, "-o", old_output, powerless=True)
    result.refused(2, str(old_output), "not writable")


@pytest.mark.parametrize("name", ["r.yaml", "r", "r.SARIF"])
def test_report_of_unknown_format(cli, llama, old_output, tmp_path, name):
    result = cli("fuse", llama, "-o", old_output, "--report", tmp_path / name)
    result.refused(2, name, ".json")


def test_report_folder_missing(cli, llama, old_output, tmp_path):
    result = cli("fuse", llama, "-o", old_output, "--report", tmp_path / "no" / "r.json")
    result.refused(2, str(tmp_path / "no"))


@pytest.mark.parametrize("command", ["build", "fuse"])
@pytest.mark.parametrize("linked", [None, "symlink_to", "hardlink_to"])
def test_an_output_does_not_replace_its_model(cli, llama, tmp_path, command, linked):
    before, output = llama.read_bytes(), llama
    if linked:
        output = tmp_path / "linked.onnx"
        getattr(output, linked)(llama)
    cli(command, llama, "-o", output).refused(2, str(output), "the model itself", "another name")
    cli(command, output, "-o", llama).refused(2, str(llama), "the model itself")
    assert llama.read_bytes() == before == output.read_bytes()


def test_a_fused_model_does_not_replace_its_own_weights(cli, tmp_path):
    model = tiny.llama(layers=1).write(tmp_path / "big.onnx", external=True)
    data = tmp_path / "big.onnx.data"
    before = data.read_bytes()
    cli("fuse", model, "-o", data).refused(2, str(data), "the model itself")
    assert data.read_bytes() == before


@pytest.mark.parametrize("command", ["explain", "fuse"])
def test_a_report_does_not_replace_the_model(cli, llama, tmp_path, command):
    model = llama.rename(tmp_path / "model.json")
    before = model.read_bytes()
    output = ["-o", tmp_path / "f.onnx"] if command == "fuse" else []
    cli(command, model, *output, "--report", model).refused(2, str(model), "the model itself")
    assert model.read_bytes() == before


def test_a_comparison_does_not_replace_a_model(cli, llama, tmp_path):
    model = llama.rename(tmp_path / "model.json")
    result = cli("verify", model, model, "--report", model)
    result.refused(2, str(model), "the model itself")


def test_a_timing_cache_does_not_replace_the_model(cli, llama, old_output):
    result = cli("build", llama, "-o", old_output, "--timing-cache", llama)
    result.refused(2, str(llama), "the model itself")


def test_timing_cache_folder_missing(cli, llama, old_output, tmp_path):
    result = cli("build", llama, "-o", old_output, "--timing-cache", tmp_path / "no" / "cache")
    result.refused(2, str(tmp_path / "no"), "mkdir -p")


@pytest.mark.parametrize(
    "options",
    [
        ["fuse", "-o", "x.json", "--report", "x.json"],
        ["fuse", "-o", "x.json", "--report", "./y/../x.json"],
        ["fuse", "-o", "x.onnx", "--report", "y.json", "--report", "y.json"],
        ["explain", "--report", "y.json", "--report", "y.json"],
        ["build", "-o", "x.engine", "--timing-cache", "x.engine"],
    ],
    ids=" ".join,
)
def test_one_file_for_two_outputs(cli, llama, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "y").mkdir()
    command, *rest = options
    cli(command, llama, *rest).refused(2, "is named for two outputs", "a file of its own")
    assert sorted(path.name for path in tmp_path.iterdir()) == [llama.name, "y"]


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_full_disk(spawn, llama, old_output):
    """A limit on the file size stands for a full disk: writes fail half way just the same."""
    result = spawn(
        "fuse", llama, "-o", old_output, "--no-prove", preexec_fn=limit_file_size
    )  # fmt: skip
    result.refused(2, str(old_output), "bytes needed", "bytes free")


def test_full_disk_for_the_data_file(spawn, tmp_path, old_output):
    model = tiny.llama(layers=1).write(tmp_path / "big.onnx", external=True)
    result = spawn("fuse", model, "-o", old_output, "--no-prove", preexec_fn=limit_file_size)
    result.refused(2, str(old_output), "bytes needed", "bytes free")
    assert list(tmp_path.glob("*.data")) == [tmp_path / "big.onnx.data"]


def test_full_disk_for_temporary_files(cli, llama, old_output, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    result = cli("fuse", llama, "-o", old_output)
    result.refused(2, "no room for temporary files in", "TMPDIR")


def test_needed_bytes_are_compared_with_the_free_ones(cli, llama, old_output, monkeypatch):
    usage = type("Usage", (), {"free": 1000, "total": 10**9})
    monkeypatch.setattr("opfuse.files.shutil.disk_usage", lambda path: usage)
    result = cli("fuse", llama, "-o", old_output, "--no-prove")
    result.refused(2, "bytes needed", "1000 bytes free")

"""Weights beside the model: missing, short, or elsewhere; none of it reaches a native library."""

from __future__ import annotations

import os

import onnx
import pytest

from models import tiny


@pytest.fixture
def model(tmp_path):
    """A model in a folder of its own, with its weights in ``llama.onnx.data``."""
    folder = tmp_path / "model"
    folder.mkdir()
    return tiny.llama(layers=1).write(folder / "llama.onnx", external=True)


@pytest.fixture
def data(model):
    return model.with_name("llama.onnx.data")


def rewrite(model, tensor, **entries):
    """Change the external data entries of one tensor; None removes the entry."""
    proto = onnx.load(model, load_external_data=False)
    weight = next(item for item in proto.graph.initializer if item.name == tensor)
    kept = {entry.key: entry.value for entry in weight.external_data} | entries
    del weight.external_data[:]
    for key, value in kept.items():
        if value is not None:
            weight.external_data.add(key=key, value=str(value))
    model.write_bytes(proto.SerializeToString())


def test_missing(cli, model, data, old_output):
    data.unlink()
    cli("fuse", model, "-o", old_output).refused(2, str(model), data.name, "'embed.weight'")


def test_truncated(cli, model, data, old_output):
    size = data.stat().st_size
    os.truncate(data, size - 1)
    result = cli("fuse", model, "-o", old_output)
    result.refused(2, data.name, f"must hold {size} bytes and holds {size - 1}", "'lm_head.weight'")


def test_huge_length(cli, model, old_output):
    rewrite(model, "lm_head.weight", length=10**15)
    cli("fuse", model, "-o", old_output).refused(2, "'lm_head.weight'", str(10**15))


@pytest.mark.parametrize("offset", ["-4096", "zero", "1e3", "٣"])
def test_bad_offset(cli, model, old_output, offset):
    rewrite(model, "lm_head.weight", offset=offset)
    cli("fuse", model, "-o", old_output).refused(2, "'lm_head.weight'", "offset")


def test_no_location(cli, model, old_output):
    rewrite(model, "lm_head.weight", location=None)
    cli("fuse", model, "-o", old_output).refused(2, "'lm_head.weight'", "names no file")


@pytest.mark.parametrize(
    "location",
    ["../secret", "a/../../secret", "/etc/passwd", "C:\\secret", "..\\secret", "a/\0b"],
)
def test_outside_the_folder(cli, model, old_output, location):
    model.parent.with_name("secret").write_bytes(bytes(1 << 20))
    rewrite(model, "lm_head.weight", location=location)
    cli("fuse", model, "-o", old_output).refused(2, "outside the model's folder")


def test_symbolic_link(cli, model, data, old_output, tmp_path):
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    cli("fuse", model, "-o", old_output).refused(2, data.name, "symbolic link", "cp -L")


def test_symbolic_link_to_a_folder(cli, model, data, old_output, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    data.rename(tmp_path / "elsewhere" / data.name)
    (model.parent / "sub").symlink_to(tmp_path / "elsewhere")
    proto = onnx.load(model, load_external_data=False)
    for name in [weight.name for weight in proto.graph.initializer if weight.external_data]:
        rewrite(model, name, location=f"sub/{data.name}")
    cli("fuse", model, "-o", old_output).refused(2, "symbolic link")


def test_hard_link(cli, model, data, old_output, tmp_path):
    os.link(data, tmp_path / "other name")
    cli("fuse", model, "-o", old_output).refused(2, data.name, "hard links")


def test_data_file_is_a_folder(cli, model, data, old_output):
    data.unlink()
    data.mkdir()
    cli("fuse", model, "-o", old_output).refused(2, data.name, "not a regular file")


def test_a_folder_below_the_model_is_allowed(cli, model, data, tmp_path):
    (model.parent / "sub").mkdir()
    data.rename(model.parent / "sub" / data.name)
    proto = onnx.load(model, load_external_data=False)
    for name in [weight.name for weight in proto.graph.initializer if weight.external_data]:
        rewrite(model, name, location=f"sub/{data.name}")
    result = cli("fuse", model, "-o", tmp_path / "out.onnx", "--no-prove")
    assert result.code == 0, result.err

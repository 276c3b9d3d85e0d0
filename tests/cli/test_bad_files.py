"""Paths and files that are no model: exit code 2, one message, nothing written."""

from __future__ import annotations

import os
import random

import pytest

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
SAFETENSORS = (64).to_bytes(8, "little") + b'{"w": {"dtype": "F32"}}' + bytes(64)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


def test_missing_file(cli, tmp_path, old_output):
    path = tmp_path / "no.onnx"
    cli("fuse", path, "-o", old_output).refused(2, str(path), "does not exist")


def test_directory(cli, tmp_path, old_output):
    cli("fuse", tmp_path, "-o", old_output).refused(2, str(tmp_path), "is a directory")


def test_fifo_is_refused_and_not_waited_for(cli, tmp_path, old_output):
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    cli("fuse", path, "-o", old_output).refused(2, str(path), "not a regular file")


def test_unreadable_file(spawn, llama):
    llama.chmod(0)
    spawn("explain", llama, powerless=True).refused(2, str(llama), "Permission denied")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (PNG, "a PNG image"),
        (b"Dear model,\nplease be fused.\n", "a text file"),
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (POINTER, "a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(64), "a zip archive"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(64), "a PyTorch checkpoint"),
        (SAFETENSORS, "a safetensors file"),
        (b"ftrt" + bytes(64), "a TensorRT engine"),
        (random.Random(0).randbytes(4096), "not an ONNX model"),
    ],
    ids=[
        "empty", "png", "text", "html", "lfs", "zip", "torch", "safetensors", "engine", "random",
    ],
)  # fmt: skip
def test_wrong_content(cli, tmp_path, old_output, content, says):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    cli("fuse", path, "-o", old_output).refused(2, str(path), says)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_never_pass(cli, tmp_path, old_output, seed):
    source = random.Random(seed)
    path = tmp_path / "model.onnx"
    path.write_bytes(source.randbytes(source.randrange(1, 400)))
    cli("fuse", path, "-o", old_output).refused(2, str(path), "not an ONNX model")


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_truncated_protobuf(cli, llama, old_output, share):
    data = llama.read_bytes()
    llama.write_bytes(data[: int(len(data) * share)])
    cli("fuse", llama, "-o", old_output).refused(2, str(llama))


def test_a_flipped_byte_is_refused_or_harmless(cli, llama, tmp_path):
    data = bytearray(llama.read_bytes())
    source = random.Random(0)
    for _ in range(150):
        broken = bytearray(data)
        broken[source.randrange(len(data))] ^= 1 << source.randrange(8)
        llama.write_bytes(broken)
        result = cli("explain", llama)
        assert result.code in (0, 2), result.err
        if result.code:
            result.refused(2, str(llama))

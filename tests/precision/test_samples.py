"""Calibration files: one sample or several, and every way in which one does not fit."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from opfuse.errors import InputError
from opfuse.precision.samples import read
from tests.small import model

GRAPH = model("y = Mul(x, w)\nz = Identity(n)", "T[B, 4] x, int64[B] n", "T y, int64 z",
              weights={"w": (4,)}).graph  # fmt: skip


def written(folder, name="a.npz", **arrays):
    np.savez(folder / name, **arrays)
    return folder / name


def test_one_sample_and_several_in_the_order_of_the_files(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    one = written(tmp_path, "one.npz", x=x[0], n=np.array([1, 2]))
    three = written(tmp_path, "three.npz", x=x, n=np.array([5, 6]), other=np.ones(3))
    samples = read([one, three], GRAPH)
    assert len(samples) == 4
    assert [float(sample["x"][0, 0]) for sample in samples] == [0, 0, 8, 16]
    assert [sample["n"].tolist() for sample in samples] == [[1, 2]] + [[5, 6]] * 3
    assert {sample["x"].dtype for sample in samples} == {np.dtype(np.float32)}


def test_doubles_become_what_the_input_is(tmp_path):
    (sample,) = read([written(tmp_path, x=np.ones((2, 4)), n=np.array([1, 2], np.int32))], GRAPH)
    assert (sample["x"].dtype, sample["n"].dtype) == (np.float32, np.int64)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((2, 4))}, "no array 'n'"),
        ({"x": np.ones((2, 5)), "n": np.ones(2, int)}, r"shape \[2, 5\]"),
        ({"x": np.ones(4), "n": np.ones(2, int)}, r"shape \[4\]"),
        ({"x": np.ones((2, 4)), "n": np.ones(2)}, "'n' is float64"),
        ({"x": np.ones((2, 4), int), "n": np.ones(2, int)}, "'x' is int64"),
        ({"x": np.ones((2, 4)), "n": np.array(["a", "b"])}, "'n' is <U1"),
        ({"x": np.ones((2, 4)), "n": np.ones(2, complex)}, "'n' is complex128"),
        ({"x": np.ones((2, 4)), "n": np.ones(2, "M8[s]")}, "'n' is datetime64"),
        ({"x": np.ones((3, 2, 4)), "n": np.ones((2, 2), int)}, "different numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit(tmp_path, arrays, says):
    with pytest.raises(InputError, match=says):
        read([written(tmp_path, **arrays)], GRAPH)


def test_files_that_are_none(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "single.npy", np.ones(3))
    for name, says in (("gone.npz", "does not exist"), ("text.npz", "cannot be read")):
        with pytest.raises(InputError, match=says):
            read([tmp_path / name], GRAPH)
    with pytest.raises(InputError, match="cannot be read"):
        read([tmp_path / "single.npy"], GRAPH)


HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (9999999999999,)}"


def npy(header):
    """An array file of nothing but its header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    ("member", "content", "says"),
    [
        ("x.npy", npy("{'descr': oops}"), "cannot be read"),
        ("x.npy", npy(HEADER), "cannot be read"),
        ("x.npy", npy("{'descr': ((("), "cannot be read"),
        ("x", b"text", "no array 'x', 'n'"),
    ],
    ids=["no header", "terabytes", "cut header", "no array"],
)
def test_members_that_are_no_arrays(tmp_path, member, content, says):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr(member, content)
    with pytest.raises(InputError, match=says):
        read([tmp_path / "a.npz"], GRAPH)


def test_an_empty_file_and_a_damaged_archive(tmp_path):
    (tmp_path / "empty.npz").touch()
    np.savez_compressed(tmp_path / "cut.npz", x=np.arange(8000.0).reshape(1, -1), n=np.ones(1))
    content = bytearray((tmp_path / "cut.npz").read_bytes())
    content[200:260] = b"\xff" * 60
    (tmp_path / "cut.npz").write_bytes(content)
    for name in ("empty.npz", "cut.npz"):
        with pytest.raises(InputError, match="cannot be read"):
            read([tmp_path / name], GRAPH)

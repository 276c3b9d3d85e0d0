"""The file opfuse.lock, whoever its sections belong to."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from opfuse import lockfile
from opfuse.errors import InputError

LOCK = {"format": 1, "verdicts": {"b": [1.5, None], "a": "é"}, "fusions": {"X": {"fused": 3}}}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / lockfile.NAME
    lockfile.write(path, LOCK)
    assert lockfile.read(path) == LOCK
    assert path.read_text() == lockfile.as_text(dict(reversed(LOCK.items())))


def test_sections_of_others_stay():
    merged = lockfile.merged(LOCK, {"fusions": {}, "proof": None})
    assert merged == {**LOCK, "fusions": {}, "proof": None}
    assert lockfile.merged({}, {"verdicts": 1}) == {"format": 1, "verdicts": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is no lock: Expecting value"),
        (b"\xff\xfe", "it is not text"),
        (b"3", "no number 'format'"),
        (b'{"format": true}', "no number 'format'"),
        (b'{"format": "1"}', "no number 'format'"),
        (b'{"format": 2}', "has format 2, this opfuse reads format 1"),
        (b'{"format": 1, "a": 1, "a": 2}', "'a' is in it twice"),
        (b'{"format": 1, "a": Infinity}', "Infinity is no number"),
        (b'{"format": 1, "a": 1e999}', "1e999 is no number"),
        (b'{"format": 1\n<<<<<<< ours\n', "is no lock: "),
        (b"[" * 100_000, "is no lock: "),
    ],
    ids=lambda value: str(value)[:25],
)
def test_what_is_no_lock(tmp_path, text, says):
    path = tmp_path / lockfile.NAME
    path.write_bytes(text)
    with pytest.raises(InputError) as caught:
        lockfile.read(path)
    assert says in caught.value.what
    assert caught.value.fix


def test_no_file_and_no_file_that_can_be_read(tmp_path):
    with pytest.raises(InputError, match="there is no lock"):
        lockfile.read(tmp_path / "gone.lock")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero"), tmp_path / "a" / "b\0"):
        with pytest.raises(InputError):
            lockfile.read(path)


def test_the_line_of_a_value():
    text = lockfile.as_text(LOCK)
    lines = text.splitlines()
    assert lines[lockfile.line_of(text, "fusions", "X", "fused") - 1].strip() == '"fused": 3'
    assert lines[lockfile.line_of(text, "verdicts", "a") - 1].strip() == '"a": "\\u00e9",'
    assert lockfile.line_of(text, "verdicts", "gone") == lockfile.line_of(text, "verdicts")
    assert lockfile.line_of(text, "gone") == 1
    nested = lockfile.as_text({"model": {"outputs": {"y": 1}}, "outputs": {"y": 2}})
    assert nested.splitlines()[lockfile.line_of(nested, "outputs", "y") - 1].strip() == '"y": 2'
    assert lockfile.line_of(json.dumps(LOCK), "fusions", "X") == 1

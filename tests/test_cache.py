"""The cache: whole entries or none, whatever happens to the files and to the processes."""

from __future__ import annotations

import hashlib
import io
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opfuse.cache import Cache, check_folder
from opfuse.errors import InputError, TimeLimit

KEY = "0" * 63 + "1"


def silent():
    pass


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", 1 << 20)


@pytest.fixture
def put(cache, tmp_path):
    def run(key=KEY, data=b"an engine", facts=None, into=None):
        content = tmp_path / "content"
        content.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        return (into or cache).put("engines", key, facts or {"a": [1, None, "x"]}, content, digest)

    return run


def got(cache, key=KEY):
    target = io.BytesIO()
    facts = cache.get("engines", key, target)
    return facts and (facts, target.getvalue())


def entry(cache, key=KEY):
    return cache.folder / "v1" / "engines" / key


def test_what_is_put_is_got(cache, put):
    assert got(cache) is None
    assert put()
    assert got(cache) == ({"a": [1, None, "x"]}, b"an engine")
    assert got(cache, "2" * 64) is None
    assert cache.notes == []
    assert (cache.folder / "CACHEDIR.TAG").read_bytes().startswith(b"Signature: 8a477f597d28d17")


def test_no_single_damaged_byte_passes(cache, put):
    put()
    whole = entry(cache).read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << random.Random(position).randrange(8)
        entry(cache).write_bytes(damaged)
        assert got(cache) is None
        assert not entry(cache).exists()
    assert len(cache.notes) == len(whole)
    assert "damaged" in cache.notes[0]


def test_no_cut_off_entry_passes(cache, put):
    put()
    whole = entry(cache).read_bytes()
    for length in [*range(len(whole)), len(whole) + 1]:
        entry(cache).write_bytes((whole + b"x")[:length])
        assert got(cache) is None
    entry(cache).write_bytes(whole)
    assert got(cache) is not None


def test_an_entry_under_another_name_is_none(cache, put):
    put()
    entry(cache).rename(entry(cache, "2" * 64))
    assert got(cache, "2" * 64) is None
    assert not entry(cache, "2" * 64).exists()


def test_what_another_run_has_written_there_since_is_not_kept(cache, tmp_path):
    content = tmp_path / "content"
    content.write_bytes(b"another engine")
    digest = hashlib.sha256(b"my engine").hexdigest()
    assert not cache.put("engines", KEY, {}, content, digest)
    assert got(cache) is None
    assert list(entry(cache).parent.iterdir()) == []


def test_the_longest_unused_go_first(tmp_path, put):
    small = Cache(tmp_path / "cache", 3000)
    keys = [f"{number:064x}" for number in range(4)]
    for number, key in enumerate(keys[:3]):
        assert put(key, bytes(800), into=small)
        os.utime(entry(small, key), (number, number))
    assert got(small, keys[0]) is not None  # used just now
    assert put(keys[3], bytes(800), into=small)
    assert [got(small, key) is not None for key in keys] == [True, False, True, True]
    assert not put("5" * 64, bytes(3000), into=small)
    assert "more than its limit" in small.notes[-1]


def test_a_cache_that_cannot_be_written_is_a_note(cache, put):
    cache.folder.mkdir()
    (cache.folder / "v1").write_bytes(b"in the way")
    assert not put()
    assert got(cache) is None
    assert "not kept in the cache" in cache.notes[-1]
    with cache.making(KEY, None, silent):
        pass


def test_folders_that_cannot_be_a_cache(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("a\0b")):
        with pytest.raises(InputError, match="is no folder"):
            check_folder(path)
    check_folder(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


HOLD = """
import sys, time
from pathlib import Path
from opfuse.cache import Cache
with Cache(Path(sys.argv[1]), 1).making(sys.argv[2], None, lambda: None):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(cache):
    source = str(Path(sys.modules["opfuse"].__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, cache.folder, KEY],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_one_makes_it_and_the_others_wait(cache, holder):
    waits = []
    with (
        pytest.raises(TimeLimit, match="same engine"),
        cache.making(KEY, 0.3, lambda: waits.append(1)),
    ):
        pytest.fail("two at once")
    assert waits == [1]  # told once
    with cache.making("f" * 64, None, silent):  # another one
        pass


def test_a_killed_process_has_no_lock(cache, holder):
    holder.kill()
    began = time.monotonic()
    with cache.making(KEY, 30, silent):
        assert time.monotonic() - began < 5

"""Which builds share an engine: what changes the key, and what an entry brings back."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from opfuse.config import Config
from opfuse.engine import gpu, kept
from opfuse.engine.backend import EngineInfo, Request, TensorInfo
from opfuse.engine.gpu import Gpu
from opfuse.engine.layers import Layer
from opfuse.engine.profile import Range
from tests.engine_models import chain

PROFILE = Range((1, 4), (2, 8), (4, 16))


class Backend:
    name = "tensorrt"

    def __init__(self, version="10.13"):
        self._version = version

    def version(self):
        return self._version


@pytest.fixture
def key(tmp_path):
    """The key of a build of which the named things are different."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "fused.data").write_bytes(b"weights")

    def compute(model=None, library=None, backend=None, **options):
        config = replace(Config(model=Path("m.onnx"), output=Path("e")), **options)
        made = model or chain(3)
        return kept.engine_key(made, tmp_path / "weights", config, backend or Backend(), library)

    return compute


def test_the_same_build_has_the_same_key(key):
    assert key() == key(output=Path("other"), model=chain(3), reports=(Path("r.json"),), seed=3)
    assert len(key()) == 64


def test_what_else_lies_there_does_not_matter(key, tmp_path):
    before = key()
    (tmp_path / "weights" / "region.onnx").write_bytes(b"what tuning has timed")
    assert key() == before


def test_external_weights_matter(key, tmp_path):
    model = chain(3)
    tensor = model.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="other.data")
    (tmp_path / "weights" / "other.data").write_bytes(b"0000")
    before = key(model=model)
    (tmp_path / "weights" / "other.data").write_bytes(b"0001")
    assert key(model=model) != before


def test_what_decides_the_engine_decides_the_key(key, tmp_path, monkeypatch):
    library = tmp_path / "library.so"
    library.write_bytes(b"code")
    keys = [
        key(),
        key(model=chain(4)),
        key(library=library),
        key(embed_plugins=False),
        key(max_shapes={"x": (2, 4)}),
        key(min_shapes={"x": (2, 4)}),
        key(lower="plugin"),
        key(backend=Backend("10.14")),
    ]
    library.write_bytes(b"other")
    keys.append(key(library=library))
    (tmp_path / "weights" / "fused.data").write_bytes(b"Weights")
    keys.append(key())
    monkeypatch.setattr(gpu, "current", lambda: Gpu("NVIDIA H100", "9.0"))
    keys.append(key())
    monkeypatch.setattr(kept, "_sources", lambda: "another opfuse")
    keys.append(key())
    assert len(set(keys)) == len(keys)


def test_all_that_a_build_is_asked_for_is_known_to_the_key():
    """A new field of a request has to reach engine_key, unless it leaves the engine alone."""
    assert {field.name for field in fields(Request)} == {
        "model", "ranges", "plugin_library", "embed_plugins",  # in the key
        "engine", "timing_cache", "verbose",
    }  # fmt: skip


def test_without_a_version_there_is_no_key(key):
    assert key(backend=Backend("")) is None


def test_everything_of_an_engine_comes_back():
    info = EngineInfo(
        "tensorrt", "10.13", "asked for", "e", 3, "ab", 2, {"gemm": 2}, {"Rope": 1}, {"fp16": 2},
        (TensorInfo("x", "input", "fp16", (-1, 4), PROFILE), TensorInfo("y", "output", "fp32", ())),
        "inspector", {"fp32": 1}, (Layer("l", "gemm", ("fp32",), ("n",), ("fp32",)),), ("a note",),
        {"node": "reason"}, {"hit": False},
    )  # fmt: skip
    assert EngineInfo.from_dict(json.loads(json.dumps(asdict(info)))) == info


@pytest.fixture
def cached(tmp_path):
    config = Config(model=Path("m"), output=tmp_path / "e", cache=tmp_path / "cache")
    return config, kept.open_cache(config)


def test_timings_are_kept_for_the_same_tensorrt(cached, tmp_path):
    _, cache = cached
    timings, target = tmp_path / "timings", tmp_path / "target"
    timings.write_bytes(b"how long kernels take")
    kept.fetch_timings(cache, Backend(), target)
    assert not target.exists()
    kept.keep_timings(cache, Backend(), timings)
    kept.fetch_timings(cache, Backend("10.14"), target)
    assert not target.exists()
    kept.fetch_timings(cache, Backend(), target)
    assert target.read_bytes() == timings.read_bytes()
    (entry,) = (tmp_path / "cache" / "v1" / "timing").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    kept.fetch_timings(cache, Backend(), target)
    assert not target.exists()


def test_which_cache(tmp_path, monkeypatch):
    config = Config(model=Path("m"))
    monkeypatch.delenv("OPFUSE_CACHE", raising=False)
    assert kept.open_cache(config) is None
    monkeypatch.setenv("OPFUSE_CACHE", str(tmp_path / "of the environment"))
    assert kept.open_cache(config).folder == tmp_path / "of the environment"
    assert kept.open_cache(replace(config, cache=tmp_path / "a")).folder == tmp_path / "a"
    assert kept.open_cache(replace(config, cache=tmp_path / "a", use_cache=False)) is None

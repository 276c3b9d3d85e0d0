"""Saving: atomic, streamed, the same bytes every time, and nothing left behind."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx
import onnxruntime
import pytest

import opfuse
from models import tiny
from opfuse.errors import InputError
from opfuse.files import Pending, write_atomically


@pytest.fixture
def external(tmp_path):
    return wide(tmp_path, external=True)


def wide(folder, *, external, seed=0):
    """A Llama whose weights are large enough to stay outside the file."""
    graph = tiny.llama(layers=1, hidden=256, intermediate=512, vocab=512, seed=seed)
    return graph.write(folder / "llama.onnx", external=external)


def fuse(model, output):
    return opfuse.fuse(model, output, prove=False)


def logits(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    ids = np.arange(14).reshape(2, 7) % 250
    ones = np.ones_like(ids)
    feeds = {"input_ids": ids, "attention_mask": ones, "position_ids": ones.cumsum(1) - 1}
    return session.run(None, feeds)[0]


def test_weights_that_change_while_they_are_read(external, tmp_path, monkeypatch):
    """The data file is cut between the check of its size and the reading."""
    from opfuse.stages import save

    def short(tensor, base_dir):
        yield bytes(8)

    monkeypatch.setattr(save, "raw_blocks", short)
    (tmp_path / "fused.onnx").write_bytes(b"the old output")
    with pytest.raises(InputError, match="changed while it was read"):
        fuse(external, tmp_path / "fused.onnx")
    assert (tmp_path / "fused.onnx").read_bytes() == b"the old output"
    assert data_files(tmp_path) == []


def data_files(folder):
    return sorted(path.name for path in folder.glob("fused.*.data"))


def test_small_weights_are_inline(tmp_path):
    model = tiny.llama(layers=1).write(tmp_path / "llama.onnx")
    fuse(model, tmp_path / "fused.onnx")
    proto = onnx.load(tmp_path / "fused.onnx", load_external_data=False)
    assert not any(item.external_data for item in proto.graph.initializer)
    assert data_files(tmp_path) == []


def test_external_weights_stay_external_in_one_hashed_file(external, tmp_path):
    fuse(external, tmp_path / "fused.onnx")
    (name,) = data_files(tmp_path)
    content = (tmp_path / name).read_bytes()
    assert name == f"fused.{hashlib.sha256(content).hexdigest()[:12]}.data"
    proto = onnx.load(tmp_path / "fused.onnx", load_external_data=False)
    places = [
        {entry.key: entry.value for entry in item.external_data}
        for item in proto.graph.initializer
        if item.external_data
    ]
    assert {place["location"] for place in places} == {name}
    assert {int(place["offset"]) % 4096 for place in places} == {0}


@pytest.mark.parametrize("outside", [False, True], ids=["inline", "external"])
def test_the_numbers_survive(tmp_path, outside):
    model = wide(tmp_path, external=outside)
    fuse(model, tmp_path / "fused.onnx")
    onnx.checker.check_model(str(tmp_path / "fused.onnx"), full_check=True)
    np.testing.assert_allclose(logits(tmp_path / "fused.onnx"), logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("outside", [False, True], ids=["inline", "external"])
def test_the_same_bytes_every_time(tmp_path, outside):
    model = wide(tmp_path, external=outside)
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        fuse(model, tmp_path / folder / "fused.onnx")
        written.append({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()})
    assert written[0] == written[1]


def test_merged_weights_are_not_stored_twice(external, tmp_path):
    fuse(external, tmp_path / "fused.onnx")
    (name,) = data_files(tmp_path)
    before = external.with_name(external.name + ".data").stat().st_size
    after = (tmp_path / name).stat().st_size
    assert after <= before + 4096 * 20  # alignment


def test_shared_external_bytes_stay_shared(tmp_path):
    """Two tensors on one range of the file, as tied embeddings are."""
    graph = tiny.bert(layers=1, hidden=256, intermediate=256, vocab=256)
    path = graph.write(tmp_path / "bert.onnx", external=True)
    proto = onnx.load(path, load_external_data=False)
    weights = {item.name: item for item in proto.graph.initializer}
    down = weights["layers.0.down.weight"]
    del down.external_data[:]
    down.external_data.extend(weights["layers.0.o.weight"].external_data)
    path.write_bytes(proto.SerializeToString())
    fuse(path, tmp_path / "fused.onnx")
    (name,) = data_files(tmp_path)
    before = path.with_name("bert.onnx.data").stat().st_size
    assert (tmp_path / name).stat().st_size <= before - 256 * 256 * 4 + 4096 * 20


def test_a_new_output_removes_the_data_file_of_the_old(tmp_path):
    for seed in (1, 2):
        fuse(wide(tmp_path, external=True, seed=seed), tmp_path / "fused.onnx")
        assert len(data_files(tmp_path)) == 1


def test_foreign_data_files_are_left_alone(external, tmp_path):
    old = tmp_path / "fused.onnx"
    old.write_bytes(external.read_bytes())  # refers to llama.onnx.data
    fuse(external, old)
    assert external.with_name(external.name + ".data").exists()


@pytest.mark.parametrize("outside", [False, True], ids=["inline", "external"])
def test_output_onto_its_own_input(tmp_path, outside):
    model = wide(tmp_path, external=outside)
    before = logits(model)
    with pytest.raises(InputError, match="model itself"):
        fuse(model, model)
    np.testing.assert_array_equal(logits(model), before)


def test_fusing_the_fused_again_changes_nothing_of_weight(external, tmp_path):
    fuse(external, tmp_path / "fused.onnx")
    before = logits(tmp_path / "fused.onnx")
    fuse(tmp_path / "fused.onnx", tmp_path / "again.onnx")
    np.testing.assert_allclose(logits(tmp_path / "again.onnx"), before, rtol=0, atol=1e-5)


def test_the_data_of_a_copy_outlives_what_it_was_copied_from(external, tmp_path):
    fuse(external, tmp_path / "fused.onnx")
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((tmp_path / "fused.onnx").read_bytes())  # refers to fused.onnx's data file
    before = logits(copy)
    opfuse.fuse(copy, tmp_path / "fused.onnx", prove=False, precision="fp16")
    np.testing.assert_array_equal(logits(copy), before)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out"
    path.write_bytes(b"old")

    def explode():
        with Pending(tmp_path) as pending:
            pending.file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explode()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"out": b"old"}


def test_a_written_file_obeys_the_umask(tmp_path):
    write_atomically(tmp_path / "out", b"new")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_atomically(tmp_path / ("n" * 300), b"new")

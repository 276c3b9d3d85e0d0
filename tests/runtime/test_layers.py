"""`opfuse verify --layers`: every step against the fused model, and the first that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from models import tiny
from opfuse.errors import InputError
from opfuse.numerics.layers import compare_steps
from opfuse.numerics.whole import Comparison
from opfuse.runtime.library import describe, find
from opfuse.stages.report_text import comparison_as_text
from tests.engine_models import plugins
from tests.runtime import host

pytestmark = pytest.mark.skipif(plugins() is None, reason="the plugin library is not built")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    library = find()
    ops = frozenset(op.name for op in describe(library).ops)
    model = host.lowered(tiny.llama(layers=2).write(tmp_path / "llama.onnx"), tmp_path, ops)
    path = tmp_path / "x.opfuse"
    host.bundle(model, tmp_path, library, path)
    with host.open_engine(monkeypatch, path, model) as engine:
        yield path, engine


def feeds(engine):
    ids = np.arange(8, dtype=np.int64).reshape(2, 4)
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": ids % 4}
    return {value.name: values[value.name] for value in engine.inputs}


def test_every_step_is_compared(opened):
    path, engine = opened
    layers = compare_steps(path, engine, feeds(engine))
    written = [name for _, names in engine.written_by() for name in names]
    assert [item.tensor for item in layers] == written
    assert all(item.difference.within(1e-4) for item in layers)
    assert Comparison({}, 1e-4, layers=layers).first_apart is None


def test_a_sum_that_no_step_writes_is_not_compared(opened):
    path, engine = opened
    norms = [step for step in engine.schedule.plugins() if step.attributes.get("sum_is_read") == 0]
    layers = compare_steps(path, engine, feeds(engine))
    assert norms
    told = {item.tensor for item in layers}
    for step in norms:
        assert told.intersection(step.outputs) == {step.outputs[0]}


def test_the_first_wrong_step_is_named(opened, monkeypatch):
    path, engine = opened
    right = host.HostPlugin._compute

    def wrong(self, inputs, outputs, workspace):
        right(self, inputs, outputs, workspace)
        if self._op == "GatedAct":
            host.at(outputs[0].data, outputs[0].dtype, outputs[0].shape)[...] *= 2

    monkeypatch.setattr(host.HostPlugin, "_compute", wrong)
    comparison = Comparison({}, 1e-4, layers=compare_steps(path, engine, feeds(engine)))
    first = comparison.first_apart
    assert first is not None
    assert "GatedAct" in first.step
    assert f"the first step beyond the tolerance is {first.step}" in comparison_as_text(comparison)


def test_an_engine_has_no_steps(opened, tmp_path):
    _, engine = opened
    plain = tmp_path / "x.engine"
    plain.write_bytes(b"vtrt")
    with pytest.raises(InputError, match="is no bundle"):
        compare_steps(plain, engine, {})

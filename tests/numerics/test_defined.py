"""What is written out as ONNX defines it, and that it computes what ONNX defines."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from opfuse.numerics.defined import as_defined
from opfuse.numerics.session import OnnxRuntime, Reference

ATTENTION = """<ir_version: 10, opset_import: ["" : 23]>
g (float[1, 2, s, 8] q, float[1, 1, m, s] mask) => (float[1, 2, s, 8] y) {
y = Attention(q, q, q, mask)
}"""


@pytest.mark.parametrize("rows", [1, 4], ids=["one row", "all rows"])
@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -np.inf], ids=["lowest", "-inf"])
def test_a_hidden_row_is_what_onnx_defines(rows, lowest):
    model = onnx.parser.parse_model(ATTENTION)
    mask = np.zeros((1, 1, rows, 4), np.float32)
    mask[..., 0, :] = lowest
    feeds = {"q": np.random.default_rng(0).standard_normal((1, 2, 4, 8), np.float32), "mask": mask}
    (defined,) = OnnxRuntime(as_defined(model)).run(feeds)
    np.testing.assert_allclose(defined, Reference(model).run(feeds)[0], rtol=0, atol=1e-6)
    mean = feeds["q"].mean(axis=2) if np.isfinite(lowest) else np.zeros((1, 2, 8))
    np.testing.assert_allclose(defined[:, :, 0], mean, rtol=0, atol=1e-6)


def test_without_a_mask_nothing_is_written_out():
    model = onnx.parser.parse_model(ATTENTION.replace("q, mask)", "q)"))
    assert as_defined(model) is model


def test_angles_of_one_batch_turn_all():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[b, 2, s, 8] x, float[1, s, 4] c) => (float[b, 2, s, 8] y) {
        y = RotaryEmbedding(x, c, c)
        }"""
    )
    random = np.random.default_rng(0)
    sizes = {"x": (3, 2, 5, 8), "c": (1, 5, 4)}
    feeds = {n: random.standard_normal(size, np.float32) for n, size in sizes.items()}
    (turned,) = OnnxRuntime(as_defined(model)).run(feeds)
    np.testing.assert_allclose(turned, Reference(model).run(feeds)[0], rtol=0, atol=1e-6)


CAUSAL = """<ir_version: 10, opset_import: ["" : {opset}]>
g ({kind}[2, 2, 4, 8] q, {mask}[2, 1, 1, 4] mask) => ({kind}[2, 2, 4, 8] y) {{
y = Attention<is_causal: int = 1>(q, q, q, mask)
}}"""


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("kind", ["float", "bfloat16"])
@pytest.mark.parametrize("boolean", [False, True], ids=["additive", "boolean"])
def test_a_mask_of_one_row_for_all_queries_that_are_causal(opset, kind, boolean):
    """ONNX's own evaluator takes it for the mask of the first query."""
    random = np.random.default_rng(0)
    dtype = np.dtype(np.float32 if kind == "float" else ml_dtypes.bfloat16)
    q = random.standard_normal((2, 2, 4, 8)).astype(dtype)
    keep = np.array([[True, False, True, True], [True, True, False, True]])[:, None, None]
    mask = keep if boolean else np.where(keep, 0.25, -np.inf).astype(dtype)
    text = CAUSAL.format(opset=opset, kind=kind, mask="bool" if boolean else kind)
    model, feeds = onnx.parser.parse_model(text), {"q": q, "mask": mask}
    wide = q.astype(np.float64)
    seen = keep & np.tril(np.ones((4, 4), bool))
    scores = np.where(seen, wide @ wide.swapaxes(2, 3) / np.sqrt(8), -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = weights / weights.sum(-1, keepdims=True) @ wide
    runs = [Reference(model)]
    runs += [OnnxRuntime(as_defined(model))] if kind == "float" else []
    for run in runs:
        tolerance = 1e-6 if kind == "float" else 0.05
        have = run.run(feeds)[0].astype(np.float64)
        np.testing.assert_allclose(have, want, rtol=0, atol=tolerance)


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("domain", ["", "other."], ids=["known", "unknown"])
def test_each_node_is_written_out_by_itself(domain):
    """Optional inputs that are skipped, and a node whose types are not known, keep no other."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 24, "other" : 1]>
        g (float[1, 2, 4, 8] q, float[4, 4] mask, int64[1] n, float[1, 4, 4] c)
            => (float[1, 2, 4, 8] y, float[1, 2, 4, 8] z) {{
        a = {domain}Neg(q)
        b = Attention(a, a, a, mask)
        y = RotaryEmbedding(b, c, c, "")
        z = Attention(q, q, q, mask, "", "", n)
        }}"""
    )
    written = operators(as_defined(model))
    assert written.count("Attention") == bool(domain)
    assert written.count("RotaryEmbedding") == bool(domain)
    assert written.count("Softmax") == 2 - bool(domain)


def test_hidden_rows_beside_a_number_of_keys():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 24]>
        g (float[1, 2, 4, 8] q, float[4, 4] mask, int64[1] n) => (float[1, 2, 4, 8] y) {
        y = Attention(q, q, q, mask, "", "", n)
        }"""
    )
    mask = np.zeros((4, 4), np.float32)
    mask[0] = np.finfo(np.float32).min
    q = np.random.default_rng(0).standard_normal((1, 2, 4, 8), np.float32)
    (have,) = OnnxRuntime(as_defined(model)).run({"q": q, "mask": mask, "n": np.array([3])})
    np.testing.assert_allclose(have[:, :, 0], q[:, :, :3].mean(axis=2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("positions", ["", ', ""'], ids=["none", "skipped"])
def test_angles_in_a_body_and_in_a_function(positions):
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 24, "local" : 1]>
        g (bool yes, float[3, 2, 5, 8] x, float[1, 5, 4] c) => (float[3, 2, 5, 8] y) {{
        y = If(yes) <
            then_branch = t () => (float[3, 2, 5, 8] u) {{ u = local.turn(x, c) }},
            else_branch = e () => (float[3, 2, 5, 8] v) {{
                v = RotaryEmbedding(x, c, c{positions}) }}
        >
        }}
        <domain: "local", opset_import: ["" : 24]>
        turn (x, c) => (y) {{ y = RotaryEmbedding(x, c, c{positions}) }}"""
    )
    random = np.random.default_rng(0)
    sizes = {"x": (3, 2, 5, 8), "c": (1, 5, 4)}
    feeds = {n: random.standard_normal(size, np.float32) for n, size in sizes.items()}
    runner = OnnxRuntime(as_defined(model))
    then, other = (runner.run({**feeds, "yes": np.array(yes)})[0] for yes in (True, False))
    np.testing.assert_array_equal(then, other)


@pytest.mark.parametrize("opset", [24, 25])
def test_swish(opset):
    """onnxruntime 1.32 has a kernel for opset 24 only."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[s] x) => (float[s] y) {{ y = Swish<alpha: float = 0.5>(x) }}"""
    )
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    (have,) = OnnxRuntime(as_defined(model)).run({"x": x})
    np.testing.assert_allclose(have, x / (1 + np.exp(-0.5 * x)), rtol=1e-6)

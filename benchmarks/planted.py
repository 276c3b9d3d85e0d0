"""A model in which fp16 overflows in four places, all of them finite in fp32.

Activations of 1e5 go into a norm, a mask of -1e30 into an attention, weights of 7e4 into a product,
and scores of 1e5 into a softmax.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

_TEXT = """<ir_version: 8, opset_import: ["" : 17]>
planted (float[B, S, 32] x, bool[B, 1, S, S] keep) => (float[B, S, 32] y) {
    big = Mul (x, c1e5)
    square = Mul (big, big)
    mean = ReduceMean <axes = [-1]> (square)
    variance = Add (mean, epsilon)
    root = Sqrt (variance)
    unit = Div (big, root)
    normed = Mul (unit, gamma)
    q0 = MatMul (normed, wq)
    k0 = MatMul (normed, wk)
    v0 = MatMul (normed, wv)
    q1 = Reshape (q0, heads)
    k1 = Reshape (k0, heads)
    v1 = Reshape (v0, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    raw = MatMul (q, k)
    scaled = Mul (raw, quarter)
    mask = Where (keep, zero, c_1e30)
    masked = Add (scaled, mask)
    weights = Softmax <axis = -1> (masked)
    seen = MatMul (weights, v)
    turned = Transpose <perm = [0, 2, 1, 3]> (seen)
    flat = Reshape (turned, back)
    heavy = MatMul (flat, w7e4)
    light = Mul (heavy, c1e_5)
    scores = Mul (light, c1e5)
    chosen = Softmax <axis = -1> (scores)
    y = MatMul (chosen, wo)
}"""


def planted() -> ModelProto:
    """The model, with seeded weights."""
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(_TEXT)
    values = {
        "c1e5": 1e5, "c1e_5": 1e-5, "c_1e30": -1e30, "epsilon": 1e-6, "quarter": 0.25, "zero": 0.0,
    }  # fmt: skip
    weights = {name: np.array(value, np.float32) for name, value in values.items()}
    for name in ("wq", "wk", "wv", "wo"):
        weights[name] = rng.standard_normal((32, 32), np.float32) / np.float32(32**0.5)
    weights["w7e4"] = 7e4 * np.sign(rng.standard_normal((32, 32), np.float32))
    weights["gamma"] = 1 + 0.1 * rng.standard_normal(32, np.float32)
    weights["heads"] = np.array([0, -1, 2, 16])
    weights["back"] = np.array([0, -1, 32])
    for name, value in weights.items():
        kind = value.astype(np.float32) if value.dtype.kind == "f" else value
        model.graph.initializer.append(numpy_helper.from_array(kind, name))
    return model

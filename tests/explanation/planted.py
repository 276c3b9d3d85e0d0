"""Blocks that fuse but for one planted node: the text, and who is to be blamed for what."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.small import Outcome, fuse_model, model


@dataclass(frozen=True)
class Planted:
    """A block whose node ``blocker`` prevents ``kind``; ``anchor`` is where a reader looks."""

    kind: str
    anchor: str
    blocker: str
    reason: str
    advice: str
    text: str
    inputs: str
    outputs: str = "T y"
    weights: dict[str, object] = field(default_factory=dict)
    opset: int = 18

    def outcome(self) -> Outcome:
        return fuse_model(
            model(self.text, self.inputs, self.outputs, self.weights, "float", self.opset)
        )


QKV = "T[B, 4, S, 8] q, T[B, 4, S, 8] k, T[B, 4, S, 8] v"
CORE = """
    kt = Transpose<perm=[0, 1, 3, 2]>(k)
    raw = MatMul(q, kt)
    scores = Mul(raw, 0.25)
    weights = Softmax<axis=-1>(scores)
    y = MatMul(weights, v)
"""
RMS = """
    square = Pow(x, 2.0)
    mean = ReduceMean<axes=[-1]>(square)
    variance = Add(mean, 1.0e-5)
    root = Sqrt(variance)
    unit = Div(x, root)
    y = Mul(gamma, unit)
"""
LAYER = """
    mean = ReduceMean<axes=[-1]>(x)
    centred = Sub(x, mean)
    square = Pow(centred, 2.0)
    spread = ReduceMean<axes=[-1]>(square)
    variance = Add(spread, 1.0e-5)
    root = Sqrt(variance)
    unit = Div(centred, root)
    scaled = Mul(unit, gamma)
    y = Add(scaled, beta)
"""
TURN = """
    angles = Mul(positions, frequencies)
    both = Concat<axis=-1>(angles, angles)
    cos = Cos(both)
    sin = Sin(both)
    low = Slice(x, [0], [3], [3])
    high = Slice(x, [3], [6], [3])
    minus = Neg(high)
    turned = Concat<axis=-1>(minus, low)
    straight = Mul(x, cos)
    across = Mul(turned, sin)
    y = Add(straight, across)
"""
GATED = """
    gate = MatMul(x, wg)
    up = MatMul(x, wu)
    s = Sigmoid(gate)
    a = Mul(gate, s)
    y = Mul(a, up)
"""
GELU = """
    h0 = MatMul(x, w)
    h = Add(h0, b)
    d = Div(h, 1.4142135)
    e = Erf(d)
    p = Add(e, 1.0)
    t = Mul(h, p)
    y = Mul(t, 0.5)
"""
PROJECTED = """
    q0 = MatMul(x, wq)
    k0 = MatMul(x, wk)
    v0 = MatMul(x, wv)
    q1 = Reshape(q0, [0, 0, 4, 8])
    k1 = Reshape(k0, [0, 0, 4, 8])
    v1 = Reshape(v0, [0, 0, 4, 8])
    q = Transpose<perm=[0, 2, 1, 3]>(q1)
    k = Transpose<perm=[0, 2, 1, 3]>(k1)
    v = Transpose<perm=[0, 2, 1, 3]>(v1)
""" + CORE.replace("y = ", "context = ")
IMAGE = """
    groups = Reshape(x, [0, 2, -1])
    norm = InstanceNormalization<epsilon=1.0e-5>(groups, one, zero)
    shape = Shape(x)
    whole = Reshape(norm, shape)
    scaled = Mul(whole, gamma)
    shifted = Add(scaled, beta)
    s = Sigmoid(shifted)
    y = Mul(shifted, s)
"""
ROWS, VECTORS = "T[B, S, 9] x", {"gamma": (9,), "beta": (9,)}
GAMMA = {"gamma": (9,)}
TWO = {"wg": (32, 16), "wu": (32, 16)}
THREE = {"wq": (32, 32), "wk": (32, 32), "wv": (32, 32)}
ANGLES = "T[B, 4, S, 6] x, T[S, 1] positions"

PLANTED = {
    "softmax over the wrong axis": Planted(
        "FlashAttention",
        "weights",
        "weights",
        "works along axis 2",
        "along the last axis",
        CORE.replace("axis=-1", "axis=2"),
        QKV,
    ),
    "probabilities read twice": Planted(
        "FlashAttention",
        "weights",
        "seen",
        "is also read by",
        "its own copy",
        CORE + "seen = Neg(weights)",
        QKV,
        "T y, T seen",
    ),
    "a mask that scores may reach": Planted(
        "FlashAttention",
        "weights",
        "logits",
        "masks with -100",
        "lowest number",
        CORE.replace("(scores)", "(logits)").replace(
            "weights =", "logits = Where(keep, scores, -100.0)\n weights ="
        ),
        QKV + ", bool[B, 1, S, S] keep",
    ),
    "a mask of another rank": Planted(
        "FlashAttention",
        "weights",
        "added",
        "does not provably broadcast",
        "[batch, 1, queries, keys]",
        CORE.replace("(scores)", "(added)").replace(
            "weights =", "added = Add(scores, mask)\n weights ="
        ),
        QKV + ", T[1, B, 1, S, S] mask",
    ),
    "scores are an output": Planted(
        "FlashAttention",
        "weights",
        "raw",
        "leaves the graph",
        "outputs",
        CORE,
        QKV,
        "T y, T raw",
    ),
    "a mean over the wrong axis": Planted(
        "RmsNorm",
        "mean",
        "mean",
        "reduces over axes [1]",
        "over the last axis",
        RMS.replace("axes=[-1]", "axes=[1]"),
        ROWS,
        weights=GAMMA,
    ),
    "a power of three": Planted(
        "RmsNorm",
        "mean",
        "square",
        "want 2",
        "value of the formula",
        RMS.replace("2.0", "3.0"),
        ROWS,
        weights=GAMMA,
    ),
    "a variance over the wrong axis": Planted(
        "LayerNormalization",
        "mean",
        "spread",
        "reduces over axes [1]",
        "over the last axis",
        LAYER.replace("spread = ReduceMean<axes=[-1]>", "spread = ReduceMean<axes=[1]>"),
        ROWS,
        weights=VECTORS,
    ),
    "uneven halves": Planted(
        "Rope",
        "cos",
        "low",
        "takes 0:2:1",
        "the two halves of the last axis",
        TURN.replace("[0], [3], [3]", "[0], [2], [3]").replace("[3], [6], [3]", "[2], [6], [3]"),
        ANGLES,
        weights={"frequencies": (1, 3)},
    ),
    "another one in the gate": Planted(
        "GatedAct",
        "e",
        "p",
        "want 1",
        "value of the formula",
        GELU.replace("y = ", "a = ").replace("1.0)", "2.0)").split("\n", 3)[3] + "y = Mul(a, up)",
        "T[B, S, 32] h, T[B, S, 32] up",
    ),
    "a shared weight": Planted(
        "gate_up_merge",
        "gate",
        "other",
        "is also read by",
        "untie the weight",
        GATED + "other = MatMul(z, wu)",
        "T[B, S, 32] x, T[B, S, 32] z",
        "T y, T other",
        weights=TWO,
    ),
    "gate and up of two tensors": Planted(
        "gate_up_merge",
        "",
        "y",
        "not linear layers of one tensor",
        "from the same tensor",
        GATED.replace("up = MatMul(x", "up = MatMul(z"),
        "T[B, S, 32] x, T[B, S, 32] z",
        weights=TWO,
    ),
    "a bias of each row": Planted(
        "GemmAct",
        "e",
        "h",
        "bias is",
        "the bias the shape [out]",
        GELU,
        "T[2, S, 5] x",
        weights={"w": (5, 7), "b": (2, 1, 7)},
    ),
    "another constant": Planted(
        "GemmAct",
        "e",
        "d",
        "want 1.41421",
        "value of the formula",
        GELU.replace("1.4142135", "1.5"),
        "T[2, S, 5] x",
        weights={"w": (5, 7), "b": (7,)},
    ),
    "a tied projection": Planted(
        "qkv_merge",
        "q0",
        "other",
        "is also read by",
        "untie the weight",
        PROJECTED + "other = MatMul(z, wk)",
        "T[B, S, 32] x, T[B, S, 32] z",
        "T context, T other",
        weights=THREE,
    ),
    "a norm over another axis behind a sum": Planted(
        "AddLayerNorm",
        "y",
        "y",
        "works along axis -2",
        "along the last axis",
        "x = Add(before, residual)\ny = LayerNormalization<axis=-2>(x, g, h)",
        "T[B, 3, 9] before, T[B, 3, 9] residual",
        weights={"g": (3, 9), "h": (3, 9)},
    ),
    "a scale of one group": Planted(
        "GroupNormSilu",
        "s",
        "norm",
        "is not 2 times 1",
        "behind the norm",
        IMAGE,
        "T[B, 4, 3, 3] x",
        weights={
            "one": np.array([1, 2], np.float32),
            "zero": np.zeros(2, np.float32),
            "gamma": (4, 1, 1),
            "beta": (4, 1, 1),
        },
    ),
    "a masked softmax over queries": Planted(
        "MaskedSoftmax",
        "y",
        "y",
        "works along axis 2",
        "along the last axis",
        "seen = Where(keep, scores, -inf)\ny = Softmax<axis=2>(seen)",
        "T[B, 4, S, S] scores, bool[S, S] keep",
    ),
    "a masked softmax of what was masked": Planted(
        "MaskedSoftmax",
        "y",
        "seen",
        "what Max may have masked before",
        "mask once",
        "low = Max(scores, -1.0e9)\nseen = Where(keep, low, -1.0e9)\ny = Softmax<axis=-1>(seen)",
        "T[B, 4, S, S] scores, bool[S, S] keep",
    ),
    "a fill beside another mask": Planted(
        "FlashAttention",
        "weights",
        "seen",
        "beside another mask",
        "lowest number",
        CORE.replace("(scores)", "(logits)").replace(
            "weights =",
            "seen = Where(keep, scores, -1.0e9)\nlogits = Add(seen, mask)\nweights =",
        ),
        QKV + ", bool[S, S] keep, T[B, 1, 1, S] mask",
    ),
    "sinks that are never dropped": Planted(
        "FlashAttention",
        "weights",
        "joined",
        "joins to the scores",
        "drop the column",
        CORE.replace("(scores)", "(joined)").replace(
            "weights =", "joined = Concat<axis=-1>(scores, sinks)\nweights ="
        ),
        "T[B, 4, S, 8] q, T[B, 4, 6, 8] k, T[B, 4, 7, 8] v, T[B, 4, S, 1] sinks",
    ),
    "a gelu before its operator": Planted(
        "Gelu",
        "e",
        "y",
        "needs opset 20",
        "later opset",
        GELU.split("\n", 3)[3],
        "T[B, S, 9] h",
    ),
    "a layer that scales": Planted(
        "GemmAct",
        "y",
        "h",
        "is no plain x W + b",
        "alpha and beta of 1",
        "h = Gemm<alpha=2.0>(x, w, b)\ny = Relu(h)",
        "T[S, 5] x",
        weights={"w": (5, 7), "b": (7,)},
    ),
    "logits of all tokens too": Planted(
        "last_token_gather",
        "",
        "logits",
        "leaves the graph",
        "outputs",
        "logits = MatMul(x, w)\ny = Gather<axis=1>(logits, last)",
        "T[B, S, 5] x",
        "T y, T logits",
        weights={"w": (5, 7), "last": np.array(-1)},
    ),
    "a norm in a branch": Planted(
        "AddLayerNorm",
        "",
        "inner",
        "stands in a body of y",
        "without control flow",
        """y = If (flag) <
            then_branch = yes () => (T[A, 9] inner) { inner = LayerNormalization(x, gamma) },
            else_branch = no () => (T[C, 9] b) { b = Neg(x) }
        >""",
        "T[B, 9] x, bool flag",
        weights={"gamma": (9,)},
    ),
}

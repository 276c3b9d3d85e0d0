"""Mistakes that half precision rounds away are refuted in float64; what is right is not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from opfuse.numerics import exact
from opfuse.numerics.extract import build
from opfuse.numerics.prover import judge
from opfuse.numerics.session import CannotRun
from tests.matches import constant, match, normal, opsets

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
IN_HALVES = pytest.mark.parametrize("dtype", HALVES)
KEYS = 64
CAUSAL = np.tril(np.ones((KEYS, KEYS), bool))


class Form(NamedTuple):
    """An original, what it reads, and its size; T stands for the type."""

    text: str
    inputs: tuple[str, ...]
    size: str = "batch, seq, 64"


HEAD = f"T[batch, 4, {KEYS}, 16]"
ATTENTION = Form(
    """
    keys = Transpose<perm: ints = [0, 1, 3, 2]>(k)
    scores = MatMul(q, keys)
    scaled = Mul(scores, scale)
    bent = Div(scaled, cap)
    tanh = Tanh(bent)
    capped = Mul(tanh, cap)
    masked = Where(causal, capped, low)
    weights = Softmax<axis: int = -1>(masked)
    y = MatMul(weights, v)""",
    (f"q: {HEAD}", f"k: {HEAD}", f"v: {HEAD}"),
    f"batch, 4, {KEYS}, 16",
)
NORM = Form(
    """
    mean = ReduceMean(x, last)
    centred = Sub(x, mean)
    square = Mul(centred, centred)
    variance = ReduceMean(square, last)
    shifted = Add(variance, epsilon)
    deviation = Sqrt(shifted)
    unit = Div(centred, deviation)
    scaled = Mul(unit, gamma)
    y = Add(scaled, beta)""",
    ("x: T[batch, seq, 64]",),
)
GELU = Form(
    """
    product = MatMul(x, w)
    sum = Add(product, bias)
    part = Div(sum, root)
    erf = Erf(part)
    phi = Add(erf, one)
    whole = Mul(sum, phi)
    y = Mul(whole, half)""",
    ("x: T[batch, seq, 64]",),
)
GELU_TANH = GELU._replace(
    text="""
    product = MatMul(x, w)
    sum = Add(product, bias)
    square = Mul(sum, sum)
    cube = Mul(square, sum)
    small = Mul(cube, cubic)
    inner = Add(sum, small)
    part = Mul(inner, root_tanh)
    tanh = Tanh(part)
    phi = Add(tanh, one)
    whole = Mul(sum, phi)
    y = Mul(whole, half)"""
)
FORMS = {"attention": ATTENTION, "norm": NORM, "gelu": GELU, "gelu_tanh": GELU_TANH}
MISTAKES = {
    "a scale 5 % off": ("attention", "Mul(scores, scale)", "Mul(scores, scale_off)"),
    "a scale 1 % off": ("attention", "Mul(scores, scale)", "Mul(scores, scale_near)"),
    "a cap 5 % off": ("attention", "Mul(tanh, cap)", "Mul(tanh, cap_off)"),
    "a key more": ("attention", "Where(causal", "Where(causal_and_one"),
    "softmax over queries": ("attention", "axis: int = -1", "axis: int = -2"),
    "ten times the epsilon": ("norm", "(variance, epsilon)", "(variance, epsilon_off)"),
    "variance of another axis": ("norm", "(square, last)", "(square, first)"),
    "no beta": ("norm", "Add(scaled, beta)", "Identity(scaled)"),
    "no bias": ("gelu", "Add(product, bias)", "Identity(product)"),
}
ROOTS = {"root": 2**0.5, "root_tanh": (2 / np.pi) ** 0.5, "cubic": 0.044715}
SCALES = {"scale": 0.25, "scale_off": 0.2625, "scale_near": 0.2525}
CAPS = {"cap": 30.0, "cap_off": 31.5, "per": 1 / 30}
EPSILONS = {"epsilon": 1e-5, "epsilon_off": 1e-4}
CONSTANTS = {**ROOTS, **SCALES, **CAPS, **EPSILONS, "one": 1.0, "half": 0.5}


def reason(form: Form, after: str, dtype: str) -> str:
    """Why ``after`` is refuted; empty where it is not. ``full_NAME`` is a constant in fp32."""
    typed = HALVES[dtype]
    rng = np.random.default_rng(3)
    constants = [
        *(constant(name, value, typed) for name, value in CONSTANTS.items()),
        *(constant(f"full_{name}", value) for name, value in CONSTANTS.items()),
        normal("gamma", 64, dtype=typed),
        *(constant(name, 0.02 * rng.standard_normal(64), typed) for name in ("beta", "bias")),
        constant("w", rng.standard_normal((64, 64)) / 8, typed),
        constant("low", float(ml_dtypes.finfo(typed).min), typed),
        constant("causal", CAUSAL, bool),
        constant("causal_and_one", CAUSAL | np.eye(KEYS, k=1, dtype=bool), bool),
        *(constant(name, [axis], "int64") for name, axis in (("last", -1), ("first", -2))),
    ]
    inputs = [text.replace("T[", f"{dtype}[") for text in form.inputs]
    subject = match(form.text, after, inputs, [f"y: {dtype}[{form.size}]"], constants)
    return judge(build(subject, opsets(), Path()), seed=0).reason


@IN_HALVES
@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_itself(dtype, form):
    assert reason(FORMS[form], FORMS[form].text, dtype) == ""


@IN_HALVES
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refuted(dtype, mistake):
    form, right, wrong = MISTAKES[mistake]
    text = FORMS[form].text
    assert right in text
    assert reason(FORMS[form], text.replace(right, wrong), dtype)


@IN_HALVES
@pytest.mark.parametrize("pair", [("gelu", "gelu_tanh"), ("gelu_tanh", "gelu")], ids="-".join)
def test_one_gelu_is_not_the_other(dtype, pair):
    before, after = (FORMS[name] for name in pair)
    assert "in float64 as well" in reason(before, after.text, dtype)


@IN_HALVES
@pytest.mark.parametrize("form", ["gelu", "gelu_tanh"])
def test_constants_may_be_what_the_original_rounds(dtype, form):
    text = FORMS[form].text
    for name in ("root", "root_tanh", "cubic"):
        text = text.replace(f", {name})", f", own_{name})")
        text = f"own_{name} = CastLike(full_{name}, x)\n{text}"
    assert reason(FORMS[form], text, dtype) == ""
    assert reason(FORMS[form], text.replace("full_root", "full_scale"), dtype)


@IN_HALVES
def test_a_cap_may_be_the_reciprocal_of_another(dtype):
    before = ATTENTION._replace(text=ATTENTION.text.replace("Div(scaled, cap)", "Mul(scaled, per)"))
    assert reason(before, ATTENTION.text, dtype) == ""
    assert reason(before, ATTENTION.text.replace("Div(scaled, cap)", "Div(scaled, cap_off)"), dtype)


@IN_HALVES
def test_large_forms_are_compared_in_fp32(monkeypatch, dtype):
    monkeypatch.setattr(exact, "SLOW_ELEMENTS", 0)
    assert "in fp32 as well" in reason(GELU, GELU_TANH.text, dtype)
    assert reason(GELU, GELU.text, dtype) == ""


@IN_HALVES
def test_what_neither_can_run_is_not_proven(monkeypatch, dtype):
    def refuse(_):
        raise CannotRun("no kernel")

    monkeypatch.setattr(exact, "Reference", refuse)
    monkeypatch.setattr(exact, "open_model", refuse)
    assert "cannot be compared in fp32: no kernel" in reason(NORM, NORM.text, dtype)


STRETCHED = """
wide = Cast<to: int = 1>(mask)
steps = Div(wide, step)
whole = Round(steps)
far = Mul(whole, factor)
low = LessOrEqual(wide, limit)
all = Where(low, far, wide)
scores = MatMul(q, k)
logits = Cast<to: int = 1>(scores)
masked = Add(logits, all)
weights = Softmax<axis: int = -1>(masked)
y = Cast<to: int = 10>(weights)
"""
ABSORBED = """
scores = MatMul(q, k)
masked = Add(scores, mask)
y = Softmax<axis: int = -1>(masked)
"""


def test_the_lowest_of_fp16_may_become_that_of_fp32():
    sizes = {"q": "seq, 8", "k": "8, seq", "mask": "seq, seq"}
    numbers = {"step": 32.0, "factor": 1.6608e35, "limit": -60000.0}
    subject = match(
        ABSORBED,
        STRETCHED,
        [f"{name}: float16[batch, 4, {size}]" for name, size in sizes.items()],
        ["y: float16[batch, 4, seq, seq]"],
        [constant(name, value) for name, value in numbers.items()],
    )
    assert judge(build(subject, opsets(), Path()), seed=0).reason == ""

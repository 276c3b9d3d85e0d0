"""Activations: the expressions that exporters write for them, and their definitions.

gelu: Hendrycks and Gimpel 2016; silu: Elfwing et al. 2017; quick_gelu: x * sigmoid(1.702 x).
"""

from __future__ import annotations

import math

from opfuse.fusions.guards import equals
from opfuse.graph.fusion import Found
from opfuse.graph.pattern import Const, OneOf, Pattern, any_of, one_of, op

ANCHORS = ("Gelu", "Swish", "Relu", "Mul")


def silu(x: Pattern) -> OneOf:
    """Return the pattern of x * sigmoid(x)."""
    return any_of(op.Mul(x, op.Sigmoid(x)), op.Swish(x, alpha=None), op.Swish(x, alpha=1.0))


def gelu(x: Pattern) -> OneOf:
    """Return the pattern of x * Phi(x), by erf."""
    scaled = any_of(op.Div(x, Const("sqrt2")), op.Mul(x, Const("sqrt_half")))
    phi = op.Add(op.Erf(scaled), Const("gelu_one"))
    half = Const("half")
    return any_of(
        op.Mul(op.Mul(x, phi), half),
        op.Mul(op.Mul(x, half), phi),
        op.Mul(x, op.Mul(phi, half)),
        op.Gelu(x, approximate=None),
        op.Gelu(x, approximate="none"),
    )


def gelu_tanh(x: Pattern) -> OneOf:
    """Return the pattern of 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    cube = any_of(op.Pow(x, Const("three")), op.Mul(x, op.Mul(x, x)), op.Mul(op.Mul(x, x), x))
    inner = op.Add(x, op.Mul(cube, Const("cubic")))
    # BLOOM's: sqrt(2/pi) x (1 + 0.044715 x x)
    factor = op.Add(op.Mul(op.Mul(x, Const("cubic")), x), Const("factor_one"))
    scaled = any_of(
        op.Mul(inner, Const("sqrt_2_pi")), op.Mul(op.Mul(x, Const("sqrt_2_pi")), factor)
    )
    phi = op.Add(op.Tanh(scaled), Const("gelu_one"))
    half = Const("half")
    return any_of(
        op.Mul(op.Mul(x, half), phi),
        op.Mul(op.Mul(x, phi), half),
        op.Mul(x, op.Mul(phi, half)),
        op.Gelu(x, approximate="tanh"),
    )


def quick_gelu(x: Pattern) -> OneOf:
    """Return the pattern of x * sigmoid(1.702 x)."""
    return any_of(op.Mul(x, op.Sigmoid(op.Mul(x, Const("quick")))))


def gate(x: Pattern) -> OneOf:
    """Return the activations that a gated unit may have, and one that it has not."""
    return one_of(
        "activation", silu=silu(x), gelu=gelu(x), gelu_tanh=gelu_tanh(x), quick_gelu=quick_gelu(x)
    )


def any_activation(x: Pattern) -> OneOf:
    """Return every activation that a GEMM's epilogue knows, bound to "activation"."""
    return one_of(
        "activation",
        relu=op.Relu(x),
        silu=silu(x),
        gelu=gelu(x),
        gelu_tanh=gelu_tanh(x),
        quick_gelu=quick_gelu(x),
    )


def check(found: Found) -> str:
    """Return the activation that matched, its constants checked."""
    for name, want in (
        ("sqrt2", math.sqrt(2)),
        ("sqrt_half", math.sqrt(0.5)),
        ("gelu_one", 1.0),
        ("factor_one", 1.0),
        ("half", 0.5),
        ("three", 3.0),
        ("cubic", 0.044715),
        ("sqrt_2_pi", math.sqrt(2 / math.pi)),
        ("quick", 1.702),
    ):
        equals(found, name, want)
    return found.label("activation")

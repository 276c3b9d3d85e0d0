"""What an activation computes, in statements of a function's body.

A plugin reads the attribute "activation". A body cannot compare texts, so where the nodes of one
model differ in it they carry its number too, and the body takes one of all that the model uses.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_graphsurgeon as gs

from opfuse.graph.definition import Uses

KIND = "activation_number"


def number_kinds(nodes: Sequence[gs.Node]) -> None:
    """Number the activations where the nodes of an op have several."""
    names = sorted({str(node.attrs["activation"]) for node in nodes})
    for node in nodes:
        node.attrs.pop(KIND, None)
        if len(names) > 1:
            node.attrs[KIND] = names.index(str(node.attrs["activation"]))


def active(uses: Uses, x: str) -> str:
    """Return the statements that compute ``active`` from ``x`` in the type of ``x``."""
    names = sorted(map(str, uses.values("activation")))
    lines = [_renamed(_statements(name, x), number) for number, name in enumerate(names)]
    if len(names) == 1:
        return f"{lines[0]}\nactive = Identity(active_0)"
    lines.append(f"number = Constant<value_int: int = @{KIND}>()\nchosen_0 = Identity(active_0)")
    lines.extend(
        f"""
        number_{number} = Constant<value_int: int = {number}>()
        is_{number} = Equal(number, number_{number})
        chosen_{number} = Where(is_{number}, active_{number}, chosen_{number - 1})"""
        for number in range(1, len(names))
    )
    return "\n".join([*lines, f"active = Identity(chosen_{len(names) - 1})"])


def _renamed(text: str, number: int) -> str:
    """Return ``text`` with its own names told apart from those of other activations."""
    own = set(re.findall(r"^\s*(\w+) =", text, re.MULTILINE))
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda m: f"{m[0]}_{number}" if m[0] in own else m[0], text)


def _statements(activation: str, x: str) -> str:
    """Return the statements that compute ``active`` from ``x`` in the type of ``x``."""
    return {
        "none": f"active = Identity({x})",
        "relu": f"active = Relu({x})",
        "silu": f"sigmoid = Sigmoid({x})\nactive = Mul({x}, sigmoid)",
        "gelu": f"""
            {_number("half", 0.5, x)}
            {_number("one", 1.0, x)}
            {_number("root", 2**0.5, x)}
            scaled = Div({x}, root)
            erf = Erf(scaled)
            phi = Add(erf, one)
            double = Mul({x}, phi)
            active = Mul(double, half)""",
        "gelu_tanh": f"""
            {_number("half", 0.5, x)}
            {_number("one", 1.0, x)}
            {_number("cubic", 0.044715, x)}
            {_number("root", 0.7978845608028654, x)}
            square = Mul({x}, {x})
            cube = Mul(square, {x})
            small = Mul(cube, cubic)
            sum_ = Add({x}, small)
            scaled = Mul(sum_, root)
            tanh = Tanh(scaled)
            phi = Add(tanh, one)
            double = Mul({x}, phi)
            active = Mul(double, half)""",
        "quick_gelu": f"""
            {_number("quick", 1.702, x)}
            scaled = Mul({x}, quick)
            sigmoid = Sigmoid(scaled)
            active = Mul({x}, sigmoid)""",
    }[activation]


def _number(name: str, value: float, like: str) -> str:
    return (
        f"{name}32 = Constant<value_float: float = {value!r}>()\n"
        f"{name} = CastLike({name}32, {like})"
    )

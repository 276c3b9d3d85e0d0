"""The activations as exporters write them, from ``{x}`` to ``{y}``; inner names begin as y does."""

from __future__ import annotations

SILU = {
    "mul": "{y}_s = Sigmoid({x})\n{y} = Mul({x}, {y}_s)",
    "swapped": "{y}_s = Sigmoid({x})\n{y} = Mul({y}_s, {x})",
}
GELU = {
    "product then half": """
        {y}_d = Div({x}, 1.4142135)
        {y}_e = Erf({y}_d)
        {y}_p = Add({y}_e, 1.0)
        {y}_t = Mul({x}, {y}_p)
        {y} = Mul({y}_t, 0.5)""",
    "half of x first": """
        {y}_d = Mul({x}, 0.70710678)
        {y}_e = Erf({y}_d)
        {y}_p = Add(1.0, {y}_e)
        {y}_t = Mul(0.5, {x})
        {y} = Mul({y}_t, {y}_p)""",
    "half of phi first": """
        {y}_d = Div({x}, 1.4142135)
        {y}_e = Erf({y}_d)
        {y}_p = Add({y}_e, 1.0)
        {y}_t = Mul(0.5, {y}_p)
        {y} = Mul({x}, {y}_t)""",
}
_TANH = """
        {y}_i = Mul({y}_c, 0.044715)
        {y}_j = Add({x}, {y}_i)
        {y}_k = Mul({y}_j, 0.79788456)
        {y}_h = Tanh({y}_k)
        {y}_p = Add({y}_h, 1.0)
"""
_CUBES = {
    "pow": "{y}_c = Pow({x}, 3.0)",
    "square first": "{y}_q = Mul({x}, {x})\n{y}_c = Mul({y}_q, {x})",
    "square last": "{y}_q = Mul({x}, {x})\n{y}_c = Mul({x}, {y}_q)",
}
_ENDS = {
    "half of x first": "{y}_t = Mul({x}, 0.5)\n{y} = Mul({y}_t, {y}_p)",
    "half last": "{y}_t = Mul({y}_p, {x})\n{y} = Mul({y}_t, 0.5)",
    "half of phi": "{y}_t = Mul({y}_p, 0.5)\n{y} = Mul({x}, {y}_t)",
}
_FACTORED = """
        {y}_c = Mul({x}, 0.044715)
        {y}_q = Mul({y}_c, {x})
        {y}_j = Add({y}_q, 1.0)
        {y}_i = Mul({x}, 0.79788456)
        {y}_k = Mul({y}_i, {y}_j)
        {y}_h = Tanh({y}_k)
        {y}_p = Add(1.0, {y}_h)
"""
GELU_TANH = {
    "BLOOM's factors": _FACTORED + _ENDS["half of x first"],
    **{cube: _CUBES[cube] + _TANH + _ENDS["half of x first"] for cube in _CUBES},
    **{end: _CUBES["pow"] + _TANH + _ENDS[end] for end in _ENDS},
}
QUICK_GELU = {
    "mul": "{y}_m = Mul({x}, 1.702)\n{y}_s = Sigmoid({y}_m)\n{y} = Mul({x}, {y}_s)",
    "swapped": "{y}_m = Mul(1.702, {x})\n{y}_s = Sigmoid({y}_m)\n{y} = Mul({y}_s, {x})",
}
RELU = {"relu": "{y} = Relu({x})"}


def spell(text: str, x: str, y: str) -> str:
    """The statements of an activation from tensor ``x`` to tensor ``y``."""
    return text.replace("{x}", x).replace("{y}", y) + "\n"


def every(**kinds: dict[str, str]) -> list[tuple[str, str]]:
    """(activation, statements) of every spelling."""
    return [(kind, text) for kind, texts in kinds.items() for text in texts.values()]

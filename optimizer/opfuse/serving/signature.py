"""The inputs and outputs of an engine as a server needs them, and which dimension is a batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opfuse.errors import InputError

Shape = tuple[int, ...]
_BATCH = re.compile(r"b|n|bs|.*batch.*", re.IGNORECASE)


@dataclass(frozen=True)
class Port:
    """An input or output.

    Args:
        name: Its name.
        is_input: Whether a request gives it.
        dtype: "fp32", "fp16", "bf16", "int64", ..., as reports spell it.
        shape: Its sizes; -1 where the size is the caller's.
        symbols: What the model calls each size, as far as that is known.
        levels: The smallest, the usual, and the largest shape of a dynamic input, where known.
        tuned: The usual shape, where only that is known.

    Raises:
        ValueError: These are no port's.
    """

    name: str
    is_input: bool
    dtype: str
    shape: Shape
    symbols: tuple[str, ...] = ()
    levels: tuple[Shape, Shape, Shape] | None = None
    tuned: Shape = ()

    def __post_init__(self) -> None:
        texts = (self.name, self.dtype, *self.symbols)
        if not self.name or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{self.name!r} with type {self.dtype!r} is no tensor")
        if not all(type(size) is int and size >= -1 for size in self.shape):
            raise ValueError(f"{self.name!r} cannot have the shape {list(self.shape)}")
        for level in self.levels or ():
            fits = len(level) == len(self.shape) and all(map(_within, level, self.shape))
            if not fits:
                raise ValueError(f"{self.name!r} cannot have the shape {list(level)}")

    @property
    def usual(self) -> Shape:
        """The shape that the engine is tuned for; a size that nobody knows is 1."""
        known = self.levels[1] if self.levels else self.tuned or self.shape
        return tuple(1 if size < 0 else size for size in known)


def _within(size: object, limit: int) -> bool:
    return type(size) is int and size > 0 and limit in (-1, size)


def from_report(report: Mapping[str, Any]) -> tuple[Port, ...]:
    """The ports in the report of `opfuse build`.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    of_model = (*report["model"]["inputs"], *report["model"]["outputs"])
    named = {item["name"]: item["shape"] for item in of_model}
    ports = tuple(
        Port(
            item["name"],
            ("output", "input").index(item["mode"]) == 1,
            item["dtype"],
            tuple(item["shape"]),
            symbols(named.get(item["name"], ())),
            levels(item["range"]),
        )
        for item in report["engine"]["io"]
    )
    if all(port.is_input for port in ports):
        raise ValueError("the engine has no outputs")
    return ports


def symbols(shape: Sequence[int | str]) -> tuple[str, ...]:
    """What a model calls its sizes; "" for those that have no name."""
    return tuple(dim if isinstance(dim, str) and dim != "?" else "" for dim in shape)


def levels(shapes: Sequence[Sequence[int]] | None) -> tuple[Shape, Shape, Shape] | None:
    """The three shapes of a profile, as JSON has them."""
    if not shapes:
        return None
    least, usual, most = (tuple(shape) for shape in shapes)
    return least, usual, most


def batch_limit(ports: Sequence[Port], asked: int | None) -> int:
    """The largest batch that a server may put together along the first dimension; 0 for none.

    Requests may only be joined where that changes no number. So without ``asked`` the first
    dimension has to be the same symbol everywhere, called a batch, and stand at no other place.

    Raises:
        InputError: ``asked`` is more than the engine takes, or it has no such dimension.
    """
    if asked == 0:
        return 0
    fixed = [port.name for port in ports if not port.shape or port.shape[0] >= 0]
    inputs = [port for port in ports if port.is_input]
    limits = [port.levels[2][0] for port in inputs if port.levels and port.shape]
    least = [port.levels[0][0] for port in inputs if port.levels and port.shape]
    if asked is None:
        usable = not fixed and limits and max(least) == 1 and _is_batch(ports)
        return min(limits) if usable else 0
    if fixed or not inputs:
        name = fixed[0] if fixed else "no input"
        raise InputError(
            f"the first dimension of {name!r} is no batch: its size is fixed",
            "leave --max-batch out, or build from a model with a dynamic batch",
        )
    if limits and (asked > min(limits) or max(least) > 1):
        raise InputError(
            f"--max-batch {asked}: the engine takes batches of {max(least)} to {min(limits)}",
            "give no more, or build with other --minShapes and --maxShapes",
        )
    return asked


def _is_batch(ports: Sequence[Port]) -> bool:
    first = {port.symbols[0] if port.symbols else "" for port in ports}
    others = {symbol for port in ports for symbol in port.symbols[1:]}
    name = next(iter(first))
    elsewhere = re.compile(rf"\b{re.escape(name)}\b")
    return (
        len(first) == 1
        and _BATCH.fullmatch(name) is not None
        and not any(elsewhere.search(symbol) for symbol in others)
    )

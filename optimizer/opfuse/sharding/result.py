"""What was sharded and how: the plan that stands beside the files of the ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opfuse.errors import InputError

PLAN, KIND = "plan.json", "opfuse shard"


@dataclass(frozen=True)
class Product:
    """A product with a weight that is split.

    Attributes:
        node: Its name in the user's model.
        how: "column" by the features that it makes, "row" by what it sums over, "vocabulary".
        weight: The shape of the whole weight, and of each rank's.
    """

    node: str
    how: str
    weight: tuple[int, ...]
    part: tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """An attention that is split by heads; the numbers are those of each rank."""

    node: str
    heads: int
    kv_heads: int
    replicated_kv: bool


@dataclass(frozen=True)
class Left:
    """What every rank does whole, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Port:
    """An input or output of which each rank has a part.

    Attributes:
        name: The tensor.
        axis: The axis that is split.
        ranks: For each rank the positions on it that it has, in its order.
    """

    name: str
    axis: int
    ranks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """How a model was sharded.

    Attributes:
        model: The file that was sharded.
        ranks: How many parts.
        products, attentions, left: What became of each candidate.
        inputs, outputs: Those of which the ranks have parts; all others are the model's.
        collectives: How many of each kind a run takes, by operator.
        apart: The sums over the ranks that no norm was fused with, and why.
        sha256: Of the model and of all this but the files; every rank carries it.
        model_sha256: Of the model and its weights.
        weight_bytes: Of the whole model, and of one rank.
        files: The file of each rank, relative to the plan.
    """

    model: str
    ranks: int
    products: tuple[Product, ...]
    attentions: tuple[Attention, ...]
    left: tuple[Left, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    collectives: Mapping[str, int]
    apart: tuple[Left, ...] = ()
    sha256: str = ""
    model_sha256: str = ""
    weight_bytes: Mapping[str, int] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def plan_in(folder: Path) -> dict[str, Any] | None:
    """The plan in a folder as JSON has it; None where there is none of ours."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return plan if plan.get("kind") == KIND else None
    except (OSError, ValueError, AttributeError):
        return None


def refuse_folders(paths: Sequence[Path]) -> None:
    """Refuse the ranks of a sharded model where one model or engine is wanted.

    Raises:
        InputError: One of the paths is their folder.
    """
    for path in paths:
        if plan := plan_in(path):
            count = plan["ranks"]
            raise InputError(
                f"{path} holds the {count} ranks of a sharded model", f"give --tp {count} too"
            )

"""Finds an architecture by its name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from models.zoo.case import Case
from models.zoo.names import NAMES


class Unsupported(Exception):
    """The modelling code has no such attention implementation."""


def build(name: str, attention: str) -> Case:
    """The case ``name`` with attention written out ("eager") or as one call ("sdpa").

    Raises:
        Unsupported: If the modelling code does not have that implementation.
    """
    torch.manual_seed(0)  # what the constructors draw
    try:
        case: Case = getattr(import_module(f"models.zoo.{NAMES[name]}"), name)(attention)
    except ValueError as refusal:
        if "does not support an attention implementation" in str(refusal):
            raise Unsupported("the modelling code has only eager attention") from refusal
        raise
    config: Any = getattr(case.model, "config", None)
    chosen = getattr(config, "_attn_implementation", attention)
    if chosen != attention:
        raise Unsupported(f"attention is {chosen} where {attention} was asked for")
    return case

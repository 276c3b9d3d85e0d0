"""A sum over the weights of a model that no other spelling of it changes.

The seeded inputs do not reach every weight: a row of an embedding that no token of theirs names may
change, and no output does. Names, order, a transposed weight, and three that are packed into one
leave the sum as it is; every processor finds the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper

from opfuse.graph.protos import all_tensors, type_name
from opfuse.graph.weights import raw_blocks
from opfuse.precision.types import FLOATS

_FEWEST = 8  # values of a tensor up to which it is part of the computation, such as a scale
_UNIT = 2.0**24  # in one
_MOST = 2.0**20  # what masks hold counts as so much
_SLACK = 1 << 10  # units: a thousand last digits of tables that another processor computed


def sums(model: ModelProto, base_dir: Path) -> dict[str, str]:
    """Return by type how many values the weights have, and their sum in units of 2 ** -24."""
    counts: dict[int, int] = defaultdict(int)
    totals: dict[int, int] = defaultdict(int)
    for tensor in all_tensors(model):
        size = prod(tensor.dims)
        if tensor.data_type in FLOATS and size > _FEWEST:
            counts[tensor.data_type] += size
            totals[tensor.data_type] += _sum(tensor, base_dir)
    return {type_name(kind): f"{counts[kind]} {totals[kind]}" for kind in sorted(counts)}


def changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the types of which there are as many values, and not the same ones."""
    pairs = [(name, was[name].split(), now[name].split()) for name in was if name in now]
    return [
        name
        for name, (count, total), (other, sum_now) in pairs
        if count == other and abs(int(total) - int(sum_now)) > _SLACK
    ]


def _sum(tensor: TensorProto, base_dir: Path) -> int:
    """The sum in whole units, which is the same in any order."""
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    total = 0
    for block in raw_blocks(tensor, base_dir):
        values = np.frombuffer(block, dtype).astype(np.float64)
        known = np.nan_to_num(np.clip(values, -_MOST, _MOST), nan=0.0)
        total += int(np.rint(known * _UNIT).astype(np.int64).sum())
    return total

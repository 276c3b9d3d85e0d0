"""FlashAttention where keys are split: few queries, and tiles that fill no round."""

from __future__ import annotations

import itertools

import pytest

from opfuse.runtime import abi
from tests.gpu.attention_cases import FLOAT32_LOWEST, Case, check, reference
from tests.gpu.harness import Runner, described, torch

HALVES = [torch.float16, torch.bfloat16]


def test_heads_that_share_keys(runner: Runner, generator: torch.Generator) -> None:
    """As many as a product has rows, and more (Falcon has 71)."""
    shapes = ((64, 1), (71, 1), (142, 2))
    for size, (heads, kv_heads) in itertools.product((64, 128, 256), shapes):
        for keys in (70, 1000):
            case = Case(1, keys, size, heads=heads, kv_heads=kv_heads)
            check(runner, generator, case, torch.float16, "decode")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_few_queries_with_a_mask(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Masks that all rows of a key/value head share, whether keys are split or not."""
    masks = (
        {"mask": "bk", "padding": -torch.inf, "nan_guard": 1},
        {"mask": "bk", "padding": FLOAT32_LOWEST, "float_mask": True},
        {"mask": "k", "scale": -0.3},
        {"mask": "b"},
        {"mask": "bhk", "float_mask": True},
        {"mask": "bk", "window": 300},
        {"mask": "hk", "window": 99, "float_mask": True, "nan_guard": 1},
        {"mask": "bqk", "causal": True},
    )
    shapes = ((1, 1, 4), (1, 9, 8), (1, 2, 64), (3, 8, 1), (16, 40, 1))  # queries, batch, group
    for size, mask in itertools.product((40, 64, 96, 128, 160, 256), masks):
        for (queries, batch, group), keys in itertools.product(shapes, (77, 1030, 2501)):
            case = Case(queries, keys, size, batch=batch, heads=2 * group, kv_heads=2, **mask)
            check(runner, generator, case, dtype, "decode")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_several_queries_of_heads_that_share_keys(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Speculative decoding and chunks of a prompt: a group's queries are rows of one tile."""
    variants = (
        {},
        {"causal": True, "nan_guard": 1},
        {"causal": True, "window": 700, "layout": "BSHD"},
        {"causal": True, "lengths": 1},
        {"lengths": 1, "nan_guard": 1},
        {"mask": "bk", "causal": True, "nan_guard": 1},
        {"mask": "k", "float_mask": True, "scale": -0.3},
    )
    # queries, heads, key/value heads, batch
    shapes = (
        (2, 8, 2, 1),
        (5, 14, 2, 1),
        (16, 32, 2, 3),
        (3, 64, 1, 9),
        (33, 12, 4, 1),
        (90, 4, 4, 2),
    )
    for size, shape, keys in itertools.product((40, 64, 128, 160), shapes, (515, 1100, 4101)):
        queries, heads, kv_heads, batch = shape
        for variant in variants:
            case = Case(queries, keys, size, 0, batch, heads, kv_heads, **variant)
            check(runner, generator, case, dtype, "packed rows")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_last_round_that_is_shared_out(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Tiles that leave multiprocessors idle: of one round, of several, and of a chunk's queries."""
    # queries, keys, heads, key/value heads
    shapes = (
        (300, 5000, 3, 3),
        (1100, 8200, 8, 2),
        (4000, 4100, 8, 8),
        (520, 2100, 60, 20),
        (1000, 4100, 40, 8),
        (190, 4100, 32, 8),
        (190, 1600, 264, 88),  # whole rounds
    )
    for size, shape in itertools.product((64, 80, 96, 128), shapes):
        queries, keys, heads, kv_heads = shape
        for causal in (False, True):
            case = Case(queries, keys, size, 0, 1, heads, kv_heads, causal)
            check(runner, generator, case, dtype, "shared round")
            check(runner, generator, case, dtype, "shared round")  # counters begin anew


def test_splits_add_up_in_every_workspace(runner: Runner, generator: torch.Generator) -> None:
    """Launches on two streams, whose splits count their arrivals, and more workspaces than sets."""
    case = Case(1, 4096, 128, batch=1, heads=32, kv_heads=8)
    q, k, v = (
        torch.randn(1, heads, rows, 128, generator=generator, device="cuda").half()
        for heads, rows in ((32, 1), (8, 4096), (8, 4096))
    )
    expected = reference(case, q, k, v, None)[0]
    streams = [torch.cuda.Stream() for _ in range(2)]
    with abi.Plugin(runner.library, "FlashAttention", case.attributes()) as plugin:
        size = plugin.workspace_size(described([q, k, v]))
        count = 150  # of each stream; beyond 256 sets in all
        memory = [
            torch.full((size + 256 * count,), 0xFF, dtype=torch.uint8, device="cuda")
            for _ in streams
        ]
        results = torch.full((count, 2, *q.shape), torch.nan, device="cuda").half()
        torch.cuda.synchronize()
        for i, (at, stream) in itertools.product(range(count), enumerate(streams)):
            plugin.enqueue(
                described([q, k, v]),
                described([results[i, at]]),
                stream.cuda_stream,
                memory[at].data_ptr() + 256 * i,
            )
        torch.cuda.synchronize()
    assert torch.equal(results, results[:1, :1].expand_as(results))
    assert torch.allclose(results[0, 0].double(), expected, rtol=2e-3, atol=1e-4)

"""FlashAttention against float64: head sizes, lengths, masks, groups, and its three kernels."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from tests.gpu.attention_cases import FLOAT32_LOWEST, Case, check, check_packed, reference
from tests.gpu.harness import Runner, torch

HALVES = [torch.float16, torch.bfloat16]
# Each side of each instance's size; odd ones too, which have no 16-byte rows.
SIZES = [8, 16, 20, 32, 33, 40, 64, 72, 80, 88, 96, 100, 128, 136, 160, 192, 200, 256]
# Decode, one tile, tiles that end within a block, and keys that are fewer than queries.
LENGTHS = [
    (1, 1), (1, 1000), (3, 77), (16, 515), (17, 17), (64, 64), (65, 200), (129, 128), (197, 197),
    (384, 384), (200, 33), (130, 1025),
]  # fmt: skip
VARIANTS = [
    {},
    {"causal": True},
    {"causal": True, "nan_guard": 1, "kv_heads": 1},
    {"kv_heads": 2},
    {"mask": "bk"},
    {"mask": "k"},
    {"mask": "bqk", "nan_guard": 1},
    {"mask": "hq", "causal": True},
    {"mask": "bhqk", "float_mask": True, "kv_heads": 2},
    {"mask": "qk", "float_mask": True, "nan_guard": 1, "softcap": 3.0},
    {"softcap": 20.0, "causal": True, "scale": 1.0},
    {"scale": -0.5},
    {"window": 7},
    {"window": 70, "causal": True, "kv_heads": 2, "nan_guard": 1},
    {"window": 100, "mask": "bqk", "nan_guard": 1},
    {"slopes": True},
    {"slopes": True, "causal": True, "kv_heads": 2},
    {"slopes": True, "mask": "bk", "softcap": 9.0},
    {"slopes": True, "mask": "qk", "float_mask": True, "nan_guard": 1, "window": 90},
    {"layout": "BSHD", "causal": True},
    {"layout": "BSHD,BHSD,BSHD,BSHD", "kv_heads": 1, "mask": "bk"},
    {"layout": "BHSD,BHSD,BSHD,BSHD", "window": 33, "causal": True, "nan_guard": 1},
    {"lengths": 1, "kv_heads": 2},
    {"lengths": 1, "causal": True, "nan_guard": 1},
    {"lengths": 2, "mask": "bqk", "nan_guard": 1, "slopes": True, "layout": "BSHD"},
    {"lengths": 1, "mask": "bk", "float_mask": True, "nan_guard": 1, "window": 50},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_sizes_lengths_and_variants(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, size: int
) -> None:
    for (queries, keys), variant in itertools.product(LENGTHS, VARIANTS):
        kernel = "decode" if queries <= 16 else "prefill"
        check(runner, generator, Case(queries, keys, size, **variant), dtype, kernel)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_values_of_another_size_and_unaligned_tensors(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    for queries, (size, value_size) in itertools.product(
        (5, 70), ((192, 128), (64, 128), (40, 24), (32, 250), (33, 1))
    ):
        check(runner, generator, Case(queries, 150, size, value_size), dtype)
    for queries, offset in itertools.product((5, 70), (1, 2, 4)):
        for size, mask in itertools.product((64, 128), ("", "bqk")):
            case = Case(queries, 150, size, mask=mask, offset=offset)
            check(runner, generator, case, dtype, "unaligned")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(1, 4096, 128, batch=1, heads=32, kv_heads=8),
        Case(16, 8192, 64, batch=1, heads=8, kv_heads=1, causal=True),
        Case(7, 8191, 256, batch=1, heads=2, kv_heads=1, mask="bqk"),
        Case(1, 65600, 64, batch=1, heads=2, kv_heads=2),
        Case(33, 65600, 64, batch=1, heads=1, kv_heads=1),
        Case(33, 65600, 128, batch=1, heads=1, kv_heads=1, causal=True),
        Case(33, 65600, 256, batch=1, heads=1, kv_heads=1),
        Case(2048, 2048, 128, batch=1, heads=4, kv_heads=2, causal=True),
        Case(1025, 4096, 64, batch=1, heads=4, kv_heads=1, causal=True),
        Case(1025, 4096, 64, batch=1, heads=4, kv_heads=1, causal=True, slopes=True),
        Case(1100, 1100, 96, batch=3, heads=4, kv_heads=4),
        Case(1100, 1100, 192, batch=3, heads=8, kv_heads=2, causal=True),
        Case(1100, 1100, 256, batch=3, heads=8, kv_heads=2),
        Case(2048, 2048, 256, batch=2, heads=8, kv_heads=1, causal=True, softcap=50.0, window=600),
        Case(2048, 2048, 256, batch=1, heads=8, kv_heads=8, mask="bqk", nan_guard=1),
        Case(4096, 1025, 64, batch=1, heads=4, kv_heads=4, mask="bk"),
    ],
    ids=str,
)
def test_long(runner: Runner, generator: torch.Generator, dtype: torch.dtype, case: Case) -> None:
    check(runner, generator, case, dtype, "long")


BY_POSITION = "BSHD,BSHD,BSHD,BSHD"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(
            128, 128, 128, batch=1, heads=16, kv_heads=4, causal=True, layout="BHSD,BHSD,BHSD,BSHD"
        ),
        Case(2048, 2048, 128, batch=1, heads=16, kv_heads=4, causal=True, layout=BY_POSITION),
        Case(197, 197, 64, batch=32, heads=12, kv_heads=12, layout=BY_POSITION),
        Case(384, 384, 64, batch=8, heads=12, kv_heads=12, mask="bk", layout=BY_POSITION),
        Case(1024, 1024, 64, batch=1, heads=12, kv_heads=12, causal=True, layout=BY_POSITION),
    ],
    ids=str,
)
def test_shapes_of_networks(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, case: Case
) -> None:
    """Llama's, ViT's, BERT's, and GPT-2's, as their projections lay them out."""
    check(runner, generator, case, dtype, "networks")
    if case.layout == BY_POSITION:
        check_packed(runner, generator, case, dtype)


def test_many_heads_on_few_processors(runner: Runner, generator: torch.Generator) -> None:
    """More tiles than a persistent kernel has blocks, in all orders of rounds."""
    shapes = ((300, 1), (300, 23), (1100, 1), (1100, 3), (1100, 8))
    for size, causal, (length, batch) in itertools.product((64, 128), (False, True), shapes):
        case = Case(length, length, size, batch=batch, heads=12, kv_heads=4, causal=causal)
        check(runner, generator, case, torch.float16, "many")
    for queries in (40, 100, 65, 144):  # fewer tiles of a head than warp groups
        case = Case(queries, 150, 64, batch=50, heads=12, kv_heads=4)
        check(runner, generator, case, torch.float16, "many")
    for size, window in itertools.product((64, 128), (100, 1000)):
        case = Case(2000, 2100, size, batch=1, heads=12, kv_heads=4, causal=True, window=window)
        check(runner, generator, case, torch.float16, "many")


def test_every_kernel_of_short_sequences(runner: Runner, generator: torch.Generator) -> None:
    """Few and many tiles, of which a host function chooses the size."""
    variants = ({}, {"causal": True}, {"window": 90, "nan_guard": 1})
    lengths = ((77, 200), (257, 257), (400, 400), (130, 1000))
    for size, (queries, keys), batch in itertools.product((64, 72, 96, 128), lengths, (1, 7, 32)):
        for variant in variants:
            case = Case(queries, keys, size, batch=batch, heads=12, kv_heads=4, **variant)
            check(runner, generator, case, torch.float16, "many")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_short_heads_in_parts(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Few keys, and queries of one to nine tiles, the last of which has few or many."""
    variants = ({}, {"causal": True, "nan_guard": 1}, {"window": 30}, {"kv_heads": 1})
    for queries, keys in itertools.product((66, 80, 81, 144, 197, 208, 257, 272, 520), (193, 208)):
        for size, variant in itertools.product((40, 64), variants):
            for batch in (1, 40):
                case = Case(queries, keys, size, batch=batch, **variant)
                check(runner, generator, case, dtype, "short")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_padding(runner: Runner, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Blocks of keys that a mask hides from all queries may be left out, with no other result."""
    fills = ((-torch.inf, False), (-torch.inf, True), (FLOAT32_LOWEST, True))
    variants = ({}, {"causal": True}, {"window": 40}, {"nan_guard": 1}, {"scale": -0.3})
    for size, (queries, keys) in itertools.product((64, 128), ((100, 384), (70, 65), (300, 1030))):
        for (fill, wide), variant in itertools.product(fills, variants):
            case = Case(queries, keys, size, batch=9, mask="bk", padding=fill, float_mask=wide)
            case = dataclasses.replace(case, heads=2, kv_heads=1, **variant)
            check(runner, generator, case, dtype, "padding")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_padding_of_many_keys(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """So many that the keys which the mask leaves are counted first, and not when they are few."""
    for size, (queries, keys) in itertools.product((64, 96, 128, 256), ((1000, 1100), (530, 2110))):
        for fill, wide in ((-torch.inf, False), (FLOAT32_LOWEST, True)):
            for variant in (
                {},
                {"nan_guard": 1, "softcap": 4.0},
                {"kv_heads": 4, "scale": -0.3},
            ):
                case = Case(queries, keys, size, batch=9, mask="bk", padding=fill, float_mask=wide)
                case = dataclasses.replace(case, **variant)
                check(runner, generator, case, dtype, "padding")


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_lengths(runner: Runner, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Batches of which each has its own number of keys, in every kernel."""
    variants = ({}, {"causal": True, "nan_guard": 1}, {"window": 90}, {"mask": "bhqk"})
    sizes = (40, 64) if dtype == torch.float32 else (32, 64, 80, 96, 128, 192, 256)
    shapes = ((1, 3000), (4, 2100), (16, 700), (197, 197), (150, 1200), (1100, 1100))
    for size, (queries, keys), variant in itertools.product(sizes, shapes, variants):
        for kv_heads in (8, 2):
            case = Case(queries, keys, size, batch=7, heads=8, kv_heads=kv_heads, lengths=1)
            check(runner, generator, dataclasses.replace(case, **variant), dtype, "lengths")


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_masks_of_many_keys(runner: Runner, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Masks of every broadcast that the copy engine reads, tile by tile."""
    variants = ({}, {"causal": True}, {"window": 300, "nan_guard": 1}, {"scale": -0.3})
    sizes, lengths = (64, 128, 40, 72, 96, 256), ((700, 1000), (1000, 520))
    for size, (queries, keys) in itertools.product(sizes, lengths):
        for mask, variant in itertools.product(("qk", "bqk", "hqk", "bhqk"), variants):
            case = Case(queries, keys, size, batch=3, heads=6, kv_heads=2, mask=mask, **variant)
            check(runner, generator, case, dtype, "tile mask")


def test_fp32_and_large_heads(runner: Runner, generator: torch.Generator) -> None:
    for (queries, keys), variant in itertools.product(((1, 300), (37, 75)), VARIANTS):
        check(runner, generator, Case(queries, keys, 40, **variant), torch.float32, "plain")
        case = Case(queries, keys, 264, 520, **variant)
        check(runner, generator, case, torch.float16, "plain")


def test_a_nan_stays_in_its_row(runner: Runner, generator: torch.Generator) -> None:
    for queries, size, guard in itertools.product((5, 70), (64, 128, 192), (0, 1)):
        case = Case(queries, 130, size, nan_guard=guard)
        q, k, v = (
            torch.randn(2, 4, n, size, generator=generator, device="cuda").half()
            for n in (queries, 130, 130)
        )
        q[:, :, 3, 5] = torch.nan
        y = torch.empty_like(q)
        runner("FlashAttention", case.attributes(), [q, k, v], [y])
        expected = reference(case, q, k, v, None)[0]
        assert torch.allclose(y.double(), expected, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
def test_packed(runner: Runner, generator: torch.Generator, dtype: torch.dtype) -> None:
    """PackedAttention is FlashAttention of the parts."""
    variants = ({}, {"causal": True, "window": 9}, {"mask": "bk"}, {"slopes": True, "mask": "k"},
                {"lengths": 1, "causal": True})  # fmt: skip
    for size, length, kv_heads in itertools.product((64, 128, 40, 20), (1, 5, 197, 1200), (4, 2)):
        for variant in variants:
            case = Case(length, length, size, kv_heads=kv_heads, **variant)
            check_packed(runner, generator, case, dtype)


def test_no_keys_give_zeros(runner: Runner) -> None:
    q, none = (torch.ones(1, 4, n, 64, device="cuda").half() for n in (3, 0))
    y = torch.full_like(q, torch.nan)
    runner("FlashAttention", Case(3, 0).attributes(), [q, none, none], [y])
    assert y.eq(0).all()


@pytest.mark.parametrize("queries", [1, 100])
def test_capture_and_replay(runner: Runner, generator: torch.Generator, queries: int) -> None:
    case = Case(queries, 3000, 128, batch=1, causal=True)
    q, k, v = (
        torch.randn(1, 4, n, 128, generator=generator, device="cuda").half()
        for n in (queries, 3000, 3000)
    )
    y = torch.empty_like(q)
    runner("FlashAttention", case.attributes(), [q, k, v], [y])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runner("FlashAttention", case.attributes(), [q, k, v], [y])
    q.copy_(torch.randn_like(q))
    graph.replay()
    replayed = y.clone()
    runner("FlashAttention", case.attributes(), [q, k, v], [y])
    assert torch.equal(y, replayed)
    assert torch.allclose(y.double(), reference(case, q, k, v, None)[0], rtol=1e-2, atol=1e-2)


def test_memory_is_exact_with_counted_keys(runner: Runner, generator: torch.Generator) -> None:
    """A mask so large that its keys are counted first, for compute-sanitizer."""
    case = Case(1100, 1030, 80, heads=16, kv_heads=1, mask="bk", padding=-torch.inf)
    check(runner, generator, case, torch.float16, "exact")
    for size, length in ((80, 257), (96, 257), (96, 197), (128, 257), (128, 197)):
        case = Case(length, length, size, batch=12, heads=8)  # tiles of 192 queries, of 64
        check(runner, generator, case, torch.float16, "exact")


@pytest.mark.parametrize("size", [32, 64, 80, 128, 192, 256])
def test_attention_memory_is_exact(runner: Runner, generator: torch.Generator, size: int) -> None:
    """Small cases of every kernel, for compute-sanitizer."""
    for queries, keys in ((1, 300), (70, 130)):
        for variant in ({"causal": True}, {"mask": "bqk", "nan_guard": 1, "slopes": True}):
            case = Case(queries, keys, size, batch=1, heads=2, kv_heads=1)
            check(runner, generator, dataclasses.replace(case, **variant), torch.float16, "exact")


@pytest.mark.parametrize("size", [64, 128, 256])
def test_memory_is_exact_with_shared_heads(
    runner: Runner, generator: torch.Generator, size: int
) -> None:
    """Lengths, masks, and several queries of heads that share keys, for compute-sanitizer."""
    for queries, keys in ((1, 700), (80, 150)):
        case = Case(queries, keys, size, batch=1, heads=4, kv_heads=2)
        check(runner, generator, case, torch.float16, "exact")
        for length in (keys // 2, keys):  # decode does not split fewer than 384 keys
            masked = dataclasses.replace(case, keys=length, mask="bk")
            check(runner, generator, masked, torch.float16, "exact")
        case = dataclasses.replace(case, batch=3, lengths=1, nan_guard=1, causal=queries > 1)
        check(runner, generator, case, torch.float16, "exact")
    shared = Case(7, 600, size, batch=1, heads=6, kv_heads=2, causal=True)  # keys
    check(runner, generator, shared, torch.float16, "exact")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_memory_is_exact_in_parts_of_a_round(
    runner: Runner, generator: torch.Generator, size: int, causal: bool
) -> None:
    """A few tiles of queries over many keys, for compute-sanitizer."""
    part = Case(100, 5000, size, batch=1, heads=2, kv_heads=2, causal=causal)
    check(runner, generator, part, torch.float16, "exact")


def test_memory_is_exact_without_halves(runner: Runner, generator: torch.Generator) -> None:
    """Unaligned rows, and fp32, for compute-sanitizer."""
    check(runner, generator, Case(5, 40, 33, batch=1, offset=1), torch.float16, "exact")
    check(runner, generator, Case(5, 40, 33, batch=1), torch.float32, "exact")

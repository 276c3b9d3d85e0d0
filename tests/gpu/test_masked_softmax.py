"""MaskedSoftmax against float64: every broadcast of the mask, causal, masked rows, odd sizes."""

from __future__ import annotations

import pytest

from opfuse.runtime.abi import PluginError
from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import masked_softmax

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INF, NAN = float("inf"), float("nan")
# batch, heads, queries, keys
SHAPES = [
    (2, 3, 5, 7),
    (2, 3, 4, 64),
    (1, 2, 33, 33),
    (3, 1, 1, 384),
    (2, 2, 9, 1000),
    (5, 16, 300, 384),
]
KEYS = [1, 2, 3, 8, 31, 33, 127, 256, 500, 512, 1023, 2048, 2049, 5000, 16384, 65535, 65536, 300001]
MASKS = [
    None, "k", "1", "qk", "b11k", "b1qk", "1hqk", "bhqk", "bhq1", "b111", "11q1", "hqk", "b1q1",
]  # fmt: skip


def mask_shape(mask: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """``"b1qk"`` of (batch, heads, queries, keys) is (batch, 1, queries, keys)."""
    sizes = dict(zip("bhqk", shape, strict=True)) | {"1": 1}
    return tuple(sizes[axis] for axis in mask)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, mask: str | None, causal: int
) -> None:
    for shape in SHAPES:
        if causal and shape[2] > shape[3]:
            continue
        for offset, mask_offset, kind in ((0, 0, dtype), (1, 0, dtype), (0, 3, torch.float32)):
            buffers, others = Buffers(offset), Buffers(mask_offset)
            scores = buffers.place(4 * torch.randn(shape, generator=generator, device="cuda"))
            scores = buffers.place(scores.to(dtype))
            inputs = [scores]
            if mask:
                bias = torch.randn(mask_shape(mask, shape), generator=generator, device="cuda")
                inputs.append(others.place(bias.to(kind)))
            y = buffers.empty(shape, dtype)
            runner("MaskedSoftmax", {"scale": 0.3, "causal": causal}, inputs, [y])
            expected = masked_softmax(scores, inputs[1] if mask else None, 0.3, bool(causal))
            runner.compare("MaskedSoftmax", y, expected)
            buffers.check_guards()
            others.check_guards()


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys(runner: Runner, generator: torch.Generator, dtype: torch.dtype, keys: int) -> None:
    for queries in (1, 3, 70, 300):
        if queries * keys > 20_000_000:
            continue
        for offset, causal in ((0, 0), (1, 0), (0, 1), (1, 1)):
            buffers = Buffers(offset)
            values = 3 * torch.randn(2, queries, keys, generator=generator, device="cuda")
            scores = buffers.place(values.to(dtype))
            bias = torch.randn(1, queries, keys, generator=generator, device="cuda").to(dtype)
            mask = buffers.place(bias)
            y = buffers.empty(scores.shape, dtype)
            runner("MaskedSoftmax", {"scale": 1.5, "causal": causal}, [scores, mask], [y])
            expected = masked_softmax(scores, mask, 1.5, bool(causal))
            if queries > keys and causal:  # the first queries see nothing
                seen = expected.isfinite()
                assert torch.equal(y.isfinite(), seen)
                y, expected = y[seen], expected[seen]
            runner.compare("MaskedSoftmax keys", y, expected)
            if dtype == torch.float32:
                assert torch.allclose(y.double(), expected, rtol=1e-4, atol=1e-30)
            buffers.check_guards()


def masked_rows(shape: tuple[int, ...], fill: float, dtype: torch.dtype) -> torch.Tensor:
    """[queries, keys]: the second row is masked as a whole, the others at random."""
    mask = torch.zeros(shape[-2:], device="cuda")
    mask[torch.rand_like(mask) < 0.5] = fill
    mask[:, 0], mask[1] = 0.0, fill
    return mask.to(dtype)


@pytest.mark.parametrize("keys", [7, 384, 4097, 70000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fully_masked_row_is_what_softmax_gives(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, keys: int
) -> None:
    scores = torch.randn(2, 4, keys, generator=generator, device="cuda").to(dtype)
    y = torch.empty_like(scores)
    for kind in (dtype, torch.float32):
        runner("MaskedSoftmax", {}, [scores, masked_rows(scores.shape, -INF, kind)], [y])
        assert y[:, 1].isnan().all()
        assert y[:, [0, 2, 3]].isfinite().all()
        if kind == torch.float16:
            continue  # its lowest number does not absorb the scores; the room takes fp32 then
        lowest = torch.finfo(kind).min
        mask = masked_rows(scores.shape, lowest, kind)
        runner("MaskedSoftmax", {}, [scores, mask], [y])
        runner.compare("MaskedSoftmax lowest", y, masked_softmax(scores, mask, 1.0, False))
        even = torch.full_like(y[:, 1], 1 / keys)
        assert torch.allclose(y[:, 1], even, rtol=1e-2)


@pytest.mark.parametrize("keys", [7, 1024, 40000])
@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_specials_stay_in_their_row(
    runner: Runner, dtype: torch.dtype, special: float, keys: int
) -> None:
    scores = torch.randn(8, keys, device="cuda").to(dtype)
    scores[1::2, keys // 3] = special
    for causal in (0, 1):
        y = torch.empty_like(scores)
        runner("MaskedSoftmax", {"causal": causal}, [scores], [y])
        expected = masked_softmax(scores, None, 1.0, bool(causal))
        close = torch.allclose(y.double(), expected, rtol=1e-2, atol=1e-2, equal_nan=True)
        assert close
        assert torch.equal(y.isnan(), expected.isnan())


def test_hidden_nan_stays_hidden(runner: Runner) -> None:
    """What a causal row does not see is not read."""
    scores = torch.randn(64, 64, device="cuda").half()
    scores.masked_fill_(torch.ones(64, 64, device="cuda").triu(1).bool(), NAN)
    y = torch.empty_like(scores)
    runner("MaskedSoftmax", {"causal": 1}, [scores], [y])
    assert y.isfinite().all()
    assert y.triu(1).eq(0).all()


@pytest.mark.parametrize("rank", [2, 3, 5, 7])
def test_ranks(runner: Runner, generator: torch.Generator, rank: int) -> None:
    shape = (2,) * (rank - 2) + (3, 40)
    scores = torch.randn(shape, generator=generator, device="cuda")
    alternating = tuple(size if i % 2 else 1 for i, size in enumerate(shape))
    mask = torch.randn(alternating, generator=generator, device="cuda")
    y = torch.empty_like(scores)
    runner("MaskedSoftmax", {"scale": 2.0}, [scores, mask], [y])
    runner.compare("MaskedSoftmax ranks", y, masked_softmax(scores, mask, 2.0, False))


def test_more_than_2_to_the_31_elements(runner: Runner) -> None:
    scores = torch.zeros(2**31 // 2048 + 3, 2048, device="cuda", dtype=torch.float16)
    scores[:, 5] = 4.0
    y = torch.empty_like(scores)
    runner("MaskedSoftmax", {}, [scores], [y])
    expected = masked_softmax(scores[:1], None, 1.0, False).half()
    assert torch.allclose(y[-3:], expected, rtol=2e-3)
    assert y[:, 5].allclose(expected[0, 5], rtol=2e-3)


def test_a_mask_that_does_not_broadcast_is_refused(runner: Runner) -> None:
    scores = torch.zeros(2, 3, 4, device="cuda")
    for shape in [(3,), (2, 4), (2, 1, 3, 4)]:
        with pytest.raises(PluginError, match="mask does not broadcast"):
            mask = torch.zeros(shape, device="cuda")
            runner("MaskedSoftmax", {}, [scores, mask], [scores.clone()])

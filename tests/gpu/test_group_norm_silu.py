"""GroupNormSilu against float64: groups in one warp, a block, a cluster, and cut into parts."""

from __future__ import annotations

import pytest

from opfuse.runtime.abi import PluginError
from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import group_norm_silu

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPSILON = 1e-5
# shape, groups
CASES = [
    ((1, 1, 1), 1), ((2, 4, 1), 2), ((2, 6, 3), 3), ((3, 8, 5, 7), 4), ((2, 32, 8, 8), 32),
    ((2, 64, 16, 16), 32), ((1, 320, 33, 31), 32), ((2, 320, 64, 64), 32), ((2, 1280, 16, 16), 32),
    ((1, 128, 256, 255), 4), ((1, 128, 512, 512), 32), ((1, 6, 999983), 2), ((1, 2, 3, 1000003), 1),
    ((5, 48, 1), 3), ((200, 64, 8, 8), 8), ((2, 4096, 3), 1),
]  # fmt: skip
NOISE = 2e-5  # a float32 mean of up to millions of elements


@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shapes(
    runner: Runner,
    generator: torch.Generator,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    groups: int,
) -> None:
    for offset, kind in ((0, dtype), (1, dtype), (0, torch.float32)):
        buffers, weights = Buffers(offset), Buffers(offset)
        x = buffers.place(torch.randn(shape, generator=generator, device="cuda").to(dtype))
        gamma, beta = (
            weights.place(torch.randn(shape[1], generator=generator, device="cuda").to(kind))
            for _ in range(2)
        )
        y = buffers.empty(shape, dtype)
        attributes = {"num_groups": groups, "epsilon": EPSILON}
        runner("GroupNormSilu", attributes, [x, gamma, beta], [y])
        expected = group_norm_silu(x, gamma, beta, groups, EPSILON)
        few = x[0].numel() // groups <= 8  # close numbers: their difference is amplified
        runner.compare("GroupNormSilu", y, expected, 1e-3 if few else NOISE)
        buffers.check_guards()


@pytest.mark.parametrize("unaligned", range(2))
def test_one_unaligned_pointer(runner: Runner, generator: torch.Generator, unaligned: int) -> None:
    for shape, groups in [((2, 64, 16, 16), 8), ((1, 8, 300000), 2)]:
        places = [Buffers(1 if i == unaligned else 0) for i in range(2)]
        x = places[0].place(torch.randn(shape, generator=generator, device="cuda").half())
        gamma, beta = (torch.randn(shape[1], generator=generator, device="cuda") for _ in range(2))
        y = places[1].empty(shape, x.dtype)
        runner("GroupNormSilu", {"num_groups": groups}, [x, gamma, beta], [y])
        expected = group_norm_silu(x, gamma, beta, groups, EPSILON)
        runner.compare("GroupNormSilu unaligned", y, expected, NOISE)


@pytest.mark.parametrize("shape", [(2, 8, 64), (2, 64, 64, 64), (1, 8, 1024, 1024)])
def test_variance_far_from_zero(
    runner: Runner, generator: torch.Generator, shape: tuple[int, ...]
) -> None:
    """A mean 500 times the deviation: E[x^2] - E[x]^2 in fp32 would be off by a tenth."""
    x = torch.randn(shape, generator=generator, device="cuda") + 500
    gamma, beta = torch.ones(shape[1], device="cuda"), torch.zeros(shape[1], device="cuda")
    y = torch.empty_like(x)
    runner("GroupNormSilu", {"num_groups": 4}, [x, gamma, beta], [y])
    expected = group_norm_silu(x, gamma, beta, 4, EPSILON)
    runner.compare("GroupNormSilu far from zero", y, expected, 5e-4)


@pytest.mark.parametrize("shape", [(2, 8, 5), (2, 64, 32, 32), (1, 8, 1000, 1000)])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_specials_stay_in_their_group(
    runner: Runner, special: float, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, device="cuda")
    x.view(shape[0], 4, -1)[:, 1, 3] = special
    gamma, beta = torch.ones(shape[1], device="cuda"), torch.zeros(shape[1], device="cuda")
    y = torch.empty_like(x)
    runner("GroupNormSilu", {"num_groups": 4}, [x, gamma, beta], [y])
    found = y.view(shape[0], 4, -1)
    assert found[:, 1].isnan().all()
    assert found[:, [0, 2, 3]].isfinite().all()


def test_zero_batch_and_zero_pixels(runner: Runner) -> None:
    gamma = torch.ones(8, device="cuda")
    for shape in [(0, 8, 4, 4), (2, 8, 0, 4)]:
        x = torch.empty(shape, device="cuda")
        runner("GroupNormSilu", {"num_groups": 2}, [x, gamma, gamma], [x.clone()])
    torch.cuda.synchronize()


@pytest.mark.parametrize("spatial", [2**16, 2**22])
def test_more_than_2_to_the_31_elements(runner: Runner, spatial: int) -> None:
    channels, groups = 64, 4
    batch = 2**31 // (channels * spatial) + 1
    x = torch.empty(batch, channels, spatial, device="cuda", dtype=torch.float16)
    x[:] = torch.randn(spatial, device="cuda").half()
    gamma = torch.linspace(-2, 2, channels, device="cuda")
    y = torch.full_like(x, float("nan"))
    runner("GroupNormSilu", {"num_groups": groups}, [x, gamma, gamma], [y])
    expected = group_norm_silu(x[:1], gamma, gamma, groups, EPSILON)
    runner.compare("GroupNormSilu many", y[-1:], expected, NOISE)
    assert y.eq(y[0]).all()


def test_channels_that_do_not_divide_are_refused(runner: Runner) -> None:
    x, gamma = torch.zeros(2, 6, 4, device="cuda"), torch.zeros(6, device="cuda")
    with pytest.raises(PluginError, match="6 channels do not divide by 4 groups"):
        runner("GroupNormSilu", {"num_groups": 4}, [x, gamma, gamma], [x.clone()])

"""Every op against float64, over odd shapes, all types, aligned and unaligned memory."""

from __future__ import annotations

import pytest

from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import activate, layer_norm, rms_norm

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Both sides of each switch: one lane, one warp, several warps, a cluster, shared memory, and more
# than that holds; odd ones too.
COLS = [
    1, 2, 3, 5, 7, 8, 16, 31, 32, 33, 64, 100, 127, 128, 255, 256, 512, 768, 1000, 1023, 1024,
    1025, 2048, 2056, 3072, 4096, 4097, 5120, 8191, 8192, 8193, 11008, 16384, 16388, 32768, 32776,
    65535, 65536, 65537, 131073, 300000, 1000003,
]  # fmt: skip
ROWS = [1, 2, 3, 5, 33, 130, 700]
MOST = 16_000_000  # elements of a test's tensor
EPSILON = 1e-5


def random(
    generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0
) -> torch.Tensor:
    values = torch.randn(shape, generator=generator, device="cuda") + offset
    return values.to(dtype)


def rows_of(cols: int) -> list[int]:
    return [rows for rows in ROWS if rows * cols <= MOST]


def layouts(dtype: torch.dtype) -> list[tuple[int, torch.dtype]]:
    """(elements off alignment, type of gamma and beta)."""
    return [(0, dtype), (1, dtype), (0, torch.float32), (3, torch.float32)]


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, cols: int
) -> None:
    for rows in rows_of(cols):
        for offset, parameter in layouts(dtype):
            buffers = Buffers(offset)
            x = buffers.place(random(generator, (rows, cols), dtype))
            gamma = buffers.place(random(generator, (cols,), parameter))
            y = buffers.empty(x.shape, dtype)
            runner("RmsNorm", {"epsilon": EPSILON}, [x, gamma], [y])
            runner.compare("RmsNorm y", y, rms_norm(x, gamma, EPSILON))
            buffers.check_guards()


@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, cols: int
) -> None:
    for rows in rows_of(cols):
        for offset, parameter in layouts(dtype):
            buffers = Buffers(offset)
            x, residual = (buffers.place(random(generator, (rows, cols), dtype)) for _ in range(2))
            gamma = buffers.place(random(generator, (cols,), parameter))
            y, total = buffers.empty(x.shape, dtype), buffers.empty(x.shape, dtype)
            runner("AddRmsNorm", {"epsilon": EPSILON}, [x, residual, gamma], [y, total])
            runner.compare("AddRmsNorm sum", total, x.double() + residual.double(), 2e-7)
            runner.compare("AddRmsNorm y", y, rms_norm(total, gamma, EPSILON))
            buffers.check_guards()


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_layer_norm(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, cols: int, with_bias: bool
) -> None:
    for rows in rows_of(cols):
        for offset, parameter in layouts(dtype):
            buffers = Buffers(offset)
            x, residual = (buffers.place(random(generator, (rows, cols), dtype)) for _ in range(2))
            gamma, beta, bias = (
                buffers.place(random(generator, (cols,), t)) for t in (parameter, dtype, parameter)
            )
            y, total = buffers.empty(x.shape, dtype), buffers.empty(x.shape, dtype)
            inputs = [x, residual, gamma, beta, bias][: 5 if with_bias else 4]
            runner("AddLayerNorm", {"epsilon": EPSILON}, inputs, [y, total])
            expected = x.double() + residual.double() + (bias.double() if with_bias else 0)
            runner.compare("AddLayerNorm sum", total, expected, 5e-7)
            noise = (
                4e-4 if cols <= 8 else 1e-5
            )  # a few close numbers: their difference is amplified
            runner.compare("AddLayerNorm y", y, layer_norm(total, gamma, beta, EPSILON), noise)
            buffers.check_guards()


# So many that a thread keeps several vectors; with three of them, some rows are in a warp.
MANY = [(48000, 200), (23000, 384), (12000, 640), (12000, 768), (9000, 1024), (6000, 1536)]


@pytest.mark.parametrize("rows, cols", MANY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, rows: int, cols: int
) -> None:
    for offset, parameter in layouts(dtype)[:3]:
        buffers = Buffers(offset)
        x, residual = (buffers.place(random(generator, (rows, cols), dtype)) for _ in range(2))
        gamma, beta = (buffers.place(random(generator, (cols,), parameter)) for _ in range(2))
        y, total = buffers.empty(x.shape, dtype), buffers.empty(x.shape, dtype)
        runner("RmsNorm", {"epsilon": EPSILON}, [x, gamma], [y])
        runner.compare("RmsNorm y", y, rms_norm(x, gamma, EPSILON))
        runner("AddRmsNorm", {"epsilon": EPSILON}, [x, residual, gamma], [y, total])
        runner.compare("AddRmsNorm y", y, rms_norm(total, gamma, EPSILON))
        total.fill_(float("nan"))
        runner("AddLayerNorm", {"epsilon": EPSILON}, [x, residual, gamma, beta], [y, total])
        runner.compare("AddLayerNorm sum", total, x.double() + residual.double(), 5e-7)
        runner.compare("AddLayerNorm y", y, layer_norm(total, gamma, beta, EPSILON), 1e-5)
        buffers.check_guards()


@pytest.mark.parametrize("cols", [5, 768, 4096, 4097, 65536, 300000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sum_that_nobody_reads(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, cols: int
) -> None:
    """y is the same whatever becomes of sum, of which nothing is read that was not written."""
    for rows in rows_of(cols):
        buffers = Buffers()
        x, residual = (buffers.place(random(generator, (rows, cols), dtype)) for _ in range(2))
        gamma, beta = (buffers.place(random(generator, (cols,), dtype)) for _ in range(2))
        for op, weights in (("AddRmsNorm", [gamma]), ("AddLayerNorm", [gamma, beta])):
            inputs = [x, residual, *weights]
            expected, y, total = (buffers.empty(x.shape, dtype) for _ in range(3))
            runner(op, {"epsilon": EPSILON}, inputs, [expected, total])
            total.fill_(float("nan"))
            runner(op, {"epsilon": EPSILON, "sum_is_read": 0}, inputs, [y, total])
            assert torch.equal(y, expected), f"{op} {rows}x{cols}"
        buffers.check_guards()


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_act(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, cols: int, activation: str
) -> None:
    for rows in rows_of(cols):
        for offset in (0, 1):
            for packed in (False, True):
                buffers = Buffers(offset)
                both = random(generator, (rows, 2 * cols), dtype) * 3
                gate, up = both.split(cols, -1)
                placed = [both] if packed else [gate, up]
                y = buffers.empty((rows, cols), dtype)
                inputs = [buffers.place(t) for t in placed]
                runner("GatedAct", {"activation": activation}, inputs, [y])
                expected = activate(gate, activation) * up.double()
                runner.compare(f"GatedAct {activation}", y, expected)
                buffers.check_guards()


@pytest.mark.parametrize("offsets", [(1, 0, 0), (0, 3, 0), (0, 0, 1), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_act_at_any_alignment(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, offsets: tuple[int, ...]
) -> None:
    """gate, up, and y are off alignment, each in its own way."""
    for shape in ((1, 5), (3, 1000), (33, 4097)):
        of_gate, of_up, of_y = buffers = [Buffers(offset) for offset in offsets]
        gate = of_gate.place(random(generator, shape, dtype) * 3)
        up = of_up.place(random(generator, shape, dtype))
        y = of_y.empty(shape, dtype)
        runner("GatedAct", {"activation": "silu"}, [gate, up], [y])
        runner.compare("GatedAct unaligned", y, activate(gate, "silu") * up.double())
        for each in buffers:
            each.check_guards()


# On a warp and less, a block, a cluster, and from shared memory; the last ones' rows are shifted.
SHAPES = [(64, 4096), (700, 96), (1, 4096), (3, 65536), (2, 300000), (33, 1001), (2, 4097)]
# Few rows that fill their threads: plain sums, with 4, 8, and 16 warps, and on a cluster.
SHORT_SHAPES = [(64, 1024), (64, 2048), (64, 4096), (200, 768), (8, 4096)]
# Many rows that fill their blocks: plain sums too.
FULL_SHAPES = [(2000, 1024), (600, 4096), (1500, 4096), (512, 16384)]


def check_layer_norm(runner: Runner, x: torch.Tensor, noise: float) -> None:
    """AddLayerNorm of ``x`` alone, against float64."""
    buffers = Buffers()
    x = buffers.place(x)
    residual = buffers.place(torch.zeros_like(x))
    weights = [torch.full_like(x[0], value) for value in (1.0, 0.0)]
    gamma, beta = map(buffers.place, weights)
    y, total = buffers.empty(x.shape, x.dtype), buffers.empty(x.shape, x.dtype)
    runner("AddLayerNorm", {"epsilon": EPSILON}, [x, residual, gamma, beta], [y, total])
    expected = layer_norm(total, gamma, beta, EPSILON)
    runner.compare("AddLayerNorm y far from zero", y, expected, noise)
    buffers.check_guards()


@pytest.mark.parametrize("shape", SHAPES + SHORT_SHAPES + FULL_SHAPES, ids=str)
def test_variance_far_from_zero(
    runner: Runner, generator: torch.Generator, shape: tuple[int, int]
) -> None:
    """A mean 500 times the deviation: E[x^2] - E[x]^2 in fp32 would be off by a tenth."""
    check_layer_norm(runner, random(generator, shape, torch.float32, offset=500.0), 2e-4)


# Plain sums serve up to four deviations, and are taken once more above.
@pytest.mark.parametrize("offset", [0.0, 3.9, 4.1, 30.0])
@pytest.mark.parametrize("shape", SHORT_SHAPES + FULL_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_variance_some_deviations_from_zero(
    runner: Runner,
    generator: torch.Generator,
    dtype: torch.dtype,
    shape: tuple[int, int],
    offset: float,
) -> None:
    signs = torch.tensor([1.0, -1.0], device="cuda").repeat(shape[0] // 2).unsqueeze(1)
    x = (random(generator, shape, torch.float32) + offset) * signs
    check_layer_norm(runner, x.to(dtype), 1e-5 if offset < 5 else 2e-5)


@pytest.mark.parametrize("far", [1, 8, 40])
@pytest.mark.parametrize("shape", SHAPES + SHORT_SHAPES + FULL_SHAPES, ids=str)
def test_variance_around_values_far_from_the_others(
    runner: Runner, generator: torch.Generator, shape: tuple[int, int], far: int
) -> None:
    """The first values, which the others are first measured from, lie 1e4 deviations away."""
    x = random(generator, shape, torch.float32)
    x[:, :far] += 1e4
    check_layer_norm(runner, x, 4e-5)


@pytest.mark.parametrize("shape", SHORT_SHAPES + FULL_SHAPES, ids=str)
def test_variance_of_large_values(
    runner: Runner, generator: torch.Generator, shape: tuple[int, int]
) -> None:
    """Their squares are infinite in fp32, those of their differences are not."""
    x = random(generator, shape, torch.float32, offset=100.0) * 1e17
    check_layer_norm(runner, x, 1e-4)


@pytest.mark.parametrize("value", [0.0, -3.0, 4096.0])
def test_no_variance(runner: Runner, value: float) -> None:
    x = torch.full((5, 4096), value, device="cuda")
    check_layer_norm(runner, x, 1e-5)


@pytest.mark.parametrize("unaligned", range(3))
def test_one_unaligned_pointer(runner: Runner, generator: torch.Generator, unaligned: int) -> None:
    """Any one of x, gamma, y off alignment must turn the vector path off for all."""
    offsets = [1 if i == unaligned else 0 for i in range(3)]
    buffers = [Buffers(offset) for offset in offsets]
    x = buffers[0].place(random(generator, (17, 1024), torch.float16))
    gamma = buffers[1].place(random(generator, (1024,), torch.float16))
    y = buffers[2].empty(x.shape, x.dtype)
    runner("RmsNorm", {"epsilon": EPSILON}, [x, gamma], [y])
    runner.compare("RmsNorm y", y, rms_norm(x, gamma, EPSILON))

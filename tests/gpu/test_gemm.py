"""GemmAct and GatedGemm against float64: all epilogues, both layouts, odd sizes, few and many rows.

The error that is allowed is that of fp32 sums of products that are exact, and one rounding.
"""

from __future__ import annotations

import pytest

from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import activate

DTYPES = [torch.float16, torch.bfloat16]
ACTIVATIONS = ["none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu"]
GATES = ["silu", "gelu", "gelu_tanh"]
# (rows, depth, columns): each kernel with whole and with broken tiles, and what no vector fits.
SHAPES = [
    (1, 64, 64), (1, 4096, 1000), (3, 200, 1000), (16, 8, 8), (17, 4104, 264), (64, 4096, 512),
    (65, 64, 256), (128, 256, 512), (129, 136, 1112), (300, 4096, 1024), (1000, 768, 3072),
    (1, 24, 8), (2, 8192, 2048), (4, 264, 2056), (1, 4104, 4096), (3, 72, 8200),
    (1, 1, 1), (5, 7, 9), (33, 65, 127), (130, 31, 33), (257, 1001, 2), (2, 12, 20), (70, 100, 264),
]  # fmt: skip
# Of sums of up to 4104 products, of scale 1: tensor cores cut off what fp32 does not hold.
NOISE = 5e-5


def noise_of_gates(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """A product has the error of each of its factors, times the other."""
    return NOISE * (1 + gate.abs() + up.abs())


def random(
    generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0
) -> torch.Tensor:
    return (torch.randn(shape, generator=generator, device="cuda") * scale).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gemm_act(
    runner: Runner,
    generator: torch.Generator,
    dtype: torch.dtype,
    transposed: int,
    shape: tuple[int, int, int],
) -> None:
    rows, depth, cols = shape
    for number, activation in enumerate(ACTIVATIONS):
        buffers = Buffers(offset=int(number == 1))
        x = buffers.place(random(generator, (rows, depth), dtype))
        weight = random(generator, (depth, cols), dtype, depth**-0.5)
        placed = buffers.place(weight.T.contiguous() if transposed else weight)
        inputs, total = [x, placed], x.double() @ weight.double()
        if number % 2 == 0:
            inputs.append(buffers.place(random(generator, (cols,), dtype)))
            total = total + inputs[-1].double()
        expected = activate(total, activation)
        if number >= 3:
            inputs.append(buffers.place(random(generator, (rows, cols), dtype)))
            expected = expected + inputs[-1].double()
        y = buffers.empty((rows, cols), dtype)
        attributes = {"activation": activation, "transposed": transposed}
        runner("GemmAct", {**attributes, "residual": int(number >= 3)}, inputs, [y])
        runner.compare(f"GemmAct {activation}", y, expected, NOISE)
        buffers.check_guards()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gated_gemm(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    rows, depth, cols = shape
    for number, activation in enumerate(GATES):
        buffers = Buffers(offset=int(number == 1))
        x = buffers.place(random(generator, (rows, depth), dtype))
        weight = buffers.place(random(generator, (depth, 2 * cols), dtype, depth**-0.5))
        inputs, both = [x, weight], x.double() @ weight.double()
        if number % 2 == 0:
            inputs.append(buffers.place(random(generator, (2 * cols,), dtype)))
            both = both + inputs[-1].double()
        gate, up = both.chunk(2, -1)
        y = buffers.empty((rows, cols), dtype)
        runner("GatedGemm", {"activation": activation}, inputs, [y])
        expected = activate(gate, activation) * up
        runner.compare(f"GatedGemm {activation}", y, expected, noise_of_gates(gate, up))
        buffers.check_guards()


# Every way to compute, also those that these sizes would not take; one that cannot is another one.
WAYS = range(1, 20)
WAY_SHAPES = [
    (1, 512, 264), (7, 320, 520), (17, 4104, 520), (40, 712, 136), (65, 1024, 384),
    (128, 520, 1112), (150, 264, 392), (300, 2048, 1024),
]  # fmt: skip


@pytest.mark.parametrize("shape", WAY_SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_each_tactic(
    runner: Runner, generator: torch.Generator, way: int, shape: tuple[int, int, int]
) -> None:
    rows, depth, cols = shape
    for dtype in DTYPES:
        for transposed, activation in ((0, "none"), (1, "silu"), (0, "gelu")):
            buffers = Buffers()
            x = buffers.place(random(generator, (rows, depth), dtype))
            weight = random(generator, (depth, cols), dtype, depth**-0.5)
            placed = buffers.place(weight.T.contiguous() if transposed else weight)
            bias = buffers.place(random(generator, (cols,), dtype))
            expected = activate(x.double() @ weight.double() + bias.double(), activation)
            inputs, attributes = [x, placed, bias], {"transposed": transposed, "tactic": way}
            if activation != "none":
                inputs.append(buffers.place(random(generator, (rows, cols), dtype)))
                attributes["residual"] = 1
                expected = expected + inputs[-1].double()
            y = buffers.empty((rows, cols), dtype)
            runner("GemmAct", {"activation": activation, **attributes}, inputs, [y])
            runner.compare("GemmAct by tactic", y, expected, NOISE)
            buffers.check_guards()


@pytest.mark.parametrize("shape", WAY_SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_each_tactic_of_gates(
    runner: Runner, generator: torch.Generator, way: int, shape: tuple[int, int, int]
) -> None:
    rows, depth, cols = shape
    for dtype in DTYPES:
        buffers = Buffers()
        x = buffers.place(random(generator, (rows, depth), dtype))
        weight = buffers.place(random(generator, (depth, 2 * cols), dtype, depth**-0.5))
        bias = buffers.place(random(generator, (2 * cols,), dtype))
        gate, up = (x.double() @ weight.double() + bias.double()).chunk(2, -1)
        y = buffers.empty((rows, cols), dtype)
        runner("GatedGemm", {"activation": "silu", "tactic": way}, [x, weight, bias], [y])
        expected = activate(gate, "silu") * up
        runner.compare("GatedGemm by tactic", y, expected, noise_of_gates(gate, up))
        buffers.check_guards()


# Tiles of 64 columns: shared by blocks, one a block, of 40 and of 48 columns, one a block of which
# a multiprocessor has two, and several a block.
@pytest.mark.parametrize("cols", [264, 2056, 5128, 6152, 8328, 8968, 14344, 17416])
@pytest.mark.parametrize("rows", [5, 12, 30, 60, 100, 120])
def test_few_rows_of_each_width(
    runner: Runner, generator: torch.Generator, rows: int, cols: int
) -> None:
    for depth, transposed, activation in ((520, 0, "none"), (72, 1, "silu"), (1032, 0, "gelu")):
        buffers = Buffers()
        x = buffers.place(random(generator, (rows, depth), torch.float16))
        weight = random(generator, (depth, 2 * cols), torch.float16, depth**-0.5)
        plain = weight[:, :cols]
        placed = buffers.place(plain.T.contiguous() if transposed else plain.contiguous())
        bias = buffers.place(random(generator, (2 * cols,), torch.float16))
        residual = buffers.place(random(generator, (rows, cols), torch.float16))
        y = buffers.empty((rows, cols), torch.float16)
        sums = x.double() @ weight.double() + bias.double()
        attributes: dict[str, str | int] = {"activation": activation, "residual": 1}
        attributes["transposed"] = transposed
        runner("GemmAct", attributes, [x, placed, bias[:cols], residual], [y])
        expected = activate(sums[:, :cols], activation) + residual.double()
        runner.compare("GemmAct of few rows", y, expected, NOISE)
        gate, up = sums.chunk(2, -1)
        gated = buffers.empty((rows, cols), torch.float16)
        runner("GatedGemm", {"activation": "silu"}, [x, buffers.place(weight), bias], [gated])
        expected = activate(gate, "silu") * up
        runner.compare("GatedGemm of few rows", gated, expected, noise_of_gates(gate, up))
        buffers.check_guards()


@pytest.mark.parametrize("way", [*range(1, 9), 14, 15])
def test_large_product_by_tactic(runner: Runner, generator: torch.Generator, way: int) -> None:
    """More tiles than multiprocessors for each block, several times over, with edges."""
    rows, depth, cols = 4090, 776, 4360
    x = random(generator, (rows, depth), torch.float16)
    weight = random(generator, (depth, cols), torch.float16, depth**-0.5)
    residual = random(generator, (rows, cols), torch.float16)
    expected = activate(x.double() @ weight.double(), "gelu") + residual.double()
    y = torch.full((rows, cols), float("nan"), dtype=torch.float16, device="cuda")
    attributes = {"activation": "gelu", "residual": 1, "tactic": way}
    runner("GemmAct", attributes, [x, weight, residual], [y])
    runner.compare("GemmAct large by tactic", y, expected, NOISE)


@pytest.mark.parametrize("tiles", range(1, 6))
@pytest.mark.parametrize("way", [6, 7, 15])
def test_residual_by_turns(
    runner: Runner, generator: torch.Generator, way: int, tiles: int
) -> None:
    """Blocks of an H100 have about so many tiles, whose depth is of one stage or several."""
    rows, cols = 1000, 2816 * tiles - 8
    for depth, dtype, activation in (
        (64, torch.float16, "none"),
        (136, torch.bfloat16, "relu"),
        (520, torch.float16, "silu"),
    ):
        buffers = Buffers()
        x = buffers.place(random(generator, (rows, depth), dtype))
        weight = buffers.place(random(generator, (depth, cols), dtype, depth**-0.5))
        residual = buffers.place(random(generator, (rows, cols), dtype))
        y = buffers.empty((rows, cols), dtype)
        attributes = {"activation": activation, "residual": 1, "tactic": way}
        runner("GemmAct", attributes, [x, weight, residual], [y])
        expected = activate(x.double() @ weight.double(), activation) + residual.double()
        runner.compare("GemmAct by turns", y, expected, NOISE)
        buffers.check_guards()


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("shape", [(4000, 2056, 4360), (4090, 768, 3080), (4096, 3072, 776)])
def test_large_product(
    runner: Runner, generator: torch.Generator, shape: tuple[int, int, int], activation: str
) -> None:
    """More tiles than multiprocessors, a depth of many stages, and edges: every tile is right."""
    rows, depth, cols = shape
    x = random(generator, (rows, depth), torch.float16)
    weight = random(generator, (depth, cols), torch.float16, depth**-0.5)
    bias = random(generator, (cols,), torch.float16)
    residual = random(generator, (rows, cols), torch.float16)
    expected = activate(x.double() @ weight.double() + bias.double(), activation)
    for more in ([], [residual]):
        y = torch.full((rows, cols), float("nan"), dtype=torch.float16, device="cuda")
        attributes = {"activation": activation, "residual": len(more)}
        runner("GemmAct", attributes, [x, weight, bias, *more], [y])
        runner.compare("GemmAct large", y, expected + sum(r.double() for r in more), NOISE)


def test_beyond_32_bits(runner: Runner, generator: torch.Generator) -> None:
    """x and y have more than 2^31 elements; the last rows show whether offsets fit."""
    rows, depth, cols = 1 << 20, 2056, 2056
    x = torch.zeros((rows, depth), dtype=torch.float16, device="cuda")
    x[-128:] = random(generator, (128, depth), torch.float16)
    weight = random(generator, (depth, cols), torch.float16, depth**-0.5)
    y = torch.full((rows, cols), float("nan"), dtype=torch.float16, device="cuda")
    runner("GemmAct", {}, [x, weight], [y])
    runner.compare("GemmAct beyond", y[-128:], x[-128:].double() @ weight.double(), NOISE)
    assert y[:-128].abs().max() == 0


@pytest.mark.parametrize("rows", [1, 64, 1000])
def test_error_is_not_above_cublas(runner: Runner, generator: torch.Generator, rows: int) -> None:
    """Same inputs, bias and GELU; torch's fused epilogue is cuBLASLt's."""
    depth, cols = 4096, 1024
    x = random(generator, (rows, depth), torch.float16)
    weight = random(generator, (depth, cols), torch.float16, depth**-0.5)
    bias = random(generator, (cols,), torch.float16)
    y = torch.empty((rows, cols), dtype=torch.float16, device="cuda")
    expected = activate(x.double() @ weight.double() + bias.double(), "gelu_tanh")
    theirs = torch._addmm_activation(bias, x, weight, use_gelu=True)
    runner("GemmAct", {"activation": "gelu_tanh"}, [x, weight, bias], [y])
    own, other = ((found.double() - expected).norm() for found in (y, theirs))
    assert own <= other * 1.001


@pytest.mark.parametrize("way", [4, 6, 7, 15])
def test_silu_far_below_zero(runner: Runner, generator: torch.Generator, way: int) -> None:
    """What is nearly 0 is right too, beside sums up to 30."""
    rows, depth, cols = 1000, 520, 776
    x = random(generator, (rows, depth), torch.float16)
    weight = random(generator, (depth, cols), torch.float16, 6 * depth**-0.5)
    total = x.double() @ weight.double()
    y = torch.full((rows, cols), float("nan"), dtype=torch.float16, device="cuda")
    runner("GemmAct", {"activation": "silu", "tactic": way}, [x, weight], [y])
    expected = activate(total, "silu")
    runner.compare("GemmAct silu, far", y, expected, 6 * NOISE)
    far = total < -6
    slope = (1 - total) * total.exp()  # of x e^x, which SiLU is there
    allowed = 6 * NOISE * slope + expected.abs() * 2**-10 + 2**-25
    assert far.sum() > 100
    assert ((y.double() - expected).abs() <= allowed)[far].all()


@pytest.mark.parametrize("way", [4, 5, 6, 7, 15, 19])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_of_every_number(runner: Runner, activation: str, way: int) -> None:
    """Of all fp16 from -20 to 20, within 2e-5 of the result beside its rounding."""
    bits = torch.arange(-(1 << 15), 1 << 15, device="cuda").to(torch.int16)
    x = bits.view(torch.float16)
    x = x[x.abs() <= 20]
    rows = 64 if way == 19 else len(x) // 64
    for part in x[: len(x) // (64 * rows) * 64 * rows].view(-1, rows, 64):
        y = torch.full_like(part, float("nan"))
        weight = torch.eye(64, dtype=torch.float16, device="cuda")
        attributes: dict[str, str | int] = {"activation": activation, "tactic": way}
        runner("GemmAct", attributes, [part.contiguous(), weight], [y])
        expected = activate(part.double(), activation)
        allowed = expected.abs() * (2**-11 + 2e-5) + 2**-25 * 1.01
        assert ((y.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("rows", [0, 3])
def test_empty(runner: Runner, rows: int) -> None:
    """No rows give nothing; no depth gives the activation of the bias."""
    depth = 64 if rows == 0 else 0
    x = torch.empty((rows, depth), dtype=torch.float16, device="cuda")
    weight = torch.empty((depth, 32), dtype=torch.float16, device="cuda")
    bias = torch.arange(32, device="cuda").half()
    y = torch.full((rows, 32), float("nan"), dtype=torch.float16, device="cuda")
    runner("GemmAct", {}, [x, weight, bias], [y])
    assert torch.equal(y, bias.expand(rows, 32))


def test_blas_chooses_outside_of_captures(runner: Runner, generator: torch.Generator) -> None:
    """A shape that a capture meets first is computed by the own kernels, then by cuBLASLt's."""
    x = random(generator, (200, 1032), torch.float16)
    weight = random(generator, (1032, 776), torch.float16, 1032**-0.5)
    bias = random(generator, (776,), torch.float16)
    expected = activate(x.double() @ weight.double() + bias.double(), "gelu_tanh")
    attributes: dict[str, str | int] = {"activation": "gelu_tanh", "tactic": 14}
    for launches_before in (0, 1):
        y = torch.full((200, 776), float("nan"), dtype=torch.float16, device="cuda")
        for _ in range(launches_before):
            runner("GemmAct", attributes, [x, weight, bias], [y.clone()])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            runner("GemmAct", attributes, [x, weight, bias], [y])
        for _ in range(2):
            y.fill_(float("nan"))
            graph.replay()
            runner.compare("GemmAct captured", y, expected, NOISE)


MEMORY = [
    ((5, 7, 9), 0), ((3, 72, 136), 0), ((200, 72, 264), 4), ((200, 136, 264), 6),
    ((3, 264, 136), 11), ((200, 136, 264), 7), ((200, 136, 264), 15), ((100, 136, 136), 16),
    ((12, 136, 136), 17), ((12, 136, 136), 18), ((3, 264, 136), 19), ((60, 136, 264), 19),
    ((12, 392, 520), 19), ((100, 136, 264), 19), ((60, 72, 6152), 19), ((200, 72, 264), 5),
    ((400, 392, 264), 6), ((400, 392, 264), 7), ((400, 392, 264), 15),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "tactic"), MEMORY, ids=str)
def test_memory_is_exact(
    runner: Runner, generator: torch.Generator, shape: tuple[int, int, int], tactic: int
) -> None:
    """For compute-sanitizer: each buffer is an allocation of its own."""
    rows, depth, cols = shape
    x = random(generator, (rows, depth), torch.float16)
    weight = random(generator, (depth, 2 * cols), torch.float16)
    plain = weight[:, :cols].contiguous()
    residual = random(generator, (rows, cols), torch.float16)
    # Written once by a kernel: initcheck does not see what the copy engine writes.
    gated = torch.full_like(residual, float("nan"))
    for activation, more in (("gelu", [residual]), ("none", [residual]), ("silu", [])):
        y = torch.full_like(residual, float("nan"))
        attributes: dict[str, str | int] = {"activation": activation, "tactic": tactic}
        attributes["residual"] = len(more)
        runner("GemmAct", attributes, [x, plain, *more], [y])
        assert y.isfinite().all()
    runner("GatedGemm", {"tactic": tactic}, [x, weight], [gated])
    assert gated.isfinite().all()


@pytest.mark.parametrize("rows", [7, 300])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_specials_stay_in_their_row(
    runner: Runner, activation: str, special: float, rows: int
) -> None:
    x = torch.randn(rows, 64, device="cuda").half()
    weight = torch.eye(64, device="cuda").half()
    bias = torch.zeros(64, device="cuda").half()
    bias[5] = special
    y = torch.empty_like(x)
    runner("GemmAct", {"activation": activation}, [x, weight, bias], [y])
    expected = activate(x.double() + bias.double(), activation)
    assert torch.allclose(y.double(), expected, rtol=1e-2, atol=1e-2, equal_nan=True)

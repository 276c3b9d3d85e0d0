"""Zero rows, NaN and Inf, CUDA graphs, tensors beyond 2^31 elements, and refused calls."""

from __future__ import annotations

import pytest

from opfuse.runtime.abi import PluginError
from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import activate, layer_norm, rms_norm

EPSILON = {"epsilon": 1e-5}
INF, NAN = float("inf"), float("nan")


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """NaN, +Inf, and -Inf stand at the same places, and the rest is close."""
    return torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, 64), (3, 0, 64), (0, 7)])
def test_zero_rows(runner: Runner, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, dtype=dtype, device="cuda")
    gamma = torch.ones(shape[-1], dtype=dtype, device="cuda")
    runner("RmsNorm", EPSILON, [x, gamma], [x.clone()])
    runner("AddRmsNorm", EPSILON, [x, x, gamma], [x.clone(), x.clone()])
    runner("AddLayerNorm", EPSILON, [x, x, gamma, gamma], [x.clone(), x.clone()])
    runner("GatedAct", {}, [x, x], [x.clone()])
    runner("MaskedSoftmax", {}, [x, x], [x.clone()])
    torch.cuda.synchronize()
    assert x.numel() == 0


def rows_with(special: float, cols: int, dtype: torch.dtype, rows: int = 8) -> torch.Tensor:
    """Random rows, each odd one with a special value in it."""
    x = torch.randn(rows, cols, device="cuda", dtype=torch.float32)
    x[1::2, cols // 3] = special
    return x.to(dtype)


@pytest.mark.parametrize(
    "rows, cols", [(8, 7), (8, 1024), (64, 2048), (64, 4096), (600, 4096), (8, 20000)]
)
@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_specials_stay_in_their_row(
    runner: Runner, dtype: torch.dtype, special: float, rows: int, cols: int
) -> None:
    x = rows_with(special, cols, dtype, rows)
    residual = torch.randn_like(x)
    gamma = torch.ones(cols, device="cuda", dtype=dtype)
    beta = torch.zeros_like(gamma)
    y, total = torch.empty_like(x), torch.empty_like(x)
    runner("RmsNorm", EPSILON, [x, gamma], [y])
    assert same(y, rms_norm(x, gamma, 1e-5))
    runner("AddRmsNorm", EPSILON, [x, residual, gamma], [y, total])
    assert same(y, rms_norm(total, gamma, 1e-5))
    runner("AddLayerNorm", EPSILON, [x, residual, gamma, beta], [y, total])
    assert same(y, layer_norm(total, gamma, beta, 1e-5))
    assert y[0::2].isfinite().all()
    assert y[1::2].isnan().any(-1).all()


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_specials_of_activations(runner: Runner, dtype: torch.dtype, activation: str) -> None:
    large = torch.finfo(dtype).max
    values = [NAN, INF, -INF, 0.0, -0.0, large, -large, 20.0, -20.0, 1e-7, -100.0, 100.0]
    gate = torch.tensor(values, device="cuda").to(dtype)
    up = torch.full_like(gate, 0.5)
    y = torch.empty_like(gate)
    runner("GatedAct", {"activation": activation}, [gate, up], [y])
    expected = (activate(gate.float(), activation).float() * up.float()).to(dtype)
    assert torch.allclose(y.float(), expected.float(), rtol=1e-2, atol=1e-5, equal_nan=True)


def test_sum_beyond_fp16_is_infinite(runner: Runner) -> None:
    x = torch.full((2, 64), 60000.0, device="cuda", dtype=torch.float16)
    y, total = torch.empty_like(x), torch.empty_like(x)
    runner("AddRmsNorm", EPSILON, [x, x, torch.ones_like(x[0])], [y, total])
    assert total.isinf().all()
    assert y.isnan().all()


def test_graph_capture_and_replay(runner: Runner) -> None:
    """Capture fails on any allocation or synchronisation; replay reads the inputs anew."""
    x, residual = (torch.randn(64, 1000, device="cuda", dtype=torch.float16) for _ in range(2))
    gamma, beta = (torch.randn(1000, device="cuda") for _ in range(2))
    y, total, z = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    half = torch.empty(64, 500, device="cuda", dtype=torch.float16)
    large = torch.empty(1, 1000, 64000, device="cuda", dtype=torch.float16)
    image = torch.empty_like(large)

    def layer() -> None:
        runner("AddLayerNorm", EPSILON, [x, residual, gamma, beta], [y, total])
        runner("RmsNorm", EPSILON, [y, gamma], [z])
        runner("MaskedSoftmax", {"causal": 1}, [z, y], [total])
        runner("AddRmsNorm", EPSILON, [total, z, gamma], [y, z])
        large.view(1000, 64, 1000)[:] = y
        runner("GroupNormSilu", {"num_groups": 2}, [large, gamma, beta], [image])
        runner("GroupNormSilu", {"num_groups": 250}, [image, gamma, beta], [large])
        z.copy_(large.view(1000, 64, 1000)[999])
        runner("GatedAct", {"activation": "gelu"}, [z], [half])

    layer()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer()
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.cuda.synchronize()
    replayed = half.clone()
    half.fill_(NAN)
    layer()
    assert torch.equal(half, replayed)


def chain(runner: Runner, x: torch.Tensor, rounds: int) -> torch.Tensor:
    """Short kernels that each read what the one before has written, and write what it has read."""
    cols = x.shape[1]
    gamma = torch.ones(cols, device="cuda")
    a, b, c = x.clone(), x.clone(), x.clone()
    for _ in range(rounds):
        runner("AddRmsNorm", EPSILON, [a, x, gamma], [b, c])
        runner("GatedAct", {}, [b, c], [a])
        runner("MaskedSoftmax", {"scale": 0.5}, [a, b], [c])
        runner("AddLayerNorm", EPSILON, [c, b, gamma, gamma], [a, b])
        runner("RmsNorm", EPSILON, [a, gamma], [a])  # in place
        runner("GroupNormSilu", {}, [a[None], gamma[: a.shape[0]], gamma[: a.shape[0]]], [c[None]])
        runner("AddRmsNorm", EPSILON, [c, a, gamma], [a, b])
    return a


@pytest.mark.parametrize("shape", [(1, 4096), (64, 4096), (700, 4095), (3, 70000), (9, 33)])
def test_early_launches_keep_their_order(runner: Runner, shape: tuple[int, int]) -> None:
    """Kernels that may start before the last has ended give what they give one by one."""
    x = torch.randn(shape, device="cuda").half()
    found = chain(runner, x, 20)
    slow = Serial(runner)
    assert torch.equal(found, chain(slow, x, 20))


@pytest.mark.parametrize("shape", [(1, 4096), (64, 4096)])
def test_replays_of_early_launches_agree(runner: Runner, shape: tuple[int, int]) -> None:
    """Each of ten thousand replays of a graph of them gives what they give one by one."""
    x = torch.randn(shape, device="cuda").half()
    expected = chain(Serial(runner), x, 3)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain(runner, x, 3)
        wrong += found.ne(expected).sum()
    for _ in range(10_000):
        graph.replay()
    assert wrong.item() == 0


def test_launches_of_several_sizes_in_a_graph(runner: Runner) -> None:
    """A kernel asks for shared memory by the number of its blocks."""
    inputs = [torch.randn(rows, 4096, device="cuda").half() for rows in (64, 1, 128, 16, 2, 200)]
    gamma = torch.ones(4096, device="cuda", dtype=torch.float16)
    normed = [torch.empty_like(x) for x in inputs]
    gated = [torch.empty_like(x[:, :2048]) for x in inputs]

    def layer(run: Runner | Serial) -> None:
        for x, y, z in zip(inputs, normed, gated, strict=True):
            run("RmsNorm", EPSILON, [x, gamma], [y])
            run("GatedAct", {}, [y], [z])

    layer(Serial(runner))
    expected = [z.clone() for z in gated]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer(runner)
    for made in (*normed, *gated):
        made.fill_(NAN)
    graph.replay()
    assert all(map(torch.equal, gated, expected))


WEIGHTED = (("RmsNorm", 1, 1), ("AddRmsNorm", 2, 1), ("AddLayerNorm", 2, 2))  # tensors, weights
WITH_WEIGHTS = [(1, 4096), (64, 4096), (64, 1024), (200, 768), (40, 8192), (600, 4096)]


@pytest.mark.parametrize("shape", WITH_WEIGHTS, ids=str)
def test_weights_that_the_kernel_ahead_writes(runner: Runner, shape: tuple[int, int]) -> None:
    """They are read behind it."""
    given = [torch.randn(shape, device="cuda").half() for _ in range(2)]
    sources = torch.randn(20, 2, shape[1], device="cuda").half()

    def norms(run: Runner | Serial) -> list[torch.Tensor]:
        weights, made = torch.zeros_like(sources[0]), []
        for source in sources:
            for op, tensors, count in WEIGHTED:
                outputs = [torch.empty_like(given[0]) for _ in range(tensors)]
                run("GatedAct", {}, [source.roll(tensors), source], [weights])
                run(op, EPSILON, [*given[:tensors], *weights[:count]], outputs)
                made += outputs
        return made

    found = norms(runner)
    assert all(map(torch.equal, found, norms(Serial(runner))))


class Serial:
    """Waits for each kernel."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __call__(self, *call: object) -> None:
        torch.cuda.synchronize()
        self.runner(*call)
        torch.cuda.synchronize()


def test_two_streams_at_once(runner: Runner) -> None:
    """Instances hold no state: two streams that run together do not disturb each other."""
    inputs = [torch.randn(513, 4096, device="cuda").half() for _ in range(2)]
    alone = [chain(runner, x, 5) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    together: list[torch.Tensor] = []
    for stream, x in zip(streams, inputs, strict=True):
        with torch.cuda.stream(stream):
            together.append(chain(runner, x, 5))
    torch.cuda.synchronize()
    assert all(map(torch.equal, alone, together))


@pytest.mark.parametrize("cols", [1, 4096])
def test_more_than_2_to_the_31_elements(runner: Runner, cols: int) -> None:
    rows = 2**31 // cols + 3
    x = torch.full((rows, cols), 2.0, device="cuda", dtype=torch.float16)
    x[-1], x[0] = 3.0, 1.0
    gamma = torch.ones(cols, device="cuda", dtype=torch.float16)
    y = torch.zeros_like(x)
    runner("RmsNorm", {"epsilon": 0.0}, [x, gamma], [y])
    assert y.view(-1)[:: max(cols, 997)].eq(1).all()
    assert y[-5:].eq(1).all()
    runner("GatedAct", {"activation": "silu"}, [x, x], [y])
    found = y[[0, 1, rows // 2, rows - 2, rows - 1], 0].double()
    gate = torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0], device="cuda")
    assert torch.allclose(found, activate(gate, "silu") * gate, rtol=1e-3)


def test_memory_is_exact(runner: Runner) -> None:
    """Buffers without guards, for compute-sanitizer: every path, at and around its limits."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for cols in (1, 7, 33, 256, 1000, 1024, 4095, 4096, 8193, 40000):
            for rows in (1, 5):
                buffers = Buffers(guard=0)
                x = buffers.place(torch.randn(rows, cols, device="cuda").to(dtype))
                gamma = buffers.place(torch.ones(cols, device="cuda"))
                y, total = buffers.empty(x.shape, dtype), buffers.empty(x.shape, dtype)
                runner("RmsNorm", EPSILON, [x, gamma], [y])
                runner("AddRmsNorm", EPSILON, [x, x, gamma], [y, total])
                runner("AddLayerNorm", EPSILON, [x, x, gamma, gamma, gamma], [y, total])
                runner("GatedAct", {}, [x, x], [y])
                runner("GatedAct", {}, [buffers.place(torch.cat((x, x), -1))], [y])
                runner("MaskedSoftmax", {"causal": rows == 1}, [x, x], [y])
                runner("MaskedSoftmax", {}, [x, gamma], [y])
                weight = buffers.place(torch.ones(rows, device="cuda"))
                runner("GroupNormSilu", {}, [x[None], weight, weight], [total[None]])
                assert y.isfinite().all()


def test_refused_calls_launch_nothing(runner: Runner) -> None:
    x = torch.randn(4, 64, device="cuda")
    y = torch.full_like(x, 7.0)
    with pytest.raises(PluginError, match="gamma has 32 elements, need 64"):
        runner("RmsNorm", EPSILON, [x, x[0, :32]], [y])
    with pytest.raises(PluginError, match="output 0 has another type or shape"):
        runner("RmsNorm", EPSILON, [x, x[0]], [y.half()])
    with pytest.raises(PluginError, match="input 1 has an unsupported type"):
        runner("RmsNorm", EPSILON, [x, x[0].half()], [y])
    torch.cuda.synchronize()
    assert y.eq(7).all()

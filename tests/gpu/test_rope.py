"""Rope and QkNormRope against float64: layouts, odd sizes, alignment, and what may go wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.gpu.harness import Buffers, Runner, torch
from tests.gpu.reference import rms_norm, rope

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# (size of a head, how much of it turns): vectors, halves off a vector, odd rests, long heads.
SIZES = [
    (2, 2), (6, 6), (7, 4), (16, 16), (24, 16), (64, 64), (72, 72), (80, 32), (96, 96),
    (128, 128), (128, 64), (130, 130), (256, 256), (520, 520), (1024, 512),
]  # fmt: skip
# Of x and of cos, "r" for what turns: heads first, positions first, flat, a row an element.
LAYOUTS = [
    ("2 5 33 d", "2 1 33 r"), ("2 5 33 d", "1 1 33 r"), ("3 4 1 d", "3 1 1 r"), ("2 5 9 d", "9 r"),
    ("2 33 5 d", "2 33 1 r"), ("2 33 5 d", "1 33 1 r"), ("2 3 5 d", "2 3 5 r"), ("7 d", "r"),
    ("2 3 5 7 d", "3 1 7 r"), ("2 3 4 5 d", "2 1 4 1 r"), ("130 d", "130 r"), ("2 3 300 d", "1 r"),
]  # fmt: skip
INF, NAN = float("inf"), float("nan")


def shape(text: str, size: int, turning: int) -> tuple[int, ...]:
    return tuple({"d": size, "r": turning}.get(part) or int(part) for part in text.split())


def normal(generator: torch.Generator, dims: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(dims, generator=generator, device="cuda").to(dtype)


def attributes(size: int, turning: int, interleaved: bool) -> dict[str, Any]:
    part = {"head_size": size} if turning != size else {}
    return {"interleaved": int(interleaved), "rotary_dim": turning, **part}


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("size", "turning"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope(
    runner: Runner,
    generator: torch.Generator,
    dtype: torch.dtype,
    size: int,
    turning: int,
    interleaved: bool,
) -> None:
    for x_dims, cache_dims in LAYOUTS:
        for offset, cache in ((0, dtype), (1, dtype), (0, torch.float32), (3, torch.float32)):
            buffers = Buffers(offset)
            x = buffers.place(normal(generator, shape(x_dims, size, turning), dtype))
            cos, sin = (
                buffers.place(normal(generator, shape(cache_dims, size, turning), cache))
                for _ in range(2)
            )
            y = buffers.empty(x.shape, dtype)
            runner("Rope", attributes(size, turning, interleaved), [x, cos, sin], [y])
            runner.compare("Rope", y, rope(x, cos, sin, interleaved=interleaved))
            buffers.check_guards()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rope_of_many_heads(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, interleaved: bool
) -> None:
    """More vectors than are in flight at once, and a last block that is not full."""
    own, positions = ("2 8 8201 d", "2 1 8201 r"), ("2 8 8201 d", "8201 r")
    flat, flat_own = ("2 8201 8 d", "8201 1 r"), ("2 8201 8 d", "2 8201 1 r")
    for x_dims, cache_dims in (own, positions, flat, flat_own):
        for cache in {dtype, torch.float32}:
            x = normal(generator, shape(x_dims, 64, 32), dtype)
            cos, sin = (normal(generator, shape(cache_dims, 64, 32), cache) for _ in range(2))
            y = torch.full_like(x, NAN)
            runner("Rope", attributes(64, 32, interleaved), [x, cos, sin], [y])
            runner.compare("Rope", y, rope(x, cos, sin, interleaved=interleaved))


def test_cos_and_sin_of_other_shapes(runner: Runner, generator: torch.Generator) -> None:
    x = normal(generator, (2, 3, 5, 64), torch.float16)
    cos, sin = normal(generator, (5, 64), torch.float32), normal(generator, (2, 3, 1, 64), x.dtype)
    y = torch.empty_like(x)
    runner("Rope", attributes(64, 64, False), [x, cos, sin], [y])
    runner.compare("Rope", y, rope(x, cos, sin))


class Packed:
    """One QkNormRope call on guarded memory, and what it should give."""

    def __init__(
        self,
        generator: torch.Generator,
        dtype: torch.dtype,
        tokens: tuple[int, int],
        heads: tuple[int, int],
        size: tuple[int, int],
        *,
        interleaved: bool = False,
        norm: bool = False,
        bias: bool = False,
        cache: torch.dtype | None = None,
        cache_dims: str = "b 1 s r",
        offset: int = 0,
    ) -> None:
        self.buffers, self.interleaved = Buffers(offset), interleaved
        (batch, seq), (count, few), (whole, turning) = tokens, heads, size
        self.heads, self.size, width = heads, whole, (count + 2 * few) * whole
        sizes = {"b": batch, "s": seq, "r": turning}
        rows = tuple(sizes.get(part, 1) for part in cache_dims.split())

        def place(dims: tuple[int, ...], kind: torch.dtype) -> torch.Tensor:
            return self.buffers.place(normal(generator, dims, kind))

        self.qkv = place((batch, seq, width), dtype)
        self.cos, self.sin = (place(rows, cache or dtype) for _ in range(2))
        self.gammas = [place((whole,), cache or dtype) for _ in range(2)] if norm else []
        self.bias = [place((width,), dtype)] if bias else []
        self.attributes = {
            **attributes(whole, turning, interleaved),
            "num_heads": count,
            "kv_num_heads": few,
            "epsilon": 1e-5,
            "norm": int(norm),
            "bias": int(bias),
        }
        self.out = [self.buffers.empty((batch, n, seq, whole), dtype) for n in (count, few, few)]

    @property
    def inputs(self) -> list[torch.Tensor]:
        return [self.qkv, self.cos, self.sin, *self.gammas, *self.bias]

    def expected(self) -> list[torch.Tensor]:
        packed = self.qkv.double() + (self.bias[0].double() if self.bias else 0)
        split = packed.unflatten(-1, (-1, self.size)).transpose(1, 2)
        q, k, v = split.split([self.heads[0], self.heads[1], self.heads[1]], 1)
        if self.gammas:
            q, k = (rms_norm(x, g, 1e-5) for x, g in zip((q, k), self.gammas, strict=True))
        turned = [rope(x, self.cos, self.sin, interleaved=self.interleaved) for x in (q, k)]
        return [*turned, v]

    def run(self, runner: Runner) -> None:
        runner("QkNormRope", self.attributes, self.inputs, self.out)

    def check(self, runner: Runner) -> None:
        self.run(runner)
        for name, found, expected in zip("qkv", self.out, self.expected(), strict=True):
            runner.compare(f"QkNormRope {name}", found, expected, 1e-5)
        self.buffers.check_guards()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_qk_norm_rope(
    runner: Runner,
    generator: torch.Generator,
    dtype: torch.dtype,
    size: tuple[int, int],
    interleaved: bool,
) -> None:
    for tokens, heads in (
        ((1, 1), (4, 2)),
        ((2, 3), (5, 1)),
        ((3, 33), (3, 3)),
        ((2, 130), (8, 2)),
    ):
        for norm, bias in ((False, False), (True, False), (False, True), (True, True)):
            for offset, cache in ((0, dtype), (1, dtype), (0, torch.float32)):
                Packed(
                    generator, dtype, tokens, heads, size,
                    interleaved=interleaved, norm=norm, bias=bias, cache=cache, offset=offset,
                ).check(runner)  # fmt: skip


@pytest.mark.parametrize(
    "cache_dims", ["b 1 s r", "1 1 s r", "b 1 1 r", "1 s r", "s r", "1 r", "r"]
)
def test_caches_of_every_shape(runner: Runner, generator: torch.Generator, cache_dims: str) -> None:
    for seq in (1, 3, 64):
        case = Packed(generator, torch.float16, (3, seq), (8, 4), (64, 64), cache_dims=cache_dims)
        case.check(runner)


@pytest.mark.parametrize("size", [(128, 128), (33, 6)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tokens(
    runner: Runner, generator: torch.Generator, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """Enough work for each thread to take several heads, the last group not whole."""
    Packed(generator, dtype, (2, 1001), (7, 3), size, norm=True).check(runner)
    x = normal(generator, (2, 7, 1001, size[0]), dtype)
    cos, sin = (normal(generator, (1001, size[1]), dtype) for _ in range(2))
    y = torch.full_like(x, NAN)
    runner("Rope", attributes(*size, False), [x, cos, sin], [y])
    runner.compare("Rope", y, rope(x, cos, sin))


@pytest.mark.parametrize("unaligned", range(7))
def test_one_unaligned_pointer(runner: Runner, generator: torch.Generator, unaligned: int) -> None:
    """Any one pointer off alignment must turn the vector path off for all."""
    case = Packed(generator, torch.float16, (2, 5), (4, 2), (64, 64), norm=True, bias=True)
    tensors = [*case.inputs, *case.out]
    off = Buffers(1)
    moved = off.empty(tensors[unaligned].shape, torch.float16)
    moved.copy_(tensors[unaligned])
    expected = case.expected()
    tensors[unaligned] = moved
    runner("QkNormRope", case.attributes, tensors[:6], tensors[6:])
    for found, want in zip(tensors[6:], expected, strict=True):
        runner.compare("QkNormRope unaligned", found, want, 1e-5)
    off.check_guards()


@pytest.mark.parametrize("special", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [64, 10])
def test_specials_stay_in_their_head(
    runner: Runner, generator: torch.Generator, size: int, dtype: torch.dtype, special: float
) -> None:
    for norm in (False, True):
        case = Packed(generator, dtype, (2, 3), (4, 2), (size, size), norm=norm)
        case.qkv[1, 2, 1 :: 2 * size] = special
        case.run(runner)
        for found, expected in zip(case.out, case.expected(), strict=True):
            want = expected.to(dtype)
            assert torch.allclose(found, want, rtol=1e-2, atol=1e-2, equal_nan=True)
            assert not found[0].isnan().any()
        x = case.qkv
        y = torch.empty_like(x)
        cos, sin = (normal(generator, (x.shape[-1],), dtype) for _ in range(2))
        runner("Rope", attributes(x.shape[-1], x.shape[-1], False), [x, cos, sin], [y])
        want = rope(x, cos, sin).to(dtype)
        assert torch.allclose(y, want, rtol=1e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("tokens", [(0, 5), (3, 0)])
def test_no_tokens(runner: Runner, generator: torch.Generator, tokens: tuple[int, int]) -> None:
    case = Packed(generator, torch.float16, tokens, (4, 2), (64, 64), cache_dims="1 1 1 r")
    case.run(runner)
    x = torch.empty((*tokens, 64), device="cuda")
    runner("Rope", attributes(64, 64, False), [x, x, x], [x.clone()])
    torch.cuda.synchronize()


def test_graph_capture_and_replay(runner: Runner, generator: torch.Generator) -> None:
    """Capture fails on any allocation or synchronisation; replay reads the inputs anew."""
    case = Packed(generator, torch.bfloat16, (2, 64), (4, 2), (64, 64), norm=True)
    turned = torch.empty_like(case.out[0])

    def layer() -> None:
        case.run(runner)
        runner("Rope", attributes(64, 64, True), [case.out[0], case.cos, case.sin], [turned])

    layer()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layer()
    case.qkv.copy_(torch.randn_like(case.qkv))
    graph.replay()
    torch.cuda.synchronize()
    replayed = [turned.clone(), *(tensor.clone() for tensor in case.out)]
    turned.fill_(NAN)
    layer()
    assert all(map(torch.equal, [turned, *case.out], replayed))


def test_two_streams_at_once(runner: Runner, generator: torch.Generator) -> None:
    cases = [
        Packed(generator, torch.float16, (2, 512), (32, 8), (128, 128), norm=True) for _ in range(2)
    ]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(10):
        for case, stream in zip(cases, streams, strict=True):
            with torch.cuda.stream(stream):
                case.run(runner)
    torch.cuda.synchronize()
    for case in cases:
        for found, expected in zip(case.out, case.expected(), strict=True):
            runner.compare("QkNormRope on two streams", found, expected, 1e-5)


def test_more_than_2_to_the_31_elements(runner: Runner, generator: torch.Generator) -> None:
    cos, sin = (normal(generator, (64, 128), torch.float16) for _ in range(2))
    x = torch.full((2**31 // 8192 + 3, 64, 128), 2.0, device="cuda", dtype=torch.float16)
    x[-1] = normal(generator, (64, 128), x.dtype)
    y = torch.zeros_like(x)
    runner("Rope", attributes(128, 128, False), [x, cos, sin], [y])
    for row in (0, 1, len(x) // 2, -2, -1):
        runner.compare("Rope beyond 2^31", y[row], rope(x[row], cos, sin))
    qkv = x.view(-1)[: x.numel() // 6144 * 6144].view(1, -1, 6144)
    q, k, v = (torch.zeros(1, n, qkv.shape[1], 128, device="cuda").half() for n in (32, 8, 8))
    sizes = {"num_heads": 32, "kv_num_heads": 8, "rotary_dim": 128}
    runner("QkNormRope", sizes, [qkv, cos[:1], sin[:1]], [q, k, v])
    last = qkv[0, -1].view(48, 128)
    runner.compare("QkNormRope beyond 2^31", q[0, :, -1], rope(last[:32], cos[0], sin[0]))
    assert torch.equal(v[0, :, -1], last[40:])


def test_memory_is_exact(runner: Runner, generator: torch.Generator) -> None:
    """Buffers without guards, for compute-sanitizer."""
    for dtype in DTYPES:
        for size in SIZES:
            case = Packed(generator, dtype, (2, 3), (5, 2), size, norm=True, bias=True)
            exact = Buffers(guard=0)
            inputs = [exact.place(tensor) for tensor in case.inputs]
            q, *rest = (exact.place(tensor) for tensor in case.out)
            runner("QkNormRope", case.attributes, inputs, [q, *rest])
            runner("Rope", attributes(*size, True), [q, *inputs[1:3]], [exact.place(q)])
    torch.cuda.synchronize()

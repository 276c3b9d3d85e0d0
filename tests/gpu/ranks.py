"""One rank of the tests of collectives: ``python -m tests.gpu.ranks JOB,... RANK SIZE FOLDER``.

The ranks exchange what they must by files in FOLDER. Every rank draws the inputs of all ranks from
the same seed, so that each has the whole reference; it ends with 0 where all was right.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from opfuse.runtime import library
from opfuse.runtime.abi import AttributeValue, PluginError
from opfuse.runtime.communicator import ABORTED, TIMED_OUT, WELL, Communicator
from tests.gpu.harness import FP32_ERROR, Buffers, Runner, torch
from tests.gpu.reference import layer_norm, rms_norm

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Both sides of each switch: one thread, several warps, one and two items, read again, and sums
# that take several launches; odd ones too.
SHAPES = [
    (1, 1), (3, 7), (2, 64), (33, 100), (130, 768), (1, 4096), (7, 4096), (300, 4096), (5, 4097),
    (9, 8192), (3, 8200), (2, 16384), (4, 16391), (3, 40000), (2500, 4096), (5000, 2056),
]  # fmt: skip
EPSILON = 1e-5
PATIENCE_MS = int(os.environ.get("OPFUSE_TEST_PATIENCE_MS", "60000"))


class Rank:
    """This process among ``size``, on GPU ``rank`` modulo how many there are."""

    def __init__(self, rank: int, size: int, folder: Path, patience_ms: int = PATIENCE_MS) -> None:
        torch.cuda.set_device(rank % torch.cuda.device_count())
        self.rank, self.size, self.folder, self._rounds = rank, size, folder, 0
        self.runner = Runner(library.find())
        nccl = os.environ.get("OPFUSE_TEST_NCCL", "")
        self.communicator = Communicator(
            self.runner.library, rank, size, self.exchange, patience_ms, nccl
        )

    def exchange(self, data: bytes) -> list[bytes]:
        """What each rank gave, by rank; also a barrier."""
        self._rounds += 1
        own = self.folder / f"{self._rounds}-{self.rank}"
        own.with_suffix(".part").write_bytes(data)
        own.with_suffix(".part").rename(own)
        paths = [self.folder / f"{self._rounds}-{rank}" for rank in range(self.size)]
        end = time.monotonic() + 120
        while not all(path.exists() for path in paths):
            if time.monotonic() > end:
                raise SystemExit(f"rank {self.rank}: the others did not come")
            time.sleep(0.001)
        return [path.read_bytes() for path in paths]

    def same_everywhere(self, what: str, tensors: list[torch.Tensor]) -> None:
        """All ranks have the same bits."""
        torch.cuda.synchronize()
        bits = hashlib.sha256()
        for tensor in tensors:
            bits.update(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        assert len(set(self.exchange(bits.digest()))) == 1, f"{what}: ranks differ"

    def draw(self, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
        """One tensor for each rank, the same ones on all ranks."""
        generator = torch.Generator(device="cuda").manual_seed(seed)
        return [
            torch.randn(shape, generator=generator, device="cuda").to(dtype)
            for _ in range(self.size)
        ]

    def finish(self) -> None:
        """Say what was found, and wait for the others."""
        for key, error in sorted(self.runner.worst.items()) if self.rank == 0 else ():
            print(f"  {key:40} {error:.2e}")
        self.exchange(b"done")
        self.communicator.close()


def check_sum(
    one: Rank, seed: int, shape: tuple[int, ...], dtype: torch.dtype, offset: int
) -> None:
    """AllReduce against float64."""
    buffers, given = Buffers(offset), one.draw(seed, shape, dtype)
    x, y = buffers.place(given[one.rank]), buffers.empty(shape, dtype)
    one.runner("AllReduce", {"group_size": one.size}, [x], [y])
    noise = FP32_ERROR * one.size
    one.runner.compare("AllReduce", y, sum(part.double() for part in given), noise)
    buffers.check_guards()
    one.same_everywhere(f"AllReduce of {shape}", [y])


def check_norm(
    one: Rank, seed: int, shape: tuple[int, int], dtype: torch.dtype, offset: int
) -> None:
    """AllReduceAddNorm against float64; the seed says which norm, and whether there is a bias."""
    layer, biased, wide = seed % 2 == 1, seed // 2 % 2 == 1, seed // 4 % 2 == 1
    given, (residual, *_) = one.draw(seed, shape, dtype), one.draw(seed + 1, shape, dtype)
    kind = torch.float32 if wide else dtype
    gamma, beta, bias = (one.draw(seed + i, shape[1:], kind)[0] for i in (2, 3, 4))
    buffers = Buffers(offset)
    parameters = [gamma, *[beta] * layer, *[bias] * biased]
    inputs = [buffers.place(tensor) for tensor in (given[one.rank], residual, *parameters)]
    y, total = buffers.empty(shape, dtype), buffers.empty(shape, dtype)
    attributes: dict[str, AttributeValue] = {
        "norm": "layer" if layer else "rms", "epsilon": EPSILON, "group_size": one.size,
    }  # fmt: skip
    one.runner("AllReduceAddNorm", attributes, inputs, [y, total])
    expected = sum(part.double() for part in given) + residual.double()
    if biased:
        expected += bias.double()
    one.runner.compare("AllReduceAddNorm sum", total, expected, FP32_ERROR * one.size)
    normed = layer_norm(total, gamma, beta, EPSILON) if layer else rms_norm(total, gamma, EPSILON)
    one.runner.compare("AllReduceAddNorm y", y, normed, 2 * FP32_ERROR)
    buffers.check_guards()
    one.same_everywhere(f"AllReduceAddNorm of {shape}", [y, total])


def values(one: Rank) -> None:
    """Every op and shape against float64, with the same bits everywhere."""
    for index, (rows, cols) in enumerate(SHAPES):
        for dtype in DTYPES:
            offset = (0, 0, 3)[index % 3]
            check_sum(one, index, (rows, cols), dtype, offset)
            for seed in range(8 * index, 8 * index + (2 if rows * cols > 1e6 else 8)):
                check_norm(one, seed, (rows, cols), dtype, offset if seed % 2 else 0)


def memory(one: Rank) -> None:
    """A few small shapes, for compute-sanitizer."""
    for index, (rows, cols) in enumerate([(3, 7), (33, 100), (7, 4096), (2, 4097)]):
        check_sum(one, index, (rows, cols), torch.float16, index % 2)
        check_norm(one, index, (rows, cols), torch.float16, index % 2)


def gathers(one: Rank) -> None:
    """AllGather is torch.cat."""
    shapes = [((3,), 0), ((4, 6), 1), ((5, 7), -1), ((2, 3, 64), 1), ((70, 3000), 1)]
    shapes += [((1, 64128), -1), ((6000, 4096), 0), ((33, 129), 0)]
    for index, (shape, axis) in enumerate(shapes):
        for dtype in DTYPES:
            given, buffers = one.draw(index, shape, dtype), Buffers(index % 2)
            expected = torch.cat(given, axis)
            x, y = buffers.place(given[one.rank]), buffers.empty(tuple(expected.shape), dtype)
            one.runner("AllGather", {"axis": axis, "group_size": one.size}, [x], [y])
            assert torch.equal(y, expected), f"{shape} along {axis}"
            buffers.check_guards()


def large(one: Rank) -> None:
    """Sums of three ranks or more that NCCL makes where it is faster, but none in fp16.

    It would add there what is out of range before the third rank brings it back.
    """
    shape = (4096, 4096)
    for dtype in DTYPES:
        given = one.draw(1, shape, dtype)
        x, y = given[one.rank], torch.empty_like(given[0])
        one.runner("AllReduce", {"group_size": one.size}, [x], [y])
        # NCCL rounds bf16 after every rank that it adds, also what then cancels.
        noise = one.size * (2.0**-6 if dtype == torch.bfloat16 else FP32_ERROR)
        one.runner.compare("AllReduce, large", y, sum(part.double() for part in given), noise)
        one.same_everywhere("a large AllReduce", [y])
    own = [40000.0, 40000.0, -40000.0, *[0.0] * one.size][one.rank]
    x = torch.full(shape, own, dtype=torch.float16, device="cuda")
    y = torch.empty_like(x)
    one.runner("AllReduce", {"group_size": one.size}, [x], [y])
    assert (y == 40000).all()
    _replay_both(one, shape)


def _replay_both(one: Rank, shape: tuple[int, int]) -> None:
    """A graph in which NCCL's sums and those over peer memory take turns."""
    turn = torch.zeros((), dtype=torch.int64, device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    sizes = [(shape, torch.bfloat16), ((3, 1000), torch.float16)] * 2
    given = [torch.empty(size, dtype=dtype, device="cuda") for size, dtype in sizes]
    made = [torch.empty_like(x) for x in given]

    def step() -> None:
        turn.add_(1)
        for x, y in zip(given, made, strict=True):
            x.fill_(0).add_((one.rank + 1) * (turn % 16))
            one.runner("AllReduce", {"group_size": one.size}, [x], [y])
            wrong.add_((y != one.size * (one.size + 1) // 2 * (turn % 16)).sum())

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(200):
        graph.replay()
    torch.cuda.synchronize()
    assert (turn.item(), wrong.item()) == (201, 0)


def specials(one: Rank) -> None:
    """Every NaN arrives, also the one whose bits mean that nothing has; -0, Inf, and zero rows."""
    for dtype in DTYPES:
        words = torch.int32 if dtype == torch.float32 else torch.int16
        x = torch.ones(4, 64, dtype=dtype, device="cuda")
        if one.rank == one.size - 1:
            x.view(words)[1] = -1  # all bits set
            x.view(words)[2, 5] = -1
            x[3, 0] = torch.inf
        y = torch.empty_like(x)
        one.runner("AllReduce", {"group_size": one.size}, [x], [y])
        holes = torch.zeros(4, 64, dtype=torch.bool, device="cuda")
        holes[1], holes[2, 5] = True, True
        assert torch.equal(y.isnan(), holes)
        assert y[3, 0] == torch.inf
        assert (y[0] == one.size).all()
        empty = torch.empty(0, 64, dtype=dtype, device="cuda")
        gamma = torch.ones(64, dtype=dtype, device="cuda")
        attributes: dict[str, AttributeValue] = {"group_size": one.size}
        one.runner("AllReduceAddNorm", attributes, [empty, empty, gamma], [empty, empty])


def copies(one: Rank) -> None:
    """A second copy of the library in this process, as engines carry them, has the communicator."""
    path = one.folder / f"copy-{one.rank}.so"
    path.write_bytes(library.find().read_bytes())
    other = Runner(path)
    x = torch.full((3, 64), one.rank + 1.0, dtype=torch.float16, device="cuda")
    for turn in range(5):
        y = torch.empty_like(x)
        (one.runner, other)[turn % 2]("AllReduce", {"group_size": one.size}, [x], [y])
        assert (y == one.size * (one.size + 1) // 2).all()


def replays(one: Rank) -> None:
    """Graphs of sums whose inputs change at every replay, compared with what they must be."""
    count = int(os.environ.get("OPFUSE_TEST_REPLAYS", "10000"))
    shapes = [(1, 4096), (32, 4096), (3, 1000), (300, 2048)]
    turn = torch.zeros((), dtype=torch.int64, device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    given = [torch.empty(shape, dtype=torch.float16, device="cuda") for shape in shapes]
    made = [torch.empty_like(x) for x in given]
    total = {"group_size": one.size}

    def step() -> None:
        turn.add_(1)
        for x, y in zip(given, made, strict=True):
            x.fill_(0).add_((one.rank + 1) * (turn % 16) + turn % 7)
            one.runner("AllReduce", total, [x], [y])
            ranks = one.size * (one.size + 1) // 2
            wrong.add_((y != ranks * (turn % 16) + one.size * (turn % 7)).sum())

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(count):
        graph.replay()
    torch.cuda.synchronize()
    assert turn.item() == count + 1
    assert wrong.item() == 0


def skew(one: Rank) -> None:
    """A rank that begins late does not make all that follows slow.

    It once did: 580 us for each of these sums instead of 6. Ranks that share a GPU are slow too.
    """
    x = torch.ones(64, 4096, dtype=torch.float16, device="cuda")
    y = torch.empty_like(x)
    one.runner("AllReduce", {"group_size": one.size}, [x], [y])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(100):
            one.runner("AllReduce", {"group_size": one.size}, [x], [y])
    for late in range(4):
        torch.cuda.synchronize()
        one.exchange(b"")
        if late % one.size == one.rank:
            torch.cuda._sleep(5_000_000)  # cycles, about 3 ms
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        # Milliseconds by the GPU's clock; who began last has waited for nobody.
        assert min(map(float, one.exchange(str(start.elapsed_time(end)).encode()))) < 20


def waits_alone(one: Rank) -> float:
    """Seconds for which rank 0 waits in a sum that rank 1 never joins."""
    x, y = (torch.ones(8, 4096, dtype=torch.float16, device="cuda") for _ in range(2))
    torch.cuda.synchronize()
    start = time.monotonic()
    one.runner("AllReduce", {"group_size": one.size}, [x], [y])
    torch.cuda.synchronize()
    return time.monotonic() - start


def refused(one: Rank) -> None:
    """After a rank was lost, nothing is enqueued any more."""
    try:
        waits_alone(one)
    except PluginError as error:
        assert "a rank was lost" in str(error)
    else:
        raise AssertionError("enqueued after a rank was lost")


def abort(one: Rank) -> None:
    """A watchdog ends a wait."""
    if one.rank == 0:
        threading.Timer(1.0, one.communicator.abort).start()
        assert waits_alone(one) < 5
        assert one.communicator.state() == ABORTED
        refused(one)


def timeout(one: Rank) -> None:
    """So does the kernel itself."""
    if one.rank == 0:
        assert 0.9 < waits_alone(one) < 8  # it is asked to wait for one
        assert one.communicator.state() == TIMED_OUT
        refused(one)


JOBS: dict[str, Callable[[Rank], None]] = {
    job.__name__: job
    for job in (values, memory, gathers, large, specials, copies, replays, skew, abort, timeout)
}


def main() -> None:
    """Runs jobs as one rank."""
    jobs, rank, size, folder = sys.argv[1:]
    patience = 1000 if jobs == "timeout" else PATIENCE_MS
    one = Rank(int(rank), int(size), Path(folder), patience)
    for job in jobs.split(","):
        JOBS[job](one)
        torch.cuda.synchronize()
        assert one.communicator.state() == WELL or job in ("abort", "timeout")
    one.finish()


if __name__ == "__main__":
    main()

"""Times every kernel beside torch, torch.compile, and an empty launch, on one GPU in one run.

``python -m benchmarks.kernels`` prints a table and writes ``results/kernels-<date>.json``. Each
figure is the median of several replays of a CUDA graph of at least 20 launches, divided by their
number. Launches take turns with sets of tensors that together are larger than the L2 cache, or
have a set each, and L2 holds other data when a replay begins. Few rows are timed once more where
all launches have the same tensors, which L2 holds then: as behind the layer that wrote them. Rows
of which L2 holds a part are timed once more behind a kernel that has just written the first input.

torch.compile takes seconds for each case, so that several processes share the cases. They compile
at the same time; once all have, they tune and measure one after the other.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from statistics import median

import torch
import triton
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from benchmarks import measure
from benchmarks.graphs import Captured
from benchmarks.kernel_cases import CASES, Case, grid_cases
from benchmarks.kernel_floors import NORMS, Floors
from opfuse.runtime import abi, library

DTYPE, ONNX_TYPE = torch.float16, 10
LAUNCHES, FEW_BYTES, MANY_LAUNCHES = 20, 1 << 22, 200
REPLAYS, FILLS = 5, 6
FEW_ROWS = 64  # of the cases beside which floors are measured
STREAMS = 16
PEERS = ("flashinfer", "liger_kernel")
Launch = Callable[[int], object]


@triton.jit
def _empty():
    pass  # what a launch costs that does nothing


class Timer:
    """Times launches.

    A launch in a graph takes 0.79 us on an H100 until the process has run something on more than
    eight streams, and 1.14 us from then on, as where TensorRT is: here from the beginning.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.other = torch.ones(_cache_bytes(), device="cuda")  # four times as large as the cache
        for _ in range(STREAMS):
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.ones(1, device="cuda")
        torch.cuda.synchronize()

    def microseconds(self, launch: Launch, launches: int) -> float:
        """The time of one of ``launches`` launches; ``launch(i)`` is the i-th."""
        graph = Captured(launch, launches, warm_up=3, stream=self.stream, keep=True)
        times = []
        for _ in range(REPLAYS + 1):
            # Read, not written: nothing has to be written back later.  Often: the graph has to be
            # there before this ends, or its own way to the GPU counts.
            for _ in range(FILLS):
                self.other.sum()
            times.append(graph.microseconds())
        return median(times[1:])


@dataclass
class Bench:
    """One case with its tensors: ``sets`` of them, so that no launch finds its own in L2.

    ``warm``: one set. ``behind``: a kernel ahead of each launch writes its first input.
    """

    case: Case
    handle: object
    timer: Timer
    warm: bool = False
    behind: bool = False

    def __post_init__(self) -> None:
        self.bytes = self.case.bytes(DTYPE.itemsize)
        self.launches = LAUNCHES if self.bytes > FEW_BYTES else MANY_LAUNCHES
        self.sets = 1 if self.warm else _sets(self.launches, self.bytes)
        split = self.case.rotated
        self.weights = [_random(shape) for shape in self.case.inputs[split:]]
        self.inputs = [
            [*map(_random, self.case.inputs[:split]), *self.weights] for _ in range(self.sets)
        ]
        self.sources = [_random(self.case.inputs[0]) for _ in range(self.sets * self.behind)]

    def opfuse(self) -> float:
        """Our kernel, over the C ABI; its outputs are allocated in the graph, as torch's are."""
        case = self.case
        given = [_tensors(inputs) for inputs in self.inputs]
        outputs: dict[int, list[torch.Tensor]] = {}
        with abi.Plugin(self.handle, case.op, case.attributes) as plugin:
            size = plugin.workspace_size(given[0])
            workspace = torch.empty(max(size, 1), dtype=torch.uint8, device="cuda")

            def launch(index: int) -> None:
                self.write_ahead(index)
                stream = torch.cuda.current_stream().cuda_stream
                made = [torch.empty(s, dtype=DTYPE, device="cuda") for s in case.outputs]
                outputs[index % self.sets] = made
                plugin.enqueue(
                    given[index % self.sets], _tensors(made), stream, workspace.data_ptr()
                )

            return self.timer.microseconds(launch, self.launches)

    def torch(self, function: Callable[..., object]) -> float:
        """A torch function; outputs live until their set comes again, as ours do."""
        outputs: dict[int, object] = {}

        def launch(index: int) -> None:
            self.write_ahead(index)
            outputs[index % self.sets] = function(*self.inputs[index % self.sets])

        return self.timer.microseconds(launch, self.launches)

    def write_ahead(self, index: int) -> None:
        """The kernel ahead, where there is one."""
        if self.behind:
            at = index % self.sets
            torch.add(self.sources[at], 1, out=self.inputs[at][0])


def _sets(launches: int, size: int) -> int:
    return min(launches, math.ceil(3 * _cache_bytes() / size) + 1)


def _random(shape: Sequence[int]) -> torch.Tensor:
    return torch.randn(shape, dtype=DTYPE, device="cuda")


def _tensors(tensors: Sequence[torch.Tensor]) -> list[abi.Tensor]:
    return [abi.Tensor(ONNX_TYPE, tuple(t.shape), t.data_ptr()) for t in tensors]


def compiled(case: Case) -> Callable[..., object]:
    """The case's function by inductor, compiled and not tuned; the graph around it is ours."""
    function = torch.compile(
        case.torch, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
    )
    run = CachingAutotuner.run
    CachingAutotuner.run = lambda self, *_, **__: self.precompile()
    try:
        function(*map(_random, case.inputs))
    finally:
        CachingAutotuner.run = run
    return function


def empty_launch(timer: Timer) -> float:
    """What a launch takes that does nothing, in microseconds."""
    return timer.microseconds(lambda _: _empty[(1,)](), MANY_LAUNCHES)


def copy_bandwidth(timer: Timer) -> float:
    """Bytes a second, read and written, of the fastest device-to-device copy."""
    rates = []
    for megabytes in (48, 128, 256):
        count = megabytes << 19
        pairs = [[_random((count,)) for _ in range(2)] for _ in range(4)]

        def copy(index: int, pairs: list[list[torch.Tensor]] = pairs) -> None:
            pairs[index % 4][0].copy_(pairs[index % 4][1])

        rates.append(4 * count / timer.microseconds(copy, LAUNCHES) * 1e6)
    return max(rates)


def measure_case(bench: Bench, peer: Callable[..., object] | None) -> dict:
    """All figures of one case, in microseconds; ``peer`` is its function by torch.compile."""
    case = bench.case
    rows, cols = case.matrix
    row = {"case": case.name, "op": case.op, "shape": list(case.shape), "rows": rows, "cols": cols}
    if peer:
        row["eager_us"] = bench.torch(case.torch)
    row |= {"bytes": bench.bytes, "opfuse_us": bench.opfuse()}
    if _is_few(case.op, rows):
        row["empty_us"] = empty_launch(bench.timer)
    if peer:
        row["compile_us"] = bench.torch(peer)
        row["again_us"] = bench.opfuse()  # its distance from the first is what a difference counts
    return row


def measure_warm(bench: Bench, peer: Callable[..., object] | None) -> dict[str, float]:
    """What a case of few rows takes where its inputs are in L2."""
    if not _is_few(bench.case.op, bench.case.matrix[0]):
        return {}
    warm = Bench(bench.case, bench.handle, bench.timer, warm=True)
    row = {"warm_us": warm.opfuse()}
    return row | {"compile_warm_us": warm.torch(peer)} if peer else row


def measure_behind(bench: Bench, peer: Callable[..., object] | None) -> dict[str, float]:
    """What a case adds to the time of a kernel that writes its first input."""
    case = bench.case
    is_small = bench.bytes <= 2 * _cache_bytes()
    if not (peer and is_small and case.op in (*NORMS, "GatedAct")) or case.matrix[0] <= FEW_ROWS:
        return {}
    both = Bench(case, bench.handle, bench.timer, behind=True)
    ahead = both.timer.microseconds(both.write_ahead, both.launches)
    return {"behind_us": both.opfuse() - ahead, "compile_behind_us": both.torch(peer) - ahead}


def _is_few(op: str, rows: int) -> bool:
    return op in (*NORMS, "GatedAct") and rows <= FEW_ROWS


def measure_floors(timer: Timer, rows: Sequence[dict]) -> dict[str, float]:
    """Adds ``move_us`` and ``sum_us`` to rows of few, from memory and from L2 (``..._warm_us``).

    Returns what an empty CUDA kernel takes, where nvcc is.
    """
    floors = Floors.build()
    if not floors:
        return {}
    for row in rows:
        if not _is_few(row["op"], row["rows"]):
            continue
        for warm, sets in (("", _sets(MANY_LAUNCHES, row["bytes"])), ("warm_", 1)):
            for name, ways in floors.ways(row["op"], (row["rows"], row["cols"]), sets).items():
                row[f"{name}_{warm}us"] = min(
                    timer.microseconds(way, MANY_LAUNCHES) for way in ways
                )
    return {"empty_cuda_us": timer.microseconds(floors.nothing(), MANY_LAUNCHES)}


def measure_part(part: int, parts: int, options: argparse.Namespace) -> None:
    """Prints every ``parts``-th case's row, from ``part`` on; waits for its turn in between."""
    torch._inductor.config.compile_threads = 1  # there are enough processes
    torch._dynamo.config.recompile_limit = len(CASES)
    chosen = list(enumerate(case for case in CASES if options.only in case.name))[part::parts]
    functions = [None if options.no_peers else compiled(case) for _, case in chosen]
    torch.cuda.empty_cache()
    print("compiled", flush=True)
    input()
    timer, handle = Timer(), abi.load(library.find())
    for (place, case), function in zip(chosen, functions, strict=True):
        bench = Bench(case, handle, timer)
        row = measure_case(bench, function) | measure_warm(bench, function)
        row |= measure_behind(bench, function)
        print(json.dumps({"place": place, **row}), flush=True)


def measure_all(options: argparse.Namespace) -> Iterator[dict]:
    """Shares the cases among processes, which compile together and measure one after the other."""
    command = [sys.executable, "-m", "benchmarks.kernels", "--only", options.only]
    command += ["--no-peers"] * options.no_peers
    parts = 1 if options.no_peers else options.processes
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([*command, "--part", f"{part}/{parts}"], **piped) for part in range(parts)
    ]
    for process in running:
        if process.stdout.readline() != "compiled\n":
            raise SystemExit("a measuring process did not compile its cases")
    for process in running:
        process.stdin.write("\n")
        process.stdin.close()
        yield from map(json.loads, process.stdout)
        if process.wait():
            raise SystemExit("a measuring process failed")


def _cache_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def environment() -> dict[str, object]:
    """What the figures hang on besides the machine."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": measure.driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "dtype": str(DTYPE).removeprefix("torch."),
        "commit": os.environ.get("OPFUSE_COMMIT", ""),
        "not_run": [name for name in PEERS if find_spec(name) is None],
    }


def show(figures: dict) -> None:
    """The table: times, our share of the copy bandwidth, and our speed over the peers'.

    ``at copy``: what our speed over torch.compile's would be at the copy's bandwidth.
    """
    copy = figures["copy_bytes_per_s"]

    def cells(row: dict) -> list[str]:
        ours, least = row["opfuse_us"], row["bytes"] / copy * 1e6
        eager, compiled = (row.get(f"{peer}_us", math.nan) for peer in ("eager", "compile"))
        again = row.get("again_us", math.nan)
        return [
            row["case"], f"{ours:.2f}", f"{again:.2f}", f"{row['bytes'] / 1e6:.1f}",
            f"{least / ours:.0%}", f"{eager:.2f}", f"{compiled:.2f}", f"{eager / ours:.2f}",
            f"{compiled / ours:.2f}", f"{compiled / least:.2f}",
            f"{ours / row.get('empty_us', figures['empty_us']):.2f}",
        ]  # fmt: skip

    print(f"copy {copy / 1e9:.0f} GB/s, empty launch {figures['empty_us']:.2f} us")
    header = [
        "case", "us", "again", "MB", "of copy", "eager us", "compile us", "eager/us",
        "compile/us", "at copy", "/empty",
    ]  # fmt: skip
    measure.print_table(header, map(_known, map(cells, figures["rows"])))
    behind = [row for row in figures["rows"] if "behind_us" in row]
    if behind:
        show_behind(behind)
    few = [row for row in figures["rows"] if "move_us" in row]
    if few:
        print(f"\nempty launch of a CUDA kernel {figures['empty_cuda_us']:.2f} us")
        show_few("from memory, as above", few, "")
        show_few("all launches with the same tensors, in L2", few, "warm_")


def show_behind(rows: Sequence[dict]) -> None:
    """Prints what rows add to a kernel that writes their first input."""
    print("\nbehind a kernel that has just written the first input, beyond its time")
    lines = []
    for row in rows:
        ours, peer = row["behind_us"], row["compile_behind_us"]
        lines.append([row["case"], f"{ours:.2f}", f"{peer:.2f}", f"{peer / ours:.2f}"])
    measure.print_table(["case", "us", "compile us", "compile/us"], lines)


def show_few(title: str, rows: Sequence[dict], warm: str) -> None:
    """Prints few rows beside what only moves them and torch.compile's kernel."""
    print(f"\n{title}")
    names = [f"{name}_{warm}us" for name in ("move", "sum", "compile")]
    lines = []
    for row in rows:
        times = [row[f"{warm}us" if warm else "opfuse_us"], *(row.get(n, math.nan) for n in names)]
        shares = [f"{time / row['empty_us']:.2f}" for time in times[:3]]
        cells = [f"{time:.2f}" for time in (row["empty_us"], *times)]
        lines.append([row["case"], *cells, *shares, f"{times[3] / times[0]:.2f}"])
    header = ["case", "empty us", "us", "move us", "with a sum", "compile us"]
    header += ["/empty", "move/empty", "sum/empty", "compile/us"]
    measure.print_table(header, map(_known, lines))


def _known(cells: Sequence[str]) -> list[str]:
    return [cell.replace("nan", "-") for cell in cells]


def main() -> None:
    """Compiles, measures, prints, and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", help=argparse.SUPPRESS)  # PART/PARTS: what a process measures
    parser.add_argument("--processes", type=int, default=12, help="that compile (default 12)")
    parser.add_argument("--no-peers", action="store_true", help="our kernels alone")
    parser.add_argument("--grid", action="store_true", help="also rows x columns, for the plots")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    options = parser.parse_args()
    if options.part:
        part, parts = map(int, options.part.split("/"))
        return measure_part(part, parts, options)
    timer = Timer()
    rows: list[dict] = []
    figures = {**environment(), "copy_bytes_per_s": copy_bandwidth(timer), "rows": rows}
    figures["empty_us"] = empty_launch(timer)
    for row in measure_all(options):
        rows.append(row)
        rows.sort(key=itemgetter("place"))
        measure.write("kernels", figures)  # what is measured stays, whatever comes
    figures |= measure_floors(timer, rows)
    measure.write("kernels", figures)
    show(figures)
    if options.grid:
        handle = abi.load(library.find())
        cells = (Bench(case, handle, timer) for case in grid_cases())
        figures["grid"] = [measure_case(cell, None) for cell in cells]
    print(measure.write("kernels", figures))


if __name__ == "__main__":
    main()

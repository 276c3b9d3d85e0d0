"""Times AllReduceAddNorm between GPUs beside NCCL, on one host in one run.

``torchrun --nproc-per-node N -m benchmarks.allreduce`` prints a table and writes
``results/allreduce_xN-<date>.json``; with ``--ways`` it times ours by each of its ways, whatever
the size, and with ``--sums`` large sums without a norm by type, with the errors of both, which is
where plugins/all_reduce/tuning.h has its limits from. Per size, in microseconds of one call:

ours      AllReduceAddNorm: sum over ranks, residual, and RMSNorm in one kernel
fused     NCCL's all-reduce, then the AddRmsNorm kernel
separate  NCCL's all-reduce, then torch's operators, one after the other
sum       AllReduce of the plugin library alone, over peer memory; nccl: NCCL's

Each figure is the median of several replays of a CUDA graph of at least 20 calls, on the slowest
rank. Calls take turns with sets of tensors that together are larger than the L2 cache. A replay
begins when all ranks are there, and does not wait for its host. ``worst`` is the slowest of five
replays of ours that one rank, each in its turn, begins a millisecond late. Bus bandwidth is that of
nccl-tests: bytes / time * 2 (n - 1) / n.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from benchmarks import measure
from benchmarks.graphs import Captured
from opfuse.runtime import abi, library
from opfuse.runtime.communicator import ENVIRONMENT, Communicator

ONNX_TYPE = {torch.float16: 10, torch.bfloat16: 16, torch.float32: 1}
NARROW = (torch.float16, torch.bfloat16)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
HIDDEN = (4096, 8192)
EPSILON = 1e-5
SMALL_BYTES = 256 << 10
LARGE_BYTES = 8 << 20  # from here on, 20 calls a graph are enough
REPLAYS, LATE_REPLAYS, LATE_CYCLES = 9, 5, 2_000_000
HEAD_START_CYCLES = 1_000_000  # what a replay takes is all on the stream by then, on every rank
NAMES = ("ours", "fused", "separate", "sum", "nccl")
WAYS = ("one-shot", "two-shot", "nccl")
SUMS_MIB = (4, 8, 12, 16, 24, 32, 64, 128)
Launch = Callable[[int], object]


@dataclass
class Group:
    """All ranks, as torch and as the plugin library have them."""

    handle: object
    communicator: Communicator
    meet: torch.Tensor

    @classmethod
    def open(cls, handle: object, nccl: str | None) -> Group:
        """Of all processes of torch's group; ``nccl`` is the path that the plugins are given."""
        communicator = Communicator(
            handle, dist.get_rank(), dist.get_world_size(), exchange, nccl=nccl
        )
        return cls(handle, communicator, torch.zeros(1, device="cuda"))

    def close(self) -> None:
        """Once all ranks have finished."""
        torch.cuda.synchronize()
        dist.barrier()
        self.communicator.close()

    def microseconds(self, launch: Launch, launches: int) -> tuple[float, float]:
        """The time of one of ``launches`` calls on the slowest rank, and that where one is late.

        ``launch(i)`` is the i-th.
        """
        graph = Captured(launch, launches, keep=True)
        times = [self._replay(graph) for _ in range(REPLAYS + 2)]
        late = [self._replay(graph, turn) for turn in range(LATE_REPLAYS)]
        slowest = torch.tensor(median(times[2:]), device="cuda")
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        # Who is not late counts the wait too; who is does not.
        punctual = torch.tensor(late, device="cuda")
        dist.all_reduce(punctual, dist.ReduceOp.MIN)
        if self.communicator.state():
            raise SystemExit("a rank was lost")
        return slowest.item(), punctual.max().item()

    def _replay(self, graph: Captured, turn: int | None = None) -> float:
        """Microseconds a launch on this rank; ``turn`` says who begins late."""
        torch.cuda._sleep(HEAD_START_CYCLES)
        dist.all_reduce(self.meet)
        if turn is not None and turn % dist.get_world_size() == dist.get_rank():
            torch.cuda._sleep(LATE_CYCLES)
        return graph.microseconds()


class Case:
    """One size with its tensors: sets of them, so that no call finds its own in L2."""

    def __init__(self, group: Group, tokens: int, hidden: int, dtype: torch.dtype) -> None:
        self.group, self.shape, self.dtype = group, (tokens, hidden), dtype
        self.bytes = tokens * hidden * dtype.itemsize
        self.launches = 20 if self.bytes >= LARGE_BYTES else 60
        cache = 3 * torch.cuda.get_device_properties(0).L2_cache_size
        self.sets = min(self.launches, math.ceil(cache / (4 * self.bytes)) + 1)
        self.gamma = torch.ones(hidden, dtype=dtype, device="cuda")
        self.x, self.residual, self.y, self.sum = (
            [torch.randn(self.shape, dtype=dtype, device="cuda") for _ in range(self.sets)]
            for _ in range(4)
        )
        # Zeros: NCCL adds in place, again and again.
        self.added = [torch.zeros_like(x) for x in self.x]

    def plugin(self, op: str, attributes: dict, inputs: list, outputs: list) -> Launch:
        """Calls an op of the library on the i-th set; a list that is no set serves for all."""

        def described(tensors: list, index: int) -> list[abi.Tensor]:
            chosen = [t[index] if isinstance(t, list) else t for t in tensors]
            return [abi.Tensor(ONNX_TYPE[t.dtype], tuple(t.shape), t.data_ptr()) for t in chosen]

        plugin = abi.Plugin(self.group.handle, op, attributes)
        calls = [(described(inputs, i), described(outputs, i)) for i in range(self.sets)]

        def launch(index: int) -> None:
            plugin.enqueue(*calls[index % self.sets], torch.cuda.current_stream().cuda_stream)

        return launch

    def ours(self) -> Launch:
        """AllReduceAddNorm."""
        attributes = {"norm": "rms", "epsilon": EPSILON, "group_size": dist.get_world_size()}
        inputs = [self.x, self.residual, self.gamma]
        return self.plugin("AllReduceAddNorm", attributes, inputs, [self.y, self.sum])

    def nccl(self) -> Launch:
        """The all-reduce alone."""
        return lambda index: dist.all_reduce(self.added[index % self.sets])

    def fused(self) -> Launch:
        """NCCL, then one kernel."""
        inputs = [self.added, self.residual, self.gamma]
        norm = self.plugin("AddRmsNorm", {"epsilon": EPSILON}, inputs, [self.y, self.sum])

        def launch(index: int) -> None:
            dist.all_reduce(self.added[index % self.sets])
            norm(index)

        return launch

    def separate(self) -> Launch:
        """NCCL, then torch."""

        def launch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.added[index % self.sets]
            dist.all_reduce(x)
            total = x + self.residual[index % self.sets]
            wide = total.float()
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON)
            return (wide * scale).to(self.dtype) * self.gamma, total

        return launch

    def plain(self) -> Launch:
        """AllReduce of the library."""
        attributes = {"group_size": dist.get_world_size()}
        return self.plugin("AllReduce", attributes, [self.x], [self.y])

    def row(self) -> dict:
        """All figures of the case."""
        ways = {"ours": self.ours(), "fused": self.fused(), "separate": self.separate()}
        ways |= {"sum": self.plain(), "nccl": self.nccl()}
        pairs = {
            name: self.group.microseconds(launch, self.launches) for name, launch in ways.items()
        }
        times = {f"{name}_us": time for name, (time, _) in pairs.items()}
        ranks = dist.get_world_size()
        share = self.bytes * 2 * (ranks - 1) / ranks / 1e3  # GB/s, where divided by microseconds
        name = str(self.dtype).removeprefix("torch.")
        row = {"tokens": self.shape[0], "hidden": self.shape[1], "dtype": name}
        row |= {"bytes": self.bytes, **times, "worst_us": pairs["ours"][1]}
        return row | {"bus_gb_per_s": {key[:-3]: share / time for key, time in times.items()}}


def nccl_path() -> str | None:
    """That which torch uses."""
    spec = importlib.util.find_spec("nvidia")
    folders = (spec and spec.submodule_search_locations) or ()
    paths = [Path(folder, "nccl", "lib", "libnccl.so.2") for folder in folders]
    return next((str(path) for path in paths if path.exists()), None)


def exchange(card: bytes) -> list[bytes]:
    """Every rank's card."""
    cards: list[bytes] = [b""] * dist.get_world_size()
    dist.all_gather_object(cards, card)
    return cards


def show(rows: list[dict]) -> None:
    """The table; the ratios are those of the others' time over ours."""

    def cells(row: dict) -> list[str]:
        times = [row[f"{name}_us"] for name in NAMES]
        bus = row["bus_gb_per_s"]
        return [
            f"{row['tokens']} x {row['hidden']} {row['dtype']}",
            f"{row['bytes'] / 1024:.0f}",
            *(f"{time:.1f}" for time in (row["worst_us"], *times)),
            *(f"{time / times[0]:.2f}" for time in times[1:3]),
            *(f"{bus[name]:.0f}" for name in ("ours", "sum", "nccl")),
        ]

    header = ["case", "KiB", "worst us", *(f"{name} us" for name in NAMES)]
    header += [*(f"{name}/ours" for name in NAMES[1:3]), "ours GB/s", "sum GB/s", "nccl GB/s"]
    measure.print_table(header, map(cells, rows))
    for what, chosen in (
        (f"up to {SMALL_BYTES >> 10} KiB", [row for row in rows if row["bytes"] <= SMALL_BYTES]),
        ("above", [row for row in rows if row["bytes"] > SMALL_BYTES]),
    ):
        least = min(row["fused_us"] / row["ours_us"] for row in chosen)
        print(f"least of fused/ours {what}: {least:.2f}")


def environment(transport: str) -> dict[str, object]:
    """What the figures hang on besides the machine."""
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpus": dist.get_world_size(),
        "driver": measure.driver(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "transport": transport,
        "way": os.environ.get(ENVIRONMENT, "by size"),
        "commit": os.environ.get("OPFUSE_COMMIT", ""),
    }


def measure_ways(handle: object) -> list[dict]:
    """Microseconds of ours by each way, whatever the size, for fp16 x 4096 and x 8192."""
    found: dict[tuple[int, int], dict] = {}
    for way in WAYS:
        os.environ[ENVIRONMENT] = way
        group = Group.open(handle, nccl_path())
        for width in HIDDEN:
            for tokens in TOKENS:
                case = Case(group, tokens, width, torch.float16)
                row = found.setdefault((tokens, width), {"tokens": tokens, "hidden": width})
                row[way], row[f"{way} late"] = group.microseconds(case.ours(), case.launches)
        group.close()
    del os.environ[ENVIRONMENT]
    return list(found.values())


def show_ways(rows: list[dict]) -> None:
    """Them, and the slowest of the replays that one rank begins late."""
    names = [name for way in WAYS for name in (way, f"{way} late")]
    measure.print_table(
        ["case", "KiB", *names],
        (
            [
                f"{row['tokens']} x {row['hidden']}",
                f"{row['tokens'] * row['hidden'] / 512:.0f}",
                *(f"{row[name]:.1f}" for name in names),
            ]
            for row in rows
        ),
    )


def measure_sums(group: Group) -> list[dict]:
    """Ours and NCCL's for every type and size, and how much they err on 1024 x 4096 values."""
    found: dict[int, dict] = {mib: {"mib": mib} for mib in SUMS_MIB}
    for dtype in ONNX_TYPE:
        name = str(dtype).removeprefix("torch.")
        errors = sum_errors(group, dtype)
        for mib, row in found.items():
            case = Case(group, (mib << 20) // (4096 * dtype.itemsize), 4096, dtype)
            row[f"{name} sum"], _ = group.microseconds(case.plain(), case.launches)
            row[f"{name} nccl"], _ = group.microseconds(case.nccl(), case.launches)
            row |= {f"{name} {what}": error for what, error in errors.items()}
    return list(found.values())


def sum_errors(group: Group, dtype: torch.dtype) -> dict[str, float]:
    """Of ours and NCCL's against float64: the root mean square over that of the values."""
    case = Case(group, 1024, 4096, dtype)
    generator = torch.Generator(device="cuda").manual_seed(1)
    ranks = range(dist.get_world_size())
    parts = [torch.randn(case.shape, generator=generator, device="cuda").to(dtype) for _ in ranks]
    case.x = case.added = [parts[dist.get_rank()].clone()]
    case.sets, case.y = 1, case.y[:1]
    case.plain()(0)
    case.nccl()(0)
    expected = sum(part.double() for part in parts)
    made = {"sum error": case.y[0], "nccl error": case.added[0]}
    return {
        what: ((y.double() - expected).norm() / expected.norm()).item() for what, y in made.items()
    }


def show_sums(rows: list[dict]) -> None:
    """Them; the errors stand in the file."""
    names = [name for name in rows[0] if not name.endswith("error")]
    measure.print_table(names, ([f"{row[name]:.1f}" for name in names] for row in rows))


def measure_all(group: Group) -> list[dict]:
    """A row for each size and type."""
    return [
        Case(group, tokens, width, dtype).row()
        for dtype in NARROW
        for width in HIDDEN
        for tokens in TOKENS
    ]


def main() -> None:
    """Measures, prints, and writes; as one rank of torchrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ways", action="store_true", help="ours alone, by each of its ways")
    parser.add_argument("--sums", action="store_true", help="large sums without a norm, by type")
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    handle = abi.load(library.find())
    if options.ways:
        rows, facts = measure_ways(handle), environment("") | {"way": "each"}
    else:
        group = Group.open(handle, "")
        rows = (measure_sums if options.sums else measure_all)(group)
        facts = environment(group.communicator.transport)
        group.close()
    if dist.get_rank() == 0:
        print(facts)
        (show_ways if options.ways else show_sums if options.sums else show)(rows)
        kind = "_ways" if options.ways else "_sums" if options.sums else ""
        name = f"allreduce{kind}_x{dist.get_world_size()}"
        print(measure.write(name, {**facts, "rows": rows}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Times FlashAttention beside torch's kernels: ``python -m tests.gpu.attention_speed``.

Each time is that of one launch in a CUDA graph of 20, over rotated tensors that the L2 cache cannot
hold; the median of 11 replays, in which the kernels of a row take turns.  Errors are
||y - ref|| / ||ref|| against float64, on one head.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.graphs import Captured, in_bursts
from opfuse.runtime import abi, library
from tests.gpu.attention_cases import Case, reference
from tests.gpu.harness import Runner, described, torch

LAUNCHES, REPLAYS, WARM_UPS = 20, 11, 3
OLDER = ("old",)  # libraries of such names know no lengths
ROTATED_BYTES = 200e6
Launch = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Row:
    """A line of the table; ``kind`` says what the goal of issue 6 is about."""

    name: str
    case: Case


ROWS = [
    Row("causal", Case(4096, 4096, 128, heads=32, kv_heads=32, causal=True)),
    Row("full", Case(4096, 4096, 128, heads=32, kv_heads=32)),
    Row("causal, 8 kv", Case(4096, 4096, 128, heads=32, kv_heads=8, causal=True)),
    Row("full, 8 kv", Case(4096, 4096, 128, heads=32, kv_heads=8)),
    Row("causal, 64", Case(4096, 4096, 64, heads=32, kv_heads=32, causal=True)),
    Row("full, 64", Case(4096, 4096, 64, heads=32, kv_heads=32)),
    Row("causal, 16k", Case(16384, 16384, 128, batch=1, heads=16, kv_heads=16, causal=True)),
    Row("BERT [b,1,1,k]", Case(384, 384, 64, batch=8, heads=12, kv_heads=12, mask="bk")),
    Row("BERT [b,1,q,k]", Case(384, 384, 64, batch=8, heads=12, kv_heads=12, mask="bqk")),
    Row("ViT", Case(197, 197, 64, batch=32, heads=12, kv_heads=12)),
    Row("Llama prefill", Case(512, 512, 128, batch=1, heads=32, kv_heads=8, mask="bqk")),
    Row("mask 1k", Case(1024, 1024, 64, batch=4, heads=12, kv_heads=12, mask="bqk")),
    Row("mask 2k", Case(2048, 2048, 64, heads=16, kv_heads=16, mask="bqk")),
    Row("mask 2k, size 128", Case(2048, 2048, 128, batch=1, heads=32, kv_heads=8, mask="bqk")),
    Row("keys 4k, size 128", Case(4096, 4096, 128, heads=32, kv_heads=32, mask="bk")),
    Row("lengths 4k", Case(4096, 4096, 128, batch=8, heads=16, kv_heads=16, lengths=1)),
    Row("lengths 512, 64", Case(512, 512, 64, batch=32, heads=12, kv_heads=12, lengths=1)),
    Row("size 80", Case(2048, 2048, 80, heads=16, kv_heads=16)),
    Row("size 96", Case(2048, 2048, 96, heads=16, kv_heads=16, causal=True)),
    Row("size 192", Case(2048, 2048, 192, heads=8, kv_heads=8, causal=True)),
    Row("size 32", Case(2048, 2048, 32, heads=16, kv_heads=16)),
    Row("size 256", Case(2048, 2048, 256, heads=8, kv_heads=8, causal=True)),
    Row("384, size 128", Case(384, 384, 128, batch=8, heads=12, kv_heads=12)),
    Row("256, size 128", Case(256, 256, 128, batch=8, heads=16, kv_heads=16)),
    Row("400, size 96", Case(400, 400, 96, batch=8, heads=12, kv_heads=12)),
    Row("SigLIP", Case(729, 729, 72, batch=8, heads=16, kv_heads=16)),
    Row("ViT-H", Case(257, 257, 80, batch=8, heads=16, kv_heads=16)),
    Row("Whisper", Case(1500, 1500, 64, batch=1, heads=20, kv_heads=20)),
    Row("SDXL", Case(4096, 4096, 64, heads=10, kv_heads=10)),
    Row("SDXL, 1024", Case(1024, 1024, 64, heads=20, kv_heads=20)),
    Row("Flux", Case(4608, 4608, 128, batch=1, heads=24, kv_heads=24)),
    Row("SD3", Case(4250, 4250, 64, heads=24, kv_heads=24)),
    Row("SDXL, text", Case(4096, 77, 64, heads=10, kv_heads=10)),
    Row("512, size 256", Case(512, 512, 256, batch=4, heads=16, kv_heads=16)),
    Row("GPT-2", Case(512, 512, 64, batch=8, heads=12, kv_heads=12, causal=True)),
    Row("GPT-2, 2048", Case(2048, 2048, 64, batch=1, heads=12, kv_heads=12, causal=True)),
    Row("mask 1k, size 96", Case(1024, 1024, 96, heads=16, kv_heads=16, mask="bqk")),
    Row("mask 2k, size 96", Case(2048, 2048, 96, batch=1, heads=32, kv_heads=32, mask="bqk")),
    Row("mask 2k, size 256", Case(2048, 2048, 256, batch=1, heads=8, kv_heads=4, mask="bqk")),
    Row("decode b32", Case(1, 4096, 128, batch=32, heads=32, kv_heads=32)),
    Row("decode, lengths", Case(1, 4096, 128, batch=32, heads=32, kv_heads=32, lengths=1)),
    Row("decode b32, 8 kv", Case(1, 4096, 128, batch=32, heads=32, kv_heads=8)),
    Row("decode b1, 8 kv", Case(1, 4096, 128, batch=1, heads=32, kv_heads=8)),
    Row("decode b1, 32k", Case(1, 32768, 128, batch=1, heads=32, kv_heads=8)),
    Row("decode b1, 512", Case(1, 512, 128, batch=1, heads=32, kv_heads=8)),
    Row("decode b1, 1 kv", Case(1, 2048, 128, batch=1, heads=32, kv_heads=1)),
    Row("decode 2049, 64", Case(1, 2049, 64, batch=1, heads=32, kv_heads=8)),
    Row("the same, mask", Case(1, 2049, 64, batch=1, heads=32, kv_heads=8, mask="bk")),
    Row("decode b8, mask", Case(1, 2048, 128, batch=8, heads=32, kv_heads=8, mask="bk")),
    Row("decode b8, 64, m.", Case(1, 1024, 64, batch=8, heads=32, kv_heads=8, mask="bk")),
    Row("decode, size 256", Case(1, 2048, 256, batch=1, heads=8, kv_heads=4)),
    Row("2 queries", Case(2, 2048, 128, batch=1, heads=32, kv_heads=8)),
    Row("4 queries", Case(4, 2048, 128, batch=1, heads=32, kv_heads=8)),
    Row("16 queries", Case(16, 2048, 128, batch=1, heads=32, kv_heads=8)),
    Row("4 queries, 32k", Case(4, 32768, 128, batch=1, heads=32, kv_heads=8)),
    Row("4 queries, b8", Case(4, 2048, 128, batch=8, heads=32, kv_heads=8)),
    Row("chunk of 32", Case(32, 8192, 128, batch=1, heads=32, kv_heads=8)),
    Row("chunk of 128", Case(128, 8192, 128, batch=1, heads=32, kv_heads=8)),
    Row("chunk of 512, 32k", Case(512, 32768, 128, batch=1, heads=32, kv_heads=8, causal=True)),
    Row("16 positions", Case(16, 16, 128, batch=1, heads=32, kv_heads=8, causal=True)),
]


def captured(launch: Launch, launches: int) -> Captured | None:
    """A graph of them, or None where one fails."""
    try:  # on no stream more: behind eight of them every launch of a process takes longer
        return Captured(launch, launches, stream=torch.cuda.current_stream())
    except (RuntimeError, abi.PluginError) as error:
        print("failed:", str(error).splitlines()[0][:150], file=sys.stderr)
        return None


def medians(launches: dict[str, Launch], *, bursts: bool) -> dict[str, float]:
    """The median time of each, which take turns in an order that changes; no failed ones."""
    count = 1 if bursts else LAUNCHES
    captures = {name: captured(launch, count) for name, launch in launches.items()}
    graphs = {name: graph for name, graph in captures.items() if graph is not None}
    if bursts:
        return in_bursts(graphs)
    times: dict[str, list[float]] = {name: [] for name in graphs}
    order = list(graphs)
    for _ in range(WARM_UPS + REPLAYS):
        random.shuffle(order)
        for name in order:
            times[name].append(graphs[name].microseconds())
    return {name: sorted(each[WARM_UPS:])[REPLAYS // 2] for name, each in times.items()}


def tensors(case: Case, dtype: torch.dtype) -> tuple[list[list[torch.Tensor]], int]:
    """Copies of q, k, v, y, and the bytes of one."""
    shapes = [(case.heads, case.queries), (case.kv_heads, case.keys), (case.kv_heads, case.keys)]
    shapes.append(shapes[0])
    count = sum(case.batch * heads * rows * case.size for heads, rows in shapes) * 2
    copies = max(2, min(LAUNCHES, int(ROTATED_BYTES // count) + 1))
    return [
        [
            torch.randn(case.batch, heads, rows, case.size, device="cuda", dtype=dtype)
            for heads, rows in shapes
        ]
        for _ in range(copies)
    ], count


def lengths_of(case: Case) -> torch.Tensor:
    """Half of the keys to all where a mask says so, else evenly from a few to all."""
    if not case.lengths:
        return torch.randint(case.keys // 2, case.keys + 1, (case.batch,), device="cuda")
    counts = torch.arange(1, case.batch + 1, device="cuda") * case.keys // case.batch
    return counts[torch.randperm(case.batch)].int()


def padding(case: Case, dtype: torch.dtype, lengths: torch.Tensor) -> torch.Tensor | None:
    """A mask that hides what is beyond the lengths."""
    if not case.mask and not case.lengths:
        return None
    keys = torch.arange(case.keys, device="cuda")
    mask = torch.zeros(case.batch, 1, 1, case.keys, device="cuda", dtype=dtype)
    mask.masked_fill_(keys >= lengths[:, None, None, None], -torch.inf)
    return mask.expand(-1, -1, case.queries, -1).contiguous() if "q" in case.mask else mask


def sdpa(case: Case, sets: list, mask: torch.Tensor | None, backend: str) -> Launch:
    """torch's kernel of this name."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if mask is not None:
        mask = mask.expand(-1, case.heads, case.queries, -1)
    causal = case.causal and case.queries == case.keys

    def launch(i: int) -> torch.Tensor:
        q, k, v, _ = sets[i % len(sets)]
        with sdpa_kernel(getattr(SDPBackend, backend)):
            return torch.nn.functional.scaled_dot_product_attention(
                q, k, v, mask, is_causal=causal, enable_gqa=case.heads != case.kv_heads
            )

    return launch


def plugin(runner: Runner, case: Case, sets: list, more: torch.Tensor | None) -> Launch:
    """The plugin of a library, with a workspace of its own; ``more`` is a mask or lengths."""
    op = abi.Plugin(runner.library, "FlashAttention", case.attributes())
    inputs = [[*one[:3], *([] if more is None else [more])] for one in sets]
    size = op.workspace_size(described(inputs[0]))
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")

    def launch(i: int) -> torch.Tensor:
        y = sets[i % len(sets)][3]
        stream = torch.cuda.current_stream().cuda_stream
        address = workspace.data_ptr() if size else 0
        op.enqueue(described(inputs[i % len(sets)]), described([y]), stream, address)
        return y

    return launch


def copied(sets: list) -> Launch:
    """k copied to another tensor, by torch: a pace of memory to hold long decode against.

    It reads and writes as many bytes as decode, whose q and y are small, reads of k and v.
    """
    targets = [torch.empty_like(k) for _, k, *_ in sets]

    def launch(i: int) -> torch.Tensor:
        return targets[i % len(sets)].copy_(sets[i % len(sets)][1])

    return launch


def peers(case: Case, sets: list, mask: torch.Tensor | None, count: int) -> dict[str, Launch]:
    """torch's kernels, and a copy where decode reads more than a cache holds."""
    launches = {
        "cudnn": sdpa(case, sets, mask, "CUDNN_ATTENTION"),
        "flash": sdpa(case, sets, mask, "FLASH_ATTENTION"),
    }
    if case.queries == 1 and not case.lengths and count > ROTATED_BYTES:
        launches["copy"] = copied(sets)
    return launches


def error(case: Case, first: list[torch.Tensor], mask: torch.Tensor | None, y: torch.Tensor) -> str:
    """The relative error of the last head."""
    q, k, v = (t[-1:, -1:] for t in first[:3])
    one = Case(case.queries, case.keys, case.size, 0, 1, 1, 1, case.causal)
    if case.keys > 8192:  # the scores in float64 would be large
        return "-"
    expected = reference(one, q, k, v, None if mask is None else mask[-1:])[0]
    return f"{((y[-1:, -1:].double() - expected).norm() / expected.norm()).item():.2e}"


def main() -> None:
    """One line for each row and kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", nargs="*", type=Path, help="default: the installed one")
    parser.add_argument("--bursts", action="store_true", help="time thirty launches after a pause")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="such as full")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.library] or [library.find()]
    runners = {path.stem: Runner(path) for path in paths}
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ", end="")
    print(f"cuDNN {torch.backends.cudnn.version()}")
    for dtype in (torch.float16, torch.bfloat16):
        for row in ROWS if dtype == torch.float16 else ROWS[:2]:
            if args.only is not None and row.name not in args.only:
                continue
            case = row.case
            sets, count = tensors(case, dtype)
            lengths = lengths_of(case)
            mask = padding(case, dtype, lengths)
            more = lengths if case.lengths else mask
            own = [r for r in runners.items() if not case.lengths or r[0] not in OLDER]
            launches = {name: plugin(r, case, sets, more) for name, r in own}
            launches |= peers(case, sets, mask, count)
            flops = 4 * case.batch * case.heads * case.queries * case.keys * case.size
            flops /= 2 if case.causal else 1
            for name, time in medians(launches, bursts=args.bursts).items():
                y = launches[name](0)
                wrong = "-" if name == "copy" else error(case, sets[0], mask, y)
                print(
                    f"{row.name:18}{str(dtype)[6:]:9}{name:26}{time:9.1f} us"
                    f"{flops / time / 1e6:8.1f} TFLOP/s{count / time / 1e6:7.2f} TB/s  err {wrong}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

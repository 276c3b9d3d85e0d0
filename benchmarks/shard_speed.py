"""A Llama stack on one GPU and on several: latency, efficiency, and what the collectives take.

Run it from the repository root, in three steps, the first of which needs no GPU but TensorRT for
RTX, of the version that the GPUs run: ``python -m benchmarks.shard_speed prepare DIR --tp 2 4``;
``python -m benchmarks.shard_speed time DIR`` for one GPU, and for N of them ``torchrun
--nproc-per-node N -m benchmarks.shard_speed time DIR``; ``python -m benchmarks.shard_speed table
DIR``, which writes results/shard_speed-DATE.json too. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clocks import watched
from benchmarks.measure import OPFUSE, print_table, run, versions, write
from models import tiny
from models.builder import Weight
from opfuse.runtime import timing, world
from opfuse.runtime.engine import Engine

CASES = ((1, 128), (32, 128), (1, 2048), (32, 2048))
SIZES = {"layers": 8, "hidden": 4096, "heads": 32, "kv_heads": 8, "intermediate": 11008}
_NAMES = ("input_ids", "attention_mask", "position_ids")
_SECONDS = 0.5  # for each timing
_PACKAGES = ("opfuse", "onnx", "tensorrt-rtx-cu13", "cuda-bindings", "torch")


class Repeated(Weight):
    """A weight of one block of random values over and over: a gigabyte of new ones takes 10 s."""

    def blocks(self) -> Iterator[bytes]:
        """The values in row-major order."""
        random = np.random.default_rng(self.seed)
        values = random.standard_normal(1 << 20, np.float32) * np.float32(self.scale)
        block = (values + np.float32(self.mean)).astype(self.dtype).tobytes()
        left = self.size
        while left:
            yield block[:left]
            left -= min(left, len(block))


def shapes(batch: int, tokens: int) -> dict[str, tuple[int, int]]:
    """Those of the inputs."""
    return dict.fromkeys(_NAMES, (batch, tokens))


def prepare(folder: Path, ranks: Sequence[int], sizes: Mapping[str, int]) -> int:
    """Write the model, cut it, and build all bundles at once."""
    folder.mkdir(exist_ok=True)
    graph = tiny.llama(**sizes, vocab=2048, dtype=np.float16)
    graph.weights = [
        Repeated(**{item.name: getattr(weight, item.name) for item in fields(weight)})
        for weight in graph.weights
    ]
    model = graph.write(folder / "model.onnx", external=True)
    with ThreadPoolExecutor(max_workers=5 + sum(ranks)) as pool:
        cuts = [pool.submit(_cut, model, count, pool) for count in ranks]
        whole = pool.submit(_build, model)
        builds = [whole, *(build for cut in cuts for build in cut.result())]
        return max(build.result() for build in builds)


def _cut(model: Path, count: int, pool: ThreadPoolExecutor) -> list[Future[int]]:
    """The builds of all ranks, begun."""
    folder = model.parent / f"tp{count}"
    made = run([*OPFUSE, "shard", model, "--tp", str(count), "-o", folder, "-q", "--no-prove"])
    if made.code:
        raise SystemExit(made.output)
    return [pool.submit(_build, folder / f"rank{rank}.onnx") for rank in range(count)]


def _build(model: Path) -> int:
    level = {
        name: ",".join(f"{port}:{batch}x{tokens}" for port in _NAMES)
        for name, (batch, tokens) in {
            "min": (1, 1),
            "opt": (1, 128),
            "max": (max(b for b, _ in CASES), max(t for _, t in CASES)),
        }.items()
    }
    options = [word for name, text in level.items() for word in (f"--{name}Shapes", text)]
    options += ["--backend", "segmented", "--no-prove", "--no-cache", "-q"]
    made = run([*OPFUSE, "build", model, "-o", model.with_suffix(".opfuse"), *options])
    print(f"{model}: {made.seconds:.0f} s{made.output if made.code else ''}", flush=True)
    return made.code


def time_all(folder: Path) -> int:
    """Time this process's part at every size; rank 0 writes what was found."""
    place = world.find()
    rank, count = (0, 1) if place is None else (place.rank, place.size)
    name = "model" if count == 1 else f"tp{count}/rank{rank}"
    found = []
    with Engine.load(folder / f"{name}.opfuse", graphs=True) as engine:
        for batch, tokens in CASES:
            found.append(_timed(engine, folder, batch, tokens))
            if rank == 0:
                print(json.dumps(found[-1]), flush=True)
        gpu = engine.device.gpu.name
        transport = "" if engine.group is None else engine.group.transport
    if rank == 0:
        facts = {"gpus": count, "gpu": gpu, "transport": transport, "cases": found}
        (folder / f"times{count}.json").write_text(json.dumps(facts))
    return 0


def _timed(engine: Engine, folder: Path, batch: int, tokens: int) -> dict[str, Any]:
    arrays = timing.inputs_of(engine, shapes(batch, tokens), 0)
    arrays["position_ids"] = np.broadcast_to(np.arange(tokens), (batch, tokens)).copy()
    arrays["attention_mask"][:] = 1
    result = engine.run(arrays)["logits"]
    error = _against_one_gpu(engine, folder, batch, tokens, result)
    with engine.place() as place:
        layout = place.layout({n: a.shape for n, a in arrays.items()}, staged=True)
        trial = timing.Clock(engine.device, place.stream, 1, 1, "trial")
        once = trial.time("trial", lambda: place.replay(layout)).median_us
        runs = _agreed(engine, int(min(max(_SECONDS * 1e6 / once, 5), 200)))
        clock = timing.Clock(engine.device, place.stream, runs, 2, "graph")
        with watched(engine.device.address) as seen:
            graph = clock.time("graph", lambda: place.replay(layout))
        steps = timing.step_times(engine, place, layout, max(runs // 10, 3))
    ranks = timing.ranks_of(engine.group, graph, steps)
    return {
        "batch": batch,
        "tokens": tokens,
        "runs": runs,
        "graph": asdict(graph),
        "rel_err": error,
        "ranks": [asdict(item) for item in ranks],
        "ops": _by_op(steps),
        "products": _products(engine, steps),
        "gpu": seen.summary(),
    }


def _by_op(steps: Sequence[timing.StepTime]) -> dict[str, float]:
    """Microseconds of this rank's steps, by the op of ours or TensorRT."""
    found: dict[str, float] = {}
    for step in steps:
        op = step.what.rpartition("(")[2].rstrip(")") if step.plugin else "TensorRT"
        found[op] = found.get(op, 0.0) + step.median_us
    return found


def _products(engine: Engine, steps: Sequence[timing.StepTime]) -> list[dict[str, Any]]:
    """The products of this rank's layers by the shape of their weight: how many, and how long."""
    weights = {value.name: value.shape for value in engine.schedule.constants}
    shapes = {
        step.node: weights[step.inputs[1]]
        for step in engine.schedule.plugins()
        if step.op in ("GemmAct", "GatedGemm") and step.inputs[1] in weights
    }
    found: dict[tuple[int | str, ...], list[float]] = {}
    for step in steps:
        if step.what in shapes:
            found.setdefault(shapes[step.what], []).append(step.median_us)
    return [
        {"weight": shape, "count": len(times), "us": sum(times)}
        for shape, times in sorted(found.items())
    ]


def _agreed(engine: Engine, runs: int) -> int:
    """As many runs as rank 0 wants: all ranks have to make the same."""
    return runs if engine.group is None else int(engine.group.share(str(runs).encode())[0])


def _against_one_gpu(
    engine: Engine, folder: Path, batch: int, tokens: int, result: np.ndarray[Any, Any]
) -> float | None:
    """The largest difference from what one GPU gave, over the largest value that it gave."""
    path = folder / f"logits-{batch}x{tokens}.npy"
    own = result[:, -1].astype(np.float32)
    if engine.group is None:
        np.save(path, own)
        return None
    if not path.exists():
        return None
    want = np.load(path)
    return float(np.abs(own - want).max() / np.abs(want).max())


def table(folder: Path) -> int:
    """Print what was timed, and write it to the results."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("times*.json"))]
    found.sort(key=lambda item: int(item["gpus"]))
    alone = {
        (case["batch"], case["tokens"]): case["graph"]["median_us"]
        for item in found
        if item["gpus"] == 1
        for case in item["cases"]
    }
    rows = [_row(item, case, alone) for item in found for case in item["cases"]]
    rows.sort(key=lambda row: (int(row[0].split("x")[1]), int(row[0].split("x")[0]), int(row[1])))
    heads = ("batch x tokens", "GPUs", "us", "speed-up", "efficiency", "collectives us", "rel err")
    print_table(heads, rows)
    print("\nstep by step on rank 0, in us; MHz and watts of its GPU meanwhile are medians:")
    cases = [(str(item["gpus"]), case) for item in found for case in item["cases"]]
    ops = sorted({op for _, case in cases for op in case["ops"]})
    print_table(
        ("batch x tokens", "GPUs", *ops, "MHz", "W", "at power limit"),
        [_parts(gpus, case, ops) for gpus, case in sorted(cases, key=lambda it: _size(it[1]))],
    )
    print("\nproducts on rank 0, by their weight: us of all, and TFLOP/s:")
    for gpus, case in sorted(cases, key=lambda item: _size(item[1])):
        told = (_product(item, case["batch"] * case["tokens"]) for item in case["products"])
        print(f"{case['batch']}x{case['tokens']} {gpus}:", "; ".join(told))
    write("shard_speed", {"sizes": SIZES, "runs": found, "versions": versions(_PACKAGES)})
    return 0


def _product(item: Mapping[str, Any], rows: int) -> str:
    (inner, columns), us = item["weight"], item["us"]
    rate = 2 * rows * inner * columns * item["count"] / us / 1e6
    return f"{item['count']} of {inner}x{columns} {us:.0f} ({rate:.0f})"


def _size(case: Mapping[str, Any]) -> tuple[int, int]:
    return case["tokens"], case["batch"]


def _parts(gpus: str, case: Mapping[str, Any], ops: Sequence[str]) -> tuple[str, ...]:
    gpu = case["gpu"]
    board = (
        (f"{gpu['mhz']:.0f}", f"{gpu['watts']:.0f}", f"{gpu['capped']:.0%}") if gpu else ("",) * 3
    )
    times = (f"{case['ops'].get(op, 0.0):.0f}" for op in ops)
    return (f"{case['batch']}x{case['tokens']}", gpus, *times, *board)


def _row(
    item: Mapping[str, Any], case: Mapping[str, Any], alone: Mapping[tuple[int, int], float]
) -> tuple[str, ...]:
    count, time = int(item["gpus"]), case["graph"]["median_us"]
    one = alone.get((case["batch"], case["tokens"]))
    speed = ("", "") if one is None else (f"{one / time:.2f}", f"{one / time / count:.0%}")
    spoken = [rank["collectives_us"] for rank in case["ranks"]]
    waits = f"{min(spoken):.0f} to {max(spoken):.0f}" if spoken else ""
    error = "" if case["rel_err"] is None else f"{case['rel_err']:.1e}"
    return (f"{case['batch']}x{case['tokens']}", str(count), f"{time:.0f}", *speed, waits, error)


def main() -> int:
    """One of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("prepare", "time", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tp", type=int, nargs="+", default=[2])
    for name, size in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    args = parser.parse_args()
    if args.step == "prepare":
        return prepare(args.folder, args.tp, {name: getattr(args, name) for name in SIZES})
    return time_all(args.folder) if args.step == "time" else table(args.folder)


if __name__ == "__main__":
    sys.exit(main())

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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

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
    """Write the model, cut it, and build all bundles, several at a time."""
    folder.mkdir(exist_ok=True)
    graph = tiny.llama(**sizes, vocab=2048, dtype=np.float16)
    graph.weights = [
        Repeated(**{item.name: getattr(weight, item.name) for item in fields(weight)})
        for weight in graph.weights
    ]
    model = graph.write(folder / "model.onnx", external=True)
    for count in ranks:
        options = ["--tp", str(count), "-o", folder / f"tp{count}", "-q", "--no-prove"]
        made = run([*OPFUSE, "shard", model, *options])
        if made.code:
            print(made.output)
            return made.code
    models = [model, *(folder / f"tp{n}" / f"rank{r}.onnx" for n in ranks for r in range(n))]
    with ThreadPoolExecutor(max_workers=5) as pool:
        codes = list(pool.map(_build, models))
    return max(codes)


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
    }


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
    write("shard_speed", {"sizes": SIZES, "runs": found, "versions": versions(_PACKAGES)})
    return 0


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

"""How long engines take on this GPU beside TensorRT alone and torch, and whether that is enough.

``python -m benchmarks.engine_speed``, from the repository root, in two steps:

- all at once, in processes of their own: networks are exported from torch with both attention
  implementations (benchmarks.engine_export), built in every variant (benchmarks.engine_build), and
  loaded; torch compiles them (benchmarks.engine_torch);
- alone on the GPU: for one network after the other both exports in all variants, and torch, take
  turns, each time another one first, each run one replay of a CUDA graph; then the profile of the
  first export's variants; with ``--memory`` the device memory that some take, each in a process of
  its own.

Between the steps it waits for the file of ``--hold``, which it makes, to go away.

The error is that of the first output against torch in fp32 on the same weights, beside that of
torch in fp16. A variant whose graph gives other bits than its steps one by one is said to.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import engine_text, engine_tuning
from benchmarks.engine_export import IMPLEMENTATIONS
from benchmarks.engine_networks import LAYERS, NETWORKS, OTHERS
from benchmarks.engine_peers import Peer
from benchmarks.measure import versions, write
from opfuse.engine import gpu

PACKAGES = (
    *("tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-cu13", "cuda-bindings"),
    *("onnx", "torch", "transformers", "opfuse"),
)
ROUNDS = 6
_BUILDS = threading.Semaphore(12)  # at once: each holds the weights in memory a few times
_MEASURED_ALONE = ("alone", "auto")  # of whose memory the closing line speaks


class Export:
    """One network exported in one way: its folder, what was built, and the process that runs it."""

    def __init__(self, folder: Path, name: str, implementation: str) -> None:
        self.name, self.implementation = name, implementation
        self.folder = folder / f"{name}-{implementation}"
        self.peer: Peer | None = None
        self.memory: dict[str, Peer] = {}

    def prepare(self, args: argparse.Namespace) -> None:
        """Export, build every variant at once, and load them."""
        began = time.perf_counter()
        layers = ("--layers", str(args.layers))
        if not (self.folder / "model.onnx").exists():
            _module(
                "benchmarks.engine_export", self.folder, self.name, self.implementation, *layers
            )
        exported = time.perf_counter()
        lock = args.lock or self.folder / "opfuse.lock"
        variants = self._variants(args.variants)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda variant: self._build(variant, lock), variants))
        built = time.perf_counter()
        call = ("benchmarks.engine_turns", self.folder)
        self.peer = Peer(*call, *variants)
        for variant in _MEASURED_ALONE if args.memory and self.implementation == "sdpa" else ():
            self.memory[variant] = Peer(*call, variant, "--memory")
        for peer in (self.peer, *self.memory.values()):
            peer.start()
        print(
            f"{self.folder.name}: exported in {exported - began:.0f} s, built in "
            f"{built - exported:.0f} s, loaded in {time.perf_counter() - built:.0f} s",
            flush=True,
        )

    def _variants(self, wanted: Sequence[str]) -> list[str]:
        """Those that are for every network, for this one, or for this export of it."""
        split = [text.rpartition("/") for text in wanted]
        return [what for name, _, what in split if name in ("", self.name, self.folder.name)]

    def _build(self, variant: str, lock: Path) -> None:
        try:
            with _BUILDS:
                _module("benchmarks.engine_build", self.folder, variant, "--lock", lock)
        except subprocess.CalledProcessError as error:
            print(f"{self.folder.name} {variant}: {error.stdout[-2000:]}", flush=True)


def _module(name: str, *arguments: object) -> None:
    command = [sys.executable, "-m", name, *map(str, arguments)]
    merged = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    subprocess.run(command, check=True, **merged)


def measured(exports: Sequence[Export], torch: Peer | None, rounds: int) -> list[dict[str, Any]]:
    """The figures of one network: a dictionary for each export, with torch's in each."""
    peers = [export.peer for export in exports if export.peer and export.peer.facts]
    peers += [torch] if torch is not None and torch.facts is not None else []
    times: dict[Peer, dict[str, list[float]]] = {peer: {} for peer in peers}
    for number in range(rounds):
        first = number % max(len(peers), 1)
        for peer in (*peers[first:], *peers[:first]):
            for variant, found in peer.ask("turn").items():
                times[peer].setdefault(variant, []).extend(found)
    profiles = {peer: peer.ask("profile") for peer in peers[:1]}
    rows = []
    for export in exports:
        own = {peer for peer in (export.peer, torch) if peer in times}
        reference = np.load(export.folder / "reference.npz")
        variants = {
            variant: {
                "median_us": median(found),
                "p10_us": float(np.percentile(found, 10)),
                "p90_us": float(np.percentile(found, 90)),
                **(peer.facts.get(variant) or {}),
                "profile": profiles.get(peer, {}).get(variant, {}),
            }
            for peer in own
            for variant, found in times[peer].items()
        }
        failed = export.peer.facts.items() if export.peer and export.peer.facts else ()
        variants |= {name: item for name, item in failed if name not in variants}
        for variant, peer in export.memory.items():
            variants.setdefault(variant, {})["peak_bytes"] = peer.ask("memory")
            peer.end()  # what it held is free before the next one looks
        rows.append(
            {
                "network": export.name,
                "export": export.implementation,
                "torch_error": float(reference["error"]),
                "variants": variants,
            }
        )
    return rows


def _hold(file: Path | None) -> None:
    """Say that all is ready, and wait until whoever shares the GPU has left."""
    if file is not None:
        file.touch()
        while file.exists():
            time.sleep(0.1)


def _torch_peers(args: argparse.Namespace) -> dict[str, Peer]:
    if args.no_torch:
        return {}
    layers = ("--layers", str(args.layers))
    return {name: Peer("benchmarks.engine_torch", name, *layers) for name in args.networks}


def compared(folder: Path, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Prepare everything, wait, and measure; all that is known by then, once or twice."""
    exports = [Export(folder, n, i) for n in args.networks for i in args.exports]
    torch = _torch_peers(args)
    layers = engine_tuning.LAYERS if args.tuning else ()
    with ThreadPoolExecutor(64) as pool:
        waiting = [pool.submit(peer.start) for peer in torch.values()]
        waiting += [pool.submit(export.prepare, args) for export in exports]
        waiting += [pool.submit(engine_tuning.prepare, folder, count) for count in layers]
        for future in waiting:
            future.result()
    _hold(args.hold)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        own = [export for export in exports if export.name == name]
        rows += measured(own, torch.get(name), args.rounds)
        for row in rows[-len(own) :]:
            print(engine_text.brief(row), flush=True)
    for peer in (*torch.values(), *(export.peer for export in exports if export.peer)):
        peer.end()
    yield {"rows": rows}
    if args.tuning:
        yield {"rows": rows, "tuning": engine_tuning.measured(folder)}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", nargs="+", default=list(NETWORKS), choices=(*NETWORKS, *OTHERS)
    )
    parser.add_argument(
        "--exports", nargs="+", default=list(IMPLEMENTATIONS), choices=IMPLEMENTATIONS
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=["alone", "auto", "tune", "plugin"],
        help="of engine_build; as NETWORK/VARIANT or NETWORK-EXPORT/VARIANT for one alone",
    )
    parser.add_argument("--layers", type=int, default=4, help=LAYERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--lock", type=Path, help="verdicts for tune and locked")
    parser.add_argument("--no-torch", action="store_true", help="without torch itself")
    parser.add_argument("--memory", action="store_true", help="measure device memory too")
    parser.add_argument("--tuning", action="store_true", help="and what --tune costs")
    parser.add_argument("--hold", type=Path, help="wait before timing until this file is gone")
    parser.add_argument("--folder", type=Path, help="keep exports and engines here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Build and time what the arguments name."""
    args = _arguments(argv)
    here = gpu.current()
    where = {"gpu": here.name if here else "", "versions": versions(PACKAGES)}
    with tempfile.TemporaryDirectory() as scratch:
        for facts in compared(args.folder or Path(scratch), args):
            text = engine_text.report({**where, **facts})
            write("engine_speed", {**where, **facts}).with_suffix(".txt").write_text(text)
    print(text, flush=True)
    os._exit(0)  # no process of its own is left to wait for


if __name__ == "__main__":
    main()

"""Exports the architectures of models/zoo, each with its ground truth beside it.

``python -m models.export OUT`` writes ``ARCH__EXPORTER__ATTENTION__DTYPE.onnx`` and ``.json``, the
format of the development models. Each export runs in a process of its own with a time limit; files
that are there already are kept, and what cannot be exported is said in one line in
``OUT/failures.txt``. It needs torch, transformers, onnxscript, and onnxruntime, and no network.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from models.zoo import write
from models.zoo.names import NAMES

VARIANTS = (
    "dyn18__sdpa__fp32",
    "ts17__eager__fp32",
    "dyn23__sdpa__fp32",
    "dyn18__eager__fp32",
    "ts17__sdpa__fp32",
    "ts17__eager__fp16",
    "dyn18__sdpa__fp16",
    "dyn23__eager__fp32",
)
# Imported once, in the process that the exports are forked from.
_PRELOAD = ("models.zoo.write", "transformers.modeling_utils", "onnxscript", "torch.onnx")


def main() -> int:
    """Exports what is asked for; 0 where each file is there in the end."""
    args = _arguments()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOAD))
    log = args.folder / "failures.txt"
    before = log.read_text().splitlines() if log.exists() else []
    failures = {line.partition(": ")[0]: line for line in before}
    skip = set() if args.retry else set(failures)

    def attempt(stem: str) -> tuple[str, str]:
        return stem, _export(context, stem, args.folder, args.timeout)

    with ThreadPoolExecutor(args.jobs) as pool:
        stems = [stem for stem in _stems(args) if stem not in skip]
        for stem, problem in pool.map(attempt, stems):
            print(f"{stem}: {problem or 'ok'}", flush=True)
            failures.pop(stem, None)
            if problem:
                failures[stem] = f"{stem}: {problem}"
            log.write_text("".join(f"{line}\n" for line in sorted(failures.values())))
    return int(any(stem in failures for stem in _stems(args)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument("--only", default=",".join(NAMES), help="architectures")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="EXPORTER__ATTENTION__DTYPE")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one export")
    parser.add_argument("--jobs", type=int, default=1, help="exports at a time")
    parser.add_argument("--retry", action="store_true", help="try again what failed before")
    return parser.parse_args()


def _stems(args: argparse.Namespace) -> Iterator[str]:
    """What is wanted and not there: one variant of every architecture, then the next variant."""
    for variant in args.variants.split(","):
        for name in args.only.split(","):
            stem = f"{name}__{variant}"
            if not (args.folder / f"{stem}.json").exists():
                yield stem


def _export(
    context: multiprocessing.context.ForkServerContext, stem: str, folder: Path, timeout: float
) -> str:
    """Why it failed, or nothing."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=write.run, args=(stem, folder, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return f"longer than {timeout:.0f} s"
        return receiver.recv()
    except EOFError:
        process.join()
        return f"its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    sys.exit(main())

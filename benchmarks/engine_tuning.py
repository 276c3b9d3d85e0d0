"""What `opfuse build --tune` costs on a Llama of 4 and of 32 layers, and what its lock is worth."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import opfuse
from opfuse.engine import assemble
from opfuse.stages import build

LAYERS = (4, 32)
_HIDDEN = 1024  # 32 layers of 2048 would be 5 GB


def prepare(folder: Path, layers: int) -> None:
    """Export the network."""
    target = folder / f"tuning-{layers}"
    command = [sys.executable, "-m", "benchmarks.engine_export", str(target), "llama128", "sdpa"]
    sizes = ["--layers", str(layers), "--hidden", str(_HIDDEN)]
    if not (target / "model.onnx").exists():
        subprocess.run([*command, *sizes], check=True, stderr=subprocess.DEVNULL)


def measured(folder: Path) -> dict[str, Any]:
    """Tune each without a lock, and then ask the lock alone."""
    return {str(layers): _measured(folder / f"tuning-{layers}") for layers in LAYERS}


def _measured(folder: Path) -> dict[str, Any]:
    """Everything but building the bundle, which takes longer for more layers."""
    lock = folder / "opfuse.lock"
    lock.unlink(missing_ok=True)
    options: dict[str, Any] = {"backend": "segmented", "prove": False, "lock": lock}
    files = folder / "model.onnx", folder / "tuned.opfuse"
    with mock.patch.object(build, "build", lambda *_: assemble.no_engine()):
        tuned = opfuse.build(*files, tune=True, **options)
        again = opfuse.build(*files, **options)
    choices = [[(item.op, item.choice) for item in report.lowering] for report in (tuned, again)]
    reasons = {item.reason for item in tuned.lowering}
    return {
        "seconds": tuned.timings["tune"],
        "regions": len(reasons),
        "plugins": sum(choice == "plugin" for _, choice in choices[0]),
        "reasons": sorted(reasons),
        "same_from_lock": choices[0] == choices[1],
    }

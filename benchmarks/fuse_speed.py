"""How long `opfuse fuse --no-prove` takes on a Llama graph, beside other graph optimizers.

Each tool is timed as a whole process, start-up and file writing included, and the best of several
runs counts. Run it from the repository root: ``python -m benchmarks.fuse_speed``. The peers may
live in an environment of their own: ``--peers-python /path/to/python``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import OPFUSE, Run, print_table, run, versions, write
from models.tiny import llama

HEADS, HIDDEN = 4, 64

_ONNXSCRIPT = """
import sys, onnx_ir
from onnxscript.rewriter.ort_fusions import optimize_for_ort
model, counts = optimize_for_ort(onnx_ir.load(sys.argv[1]))
onnx_ir.save(model, sys.argv[2])
"""
VERSIONS = """
import json, sys
from importlib import metadata
names = {d.metadata["Name"].lower() for d in metadata.distributions()}
print(json.dumps({n: metadata.version(n) for n in sys.argv[1:] if n in names}))
"""


@dataclass(frozen=True)
class Tool:
    """A program that reads one ONNX file and writes another."""

    name: str
    package: str
    arguments: tuple[str, ...]

    def command(self, python: str, model: Path, output: Path) -> list[str]:
        """The whole command line."""
        places = {"{model}": str(model), "{output}": str(output)}
        return [python, *(places.get(argument, argument) for argument in self.arguments)]


PEERS = (
    Tool("onnxslim", "onnxslim", ("-m", "onnxslim", "{model}", "{output}")),
    Tool(
        "onnxruntime",
        "onnxruntime",
        (
            *("-m", "onnxruntime.transformers.optimizer", "--input", "{model}"),
            *("--output", "{output}", "--model_type", "gpt2"),
            *("--num_heads", str(HEADS), "--hidden_size", str(HIDDEN)),
        ),
    ),
    Tool("onnxscript", "onnxscript", ("-c", _ONNXSCRIPT, "{model}", "{output}")),
)


def _opfuse(model: Path, output: Path) -> list[str]:
    return [*OPFUSE, "fuse", str(model), "-o", str(output), "--no-prove", "--quiet"]


def _best(commands: Mapping[str, Sequence[str]], repeat: int) -> dict[str, Run]:
    """The fastest run of each tool, or its first that failed; in turns, so that all share luck."""
    best: dict[str, Run] = {}
    for _ in range(repeat):
        for name, command in commands.items():
            if name not in best or not best[name].code:
                one = run(command)
                faster = name not in best or one.seconds < best[name].seconds
                best[name] = one if one.code or faster else best[name]
    return best


def _peer_versions(python: str) -> dict[str, str]:
    names = [peer.package for peer in PEERS]
    listed = subprocess.run([python, "-c", VERSIONS, *names], capture_output=True, check=True)
    return dict(json.loads(listed.stdout))


def measure(layers: int, repeat: int, python: str, installed: dict[str, str]) -> dict[str, Any]:
    """Times every tool on one graph and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder, "llama.onnx"), Path(folder, "fused.onnx")
        graph = llama(layers, hidden=HIDDEN, heads=HEADS, nan_guard=True)
        graph.write(model)
        commands = {"opfuse": _opfuse(model, output)}
        for peer in PEERS:
            if peer.package in installed:
                commands[peer.name] = peer.command(python, model, output)
        results = _best(commands, repeat)
    print(f"\n{layers} layers, {len(graph.nodes)} nodes, best of {repeat}")
    print_table(
        ("tool", "wall s", "cpu s", ""),
        [
            (name, f"{one.seconds:.2f}", f"{one.cpu_seconds:.2f}", _failure(one))
            for name, one in results.items()
        ],
    )
    return {
        "layers": layers,
        "nodes": len(graph.nodes),
        "tools": {
            name: {
                "seconds": round(one.seconds, 3),
                "cpu_seconds": round(one.cpu_seconds, 3),
                **({"failed": one.last_line} if one.code else {}),
            }
            for name, one in results.items()
        },
    }


def _failure(one: Run) -> str:
    return f"exit {one.code}: {one.last_line[:80]}" if one.code else ""


def main() -> int:
    """Measures each size; 1 where opfuse failed on one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each tool (default: 5)")
    parser.add_argument("--peers-python", default=sys.executable, help="where the peers live")
    parser.add_argument("--no-peers", action="store_true", help="opfuse alone")
    parser.add_argument(
        "--peer-layers", type=int, default=32, help="the largest size for the peers (default: 32)"
    )
    args = parser.parse_args()
    peers = {} if args.no_peers else _peer_versions(args.peers_python)
    sizes = [
        measure(layers, args.repeat, args.peers_python, peers if layers <= args.peer_layers else {})
        for layers in args.layers
    ]
    seconds = [size["tools"]["opfuse"]["seconds"] for size in sizes]
    print(f"\nopfuse, last size over first: {seconds[-1] / seconds[0]:.2f} times")
    ours = versions(["opfuse", "onnx", "onnx-graphsurgeon", "numpy", "protobuf"])
    print(write("fuse_speed", {"versions": {**ours, **peers}, "sizes": sizes}))
    return int(any("failed" in size["tools"]["opfuse"] for size in sizes))


if __name__ == "__main__":
    sys.exit(main())

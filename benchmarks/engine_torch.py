"""Holds a network in torch ready, eager and compiled, as benchmarks.engine_turns holds engines.

``python -m benchmarks.engine_torch NETWORK``: both run as one CUDA graph; torch.compile is in the
mode ``max-autotune``, without the graphs of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from benchmarks.engine_networks import FP32, LAYERS, NETWORKS, OTHERS, network, to_dtype
from benchmarks.engine_turns import RUNS, Runner, serve

_WARM_UP = 3


class TorchRunner:
    """A function on the GPU, captured in a CUDA graph."""

    def __init__(self, work: Any) -> None:
        from benchmarks.graphs import Captured

        self._graph = Captured(lambda _: work(), warm_up=_WARM_UP, keep=True)
        self.run()

    def turn(self) -> list[float]:
        """Microseconds of single replays, by events around each."""
        return [self._graph.microseconds() for _ in range(RUNS)]

    def run(self) -> None:
        """Replay once and wait."""
        self._graph.microseconds()


def loaded(name: str, layers: int) -> tuple[dict[str, Runner], dict[str, Any]]:
    """Torch eager, torch compiled, and how long each took until its first result."""
    import torch

    module, inputs = network(name, layers)
    if hasattr(module.inner, "config"):
        module.inner.config._attn_implementation = "sdpa"
    module = to_dtype(name, module).cuda()
    if name.endswith(FP32):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    given = [t.cuda() for t in inputs]
    compiled = torch.compile(module, fullgraph=True, mode="max-autotune-no-cudagraphs")
    runners: dict[str, Runner] = {}
    facts = {}
    with torch.no_grad():
        for variant, work in (("torch eager", module), ("torch.compile", compiled)):
            began = time.perf_counter()
            try:
                runners[variant] = TorchRunner(lambda work=work: work(*given))
            except Exception as error:  # torch's compiler fails in many ways
                print(variant, repr(error)[-2000:], file=sys.stderr)
            facts[variant] = {"seconds": time.perf_counter() - began}
    return runners, facts


def main() -> None:
    """Serve the network that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=(*NETWORKS, *OTHERS))
    parser.add_argument("--layers", type=int, default=4, help=LAYERS)
    args = parser.parse_args()
    serve(lambda: loaded(args.network, args.layers))


if __name__ == "__main__":
    main()

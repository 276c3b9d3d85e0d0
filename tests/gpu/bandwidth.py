"""Prints what each op reaches of the GPU's memory bandwidth: ``python -m tests.gpu.bandwidth``.

Every launch works on another copy of the tensors, so that nothing is found in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Callable

from opfuse.runtime import library
from tests.gpu.harness import Runner, torch

COPIES = 8
SHAPES = [(32768, 768), (16384, 4096), (4096, 16384), (1024, 65536), (16384, 4095)]


def microseconds(launch: Callable[[int], None], repeats: int = 5) -> float:
    """Time of one launch in a CUDA graph of ``COPIES`` launches."""
    launch(0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(COPIES):
            launch(copy)
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000 / (repeats * COPIES)


def main() -> None:
    """One line for each op and shape, fp16."""
    run = Runner(library.find())
    print(f"{torch.cuda.get_device_name()}; fp16, rows x cols, us, GB/s (reads and writes)")
    for rows, cols in SHAPES:
        tensors = [
            [torch.randn(rows, cols, device="cuda").half() for _ in range(4)] for _ in range(COPIES)
        ]
        gamma = torch.ones(cols, device="cuda", dtype=torch.float16)

        def rms_norm(copy: int, t: list = tensors, g: torch.Tensor = gamma) -> None:
            run("RmsNorm", {}, [t[copy][0], g], [t[copy][1]])

        def add_rms_norm(copy: int, t: list = tensors, g: torch.Tensor = gamma) -> None:
            run("AddRmsNorm", {}, [*t[copy][:2], g], t[copy][2:])

        def add_layer_norm(copy: int, t: list = tensors, g: torch.Tensor = gamma) -> None:
            run("AddLayerNorm", {}, [*t[copy][:2], g, g, g], t[copy][2:])

        def gated_act(copy: int, t: list = tensors) -> None:
            run("GatedAct", {}, t[copy][:2], [t[copy][2]])

        cases = {"copy": (lambda c, t=tensors: t[c][1].copy_(t[c][0]), 2)}
        cases |= {"RmsNorm": (rms_norm, 2), "AddRmsNorm": (add_rms_norm, 4)}
        cases |= {"AddLayerNorm": (add_layer_norm, 4), "GatedAct": (gated_act, 3)}
        for name, (launch, touched) in cases.items():
            time = microseconds(launch)
            rate = touched * rows * cols * 2 / time / 1000
            print(f"{name:14}{rows:7} x {cols:<7}{time:9.1f}{rate:9.0f}")


if __name__ == "__main__":
    main()

"""Device memory of attention beside q, k, v, and y: ``python -m tests.gpu.attention_memory``.

"unfused" are the operators of an exported graph, one after another: a product, a scale, a mask, a
softmax, and a product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from opfuse.runtime import library
from tests.gpu.attention_cases import Case
from tests.gpu.attention_speed import plugin
from tests.gpu.harness import Runner, torch

CASES = [
    Case(length, length, 128, batch=1, heads=heads, kv_heads=heads, causal=True)
    for length in (4096, 32768)
    for heads in (1, 32)
] + [Case(1, length, 128, batch=1, heads=32, kv_heads=8) for length in (4096, 32768)]


def unfused(case: Case, sets: list) -> Callable[[int], torch.Tensor]:
    """The graph as it is exported, on torch's operators."""
    rows = torch.arange(case.queries, device="cuda")[:, None] + case.keys - case.queries
    hidden = torch.arange(case.keys, device="cuda") > rows
    mask = torch.zeros(hidden.shape, device="cuda", dtype=torch.float16)
    mask.masked_fill_(hidden, -torch.inf)
    del rows, hidden

    def run(i: int) -> torch.Tensor:
        q, k, v, _ = sets[i]
        group = case.heads // case.kv_heads
        k, v = (t.repeat_interleave(group, 1) if group > 1 else t for t in (k, v))
        scores = q @ k.transpose(-1, -2)
        scores = scores * case.size**-0.5
        scores = scores + mask
        return scores.softmax(-1) @ v

    return run


def extra_bytes(prepare: Callable[[], Callable[[int], torch.Tensor]], y: torch.Tensor) -> float:
    """The peak beside what was there before, without one y; NaN where memory does not suffice."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    try:
        launch = prepare()
        made = launch(0)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return float("nan")
    own = 0 if made is y else y.numel() * y.element_size()
    return torch.cuda.max_memory_allocated() - before - own


def main() -> None:
    """One line for each case; the argument is a plugin library (default: the installed one)."""
    runner = Runner(Path(sys.argv[1]) if sys.argv[1:] else library.find())
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, fp16, MiB beside q, k, v, y")
    for case in CASES:
        sides = [(case.heads, case.queries), *[(case.kv_heads, case.keys)] * 2]
        sides.append(sides[0])
        tensors = [
            torch.randn(case.batch, heads, rows, case.size, device="cuda", dtype=torch.float16)
            for heads, rows in sides
        ]
        sets, y = [tensors], tensors[3]
        own = extra_bytes(lambda sets=sets, case=case: plugin(runner, case, sets, None), y)
        graph = extra_bytes(lambda sets=sets, case=case: unfused(case, sets), y)
        name = f"{case.heads} heads, {case.queries} queries, {case.keys} keys"
        needs = case.batch * case.heads * case.queries * case.keys * 2 / 2**20
        told = f"{graph / 2**20:10.1f}" if graph == graph else "out of memory"
        print(f"{name:40}plugin {own / 2**20:8.2f}  unfused {told}  (scores {needs:.0f})")


if __name__ == "__main__":
    main()

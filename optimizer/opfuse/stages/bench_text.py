"""Measurements as people read them on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opfuse.stages.report_text import clean

if TYPE_CHECKING:
    from opfuse.runtime.timing import Measurement
    from opfuse.stages.bench import Bench

_MB = 1e6
_SHARED = "; other processes use this GPU: the times and the MB are not of the engine alone"


def render_bench(bench: Bench) -> RenderableType:
    """One row for each engine and way to launch it, in microseconds on the GPU's clock."""
    table = Table(title=f"{clean(bench.engines[0].gpu)}: {_shapes(bench)}", title_justify="left")
    table.add_column("engine", overflow="fold")
    for name in ("launch", "median us", "p90", "p99", "runs/s", "vs first", "MB", "first result s"):
        table.add_column(name, justify="right")
    for item, ratio in zip(bench.engines, bench.ratios, strict=True):
        for launch, latency in (("graph", item.graph), ("eager", item.eager)):
            once = launch == "graph"
            table.add_row(
                clean(item.path) if once else "",
                launch,
                f"{latency.median_us:.1f}",
                f"{latency.p90_us:.1f}",
                f"{latency.p99_us:.1f}",
                f"{latency.runs_per_s:.1f}",
                f"{ratio:.3f}" if once else "",
                f"{item.peak_bytes / _MB:.1f}" if once else "",
                f"{item.first_result_s:.2f}" if once else "",
            )
    parts = [_steps(item) for item in bench.engines if item.plugins]
    counts = [Text(_parts(item)) for item in bench.engines if item.steps]
    return Group(table, *counts, *parts)


def _steps(item: Measurement) -> RenderableType:
    """Where the time goes, segments and plugins apart, the plugins by op."""
    groups: dict[str, list[float]] = {}
    for step in item.steps:
        name = f"plugin {_op(step.what)}" if step.plugin else "TensorRT segments"
        groups.setdefault(name, []).append(step.median_us)
    table = Table(title=f"{clean(item.path)}, eager", title_justify="left")
    table.add_column("step")
    for name in ("count", "us", "share"):
        table.add_column(name, justify="right")
    total = sum(map(sum, groups.values()))
    for name, times in groups.items():
        share = f"{sum(times) / total:.0%}"
        table.add_row(clean(name), str(len(times)), f"{sum(times):.1f}", share)
    return table


def _op(node: str) -> str:
    """The op in a node's label, which ends with it in parentheses."""
    return node.rpartition("(")[2].rstrip(")")


def _shapes(bench: Bench) -> str:
    shapes = bench.engines[0].shapes
    texts = (f"{name}:{'x'.join(map(str, dims)) or 'scalar'}" for name, dims in shapes.items())
    return clean(", ".join(texts))


def _parts(item: Measurement) -> str:
    return (
        f"{item.path}: {item.segments} engines and {item.plugins} plugin launches a run, "
        f"{item.arena_bytes / _MB:.1f} MB of it for intermediates"
        + (_SHARED if item.others_bytes >= _MB else "")
    )

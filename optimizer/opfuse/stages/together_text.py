"""Several ranks as people read them on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opfuse.stages.report_text import clean

if TYPE_CHECKING:
    from opfuse.runtime.timing import Measurement


def render_ranks(found: Any) -> RenderableType:
    """A measurement of ranks, or what would be measured."""
    return Group(*(_prospect(found) if hasattr(found, "bundles") else _times(found)))


def _prospect(found: Any) -> Iterator[RenderableType]:
    yield Text(f"{found.tp} ranks belong together: plan {found.facts['plan'][:12]}")
    yield Text(f"built by {found.facts['tensorrt']} and opfuse {found.facts['opfuse']}")
    for rank, path in enumerate(found.bundles):
        yield Text(f"rank {rank}: {path} on GPU {rank}")
    if found.same_model is not None:
        which = "the model is" if found.same_model else "it is another model than"
        yield Text(f"{which} the one that was sharded")
    lack = "" if found.gpus >= found.tp else f": {found.tp} are needed"
    yield Text(f"this machine has {found.gpus} GPUs{lack}")


def _times(found: Any) -> Iterator[RenderableType]:
    mine: Measurement = found.ranks
    others = () if found.others is None else found.others.engines
    table = Table(title=f"{clean(mine.gpu)}: {_shapes(mine)}", title_justify="left")
    table.add_column("what", overflow="fold")
    for name in ("GPUs", "median us", "p90", "p99", "runs/s", "speed-up", "efficiency"):
        table.add_column(name, justify="right")
    for item, efficiency in zip(others, found.efficiency, strict=True):
        speed = f"{efficiency * found.tp:.2f}"
        table.add_row(clean(item.path), "1", *_latency(item), speed, f"{efficiency:.0%}")
    table.add_row(clean(mine.path), str(found.tp), *_latency(mine), "", "")
    yield table
    yield _where(mine)
    carried = mine.ranks[0].transport if mine.ranks else ""
    yield Text(f"collectives go over {clean(carried)}; their time holds what a rank waits for")


def _where(mine: Measurement) -> RenderableType:
    table = Table(title="where the time goes, step by step (us)", title_justify="left")
    table.add_column("rank")
    columns = ("by graph", "TensorRT segments", "plugins", "collectives", "share of collectives")
    for name in columns:
        table.add_column(name, justify="right")
    for item in mine.ranks:
        steps = item.segments_us + item.plugins_us + item.collectives_us
        times = (item.graph_us, item.segments_us, item.plugins_us, item.collectives_us)
        share = f"{item.collectives_us / steps:.0%}" if steps else ""
        table.add_row(str(item.rank), *(f"{time:.1f}" for time in times), share)
    return table


def _latency(item: Measurement) -> tuple[str, ...]:
    graph = item.graph
    times = (graph.median_us, graph.p90_us, graph.p99_us, graph.runs_per_s)
    return tuple(f"{time:.1f}" for time in times)


def _shapes(item: Measurement) -> str:
    texts = (f"{name}:{'x'.join(map(str, dims)) or 'scalar'}" for name, dims in item.shapes.items())
    return clean(", ".join(texts))

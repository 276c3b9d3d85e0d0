"""A plan as people read it on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from opfuse.graph.collectives import MOST_BY_PLUGIN
from opfuse.stages.report_text import clean

if TYPE_CHECKING:
    from opfuse.sharding.result import Plan

_MIB = 1 << 20


def render_shards(folder: str, plan: Plan, proof: Any) -> RenderableType:
    """What was split, what was not and why, and what the proof says."""
    return Group(*_parts(folder, plan, proof))


def _parts(folder: str, plan: Plan, proof: Any) -> Iterator[RenderableType]:
    bytes_of = plan.weight_bytes
    whole, rank = (bytes_of.get(name, 0) / _MIB for name in ("model", "rank"))
    yield _line(
        f"{clean(folder)}: {plan.ranks} ranks, {rank:.1f} MiB of weights each, of {whole:.1f}"
    )
    kinds = [item.how for item in plan.products]
    counts = [f"{kinds.count(kind)} by {kind}" for kind in dict.fromkeys(kinds)]
    yield _line(f"products split: {', '.join(counts)}; attentions: {len(plan.attentions)}")
    sent = [f"{count} {op}" for op, count in plan.collectives.items() if count]
    yield _line(f"collectives in a run: {', '.join(sent) or 'none'}")
    for reason, nodes in _reasons(plan).items():
        yield _line(f"no norm is fused with {len(nodes)} of the sums: {clean(reason)}")
    if any(item.replicated_kv for item in plan.attentions):
        yield _line("key/value heads do not divide among the ranks: several hold the same ones")
    if plan.ranks > MOST_BY_PLUGIN:
        yield _line(
            f"the plugins reach {MOST_BY_PLUGIN} ranks: build these with --lower native, for NCCL"
        )
    for port in (*plan.inputs, *plan.outputs):
        yield _line(f"each rank has a part of {clean(port.name)}, along axis {port.axis}")
    if plan.left:
        table = Table("left whole on every rank", "reason")
        for (op, reason), nodes in _by_reason(plan).items():
            more = f" and {len(nodes) - 1} more" if nodes[1:] else ""
            table.add_row(f"{clean(nodes[0])} ({clean(op)}){more}", clean(reason))
        yield table
    yield _line(_proven(proof))


def _reasons(plan: Plan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item in plan.apart:
        found.setdefault(item.reason, []).append(item.node)
    return found


def _by_reason(plan: Plan) -> dict[tuple[str, str], list[str]]:
    """Layers are alike: what stays whole for the same reason is told once."""
    found: dict[tuple[str, str], list[str]] = {}
    for item in plan.left:
        found.setdefault((item.op, item.reason), []).append(item.node)
    return found


def _proven(proof: Any) -> str:
    if proof is None:
        return "not proven (--no-prove)"
    if proof.not_run:
        return f"not proven: the model does not run, or gives nothing: {clean(proof.not_run)}"
    return f"proven: all ranks together differ from the model by {proof.max_rel_err:.1e} at most"


def _line(text: str) -> Text:
    return Text.from_markup(text)

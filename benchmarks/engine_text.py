"""The figures of benchmarks.engine_speed as text, and what they have to show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.measure import table

Row = Mapping[str, Any]

TITLES = {
    "bert": "bert-base 8x384",
    "vit": "vit-b16 32",
    "llama2048": "llama 4L 1x2048",
    "llama128": "llama 4L 1x128",
    "decode": "llama 4L decode, 2048 cached",
}
GOALS = {"bert": 1300.0, "vit": 2500.0, "llama2048": 1900.0, "llama128": 250.0}
OURS = "auto"
_KINDS = ("products", "attention", "norms", "rope", "other plugins", "TensorRT")
_ALIKE, _MEMORY, _TUNING = 0.03, 1.05, 0.2


def title(row: Row) -> str:
    """What a network is called."""
    return TITLES.get(row["network"], row["network"])


def us(row: Row, variant: str) -> float | None:
    """The median of a variant; None where it has none."""
    found = row["variants"].get(variant, {}).get("median_us")
    return None if found is None else float(found)


def brief(row: Row) -> str:
    """One line for a row, while others are still to come."""
    cells = [
        f"{name} {item['median_us']:.1f}" + (f" ({item['error']:.1e})" if "error" in item else "")
        for name, item in row["variants"].items()
        if "median_us" in item
    ]
    return f"{row['network']} {row['export']}: " + ", ".join(cells)


def report(facts: Mapping[str, Any]) -> str:
    """All tables, and whether each thing to show is shown."""
    rows = facts["rows"]
    heading = f"{facts['gpu']}; " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    parts = [heading, *_times(rows), "", *_whereabouts(rows), "", *_shown(rows)]
    parts += _memory(rows) + _tuning(facts.get("tuning", {}))
    return "\n".join(parts) + "\n"


def _times(rows: Sequence[Row]) -> list[str]:
    variants = list(dict.fromkeys(name for row in rows for name in row["variants"]))
    lines = []
    for row in rows:
        cells = [f"{title(row)} {row['export']}"]
        for variant in variants:
            item = row["variants"].get(variant, {})
            text = f"{item['median_us']:.1f}" if "median_us" in item else "-"
            if "error" in item:
                text += f" err {item['error']:.1e} ({item.get('parts', '?')})"
            if not item.get("graph_is_exact", True):
                text += " GRAPH DIFFERS"
            cells.append(text)
        lines.append([*cells, f"{row['torch_error']:.1e}"])
    return [
        "us of one run by CUDA graph (median), relative error against torch in fp32, "
        "(engines/runs of them + plugin launches):",
        *table(["network", *variants, "err of torch"], lines),
    ]


def _whereabouts(rows: Sequence[Row]) -> list[str]:
    """Where the time of a run goes, by kernels that the profiler saw."""
    lines = []
    for row in rows:
        for variant, item in row["variants"].items():
            found = item.get("profile") or {}
            if not found:
                continue
            kinds = [f"{found['kinds'].get(kind, 0.0):.0f}" for kind in _KINDS]
            whole = sum(found["kinds"].values()) + found["idle"]
            goal = GOALS.get(row["network"])
            name = f"{title(row)} {row['export']} {variant}"
            rest = [f"{found['idle']:.0f}", f"{found['launches']}", f"{goal:.0f}" if goal else "-"]
            lines.append([name, f"{whole:.0f}", *kinds, *rest])
    header = ["us of a run under the profiler", "whole", *_KINDS, "no kernel", "kernels", "goal"]
    return table(header, lines)


def _shown(rows: Sequence[Row]) -> list[str]:
    lines = ["What has to be shown:"]
    for row in rows:
        own, theirs = us(row, OURS), list(_best_of_others(row, rows))
        if own is None or not theirs:
            lines.append(f"- {_name(row)}: {OURS} or what it is held against was not measured")
            continue
        name, best = min(theirs, key=lambda item: item[1])
        verdict = _verdict(own <= best)
        lines.append(
            f"- {_name(row)}: {own:.1f} us, {name} {best:.1f}, {own / best:.2f}: {verdict}"
        )
    for row in rows:
        found = row["variants"].get(OURS, {}).get("error")
        if found is not None:
            theirs = row["torch_error"]
            lines.append(
                f"- {_name(row)}: error {found:.2e}, torch itself {theirs:.2e}: "
                f"{_verdict(found <= theirs)}"
            )
    for network in dict.fromkeys(row["network"] for row in rows):
        pair = [row for row in rows if row["network"] == network and us(row, OURS) is not None]
        times = [float(us(row, OURS) or 0.0) for row in pair]
        if len(times) > 1:
            apart = max(times) / min(times) - 1
            verdict = _verdict(apart <= _ALIKE)
            lines.append(
                f"- {TITLES.get(network, network)}: both exports within {apart:.1%}: {verdict}"
            )
    return lines


def _best_of_others(row: Row, rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """TensorRT alone on each export, and torch.compile."""
    for other in rows:
        if other["network"] == row["network"]:
            if (time := us(other, "alone")) is not None:
                yield f"TensorRT alone ({other['export']})", time
            if (time := us(other, "torch.compile")) is not None:
                yield "torch.compile", time


def _memory(rows: Sequence[Row]) -> list[str]:
    lines = []
    for row in rows:
        found = {
            name: item["peak_bytes"]
            for name, item in row["variants"].items()
            if item.get("peak_bytes")
        }
        if len(found) == 2:
            ratio = found[OURS] / found["alone"]
            shown = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in found.items())
            verdict = _verdict(ratio <= _MEMORY)
            lines.append(f"- {_name(row)}: device memory {shown}, {ratio:.3f}: {verdict}")
    return lines


def _tuning(found: Mapping[str, Any]) -> list[str]:
    if not found:
        return []
    seconds = {int(layers): item["seconds"] for layers, item in found.items()}
    few, many = seconds[min(seconds)], seconds[max(seconds)]
    shown = ", ".join(f"{layers} layers {took:.1f} s" for layers, took in seconds.items())
    lines = [f"- --tune: {shown}: {_verdict(abs(many / few - 1) <= _TUNING)}"]
    for layers, item in found.items():
        text = f"{item['regions']} regions, {item['plugins']} plugins"
        same = _verdict(item["same_from_lock"])
        lines.append(f"- --tune, {layers} layers: {text}; the lock alone chooses the same: {same}")
    return lines


def _name(row: Row) -> str:
    return f"{title(row)} {row['export']}"


def _verdict(good: bool) -> str:
    return "met" if good else "NOT MET"

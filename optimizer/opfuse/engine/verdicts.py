"""What was measured of a region, what follows from it, and where that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

LEAVE, NATIVE, PLUGIN = "leave", "native", "plugin"
SECTION = "verdicts"
LEAST_GAIN = 0.003  # of TensorRT's time: less is not worth a plugin
_NOISE = 3.0  # median absolute deviations of the differences that a gain has to exceed
EXACT = frozenset({"GemmAct", "GatedGemm"})
"""Plugins that add up in fp32 what TensorRT's fp16 products add up in part in fp16. On an H100 with
TensorRT for RTX 1.4 a Llama of 4 layers has a relative error of 7.1e-3 with TensorRT's products and
of 1.7e-3 with these, as torch has (1x128); BERT 2.7e-3 and 1.4e-3."""
WORTH = 0.05  # of TensorRT's time in a region: what being exact may cost there
APART = 0.05  # the same for plugins that save an engine, where the bundle is too large
_SPARED = "with an engine between plugins the bundle would take more memory than TensorRT alone"

Times = Mapping[str, Mapping[str, Sequence[float]]]
"""Microseconds by the name of the point and of the variant, one of each round."""
Sizes = Mapping[str, Sequence[int]]
"""By op: elements of its first output and of its first two inputs (engine/estimate)."""


@dataclass(frozen=True)
class Verdict:
    """Which variant of a region is built: "leave", "native", or the plugins as "A+B" or "A@2".

    The number is the tactic of a plugin. ``us`` has the median of each variant at each point,
    ``ops`` the plugins of the region, ``kinds`` those that are unusual (engine/kinds), ``work`` the
    sizes of each (engine/estimate), and ``source`` says where the verdict is from. ``sparing`` is
    what would be taken instead if memory were short, for TensorRT would have an engine of its own
    there; ``spares`` says that it was. Where nobody measured, ``ratios`` has the time with an op
    over that without by a table, and ``lacks`` the rows that the table would need.
    """

    choice: str
    ops: tuple[str, ...]
    us: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    library: str = ""
    source: str = ""
    work: Sizes = field(default_factory=dict)
    sparing: str = ""
    spares: bool = False
    kinds: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    ratios: Mapping[str, float] = field(default_factory=dict)

    def spared(self) -> Verdict:
        """The verdict where memory is short."""
        return replace(self, choice=self.sparing, spares=True) if self.sparing else self

    def form_of(self, op: str) -> str:
        """What a plugin of the region becomes: "plugin", "native", or "leave"."""
        if self.choice == NATIVE:
            return NATIVE
        return PLUGIN if op in plugins_of(self.choice) else LEAVE

    def tactic_of(self, op: str) -> int:
        """Which of its ways a plugin takes; 0 where it chooses itself."""
        return plugins_of(self.choice).get(op, 0)

    def reason(self, op: str) -> str:
        """The figures in words, or without any what is taken, for one op of the region."""
        shown = []
        for point, times in self.us.items():
            best = " ".join(f"{name} {us:.1f}" for name, us in times.items())
            shown.append(f"{point}: {best} us")
        if op in self.ratios:
            shown = [f"{self.ratios[op]:.2f} of the time that TensorRT takes"]
        is_left = self.form_of(op) == LEAVE and self.choice != LEAVE
        taken = f"{self.choice} without it" if is_left else self.choice
        missing = row(op, self.kinds)
        source = f"{self.source} has no {missing}" if missing in self.lacks else self.source
        told = f"{source}: " + ("; ".join(shown) or taken)
        return f"{told}; {_SPARED}" if self.spares else told

    def as_dict(self) -> dict[str, Any]:
        """The verdict as the lock has it."""
        facts = asdict(self)
        del facts["source"], facts["spares"], facts["lacks"], facts["ratios"]
        return {**facts, "ops": list(self.ops)}

    @staticmethod
    def from_dict(facts: Mapping[str, Any], source: str) -> Verdict:
        """Read what `as_dict` wrote.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: It is something else.
        """
        plugins_of(facts["choice"])
        us = {point: dict(times) for point, times in facts["us"].items()}
        ops = tuple(facts["ops"])
        library, work = str(facts.get("library", "")), dict(facts.get("work", {}))
        sparing = str(facts.get("sparing", ""))
        plugins_of(sparing or LEAVE)
        kinds = dict(facts.get("kinds", {}))
        return Verdict(str(facts["choice"]), ops, us, library, source, work, sparing, kinds=kinds)


def plugins_of(choice: str) -> dict[str, int]:
    """The plugins of a variant with their tactics.

    Raises:
        ValueError: A tactic is no number.
    """
    if choice in (LEAVE, NATIVE):
        return {}
    parts = (part.partition("@") for part in choice.split("+"))
    return {op: int(tactic or 0) for op, _, tactic in parts}


def decide(
    times: Times,
    ops: Sequence[str],
    library: str,
    work: Sizes | None = None,
    *,
    apart: bool = False,
    kinds: Mapping[str, str] | None = None,
) -> Verdict:
    """The fastest variant that is nowhere slower than what TensorRT makes of the region.

    A gain counts where it is more than the noise and more than three thousandths of the time.
    Plugins that are more exact may lose a twentieth. Where TensorRT has an engine for nothing else
    (``apart``), all plugins together save it: they need no gain, and may lose a twentieth if memory
    is short (engine/footprint). The first point is the one that the engine is tuned for, which
    decides between variants.
    """
    fast = _best(times, frozenset(ops), LEAST_GAIN if apart else 0.0)
    sparing = _best(times, frozenset(ops), APART) if apart else fast
    us = {
        point: {name: round(median(values), 2) for name, values in found.items() if values}
        for point, found in times.items()
    }
    instead = "" if sparing == fast else sparing
    facts = (fast, tuple(ops), us, library, "measured here", work or {}, instead)
    return Verdict(*facts, kinds=kinds or {})


def _best(times: Times, every: frozenset[str], saved: float) -> str:
    """The variant that wins where all plugins may be slower by this share of TensorRT's time."""
    points = list(times)
    candidates = [name for name in times[points[0]] if name != LEAVE] if points else []
    better: dict[str, float] = {}
    for name in candidates:
        gains = [_gain(times[point], name) for point in points]
        plugins = plugins_of(name)
        own = saved if every.issubset(plugins) else 0.0
        worth = WORTH if plugins and EXACT.issuperset(plugins) else 0.0
        known = [gain for gain in gains if gain is not None]
        if len(known) == len(gains) and _wins(known, max(own, worth)):
            better[name] = median(times[points[0]][name]) - own * known[0][2]
    return min(better, key=lambda name: better[name], default=LEAVE)


def _gain(times: Mapping[str, Sequence[float]], name: str) -> tuple[float, float, float] | None:
    """How much less time a variant takes than leaving, the noise of that, and leaving itself."""
    if not times.get(LEAVE) or not times.get(name):
        return None
    differences = [a - b for a, b in zip(times[LEAVE], times[name], strict=True)]
    middle = median(differences)
    noise = median(abs(value - middle) for value in differences)
    return middle, noise, median(times[LEAVE])


def _wins(gains: Sequence[tuple[float, float, float]], worth: float) -> bool:
    """Whether the first point gains and no other one loses, or none loses more than it is worth."""
    (gain, noise, whole), *others = gains
    if worth:
        return all(gain >= -max(_NOISE * noise, worth * whole) for gain, noise, whole in gains)
    if gain <= max(_NOISE * noise, LEAST_GAIN * whole):
        return False
    return all(gain >= -max(_NOISE * noise, LEAST_GAIN * whole) for gain, noise, whole in others)


def target_of(capability: str, tensorrt: str) -> str:
    """What verdicts hold for, such as ``"sm_90 tensorrt_rtx 1.4.0.76"``."""
    return f"sm_{capability.replace('.', '')} {tensorrt}"


def read(section: Any, target: str) -> dict[str, Verdict]:
    """The verdicts of a lock for one target; what cannot be read is none."""
    found = {}
    stored = section.get(target, {}) if isinstance(section, dict) else {}
    for key, facts in stored.items() if isinstance(stored, dict) else ():
        try:
            found[key] = Verdict.from_dict(facts, "from the lock")
        except (KeyError, TypeError, AttributeError, ValueError):
            continue
    return found


def row(op: str, kinds: Mapping[str, str]) -> str:
    """What a table calls an op, such as ``"RmsNorm"`` or ``"RmsNorm fp32"``."""
    return f"{op} {kinds[op]}" if op in kinds else op

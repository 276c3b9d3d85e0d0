"""Holds the sections of a run against those of a lock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from opfuse.explanation.anchors import FOLLOWS
from opfuse.gate.culprit import Culprit, Scene, new_misses, of_anchors, told
from opfuse.gate.result import FAILED, PASSED, SKIPPED, Expectation
from opfuse.gate.weights import changed

Section = Mapping[str, Any]
_SHOWN = 3
_SHORT = 12  # digits of a hash


@dataclass(frozen=True)
class Evidence:
    """What a run knows beyond its sections.

    Attributes:
        scene: Where fusions that are missing are looked for; takes a moment.
        broken: Why the fused or converted model does not compute what the original does, if so.
        error: The largest relative error of the proof.
        rms: That of the conversion, as root mean square.
        undone: Fusions that the proof refuted: kind, node, and reason in one line each.
        whole: Why the whole model was not compared.
        kept: What a conversion keeps in fp32: operator, and a line with the node and the reason.
    """

    scene: Callable[[], Scene] = Scene
    broken: str = ""
    error: float = 0.0
    rms: float = 0.0
    undone: Sequence[str] = ()
    whole: str = ""
    kept: Sequence[tuple[str, str]] = ()


def model(locked: Section, now: Section) -> Iterator[Expectation]:
    """Yield one expectation for each input and output, and what is said of a changed file."""
    for side in ("inputs", "outputs"):
        was = locked.get(side, now[side])
        for name in sorted({*was, *now[side]}):
            pair = (was.get(name, "none"), now[side].get(name, "none"))
            yield _same("model", name, *pair, f"{side[:-1]} {name}: {' -> '.join(pair)}")
    if "sha256" in locked:
        differs = locked["sha256"] != now["sha256"]
        text = f"another file than the locked one: {_hashes(locked, now)}" if differs else ""
        yield Expectation("model", "sha256", PASSED, text)


def options(locked: Section, now: Section) -> Iterator[Expectation]:
    """Yield one expectation for each option."""
    for name, value in locked.items():
        if name in now:
            text = f"option {name} {_shown(value)} -> {_shown(now[name])}"
            yield _same("options", name, value, now[name], text)


def fusions(locked: Section, now: Section, evidence: Evidence) -> Iterator[Expectation]:
    """Yield one expectation for each kind; more than are locked pass, and are told."""
    counts = {
        kind: (locked.get(kind, {}).get("fused", 0), now.get(kind, {}).get("fused", 0))
        for kind in sorted({*locked, *now})
    }
    gained = [f"{kind} {was} -> {n}" for kind, (was, n) in counts.items() if n > was]
    for kind, (was, is_now) in counts.items():
        if is_now >= was:
            yield Expectation("fusions", kind, PASSED, _more(kind, was, is_now, locked, now))
            continue
        lost = was - is_now
        found = _blamed(kind, lost, locked[kind].get("nearly", ()), counts, evidence)
        text = f"{kind} {was} -> {is_now}: {told(found, lost, gained)}"
        first = found[0] if found else Culprit("", "")
        yield Expectation("fusions", kind, FAILED, text, first.fix, first.node)


def _more(kind: str, was: int, is_now: int, locked: Section, now: Section) -> str:
    """What there is more of: fusions, and candidates for them that were left."""
    told = [f"{kind} {was} -> {is_now}: --update pins the new ones"] if is_now > was else []
    known, missed = (list(side.get(kind, {}).get("nearly", ())) for side in (locked, now))
    if (more := len(missed) - len(known)) > 0:
        new = list((Counter(missed) - Counter(known)).elements())
        told.append(f"{kind}: {more} more not fused: {', '.join(new[:_SHOWN])}")
    return "; ".join(told)


def _blamed(
    kind: str,
    lost: int,
    known: Collection[str],
    counts: Mapping[str, tuple[int, int]],
    evidence: Evidence,
) -> list[Culprit]:
    """What explains a loss, the likeliest first; at most ``lost`` of them."""
    if found := new_misses(kind, known, evidence.scene().misses):
        return found[:lost]
    wider = next((wide for wide, merge in FOLLOWS.items() if merge == kind), "")
    was, now = counts.get(wider, (0, 0))
    if was > now:
        return [Culprit("", f"it goes with {wider}")]
    return list(of_anchors(kind, evidence.scene()))[:lost]


def proof(locked: Section | None, now: Section | None, evidence: Evidence) -> Iterator[Expectation]:
    """Yield what the proof of the lock went through, and whether this one does."""
    if evidence.broken:
        yield Expectation("proof", "failed", FAILED, evidence.broken)
        return
    if locked is None:
        return
    if now is None:
        yield Expectation("proof", "failed", FAILED, "the proof of the lock was not run")
        return
    failed, most = locked.get("failed", 0), locked.get("max_rel_err")
    if now["failed"] > failed:
        text = f"fusions undone by the proof {failed} -> {now['failed']}: "
        yield Expectation("proof", "failed", FAILED, text + "; ".join(evidence.undone[:_SHOWN]))
    else:
        yield Expectation("proof", "failed")
    if locked.get("whole"):
        text = f"the whole model is not compared any more: {evidence.whole or 'a fusion failed'}"
        yield _kept(now["whole"], "proof", "whole", text)
    if most is not None:
        text = f"relative error {evidence.error:.1e}, the lock allows {most:g}"
        yield _kept(evidence.error <= most, "proof", "max_rel_err", text)


def precision(locked: Section, now: Section, evidence: Evidence) -> Iterator[Expectation]:
    """Yield what computes in which type, the Casts between, and what stays in fp32."""
    was, are = locked.get("products", {}), now["products"]
    # Where all are of one type their number is the fusions' business.
    same = set(was) == set(are) and (len(was) < 2 or was == are)
    text = f"products and attentions in {_counts(was)} -> {_counts(are)}"
    yield _kept(same, "precision", "products", text)
    if "delicate" in locked and "delicate" in now:
        lost = list(_lowered(locked["delicate"], now["delicate"]))
        yield _kept(not lost, "precision", "delicate", "; ".join(lost))
    if "casts" in locked and "casts" in now:
        text = f"Casts {locked['casts']} -> {now['casts']}"
        yield _kept(now["casts"] <= locked["casts"], "precision", "casts", text)
    if "kept" in locked and "kept" in now:
        more = [op for op, n in now["kept"].items() if n > locked["kept"].get(op, 0)]
        lines = [line for op, line in evidence.kept if op in more][:_SHOWN]
        text = f"more is kept in fp32 ({', '.join(more)}): {'; '.join(lines)}"
        yield _kept(not more, "precision", "kept", text)
    most = locked.get("max_rms")
    if most is not None and now.get("max_rms") is not None:
        text = f"root mean square error {evidence.rms:.1e}, the lock allows {most:g}"
        yield _kept(evidence.rms <= most, "precision", "max_rms", text)


def epsilons(locked: Section, now: Section, others: Iterable[Expectation]) -> Iterator[Expectation]:
    """Yield the ``others`` and one for the epsilons: where they explain a failure, in its line."""
    pinned, found = locked.get("epsilons"), list(others)
    if pinned is None or pinned == now["epsilons"]:
        yield from found
        if pinned is not None:
            yield Expectation("precision", "epsilons")
        return
    text = f"nodes by epsilon: {_counts(pinned)} -> {_counts(now['epsilons'])}"
    failed = [x for x in found if x.status == FAILED and x.section in ("fusions", "outputs")]
    for item in found:
        explained = item in failed and item.section == "outputs"
        yield replace(item, message=f"{item.message}; {text}") if explained else item
    yield _kept(bool(failed), "precision", "epsilons", text)


def _lowered(locked: Section, now: Section) -> Iterator[str]:
    """Yield what of the operators that half precision harms computes in it and did not."""
    for op, was in locked.items():
        are = now.get(op, {})
        # Where all are of one type their number says nothing of it.
        same = set(was) == set(are) and len(was) == 1
        if not same and any(are.get(low, 0) > was.get(low, 0) for low in ("fp16", "bf16")):
            yield f"{op} in {_counts(was)} -> {_counts(are)}"


def plugins(locked: Section | None, now: Section | None, why: str) -> Iterator[Expectation]:
    """Yield whether the plugin library is the locked one; ``why`` says why there is none."""
    if locked is None:
        return
    if now is None:
        yield Expectation("plugins", "sha256", FAILED, f"no plugin library: {why}")
        return
    for name in ("version", "sha256"):
        if name in locked:
            shown = _hashes(locked, now) if name == "sha256" else f"{locked[name]} -> {now[name]}"
            text = f"another plugin library than the locked one: {name} {shown}"
            yield _same("plugins", name, locked[name], now[name], text)


def tensorrt(locked: Section, now: Section) -> Iterator[Expectation]:
    """Yield whether each TensorRT of the lock is here in its version."""
    for name, version in locked.items():
        is_now = now.get(name)
        text = f"{name} {version} -> {is_now or 'not installed'}"
        fix = f"pip install '{_WHEELS.get(name, name)}=={version}'"
        yield _same("tensorrt", name, version, is_now, text, fix)


_WHEELS = {"tensorrt": "tensorrt-cu13", "tensorrt-rtx": "tensorrt-rtx-cu13"}


def outputs(locked: Section, now: Section | None) -> Iterator[Expectation]:
    """Yield whether each output, and what no output shows of the weights, is as it was.

    Args:
        locked: Shapes and hashes of the inputs, the summary of each output, and that of the
            weights.
        now: The same; None where nothing had to be computed, since the model is the locked one.
    """
    found = list(_on_inputs(locked, now))
    yield from found
    if "weights" in locked and all(item.status != FAILED for item in found):
        # Whoever allows the outputs more than their rounding lets the weights change as well.
        same = now is None or locked.get("rtol", 0.0) > now["rtol"]
        types = [] if same or now is None else changed(locked["weights"], now["weights"])
        text = f"weights ({', '.join(types)}) differ, which no output on the seeded inputs shows"
        yield _kept(not types, "outputs", "weights", text, "--update pins them if they are meant")


def _on_inputs(locked: Section, now: Section | None) -> Iterator[Expectation]:
    """Yield whether each output has the locked numbers on the seeded inputs."""
    if locked.get("not_run"):
        text = f"the lock pins no outputs: {locked['not_run']}"
        yield Expectation("outputs", "", SKIPPED, text)
        return
    values = locked.get("values", {})
    if now is None:
        yield from (Expectation("outputs", name) for name in values)
        return
    if now["not_run"]:
        text = f"the model does not run on the seeded inputs any more: {now['not_run']}"
        yield Expectation("outputs", "", FAILED, text)
        return
    if drawn := _other_inputs(locked.get("inputs", {}), now["inputs"]):
        yield Expectation("outputs", "", FAILED, drawn)
        return
    if locked.get("computed_in") != now["computed_in"]:
        text = f"computed in {locked.get('computed_in')} -> {now['computed_in']}: not comparable"
        yield Expectation("outputs", "", FAILED, text)
        return
    for name, value in values.items():
        text = _difference(value, now["values"].get(name), locked.get("rtol", 0.0))
        yield _kept(not text, "outputs", name, f"output {name} {text} on the seeded inputs")


def _other_inputs(locked: Section, now: Section) -> str:
    """Say how the seeded inputs differ; other numbers would then mean nothing."""
    for name, was in locked.items():
        is_now = now.get(name)
        if is_now is None or was["shape"] != is_now["shape"]:
            shape = is_now["shape"] if is_now else "none"
            return f"the seeded input {name} has shape {shape}, the locked one {was['shape']}"
        if was["sha256"] != is_now["sha256"]:
            return (
                f"the seeded input {name} is not the locked one (the model takes other values, or "
                "NumPy draws others): the outputs cannot be compared"
            )
    return ""


def _difference(was: Section, now: Section | None, rtol: float) -> str:
    """Say how two summaries of an output differ; empty where they do not."""
    if now is None:
        return "is gone"
    for name in ("dtype", "shape", "finite"):
        if was[name] != now[name]:
            what = "count of finite values" if name == "finite" else name
            return f"has the {what} {_shown(was[name])} -> {_shown(now[name])}"
    old, new = ([found["rms"], *found["projections"]] for found in (was, now))
    if len(old) != len(new):
        sums = f"{len(old) - 1} -> {len(new) - 1} projections"
        return f"has infinities or values far above the others that came or went: {sums}"
    scale = max(abs(was["rms"]), abs(now["rms"])) or 1.0
    error = max(abs(a - b) for a, b in zip(old, new, strict=True)) / scale
    return f"differs by {error:.1e} of its size, the lock allows {rtol:g}" if error > rtol else ""


def _same(
    section: str, name: str, was: object, now: object, text: str, fix: str = ""
) -> Expectation:
    return _kept(was == now, section, name, text, fix)


def _kept(kept: bool, section: str, name: str, text: str, fix: str = "") -> Expectation:
    if kept:
        return Expectation(section, name)
    return Expectation(section, name, FAILED, text, fix)


def _hashes(was: Section, now: Section) -> str:
    return f"{was['sha256'][:_SHORT]}... -> {now['sha256'][:_SHORT]}..."


def _counts(found: Section) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items()) or "none"


def _shown(value: object) -> str:
    return "none" if value in (None, [], {}) else str(value)

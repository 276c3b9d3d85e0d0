"""Decides for each distinct group of plugins whether it pays: measured, from the lock, or known."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from onnx import ModelProto, NodeProto

from opfuse import lockfile
from opfuse.config import Config
from opfuse.engine import estimate, gpu, verdicts, wheel
from opfuse.engine.backend import Backend
from opfuse.engine.copies import copies
from opfuse.engine.footprint import exceeds
from opfuse.engine.kinds import FP32, has_convolution, kinds
from opfuse.engine.natives import substitute
from opfuse.engine.outline import outline
from opfuse.engine.plugin_nodes import choose_tactic, is_plugin, leave
from opfuse.engine.profile import resolve
from opfuse.engine.regions import HEAVY_PLUGINS, Region, regions
from opfuse.engine.select import select
from opfuse.engine.tensors import range_of, types_of
from opfuse.engine.trials import Trials
from opfuse.engine.verdicts import LEAVE, NATIVE, Times, Verdict
from opfuse.files import file_hash
from opfuse.progress import Progress

# Not seen to win as a layer of an engine, where nobody measured.
_UNKNOWN = ("FlashAttention", "PackedAttention", "GemmAct", "GatedGemm")
_CAPABILITY = {"A100": "8.0", "H100": "9.0", "H200": "9.0", "B200": "10.0", "L4": "8.9"}
_CAPABILITY |= {"RTX4090": "8.9", "RTX5090": "12.0"}


@dataclass(frozen=True)
class Decided:
    """The choice and the reason for every plugin node by its name, and what to tell of it all.

    ``taken`` says whether any is more than its body, and ``left`` why the cut gives plugins back
    where none is.
    """

    nodes: Mapping[str, tuple[str, str]]
    note: str
    taken: bool
    left: Mapping[str, str]


def decide(
    model: ModelProto, base_dir: Path, library: Path, config: Config, progress: Progress
) -> Decided:
    """Leave the plugins of ``model`` that do not pay on the target GPU, in place.

    With ``config.tune`` each distinct region that the lock has no verdict on is built in all its
    variants, timed, and its verdict written at once, so a run that is killed goes on where it was.
    Otherwise the lock decides, and where it has nothing, the shipped table of the architecture.
    Products come first: what lies between them is weighed beside those that stay plugins.

    Args:
        model: From stages/lower, with every plugin that the library has.
        base_dir: The private folder that holds the model's external weights.
        library: The plugin library.
        config: Backend, shapes, lock, and whether to measure.
        progress: Told about each region.

    Raises:
        InputError: The lock or the shapes are wrong.
    """
    tuner = _Tuner(model, base_dir, library, config, progress)
    tuner.settle(products=True)
    tuner.settle(products=False)
    return tuner.told()


class _Tuner:
    """One model, and what is known of its regions."""

    def __init__(
        self, model: ModelProto, base_dir: Path, library: Path, config: Config, progress: Progress
    ) -> None:
        self._model, self._config, self._progress = model, config, progress
        self._base_dir, self._library = base_dir, library
        self._backend = select(config.backend).backend
        self._types = types_of(model)
        self._moves = copies(model, self._types)
        given = (config.min_shapes, config.opt_shapes, config.max_shapes)
        self._profile = resolve(model.graph, given)
        here = gpu.current()
        self._capability = here.compute_capability if here else _CAPABILITY[config.gpu]
        self._gpu = here.name if here else f"no GPU here, {config.gpu}"
        self._target = verdicts.target_of(self._capability, _tensorrt(self._backend))
        self._lock = lockfile.read(config.lock) if config.lock.exists() else {}
        self._known = verdicts.read(self._lock.get(verdicts.SECTION), self._target)
        self._digest = file_hash(library)[:12]
        self._measures = config.tune and here is not None
        parts = (base_dir, self._types, self._profile, library, self._backend, config, progress)
        self._trials = Trials(model, *parts)
        self._failed: dict[str, Verdict] = {}
        self._nodes: dict[str, tuple[str, str]] = {}
        self._sources: dict[str, set[str]] = {}  # with the rows that each lacks
        self._left_fp32 = False
        self._convolved: set[str] = set()  # what products beside convolutions write

    def settle(self, *, products: bool) -> None:
        """Decide about the groups with a product among them, or about the others."""
        found = [
            region
            for region in regions(self._model, self._types, beside_products=not products)
            if products is not HEAVY_PLUGINS.isdisjoint(self._ops(region))
        ]
        if products:
            for nodes in (self._at(r.group) for r in found if has_convolution(self._at(r.nodes))):
                self._convolved.update(name for node in nodes for name in node.output)
        if self._measures:
            self._measure(found)
        self._apply(found)

    def _at(self, places: Sequence[int]) -> list[NodeProto]:
        return [self._model.graph.node[index] for index in places]

    def _measure(self, found: list[Region]) -> None:
        """Time every distinct region that there is no verdict on.

        One that cannot be timed is left, this time: the lock gets no verdict on it, for the reason
        may be gone at the next build, such as a GPU without free memory.
        """
        todo = {
            key: region
            for region in found
            if (key := self._key(region)) not in self._known
            or self._known[key].library != self._digest
        }
        began, count = time.monotonic(), len(todo)

        def settle(key: str, times: Times, why: str) -> None:
            region = todo.pop(key)
            ops = self._ops(region)
            if why:
                self._failed[key] = Verdict(LEAVE, ops, source=f"could not be measured ({why})")
            else:
                self._known[key] = verdicts.decide(
                    times, ops, self._digest, self._work(region), **self._kind(region)
                )
                self._save()
            left = (time.monotonic() - began) / (count - len(todo)) * len(todo)
            text = f"{'+'.join(ops)}: {(self._failed.get(key) or self._known[key]).choice}"
            self._progress.step(f"{text}, {left:.0f} s left", count - len(todo), count)

        if todo:
            self._progress.step("building what is weighed", 0, count)
            self._trials.run(dict(todo), settle)

    def _save(self) -> None:
        stored = self._lock.get(verdicts.SECTION)
        section = dict(stored) if isinstance(stored, dict) else {}  # what cannot be read is none
        section[self._target] = {key: item.as_dict() for key, item in self._known.items()}
        self._lock = lockfile.merged(self._lock, {verdicts.SECTION: section})
        lockfile.write(self._config.lock, self._lock)

    def _apply(self, found: list[Region]) -> None:
        """Leave what does not pay; take what spares an engine where that is needed."""
        table = estimate.table(self._capability) if self._backend.name == "segmented" else {}
        known = {**self._known, **self._failed}
        made = [known.get(self._key(r)) or self._unmeasured(r, table) for r in found]
        if any(verdict.sparing for verdict in made) and self._is_too_large(found, made):
            made = [verdict.spared() for verdict in made]
        for verdict in made:
            self._sources.setdefault(verdict.source, set()).update(verdict.lacks)
        self._nodes |= self._change(self._model, found, made)

    def _is_too_large(self, found: list[Region], made: list[Verdict]) -> bool:
        """Whether the bundle of these verdicts takes more memory than TensorRT alone."""
        trial = ModelProto()
        trial.CopyFrom(self._model)
        self._change(trial, found, made)
        return exceeds(trial, self._base_dir, self._library, self._profile, around_attention=False)

    def _change(
        self, model: ModelProto, found: list[Region], made: list[Verdict]
    ) -> dict[str, tuple[str, str]]:
        """Give each plugin of ``model`` its form; what became of it, by the name of the node."""
        native: dict[int, str] = {}
        told: dict[str, tuple[str, str]] = {}
        for region, verdict in zip(found, made, strict=True):
            for index in region.group:
                node = model.graph.node[index]
                form = verdict.form_of(node.op_type)
                told[node.name] = form, verdict.reason(node.op_type)
                if form == LEAVE:
                    leave(model, node)
                elif form == NATIVE:
                    native[index] = node.name
                else:
                    choose_tactic(node, verdict.tactic_of(node.op_type))
        stayed = substitute(model, native, self._types)
        for node in model.graph.node:
            if node.name in stayed and leave(model, node):
                told[node.name] = LEAVE, stayed[node.name]
        return told

    def told(self) -> Decided:
        """All choices, and where they come from."""
        lacking = {
            source: f" (no row for {', '.join(sorted(lacks))})" if lacks else ""
            for source, lacks in self._sources.items()
        }
        told = ", ".join(sorted(source + lacks for source, lacks in lacking.items())) or "no plugin"
        note = f"plugins or TensorRT for {self._gpu} ({self._target}): {told}"
        if self._config.tune and not self._measures:
            note = f"--tune measured nothing, for there is no GPU: {gpu.absent()}; {note}"
        if self._left_fp32:
            note += (
                "; what reads fp32 is left to TensorRT: --precision fp16 or bf16 lets plugins pay"
            )
        left = self._given_back()
        taken = any(form != LEAVE and name not in left for name, (form, _) in self._nodes.items())
        return Decided(self._nodes, note, taken, left)

    def _given_back(self) -> Mapping[str, str]:
        """The plugins that TensorRT gets back where the bundle is cut, with the reasons."""
        if self._backend.name != "segmented":
            return {}
        trial = ModelProto()
        trial.CopyFrom(self._model)
        return outline(trial, self._base_dir, self._library, around_attention=False).left

    def _unmeasured(self, region: Region, table: Mapping[str, Any]) -> Verdict:
        ops = self._ops(region)
        if self._backend.name != "segmented":
            taken = [op for op in ops if op not in _UNKNOWN]
            return Verdict("+".join(taken) or LEAVE, ops, {}, "", "not measured")
        kind = self._kind(region)
        found = estimate.by_table(table, ops, self._work(region), **kind)
        self._left_fp32 |= found.choice == LEAVE and FP32 in kind["kinds"].values()
        return found

    def _kind(self, region: Region) -> dict[str, Any]:
        """Whether it would be an engine of its own, and which of its ops are not the usual ones."""
        nodes = self._at(region.group)
        convolved = has_convolution(self._at(region.nodes)) or any(
            node.input[0] in self._convolved for node in nodes
        )
        known = kinds(nodes, self._types, convolved=convolved)
        return {"apart": self._is_apart(region), "kinds": known}

    def _is_apart(self, region: Region) -> bool:
        """Whether TensorRT would have an engine for the group alone, between two plugins."""
        around = [index for index in region.nodes if index not in region.group]
        alone = all(self._needs_no_engine(index) for index in around)
        return self._backend.name == "segmented" and bool(around) and alone

    def _needs_no_engine(self, index: int) -> bool:
        node = self._model.graph.node[index]
        return is_plugin(node) or node.op_type == "Reshape" or index in self._moves

    def _work(self, region: Region) -> dict[str, list[int]]:
        """The sizes of each op of a group, as engine/estimate has them, at the usual shapes."""
        nodes = (self._model.graph.node[index] for index in region.group)
        return {
            node.op_type: [self._elements(name) for name in (node.output[0], *node.input[:2])]
            for node in nodes
        }

    def _elements(self, name: str) -> int:
        typed = self._types.get(name)
        found = None if typed is None else range_of(typed, self._profile)
        return 1 if found is None else prod(found.opt)

    def _ops(self, region: Region) -> tuple[str, ...]:
        nodes = self._model.graph.node
        return tuple(dict.fromkeys(nodes[index].op_type for index in region.group))

    def _key(self, region: Region) -> str:
        """The region and the sizes of the profile: verdicts on other shapes are others."""
        known = [self._types.get(name) for name in region.inputs]
        ranges = [None if typed is None else range_of(typed, self._profile) for typed in known]
        return hashlib.sha256(f"{region.key} {ranges}".encode()).hexdigest()[:16]


def _tensorrt(backend: Backend) -> str:
    """The TensorRT that a backend builds with, and its version."""
    installed = wheel.versions()
    if backend.name != "segmented":
        return f"{backend.name} {installed.get(backend.name, '')}".strip()
    name = "tensorrt" if "tensorrt" in installed else "tensorrt-rtx"
    return f"segmented {name} {installed.get(name, '')}".strip()

"""Runs the original and the fused form of each case side by side; lives in a child process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from onnx import ModelProto

from opfuse import child
from opfuse.graph.dims import evaluate
from opfuse.graph.protos import HALVES
from opfuse.numerics import draw, roles
from opfuse.numerics.case import Case
from opfuse.numerics.compare import Array, tolerance
from opfuse.numerics.defined import as_defined
from opfuse.numerics.draw import Family, Setting
from opfuse.numerics.exact import SLOW_ELEMENTS, Exact
from opfuse.numerics.session import CannotRun, Reference, Runner, open_model
from opfuse.numerics.settle import Outcome, settle

_SHAKEN = 8


@dataclass(frozen=True)
class Verdict:
    """Whether a case is proven; ``reason`` says why not and is empty where it is."""

    signature: str
    reason: str
    max_rel_err: float


def prove(cases: Sequence[Case], seed: int, rtol: float | None) -> None:
    """Judge the cases in order, emitting ``{"started": i}`` and ``{"verdict": Verdict}``.

    The results travel as events, so that those before a crash are not lost with it.
    """
    for number, case in enumerate(cases):
        child.emit({"started": number})
        child.emit({"verdict": judge(case, seed, rtol)})


def judge(case: Case, seed: int, rtol: float | None = None) -> Verdict:
    """Compare the two forms of ``case`` under every setting until one refutes it."""
    try:
        trial = _Trial(case, seed, rtol)
        return trial.run()
    except CannotRun as reason:
        return Verdict(case.signature, str(reason), 0.0)


class _Trial:
    """One case with both of its models ready to run.

    Raises:
        CannotRun: One of the models is refused, or the original runs with no sizes.
    """

    def __init__(self, case: Case, seed: int, rtol: float | None) -> None:
        self.case, self.seed = case, seed
        self._weights: dict[bool, dict[str, Array]] = {}
        self.models = ModelProto.FromString(case.before), ModelProto.FromString(case.after)
        self.before = _open(as_defined(self.models[0]), "the original cannot be run alone")
        self.after = _open(self.models[1], "the fused form is refused")
        self.family = self._family()
        elements = {item.dtype for item in case.inputs} | {w.element for w in case.weights}
        self.tolerance = rtol if rtol is not None else tolerance(elements)
        self.half = not HALVES.isdisjoint(elements)

    def run(self) -> Verdict:
        worst, decided = 0.0, False
        for setting in draw.settings(self.case, self._roles(self.family[0]), self.family):
            outcome = self._judge(setting)
            if outcome is None:
                continue
            outcome = self._exactly(setting, outcome)
            if outcome.open:
                continue
            if outcome.reason:
                return Verdict(self.case.signature, f"{setting}: {outcome.reason}", outcome.error)
            worst, decided = max(worst, outcome.error), True
        reason = "" if decided else "rounding drowns the result for every input that was tried"
        return Verdict(self.case.signature, reason, worst)

    def _family(self) -> Family:
        """The first family of sizes that the original runs with."""
        reasons = []
        for family in draw.families(self.case.inputs):
            try:
                self.before.run(self._feeds(Setting("ordinary", family[0])))
            except (CannotRun, ValueError, ArithmeticError) as reason:
                reasons.append(str(reason))
            else:
                return family
        raise CannotRun(f"the original does not run with any sizes: {reasons[0]}")

    def _feeds(self, setting: Setting) -> dict[str, Array]:
        feeds = draw.inputs(self.case, self._roles(setting.sizes), setting, self.seed)
        own = setting.own_weights
        if own not in self._weights:
            self._weights = {own: draw.weights(self.case, self.seed, own=own)}
        return {**feeds, **self._weights[own]}

    def _roles(self, sizes: Mapping[str, int]) -> roles.Roles:
        shapes = {
            spec.name: tuple(evaluate(dim, sizes) for dim in spec.shape or ())
            for spec in self.case.inputs
        }
        shapes.update((weight.name, weight.shape) for weight in self.case.weights)
        graph = self.models[0].graph
        shapes.update((tensor.name, tuple(tensor.dims)) for tensor in graph.initializer)
        return roles.of_subgraph(self.models[0], shapes)

    def _judge(self, setting: Setting) -> Outcome | None:
        """None where the original does not take these sizes.

        onnxruntime on the CPU computes chains of fp16 operators in fp32. That hides overflow, and
        flatters the original's error, so the evaluator that rounds has the last word.
        """
        outcome = self._compare(setting, self.before, self.after)
        if not self.half or outcome is None or outcome.refused:
            return outcome
        rounded = self._rounded(setting)
        if rounded is None or not (outcome.reason or rounded.reason):
            return outcome
        return rounded

    def _compare(self, setting: Setting, before: Runner, after: Runner) -> Outcome | None:
        try:
            feeds = self._feeds(setting)
            expected = before.run(feeds)
        except (CannotRun, ValueError, ArithmeticError):
            return None
        outputs = len(self.case.outputs)
        feeds.update(zip(self.case.shared, expected[outputs:], strict=True))
        try:
            actual = after.run(feeds)
        except CannotRun as reason:
            return Outcome(reason=f"the fused form does not run: {reason}", refused=True)
        precise, shaken = partial(self._exact.precise, feeds), partial(self._shaken, feeds)
        return settle(expected[:outputs], actual, precise, self.tolerance, shaken)

    def _rounded(self, setting: Setting) -> Outcome | None:
        """As above with a rounding behind every operator, where that is affordable.

        None where the evaluator does not know an operator or a type.
        """
        if sum(array.size for array in self._feeds(setting).values()) > SLOW_ELEMENTS:
            return None
        outcome = self._compare(setting, *self._rounding)
        return None if outcome is None or outcome.refused else outcome

    def _exactly(self, setting: Setting, outcome: Outcome) -> Outcome:
        """``outcome``, unless the forms differ where half precision does not round them.

        Weights that take long to convert are compared under the ordinary setting alone.
        """
        brief = draw.is_heavy(self.case) and setting.name != "ordinary"
        if not self.half or outcome.reason or brief:
            return outcome
        exact = self._exact.compare(self._feeds(setting))
        return exact if exact.reason else outcome

    def _shaken(self, feeds: Mapping[str, Array]) -> Iterator[list[Array]]:
        """As above for inputs that half precision might have rounded to; it is slow."""
        for seed in range(_SHAKEN if self.half else 0):
            results = self._exact.precise(draw.rounded(feeds, seed))
            if results is not None:
                yield results

    @cached_property
    def _rounding(self) -> tuple[Runner, Runner]:
        return Reference(self.models[0]), Reference(self.models[1])

    @cached_property
    def _exact(self) -> Exact:
        return Exact(*self.models, len(self.case.outputs), self.case.shared)


def _open(model: ModelProto, trouble: str) -> Runner:
    try:
        return open_model(model)
    except CannotRun as reason:
        raise CannotRun(f"{trouble}: {reason}") from None

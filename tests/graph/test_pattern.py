"""The matcher: what fits, what it is bound to, what nearly fits, and what it costs."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from opfuse.graph.pattern import Const, Matcher, Var, any_of, fused, maybe_cast, one_of, op

LONG = 200


def var(name: str) -> gs.Variable:
    return gs.Variable(name, np.float32, (4,))


def const(name: str, value: float = 1.0) -> gs.Constant:
    return gs.Constant(name, np.array(value, np.float32))


def node(op_type: str, *inputs: gs.Tensor, outputs: int = 1, domain=None, **attrs: object):
    """The output of a new node, or its outputs; each is named after the operator."""
    made = [var(f"{op_type}{next(_numbers)}") for _ in range(outputs)]
    gs.Node(op_type, made[0].name, dict(attrs), list(inputs), made, domain)
    return made[0] if outputs == 1 else made


_numbers = itertools.count()


def find(pattern, tensor):
    return Matcher(pattern).find(tensor)[0]


def refusal(pattern, tensor) -> tuple[str, str, int]:
    """The name of the blocking tensor, the reason, and how many operators were found."""
    bindings, fit = Matcher(pattern).find(tensor)
    assert bindings is None
    return fit.blocker.name, fit.reason, fit.size


@pytest.mark.parametrize("operator", ["Add", "Mul", "And", "Or", "Max", "Min", "Equal"])
def test_commutative_operands_match_in_both_orders(operator):
    x = var("x")
    other = node("Sigmoid", x)
    pattern = op(operator, Var("x"), op.Sigmoid(Var("x")))
    for operands in ((x, other), (other, x)):
        assert find(pattern, node(operator, *operands))["x"] is x


@pytest.mark.parametrize("operator", ["Sub", "Div", "Pow", "MatMul", "Where"])
def test_other_operands_keep_their_order(operator):
    x = var("x")
    assert find(op(operator, op.Neg(Var("x")), Var("y")), node(operator, x, node("Neg", x))) is None


@pytest.mark.parametrize("orders", list(itertools.product([1, -1], repeat=3)))
def test_every_order_of_nested_operands(orders):
    a, b, c, d = map(var, "abcd")
    first = node("Mul", *(node("Neg", a), b)[:: orders[0]])
    second = node("Mul", *(node("Exp", c), d)[:: orders[1]])
    whole = node("Add", *(first, second)[:: orders[2]])
    pattern = op.Add(op.Mul(op.Neg(Var("a")), Var("b")), op.Mul(op.Exp(Var("c")), Var("d")))
    bindings = find(pattern, whole)
    assert [bindings[name] for name in "abcd"] == [a, b, c, d]


def test_variadic_operators_are_not_reordered():
    x, y, z = map(var, "xyz")
    pattern = op.Max(Var("x"), op.Neg(Var("y")), Var("z"))
    assert find(pattern, node("Max", x, node("Neg", y), z)) is not None
    assert find(pattern, node("Max", node("Neg", y), x, z)) is None


def test_one_name_is_one_tensor():
    x, y = var("x"), var("y")
    pattern = op.Mul(Var("x"), op.Sigmoid(Var("x")))
    assert find(pattern, node("Mul", x, node("Sigmoid", x))) is not None
    assert refusal(pattern, node("Mul", y, node("Sigmoid", x)))[1] == (
        "the operands are not the tensors expected"
    )


def test_equal_nodes_are_not_one_node():
    """gs compares nodes by structure; a shared sub-expression is one node by identity."""
    x = var("x")
    shared = op.Sqrt(Var("x"))
    pattern = op.Div(shared, op.Exp(shared))
    root, twin = node("Sqrt", x), node("Sqrt", x)
    assert find(pattern, node("Div", root, node("Exp", root))) is not None
    assert find(pattern, node("Div", root, node("Exp", twin))) is None


def test_two_patterns_of_one_shape_may_be_two_nodes():
    x = var("x")
    root, twin = node("Sqrt", x), node("Sqrt", x)
    pattern = op.Div(op.Sqrt(Var("x")), op.Exp(op.Sqrt(Var("x"))))
    assert find(pattern, node("Div", root, node("Exp", twin))) is not None


def test_a_square_binds_one_tensor_twice():
    x = var("x")
    assert find(op.Mul(Var("x"), Var("x")), node("Mul", x, x))["x"] is x
    assert find(op.Mul(Var("x"), Var("x")), node("Mul", x, var("y"))) is None


def test_the_first_alternative_that_leads_to_a_match_is_bound():
    x = var("x")
    pattern = one_of(
        "kind", silu=op.Mul(Var("x"), op.Sigmoid(Var("x"))), any=op.Mul(Var("x"), Var("y"))
    )
    assert find(pattern, node("Mul", x, node("Sigmoid", x)))["kind"] == "silu"
    assert find(pattern, node("Mul", x, node("Exp", x)))["kind"] == "any"


def test_a_failed_alternative_leaves_no_binding():
    x, y = var("x"), var("y")
    leaky = op.Add(op.Neg(Var("leak")), op.Exp(Var("leak")))
    pattern = op.Sqrt(any_of(leaky, op.Add(Var("a"), Var("b"))))
    bindings = find(pattern, node("Sqrt", node("Add", node("Neg", x), node("Exp", y))))
    assert "leak" not in bindings
    assert {key for key in bindings if isinstance(key, str)} == {"a", "b"}


def test_an_alternative_is_tried_again_where_the_first_fails_later():
    """``x`` fits x, but only what stands behind the Cast makes both branches agree."""
    x = var("x")
    cast = node("Cast", x)
    pattern = op.Mul(maybe_cast(Var("x")), op.Exp(Var("x")))
    assert find(pattern, node("Mul", cast, node("Exp", x)))["x"] is x
    assert find(pattern, node("Mul", cast, node("Exp", cast)))["x"] is cast


@pytest.mark.parametrize("cast", [True, False])
def test_optional_nodes(cast):
    x = var("x")
    source = node("Cast", x) if cast else x
    pattern = op.Sqrt(maybe_cast(op.Neg(Var("y"))))
    inner = node("Neg", x)
    assert find(pattern, node("Sqrt", node("Cast", inner) if cast else inner))["y"] is x
    assert find(pattern, node("Sqrt", source)) is None


def test_one_set_of_alternatives_is_one_tensor():
    """x * sigmoid(x) of x = a + b, or of a."""
    a, x = var("a"), any_of(op.Add(op.Neg(Var("a")), Const("b")), op.Neg(Var("a")))
    pattern = op.Mul(x, op.Sigmoid(x))
    plain = node("Neg", a)
    biased = node("Add", plain, const("b"))
    for one, two in itertools.product((plain, biased), repeat=2):
        found = find(pattern, node("Mul", one, node("Sigmoid", two)))
        assert (found is not None) == (one is two)


def test_a_cast_may_be_in_one_place_alone():
    x = var("x")
    wide = maybe_cast(Var("x"))
    assert find(op.Mul(wide, op.Neg(wide)), node("Mul", x, node("Neg", node("Cast", x))))


@pytest.mark.parametrize("failing_first", [True, False])
def test_no_binding_leaks_whatever_the_order_of_consumers(failing_first):
    """The order in which a tensor's readers were added decides nothing (style.md 1.1)."""
    x = var("x")
    if failing_first:
        node("Add", node("Relu", x), var("y"))
    branch = node("Sigmoid", x)
    whole = node("Mul", branch, x)
    if not failing_first:
        node("Add", node("Relu", x), var("y"))
    bindings = find(op.Mul(Var("x"), op.Sigmoid(Var("x"))), whole)
    assert bindings["x"] is x


@pytest.mark.parametrize("swapped", [True, False])
def test_a_wrong_operand_first_does_not_spoil_the_right_one(swapped):
    """Both operands look like the branch; only one of them leads to the shared tensor."""
    x, y = var("x"), var("y")
    right, wrong = node("Mul", x, node("Sigmoid", x)), node("Mul", y, node("Sigmoid", x))
    operands = (wrong, right) if swapped else (right, wrong)
    pattern = op.Add(op.Mul(Var("x"), op.Sigmoid(Var("x"))), Var("rest"))
    bindings = find(pattern, node("Add", *operands))
    assert bindings["x"] is x
    assert bindings["rest"] is wrong


def test_outputs_of_a_split():
    x = var("x")
    low, high = node("Split", x, outputs=2)
    split = op.Split(Var("x"))
    pattern = op.Concat(op.Neg(split[1]), split[0])
    assert find(pattern, node("Concat", node("Neg", high), low))["x"] is x
    assert find(pattern, node("Concat", node("Neg", low), high)) is None


def test_outputs_of_two_splits_are_not_one_split():
    x = var("x")
    (low, _), (_, high) = node("Split", x, outputs=2), node("Split", x, outputs=2)
    split = op.Split(Var("x"))
    assert (
        find(op.Concat(op.Neg(split[1]), split[0]), node("Concat", node("Neg", high), low)) is None
    )


def test_a_pattern_without_index_is_the_first_output():
    x = var("x")
    low, high = node("Split", x, outputs=2)
    assert find(op.Neg(op.Split(Var("x"))), node("Neg", low)) is not None
    assert refusal(op.Neg(op.Split(Var("x"))), node("Neg", high)) == (
        high.name,
        "is another output of Split than number 0",
        1,
    )


def test_a_constant_is_not_computed():
    x, two = var("x"), const("two", 2.0)
    assert find(op.Pow(Var("x"), Const("two")), node("Pow", x, two))["two"] is two
    blocker, reason, _ = refusal(op.Pow(Var("x"), Const("two")), node("Pow", x, x))
    assert (blocker, reason) == ("x", "is computed, want a constant")


def test_a_constant_among_commutative_operands_is_found():
    x, two = var("x"), const("two", 2.0)
    for operands in ((x, two), (two, x)):
        bindings = find(op.Mul(Var("x"), Const("c")), node("Mul", *operands))
        assert (bindings["x"], bindings["c"]) == (x, two)


def test_an_absent_input_is_no_tensor():
    x = var("x")
    clip = node("Clip", x, gs.Variable.empty(), const("high"))
    assert refusal(op.Clip(Var("x"), Var("low"), Var("high")), clip)[1] == "is absent"


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (op.ReduceMean(Var("x")), "ReduceMean has 2 inputs, want 1"),
        (op.ReduceMean(Var("x"), Var("a"), Var("b")), "ReduceMean has 2 inputs, want 3"),
        (op.ReduceMean(Var("x"), ..., keepdims=0), "ReduceMean has keepdims=1, want 0"),
        (op.ReduceSum(Var("x"), ...), "is ReduceMean, want ReduceSum"),
        (op("ReduceSum|ReduceMax", Var("x"), ...), "is ReduceMean, want ReduceSum or ReduceMax"),
        (fused.ReduceMean(Var("x"), ...), "is ReduceMean, want ReduceMean"),
    ],
)
def test_arity_attributes_types_and_domains(pattern, reason):
    mean = node("ReduceMean", var("x"), const("axes"), keepdims=1)
    assert refusal(pattern, mean)[1] == reason


def test_open_ended_inputs():
    mean = node("ReduceMean", var("x"), const("axes"), keepdims=1)
    assert find(op.ReduceMean(Var("x"), ...), mean) is not None
    assert find(op.ReduceMean(Var("x"), ..., keepdims=1), mean) is not None
    assert find(op.ReduceMean(Var("x"), Var("axes"), ..., axis=None), mean) is not None


def test_another_domain_is_another_operator():
    x = var("x")
    assert find(op.RmsNorm(Var("x")), node("RmsNorm", x, domain="opfuse")) is None
    assert find(fused.RmsNorm(Var("x")), node("RmsNorm", x, domain="opfuse")) is not None
    assert find(op.Neg(Var("x")), node("Neg", x, domain="ai.onnx")) is not None


def test_a_near_miss_names_the_deepest_difference():
    x = var("x")
    pattern = op.Mul(Var("x"), op.Reciprocal(op.Sqrt(op.Add(op.ReduceMean(Var("s")), Const("e")))))
    other = node("ReduceMax", x)
    near = node("Mul", x, node("Reciprocal", node("Sqrt", node("Add", other, const("e")))))
    assert refusal(pattern, near) == (other.name, "is ReduceMax, want ReduceMean", 4)


def test_a_near_miss_is_told_of_the_order_that_went_further():
    x = var("x")
    deep = node("Sigmoid", node("Exp", x))
    pattern = op.Mul(op.Sigmoid(op.Neg(Var("x"))), Var("x"))
    for operands in ((x, deep), (deep, x)):
        blocker, reason, size = refusal(pattern, node("Mul", *operands))
        assert (blocker, reason, size) == (deep.inputs[0].inputs[0].name, "is Exp, want Neg", 2)


def test_a_near_miss_at_the_edge_of_the_graph():
    pattern = op.Mul(Var("x"), op.Sigmoid(Var("x")))
    assert refusal(pattern, node("Mul", var("a"), var("b")))[1] == "is a graph input, want Sigmoid"
    assert (
        refusal(op.Neg(op.Exp(Var("x"))), node("Neg", const("c")))[1] == "is a constant, want Exp"
    )


def chain(depth: int, last: gs.Tensor, turn: int) -> gs.Tensor:
    """A chain of Add and Mul whose operands are both products; ``turn`` swaps some of them."""
    tensor = last
    for level in range(depth):
        operands = (tensor, node("Exp", tensor))
        operator = ("Add", "Mul")[level % 2]
        tensor = node(operator, *operands[:: -1 if (level * turn) % 3 == 1 else 1])
    return tensor


def chain_pattern(depth: int, last):
    """Exp of the same tensor on either side: both orders look right until the end is reached."""
    pattern = last
    for level in range(depth):
        pattern = op(("Add", "Mul")[level % 2], pattern, op.Exp(pattern))
    return pattern


@pytest.fixture
def deep_patterns():
    """Room for patterns far deeper than any room has; the depth of the graph needs none."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(limit)


class Counting(Matcher):
    """Counts the pairs of pattern and tensor that are looked at."""

    visits = 0

    def _fit_new(self, pattern, tensor):
        self.visits += 1
        return super()._fit_new(pattern, tensor)

    def _bind(self, pattern, tensor, env):
        self.visits += 1
        return super()._bind(pattern, tensor, env)


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.usefixtures("deep_patterns")
def test_a_deep_chain_is_found_in_linear_time(turn):
    visits = {}
    for depth in (LONG // 4, LONG):
        matcher = Counting(chain_pattern(depth, op.Neg(Var("x"))))
        x = var("x")
        bindings, _ = matcher.find(chain(depth, node("Neg", x), turn))
        assert bindings["x"] is x
        visits[depth] = matcher.visits
    assert visits[LONG] < 5 * visits[LONG // 4]
    assert visits[LONG] < 20 * LONG


@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.usefixtures("deep_patterns")
def test_a_deep_chain_that_fails_at_its_end_is_refused_in_linear_time(turn):
    """2^200 orders of operands, of which none fits."""
    matcher = Counting(chain_pattern(LONG, op.Neg(Var("x"))))
    bindings, fit = matcher.find(chain(LONG, node("Exp", var("x")), turn))
    assert bindings is None
    assert fit.reason == "is Exp, want Neg"
    assert matcher.visits < 20 * LONG


def test_many_anchors_over_one_chain_share_what_is_known():
    """Asking at every node of a chain costs no more than the pattern's size for each."""
    pattern = op.Add(op.Mul(op.Add(op.Mul(Var("a"), Var("b")), Var("c")), Var("d")), Var("e"))
    matcher, anchors = Counting(pattern), [var("x")]
    for level in range(LONG):
        anchors.append(node(("Add", "Mul")[level % 2], anchors[-1], var(f"y{level}")))
    found = [matcher.find(tensor)[0] is not None for tensor in anchors[1:]]
    assert sum(found) == LONG // 2 - 2 + LONG % 2
    assert matcher.visits < 40 * LONG


def test_a_changed_graph_is_looked_at_again_once_forgotten():
    x = var("x")
    inner = node("Exp", x)
    outer = node("Neg", inner)
    matcher = Matcher(op.Neg(op.Sqrt(Var("x"))))
    assert matcher.find(outer)[0] is None
    inner.inputs[0].op = "Sqrt"
    matcher.forget()
    assert matcher.find(outer)[0]["x"] is x

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opfuse.graph.dims import (
    Dim,
    Sym,
    at_least,
    broadcast,
    call,
    evaluate,
    is_opaque,
    maximum,
    minimum,
    never_equal,
    parse,
    product,
    symbol,
    unknown_dim,
    unknown_value,
)

BATCH, SEQ, PAST = symbol("batch"), symbol("seq"), symbol("past")
SIZES = st.fixed_dictionaries({name: st.integers(0, 40) for name in ("batch", "seq", "past")})
LEAVES = st.one_of(st.sampled_from([BATCH, SEQ, PAST]), st.integers(-4, 9))


def _combined(dims: st.SearchStrategy[Dim]) -> st.SearchStrategy[Dim]:
    pairs = st.tuples(dims, dims)
    return st.one_of(
        pairs.map(lambda pair: pair[0] + pair[1]),
        pairs.map(lambda pair: pair[0] - pair[1]),
        pairs.map(lambda pair: pair[0] * pair[1]),
        pairs.map(lambda pair: maximum(*pair)),
        pairs.map(lambda pair: minimum(*pair)),
        st.tuples(dims, st.integers(1, 8)).map(lambda pair: pair[0] // pair[1]),
        st.tuples(dims, st.integers(1, 8)).map(lambda pair: pair[0] % pair[1]),
    )


DIMS = st.recursive(LEAVES, _combined, max_leaves=6)


@given(DIMS, DIMS, DIMS, SIZES)
def test_arithmetic_is_that_of_integers(a: Dim, b: Dim, c: Dim, sizes: dict[str, int]) -> None:
    x, y, z = (evaluate(dim, sizes) for dim in (a, b, c))
    assert evaluate(a + b, sizes) == x + y
    assert evaluate(a - b, sizes) == x - y
    assert evaluate(a * b + c, sizes) == x * y + z
    assert evaluate(maximum(a, b, c), sizes) == max(x, y, z)
    assert evaluate(minimum(a, b, c), sizes) == min(x, y, z)


@given(DIMS, st.integers(-9, 9).filter(bool), SIZES)
def test_division_by_a_constant_rounds_down(a: Dim, by: int, sizes: dict[str, int]) -> None:
    assert evaluate(a // by, sizes) == evaluate(a, sizes) // by
    assert evaluate(a % by, sizes) == evaluate(a, sizes) % by


@given(DIMS, DIMS, SIZES)
def test_division_by_a_symbol_rounds_down(a: Dim, b: Dim, sizes: dict[str, int]) -> None:
    divisor = evaluate(b, sizes)
    if divisor == 0 or b == 0:
        return
    try:
        quotient, remainder = evaluate(a // b, sizes), evaluate(a % b, sizes)
    except ZeroDivisionError:
        return  # a quotient inside a or b has no value at these sizes
    assert quotient == evaluate(a, sizes) // divisor
    assert remainder == evaluate(a, sizes) % divisor


@given(DIMS, DIMS, DIMS)
def test_equal_expressions_are_equal_and_hash_equal(a: Dim, b: Dim, c: Dim) -> None:
    for one, other in [
        (a + b, b + a),
        (a * b, b * a),
        ((a + b) + c, a + (b + c)),
        (a * (b + c), a * b + a * c),
        (a - b, -(b - a)),
        (maximum(a, maximum(b, c)), maximum(maximum(c, a), b)),
        (minimum(a, b), minimum(b, a)),
    ]:
        assert one == other
        assert hash(one) == hash(other)
        assert str(one) == str(other)


@given(DIMS)
def test_a_constant_is_an_int(a: Dim) -> None:
    assert a - a == 0
    assert isinstance(a - a, int)
    assert isinstance(a, int) or a.symbols()


@given(DIMS)
def test_text_reads_back(a: Dim) -> None:
    assert parse(str(a)) == a


@given(DIMS, DIMS)
def test_a_product_divides_exactly(a: Dim, b: Dim) -> None:
    if b != 0:
        assert (a * b) // b == a
        assert (a * b) % b == 0


@given(DIMS, DIMS, SIZES)
def test_order_is_certain_or_not_claimed(a: Dim, b: Dim, sizes: dict[str, int]) -> None:
    x, y = evaluate(a, sizes), evaluate(b, sizes)
    assert not at_least(a, b) or x >= y
    assert not never_equal(a, b) or x != y


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        ((BATCH * SEQ * 64) // (BATCH * SEQ * 16), "4"),
        ((BATCH * SEQ) // BATCH, "seq"),
        ((BATCH * SEQ + SEQ) // SEQ, "batch + 1"),
        ((BATCH * 8 * SEQ) // (SEQ * (PAST + 1)), "((8*batch) // (past + 1))"),
        ((SEQ * 3) // 2, "seq + (seq // 2)"),
        ((SEQ * 2 + 1) // 2, "seq"),
        (PAST + 1, "past + 1"),
        (1 - SEQ * 2, "-2*seq + 1"),
        (SEQ - SEQ // 2, "seq - (seq // 2)"),
        (maximum(SEQ, PAST, PAST + 1), "max(past + 1, seq)"),
        (minimum(SEQ, SEQ // 2), "(seq // 2)"),
        (minimum(SEQ, 64), "min(64, seq)"),
        ((SEQ * 6 + 5) % 4, "((2*seq + 1) % 4)"),
    ],
)
def test_spelling(dim: Dim, text: str) -> None:
    assert str(dim) == text


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        ("past + 1", PAST + 1),
        ("2*seq", SEQ * 2),
        ("((batch*seq)//batch)", SEQ),
        ("Min(64, seq)", minimum(64, SEQ)),
        ("FloorDiv(seq, 2)", SEQ // 2),
        ("32", 32),
        ("/model/Concat_dim_1", symbol("/model/Concat_dim_1")),
        ("seq / 2", symbol("seq / 2")),
        ("floor(seq)", symbol("floor(seq)")),
        ("1 // 0", symbol("1 // 0")),
        ("(" * 500, symbol("(" * 500)),
        ("+1" * 600, symbol("+1" * 600)),
    ],
)
def test_parse(text: str, dim: Dim) -> None:
    assert parse(text) == dim


@pytest.mark.parametrize(
    ("a", "b", "result"),
    [
        (1, SEQ, "seq"),
        (64, SEQ, "64"),
        (SEQ, SEQ, "seq"),
        (SEQ, BATCH, "broadcast(batch, seq)"),
        (SEQ, broadcast(SEQ, BATCH), "broadcast(batch, seq)"),
        (SEQ, minimum(64, SEQ), "seq"),
        (SEQ, minimum(PAST, SEQ), "broadcast(min(past, seq), seq)"),
        (SEQ + 2, BATCH, "seq + 2"),
    ],
)
def test_broadcast(a: Dim, b: Dim, result: str) -> None:
    assert str(broadcast(a, b)) == str(broadcast(b, a)) == result


@given(st.lists(st.sampled_from(["batch", "seq", "past"]), min_size=2, max_size=3), SIZES)
def test_broadcast_evaluates_as_numpy_does(names: list[str], sizes: dict[str, int]) -> None:
    actual = {sizes[name] for name in names} - {1}
    if len(actual) <= 1:
        dim = call("broadcast", *map(symbol, names))
        assert evaluate(dim, sizes) == (actual or {1}).pop()


def test_constants_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 4 do not broadcast"):
        broadcast(3, 4)


def test_what_is_not_known_is_not_compared() -> None:
    value, size = unknown_value(1), unknown_dim(1)
    assert at_least(size, 0)
    assert not at_least(value, 0)
    assert not never_equal(value, -1)
    assert is_opaque(value)
    assert is_opaque(SEQ // 2)
    assert not is_opaque(SEQ * 2 + 1)


def test_symbols_inside_a_quotient_are_listed() -> None:
    dim = (BATCH + SEQ) // (PAST + 1)
    assert isinstance(dim, Sym)
    assert dim.symbols() == {"batch", "seq", "past"}
    with pytest.raises(KeyError, match="past"):
        dim.evaluate({"batch": 1, "seq": 2})


def test_an_expression_that_explodes_is_refused() -> None:
    dim: Dim = BATCH + SEQ + PAST + 1
    with pytest.raises(OverflowError):
        for _ in range(64):
            dim = dim * dim
    with pytest.raises(OverflowError):
        for _ in range(64):
            dim = maximum(dim // 3, dim // 7) + 1


def test_product_of_a_shape() -> None:
    assert product((BATCH, SEQ, 64)) == BATCH * SEQ * 64
    assert product(()) == 1

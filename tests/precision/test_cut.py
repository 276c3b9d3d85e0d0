"""The minimum cut, against every cut of small random networks."""

from __future__ import annotations

from itertools import pairwise, product

from hypothesis import given
from hypothesis import strategies as st

from opfuse.precision.cut import Network

VERTICES = 6
EDGES = st.lists(
    st.tuples(st.integers(0, VERTICES - 1), st.integers(0, VERTICES - 1), st.integers(0, 9)).filter(
        lambda edge: edge[0] != edge[1]
    ),
    max_size=20,
)


def cost(edges, first):
    return sum(c for a, b, c in edges if a in first and b not in first)


@given(EDGES)
def test_no_cut_is_cheaper(edges):
    network = Network()
    for _ in range(VERTICES):
        network.vertex()
    for edge in edges:
        network.edge(*edge)
    found = network.cut(0, 1)
    assert 0 in found
    assert 1 not in found
    sides = product((False, True), repeat=VERTICES - 2)
    every = ({0, *(v for v, in_first in enumerate(side, 2) if in_first)} for side in sides)
    assert cost(edges, found) == min(cost(edges, first) for first in every)


def test_a_long_chain_needs_no_recursion():
    network = Network()
    chain = [network.vertex() for _ in range(20_000)]
    for number, (a, b) in enumerate(pairwise(chain)):
        network.edge(a, b, 1 if number == 12_000 else 2)
    assert network.cut(chain[0], chain[-1]) == set(chain[:12_001])

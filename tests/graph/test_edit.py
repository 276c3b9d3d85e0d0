"""Surgery by identity: the right node is cut, the right tensor is redirected, order is kept."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from opfuse.graph import edit


def var(name: str) -> gs.Variable:
    return gs.Variable(name, np.float32, (4,))


def node(op: str, inputs: list[gs.Tensor], outputs: list[gs.Tensor], **attrs: object) -> gs.Node:
    return gs.Node(op, outputs[0].name if outputs else op, dict(attrs), inputs, outputs)


def twins() -> tuple[gs.Variable, list[gs.Node]]:
    """Two nodes that gs calls equal, on one tensor."""
    x = var("x")
    nodes = [node("Neg", [x], [var("y")]) for _ in range(2)]
    assert nodes[0] == nodes[1]
    return x, nodes


@pytest.mark.parametrize("which", [0, 1])
def test_the_right_one_of_two_equal_nodes_is_detached(which):
    x, nodes = twins()
    edit.detach(nodes[which])
    assert [user is nodes[1 - which] for user in x.outputs] == [True]
    assert not nodes[which].inputs
    assert len(nodes[1 - which].inputs) == 1


@pytest.mark.parametrize("which", [0, 1])
def test_the_input_of_the_right_one_is_set(which):
    x, nodes = twins()
    z = var("z")
    edit.set_input(nodes[which], 0, z)
    assert nodes[which].inputs[0] is z
    assert nodes[1 - which].inputs[0] is x
    assert [user is nodes[which] for user in z.outputs] == [True]
    assert [user is nodes[1 - which] for user in x.outputs] == [True]


def test_a_tensor_read_twice_by_one_node_is_redirected_twice():
    x, y, z = map(var, "xyz")
    square = node("Mul", [x, x], [y])
    edit.redirect(x, z)
    assert [tensor is z for tensor in square.inputs] == [True, True]
    assert len(z.outputs) == 2
    assert not x.outputs


def test_one_of_two_reads_is_set():
    x, y, z = map(var, "xyz")
    square = node("Mul", [x, x], [y])
    edit.set_input(square, 1, z)
    assert [square.inputs[0] is x, square.inputs[1] is z] == [True, True]
    assert len(x.outputs) == 1


def test_an_output_is_released_for_another_producer():
    x, y = map(var, "xy")
    old = node("Neg", [x], [y])
    reader = node("Exp", [y], [var("z")])
    edit.release_output(old, y)
    assert edit.producer(y) is None
    new = node("Abs", [x], [y])
    assert edit.producer(y) is new
    assert reader.inputs[0] is y


def body(*reads: gs.Tensor, nested: gs.Graph | None = None) -> gs.Graph:
    out = var("inner")
    nodes = [node("Add", list(reads), [out])]
    if nested is not None:
        nodes.append(node("If", [var("flag")], [var("deep")], then_branch=nested))
    return gs.Graph(nodes, outputs=[out])


def test_what_bodies_read_can_be_redirected_and_is_not_captured():
    x, y, z = map(var, "xyz")
    inner = body(y, y, nested=body(z, z))
    outer = node("If", [x], [var("w")], then_branch=inner)
    assert edit.captured(gs.Graph([outer])).isdisjoint({id(x), id(y), id(z)})
    new = var("new")
    edit.redirect(y, new)
    assert [tensor is new for tensor in inner.nodes[0].inputs] == [True, True]


def test_what_a_nested_body_returns_is_captured():
    x, y = map(var, "xy")
    nested = body(x, x, nested=gs.Graph([], outputs=[y]))
    outer = node("If", [x], [var("w")], then_branch=nested)
    assert id(y) in edit.captured(gs.Graph([outer]))


def test_a_tensor_that_a_body_only_returns_is_captured():
    x, y = map(var, "xy")
    outer = node("If", [x], [var("w")], then_branch=gs.Graph([], outputs=[y]))
    assert id(y) in edit.captured(gs.Graph([outer]))
    assert any(tensor is y for tensor in edit.reads(outer))


def test_sweep_keeps_what_an_output_or_a_body_needs():
    x, h, unused, y = map(var, ("x", "h", "unused", "y"))
    nodes = [
        node("Neg", [x], [h]),
        node("Exp", [h], [unused]),
        node("If", [x], [y], then_branch=body(h, h)),
    ]
    graph = gs.Graph(nodes, inputs=[x], outputs=[y])
    edit.sweep(graph)
    assert [item.op for item in graph.nodes] == ["Neg", "If"]
    assert all(user is not nodes[1] for user in h.outputs)


def test_sweep_drops_a_whole_dead_chain():
    x, y = map(var, "xy")
    nodes, tensor = [node("Neg", [x], [y])], x
    for index in range(50):
        following = var(f"dead{index}")
        nodes.append(node("Exp", [tensor], [following]))
        tensor = following
    graph = gs.Graph(nodes, inputs=[x], outputs=[y])
    edit.sweep(graph)
    assert [item.op for item in graph.nodes] == ["Neg"]
    assert len(x.outputs) == 1


def chain(length: int) -> list[gs.Node]:
    tensors = [var(f"t{index}") for index in range(length + 1)]
    return [node("Neg", [a], [b]) for a, b in itertools.pairwise(tensors)]


def test_sort_puts_each_node_behind_its_producers():
    nodes = chain(3000)  # deeper than Python's stack
    graph = gs.Graph(nodes[::-1])
    edit.sort(graph)
    assert [id(item) for item in graph.nodes] == [id(item) for item in nodes]


def test_a_sorted_list_keeps_its_order():
    x = var("x")
    nodes = [node("Neg", [x], [var(f"y{index}")]) for index in range(20)]
    graph = gs.Graph(list(nodes))
    edit.sort(graph)
    assert [id(item) for item in graph.nodes] == [id(item) for item in nodes]


def test_sort_looks_into_bodies():
    x, h = map(var, "xh")
    choice = node("If", [x], [var("y")], then_branch=body(h, h))
    made = node("Neg", [x], [h])
    graph = gs.Graph([choice, made])
    edit.sort(graph)
    assert graph.nodes[0] is made
    assert graph.nodes[1] is choice


def test_names_are_those_of_all_tensors_of_all_bodies():
    x, h, y = map(var, "xhy")
    graph = gs.Graph([node("If", [x], [y], then_branch=body(h, h))], inputs=[x], outputs=[y])
    assert {"x", "y", "h", "inner"} <= edit.names(graph)


def test_bodies_are_found_in_attributes_and_in_lists_of_them():
    one, two = body(var("a"), var("a")), body(var("b"), var("b"))
    outer = node("Switch", [], [var("y")], branches=[one, two], other=one, axis=1)
    assert [
        graph is want for graph, want in zip(edit.subgraphs(outer), (one, two, one), strict=True)
    ]
    assert len(list(edit.every_node(gs.Graph([outer])))) == 4

"""What a model must be before any pass sees it, beyond what ``onnx.checker`` looks at.

Each check raises InputError without the file's name, which its caller knows. What can be put right
without a choice (order, names) is put right, with a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

from opfuse.errors import InputError
from opfuse.graph import collectives, microsoft
from opfuse.graph.protos import all_nodes, all_tensors, every_node, label, subgraphs

OPSETS = range(13, 26)
STANDARD_DOMAINS = ("", "ai.onnx.ml")
# onnxruntime's optimizer writes these into the default domain, whatever its version is.
_WRITTEN_BY_ONNXRUNTIME = {("", "SimplifiedLayerNormalization"), ("", "LayerNormalization")}
MAX_SUBGRAPH_DEPTH = 24
MAX_FUNCTION_DEPTH = 64
MAX_INLINED_NODES = 1_000_000

FunctionKey = tuple[str, str, str]


def check_names(model: ModelProto) -> None:
    """Refuses names that are not UTF-8: protobuf hands those out as bytes, not as text."""
    for name in _names(model):
        if isinstance(name, bytes):
            raise InputError(
                f"the name {name!r} is not UTF-8", "export or copy the model again: it is damaged"
            )


def use_default_domain(model: ModelProto) -> None:
    """Rewrites the domain "ai.onnx" to its other spelling, the empty string."""
    bodies = [(model.opset_import, model.graph.node)]
    bodies += [(function.opset_import, function.node) for function in model.functions]
    for imports, nodes in bodies:
        for entry in imports:
            if entry.domain == "ai.onnx":
                entry.domain = ""
        for node in all_nodes(nodes):
            if node.domain == "ai.onnx":
                node.domain = ""


def check_opsets(model: ModelProto) -> None:
    """Refuses operator set versions of ai.onnx outside ``OPSETS``, and a missing import."""
    for owner, imports in imports_of(model):
        version = _versions(imports).get("")
        if version is None and owner == "the model":
            raise InputError("the model imports no version of ai.onnx", _reexport_opset())
        if version is not None and version not in OPSETS:
            raise InputError(
                f"{owner} uses opset {version} of ai.onnx, want {OPSETS[0]} to {OPSETS[-1]}",
                _reexport_opset(),
            )


def check_operators(model: ModelProto) -> list[str]:
    """Refuses operators that a standard domain does not have; notes those of other domains."""
    functions = {key_of(function) for function in model.functions}
    foreign: dict[tuple[str, str], int] = {}
    bodies = [(_versions(model.opset_import), model.graph.node)]
    bodies += [(_versions(body.opset_import), body.node) for body in model.functions]
    for versions, nodes in bodies:
        known: set[tuple[str, str]] = set()
        for node in all_nodes(nodes):
            op = (node.domain, node.op_type)
            if op in known or called_by(node) in functions or op in _WRITTEN_BY_ONNXRUNTIME:
                continue
            if node.domain in STANDARD_DOMAINS:
                _check_operator(node, versions)
                known.add(op)
            elif not (microsoft.understood(*op) or collectives.is_ours(*op)):
                foreign[op] = foreign.get(op, 0) + 1
    return [
        f"{count} x {domain}::{name} is no standard operator: it is left as it is, and an engine "
        "needs a plugin for it"
        for (domain, name), count in sorted(foreign.items())
    ]


def set_apart(model: ModelProto) -> None:
    """Gives what onnxruntime writes into the default domain its own: the checker knows it not."""
    version = _versions(model.opset_import).get("", 0)
    missing = {op for _, op in _WRITTEN_BY_ONNXRUNTIME if not onnx.defs.has(op, version)}
    nodes = [n for n in all_nodes(model.graph.node) if not n.domain and n.op_type in missing]
    for node in nodes:
        node.domain = microsoft.DOMAIN
    if nodes and not any(entry.domain == microsoft.DOMAIN for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(microsoft.DOMAIN, 1))


def check_functions(model: ModelProto) -> None:
    """Refuses local functions that call themselves, nest too deep, or inline to too much.

    onnxruntime and TensorRT-RTX die on the first two.
    """
    bodies = {key_of(function): function for function in model.functions}
    if len(bodies) < len(model.functions):
        raise InputError("a local function is defined twice", "export the model again")
    sizes: dict[FunctionKey, tuple[int, int]] = {}
    for key in bodies:
        _measure(key, bodies, sizes)
    depth = max((depth for depth, _ in sizes.values()), default=0)
    if depth > MAX_FUNCTION_DEPTH:
        raise InputError(
            f"local functions call each other {depth} deep, want at most {MAX_FUNCTION_DEPTH}",
            "inline them (onnx.inliner.inline_local_functions)",
        )
    total = sum(sizes.get(called_by(n), (0, 1))[1] for n in all_nodes(model.graph.node))
    if total > MAX_INLINED_NODES:
        raise InputError(
            f"the model has {total} nodes with its local functions inlined, want at most "
            f"{MAX_INLINED_NODES}",
            "split the model",
        )


def repair_graph(graph: GraphProto) -> list[str]:
    """Checks definitions and uses, sorts the nodes, and gives each node a name of its own.

    Returns:
        Notes on what was put right.

    Raises:
        InputError: A tensor defined twice or never, a cycle, no outputs, or nesting too deep.
    """
    if not graph.output:
        raise InputError("the graph has no outputs", "export the model again")
    notes = []
    if _repair_scope(graph, frozenset(), 0):
        notes.append("the nodes were not in topological order: sorted")
    renamed = _name_nodes(graph)
    if renamed:
        notes.append(f"{renamed} nodes had no name or the name of another: named")
    return notes


def _names(model: ModelProto) -> Iterator[object]:
    for entry in model.opset_import:
        yield entry.domain
    for node in every_node(model):
        yield from (node.name, node.op_type, node.domain, node.overload)
        yield from node.input
        yield from node.output
        for attribute in node.attribute:
            yield attribute.name
    for function in model.functions:
        yield from (function.name, function.domain, function.overload)
        yield from (*function.input, *function.output, *function.attribute)
    for tensor in all_tensors(model):
        yield tensor.name
        for item in tensor.external_data:
            yield from (item.key, item.value)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def imports_of(model: ModelProto) -> Iterator[tuple[str, Sequence[onnx.OperatorSetIdProto]]]:
    """The imports of the model and of each local function, with the words that name it."""
    yield "the model", model.opset_import
    for function in model.functions:
        yield f"local function {function.name!r}", function.opset_import


def _versions(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {entry.domain: entry.version for entry in imports}


def _reexport_opset() -> str:
    return f"export the model again with an opset from {OPSETS[0]} to {OPSETS[-1]}"


def _check_operator(node: NodeProto, versions: dict[str, int]) -> None:
    version = versions.get(node.domain)
    domain = node.domain or "ai.onnx"
    if version is None:
        raise InputError(
            f"node {label(node)} is of domain {domain}, of which the model imports no version",
            "export the model again",
        )
    try:
        onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        raise InputError(
            f"node {label(node)}: {domain} {version} has no operator {node.op_type!r}",
            _operator_fix(node),
        ) from None


def _operator_fix(node: NodeProto) -> str:
    if onnx.defs.has(node.op_type, node.domain):
        since = onnx.defs.get_schema(node.op_type, node.domain).since_version
        return f"export the model again with opset {since} or later"
    return "give the node the domain of the custom operators that it belongs to"


def key_of(function: FunctionProto) -> FunctionKey:
    """By which nodes call a local function."""
    return (function.domain, function.name, function.overload)


def called_by(node: NodeProto) -> FunctionKey:
    """The key of the local function that a node calls, where it calls one."""
    return (node.domain, node.op_type, node.overload)


def _measure(
    start: FunctionKey,
    bodies: dict[FunctionKey, FunctionProto],
    sizes: dict[FunctionKey, tuple[int, int]],
) -> None:
    """Adds (depth of calls, nodes when inlined) of one function and of all that it calls."""
    stack, path = [start], set()
    while stack:
        key = stack[-1]
        if key in sizes:
            path.discard(stack.pop())
            continue
        path.add(key)
        nodes = list(all_nodes(bodies[key].node))
        calls = [called_by(node) for node in nodes if called_by(node) in bodies]
        if any(call in path and call not in sizes for call in calls):
            raise InputError(
                f"local function {key[1]!r} calls itself, by way of other functions or directly",
                "remove the recursion: ONNX has none",
            )
        missing = [call for call in calls if call not in sizes]
        if missing:
            stack.append(missing[0])
            continue
        depth = 1 + max((sizes[call][0] for call in calls), default=0)
        sizes[key] = (depth, sum(sizes.get(called_by(node), (0, 1))[1] for node in nodes))


def _repair_scope(graph: GraphProto, outer: frozenset[str], depth: int) -> bool:
    """Checks one graph and those inside it; returns whether any had to be sorted."""
    if depth > MAX_SUBGRAPH_DEPTH:
        raise InputError(
            f"subgraphs are nested deeper than {MAX_SUBGRAPH_DEPTH}", "flatten the control flow"
        )
    given = _given_names(graph)
    producers = _producers(graph, given)
    known = outer | given
    reads = [_reads(node) for node in graph.node]
    sort = False
    seen = set(known)
    for node, names in zip(graph.node, reads, strict=True):
        for name in names:
            if name not in seen:
                if name not in producers:
                    raise InputError(
                        f"node {label(node)} reads tensor {name!r}, which nothing defines",
                        "export the model again: a node or an input was lost",
                    )
                sort = True
        seen.update(node.output)
    _check_outputs(graph, seen)
    if sort:
        _sort(graph, reads, producers)
    inner = known.union(producers)
    nested = [_repair_scope(g, inner, depth + 1) for n in graph.node for g in subgraphs(n)]
    return sort or any(nested)


def _given_names(graph: GraphProto) -> frozenset[str]:
    """The tensors that are there before any node runs."""
    inputs = [item.name for item in graph.input]
    weights = [item.name for item in graph.initializer]
    weights += [item.values.name for item in graph.sparse_initializer]
    for names, what in ((inputs, "inputs"), (weights, "initializers")):
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two {what} have the name {twice!r}", "rename one of them")
    return frozenset(inputs + weights)


def _producers(graph: GraphProto, given: frozenset[str]) -> dict[str, int]:
    """Index of the node that writes each tensor."""
    producers: dict[str, int] = {}
    for index, node in enumerate(graph.node):
        for name in node.output:
            if not name:
                continue
            if name in producers or name in given:
                other = (
                    f"node {label(graph.node[producers[name]])}"
                    if name in producers
                    else "an input or initializer"
                )
                raise InputError(
                    f"tensor {name!r} is defined twice: by node {label(node)} and by {other}",
                    "give one of them another name",
                )
            producers[name] = index
    return producers


def _reads(node: NodeProto) -> list[str]:
    """What a node needs: its inputs, and what its subgraphs take from around it."""
    names = [name for name in node.input if name]
    for graph in subgraphs(node):
        names += _captured(graph)
    return names


def _captured(graph: GraphProto) -> list[str]:
    inside = {item.name for item in graph.input} | {item.name for item in graph.initializer}
    inside.update(name for node in graph.node for name in node.output)
    used = [name for node in graph.node for name in _reads(node)]
    used += [item.name for item in graph.output]
    return [name for name in used if name not in inside]


def _check_outputs(graph: GraphProto, defined: set[str]) -> None:
    for output in graph.output:
        if output.name not in defined:
            raise InputError(
                f"graph output {output.name!r} is produced by no node",
                "export the model again: a node was lost",
            )


def _sort(graph: GraphProto, reads: Sequence[list[str]], producers: dict[str, int]) -> None:
    """Puts the nodes into topological order and keeps the given order where it is free."""
    waits = [{producers[name] for name in names if name in producers} for names in reads]
    readers: list[list[int]] = [[] for _ in waits]
    for index, sources in enumerate(waits):
        for source in sources:
            readers[source].append(index)
    missing = [len(sources) for sources in waits]
    ready = [index for index, count in enumerate(missing) if count == 0]
    heapify(ready)
    order: list[int] = []
    while ready:
        index = heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if missing[reader] == 0:
                heappush(ready, reader)
    if len(order) < len(waits):
        raise InputError(
            f"the graph has a cycle: {_cycle(graph, waits, set(order))}",
            "break it: an ONNX graph has no cycles, use Loop or Scan",
        )
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _cycle(graph: GraphProto, waits: Sequence[set[int]], done: set[int]) -> str:
    """One cycle, written along the direction of the data."""
    index = next(i for i in range(len(waits)) if i not in done)
    path: list[int] = []
    while index not in path:
        path.append(index)
        index = min(source for source in waits[index] if source not in done)
    names = [label(graph.node[i]) for i in reversed([*path[path.index(index) :], index])]
    shown = names if len(names) <= 8 else [*names[:6], f"... {len(names) - 7} more", names[-1]]
    return " -> ".join(shown)


def _name_nodes(graph: GraphProto) -> int:
    nodes = list(all_nodes(graph.node))
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    renamed = 0
    for index, node in enumerate(nodes):
        if not node.name or node.name in seen:
            base = node.name or node.op_type
            suffix = index
            while f"{base}_{suffix}" in taken:
                suffix += 1
            node.name = f"{base}_{suffix}"
            taken.add(node.name)
            renamed += 1
        seen.add(node.name)
    return renamed

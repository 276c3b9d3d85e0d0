"""Random chains of views and no-ops: the normal form computes what the chain did."""

from __future__ import annotations

from math import prod

from hypothesis import given
from hypothesis import strategies as st

from tests.small import fuse_model, model

SIZES = ({"S": 1}, {"S": 2}, {"S": 5})
Shape = list  # of sizes; None stands for S times what the other sizes leave of 24


class Chain:
    """A chain under construction: statements, and the shape of the tensor that ends it."""

    def __init__(self, draw) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.shape: Shape = [None, 4, 6]
        self.factor = 1  # of S in the size that None stands for
        self.name = "x"

    def add(self, statement: str) -> None:
        name = f"t{len(self.lines)}"
        self.lines.append(f"{name} = " + statement.replace("@", self.name))
        self.name = name

    def pick(self, items):
        return self.draw(st.sampled_from(list(items)))

    def axes(self, wanted) -> list[int]:
        return [axis for axis, size in enumerate(self.shape) if wanted(size)]

    def target(self) -> str:
        return str([-1 if size is None else size for size in self.shape])

    def transpose(self) -> None:
        perm = self.draw(st.permutations(range(len(self.shape))))
        self.shape = [self.shape[axis] for axis in perm]
        self.add(f"Transpose<perm={list(perm)}>(@)")

    def unsqueeze(self) -> None:
        if len(self.shape) < 6:
            axis = self.pick(range(len(self.shape) + 1))
            self.shape.insert(axis, 1)
            self.add(f"Unsqueeze(@, [{axis}])")

    def squeeze(self) -> None:
        ones = self.axes(lambda size: size == 1)
        if ones:
            axis = self.pick(ones)
            del self.shape[axis]
            self.add(f"Squeeze(@, [{axis}])")

    def merge(self) -> None:
        if len(self.shape) > 1:
            axis = self.pick(range(len(self.shape) - 1))
            pair = self.shape[axis : axis + 2]
            known = prod(size for size in pair if size is not None)
            self.factor *= known if None in pair else 1
            self.shape[axis : axis + 2] = [None if None in pair else known]
            self.add(f"Reshape(@, {self.target()})")

    def split(self) -> None:
        sizes = [self.factor if size is None else size for size in self.shape]
        even = [axis for axis, size in enumerate(sizes) if size % 2 == 0]
        if even and len(self.shape) < 6:
            axis = self.pick(even)
            if self.shape[axis] is None:
                self.factor //= 2
                self.shape[axis : axis + 1] = self.pick([[None, 2], [2, None]])
            else:
                self.shape[axis : axis + 1] = self.pick(
                    [[2, sizes[axis] // 2], [sizes[axis] // 2, 2]]
                )
            self.add(f"Reshape(@, {self.target()})")

    def slice(self) -> None:
        wide = self.axes(lambda size: size is not None and size > 1)
        if wide:
            axis = self.pick(wide)
            start, stop, step = self.pick(
                [(0, 99, 1), (1, 99, 1), (-99, -1, 1), (-1, -99, -1), (0, 99, 2)]
            )
            self.shape[axis] = len(range(self.shape[axis])[start:stop:step])
            self.add(f"Slice(@, [{start}], [{stop}], [{axis}], [{step}])")

    def expand(self) -> None:
        self.add(f"Expand(@, {[1] * len(self.shape)})")

    def repeat(self) -> None:
        ones = self.axes(lambda size: size == 1)
        if ones:
            axis = self.pick(ones)
            self.shape[axis] = 2
            sizes = [2 if index == axis else 1 for index in range(len(self.shape))]
            self.add(f"Expand(@, {sizes})")

    def nothing(self) -> None:
        self.add(self.pick(["Identity(@)", "Mul(@, 1.0)", "Add(0.0, @)", "Cast<to=1>(@)"]))

    def same_shape(self) -> None:
        source = self.name
        self.add("Shape(@)")
        sizes, self.name = self.name, source
        self.add(f"{self.pick(['Reshape', 'Expand'])}(@, {sizes})")

    def swap_halves(self) -> None:
        even = self.axes(lambda size: size is not None and size % 2 == 0)
        if even:
            axis, source = self.pick(even), self.name
            number = len(self.lines)
            self.lines.append(f"a{number}, b{number} = Split<axis={axis}, num_outputs=2>({source})")
            order = self.pick([f"a{number}, b{number}", f"b{number}, a{number}"])
            self.add(f"Concat<axis={axis}>({order})")

    def product(self) -> None:
        if isinstance(self.shape[-1], int) and self.shape[-1] in (4, 6) and len(self.shape) > 1:
            size = self.shape[-1]
            self.shape[-1] = 3
            self.add(f"MatMul(@, w{size})")


STEPS = [
    Chain.transpose, Chain.transpose, Chain.unsqueeze, Chain.squeeze, Chain.merge, Chain.merge,
    Chain.split, Chain.split, Chain.slice, Chain.expand, Chain.repeat, Chain.nothing,
    Chain.same_shape, Chain.swap_halves, Chain.product,
]  # fmt: skip


@st.composite
def chains(draw) -> Chain:
    chain = Chain(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=3, max_size=12)):
        step(chain)
    chain.add("Neg(@)")
    return chain


@given(chains())
def test_a_random_chain_keeps_its_numbers(chain):
    text = "\n".join(chain.lines) + f"\ny = Exp({chain.name})"
    weights = {f"w{size}": (size, 3) for size in (4, 6) if f"w{size}" in text}
    outcome = fuse_model(model(text, "T[S, 4, 6] x", weights=weights))
    assert len(outcome.ops) <= len(outcome.before.graph.node)
    outcome.same(*SIZES)

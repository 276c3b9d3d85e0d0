"""Where a bundle leaves its model: what every step wrote on the GPU, against onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx.helper import make_empty_tensor_value_info

from opfuse.errors import InputError
from opfuse.numerics.compare import Array, compare
from opfuse.numerics.session import OnnxRuntime
from opfuse.numerics.whole import Layer
from opfuse.runtime import bundle
from opfuse.runtime.engine import Engine


def compare_steps(path: Path, engine: Engine, feeds: Mapping[str, Array]) -> tuple[Layer, ...]:
    """The difference of every tensor that a step of the bundle ``path`` writes, in their order.

    The reference is the fused model in the bundle, which has the same names. Errors add up on the
    way through the model: the first step beyond the tolerance is the one to look at.

    Raises:
        InputError: ``path`` is no bundle, or holds no model.
        CannotRun: onnxruntime does not run the model.
    """
    if not bundle.is_bundle(path):
        raise InputError(f"{path} is no bundle: one engine has no steps", "leave out --layers")
    written = [(what, name) for what, names in engine.written_by() for name in names]
    want = _reference(path, [name for _, name in written], feeds)
    have = engine.trace(feeds)
    return tuple(
        Layer(what, name, compare(want[name], have[name])) for what, name in written if name in want
    )


def _reference(path: Path, names: list[str], feeds: Mapping[str, Array]) -> dict[str, Array]:
    opened = bundle.Bundle.open(path)
    with TemporaryDirectory() as folder:
        for member in opened.names():
            if member.startswith(bundle.FUSED.removesuffix(".onnx")):
                Path(folder, member).write_bytes(opened.read(member))
        model = onnx.load(Path(folder, bundle.FUSED))
    made = {name for node in model.graph.node for name in node.output}
    kept = [name for name in dict.fromkeys(names) if name in made]
    del model.graph.output[:]
    model.graph.output.extend(make_empty_tensor_value_info(name) for name in kept)
    return dict(zip(kept, OnnxRuntime(model).run(feeds), strict=True))

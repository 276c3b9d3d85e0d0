"""What makes a plugin another one to a table of measurements: tensors that have other kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onnx import NodeProto, TensorProto

from opfuse.engine.tensors import Typed

FP32 = "fp32"
LARGE_HEADS = "large heads"
UNALIGNED = "unaligned"
BESIDE_CONVOLUTIONS = "beside convolutions"
_ATTENTION = frozenset({"FlashAttention", "PackedAttention"})
_PRODUCTS = frozenset({"GemmAct", "GatedGemm"})
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_VECTOR = 8  # elements in fp16 and bf16 of the 16 bytes that the copy engine moves at a time
_TENSOR_CORES = 256  # head sizes beyond have none (plugins/flash_attention/launch.h)


def kinds(
    nodes: Iterable[NodeProto], types: Mapping[str, Typed], *, convolved: bool = False
) -> dict[str, str]:
    """The kind of every op among ``nodes`` that is not the usual one, in fp16 or bf16.

    ``convolved`` says that a convolution is beside them. TensorRT keeps what convolutions read and
    write in orders of its own, which end where an engine does: ConvNeXt, whose products won 20 to
    60 % each where they stand in BERT, won 1.5 % by them, with 20 engines (H100, 8 images).

    An H100 took 59.7 ms for BERT-base in fp32 with the plugins, and 5.8 with TensorRT alone, which
    multiplies in TF32: attention in fp32, and of large heads, runs without tensor cores.
    """
    found = {node.op_type: _kind(node, types, convolved) for node in nodes}
    return {op: kind for op, kind in found.items() if kind}


def has_convolution(nodes: Iterable[NodeProto]) -> bool:
    """Whether there is one among ``nodes``."""
    return any(node.op_type in _CONVOLUTIONS for node in nodes)


def _kind(node: NodeProto, types: Mapping[str, Typed], convolved: bool) -> str:
    read = types.get(node.input[0])
    if read is not None and read.element == TensorProto.FLOAT:
        return FP32
    ends = [types[name] for name in (node.input[0], node.output[0]) if name in types]
    sizes = [typed.shape[-1] for typed in ends if len(typed.shape) == 4]
    if node.op_type in _ATTENTION and any(isinstance(s, int) and s > _TENSOR_CORES for s in sizes):
        return LARGE_HEADS
    rows = (typed.shape[-1] for typed in ends if typed.shape)
    if node.op_type in _PRODUCTS and any(isinstance(s, int) and s % _VECTOR for s in rows):
        return UNALIGNED
    return BESIDE_CONVOLUTIONS if node.op_type in _PRODUCTS and convolved else ""

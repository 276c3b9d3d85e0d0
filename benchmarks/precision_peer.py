"""Converts one model with another tool: ``python precision_peer.py TOOL fp16|bf16 MODEL OUT``.

Run by the Python of an environment that has the tools; inputs and outputs keep their types.
"""

from __future__ import annotations

import sys

import onnx


def autocast(path: str, precision: str) -> onnx.ModelProto:
    """NVIDIA ModelOpt's AutoCast, with its own defaults."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    return convert_to_mixed_precision(path, low_precision_type=precision, keep_io_types=True)


def converter_common(path: str, precision: str) -> onnx.ModelProto:
    """onnxconverter-common's float16."""
    _only_fp16(precision)
    from onnxconverter_common.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load(path), keep_io_types=True)


def onnxruntime(path: str, precision: str) -> onnx.ModelProto:
    """onnxruntime.transformers' float16."""
    _only_fp16(precision)
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load(path), keep_io_types=True)


def _only_fp16(precision: str) -> None:
    if precision != "fp16":
        raise SystemExit("has no bf16")


TOOLS = {
    "autocast": autocast,
    "onnxconverter-common": converter_common,
    "onnxruntime": onnxruntime,
}

if __name__ == "__main__":
    tool, precision, source, target = sys.argv[1:]
    onnx.save(TOOLS[tool](source, precision), target)

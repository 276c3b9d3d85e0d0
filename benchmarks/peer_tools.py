"""One peer, over one model after the other: a program for an interpreter that has the peers.

``python peer_tools.py onnxruntime`` reads a line of JSON for each model from stdin (``input``,
``output``, ``model_type``, ``heads``, ``hidden``) and answers each with a line: why it failed, or
nothing. It imports neither opfuse nor anything else of this folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def onnxruntime_optimizer(order: Mapping[str, Any]) -> None:
    """The Python optimizer with the model type given, then the C++ one with all it has.

    The second writes ``output``; what the first made is kept beside it, as ``.python.onnx``.
    """
    import onnxruntime
    from onnxruntime.transformers.optimizer import optimize_model

    between = Path(order["output"]).with_suffix(".python.onnx")
    optimized = optimize_model(
        order["input"],
        model_type=order["model_type"],
        num_heads=order["heads"],
        hidden_size=order["hidden"],
    )
    optimized.save_model_to_file(str(between))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = order["output"]
    onnxruntime.InferenceSession(str(between), options, providers=["CPUExecutionProvider"])


def onnxscript_rewriter(order: Mapping[str, Any]) -> None:
    """All that the rewriter does for onnxruntime, ``fuse_xformers`` in it."""
    import onnx_ir
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(onnx_ir.load(order["input"]))
    onnx_ir.save(model, order["output"])


PEERS = {"onnxruntime": onnxruntime_optimizer, "onnxscript": onnxscript_rewriter}


def main() -> None:
    """Answers until stdin ends; what the peer prints goes to stderr."""
    logging.disable(logging.WARNING)
    peer = PEERS[sys.argv[1]]
    for line in sys.stdin:
        answer = ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                peer(json.loads(line))
            except Exception as failed:  # a peer raises anything
                answer = f"{type(failed).__name__}: {failed}".splitlines()[0][:300]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

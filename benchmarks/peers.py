"""The peers as the recall benchmark sees them: how one is run, and what counts as found.

Counts are generous: an operator that the exporter wrote whole counts as found where it is left,
and a GELU by itself counts as GEMM with activation.
"""

from __future__ import annotations

import json
import selectors
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from benchmarks.truth import Truth

TIMEOUT = 180.0  # seconds for one model
_ATTENTION = (
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
    "DecoderMaskedMultiHeadAttention",
    "DecoderMaskedSelfAttention",
    "PackedAttention",
    "PackedMultiHeadAttention",
)
_ADD_NORMS = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_NORMS = (
    *_ADD_NORMS,
    "LayerNormalization",
    "SimplifiedLayerNormalization",
    "RMSNormalization",
    "EmbedLayerNormalization",
)
_ACTIVATIONS = ("BiasGelu", "FastGelu", "QuickGelu", "Gelu", "FusedGemm", "FusedMatMulActivation")
# What a user would give onnxruntime's optimizer, by the beginning of the architecture's name.
_TYPES = {
    "qwen3": "qwen3",
    "gpt_neox": "gpt_neox",
    "phi3": "gpt2",
    "phi": "phi",
    "gpt": "gpt2",
    "t5": "t5",
    "clip": "clip",
    "owlvit_text": "clip",
    "swin": "swin",
    "sd_unet": "unet",
    "vae": "vae",
    "sd3": "mmdit",
    "flux": "mmdit",
    "dit": "mmdit",
    "pixart": "unet",
    "parakeet": "conformer",
    "wav2vec2_bert": "conformer",
    "whisper": "bart",
    "bart": "bart",
    "mbart": "bart",
    "marian": "bart",
    "moonshine": "bart",
    "musicgen": "bart",
    "sam": "sam2",
}
_DECODERS = "gpt2"  # for those that see only what came before
_ENCODERS = {"pixel_values": "vit"}  # by input; "bert" otherwise


def model_type(content: dict[str, Any]) -> str:
    """The type that a user would choose for the model of which ``content`` is the truth."""
    name = content["architecture"]
    for beginning in sorted(_TYPES, key=len, reverse=True):
        if name.startswith(beginning):
            return _TYPES[beginning]
    if "causal" in content["truth"]["attention"]["mask"]:
        return _DECODERS
    return next((kind for key, kind in _ENCODERS.items() if key in content["inputs"]), "bert")


class Peer:
    """One peer in a process of its own, which is started again where a model has ended it."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        tool = Path(__file__).parent / "peer_tools.py"
        self._command = [python, str(tool), name]
        self._process: subprocess.Popen[str] | None = None

    def run(self, model: Path, output: Path) -> str:
        """Writes what the peer makes of ``model``; why it did not, or nothing."""
        content = json.loads(model.with_suffix(".json").read_text())
        attention = content["truth"]["attention"]
        order = {
            "input": str(model),
            "output": str(output),
            "model_type": model_type(content),
            "heads": attention["heads"],
            "hidden": attention["heads"] * attention["head_dim"],
        }
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(stdout, selectors.EVENT_READ)
            line = stdout.readline() if waiting.select(TIMEOUT) else ""
        if line:
            return str(json.loads(line))
        self.close()
        return f"its process ended, or took longer than {TIMEOUT:.0f} s"

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def count(model: onnx.ModelProto, truth: Truth) -> dict[str, int]:
    """Patterns that a peer's graph holds as one node each, by kind."""
    nodes = list(model.graph.node)
    ops = Counter(node.op_type for node in nodes)
    cores = sum(ops[op] for op in _ATTENTION)
    packed = sum(map(_takes_packed, nodes))
    if truth.packed_qkv:
        packed = min(cores, truth.counts["QKV groups"])
    return {
        "attention cores": cores,
        "norms": sum(ops[op] for op in _NORMS),
        "add+norm": sum(ops[op] for op in _ADD_NORMS),
        "RoPE applications": sum(map(_turns, nodes)),
        "GLU": ops["BiasSplitGelu"],
        "QKV groups": packed,
        "GEMM+activation": sum(ops[op] for op in _ACTIVATIONS),
        "GroupNorm+SiLU": sum(map(_group_norm_silu, nodes)),
    }


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((item.i for item in node.attribute if item.name == name), 0)


def _takes_packed(node: onnx.NodeProto) -> bool:
    """Whether q, k, and v come from one product."""
    if node.op_type == "Attention" and node.domain == "com.microsoft":
        return True
    alone = len(node.input) < 2 or not any(node.input[1:3])
    return node.op_type in ("MultiHeadAttention", "GroupQueryAttention") and alone


def _turns(node: onnx.NodeProto) -> int:
    if node.op_type == "GroupQueryAttention":
        return 2 * _attribute(node, "do_rotary")
    return len(node.output) if node.op_type in ("RotaryEmbedding", "GemmaRotaryEmbedding") else 0


def _group_norm_silu(node: onnx.NodeProto) -> bool:
    return node.op_type in ("GroupNorm", "SkipGroupNorm") and bool(_attribute(node, "activation"))

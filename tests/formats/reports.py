"""One report and one check with all that formats have to tell, and names that try to break them."""

from __future__ import annotations

EVIL = "a|b`<b>&amp;\x1b[31m\x00]]>\"'\n%0A::error::x"

REPORT = {
    "schema": 1,
    "model": {"path": "dir with space/mödel.onnx", "nodes": 9, "fused_nodes": 4, "opset": 18},
    "fusions": {
        "AddRmsNorm": {"fused": 2, "nearly": []},
        "FlashAttention": {
            "fused": 1,
            "nearly": [{"node": EVIL, "reason": f"is {EVIL}", "advice": "export it again"}],
        },
        "Rope": {"fused": 0, "nearly": []},
    },
    "proof": {
        "matches": 3,
        "failed": 1,
        "max_rel_err": 2.5e-6,
        "failures": [{"kind": "Rope", "nodes": ["r1", "r2"], "reason": "differs"}],
        "whole": {"not_run": "too large"},
    },
    "precision": {
        "precision": "fp16",
        "products": {"fp16": 4, "fp32": 1},
        "casts": 2,
        "kept": [{"node": "head", "op": "MatMul", "reason": "a weight of 7e4"}],
    },
    "engine": {
        "backend": "tensorrt-rtx", "version": "1.7", "bytes": 10, "layers": 3,
        "plugin_layers": {"AddRmsNorm": 2}, "products": {}, "path": "x.engine",
    },
    "timings_s": {"load": 0.5, "fuse": 1.0},
}  # fmt: skip

CHECK = {
    "schema": 1,
    "model": "mödel.onnx",
    "lock": "opfuse.lock",
    "passed": False,
    "failed": 1,
    "expectations": [
        {"section": "fusions", "name": "AddRmsNorm", "status": "passed", "message": "",
         "fix": "", "node": ""},
        {"section": "fusions", "name": "FlashAttention", "status": "failed",
         "message": f"FlashAttention 32 -> 31: {EVIL}", "fix": "export it again", "node": EVIL},
        {"section": "bounds", "name": "latency_us", "status": "skipped",
         "message": "nothing was timed", "fix": "", "node": ""},
        {"section": "outputs", "name": "", "status": "passed", "message": "", "fix": "",
         "node": ""},
    ],
    "changes": [{"place": "fusions.FlashAttention.fused", "old": 32, "new": None}],
    "written": False,
    "nearly": [{"kind": "FlashAttention", "node": EVIL, "reason": "is odd", "advice": "mend it"}],
    "kept": [{"node": "head", "op": "MatMul", "reason": "a weight of 7e4"}],
    "timings_s": {"load": 0.5},
}  # fmt: skip

LOCK = """{
 "format": 1,
 "fusions": {
  "AddRmsNorm": {
   "fused": 2,
   "nearly": []
  },
  "FlashAttention": {
   "fused": 32,
   "nearly": []
  }
 }
}
"""

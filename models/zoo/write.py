"""Exports one case and writes its ground truth."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import torch

from models.zoo.architectures import Unsupported, build
from models.zoo.case import SIZES, Case, Input, Positional, seeded
from models.zoo.truth import counted

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Of the largest output value.
TOLERANCES = {"fp32": 2e-4, "fp16": 5e-2, "bf16": 2e-1}
EXPORTERS = {"dyn": "torch.onnx dynamo", "ts": "torch.onnx torchscript"}


def run(stem: str, folder: Path, sender: Connection) -> None:
    """Exports in a process of its own; sends why that failed, or an empty string."""
    torch.set_num_threads(1)
    try:
        export(stem, folder)
    except Unsupported as reason:
        sender.send(f"not written this way: {reason}")
    except Exception as failed:  # exporters raise anything
        lines = str(failed).strip().splitlines() or [""]
        sender.send(f"{type(failed).__name__}: {' / '.join(lines[:2])}"[:400])
    else:
        sender.send("")


def export(stem: str, folder: Path) -> None:
    """Writes ``stem.onnx``, then ``stem.json``: a model without the latter is incomplete."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    name, exporter, attention, dtype = stem.split("__")
    case = build(name, attention)
    case.model.to(DTYPES[dtype])
    seeded(case.model)
    module = Positional(case).eval()
    example = feeds(case, SIZES[0], DTYPES[dtype])
    tensors = tuple(map(_tensor, example.values()))
    runs = counted(module, tensors)
    truth = truth_of(case, dtype)
    said = truth["norms"]["count"] + truth["norms"].get("of_constants", 0)
    if runs["norms"]["count"] != said:
        raise AssertionError(f"{runs['norms']['count']} norms run, the truth says {said}")
    path = folder / f"{stem}.onnx"
    _export(module, case, tensors, exporter, path)
    model = _stripped(path)
    # onnxruntime has no bfloat16 kernels on the CPU: those files are only written.
    known = dtype != "bf16"
    errors, deviation = _compare(module, case, path, DTYPES[dtype], dtype) if known else ([], 0.0)
    opset = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    content = {
        "name": stem,
        "architecture": name,
        "class": type(case.model).__name__,
        "exporter": EXPORTERS[exporter.rstrip("0123456789")],
        "attn_implementation": attention,
        "dtype": dtype,
        "opset": opset,
        "made_with": _versions(),
        "truth": {**truth, "linear": runs["linear"]},
        "inputs": {
            key: {"kind": value.kind, "shape": list(value.shape)}
            for key, value in case.inputs.items()
        },
        "sizes": [
            s for s, error in zip(SIZES, errors or (0.0, 0.0), strict=False) if error is not None
        ],
        "max_abs_err_vs_torch": _errors(errors, deviation),
        "onnx": _histogram(model, path),
    }
    path.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def _errors(errors: list[float | None], deviation: float) -> dict[str, float | None]:
    """The differences at the traced sizes and elsewhere; nothing where none was measured."""
    if not errors:
        return {}
    other = max(error for error in errors[1:] if error is not None)
    return {"traced": errors[0], "other": other, "output_std": deviation}


def truth_of(case: Case, dtype: str) -> dict[str, Any]:
    """The ground truth in that dtype."""
    return {**case.truth, **case.fp16} if dtype == "fp16" else case.truth


def feeds(case: Case, sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Inputs by name at the given sizes."""
    random = np.random.default_rng(sum(sizes.values()))
    half = dtype == torch.bfloat16  # which NumPy has from ml_dtypes, and torch does not know there
    floats = np.dtype(ml_dtypes.bfloat16) if half else torch.zeros((), dtype=dtype).numpy().dtype
    return {key: _fill(value, sizes, random, floats) for key, value in case.inputs.items()}


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _fill(
    value: Input, sizes: Mapping[str, int], random: np.random.Generator, floats: np.dtype
) -> np.ndarray:
    shape = [_size(dim, sizes) for dim in value.shape]
    kind, _, limit = value.kind.partition(":")
    if kind == "float":
        return random.standard_normal(shape).astype(floats)
    if kind == "ids":
        return random.integers(3, int(limit), shape)
    if kind == "types":
        return random.integers(0, 2, shape)
    if kind == "padmask":
        mask = np.ones(shape, np.int64)
        for row in range(1, shape[0]):
            mask[row, max(1, shape[1] - 1 - row % 2) :] = 0
        return mask
    start = sizes["past"] if kind == "positions" else 0
    return np.broadcast_to(np.arange(start, start + shape[-1]), shape).copy()


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return sum(int(part) if part.isdigit() else sizes[part] for part in dim.split("+"))


def _export(
    module: Positional, case: Case, tensors: tuple[torch.Tensor, ...], exporter: str, path: Path
) -> None:
    named = {
        "opset_version": int(exporter.lstrip("dynts")),
        "input_names": list(case.inputs),
        "output_names": list(case.outputs),
    }
    axes = {
        key: {
            axis: dim.replace("+", "_plus_")
            for axis, dim in enumerate(value.shape)
            if isinstance(dim, str)
        }
        for key, value in case.inputs.items()
    }
    if exporter.startswith("ts"):
        torch.onnx.export(module, tensors, str(path), dynamo=False, dynamic_axes=axes, **named)
        return
    shapes = {"tensors": tuple(axes.values())}
    program = torch.onnx.export(
        module, tensors, dynamo=True, dynamic_shapes=shapes, verbose=False, **named
    )
    program.save(path)


def _stripped(path: Path) -> onnx.ModelProto:
    """The model without the exporter's per-node debug strings."""
    model = onnx.load(path)
    graphs = [model.graph, *model.functions]
    while graphs:
        graph = graphs.pop()
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
        del graph.metadata_props[:]
        for value in (*graph.value_info, *getattr(graph, "input", ()), *graph.output):
            if isinstance(value, onnx.ValueInfoProto):
                value.doc_string = ""
                del value.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""
    onnx.save(model, path)
    return model


def _compare(
    module: Positional, case: Case, path: Path, dtype: torch.dtype, label: str
) -> tuple[list[float | None], float]:
    """The largest difference at each size, None where onnxruntime cannot run it there."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    named = {item.name for item in session.get_inputs()}
    errors: list[float | None] = []
    deviation = 0.0
    for sizes in SIZES:
        arrays = feeds(case, sizes, dtype)
        with torch.no_grad():
            wanted = module(*map(torch.from_numpy, arrays.values()))
        try:
            found = session.run(None, {key: arrays[key] for key in arrays if key in named})
        except Exception:
            if len(errors) < len(SIZES) - 1:
                raise
            errors.append(None)  # the exporter took a size of one to be special
            continue
        pairs = [(a.float().numpy(), np.float32(b)) for a, b in zip(wanted, found, strict=True)]
        deviation = deviation or float(pairs[0][0].std())
        error = max(float(np.abs(a - b).max()) for a, b in pairs)
        largest = max(float(np.abs(a).max()) for a, _ in pairs)
        if not error <= TOLERANCES[label] * max(largest, 1):
            raise AssertionError(f"differs from torch by {error:.2e} of {largest:.2e} at {sizes}")
        errors.append(error)
    return errors, deviation


def _histogram(model: onnx.ModelProto, path: Path) -> dict[str, Any]:
    ops: Counter[str] = Counter()
    graphs: list[Any] = [model.graph, *model.functions]
    while graphs:
        for node in graphs.pop().node:
            ops[node.op_type] += 1
            graphs += [item.g for item in node.attribute if item.HasField("g")]
    return {
        "bytes": path.stat().st_size,
        "nodes": ops.total(),
        "functions": len(model.functions),
        "histogram": dict(sorted(ops.items(), key=lambda item: (-item[1], item[0]))),
    }


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("torch", "transformers", "onnxscript")}

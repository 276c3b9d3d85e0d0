"""Exports the networks of benchmarks.engine_speed from torch, with what torch itself computes.

``python -m benchmarks.engine_export FOLDER NETWORK IMPLEMENTATION``, with torch and transformers,
writes ``model.onnx`` (opset 18, the dynamo exporter, fixed shapes, random weights), ``inputs.npz``,
and ``reference.npz``: for some values of the first input the first output of torch in fp32 on the
same weights, and the relative error over all of them that torch has on this device in fp16, or with
TF32 where the network is in fp32. One token alone would say little: of "decode" there are sixteen.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_networks import FP32, HIDDEN, LAYERS, NETWORKS, OTHERS, network, to_dtype

_TRIED = 16  # such tokens
IMPLEMENTATIONS = ("eager", "sdpa")


def tried(name: str, inputs: tuple[Any, ...]) -> list[Any]:
    """The values of the first input that errors are told for."""
    import torch

    if name.removesuffix(FP32) != "decode":
        return [inputs[0]]
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 30000, (1, 1), generator=generator) for _ in range(_TRIED)]


def reference(
    name: str, module: Any, values: list[Any], others: tuple[Any, ...], device: str
) -> tuple[np.ndarray, float]:
    """The first outputs in fp32, and how far those in the network's own type are from them."""
    import torch

    found = []
    to_dtype(name, module)  # the weights are the same in both
    for exact in (True, False):
        for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
            backend.allow_tf32 = not exact and name.endswith(FP32)
        module = (module.float() if exact else to_dtype(name, module)).to(device)
        made = []
        for value in values:
            inputs = (value, *others)
            given = [t.float() if exact and t.is_floating_point() else t for t in inputs]
            outputs = module(*[t.to(device) for t in given])
            made.append(outputs[0] if isinstance(outputs, tuple) else outputs)
        found.append(torch.stack(made).float())
    want, own = found
    return want.cpu().numpy(), float((own - want).norm() / want.norm())


def export(folder: Path, name: str, implementation: str, layers: int, hidden: int = HIDDEN) -> None:
    """Write the model, its inputs, and what torch makes of them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    module, inputs = network(name, layers, hidden)
    if hasattr(module.inner, "config"):
        module.inner.config._attn_implementation = implementation
    names = ["x", *(f"past_{index}" for index in range(len(inputs) - 1))]
    outputs = ["y", *(f"present_{index}" for index in range(len(inputs) - 1))]
    arrays = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
    np.savez(folder / "inputs.npz", **arrays)
    with torch.no_grad():
        values = tried(name, inputs)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        want, error = reference(name, module, values, inputs[1:], device)
        kept = np.stack([value.numpy() for value in values])
        np.savez(folder / "reference.npz", x=kept, want=want, error=error)
        torch.onnx.export(
            to_dtype(name, module).to("cpu"),
            inputs,
            str(folder / "model.onnx"),
            dynamo=True,
            opset_version=18,
            external_data=True,
            verbose=False,
            input_names=names,
            output_names=outputs,
        )


def main() -> None:
    """Export what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("network", choices=(*NETWORKS, *OTHERS))
    parser.add_argument("implementation", choices=IMPLEMENTATIONS)
    parser.add_argument("--layers", type=int, default=4, help=LAYERS)
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="of Llama (default: 2048)")
    args = parser.parse_args()
    export(args.folder, args.network, args.implementation, args.layers, args.hidden)


if __name__ == "__main__":
    main()

"""Exports the networks of benchmarks.engine_speed from torch, with what torch itself computes.

``python -m benchmarks.engine_export FOLDER NETWORK IMPLEMENTATION``, with torch and transformers,
writes ``model.onnx`` (opset 18, the dynamo exporter, fixed shapes, fp16, random weights),
``inputs.npz``, and ``reference.npz``: for some values of the first input the first output of torch
in fp32 on the same fp16 weights, and the relative error that torch has in fp16 on this device over
all of them. One token alone would say little: of "decode" there are sixteen.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN = 2048  # of Llama, in heads of 64
CACHED = 2048  # tokens before the one that "decode" computes
_TRIED = 16  # such tokens
NETWORKS = ("bert", "vit", "llama2048", "llama128", "decode")
IMPLEMENTATIONS = ("eager", "sdpa")


def network(name: str, layers: int, hidden: int = HIDDEN) -> tuple[Any, tuple[Any, ...]]:
    """The torch module and its example inputs, on the CPU, always the same."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> tuple[Any, ...]:
        return (torch.randint(0, 30000, shape, generator=generator),)

    llama = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=8,
        vocab_size=32000,
        max_position_embeddings=4096,
    )
    made: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
        "bert": lambda: (BertModel(BertConfig(), add_pooling_layer=False), tokens(8, 384)),
        "vit": lambda: (
            ViTModel(ViTConfig(), add_pooling_layer=False),
            (torch.randn(32, 3, 224, 224, generator=generator).half(),),
        ),
        "llama2048": lambda: (LlamaModel(llama), tokens(1, 2048)),
        "llama128": lambda: (LlamaModel(llama), tokens(1, 128)),
        "decode": lambda: (
            LlamaModel(llama),
            tokens(1, 1)
            + tuple(
                torch.randn(1, 8, CACHED, 64, generator=generator).half() for _ in range(2 * layers)
            ),
        ),
    }
    module, inputs = made[name]()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.dim() == 1:  # ones and zeros, of which two norms could not be told apart
                weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return _wrapped(module, cached=name == "decode"), inputs


def _wrapped(module: Any, *, cached: bool) -> Any:
    """A module of tensors alone: the last hidden state, and the cache where there is one."""
    import torch
    from transformers import DynamicCache

    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Any, *past: Any) -> Any:
            if not cached:
                options = {} if "ViT" in type(module).__name__ else {"use_cache": False}
                return self.inner(x, **options).last_hidden_state
            cache = DynamicCache()
            for layer in range(len(past) // 2):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            place = torch.full((1, 1), past[0].shape[2], device=x.device)
            made = self.inner(x, past_key_values=cache, use_cache=True, position_ids=place)
            new = [t for item in made.past_key_values.layers for t in (item.keys, item.values)]
            return (made.last_hidden_state, *new)

    return Plain().eval()


def tried(name: str, inputs: tuple[Any, ...]) -> list[Any]:
    """The values of the first input that errors are told for."""
    import torch

    if name != "decode":
        return [inputs[0]]
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 30000, (1, 1), generator=generator) for _ in range(_TRIED)]


def reference(
    module: Any, values: list[Any], others: tuple[Any, ...], device: str
) -> tuple[np.ndarray, float]:
    """The first outputs in fp32, and how far the same module in fp16 is from them."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    found = []
    module.half()  # the weights are those of the fp16 model in both
    for wide in (True, False):
        module = (module.float() if wide else module.half()).to(device)
        made = []
        for value in values:
            inputs = (value, *others)
            given = [t.float() if wide and t.is_floating_point() else t for t in inputs]
            outputs = module(*[t.to(device) for t in given])
            made.append(outputs[0] if isinstance(outputs, tuple) else outputs)
        found.append(torch.stack(made).float())
    want, half = found
    return want.cpu().numpy(), float((half - want).norm() / want.norm())


def export(folder: Path, name: str, implementation: str, layers: int, hidden: int = HIDDEN) -> None:
    """Write the model, its inputs, and what torch makes of them."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    module, inputs = network(name, layers, hidden)
    module.inner.config._attn_implementation = implementation
    names = ["x", *(f"past_{index}" for index in range(len(inputs) - 1))]
    outputs = ["y", *(f"present_{index}" for index in range(len(inputs) - 1))]
    arrays = {name: t.numpy() for name, t in zip(names, inputs, strict=True)}
    np.savez(folder / "inputs.npz", **arrays)
    with torch.no_grad():
        values = tried(name, inputs)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        want, error = reference(module, values, inputs[1:], device)
        kept = np.stack([value.numpy() for value in values])
        np.savez(folder / "reference.npz", x=kept, want=want, half=error)
        torch.onnx.export(
            module.half().to("cpu"),
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
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("implementation", choices=IMPLEMENTATIONS)
    parser.add_argument("--layers", type=int, default=4, help="of Llama (default: 4)")
    parser.add_argument("--hidden", type=int, default=HIDDEN, help="of Llama (default: 2048)")
    args = parser.parse_args()
    export(args.folder, args.network, args.implementation, args.layers, args.hidden)


if __name__ == "__main__":
    main()

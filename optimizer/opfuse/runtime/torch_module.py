"""How long a torch module takes beside an engine; lives in a child process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from opfuse.errors import EngineError, InputError, MissingComponent
from opfuse.runtime.contexts import Shape
from opfuse.runtime.cuda import open_device
from opfuse.runtime.timing import Clock, Latency, Measurement, draw, largest

_FIX = "name a Python file and a function in it that returns the module: model.py:make"


def measure(
    spec: str,
    shapes: Mapping[str, Shape],
    types: Mapping[str, int],
    iterations: int,
    warm_up: int,
    seed: int,
) -> Measurement:
    """Make a module and time it on the inputs that the engine gets.

    Args:
        spec: ``"FILE.py:NAME"``: a function without arguments that returns the module, or anything
            that can be called with the inputs on the GPU, in order.
        shapes: The shape of every input, in order.
        types: The ONNX element type of every input.
        iterations: As for `opfuse.runtime.timing.measure`.
        warm_up: As for `opfuse.runtime.timing.measure`.
        seed: As for `opfuse.runtime.timing.measure`.

    Raises:
        MissingComponent: There is no torch.
        InputError: There is no such function.
        EngineError: The module fails on these inputs, or cannot be captured in a CUDA graph.
    """
    torch = _torch()
    device = open_device()
    began, before = time.perf_counter(), device.used_bytes()
    with torch.no_grad():
        module = _made(spec, torch)
        loaded = time.perf_counter()
        given = [_tensor(array, torch) for array in draw(shapes, types, seed).values()]
        clock = Clock(device, device.open_stream(), iterations, warm_up, spec)
        try:
            first, told, eager, graph = _timed(module, given, clock, torch)
        except Exception as error:  # a module fails in any way
            raise EngineError(f"{spec}: {type(error).__name__}: {error}", _FIX) from None
    return Measurement(
        path=spec,
        gpu=device.gpu.name,
        shapes=dict(shapes),
        types=dict(types),
        eager=eager,
        graph=graph,
        load_s=loaded - began,
        first_result_s=told - began,
        peak_bytes=device.used_bytes() - before,
        arena_bytes=0,
        segments=0,
        plugins=0,
        steps=(),
        largest=largest(first),
    )


def _timed(
    module: Any, given: list[Any], clock: Clock, torch: Any
) -> tuple[list[np.ndarray[Any, Any]], float, Latency, Latency]:
    """The first outputs and when they were there; the latency without and with a CUDA graph."""
    stream = torch.cuda.ExternalStream(clock.stream)
    with torch.cuda.stream(stream):
        first = [_host(item) for item in _tensors(module(*given))]
        told = time.perf_counter()
        eager = clock.time("eager", lambda: module(*given))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            module(*given)
        return first, told, eager, clock.time("CUDA graph", graph.replay)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise MissingComponent("torch is not installed", "pip install torch") from None
    return torch


def _made(spec: str, torch: Any) -> Any:
    """What the function returns, on the GPU and ready for inference where it is a module."""
    file, _, name = spec.rpartition(":")
    found = spec_from_file_location("opfuse_vs", file) if Path(file).is_file() else None
    if found is None or found.loader is None:
        raise InputError(f"there is no Python file {file}", _FIX)
    namespace = module_from_spec(found)
    try:
        found.loader.exec_module(namespace)
        make = getattr(namespace, name, None)
        made = None if make is None else make()
    except Exception as error:  # it is the user's code
        raise InputError(f"{spec}: {type(error).__name__}: {error}", _FIX) from None
    if not callable(made):
        raise InputError(f"{spec} gives nothing that can be called", _FIX)
    return made.eval().cuda() if isinstance(made, torch.nn.Module) else made


def _tensor(array: Any, torch: Any) -> Any:
    """On the GPU; torch knows no bf16 of NumPy's."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).cuda()
    return torch.from_numpy(array).cuda()


def _tensors(made: Any) -> list[Any]:
    """The tensors of whatever a module returns."""
    if isinstance(made, Mapping):
        return _tensors(list(made.values()))
    if isinstance(made, (list, tuple)):
        return [tensor for item in made for tensor in _tensors(item)]
    return [made] if hasattr(made, "cpu") else []


def _host(tensor: Any) -> np.ndarray[Any, Any]:
    """In fp32: NumPy has no bf16."""
    array: np.ndarray[Any, Any] = tensor.detach().float().cpu().numpy()
    return array

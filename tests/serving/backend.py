"""What Triton's Python backend gives to a model.py, without Triton."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


def utils() -> Any:
    """The module that Triton calls triton_python_backend_utils."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor = Tensor
    module.TritonError = module.TritonModelException = RuntimeError
    module.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(
        tensors={t.name(): t.as_numpy() for t in output_tensors}, error=error
    )
    module.get_input_tensor_by_name = lambda request, name: request.inputs[name]
    return module


def request(outputs: tuple[str, ...], **arrays: np.ndarray) -> Any:
    inputs = {name: Tensor(name, array) for name, array in arrays.items()}
    return SimpleNamespace(inputs=inputs, requested_output_names=lambda: list(outputs))


def imported(path: Path) -> Any:
    """An instance of the model.py at this path."""
    spec = importlib.util.spec_from_file_location("model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TritonPythonModel()

"""A model of Triton's Python backend that runs a bundle or an engine.

`opfuse package` writes the ``model.py`` that imports it: Triton's Python has to have this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opfuse.errors import OpfuseError
from opfuse.runtime.engine import Engine


class TritonModel:
    """What Triton makes an instance of for each GPU, under the name TritonPythonModel.

    ``path`` is the engine or bundle; the class in ``model.py`` sets it.
    """

    path: Path

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the engine on the GPU of this instance.

        Args:
            args: Triton's; ``model_config`` is the configuration as JSON.
        """
        import triton_python_backend_utils as triton

        self._triton = triton
        config = json.loads(args["model_config"])
        self._inputs = [item["name"] for item in config["input"]]
        self._scalars = {item["name"] for item in config["input"] if "reshape" in item}
        self._outputs = [item["name"] for item in config["output"]]
        try:
            self._engine = Engine.load(self.path, device=int(args["model_instance_device_id"]))
        except OpfuseError as error:
            raise triton.TritonModelException(str(error)) from None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order; one that fails has the reason."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Frees the GPU."""
        self._engine.close()

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        try:
            results = self._engine.run({name: self._array(request, name) for name in self._inputs})
        except OpfuseError as error:
            return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(str(error)))
        wanted = set(request.requested_output_names())
        tensors = [triton.Tensor(n, results[n]) for n in self._outputs if n in wanted]
        return triton.InferenceResponse(output_tensors=tensors)

    def _array(self, request: Any, name: str) -> Any:
        array = self._triton.get_input_tensor_by_name(request, name).as_numpy()
        return array.reshape(()) if name in self._scalars else array

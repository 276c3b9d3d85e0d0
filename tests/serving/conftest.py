"""Triton's own schema of a model's configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from google.protobuf import text_format


@pytest.fixture(scope="session")
def parse_config():
    """Parses a config.pbtxt as Triton does; unknown fields and wrong types are errors."""
    spec = importlib.util.find_spec("tritonclient")
    if spec is None:
        pytest.skip("not run: pip install --no-deps -r tests/serving/schema.txt")
    # Not by its name: the package around it imports grpc.
    file = Path(spec.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    schema = importlib.util.spec_from_file_location("model_config_pb2", file)
    module = importlib.util.module_from_spec(schema)
    schema.loader.exec_module(module)
    return lambda text: text_format.Parse(text, module.ModelConfig())

"""The GPU tests' marker and fixtures; torch is imported only where a test runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opfuse.errors import MissingComponent
from opfuse.runtime import library

if TYPE_CHECKING:
    import torch

    from tests.gpu.harness import Runner

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    from tests.gpu.harness import Runner, torch

    if not torch.cuda.is_available():
        pytest.skip("not run: no GPU")
    try:
        run = Runner(library.find())
    except MissingComponent as error:
        pytest.skip(f"not run: {error.what}")
    yield run
    print("\nlargest error, relative to the largest element:")
    for key, error in sorted(run.worst.items()):
        print(f"  {key:40} {error:.2e}")


@pytest.fixture
def generator() -> torch.Generator:
    """Fresh random numbers in each run; the seed is printed where a test fails."""
    from tests.gpu.harness import torch

    generator = torch.Generator(device="cuda")
    print("seed", generator.seed())
    return generator

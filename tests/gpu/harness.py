"""Guarded device buffers, and a caller of plugins that compares and keeps the errors measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from opfuse.runtime import abi

torch = pytest.importorskip("torch", reason="not run: the GPU tests need torch")

ONNX_TYPE = {
    torch.float32: 1,
    torch.int32: 6,
    torch.int64: 7,
    torch.float16: 10,
    torch.bfloat16: 16,
}
# Half a unit in the last place, and the error of a short fp32 computation before that rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FP32_ERROR = 4e-6
GUARD = 64  # elements before and after each buffer; a multiple of 16 bytes for every type


@dataclass
class Buffers:
    """Tensors with poison around them: reads beyond spoil the result, writes beyond are found."""

    offset: int = 0  # elements from the aligned address
    guard: int = GUARD
    bases: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def place(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` in guarded memory on the GPU."""
        place = self.empty(values.shape, values.dtype)
        place.copy_(values)
        return place

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A NaN-filled tensor in guarded memory on the GPU."""
        count = torch.Size(shape).numel()
        start = self.guard + self.offset
        base = torch.full((start + count + self.guard,), float("nan"), dtype=dtype, device="cuda")
        view = base[start : start + count].view(shape)
        self.bases.append((base, view))
        return view

    def check_guards(self) -> None:
        """Nothing was written around any buffer."""
        intact = [torch.ones((), dtype=torch.bool, device="cuda")] * 2
        for base, view in self.bases:
            start, count = self.guard + self.offset, view.numel()
            intact += [base[:start].isnan().all(), base[start + count :].isnan().all()]
        found = torch.stack(intact).tolist()  # one wait for all of them
        assert all(found[0::2]), "written before a buffer"
        assert all(found[1::2]), "written after a buffer"


class Runner:
    """Calls ops of the plugin library on torch tensors, over the C ABI."""

    def __init__(self, path: Path) -> None:
        self.library = abi.load(path)
        self.worst: dict[str, float] = {}

    def __call__(
        self,
        op: str,
        attributes: dict[str, abi.AttributeValue],
        inputs: list[torch.Tensor],
        outputs: list[torch.Tensor],
    ) -> None:
        """Launches on torch's current stream."""
        with abi.Plugin(self.library, op, attributes) as plugin:
            stream = torch.cuda.current_stream().cuda_stream
            size = plugin.workspace_size(described(inputs))
            workspace = torch.full((size,), 0xFF, dtype=torch.uint8, device="cuda")  # NaN
            address = workspace.data_ptr() if size else 0
            plugin.enqueue(described(inputs), described(outputs), stream, address)

    def compare(
        self,
        what: str,
        found: torch.Tensor,
        expected: torch.Tensor,
        noise: float | torch.Tensor = FP32_ERROR,
    ) -> None:
        """``found`` is ``expected`` (float64) within one rounding and ``noise`` of fp32.

        ``noise`` is absolute, for a result whose scale is about 1, or of each element.
        """
        error = (found.double() - expected).abs()
        allowed = ROUNDING[found.dtype] * expected.abs() * 1.01 + noise * (1 + expected.abs())
        # fp16 is subnormal below 6e-5, with steps of 6e-8: covered by `noise`.
        if not error.numel():
            return
        measured = [~found.isfinite().all(), (error / allowed).max(), error.max()]
        measured.append(expected.abs().max())
        holes, over, most, scale = torch.stack([m.double() for m in measured]).tolist()
        assert not holes, f"{what}: not everything was written"
        key = f"{what} {str(found.dtype).removeprefix('torch.')}"
        self.worst[key] = max(self.worst.get(key, 0.0), most / max(scale, 1e-2))
        assert over <= 1, f"{what}: {over:.2f} times the allowed error"


def described(tensors: list[torch.Tensor]) -> list[abi.Tensor]:
    """The tensors as the plugins' C functions take them."""
    return [abi.Tensor(ONNX_TYPE[t.dtype], tuple(t.shape), t.data_ptr()) for t in tensors]

"""Times a product beside as many bytes as its residual has, which L2 fetches and nobody reads.

``python -m benchmarks.product_floors`` prints, for 4096x768x3072 of fp16, microseconds of the
product by tiles of 192 rows: alone; while those bytes come from L2 itself; while they come from
memory; and with the residual added. What the third takes is what no kernel that adds a residual
from memory does without. The last two rows are behind a kernel that has just written the residual,
so that L2 has it, as behind the layer before: their difference is what such a residual costs. Times
are as those of ``benchmarks.products``, with the kernels of ``product_floors.cu`` compiled here,
which takes nvcc and some seconds, or kept from an earlier run (``--kernels FILE``).
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.graphs import Captured
from benchmarks.nvcc import compiled
from benchmarks.products import Launch, Product, Tensors, ours, times
from opfuse.runtime import abi, library

SOURCE = Path(__file__).with_suffix(".cu")
PLUGINS = SOURCE.parents[1] / "plugins"
PRODUCT, LAUNCHES, TILE_ROWS, HELD_BYTES = Product(4096, 768, 3072), 40, 192, 1 << 21
ALONE, FROM_L2, FROM_MEMORY = -1, 0, 1
INT, LONG, POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p


def build(kept_as: Path | None) -> ctypes.CDLL:
    """The kernels; CalledProcessError where nvcc fails."""
    maps = [PLUGINS / "gemm_act" / "tensor_map.cpp", PLUGINS / "device" / "tensor_map.cpp"]
    target = "-gencode=arch=compute_90a,code=sm_90a"
    found = compiled([SOURCE, *maps], "--split-compile=0", target, kept_as=kept_as)
    found.opfuse_ask.argtypes = [INT, POINTER, ctypes.c_uint32, INT, INT]
    found.opfuse_product.argtypes = [INT, *[POINTER] * 3, LONG, INT, INT, POINTER]
    return found


def beside(floors: ctypes.CDLL, kind: int, t: Tensors) -> Launch:
    """The product, alone or beside other bytes."""
    shape = PRODUCT.rows, PRODUCT.cols, PRODUCT.depth

    def launch(index: int) -> torch.Tensor:
        operands = (tensor.data_ptr() for tensor in (t.y, t.x, t.weight(index)))
        stream = torch.cuda.current_stream().cuda_stream
        failed = floors.opfuse_product(kind, *operands, *shape, stream)
        if failed:
            raise RuntimeError(f"CUDA error {failed}")
        return t.y

    return launch


def behind_writing(t: Tensors, launch: Launch) -> Launch:
    """The same, each launch behind a kernel that has written the residual."""

    def both(index: int) -> torch.Tensor:
        t.residual.mul_(1)
        return launch(index)

    return both


def check(name: str, launch: Launch, t: Tensors) -> None:
    """RuntimeError where a launch does not make the product of its first weight."""
    expected = t.x.double() @ t.weight(0).double()
    t.y.fill_(float("nan"))
    error = (launch(0).double() - expected).abs().max() / expected.abs().max()
    if not error < 1e-3:
        raise RuntimeError(f"{name}: off by {error}")


def main() -> None:
    """Compiles, checks, times, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=Path, help="where the compiled kernels are kept")
    floors, handle = build(parser.parse_args().kernels), abi.load(library.find())
    tensors = Tensors(PRODUCT)
    tiles = -(-PRODUCT.rows // TILE_ROWS)
    more = torch.zeros(tiles * TILE_ROWS, PRODUCT.cols, dtype=torch.float16, device="cuda")
    for kind, mask in ((FROM_L2, HELD_BYTES - 1), (FROM_MEMORY, 0xFFFFFFFF)):
        failed = floors.opfuse_ask(kind, more.data_ptr(), mask, PRODUCT.cols, PRODUCT.depth)
        if failed:
            raise RuntimeError(f"CUDA error {failed}")
    plain = ours(handle, PRODUCT, tensors, "none")
    added = ours(handle, PRODUCT, tensors, "none", "residual")
    found: dict[str, Launch] = {
        "alone": beside(floors, ALONE, tensors),
        "beside 25 MB that L2 has": beside(floors, FROM_L2, tensors),
        "beside 25 MB from memory": beside(floors, FROM_MEMORY, tensors),
        "opfuse": plain,
        "opfuse residual": added,
        "residual written, opfuse": behind_writing(tensors, plain),
        "residual written, opfuse residual": behind_writing(tensors, added),
    }
    for name, launch in list(found.items())[:3]:
        check(name, launch, tensors)
    us = times({name: Captured(launch, LAUNCHES) for name, launch in found.items()})
    rows = [(name, f"{t:.2f}", f"{t / us['alone'] - 1:+.1%}") for name, t in us.items()]
    *_, without, with_residual = us.values()
    cost = with_residual - without
    rows.append(("a residual that L2 has", f"{cost:.2f}", f"{cost / us['alone']:+.1%}"))
    measure.print_table(("4096x768x3072", "us", "over alone"), rows)


if __name__ == "__main__":
    main()

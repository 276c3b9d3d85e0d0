"""Times GemmAct and GatedGemm beside cuBLASLt through torch, and torch.compile, on one GPU.

``python -m benchmarks.products`` prints a table and writes ``results/products-<date>.json``; with
``--networks`` it is of the products of whole networks, each by every tactic worth timing. A time
is that of one launch in a CUDA graph of some, over weights that together are larger than the L2
cache, after a pause; the median of several rounds. In each round all contenders of a shape run once
in random order, since a GPU at its power limit slows down by a tenth within seconds.
With ``--bursts`` it is that of launches waited for one by one, thirty after a longer pause, over
the same tensors, without torch.compile.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch.nn import functional

from benchmarks import measure
from benchmarks.graphs import Captured, in_bursts
from benchmarks.kernels import environment
from opfuse.runtime import abi, library

ROUNDS, LONGEST_US, ROTATED_BYTES, PAUSE_CYCLES = 9, 8000.0, 3e8, 400_000
HALF = 10  # onnx.TensorProto.FLOAT16
PLAIN = ("torch mm", "opfuse")  # without an epilogue, by cuBLAS and by us
Launch = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class Product:
    """x [rows, depth] times a weight [depth, cols], or twice as wide where a gate is in it."""

    rows: int
    depth: int
    cols: int
    gated: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """Such as ``gated 64x4096x14336``."""
        return f"{'gated ' if self.gated else ''}{self.rows}x{self.depth}x{self.cols}"

    @property
    def width(self) -> int:
        """Columns of the weight."""
        return self.cols * (2 if self.gated else 1)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.depth * self.width


PRODUCTS = [
    Product(8192, 8192, 8192, compiled=True),
    Product(8192, 4096, 14336),
    Product(4096, 768, 3072, compiled=True),
    Product(4096, 3072, 768),
    Product(2048, 4096, 4096),
    Product(512, 4096, 4096),
    Product(128, 4096, 4096),
    Product(64, 4096, 14336),
    Product(64, 4096, 4096),
    Product(16, 14336, 4096),
    Product(1, 4096, 14336),
    Product(1, 4096, 4096),
    Product(8192, 4096, 14336, gated=True, compiled=True),
    Product(64, 4096, 14336, gated=True),
    Product(1, 4096, 14336, gated=True),
]


# Of a layer of each network of benchmarks.engine_export: how many there are, and its products with
# their activations.
NETWORKS: dict[str, tuple[int, list[tuple[Product, str]]]] = {
    name: (
        12,
        [
            (Product(rows, 768, 2304), "none"),
            (Product(rows, 768, 768), "none"),
            (Product(rows, 768, 3072), "gelu"),
            (Product(rows, 3072, 768), "none"),
        ],
    )
    for name, rows in (("bert-base 8x384", 3072), ("vit-b16 32", 6304))
} | {
    name: (
        4,
        [
            (Product(rows, 2048, 3072), "none"),
            (Product(rows, 2048, 2048), "none"),
            (Product(rows, 2048, 8192, gated=True), "silu"),
            (Product(rows, 8192, 2048), "none"),
        ],
    )
    for name, rows in (("llama 1x2048", 2048), ("llama 1x128", 128), ("llama decode", 1))
}


class Tensors:
    """The operands of a product; launch ``i`` takes the ``i``-th weight, over and over."""

    def __init__(self, product: Product) -> None:
        bytes_each = product.depth * product.width * 2
        copies = max(1, min(256, int(ROTATED_BYTES // bytes_each)))
        self.x = _random(product.rows, product.depth)
        self.weights = [
            _random(product.depth, product.width) * product.depth**-0.5 for _ in range(copies)
        ]
        self.bias = _random(product.width)
        self.residual = _random(product.rows, product.cols)
        self.y = torch.empty_like(self.residual)

    def weight(self, index: int) -> torch.Tensor:
        """Of launch ``index``."""
        return self.weights[index % len(self.weights)]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float16, device="cuda")


def ours(
    handle: object, product: Product, tensors: Tensors, activation: str, *more: str, tactic: int = 0
) -> Launch:
    """Our kernel over the C ABI, with a bias or a residual where named."""
    attributes: dict[str, abi.AttributeValue] = {"activation": activation, "tactic": tactic}
    if "residual" in more:
        attributes["residual"] = 1
    plugin = abi.Plugin(handle, "GatedGemm" if product.gated else "GemmAct", attributes)
    extra = [getattr(tensors, name) for name in more]
    made = _described(tensors.y)
    size = plugin.workspace_size(_described(tensors.x, tensors.weight(0), *extra))
    workspace = torch.empty(size, dtype=torch.uint8, device="cuda")

    def launch(index: int) -> torch.Tensor:
        given = _described(tensors.x, tensors.weight(index), *extra)
        stream = torch.cuda.current_stream().cuda_stream
        plugin.enqueue(given, made, stream, workspace.data_ptr() if size else 0)
        return tensors.y

    return launch


def _described(*tensors: torch.Tensor) -> list[abi.Tensor]:
    return [abi.Tensor(HALF, tuple(t.shape), t.data_ptr()) for t in tensors]


def gelu_layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A linear layer and its GELU, as a model writes them."""
    return functional.gelu(x @ weight + bias, approximate="tanh")


def gated_layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """SwiGLU behind one projection."""
    gate, up = (x @ weight + bias).chunk(2, -1)
    return functional.silu(gate) * up


def compiled(product: Product) -> Callable[..., torch.Tensor]:
    """The layer by inductor."""
    torch._dynamo.reset()
    function = gated_layer if product.gated else gelu_layer
    return torch.compile(function, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs")


def contenders(handle: object, product: Product, t: Tensors) -> dict[str, Launch]:
    """What runs in turns."""
    found: dict[str, Launch] = {"torch mm": lambda i: torch.mm(t.x, t.weight(i))}
    if product.gated:
        found["torch addmm, silu, mul"] = lambda i: gated_layer(t.x, t.weight(i), t.bias)
        found["opfuse silu"] = ours(handle, product, t, "silu", "bias")
    else:
        found["torch addmm"] = lambda i: torch.addmm(t.bias, t.x, t.weight(i))
        found["cuBLASLt bias, gelu_tanh"] = lambda i: torch._addmm_activation(
            t.bias, t.x, t.weight(i), use_gelu=True
        )
        found["opfuse"] = ours(handle, product, t, "none")
        found["opfuse bias"] = ours(handle, product, t, "none", "bias")
        for activation in ("gelu_tanh", "gelu", "silu"):
            found[f"opfuse bias, {activation}"] = ours(handle, product, t, activation, "bias")
        found["opfuse residual"] = ours(handle, product, t, "none", "residual")
        found["opfuse bias, gelu_tanh, tactic 14"] = ours(
            handle, product, t, "gelu_tanh", "bias", tactic=14
        )
    if product.compiled:
        function = compiled(product)
        found["torch.compile"] = lambda i: function(t.x, t.weight(i), t.bias)
    return found


def times(graphs: Mapping[str, Captured]) -> dict[str, float]:
    """Microseconds of a launch of each; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(ROUNDS + 1):
        for name in random.sample(sorted(graphs), len(graphs)):
            torch.cuda._sleep(PAUSE_CYCLES)
            found[name].append(graphs[name].microseconds())
    return {name: median(measured[1:]) for name, measured in found.items()}


def by_tactic(handle: object, product: Product, t: Tensors, activation: str) -> dict[str, Launch]:
    """cuBLASLt, and ours by its own choice and by each tactic that is worth timing."""
    found: dict[str, Launch] = {"cuBLASLt bias": lambda i: torch.addmm(t.bias, t.x, t.weight(i))}
    if activation == "gelu":  # cuBLASLt has but the other GELU
        found["cuBLASLt bias, gelu_tanh"] = lambda i: torch._addmm_activation(
            t.bias, t.x, t.weight(i), use_gelu=True
        )
    found["opfuse"] = ours(handle, product, t, activation, "bias")
    kind = "GatedGemm" if product.gated else "GemmAct"
    with abi.Plugin(handle, kind, {"activation": activation}) as plugin:
        for tactic in plugin.tactics(_described(t.x, t.weight(0))):
            found[f"opfuse tactic {tactic}"] = ours(
                handle, product, t, activation, "bias", tactic=tactic
            )
    return found


def measured(
    handle: object, product: Product, activation: str = "", *, bursts: bool = False
) -> list[dict[str, object]]:
    """A row for each contender; with an activation, each tactic is one."""
    tensors = Tensors(product)
    # At a fifth of an H100's rate, or of its bandwidth.
    roughly = max(product.operations / 2e8, product.depth * product.width * 2 / 1e6, 5.0)
    launches = 1 if bursts else int(min(40, max(2, LONGEST_US / roughly)))
    found = (
        by_tactic(handle, product, tensors, activation)
        if activation
        else contenders(handle, replace(product, compiled=product.compiled and not bursts), tensors)
    )
    graphs = {name: Captured(launch, launches) for name, launch in found.items()}
    taken = in_bursts(graphs) if bursts else times(graphs)
    return [
        {
            "product": product.name,
            "contender": name,
            "us": us,
            "tflops": product.operations / us / 1e6,
            "weight_tb_s": product.depth * product.width * 2 / us / 1e6,
            **{
                f"percent_over_{plain}": 100 * (us / taken[plain] - 1)
                for plain in PLAIN
                if plain in taken
            },
        }
        for name, us in taken.items()
    ]


def whole_networks(handle: object) -> list[dict[str, object]]:
    """The rows of all products of the networks, and of each network their sum."""
    rows: list[dict[str, object]] = []
    for network, (layers, products) in NETWORKS.items():
        sums = {"cuBLASLt": 0.0, "opfuse": 0.0, "opfuse, best tactics": 0.0}
        for product, activation in products:
            found = measured(handle, product, activation)
            of = {str(row["contender"]): float(str(row["us"])) for row in found}
            sums["cuBLASLt"] += layers * of.get("cuBLASLt bias, gelu_tanh", of["cuBLASLt bias"])
            sums["opfuse"] += layers * of["opfuse"]
            tactics = [us for name, us in of.items() if name.startswith("opfuse")]
            sums["opfuse, best tactics"] += layers * min(tactics)
            rows += [{**row, "network": network} for row in found]
        rows += [
            {"product": f"{network}, all", "contender": name, "us": us, "network": network}
            for name, us in sums.items()
        ]
    return rows


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> None:
    """Times all, or only compiles what torch.compile is asked for, which takes a minute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile-only", action="store_true")
    parser.add_argument("--networks", action="store_true", help="products of networks, by tactic")
    parser.add_argument("--bursts", action="store_true", help="time thirty launches after a pause")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of such products as 1x4096x4096")
    args = parser.parse_args()
    if args.compile_only:
        for product in PRODUCTS:
            if product.compiled:
                tensors = Tensors(product)
                compiled(product)(tensors.x, tensors.weight(0), tensors.bias)
        return
    handle = abi.load(library.find())
    if args.networks:
        rows = whole_networks(handle)
    else:
        products = [p for p in PRODUCTS if args.only is None or p.name in args.only]
        rows = [row for p in products for row in measured(handle, p, bursts=args.bursts)]
    keys = ("product", "contender", "us", "tflops", "weight_tb_s")
    over = tuple(f"percent_over_{plain}" for plain in PLAIN if not args.networks)
    measure.print_table(
        ("product", "contender", "us", "TFLOP/s", "weight TB/s", "% over mm", "% over own")[
            : len(keys + over)
        ],
        [tuple(_cell(row.get(key)) for key in keys + over) for row in rows],
    )
    name = "network_products" if args.networks else "products"
    name += "_bursts" if args.bursts else ""
    print(measure.write(name, {"environment": environment(), "rows": rows}))


if __name__ == "__main__":
    main()

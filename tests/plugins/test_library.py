"""The built library: its symbols, what it says of itself, and what it says when misused."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opfuse.errors import MissingComponent
from opfuse.runtime import abi, library
from opfuse.runtime.abi import Plugin, PluginError, Tensor

HEADER = Path(__file__).resolve().parents[2] / "plugins" / "abi" / "opfuse.h"
C_FUNCTIONS = set(re.findall(r"\b(opfuse_\w+)\(", HEADER.read_text()))
FLOAT, HALF, BFLOAT16, INT32, INT64 = 1, 10, 16, 6, 7

# design.md 4: inputs (least, most), outputs, attributes.
ROTATION = dict.fromkeys(("interleaved", "rotary_dim", "head_size"), "INT")
HEADS = dict.fromkeys(("num_heads", "kv_num_heads", "norm", "bias"), "INT")
EXPECTED = {
    "AllGather": ((1, 1), 1, {"axis": "INT", "group_size": "INT"}),
    "AllReduce": ((1, 1), 1, {"group_size": "INT", "reduce_op": "STRING"}),
    "AllReduceAddNorm": (
        (3, 5),
        2,
        {"norm": "STRING", "epsilon": "FLOAT", "group_size": "INT", "reduce_op": "STRING"},
    ),
    "AddLayerNorm": ((4, 5), 2, {"epsilon": "FLOAT", "sum_is_read": "INT"}),
    "AddRmsNorm": ((3, 3), 2, {"epsilon": "FLOAT", "sum_is_read": "INT"}),
    "GroupNormSilu": ((3, 3), 1, {"num_groups": "INT", "epsilon": "FLOAT"}),
    "MaskedSoftmax": ((1, 2), 1, {"scale": "FLOAT", "causal": "INT"}),
    "FlashAttention": (
        (3, 6),
        1,
        {
            "num_heads": "INT",
            "kv_num_heads": "INT",
            "scale": "FLOAT",
            "causal": "INT",
            "window": "INT",
            "softcap": "FLOAT",
            "nan_guard": "INT",
            "slopes": "INT",
            "lengths": "INT",
            "layout": "STRING",
        },
    ),
    "PackedAttention": (
        (1, 4),
        1,
        {
            "num_heads": "INT",
            "kv_num_heads": "INT",
            "scale": "FLOAT",
            "causal": "INT",
            "window": "INT",
            "softcap": "FLOAT",
            "nan_guard": "INT",
            "slopes": "INT",
            "lengths": "INT",
        },
    ),
    "GatedAct": ((1, 2), 1, {"activation": "STRING"}),
    "GatedGemm": ((2, 3), 1, {"activation": "STRING", "tactic": "INT"}),
    "GemmAct": (
        (2, 4),
        1,
        {"activation": "STRING", "transposed": "INT", "residual": "INT", "tactic": "INT"},
    ),
    "QkNormRope": ((3, 6), 3, ROTATION | HEADS | {"epsilon": "FLOAT"}),
    "RmsNorm": ((2, 2), 1, {"epsilon": "FLOAT"}),
    "Rope": ((3, 3), 1, ROTATION | {"num_heads": "INT"}),
}


def symbols(path: Path, which: str) -> set[str]:
    text = subprocess.run(
        ["nm", "-D", f"--{which}-only", path], capture_output=True, text=True, check=True
    ).stdout
    return {line.split()[-1].split("@")[0] for line in text.splitlines()}


def needed(path: Path) -> list[str]:
    text = subprocess.run(
        ["readelf", "-d", path], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"NEEDED.*\[(.*)\]", text)


def twin(path: Path) -> Path:
    return path.with_name("libopfuse_plugins_registered.so")


def test_exports_only_the_c_functions_and_the_two_entry_points(plugin_library: Path) -> None:
    defined = symbols(plugin_library, "defined")
    assert defined == C_FUNCTIONS | {"getCreators", "setLoggerFinder"}


def test_refers_to_no_tensorrt_and_no_cuda_library(plugin_library: Path) -> None:
    names = needed(plugin_library)
    assert not [name for name in names if re.search("nvinfer|tensorrt|cuda|stdc", name)], names
    undefined = symbols(plugin_library, "undefined")
    assert not [name for name in undefined if "nvinfer" in name or name.startswith("getPlugin")]


def test_twin_names_tensorrt_and_exports_no_creators(plugin_library: Path) -> None:
    path = twin(plugin_library)
    major = library.describe(plugin_library).headers.split(".")[0]
    assert f"libnvinfer.so.{major}" in needed(path)
    assert symbols(path, "defined") == C_FUNCTIONS
    assert "getPluginRegistry" in symbols(path, "undefined")


def test_twin_is_refused_by_the_loader_without_tensorrt(plugin_library: Path) -> None:
    script = f"import ctypes; ctypes.CDLL({str(twin(plugin_library))!r})"
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "libnvinfer.so" in done.stderr


def test_describe(plugin_library: Path) -> None:
    info = library.describe(plugin_library)
    found = {op.name: (op.inputs, op.outputs, dict(op.attributes)) for op in info.ops}
    assert found == EXPECTED
    assert {op.version for op in info.ops} == {"1"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", info.version)
    assert re.fullmatch(r"1\d\.\d+", info.headers)
    assert info.architectures
    assert all(re.fullmatch(r"\d+a?(-real|-virtual)?", a) for a in info.architectures)


def test_find_takes_the_environment_over_the_package(
    plugin_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "other.so"
    copy.write_bytes(plugin_library.read_bytes())
    monkeypatch.setenv(library.ENVIRONMENT, str(copy))
    assert library.find() == copy
    assert library.find(plugin_library) == plugin_library


@pytest.mark.parametrize("variable", [True, False])
def test_find_names_the_missing_file(
    variable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent.so"
    monkeypatch.setenv(library.ENVIRONMENT, str(absent))
    with pytest.raises(MissingComponent, match=r"absent\.so") as caught:
        library.find(None if variable else absent)
    assert caught.value.exit_code == 3
    assert caught.value.fix


def test_describe_refuses_what_is_no_library(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not an ELF file")
    with pytest.raises(MissingComponent, match="cannot load the plugin library"):
        library.describe(text)
    other = Path(ctypes.util.find_library("m") or "libm.so.6")
    with pytest.raises(MissingComponent, match="is no opfuse plugin library"):
        library.describe(other)


@pytest.fixture(scope="module")
def handle(plugin_library: Path) -> ctypes.CDLL:
    return abi.load(plugin_library)


def test_infer_of_packed_and_separate_gates(handle: ctypes.CDLL) -> None:
    with Plugin(handle, "GatedAct", {"activation": "gelu_tanh"}) as plugin:
        assert plugin.infer([Tensor(HALF, (2, 3, 8))], 1) == (Tensor(HALF, (2, 3, 4)),)
        pair = [Tensor(BFLOAT16, (5, 8))] * 2
        assert plugin.infer(pair, 1) == (Tensor(BFLOAT16, (5, 8)),)
        assert plugin.workspace_size(pair) == 0


def test_tactics_are_of_products_and_of_their_shape(handle: ctypes.CDLL) -> None:
    weight = Tensor(HALF, (2048, 2048))
    few, many = Tensor(HALF, (1, 2048)), Tensor(HALF, (8, 512, 2048))
    with Plugin(handle, "GemmAct", {"activation": "gelu"}) as plugin:
        of_few, of_many = plugin.tactics([few, weight]), plugin.tactics([many, weight])
        assert 0 not in of_few + of_many
        assert of_few
        assert of_many
        assert set(of_few).isdisjoint(of_many)
        with pytest.raises(PluginError, match="2048 columns, and weight 64 rows"):
            plugin.tactics([few, Tensor(HALF, (64, 64))])
    with Plugin(handle, "RmsNorm", {}) as plugin:
        assert plugin.tactics([few, Tensor(HALF, (2048,))]) == []


def test_zero_rows_need_no_gpu(handle: ctypes.CDLL) -> None:
    x, gamma = Tensor(FLOAT, (0, 64)), Tensor(FLOAT, (64,))
    with Plugin(handle, "AddLayerNorm", {}) as plugin:
        assert plugin.infer([x, x, gamma, gamma], 2) == (x, x)
        plugin.enqueue([x, x, gamma, gamma], [x, x])


def test_rows_that_32_bits_cannot_walk_are_refused(handle: ctypes.CDLL) -> None:
    cols = 2**31 - 100  # the step behind the last element would wrap around
    x, gamma = Tensor(FLOAT, (1, cols)), Tensor(FLOAT, (cols,))
    group, weight = Tensor(FLOAT, (1, 1, cols)), Tensor(FLOAT, (1,))
    for op, inputs, outputs in [
        ("RmsNorm", [x, gamma], [x]),
        ("AddRmsNorm", [x, x, gamma], [x, x]),
        ("AddLayerNorm", [x, x, gamma, gamma], [x, x]),
        ("MaskedSoftmax", [x], [x]),
        ("GroupNormSilu", [group, weight, weight], [group]),
    ]:
        with Plugin(handle, op, {}) as plugin, pytest.raises(PluginError, match="invalid argument"):
            plugin.enqueue(inputs, outputs)


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("NoSuchOp", {}, "NoSuchOp: no op of this name"),
        ("RmsNorm", {"eps": 1e-6}, "RmsNorm: unknown attribute 'eps'"),
        ("RmsNorm", {"epsilon": "1"}, "RmsNorm: attribute 'epsilon' is STRING, need FLOAT"),
        ("RmsNorm", {"epsilon": float("nan")}, "RmsNorm: attribute 'epsilon' is nan"),
        ("AddRmsNorm", {"epsilon": -1.0}, "AddRmsNorm: attribute 'epsilon' is -1"),
        ("AddLayerNorm", {"sum_is_read": 2}, "AddLayerNorm: attribute 'sum_is_read' is 2"),
        ("GatedAct", {"activation": 2}, "GatedAct: attribute 'activation' is INT, need STRING"),
        ("GatedAct", {"activation": "relu"}, "need silu, gelu, or gelu_tanh"),
    ],
)
def test_create_refuses(
    handle: ctypes.CDLL, op: str, attributes: dict[str, abi.AttributeValue], message: str
) -> None:
    with pytest.raises(PluginError, match=re.escape(message)):
        Plugin(handle, op, attributes)


def test_an_integer_serves_as_epsilon(handle: ctypes.CDLL) -> None:
    with Plugin(handle, "RmsNorm", {"epsilon": 0}) as plugin:
        assert plugin.supports(0, [HALF, HALF, HALF], inputs=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([Tensor(FLOAT, (4, 64))], "1 inputs and 1 outputs"),
        ([Tensor(INT64, (4, 64)), Tensor(FLOAT, (64,))], "input 0 has an unsupported type"),
        ([Tensor(FLOAT, (4, 64)), Tensor(HALF, (64,))], "input 1 has an unsupported type"),
        ([Tensor(FLOAT, (4, 64)), Tensor(FLOAT, (32,))], "gamma has 32 elements, need 64"),
        ([Tensor(FLOAT, ()), Tensor(FLOAT, (1,))], "x is a scalar"),
        ([Tensor(FLOAT, (-1, 64)), Tensor(FLOAT, (64,))], "negative dimension"),
    ],
)
def test_infer_refuses(handle: ctypes.CDLL, inputs: list[Tensor], message: str) -> None:
    with Plugin(handle, "RmsNorm", {}) as plugin, pytest.raises(PluginError, match=message):
        plugin.infer(inputs, 1)


def test_slopes_come_last(handle: ctypes.CDLL) -> None:
    """With or without a mask before them; one for each head."""
    q, mask, slopes = Tensor(HALF, (2, 4, 5, 8)), Tensor(HALF, (5, 5)), Tensor(FLOAT, (4,))
    few, flat = Tensor(FLOAT, (2,)), Tensor(FLOAT, (1, 4))
    heads = {"num_heads": 4, "kv_num_heads": 4, "slopes": 1}
    with Plugin(handle, "FlashAttention", heads) as plugin:
        for inputs in ([q, q, q, slopes], [q, q, q, mask, slopes]):
            assert plugin.infer(inputs, 1) == (q,)
        for inputs, message in (
            ([q, q, q], "slopes or lengths are missing"),
            ([q, q, q, few], "slopes has not num_heads elements"),
            ([q, q, q, mask, flat], "slopes has not one axis"),
        ):
            with pytest.raises(PluginError, match=message):
                plugin.infer(inputs, 1)
    qkv = Tensor(HALF, (2, 5, 96))
    with Plugin(handle, "PackedAttention", heads) as plugin:
        assert plugin.infer([qkv, slopes], 1) == (Tensor(HALF, (2, 5, 4, 8)),)
        with pytest.raises(PluginError, match="slopes or lengths are missing"):
            plugin.infer([qkv], 1)


@pytest.mark.parametrize("kind", [INT32, INT64])
def test_lengths_come_last(handle: ctypes.CDLL, kind: int) -> None:
    """Behind a mask and slopes, of which any may be absent; one for each batch, or one for all."""
    q, mask, slopes = Tensor(HALF, (2, 4, 5, 8)), Tensor(HALF, (5, 5)), Tensor(FLOAT, (4,))
    lengths, one = Tensor(kind, (2,)), Tensor(kind, (1,))
    heads = {"num_heads": 4, "kv_num_heads": 4, "lengths": 1}
    with Plugin(handle, "FlashAttention", heads) as plugin:
        for inputs in ([q, q, q, lengths], [q, q, q, one], [q, q, q, mask, lengths]):
            assert plugin.infer(inputs, 1) == (q,)
        for inputs, message in (
            ([q, q, q], "slopes or lengths are missing"),
            ([q, q, q, Tensor(kind, (3,))], "lengths has not one element for each batch"),
            ([q, q, q, Tensor(kind, (2, 1))], "lengths has not one axis"),
            ([q, q, q, lengths, mask], "input 4 has an unsupported type"),
            ([q, q, q, lengths, lengths], "input 4 has an unsupported type"),
        ):
            with pytest.raises(PluginError, match=message):
                plugin.infer(inputs, 1)
        assert not plugin.supports(5, [HALF] * 6, inputs=5)  # a mask alone
    with Plugin(handle, "FlashAttention", heads | {"slopes": 1}) as plugin:
        assert plugin.infer([q, q, q, mask, slopes, lengths], 1) == (q,)
        assert plugin.infer([q, q, q, slopes, lengths], 1) == (q,)
        with pytest.raises(PluginError, match="input 3 has an unsupported type"):
            plugin.infer([q, q, q, lengths, slopes], 1)
    unasked = Plugin(handle, "FlashAttention", heads | {"lengths": 0})
    with unasked as plugin, pytest.raises(PluginError, match="input 3 has an unsupported type"):
        plugin.infer([q, q, q, lengths], 1)
    with Plugin(handle, "PackedAttention", heads | {"lengths": 2}) as plugin:
        assert plugin.infer([Tensor(HALF, (2, 5, 96)), one], 1) == (Tensor(HALF, (2, 5, 4, 8)),)

"""config.pbtxt by Triton's schema says what was meant, and a batch is never a guess."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from opfuse.errors import InputError
from opfuse.serving.signature import Port, batch_limit
from opfuse.serving.triton import config, quoted

TYPES = {
    "fp32": 11,
    "fp16": 10,
    "bf16": 14,
    "int64": 9,
    "int32": 8,
    "int8": 6,
    "uint8": 2,
    "bool": 1,
}


def port(name, shape, *, dtype="fp32", output=False, symbols=(), levels=None):
    return Port(name, not output, dtype, shape, symbols, levels)


IDS = port("ids", (-1, -1), dtype="int64", symbols=("batch", "seq"),
           levels=((1, 1), (2, 128), (8, 512)))  # fmt: skip
LENGTHS = port("lengths", (-1,), dtype="int64", symbols=("batch",), levels=((1,), (2,), (4,)))
LOGITS = port("logits", (-1, -1, 256), output=True, symbols=("batch", "seq", ""))


def test_without_a_batch(parse_config):
    found = parse_config(config("llama", "tensorrt", [IDS, LENGTHS, LOGITS], 0, ["a\nremark"]))
    assert (found.name, found.backend, found.max_batch_size) == ("llama", "tensorrt", 0)
    assert [(i.name, i.data_type, list(i.dims)) for i in found.input] == [
        ("ids", 9, [-1, -1]), ("lengths", 9, [-1])]  # fmt: skip
    assert [(o.name, o.data_type, list(o.dims)) for o in found.output] == [
        ("logits", 11, [-1, -1, 256])]  # fmt: skip
    (warm,) = found.model_warmup
    assert warm.batch_size == 1
    assert {name: list(item.dims) for name, item in warm.inputs.items()} == {
        "ids": [2, 128], "lengths": [2]}  # fmt: skip
    assert not found.instance_group


def test_with_a_batch(parse_config):
    found = parse_config(config("llama", "tensorrt", [IDS, LENGTHS, LOGITS], 4, []))
    assert found.max_batch_size == 4
    assert [list(i.dims) for i in found.input] == [[-1], [1]]
    assert [i.HasField("reshape") for i in found.input] == [False, True]
    assert list(found.input[1].reshape.shape) == []
    assert list(found.output[0].dims) == [-1, 256]
    (warm,) = found.model_warmup
    assert warm.batch_size == 2
    assert {n: list(i.dims) for n, i in warm.inputs.items()} == {"ids": [128], "lengths": [1]}


def test_scalars(parse_config):
    found = parse_config(config("m", "python", [port("t", ()), port("y", (), output=True)], 0, []))
    for item in (found.input[0], found.output[0]):
        assert (list(item.dims), list(item.reshape.shape)) == ([1], [])
        assert item.HasField("reshape")
    assert found.instance_group[0].kind == 1  # KIND_GPU


def test_every_type_and_what_it_is_warmed_up_with(parse_config):
    ports = [port(dtype, (2,), dtype=dtype) for dtype in TYPES]
    found = parse_config(config("m", "tensorrt", ports, 0, []))
    assert {item.name: item.data_type for item in found.input} == TYPES
    kinds = {name: item.WhichOneof("input_data_type")
             for name, item in found.model_warmup[0].inputs.items()}  # fmt: skip
    assert {name for name, kind in kinds.items() if kind == "random_data"} == {
        "fp32",
        "fp16",
        "bf16",
    }
    with pytest.raises(InputError, match="fp8"):
        config("m", "tensorrt", [port("x", (2,), dtype="fp8")], 0, [])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_name_comes_back(name):
    assert text_format.Tokenizer([quoted(name)]).ConsumeString() == name


@pytest.mark.parametrize(
    ("ports", "limit"),
    [
        ([IDS, LOGITS], 8),
        ([IDS, LENGTHS, LOGITS], 4),
        ([IDS, port("y", (-1,), output=True, symbols=("seq",))], 0),
        ([IDS, port("y", (-1,), output=True)], 0),
        ([IDS, port("y", (3,), output=True)], 0),
        ([IDS, port("scale", ()), LOGITS], 0),
        ([port("x", (-1, 4), symbols=("seq", ""), levels=((1, 4), (8, 4), (9, 4))),
          port("y", (-1, 4), output=True, symbols=("seq", ""))], 0),
        ([port("x", (-1, 4), symbols=("N", ""), levels=((2, 4), (8, 4), (9, 4))),
          port("y", (-1, 4), output=True, symbols=("N", ""))], 0),
        ([port("x", (-1, -1), symbols=("N", "N"), levels=((1, 1), (8, 8), (9, 9))),
          port("y", (-1,), output=True, symbols=("N",))], 0),
        ([port("x", (-1, -1), symbols=("b", "2*b"), levels=((1, 2), (8, 16), (9, 18))),
          port("y", (-1,), output=True, symbols=("b",))], 0),
        ([port("x", (-1, 4)), port("y", (-1, 4), output=True)], 0),
    ],
    ids=["batch", "the least of them", "another symbol", "no symbol", "fixed output", "scalar",
         "a sequence", "not from 1", "twice", "in a product", "nothing known"],
)  # fmt: skip
def test_requests_are_joined_along_a_batch_only(ports, limit):
    assert batch_limit(ports, None) == limit
    assert batch_limit(ports, 0) == 0


def test_a_batch_that_was_asked_for():
    assert batch_limit([IDS, LOGITS], 3) == 3
    unnamed = [port("x", (-1, 4)), port("y", (-1, 4), output=True)]
    assert batch_limit(unnamed, 16) == 16
    with pytest.raises(InputError, match="batches of 1 to 8"):
        batch_limit([IDS, LOGITS], 9)
    with pytest.raises(InputError, match="'y' is no batch"):
        batch_limit([IDS, port("y", (3,), output=True)], 2)

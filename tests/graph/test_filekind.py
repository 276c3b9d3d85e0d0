"""What is passed by mistake for an engine is called by its name."""

from __future__ import annotations

import pytest

from opfuse.cli import main
from opfuse.errors import InputError
from opfuse.graph.filekind import no_engine, refuse_no_engine
from opfuse.runtime import Engine
from tests.engine_models import chain


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"# Models\n", "a text file"),
        (chain(1).SerializeToString(), "an ONNX model"),
        (b"GGUF\3\0\0\0", "a GGUF model"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    ],
)
def test_other_files_are_refused_before_anything_is_loaded(tmp_path, capsys, content, kind):
    path = tmp_path / "model.engine"
    path.write_bytes(content)
    assert no_engine(content) == kind
    with pytest.raises(InputError, match=f"model.engine is {kind}, no engine"):
        Engine.load(path)
    assert main(["bench", str(path)]) == 2
    assert f"is {kind}, no engine" in capsys.readouterr().err


def test_the_fix_for_a_model_is_to_build_it(tmp_path):
    path = tmp_path / "m.plan"
    path.write_bytes(chain(1).SerializeToString())
    with pytest.raises(InputError) as caught:
        refuse_no_engine(path)
    assert f"opfuse build {path} -o " in caught.value.fix


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        refuse_no_engine(tmp_path)


@pytest.mark.parametrize("head", [b"ftrt\0\0", b"vtrt\0\0", b"PK\x03\x04", b"ptrt\0\0\xff"])
def test_what_may_be_an_engine_is_loaded(head):
    assert no_engine(head) is None

"""Which models are found in folders, and how they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.models.catalogue import ModelEntry, find_models, model_options
from server.options.groups import CatalogueOptions, group
from server.options.parser import parse

MODEL = b"GGUF" + bytes(60)


def put(folder: Path, *names: str, data: bytes = MODEL) -> None:
    """Files with these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def catalogue(*argv: str) -> CatalogueOptions:
    """The options about several models, of a command line."""
    return group(parse(argv, {})).catalogue


def find(tmp_path: Path, *argv: str) -> dict[str, ModelEntry]:
    """The models by their names; what is told must be nothing."""
    entries = find_models(catalogue(*argv), tmp_path / "no cache", lambda line: pytest.fail(line))
    assert len({entry.name for entry in entries}) == len(entries)
    return {entry.name: entry for entry in entries}


def test_files_are_called_by_their_names_and_parts_are_one_model(tmp_path):
    put(tmp_path, "a.gguf", "B-Q4_K_M.GGUF", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "note.txt")
    found = find(tmp_path, "--models-dir", str(tmp_path))
    assert sorted(found) == ["B-Q4_K_M", "a", "big"]
    big = found["big"]
    assert (big.size, len(big.parts), big.fault) == (128, 2, "")
    assert big.path == big.parts[0] == str(tmp_path / "big-00001-of-00002.gguf")


def test_a_model_that_lacks_a_part_or_is_something_else_says_so(tmp_path):
    put(tmp_path, "big-00001-of-00002.gguf")
    put(tmp_path, "page.gguf", data=b"<html>")
    found = find(tmp_path, "--models-dir", str(tmp_path))
    assert found["big"].fault == "its part big-00002-of-00002.gguf isn't there"
    assert found["page"].fault == "page.gguf is not a GGUF file"


def test_several_files_on_the_command_line_are_models(tmp_path):
    put(tmp_path, "a.gguf", "b.gguf")
    found = find(tmp_path, str(tmp_path / "a.gguf"), "-m", str(tmp_path / "b.gguf"), "-m", "gone.gguf")
    assert list(found) == ["a", "b", "gone"] and found["a"].source == "option"
    assert found["gone"].fault == "gone.gguf isn't there"


def test_a_model_has_the_options_of_all_under_its_own_and_not_those_of_another(tmp_path):
    entry = ModelEntry("x", ("y",), path="x.gguf", changes=(("ctx-size", ("128",), "here"), ("top-k", ("3",), "here")))
    argv = ["-m", "other.gguf", "-a", "other", "--top-k", "5", "-np", "2"]
    model = model_options(entry, argv, {"LLAMA_ARG_CTX_SIZE": "64"})
    assert (model.sources.model, model.aliases) == ("x.gguf", ("x", "y"))
    assert (model.ctx_size, model.parallel, model.requests.values["top_k"]) == (128, 2, 5)

"""A model inside a larger file is loaded from there: the same model and text, memory-mapped instead of read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ctypes_api import loader
from ctypes_api.errors import ModelLoadError
from ctypes_api.objects import Model
from server.engine.client.vocab import open_vocab
from server.engine.llama.backend import open_backend
from server.engine.seam.config import EngineConfig
from server.errands import bundle, bundle_make, one_shot


@pytest.fixture
def bundled(recite_model, tmp_path) -> one_shot.ModelPlace:
    """The small model behind a stand-in for the program."""
    base = tmp_path / "program"
    base.write_bytes(b"#!/bin/sh\n" + bytes(70_000))
    bundle_make.make(base, tmp_path / "my äpp", recite_model, None, (), "test")
    return one_shot.place_of(str(tmp_path / "my äpp"))


def test_the_engine_and_the_vocabulary_open_it_where_it_lies(libs_folder, bundled, recite_model):
    assert bundled.offset >= 70_000
    fields = {"libs": str(libs_folder), "n_ctx": 64, "n_threads": 1}
    plain = open_backend(EngineConfig(str(recite_model), **fields), lambda progress: True)
    inside = open_backend(
        EngineConfig(bundled.path, model_offset=bundled.offset, model_size=bundled.size, **fields),
        lambda progress: True,
    )
    for one in (inside, plain):
        one.identity.find()
    assert inside.identity.facts == plain.identity.facts  # slot files of one fit the other
    assert (inside.info.desc, inside.info.size, inside.info.meta) == (plain.info.desc, plain.info.size, plain.info.meta)
    vocab = open_vocab(str(libs_folder), bundled.path, bundled.offset)
    assert vocab.tokenize("count: one", True, True) == open_vocab(str(libs_folder), str(recite_model)).tokenize(
        "count: one", True, True
    )
    for closing in (inside, plain, vocab):
        closing.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: it reads /proc")
def test_its_weights_are_mapped_from_the_bundle_itself(libs_folder, bundled):
    with Model(loader.load(Path(libs_folder)), bundled.path, offset=bundled.offset) as model:
        mapped = Path("/proc/self/maps").read_text()
        assert bundled.path in mapped and model.n_params > 0
    assert bundled.path not in Path("/proc/self/maps").read_text()
    assert bundled.path not in {str(link.resolve()) for link in Path("/proc/self/fd").iterdir()}


def test_a_wrong_place_or_no_file_is_one_line(libs_folder, bundled, tmp_path):
    libs = loader.load(Path(libs_folder))
    for path, offset in ((bundled.path, bundled.offset + 32), (str(tmp_path / "none"), 64)):
        with pytest.raises(ModelLoadError, match="can't load model"):
            Model(libs, path, offset=offset)


def test_a_side_file_is_a_model_by_itself(libs_folder, recite_model, tmp_path):
    (side,) = bundle_make.make_with_side_file(None, tmp_path / "app", recite_model, None, (), "test")
    assert bundle.read(side).find_part("model").offset == 0
    with Model(loader.load(Path(libs_folder)), side) as model:
        assert model.n_params > 0

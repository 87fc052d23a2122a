"""Facts about model files, which are read again only after a file has changed."""

from __future__ import annotations

import gc
import os
from types import SimpleNamespace

import pytest

from server.engine.seam.config import EngineConfig
from server.loading.known import Memory, files_of
from server.models.catalogue import ModelEntry
from server.options.groups import group
from server.options.parser import parse


def options_of(*argv: object):
    return group(parse([str(word) for word in argv], {})).model


class Files:
    """A model with an adapter, and how often it has been read."""

    def __init__(self, folder) -> None:
        self.model, self.adapter = folder / "a.gguf", folder / "a.lora"
        self.model.write_bytes(b"model")
        self.adapter.write_bytes(b"adapter")
        self.options = options_of("-m", self.model, "--lora", self.adapter)
        self.memory = Memory()
        self.n_read = 0

    def read(self, entry: ModelEntry | None = ModelEntry("a"), options=None):
        return self.memory.read(entry, options or self.options, self._read)

    def _read(self):
        self.n_read += 1
        return SimpleNamespace(path=str(self.model)), EngineConfig(str(self.model), "libs"), {}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Files:
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    return Files(tmp_path)


def test_files_are_read_once(files):
    known = files.read()
    assert files.read() is known and files.n_read == 1
    assert files.read(None) is not known, "the server's one model is another"


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_a_file_that_changes_or_is_replaced_is_read_again(files, name):
    path = getattr(files, name)
    known = files.read()
    path.write_bytes(b"more of it")
    second = files.read()
    other = path.with_name("other")
    other.write_bytes(b"more of it")
    os.replace(other, path)
    third = files.read()
    assert files.n_read == 3 and len({id(known), id(second), id(third)}) == 3
    path.unlink()
    files.read()
    assert files.n_read == 4


def test_a_file_that_cannot_be_read_is_asked_again_each_time(files):
    files.model.unlink()
    files.read()
    files.read()
    assert files.n_read == 2


def test_what_tune_has_found_and_other_options_are_read_anew(files, tmp_path):
    files.read()
    files.read(ModelEntry("a", changes={"ctx_size": 512}))
    assert files.n_read == 2
    tuned = tmp_path / "cache" / "tuned" / f"a.gguf-{files.model.stat().st_size}"
    tuned.parent.mkdir(parents=True)
    tuned.write_text("cpu=x plugin= bytes=0 variant= threads=1\n")
    files.read(ModelEntry("a", changes={"ctx_size": 512}))
    assert files.n_read == 3


@pytest.mark.parametrize("argv", [(), ("--hf-repo", "user/model"), ("-m", "a.gguf", "--mmproj-url", "http://x/y")])
def test_what_may_have_to_be_fetched_is_looked_at_each_time(argv):
    assert files_of(options_of(*argv)) == ()


def test_a_vocabulary_is_opened_again_only_once_it_is_gone(files):
    class Vocab:
        """As one that somebody has."""

    known = files.read()
    assert not known.is_sound, "the engine has to show first that the file can be opened"
    kept = known.open_vocab(lambda config: Vocab())
    assert known.is_sound and files.read().open_vocab(pytest.fail) is kept
    del kept
    gc.collect()
    assert known.open_vocab(lambda config: Vocab()) and known.is_sound
    files.model.write_bytes(b"another model")
    assert not files.read().is_sound

"""Caches what has been read of models' files, so that loading a model again reads no header.

Runs on the thread of a load. A cached result is used while the entry stays the same and all files, including that of
--tune's results, keep their device, inode, size and times. The vocabulary of a sleeping model is used again. A
vocabulary that was opened before is opened while the engine loads; a new one only after the engine has read it without
crashing.

Not taken: keeping the vocabularies of unloaded models, which take 20 to 50 MiB each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from server.engine.seam.config import EngineConfig
from server.errands.one_shot import ModelPlace
from server.errands.tuned import file_of
from server.model_files.identity import Source, list_model_sources, make_source
from server.models.catalogue import ModelEntry
from server.options.groups import ModelOptions
from server.records import record

Found = tuple[ModelPlace, EngineConfig, dict[str, Any]]
"""The result of `model_sources.read_model`."""


@record(eq=False)
class Known:
    """What has been read of a model. `vocab` is a weak reference to its vocabulary; None if that was never opened."""

    entry: ModelEntry | None
    files: tuple[Source, ...]
    found: Found
    vocab: Callable[[], object] | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the vocabulary has been opened before: then opening it can't crash this process."""
        return self.vocab is not None

    def open_vocab(self, open_it: Callable[[EngineConfig], object]) -> object:
        """The vocabulary that is still in memory, or else a new one."""
        vocab = self.vocab() if self.vocab else None
        if vocab is None:
            vocab = open_it(self.found[1])
            self.vocab = weakref.ref(vocab)
        return vocab


class Memory:
    """The cached results by model name. Several threads use it, but only one at a time for each model."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def read(self, entry: ModelEntry | None, options: ModelOptions, read: Callable[[], Found]) -> Known:
        """The cached result for the same files, or else the result of `read`. `entry` is None for a lone model."""
        files = files_of(options)
        name = entry.name if entry else ""
        known = self._known.get(name)
        if known is None or not files or known.files != files or known.entry != entry:
            known = self._known[name] = Known(entry, files, read())
        return known


def files_of(options: ModelOptions) -> tuple[Source, ...]:
    """All files on which the result of reading a model depends. Empty if a file may have to be downloaded, is in a
    bundle or can't be read."""
    sources = options.sources
    if not sources.model or sources.must_fetch:
        return ()
    others = filter(None, (*(path for path, _ in sources.lora), sources.spec_draft_model, sources.mmproj))
    try:
        return (*list_model_sources(sources.model), *map(make_source, others), make_source(file_of(sources.model)))
    except OSError:
        return ()  # the reader will report the error

"""What the files of models have said, for as long as they are as they were: a swap back reads no header again.

The thread of a load. To read and check a header takes a tenth of a swap, and its vocabulary a fifth. Files count as the
same while the system says the same of them (device, inode, size, times), and so does what --tune has found for them.

Not taken: keeping the vocabularies of unloaded models, which take 20 to 50 MiB each. One that is still there, since its
model sleeps, is used again. Of other known files it is opened beside the engine: no need to wait until that has shown
that they can be.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from server.engine.seam.config import EngineConfig
from server.errands.one_shot import ModelPlace
from server.errands.tuned import file_of
from server.model_files.identity import Source, model_sources, source
from server.models.catalogue import ModelEntry
from server.options.groups import ModelOptions
from server.records import record

Found = tuple[ModelPlace, EngineConfig, dict[str, Any]]
"""What `model_sources.read_model` answers."""


@record(eq=False)
class Known:
    """What has been read of a model. `vocab` refers to its vocabulary once that has been opened, and as long as
    somebody has it."""

    entry: ModelEntry | None
    files: tuple[Source, ...]
    found: Found
    vocab: Callable[[], object] | None = None

    @property
    def is_sound(self) -> bool:
        """Whether the vocabulary has been opened before, so that it does no harm in this process."""
        return self.vocab is not None

    def open_vocab(self, open_it: Callable[[EngineConfig], object]) -> object:
        """That which is still there, or another one."""
        vocab = self.vocab() if self.vocab else None
        if vocab is None:
            vocab = open_it(self.found[1])
            self.vocab = weakref.ref(vocab)
        return vocab


class Memory:
    """What is known of each model, by its name. Several threads, but one for a model at a time."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def read(self, entry: ModelEntry | None, options: ModelOptions, read: Callable[[], Found]) -> Known:
        """What `read` finds, or has found for the same files. `entry` None is the server's one model."""
        files = files_of(options)
        name = entry.name if entry else ""
        known = self._known.get(name)
        if known is None or not files or known.files != files or known.entry != entry:
            known = self._known[name] = Known(entry, files, read())
        return known


def files_of(options: ModelOptions) -> tuple[Source, ...]:
    """All files that decide what is read of a model; none where some may have to be fetched, or are in a bundle."""
    sources = options.sources
    if not sources.model or sources.must_fetch:
        return ()
    others = filter(None, (*(path for path, _ in sources.lora), sources.spec_draft_model, sources.mmproj))
    try:
        return (*model_sources(sources.model), *map(source, others), source(file_of(sources.model)))
    except OSError:
        return ()  # the reader will say what is wrong

"""What every handler needs: the engine, the options, and how requests become tasks. Made once by `app`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from server.engine.task import ModelInfo, Snapshot, Task

if TYPE_CHECKING:
    from server.options import Options


class Vocab(Protocol):
    """Text to tokens and back; safe to use from all threads."""

    n_tokens: int
    add_bos: bool

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included."""


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that handlers use."""

    state: str
    error: str
    progress: float
    info: ModelInfo | None
    vocab: Vocab
    snapshot: Snapshot

    def new_id(self) -> int: ...
    def submit(self, task: Task, stream: bool): ...
    def require_ready(self) -> None: ...


@dataclass(slots=True)
class Context:
    """Shared by all handlers. `latest` maps a task id in a slot to what was asked, for `/slots`."""

    engine: Engine
    options: Options
    started: int = field(default_factory=lambda: int(time.time()))
    latest: dict[int, Task] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        """How answers name the model: the alias, else the path it was loaded from."""
        return self.options.alias or str(self.options.model)

    def remember(self, task: Task) -> None:
        """Keep what was asked as long as a slot may show it."""
        self.latest[task.id] = task
        if len(self.latest) > 64:
            shown = {slot.id_task for slot in self.engine.snapshot.slots}
            for id_task in [key for key in list(self.latest) if key not in shown][:-32]:
                self.latest.pop(id_task, None)

"""What every handler needs: the engine, the options, and how requests become tasks. Made once by `app`."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from server.api.running import RunningRequests
from server.engine.seam.task import Embed, ModelInfo, Snapshot, Task
from server.errors import ApiError
from server.log import get_logger
from server.metrics import Refusals
from server.records import record

if TYPE_CHECKING:
    from server.options.parser import Options

log = get_logger("api")


class Vocab(Protocol):
    """Text to tokens and back; safe to use from all threads. `fim` holds the fill-in-the-middle tokens it has.

    `bos`, `eos` and `sep` are -1 where there is none; `add_*` says whether the model wants them around a text.
    """

    n_tokens: int
    add_bos: bool
    bos: int
    add_eos: bool
    eos: int
    add_sep: bool
    sep: int
    fim: Mapping[str, int]
    builtin_templates: tuple[str, ...]

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included."""

    def is_control(self, token: int) -> bool:
        """Whether a token is a special one, which text must not become by accident."""

    def apply_template(self, template: str, messages: list[tuple[str, str]], add_generation_prompt: bool) -> str:
        """Have libllama render (role, content) pairs with a template of its own list."""

    def detokenize(self, tokens: list[int]) -> bytes:
        """The bytes of all of them."""


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that handlers use."""

    state: str
    trouble: str
    progress: float
    info: ModelInfo | None
    vocab: Vocab
    snapshot: Snapshot
    is_stuck: bool

    def new_id(self) -> int:
        """The next task id."""

    def submit(self, *tasks: Task | Embed, stream: bool):
        """Queue tasks; their `Results`."""

    def task(self, id_task: int) -> Task | None:
        """What was asked in a recent task."""

    def command(self, name: str, timeout_s: float = 600.0, **args: object) -> dict[str, object]:
        """Have the engine do something else."""

    def require_ready(self) -> None:
        """ApiError unless requests can be served."""

    def stacks(self) -> str:
        """What the threads of the engine's own process are doing."""


@record(frozen=True)
class SystemPrompt:
    """The prompt all slots start from, and what clients need to build theirs (`/props` shows these two)."""

    prompt: str = ""
    anti_prompt: str = ""
    assistant_name: str = ""


@record
class Context:
    """Shared by all handlers. `defaults` are the request defaults that the command line sets. With `is_shared` there
    may be several users: none of them is shown what others ask."""

    engine: Engine
    options: Options
    defaults: Mapping[str, object] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time.time()))
    system_prompt: SystemPrompt = SystemPrompt()
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    is_shared: bool = False
    running: RunningRequests = field(default_factory=RunningRequests)
    refusals: Refusals = field(default_factory=Refusals)
    _template: object = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def is_2024(self) -> bool:
        """Whether the profile is that of the 2024 documents."""
        return self.options.compat == "2024"

    @property
    def model_name(self) -> str:
        """How answers name the model: the first alias, else the path it was loaded from."""
        return self.options.alias.split(",")[0].strip() if self.options.alias else str(self.options.model)

    @property
    def chat_template(self):
        """The template of chats, compiled when first needed (`chat.template`). ApiError when it can't be."""
        if self._template is None:
            from server.chat.choose import choose_template  # here, because a server is ready sooner without it

            with self._lock:
                if self._template is None:
                    self._template = choose_template(self.options, self.engine.info, self.engine.vocab)
        return self._template

    def keep_prompt(self, prompt: object) -> None:
        """`--log-prompts-dir`: write a request's prompt, text or JSON, into a file named after the time (ms)."""
        folder = self.options.log_prompts_dir
        if not folder:
            return
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, indent=2, ensure_ascii=False)
        path = Path(folder, f"{time.time_ns() // 10**6:012}-{next(self._numbers)}.txt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8", "replace")
        except OSError as error:
            log.error("--log-prompts-dir: the prompt could not be written: %s", error)

    def require_generative(self) -> None:
        """ApiError 501 unless the model writes text; the engine must be ready."""
        if not self.engine.info.is_generative:
            raise ApiError(
                501,
                "this model writes no text, it only computes embeddings: use /v1/embeddings"
                + (" or /v1/rerank" if self.engine.info.pooling == "rank" else ""),
            )

    def set_system_prompt(self, value: object) -> None:
        """Take over a `system_prompt` object; computed once, after the running tasks. The same again costs nothing."""
        new = read_system_prompt(value)
        self.require_generative()
        with self._lock:
            if new.prompt != self.system_prompt.prompt:
                tokens = self.engine.vocab.tokenize(new.prompt, True, True) if new.prompt else []
                self.engine.command("system_prompt", tokens=tuple(tokens))
            self.system_prompt = new


def read_system_prompt(value: object) -> SystemPrompt:
    """A checked `system_prompt`: an object with `prompt`, `anti_prompt`, `assistant_name`; a text alone is a prompt."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise ApiError(400, "system_prompt: give an object with prompt, anti_prompt and assistant_name")
    names = ("prompt", "anti_prompt", "assistant_name")
    for name in names:
        if not isinstance(value.get(name, ""), str):
            raise ApiError(400, f"system_prompt.{name} is not a string")
    return SystemPrompt(*(value.get(name, "") for name in names))

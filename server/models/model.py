"""A model as handlers see it: its engine, vocabulary, template, defaults and system prompt.

Made anew for each load, used by all connection threads. A handler asks `Models.get` for the model that a request names
and passes it on; nothing in here knows a request. Not taken: handlers that reach for the engine, the options and the
template one by one; with several models each would have to choose three times.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from server.engine.seam.task import Embed, ModelInfo, Snapshot, Task
from server.errors import ApiError
from server.log import get_logger
from server.options.row import OptionError
from server.records import field, record

if TYPE_CHECKING:
    from server.options.groups import MediaOptions, ModelOptions, TemplateOptions

log = get_logger("app")


class Vocab(Protocol):
    """Text to tokens and back; safe to use from all threads. `fim` holds the fill-in-the-middle tokens it has.

    `bos`, `eos` and `sep` are -1 where there is none; `add_*` says whether the model wants them around a text. With
    `is_none` there are no texts at all, and ApiError 501 instead.
    """

    n_tokens: int
    is_none: bool
    add_bos: bool
    bos: int
    add_eos: bool
    eos: int
    add_sep: bool
    sep: int
    fim: Mapping[str, int]
    builtin_templates: tuple[str, ...]
    max_bytes: int
    """What a text may have."""

    def __hash__(self) -> int:
        """Each is equal to itself alone."""

    def tokenize(
        self, text: str, add_special: bool, parse_special: bool, *, must_fit: bool = True, may_cut: bool = False
    ) -> list[int]:
        """Token ids of `text`. ApiError 400 for one that has too many bytes, or (`must_fit`) more than the context can
        hold. `may_cut`: it is a prompt, so where the server drops the middle of those, all of it need not be read."""

    def measure(self, text: str) -> int:
        """The bytes of a text. ApiError 400 for one that `tokenize` wouldn't take."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included."""

    def is_control(self, token: int) -> bool:
        """Whether a token is a special one, which text must not become by accident."""

    def apply_template(self, template: str, messages: list[tuple[str, str]], add_generation_prompt: bool) -> str:
        """Have libllama render (role, content) pairs with a template of its own list."""

    def detokenize(self, tokens: list[int], most: int | None = None) -> bytes:
        """The bytes of all of them. ApiError 400 if those are more than `most`."""


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that handlers use."""

    state: str
    error: str
    is_refused: bool
    progress: float
    info: ModelInfo | None
    vocab: Vocab
    snapshot: Snapshot
    timeline: Any  # a `client.timeline.Timeline`

    @property
    def trouble(self) -> str:
        """Why nothing can be served, once `state` is FAILED: one line."""

    @property
    def is_stuck(self) -> bool:
        """Whether it has work and has said nothing for longer than a step can take."""

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        """Whether it has loaded its model, or failed to, after `timeout_s` at most."""

    def close(self, grace_s: float = 0.0) -> None:
        """End it; running tasks get `grace_s` seconds."""

    def new_id(self) -> int:
        """The next task id."""

    def submit(self, *tasks: Task | Embed, stream: bool) -> Any:
        """Queue tasks; their `Results`."""

    def task(self, id_task: int) -> Task | None:
        """What was asked in a recent task."""

    def latest_text(self, id_task: int) -> str:
        """The end of what was generated for it."""

    def waiting_owners(self) -> list[str]:
        """Whose the open tasks are that no slot works on."""

    def command(self, name: str, timeout_s: float = 600.0, **args: object) -> dict[str, Any]:
        """Have the engine do something else."""

    def require_ready(self) -> None:
        """ApiError unless requests can be served."""

    def stacks(self) -> str:
        """What the threads of the engine's own process are doing."""


PREPARING = "Loading model: its system prompt and its chat template are being prepared"


@record(frozen=True)
class SystemPrompt:
    """The prompt all slots start from, and what clients need to build theirs (`/props` shows these two)."""

    prompt: str = ""
    anti_prompt: str = ""
    assistant_name: str = ""


def _stays(seconds: float) -> bool:
    return False


@record
class Model:
    """One model. `media` is what its requests may bring, `own_name` how it is called where it has no alias; `lora` are
    the scales of adapters that have been set since it was started. `keep` has it stay for so many seconds without work,
    and says whether it can."""

    engine: Engine
    options: ModelOptions
    media: MediaOptions
    own_name: str
    system_prompt: SystemPrompt = SystemPrompt()
    lora: tuple[tuple[int, float], ...] | None = None
    keep: Callable[[float], bool] = _stays
    _template: object = None
    _lock: threading.Lock = field(default_factory=threading.Lock)  # protects _template and system_prompt

    @property
    def vocab(self) -> Vocab:
        """Its vocabulary; there once the engine is ready."""
        return self.engine.vocab

    @property
    def info(self) -> ModelInfo | None:
        """What the engine knows about it; None before that is ready."""
        return self.engine.info

    @property
    def names(self) -> list[str]:
        """Its aliases, else its own name: that in its bundle, or its file's path."""
        return list(self.options.aliases) or [self.own_name]

    @property
    def name(self) -> str:
        """How answers name it: the first of its names."""
        return self.names[0]

    def name_for(self, model: str | None) -> str:
        """How an answer in OpenAI's dialect names it: as the request does (`model`) where that is an alias, or where it
        has none."""
        return model if model and (model in self.names or not self.options.aliases) else self.name

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What requests get that don't say otherwise."""
        return self.options.requests.values

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """What every chat's template may read."""
        return self.options.template.chat_template_kwargs or {}

    @property
    def chat_template(self) -> Any:
        """The template of chats, compiled when first needed (`chat.template`). ApiError when it can't be."""
        if self._template is None:
            from server.chat.choose import choose_template  # here, because a server is ready sooner without it

            with self._lock:
                if self._template is None:
                    self._template = choose_template(self.options.template, self.info, self.vocab)
        return self._template

    @property
    def queue_position(self) -> int:
        """The place in the queue that a task would get now: 0 is a slot at once, 1 the next one."""
        snapshot = self.engine.snapshot
        return 0 if snapshot.n_idle > snapshot.n_deferred else snapshot.n_deferred + 1

    def require_room(self, n_answers: int, n_prompts: int = 1) -> None:
        """ApiError 400 for a request of more tasks than can ever run and wait at one time."""
        n_tasks, n_places = n_prompts * n_answers, self.options.max_queue + self.info.n_slots
        if n_tasks > n_places:
            raise ApiError(
                400,
                f"prompt: {n_prompts} prompts with {n_answers} answers each are more than this server takes at once, "
                f"{n_places} (--max-queue and the slots)",
                reason="too_many",
            )

    def require_generative(self) -> None:
        """ApiError 501 unless the model writes text; the engine must be ready."""
        if self.vocab.is_none:
            raise ApiError(
                501,
                "this model's file has no vocabulary, so it writes no text: /v1/embeddings takes lists of token ids",
            )
        if not self.info.is_generative:
            raise ApiError(
                501,
                "this model writes no text, it only computes embeddings: use /v1/embeddings"
                + (" or /v1/rerank" if self.info.pooling == "rank" else ""),
            )

    def set_lora(self, scales: Sequence[tuple[int, float]]) -> Any:
        """The scales of adapters for requests that name none; all adapters as they are then."""
        adapters = self.engine.command("set_lora", scales=tuple(scales))["adapters"]
        self.lora = tuple(scales)
        return adapters

    def set_system_prompt(self, value: object) -> None:
        """Take over a `system_prompt` object; computed once, after the running tasks. The same again costs nothing."""
        new = value if isinstance(value, SystemPrompt) else read_system_prompt(value)
        self.require_generative()
        with self._lock:
            if new.prompt != self.system_prompt.prompt:
                tokens = self.vocab.tokenize(new.prompt, True, True) if new.prompt else []
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


def read_prompt_file(path: str | None) -> object:
    """The object in `--system-prompt-file`, checked; None without one."""
    if not path:
        return None
    try:
        value = json.loads(Path(path).read_text("utf-8-sig"))
        value = value.get("system_prompt", value) if isinstance(value, dict) else value
        read_system_prompt(value)
    except (OSError, ValueError, ApiError) as error:
        raise OptionError(f"--system-prompt-file {path}: {error}") from None
    return value


def check_chat_template(options: TemplateOptions, model: Model) -> None:
    """Compile the chat template now. A fault in the user's ends the server (ApiError), one in the model's is logged."""
    try:
        model.chat_template  # noqa: B018  (a property that compiles)
    except ApiError as error:
        if options.chat_template or options.chat_template_file:
            raise
        log.warning("%s; chats will be refused (--chat-template names another)", error)

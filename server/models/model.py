"""A model as handlers use it: its engine, vocabulary, template, defaults and system prompt.

Each load makes a new `Model`, which any thread may use. A handler gets the model that a request names from `Models` and
passes it on. Not taken: handlers that get the engine, the options and the template from three places.
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
    """Converts text to tokens and back, on any thread.

    `bos`, `eos` and `sep` are -1 if the vocabulary has no such token; `add_*` says whether the model expects this token
    around a text. `fim` has the fill-in-the-middle tokens. If `is_none`, the model's file has no vocabulary, and
    methods for texts raise ApiError 501.
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
    """The most bytes that a text may have."""

    def __hash__(self) -> int:
        """Each vocabulary equals only itself."""

    def tokenize(
        self, text: str, add_special: bool, parse_special: bool, *, must_fit: bool = True, may_cut: bool = False
    ) -> list[int]:
        """Token ids of `text`. ApiError 400 if it is too long to tokenize, or (`must_fit`) is long and has more tokens
        than the context. `may_cut`: the text is a prompt; the server may drop its middle instead."""

    def measure(self, text: str) -> int:
        """The number of bytes of a text. ApiError 400 if it is too long for `tokenize`."""

    def piece(self, token: int) -> bytes:
        """The bytes of one token, special tokens included."""

    def is_control(self, token: int) -> bool:
        """Whether a token is a control token, which users' text must not become."""

    def apply_template(self, template: str, messages: list[tuple[str, str]], add_generation_prompt: bool) -> str:
        """Render (role, content) pairs with one of libllama's built-in templates."""

    def detokenize(self, tokens: list[int], most: int | None = None) -> bytes:
        """The bytes of all tokens. ApiError 400 if they are more than `most`."""


class Engine(Protocol):
    """The part of `engine.client.EngineClient` that this folder and the handlers use."""

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
        """Why the engine can't serve, in one line, if `state` is FAILED."""

    @property
    def is_stuck(self) -> bool:
        """Whether it has work but has sent nothing for longer than a step may take."""

    @property
    def is_busy(self) -> bool:
        """Whether it has work."""

    def wait_until_loaded(self, timeout_s: float | None = None) -> bool:
        """Wait until it has loaded its model or failed; False after `timeout_s` seconds."""

    def close(self, grace_s: float = 0.0) -> None:
        """End it; running tasks get `grace_s` seconds."""

    def make_id(self) -> int:
        """The next task id."""

    def submit(self, *tasks: Task | Embed, stream: bool) -> Any:
        """Send tasks to the engine. Return their `Results`."""

    def get_task(self, id_task: int) -> Task | None:
        """The open or recent task with this id; None if there is none."""

    def get_latest_text(self, id_task: int) -> str:
        """The end of the text that was generated for a task."""

    def list_waiting_owners(self) -> list[str]:
        """The owners of the tasks that wait for a slot."""

    def run_command(self, name: str, timeout_s: float = 600.0, **args: object) -> dict[str, Any]:
        """Have the engine run a command. Return its result."""

    def require_ready(self) -> None:
        """ApiError unless requests can be served."""

    def collect_stacks(self) -> str:
        """The call stacks of the engine's process."""


PREPARING = "Loading model: its system prompt and its chat template are being prepared"


@record(frozen=True)
class SystemPrompt:
    """The text with which all prompts begin, and two texts that `/props` gives to clients for their prompts."""

    prompt: str = ""
    anti_prompt: str = ""
    assistant_name: str = ""


def _refuse_stay(seconds: float) -> bool:
    return False


@record
class Model:
    """One model. `media` limits the images and sounds in its requests. `own_name` is its name if it has no alias.
    `lora` are the (adapter, scale) pairs that a request has set; None if none has. `keep` sets how many seconds it
    stays loaded without work, and returns False if that can't be set."""

    engine: Engine
    options: ModelOptions
    media: MediaOptions
    own_name: str
    system_prompt: SystemPrompt = SystemPrompt()
    lora: tuple[tuple[int, float], ...] | None = None
    keep: Callable[[float], bool] = _refuse_stay
    _template: object = None
    _lock: threading.Lock = field(default_factory=threading.Lock)  # protects _template and system_prompt

    @property
    def vocab(self) -> Vocab:
        """Its vocabulary, once the engine is ready."""
        return self.engine.vocab

    @property
    def info(self) -> ModelInfo | None:
        """The engine's description of the model; None before the engine is ready."""
        return self.engine.info

    @property
    def names(self) -> list[str]:
        """Its aliases, else its own name: that in its bundle, or its file's path."""
        return list(self.options.aliases) or [self.own_name]

    @property
    def name(self) -> str:
        """The name that answers show."""
        return self.names[0]

    def choose_name(self, model: str | None) -> str:
        """The name that an answer in OpenAI's dialect shows: `model`, from the request, if the model has this name or
        no alias, else the model's first name."""
        return model if model and (model in self.names or not self.options.aliases) else self.name

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The defaults of request fields."""
        return self.options.requests.values

    @property
    def template_kwargs(self) -> Mapping[str, Any]:
        """The variables that options set for the chat template."""
        return self.options.template.chat_template_kwargs or {}

    @property
    def chat_template(self) -> Any:
        """The chat template (see `chat.template`), compiled at its first use. ApiError if it is wrong."""
        if self._template is None:
            from server.chat.choose import choose_template  # here, because a server is ready sooner without it

            with self._lock:
                if self._template is None:
                    self._template = choose_template(self.options.template, self.info, self.vocab)
        return self._template

    @property
    def queue_position(self) -> int:
        """The place in the queue that a task would get now; 0 means a slot at once."""
        snapshot = self.engine.snapshot
        return 0 if snapshot.n_idle > snapshot.n_deferred else snapshot.n_deferred + 1

    def require_room(self, n_answers: int, n_prompts: int = 1) -> None:
        """ApiError 400 if a request has more tasks than the slots and the queue can take together."""
        n_tasks, n_places = n_prompts * n_answers, self.options.max_queue + self.info.n_slots
        if n_tasks > n_places:
            raise ApiError(
                400,
                f"prompt: {n_prompts} prompts with {n_answers} answers each are more than this server takes at once, "
                f"{n_places} (--max-queue and the slots)",
                reason="too_many",
            )

    def require_generative(self) -> None:
        """ApiError 501 unless the model generates text. The engine must be ready."""
        if self.vocab.is_none:
            raise ApiError(
                501, "this model has no vocabulary, so it generates no text: send lists of token ids to /v1/embeddings"
            )
        if not self.info.is_generative:
            raise ApiError(
                501,
                "this model generates no text, it only computes embeddings: use /v1/embeddings"
                + (" or /v1/rerank" if self.info.pooling == "rank" else ""),
            )

    def set_lora(self, scales: Sequence[tuple[int, float]]) -> Any:
        """Set the adapters' scales for requests that name none. Return all adapters with their scales."""
        adapters = self.engine.run_command("set_lora", scales=tuple(scales))["adapters"]
        self.lora = tuple(scales)
        return adapters

    def set_system_prompt(self, value: object) -> None:
        """Set the system prompt. The engine computes it once, after the running tasks, unless it is unchanged."""
        new = value if isinstance(value, SystemPrompt) else read_system_prompt(value)
        self.require_generative()
        with self._lock:
            if new.prompt != self.system_prompt.prompt:
                tokens = self.vocab.tokenize(new.prompt, True, True) if new.prompt else []
                self.engine.run_command("system_prompt", tokens=tuple(tokens))
            self.system_prompt = new


def read_system_prompt(value: object) -> SystemPrompt:
    """A checked `system_prompt`: an object with `prompt`, `anti_prompt` and `assistant_name`, or a text, which is the
    prompt. ApiError 400."""
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
    """The checked value in `--system-prompt-file`; None without a file. OptionError."""
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
    """Compile the chat template. An error in an option's template is raised (ApiError), one in the model's own is
    logged."""
    try:
        model.chat_template  # noqa: B018  (a property that compiles)
    except ApiError as error:
        if options.chat_template or options.chat_template_file:
            raise
        log.warning("%s; chats will be refused (set another template with --chat-template)", error)

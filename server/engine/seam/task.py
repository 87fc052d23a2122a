"""The messages between the web process and the engine.

Their fields hold numbers, strings, bytes, bools, None, tuples and dicts of those, and records of this module. So they
can travel by a function call (engine as a thread) or through a pipe (engine as a process). Imports the standard library
and `server.records` only.

Not taken: messages with slots, futures or callbacks. They would tie both sides to one process.
"""

from __future__ import annotations

from typing import Any

from server.records import field, record

STOP_NONE, STOP_EOS, STOP_LIMIT, STOP_WORD, STOP_ABORT = "none", "eos", "limit", "word", "abort"
CACHE_NONE, CACHE_SLOT, CACHE_SHARED, CACHE_RAM, CACHE_DISK = "none", "slot", "shared", "ram", "disk"
LOADING, READY, RESTARTING, FAILED, CLOSED = "loading model", "ok", "restarting engine", "error", "closed"

IMAGE, AUDIO = "image", "audio"

SAMPLER_NAMES = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typical_p",
    "tfs_z",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
    "infill",
    "adaptive_p",
)

# Other spellings in requests: llama.cpp's newer names and the long names of its command line.
SAMPLER_ALIASES = {
    "typ_p": "typical_p",
    "typ-p": "typical_p",
    "typical": "typical_p",
    "typical-p": "typical_p",
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
    "nucleus": "top_p",
    "min-p": "min_p",
    "top-n-sigma": "top_n_sigma",
    "adaptive-p": "adaptive_p",
    "tfs": "tfs_z",
    "tfs-z": "tfs_z",
}

# Upper bounds of each histogram's buckets. One more bucket counts larger values.
HISTOGRAM_BOUNDS: dict[str, tuple[float, ...]] = {
    "queue_wait_seconds": (0.001, 0.01, 0.1, 0.5, 1, 5, 15, 60, 300),
    "time_to_first_token_seconds": (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    "time_between_tokens_seconds": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    "step_seconds": (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
    "prompt_throughput_tokens_per_second": (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000),
    "predicted_throughput_tokens_per_second": (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
}


WORD, START, TOKEN, PATTERN, FULL = "word", "start", "token", "pattern", "full"


@record(frozen=True)
class Trigger:
    """What begins a tool call in visible text, by `kind`.

    WORD: `text` anywhere. START: `text` with only white space before it. TOKEN: `token`. PATTERN and FULL: a match of a
    regular expression, anywhere or from the start of the text.

    `states` is the expression's automaton: a row for each state, the start first. A row is (1 if a match may end here,
    else 0; then for each transition the lowest character, the highest character, and the next row).
    """

    kind: str
    text: str = ""
    token: int = -1
    states: tuple[tuple[int, ...], ...] = ()


@record(frozen=True)
class Thinking:
    """How a model writes its reasoning: between the texts `open` and `close`."""

    open: str
    close: str
    is_opened: bool = False  # the prompt ends with `open`; else the model may write it
    budget: int = -1  # the reasoning is ended after so many tokens of it; -1: no limit
    end_tokens: tuple[int, ...] = ()  # the tokens that end it: a message and `close`
    until: str = ""  # another text that ends the reasoning, such as the beginning of a call; "": none
    comes_again: bool = False  # the model may reason anywhere in its answer; else only at the beginning


@record(frozen=True)
class SamplingParams:
    """The settings of sampling and grammar. Names and meanings are those of `/completion` (docs/api.md)."""

    seed: int = 0  # never -1 (random), so that a replay makes the same draws
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    tfs_z: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalize_nl: bool = True
    penalty_prompt: tuple[int, ...] | None = None  # tokens for the penalties instead of the prompt
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    samplers: tuple[str, ...] = (  # in this order
        "penalties",
        "dry",
        "top_n_sigma",
        "top_k",
        "tfs_z",
        "typical_p",
        "top_p",
        "min_p",
        "xtc",
        "temperature",
    )
    min_keep: int = 0
    n_probs: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, bias); -inf bans the token
    ignore_eos: bool = False
    grammar: str = ""
    grammar_lazy: bool = False  # the grammar applies only from the first character of a completed trigger on
    grammar_triggers: tuple[Trigger, ...] = ()  # if the grammar isn't lazy, they only mark where a call begins


@record(frozen=True)
class Media:
    """A file in a prompt. The numbers are from its header, 0 if that wasn't read."""

    kind: str  # IMAGE or AUDIO
    data: bytes
    hash: str  # SHA-256 of `data`
    where: str  # its place in the request's body, for error messages
    n_bytes: int = 0  # bytes of memory that decoding takes at most
    width: int = 0  # pixels
    height: int = 0  # pixels
    seconds: float = 0.0  # of a sound


@record(frozen=True)
class Task:
    """One prompt to complete, with its settings."""

    id: int
    prompt: tuple[int, ...]  # token ids; -1 stands for the first file of `media`, -2 for the second, and so on
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n_predict: int = -1  # the most tokens to generate; -1: no limit
    n_keep: int = 0  # tokens that a context shift keeps; -1: the whole prompt
    n_discard: int = 0  # tokens that a context shift drops; 0: half of the others
    stop: tuple[str, ...] = ()  # stop strings; ignored within reasoning and after the first trigger
    id_slot: int = -1  # -1: any slot
    cache_prompt: bool = True
    may_respell: bool = False  # cached tokens of the same text may replace the prompt's
    progress: bool = False  # send `Progress` events
    lora: tuple[tuple[int, float], ...] | None = None  # (adapter index, scale); None: the server's setting
    n_indent: int = 0  # end before a line that is indented by fewer blanks
    t_max_prompt_ms: int = 0  # limit of the prefill; 0: none
    t_max_predict_ms: int = 0  # limit of generating, applied after the first line break; 0: none
    draft_n_max: int = -1  # tokens of a draft; 0: no drafts, -1: the server's setting
    draft_n_min: int = -1  # tokens of a draft; -1: the server's setting
    draft_p_min: float = -1.0  # the least probability of a drafted token; -1: the server's setting
    timings: bool = False  # pieces carry `Timings`
    stream: bool = True  # False: the client reads nothing before the end, so pieces may be late
    prompt_probs: int = -1  # send `PromptProbs` with so many alternatives; -1: none
    probs_from: int = 0  # first prompt token for `PromptProbs`; 0: all tokens, which needs `cache_prompt` False
    cuts: tuple[tuple[int, int], ...] = ()  # [start, end) of tokens to drop from the cache after `cut_at` tokens
    cut_at: int = 0  # the prompt's tokens from here on are computed without those of `cuts`
    t_max_ms: int = 0  # limit from the task's arrival to its last token; 0: none
    owner: str = ""  # the id of the API key, else the client's address
    priority: int = 0  # waiting tasks of a higher priority start first
    media: tuple[Media, ...] = ()
    resume: tuple[int, ...] = ()  # tokens already delivered by a former engine
    resume_ms: float = 0.0  # milliseconds that those took
    preserved_tokens: tuple[int, ...] = ()  # control tokens whose names are part of the text
    reasoning: Thinking | None = None  # grammar, triggers and stop strings apply after the reasoning
    ends_thinking: int = -1  # end the reasoning after so many tokens of the answer; -1: don't
    only_counts: bool = False  # only prepare the files and answer with a `Final` that has `n_prompt`

    @property
    def in_background(self) -> bool:
        """Whether the task yields to others (`BACKGROUND`)."""
        return self.priority <= BACKGROUND


BACKGROUND = -101
"""The priority of background tasks, lower than a request may choose. Beside other tasks they get a part of the time. If
another task finds no slot, a background task fails with the reason `GAVE_WAY`."""
GAVE_WAY = "gave_way"


# ---- web process -> engine ------------------------------------------------------------------------------------


@record(frozen=True)
class Tasks:
    """All tasks of one request. Those without files enter the queue in the same step."""

    tasks: tuple[Task, ...]


@record(frozen=True)
class Cancel:
    """Give up the task, command or `Embed` with this `id`. Unknown ids are ignored."""

    id: int
    finish: bool = False  # answer with a `Final` that ends the text here (stop `abort`); else there is no answer


@record(frozen=True)
class Command:
    """Do what `name` says (see `loop.commands`) between two steps. Answered by a `Reply`, unless cancelled."""

    id: int
    name: str
    args: dict[str, Any]


@record(frozen=True)
class Close:
    """Fail waiting and new tasks, let running ones go on for at most `grace_s` seconds, then end the engine."""

    grace_s: float


@record(frozen=True)
class Embed:
    """Compute embeddings. Answered by one `Embedded` or a `Failure`."""

    id: int
    inputs: tuple[tuple[int, ...], ...]  # token ids, with files as in `Task.prompt`
    owner: str = ""
    media: tuple[Media, ...] = ()
    in_background: bool = False  # like tasks of the priority `BACKGROUND`


# ---- engine -> web process ------------------------------------------------------------------------------------


@record(frozen=True)
class TokenProbs:
    """One token with alternatives. Pairs are (token id, value), most likely first."""

    token: int
    prob: float  # after the sampler chain
    logprob: float  # of the model, before the chain
    top: tuple[tuple[int, float], ...]  # after the sampler chain
    top_logprobs: tuple[tuple[int, float], ...]  # of the model, before the chain


@record(frozen=True)
class PromptProbs:
    """The model's log probabilities of the prompt's tokens from `start` (at least 1) on.

    `prob` and `top` are unused. After a restart of the engine the same probabilities may come twice.
    """

    id: int
    start: int
    probs: tuple[TokenProbs, ...]


@record(frozen=True)
class Progress:
    """How far the prefill of task `id` is. Counts are of tokens."""

    id: int
    n_prompt: int
    n_cached: int  # reused from the cache
    n_processed: int  # done, with the reused ones
    ms: float  # since the prefill began; while the task waits, since its arrival
    place: int = 0  # in the queue, from 1; 0: the task has started


@record(frozen=True)
class Timings:
    """Counts of tokens and times of one task, by the engine's clock."""

    cache_n: int  # of the prompt, reused from the cache
    prompt_n: int  # of the prompt, evaluated
    prompt_ms: float
    predicted_n: int  # generated
    predicted_ms: float
    draft_n: int = -1  # drafted; -1: without speculative decoding
    draft_n_accepted: int = 0


@record(frozen=True)
class Difference:
    """The first token at which a prompt differs from a cached text."""

    position: int  # of that token, counted with the server's system prompt
    before: tuple[int, ...]  # a few tokens before it, equal in both texts
    prompt: tuple[int, ...]  # a few tokens of the prompt from there on
    cached: tuple[int, ...]  # a few cached tokens from there on
    n_lost: int = 0  # later tokens of the prompt that are cached but had to be evaluated again
    at: int = -1  # that token's index in `Task.prompt`; -1: it is in the system prompt, or the prompt was cut


@record(frozen=True)
class CacheUse:
    """Which part of a prompt was reused, and why not more.

    `first_difference` compares the prompt with the owner's cached text that has the longest common prefix. It is None
    without such a text, or if one of the two texts continues the other.
    """

    source: str = CACHE_NONE  # a CACHE_*: where the reused tokens were
    reason: str = ""  # why some cached tokens were not reused; "": all were
    first_difference: Difference | None = None


@record(frozen=True)
class Piece:
    """A generated token (several, if the answer isn't streamed), and the text that may be shown now."""

    id: int
    tokens: tuple[int, ...]
    text: str  # "" while all of it is held back, for example because a stop string may have begun
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None  # if `Task.timings`


@record(frozen=True)
class Final:
    """The end of a task that succeeded. Counts are of tokens."""

    id: int
    id_slot: int  # -1: the task had no slot
    text: str  # text that was held back until now
    stop: str  # a STOP_*
    stopping_word: str  # the stop string, if `stop` is STOP_WORD
    n_prompt: int
    n_predicted: int
    n_cached: int  # in the slot's cache at the end
    truncated: bool  # tokens were dropped, or the text ended early, because the context was full
    timings: Timings
    n_reasoning: int = 0  # of `n_predicted`
    cache: CacheUse = field(default_factory=CacheUse)


@record(frozen=True)
class Embedded:
    """The answer to an `Embed`: vectors that aren't normalised. With the pooling "rank" they are scores of classes."""

    id: int
    pooling: str
    width: int  # numbers in a vector
    n_rows: tuple[int, ...]  # vectors of each input: 1, or one per token (pooling "none", or "mean" with files)
    vectors: bytes  # float32, in the machine's byte order
    n_tokens: int = 0  # tokens of inputs with files


@record(frozen=True)
class Failure:
    """The end of a task or `Embed` that failed, with the fields of an `ApiError`."""

    id: int
    status: int
    message: str
    type: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@record(frozen=True)
class Reply:
    """The answer to a `Command`."""

    id: int
    result: dict[str, Any]
    error: tuple[int, str] | None = None  # (status, message)


@record(frozen=True)
class SlotState:
    """One slot as `/slots` shows it. Counts are of tokens. All but `id`, `n_ctx` and `n_cached` is about the slot's
    latest task."""

    id: int
    id_task: int  # -1: no task yet
    is_processing: bool
    n_ctx: int  # the most that the slot may hold
    n_cached: int  # in its cache
    n_prompt: int
    n_prompt_done: int
    n_decoded: int
    n_remain: int
    has_next_token: bool
    stop: str
    stopping_word: str
    truncated: bool


@record(frozen=True)
class Snapshot:
    """The engine's state after a step. The fields after `n_ctx` are totals."""

    slots: tuple[SlotState, ...] = ()
    preparing: int | None = None  # the task whose files the thread `media` decodes
    n_deferred: int = 0  # tasks that wait for a slot (without background tasks) or for their files
    kv_used: int = 0  # cells of the KV cache in use
    n_ctx: int = 0  # cells of the KV cache
    n_steps: int = 0
    n_prompt_tokens: int = 0  # evaluated
    n_predicted_tokens: int = 0
    n_timed_tokens: int = 0  # the generated tokens that `predicted_ms` covers: all but the first of each answer
    n_reused_tokens: int = 0  # prompt tokens reused from the cache
    n_stalls: int = 0  # steps, or work on media, that delayed generating slots
    n_asides: int = 0  # times that a task waited in memory for room in the KV cache
    n_drafts: int = 0
    n_draft_tokens: int = 0
    n_draft_accepted: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    sampler_ms: float = 0.0
    n_restarts: int = 0  # the web process counts this and the next two
    n_replays: int = 0  # tasks continued by another engine
    n_suspects: int = 0  # tasks given up because engines died of them
    histograms: dict[str, tuple[float, ...]] = field(default_factory=dict)  # counts per bucket, then the sum of values

    @property
    def working(self) -> set[int]:
        """The ids of the tasks in slots or in preparation."""
        tasks = {slot.id_task for slot in self.slots if slot.is_processing}
        return tasks if self.preparing is None else tasks | {self.preparing}

    @property
    def n_processing(self) -> int:
        return sum(slot.is_processing for slot in self.slots)

    @property
    def n_idle(self) -> int:
        return len(self.slots) - self.n_processing


@record(frozen=True)
class ModelInfo:
    """Facts about the loaded model and its engine."""

    path: str
    desc: str = ""
    size: int = 0  # bytes of all tensors
    n_params: int = 0
    n_vocab: int = 0  # tokens
    n_ctx_train: int = 0  # tokens of the context that the model was trained with
    n_embd: int = 0  # numbers of an embedding
    n_ctx: int = 0  # tokens of the whole KV cache
    n_ctx_slot: int = 0  # the most tokens of one slot
    n_slots: int = 1
    n_batch: int = 0  # rows
    llama_version: str = ""
    variant: str = ""
    devices: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    bos_token: str = ""
    eos_token: str = ""
    eog_tokens: tuple[int, ...] = ()
    is_generative: bool = True  # False: the model only embeds
    pooling: str = "last"  # of embeddings
    classes: tuple[str, ...] = ()  # labels of a ranking model's scores, if it has any
    meta: dict[str, str] = field(default_factory=dict)
    vision: bool = False
    audio: bool = False


@record(frozen=True)
class Loading:
    """The model's weights are being read: `progress` from 0 to 1."""

    progress: float


@record(frozen=True)
class Ready:
    """The model is loaded; the engine takes tasks from now on."""

    info: ModelInfo


@record(frozen=True)
class LoadFailed:
    """The model can't be loaded."""

    message: str  # one line for the user
    is_refusal: bool = False  # another start would fail again


@record(frozen=True)
class Closed:
    """The engine has ended; no further message comes."""


@record(frozen=True)
class Starting:
    """The engine is about to work on the task or `Embed` with this `id`, and may die of it."""

    id: int


@record(frozen=True)
class Restarting:
    """The engine has died of `cause`. Another one goes on with the open tasks."""

    cause: str


Event = (
    Starting
    | Restarting
    | Progress
    | PromptProbs
    | Piece
    | Final
    | Embedded
    | Failure
    | Reply
    | Loading
    | Ready
    | LoadFailed
    | Closed
)


@record(frozen=True)
class Frame:
    """Events since the last frame."""

    events: tuple[Event, ...]
    snapshot: Snapshot | None = None  # None: not due

"""What crosses the seam between the web side and the engine: plain data, nothing else.

Every class here is made of ints, floats, strings, bytes, bools, None, tuples and dicts of those, so that the same
messages can travel through a queue (engine as a thread) or a pipe (engine as a process). A test walks the
annotations. Messages are not changed after they have been sent. Stdlib only; used on both sides.

Not taken: passing slots, futures or callbacks across; they would tie the engine to the web side's process.
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

# Other spellings seen in requests: llama.cpp's newer names and the long names of its command line.
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

# Upper bounds of the buckets of each histogram; one more bucket takes the rest.
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
    """What begins a call in visible text: the `text` anywhere (WORD), the `text` behind nothing but white space
    (START), the `token`, or what a regular expression matches, anywhere (PATTERN) or from the beginning on (FULL).

    `states` is the automaton of an expression, which begins in row 0. A row is (1 if a match may end here, else 0; then
    for each move the lowest character, the highest one, and the next row).
    """

    kind: str
    text: str = ""
    token: int = -1
    states: tuple[tuple[int, ...], ...] = ()


@record(frozen=True)
class Thinking:
    """How a model writes what it thinks before it answers: between the texts `open` and `close`, at the beginning of
    its answer. With `is_opened` the prompt ends with `open`, else the model may leave it out.

    `until` is a text that ends the thinking, too, and isn't part of it ("" for none): what a call begins with. With
    `comes_again` the model may think anywhere in its answer, behind `open`.

    `end_tokens` are a message and `close`. They are what the model says next once it has thought for `budget` tokens
    (-1 no limit), or wherever it is told to come to an end.
    """

    open: str
    close: str
    is_opened: bool = False
    budget: int = -1
    end_tokens: tuple[int, ...] = ()
    until: str = ""
    comes_again: bool = False


@record(frozen=True)
class SamplingParams:
    """Everything that shapes the choice of one token. Names and meanings are those of `/completion`.

    `seed` is never -1 here: the web side draws it, so that a replay of the request makes the same draws.
    `samplers` is the order of the truncating stages; `logit_bias` holds (token, bias), -inf bans the token.
    With `grammar_lazy` text is free until one of `grammar_triggers` is complete. From that trigger's first character on
    the grammar holds. Where the grammar isn't lazy, triggers only say where a call begins.
    """

    seed: int = 0
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
    penalty_prompt: tuple[int, ...] | None = None
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
    samplers: tuple[str, ...] = (
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
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    grammar: str = ""
    grammar_lazy: bool = False
    grammar_triggers: tuple[Trigger, ...] = ()


@record(frozen=True)
class Media:
    """A file in a prompt: `kind` is IMAGE or AUDIO, `hash` the SHA-256 of `data`, `where` its place in the request.

    What its header says: the size of an image, the length of a sound, and `n_bytes`, what decoding it takes (a PNG
    inflates to no more). 0 where nobody has read it.
    """

    kind: str
    data: bytes
    hash: str
    where: str
    n_bytes: int = 0
    width: int = 0
    height: int = 0
    seconds: float = 0.0


@record(frozen=True)
class Task:
    """One sequence to complete. `prompt` is token ids; `n_predict` -1 means until the end of the text.

    `n_keep` -1 keeps the whole prompt when the context is shifted. `id_slot` -1 takes any slot. `lora` None means the
    server's setting of adapters, else (adapter index, scale) pairs. Time limits in ms, 0 for none; that of `t_max_ms`
    runs from the task's arrival to its last token. `owner` says whose task it is, for fair shares: the id of an API
    key, else the client's address; of those that wait, tasks of higher `priority` go first. The limits of drafts
    (speculative decoding; `draft_n_max` 0 is none) are the server's where they are negative. With `progress` and
    `timings` the events carry those. Without `stream` nobody reads pieces before the end, and they may come late. A
    negative id in `prompt` stands for a file: -1 for the first of `media`, and so on. `resume` are tokens that an
    engine before this one has generated and delivered, in `resume_ms` ms: the task goes on behind them. `may_respell`:
    the prompt has text that the model wrote, and the tokens that it chose for it will do. With `prompt_probs` 0 or more
    the tokens of the prompt are judged, each with that many alternatives (`PromptProbs`); that needs `cache_prompt`
    False, unless only those from `probs_from` on are wanted. The tokens of `cuts` (first, behind the last; in order,
    apart from each other) are taken out of the cache once the first `cut_at` of the prompt are there. Those between
    stay as they were computed with them; those from `cut_at` on are computed without. The names of `preserved_tokens`
    are part of the text, though they are control tokens. With `reasoning` the model may think before it answers: its
    grammar, its triggers and its stop words are about what follows the thinking. Stop words end with the first trigger,
    too. With `ends_thinking` 0 or more it is told to come to an end behind that many tokens. With `only_counts` its
    files are prepared, and a `Final` says how many tokens the prompt has; nothing is computed.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    n_predict: int = -1
    n_keep: int = 0
    n_discard: int = 0
    stop: tuple[str, ...] = ()
    id_slot: int = -1
    cache_prompt: bool = True
    may_respell: bool = False
    progress: bool = False
    lora: tuple[tuple[int, float], ...] | None = None
    n_indent: int = 0
    t_max_prompt_ms: int = 0
    t_max_predict_ms: int = 0
    draft_n_max: int = -1
    draft_n_min: int = -1
    draft_p_min: float = -1.0
    timings: bool = False
    stream: bool = True
    prompt_probs: int = -1
    probs_from: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    cut_at: int = 0
    t_max_ms: int = 0
    owner: str = ""
    priority: int = 0
    media: tuple[Media, ...] = ()
    resume: tuple[int, ...] = ()
    resume_ms: float = 0.0
    preserved_tokens: tuple[int, ...] = ()
    reasoning: Thinking | None = None
    ends_thinking: int = -1
    only_counts: bool = False

    @property
    def in_background(self) -> bool:
        """Whether everybody else comes first."""
        return self.priority <= BACKGROUND


BACKGROUND = -101
"""The priority of what nobody waits for: lower than a request may choose. Such a task gets a part of the time beside
others', and gives its slot to one that finds none (a `Failure` with the reason `GAVE_WAY`: ask again)."""
GAVE_WAY = "gave_way"


# ---- web side -> engine ---------------------------------------------------------------------------------------


@record(frozen=True)
class Tasks:
    """All tasks of one request, so that they come into the queue with the same step: what a task's neighbours in a
    batch are can decide a near tie between two tokens. From then on each is a task like any other."""

    tasks: tuple[Task, ...]


@record(frozen=True)
class Cancel:
    """Task or command `id` isn't wanted any more: free its place in the queue or its slot. Unknown ids are ignored.

    Nobody waits for an answer, unless `finish` asks for a `Final` with what there is so far (stop `abort`).
    """

    id: int
    finish: bool = False


@record(frozen=True)
class Command:
    """Something else to do between two steps, by `name` with plain `args`; answered by one `Reply` with this `id`."""

    id: int
    name: str
    args: dict[str, Any]


@record(frozen=True)
class Close:
    """Take nothing new; running tasks may go on for `grace_s` seconds, then the engine ends."""

    grace_s: float


@record(frozen=True)
class Embed:
    """Vectors wanted of `inputs` (token ids each). Answered by one `Embedded` or a `Failure`.

    A negative id in an input stands for a file: -1 for the first of `media`, and so on. With `in_background` nobody
    waits for it, as with tasks of the priority `BACKGROUND`.
    """

    id: int
    inputs: tuple[tuple[int, ...], ...]
    owner: str = ""
    media: tuple[Media, ...] = ()
    in_background: bool = False


# ---- engine -> web side ---------------------------------------------------------------------------------------


@record(frozen=True)
class TokenProbs:
    """One generated token with alternatives.

    `prob` and `top` are probabilities after the sampling settings (what the 2024 documents describe), `logprob` and
    `top_logprobs` are of the model's own distribution. Pairs are (token id, value), most likely first.
    """

    token: int
    prob: float
    logprob: float
    top: tuple[tuple[int, float], ...]
    top_logprobs: tuple[tuple[int, float], ...]


@record(frozen=True)
class PromptProbs:
    """How likely the model finds the prompt's tokens from `start` on (never the first: nothing is before it).

    Only the numbers of the model's own distribution are given. The same may come twice, after a restart.
    """

    id: int
    start: int
    probs: tuple[TokenProbs, ...]


@record(frozen=True)
class Progress:
    """Prefill of task `id` has reached `n_processed` of `n_prompt` tokens, `n_cached` of them reused.

    `place` is that in the queue as long as the task waits (1 is the next one), and 0 from then on.
    """

    id: int
    n_prompt: int
    n_cached: int
    n_processed: int
    ms: float
    place: int = 0


@record(frozen=True)
class Timings:
    """The engine's own clock for one task, in milliseconds. `prompt_n` counts evaluated tokens, not reused ones.

    `draft_n` tokens were guessed (-1: nobody guesses here), and `draft_n_accepted` of those guesses were right.
    """

    cache_n: int
    prompt_n: int
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int = -1
    draft_n_accepted: int = 0


@record(frozen=True)
class Difference:
    """Where a prompt leaves a cached one: at token `position`. A few tokens each: what is right `before` that place in
    both, how the `prompt` goes on and how the `cached` one. `n_lost` of the prompt's tokens behind it are in the cached
    one, too, and had to be evaluated all the same. `at` is the place in the prompt of the task as it was sent, -1 if it
    is in the system prompt of all, or if the prompt was cut."""

    position: int
    before: tuple[int, ...]
    prompt: tuple[int, ...]
    cached: tuple[int, ...]
    n_lost: int = 0
    at: int = -1


@record(frozen=True)
class CacheUse:
    """Where the reused tokens of a prompt came from (a CACHE_*), and why not more.

    `reason` is for what is known and could not be reused all the same; "" if there is nothing of the kind.
    `first_difference` is from the cached text of the same owner that the prompt has most in common with; None if the
    prompt goes on where that one ends, or there is none.
    """

    source: str = CACHE_NONE
    reason: str = ""
    first_difference: Difference | None = None


@record(frozen=True)
class Piece:
    """A generated token and the text that is now safe to show (it can be "" while text is held back). Of several tokens
    that were guessed rightly each has a piece of its own.

    `timings` only if the task asks for them.
    """

    id: int
    tokens: tuple[int, ...]
    text: str
    probs: tuple[TokenProbs, ...] = ()
    timings: Timings | None = None


@record(frozen=True)
class Final:
    """The end of a task that went well. `text` is what had been held back and turned out to be no stop word.
    `n_reasoning` of its `n_predicted` tokens are the model's thinking."""

    id: int
    id_slot: int
    text: str
    stop: str
    stopping_word: str
    n_prompt: int
    n_predicted: int
    n_cached: int
    truncated: bool
    timings: Timings
    n_reasoning: int = 0
    cache: CacheUse = field(default_factory=CacheUse)


@record(frozen=True)
class Embedded:
    """The answer to an `Embed`: rows of `width` float32 numbers, machine's byte order, one behind the other.

    `n_rows` says how many belong to each input, in the order of the inputs: one, or one per token with the `pooling`
    "none". With "rank" a row holds the scores of the model's classes. Nothing is normalised. Inputs with files have one
    row per token with "mean", too: whoever asked takes their mean. `n_tokens` counts those inputs' tokens, 0 of others.
    """

    id: int
    pooling: str
    width: int
    n_rows: tuple[int, ...]
    vectors: bytes
    n_tokens: int = 0


@record(frozen=True)
class Failure:
    """The end of a task that went wrong: what an `ApiError` has, but for the headers."""

    id: int
    status: int
    message: str
    type: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


@record(frozen=True)
class Reply:
    """The answer to a `Command`: `result`, or `error` as (status, message)."""

    id: int
    result: dict[str, Any]
    error: tuple[int, str] | None = None


@record(frozen=True)
class SlotState:
    """One slot as `/slots` shows it. `id_task` is -1 before the first task; the rest is about the latest one."""

    id: int
    id_task: int
    is_processing: bool
    n_ctx: int
    n_cached: int
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
    """The engine's state after a step. Counters only grow; `kv_used` counts tokens held in the KV cache. `preparing` is
    the task whose files are being decoded beside the loop.

    `histograms` has for each name of HISTOGRAM_BOUNDS the counts per bucket and, last, the sum of all values.
    """

    slots: tuple[SlotState, ...] = ()
    preparing: int | None = None
    n_deferred: int = 0
    kv_used: int = 0
    n_ctx: int = 0
    n_steps: int = 0
    n_prompt_tokens: int = 0
    n_predicted_tokens: int = 0
    n_timed_tokens: int = 0
    n_reused_tokens: int = 0
    n_stalls: int = 0
    n_asides: int = 0
    n_drafts: int = 0
    n_draft_tokens: int = 0
    n_draft_accepted: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    sampler_ms: float = 0.0
    n_restarts: int = 0
    n_replays: int = 0
    n_suspects: int = 0
    histograms: dict[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def working(self) -> set[int]:
        """The tasks that are being worked on."""
        tasks = {slot.id_task for slot in self.slots if slot.is_processing}
        return tasks if self.preparing is None else tasks | {self.preparing}

    @property
    def n_processing(self) -> int:
        """How many slots work on a task."""
        return sum(slot.is_processing for slot in self.slots)

    @property
    def n_idle(self) -> int:
        """How many slots are free."""
        return len(self.slots) - self.n_processing


@record(frozen=True)
class ModelInfo:
    """What the engine knows about the loaded model. `n_ctx` is the whole KV cache, `n_ctx_slot` the most of it
    that a slot may have.

    `is_generative` is False for models that only embed. `pooling` is what embeddings are made with, `classes` are the
    labels of a ranking model's scores, where it has any.
    """

    path: str
    desc: str = ""
    size: int = 0
    n_params: int = 0
    n_vocab: int = 0
    n_ctx_train: int = 0
    n_embd: int = 0
    n_ctx: int = 0
    n_ctx_slot: int = 0
    n_slots: int = 1
    n_batch: int = 0
    llama_version: str = ""
    variant: str = ""
    devices: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    bos_token: str = ""
    eos_token: str = ""
    eog_tokens: tuple[int, ...] = ()
    is_generative: bool = True
    pooling: str = "last"
    classes: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)
    vision: bool = False
    audio: bool = False


@record(frozen=True)
class Loading:
    """The model is being read: `progress` from 0 to 1."""

    progress: float


@record(frozen=True)
class Ready:
    """The model is loaded and requests are served from now on."""

    info: ModelInfo


@record(frozen=True)
class LoadFailed:
    """The model can't be served; `message` is one line for the user. `is_refusal`: the same start would fail again."""

    message: str
    is_refusal: bool = False


@record(frozen=True)
class Closed:
    """The engine has ended; no further message comes."""


@record(frozen=True)
class Starting:
    """Task `id` is about to be started on a slot; told before, because the engine may die of it."""

    id: int


@record(frozen=True)
class Restarting:
    """The engine has died of `cause`; another one is being started, and will go on with the open tasks."""

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
    """All that one step has to tell, sent as one message; `snapshot` only when it says something new."""

    events: tuple[Event, ...]
    snapshot: Snapshot | None = None

"""A slot: one sequence of the KV cache, and the task that runs on it.

Engine thread only. A slot outlives its tasks, because the next one may reuse the tokens that they leave in the KV
cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from server.engine.seam.task import CACHE_NONE, STOP_NONE, CacheUse, Difference, SlotState, Task, Timings
from server.engine.slots.backend import TokenSampler
from server.engine.slots.media import Chunk, Layout
from server.engine.slots.phases import Phases
from server.engine.slots.self_extend import GroupAttention
from server.engine.slots.text import TextStream
from server.records import field, record, replace


class Drafts(Protocol):
    """What a slot reads of a task's speculative decoding, in tokens."""

    n_drafted: int
    n_accepted: int


@record(frozen=True, eq=False)
class Checkpoint:
    """A copy of the part of a sequence's state that can't be cut, made when the sequence held `n` tokens."""

    n: int
    state: bytearray | memoryview


@record(frozen=True, eq=False)
class Leader:
    """What a task waits for: `run`, on `slot`, is evaluating the `n` tokens that both prompts begin with."""

    slot: Slot
    run: Run
    n: int


@record(frozen=True, eq=False)
class Aside:
    """What a slot held when its task had to wait in memory. `state` has the bytes of its cells, None if it had none."""

    state: memoryview | None
    tokens: list[int]
    positions: GroupAttention | None
    shifted_at: int | None
    checkpoints: list[Checkpoint]


@record(eq=False)
class Run:
    """One running task. Times are in the clock's seconds unless a comment says otherwise."""

    task: Task
    prompt: list[int]  # with the system prompt; cut if it was too long
    sampler: TokenSampler
    text: TextStream
    t_arrived: float
    t_start: float  # when the task got its slot
    truncated: bool = False  # prompt or context were cut
    is_full: bool = False  # the context must be shifted before the next step
    is_last_in_line: bool = False  # once in memory, the task waits until it is the oldest
    n_cached: int = 0  # tokens of the prompt that were reused
    cache_source: str = CACHE_NONE  # this and the next two: see `CacheUse`
    cache_reason: str = ""
    first_difference: Difference | None = None
    leader: Leader | None = None
    n_decoded: int = 0  # tokens drawn
    next_token: int | None = None  # drawn but not evaluated; None during prefill
    drafting: Drafts | None = None
    draw_s: float = 0.0  # processor seconds of the latest step's draws
    draws_s: float = 0.0  # processor seconds of all draws
    t_first: float = 0.0  # of the first token; 0 before it
    t_last: float = 0.0  # of the latest token
    layout: Layout = field(default_factory=Layout)
    phases: Phases | None = None
    judged_from: int = 0  # probabilities are wanted of the prompt's tokens from here on (0: of all or none)
    cuts: tuple[tuple[int, int], ...] = ()  # parts [start, end) of the prompt, to be removed from the cache
    cut_at: int = 0  # the cuts are removed when so many tokens have been evaluated

    @property
    def n_reusable(self) -> int:
        """How many of the prompt's tokens may come from a cache: all but those evaluated for their logits."""
        n = self.layout.count_reusable(len(self.prompt))
        if self.cuts:
            return min(n, self.cut_at)
        return min(n, self.judged_from - 1) if self.judged_from else n

    @property
    def is_replaying(self) -> bool:
        """Whether the next token is known from a previous engine, see `loop.answers`."""
        return self.n_decoded < len(self.task.resume)

    def make_timings(self, n_read: int | None = None) -> Timings:
        """The task's counts and times so far. `n_read` is how many of the prompt's tokens are in the cache; None for
        all."""
        t_first = self.t_first or self.t_last or self.t_start
        n_drafted, n_accepted = (
            (-1, 0) if self.drafting is None else (self.drafting.n_drafted, self.drafting.n_accepted)
        )
        n_read = len(self.prompt) if n_read is None else n_read
        n_extra = self.layout.count_extra(self.n_cached) - self.layout.count_extra(n_read)
        n_prompt = n_read - self.n_cached + n_extra
        return Timings(
            self.n_cached,
            n_prompt,
            (t_first - self.t_start) * 1e3,
            self.n_decoded,
            max(self.t_last - t_first, 0.0) * 1e3,
            n_drafted,
            n_accepted,
        )

    def make_cache_use(self) -> CacheUse:
        """What came from the cache. A difference before `n_cached` isn't reported, because tokens behind it came from
        another owner's text."""
        difference = self.first_difference
        is_behind = difference is not None and difference.position >= self.n_cached
        return CacheUse(self.cache_source, self.cache_reason, difference if is_behind else None)


@record(eq=False)
class Slot:
    """A sequence of the cache and its books."""

    id: int
    seq: int  # its sequence in the KV cache
    n_ctx: int  # tokens that it can hold
    tokens: list[int] = field(default_factory=list)  # between two batches: those whose cells the sequence has
    lora: tuple[tuple[int, float], ...] = ()  # the adapters that `tokens` were computed with, as (index, scale)
    positions: GroupAttention | None = None  # with self-extend; else tokens are at positions 0, 1, ...
    is_sharing: bool = False  # some cells may belong to other sequences
    n_shared: int = 0  # tokens at its beginning whose cells may be shared
    n_shares: int = 0  # how often it took over another sequence's cells
    shifted_at: int | None = None  # after a context shift: from this token on, cells depend on tokens that were dropped
    checkpoints: list[Checkpoint] = field(default_factory=list)
    n_rows_used: float = 0  # the engine's count of evaluated rows at its latest use
    parked: list[int] = field(default_factory=list)  # tokens whose cells were moved to memory while it was idle
    owner: str | None = None  # whose text the tokens are; None if unknown
    state_copy: memoryview | None = None  # the system prompt in a split cache, which has no sequence for it
    aside: Aside | None = None  # while its task waits in memory for room
    run: Run | None = None
    t_used: float = 0.0  # end of its latest task, in the clock's seconds
    t_served: float = 0.0  # its latest turn with --exact, in the clock's seconds
    latest: SlotState | None = None  # its state at the end of its latest task

    def count_reusable(self, prompt: list[int]) -> int:
        """How many of the slot's first tokens `prompt` begins with and may reuse: none from `shifted_at` on."""
        n = count_common_prefix(self.tokens, prompt)
        return n if self.shifted_at is None else min(n, self.shifted_at)

    @property
    def next_pos(self) -> int:
        """The position of the next token to evaluate."""
        return len(self.tokens) if self.positions is None else self.positions.pos

    @property
    def pending(self) -> list[int]:
        """What this slot has to evaluate next: the rest of its prompt up to the next chunk, or the token drawn last."""
        run = self.run
        if run is None:
            return []
        if run.next_token is not None:
            return [run.next_token]
        n = len(self.tokens)
        return run.prompt[n : run.layout.find_next_start(n, len(run.prompt))] if run.layout.chunks else run.prompt[n:]

    @property
    def chunk(self) -> Chunk | None:
        """The chunk of an image or sound that comes next. `pending` is empty then."""
        return self.run.layout.chunks.get(len(self.tokens)) if self.run is not None else None

    def make_state(self, stop: str = STOP_NONE) -> SlotState:
        """The slot as clients may see it: its running task, else what its latest task left."""
        run = self.run
        if run is None and self.latest is not None:
            return replace(self.latest, n_cached=len(self.tokens or self.parked))
        if run is None:
            return SlotState(self.id, -1, False, self.n_ctx, 0, 0, 0, 0, -1, False, STOP_NONE, "", False)
        n_predict = run.task.n_predict
        n_cached = len(self.tokens if self.aside is None else self.aside.tokens)
        return SlotState(
            id=self.id,
            id_task=run.task.id,
            is_processing=stop == STOP_NONE,
            n_ctx=self.n_ctx,
            n_cached=n_cached,
            n_prompt=len(run.prompt),
            n_prompt_done=min(n_cached, len(run.prompt)),
            n_decoded=run.n_decoded,
            n_remain=-1 if n_predict < 0 else max(n_predict - run.n_decoded, 0),
            has_next_token=stop == STOP_NONE,
            stop=stop,
            stopping_word=run.text.stopping_word,
            truncated=run.truncated,
        )


def count_common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two lists or two tuples of tokens."""
    n, step = 0, 1024
    end = min(len(a), len(b))
    while step and n < end:
        if a[n : n + step] == b[n : n + step]:
            n += step
        else:
            step //= 2
    return min(n, end)

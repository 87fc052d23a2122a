"""A slot: one sequence of the KV cache, and the task that is being run on it.

Used by the engine's thread alone. A slot outlives its tasks, because the tokens they leave in the KV cache are what
the next task may reuse; all that belongs to one task is in its `Run`, which is dropped as a whole.
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
    """What speculative decoding keeps for a task, as far as a slot looks at it: tokens drafted, and those that held."""

    n_drafted: int
    n_accepted: int


@record(frozen=True, eq=False)
class Checkpoint:
    """A copy of what can't be cut of a sequence's state, when it held `n` tokens."""

    n: int
    state: bytearray | memoryview


@record(frozen=True, eq=False)
class Leader:
    """Whose computing a task waits for: the first `n` tokens that `run` is evaluating on `slot`."""

    slot: Slot
    run: Run
    n: int


@record(frozen=True, eq=False)
class Aside:
    """What a slot's sequence held when it had to make room for older tasks: `state` are the bytes of its cells, None if
    it had none. The other fields are the slot's of the same names."""

    state: memoryview | None
    tokens: list[int]
    positions: GroupAttention | None
    shifted_at: int | None
    checkpoints: list[Checkpoint]


@record(eq=False)
class Run:
    """One task in work. `prompt` may be shorter than the task's (cut to fit); times are clock seconds.

    The latest step's draws took the processor `draw_s`, all of them together `draws_s`. `is_full`: the context has to
    be shifted before the next step. `is_last_in_line`: if the task waits in memory, then until it is the oldest.
    `n_cached` tokens of the prompt were reused; `cache_source`, `cache_reason` and `first_difference` are what
    `CacheUse` has. Of the prompt, tokens from `judged_from` on are judged (0: all, or none); `cuts` are still to be
    taken out, once the first `cut_at` are there.
    """

    task: Task
    prompt: list[int]
    sampler: TokenSampler
    text: TextStream
    t_arrived: float
    t_start: float
    truncated: bool = False
    is_full: bool = False
    is_last_in_line: bool = False
    n_cached: int = 0
    cache_source: str = CACHE_NONE
    cache_reason: str = ""
    first_difference: Difference | None = None
    leader: Leader | None = None
    n_decoded: int = 0
    next_token: int | None = None
    drafting: Drafts | None = None
    draw_s: float = 0.0
    draws_s: float = 0.0
    t_first: float = 0.0
    t_last: float = 0.0
    layout: Layout = field(default_factory=Layout)
    phases: Phases | None = None
    judged_from: int = 0
    cuts: tuple[tuple[int, int], ...] = ()
    cut_at: int = 0

    @property
    def n_reusable(self) -> int:
        """How much of the prompt a cache can spare us: all but what has to be evaluated for its logits."""
        n = self.layout.reusable(len(self.prompt))
        if self.cuts:
            return min(n, self.cut_at)
        return min(n, self.judged_from - 1) if self.judged_from else n

    @property
    def is_replaying(self) -> bool:
        """Whether the next token is known from an engine before this one, see `loop.answers`."""
        return self.n_decoded < len(self.task.resume)

    def timings(self) -> Timings:
        """The task's times so far; a task without tokens has spent all of it on the prompt."""
        t_first = self.t_first or self.t_last or self.t_start
        n_drafted, n_accepted = (
            (-1, 0) if self.drafting is None else (self.drafting.n_drafted, self.drafting.n_accepted)
        )
        n_prompt = len(self.prompt) - self.n_cached + self.layout.n_extra(self.n_cached)
        return Timings(
            self.n_cached,
            n_prompt,
            (t_first - self.t_start) * 1e3,
            self.n_decoded,
            max(self.t_last - t_first, 0.0) * 1e3,
            n_drafted,
            n_accepted,
        )

    def cache_use(self) -> CacheUse:
        """What came from the cache. What differs in front of that came from somebody else's text."""
        difference = self.first_difference
        is_behind = difference is not None and difference.position >= self.n_cached
        return CacheUse(self.cache_source, self.cache_reason, difference if is_behind else None)


@record(eq=False)
class Slot:
    """`tokens` are those whose keys and values the cache holds for sequence `seq`, at most `n_ctx` of them.

    They are at positions 0, 1, ... unless `positions` folds them (self-extend). They were computed with the adapters
    of `lora`. With `is_sharing` some cells may belong to other sequences too, of the first `n_shared` tokens at most;
    `n_shares` counts how often it was given cells of another. After a context shift the cells from token `shifted_at`
    on aren't what the tokens alone would give (None: all are). The engine had evaluated `n_rows_used` rows when it was
    used last; tokens that were moved to memory since then are `parked`. `owner` is whose text the tokens are, None if
    nobody knows. What isn't a sequence of the cache at all has its `state_copy` (the system prompt of a split cache).
    While its task waits in memory for room, a slot holds no cells; what it held is `aside`.
    """

    id: int
    seq: int
    n_ctx: int
    tokens: list[int] = field(default_factory=list)
    lora: tuple[tuple[int, float], ...] = ()
    positions: GroupAttention | None = None
    is_sharing: bool = False
    n_shared: int = 0
    n_shares: int = 0
    shifted_at: int | None = None
    checkpoints: list[Checkpoint] = field(default_factory=list)
    n_rows_used: float = 0
    parked: list[int] = field(default_factory=list)
    owner: str | None = None
    state_copy: memoryview | None = None
    aside: Aside | None = None
    run: Run | None = None
    t_used: float = 0.0
    t_served: float = 0.0
    latest: SlotState | None = None

    def reusable(self, prompt: list[int]) -> int:
        """How many of its first tokens `prompt` begins with and may reuse: none from a shift on, since another prompt
        of these tokens would be answered otherwise."""
        n = common_prefix(self.tokens, prompt)
        return n if self.shifted_at is None else min(n, self.shifted_at)

    @property
    def next_pos(self) -> int:
        """The position of the next token to evaluate."""
        return len(self.tokens) if self.positions is None else self.positions.pos

    @property
    def pending(self) -> list[int]:
        """What this slot has to evaluate next: its prompt's rest up to the next chunk, or the token drawn last."""
        run = self.run
        if run is None:
            return []
        if run.next_token is not None:
            return [run.next_token]
        n = len(self.tokens)
        return run.prompt[n : run.layout.next_start(n, len(run.prompt))] if run.layout.chunks else run.prompt[n:]

    @property
    def chunk(self) -> Chunk | None:
        """The chunk of an image or a sound that comes next; `pending` is empty then."""
        return self.run.layout.chunks.get(len(self.tokens)) if self.run is not None else None

    def state(self, stop: str = STOP_NONE) -> SlotState:
        """The slot as the outside may see it: of the running task, else what the latest one left."""
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


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning of two lists or two tuples of tokens (blocks are compared, so most runs in C)."""
    n, step = 0, 1024
    end = min(len(a), len(b))
    while step and n < end:
        if a[n : n + step] == b[n : n + step]:
            n += step
        else:
            step //= 2
    return min(n, end)

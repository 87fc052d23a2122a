"""A scheduler over the fake backend, stepped by the test, so that nothing depends on time.

Runs in the test process. `Driver` steps on the test's own thread. `Driver.run` runs the server's loop on a thread of
its own, for what only the loop does (errors of a step, blocking, the end).
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.engine.loop.scheduler import Scheduler
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import (
    Cancel,
    Close,
    Command,
    Embed,
    Embedded,
    Failure,
    Final,
    Frame,
    Media,
    Piece,
    Progress,
    PromptProbs,
    Reply,
    SamplingParams,
    Snapshot,
    Starting,
    Task,
    Tasks,
)
from tests.fakes import EOS, PATIENCE_S, FakeBackend, letters, said_by

GREEDY = SamplingParams(temperature=0.0)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Outcome:
    """What one task was told."""

    pieces: list[Piece] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    judged: list[PromptProbs] = field(default_factory=list)
    ends: list[Final | Embedded | Failure] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        """All generated tokens but EOS."""
        return [token for piece in self.pieces for token in piece.tokens if token != EOS]

    @property
    def text(self) -> str:
        """The whole text, held back ends included."""
        return "".join(piece.text for piece in self.pieces) + (self.final.text if self.final else "")

    @property
    def final(self) -> Final | None:
        """The good end, if there was one."""
        return next((end for end in self.ends if isinstance(end, Final)), None)

    @property
    def failure(self) -> Failure | None:
        """The bad end, if there was one."""
        return next((end for end in self.ends if isinstance(end, Failure)), None)


class Driver:
    """Posts tasks, steps, and sorts the events by task. Every task may end once and say nothing afterwards."""

    def __init__(
        self,
        backend: FakeBackend | None = None,
        clock: Clock | None = None,
        work_clock: Clock | None = None,
        **config: object,
    ) -> None:
        self.backend = backend or FakeBackend()
        self.clock = clock or Clock()
        config = {"n_slots": self.backend.info.n_slots, **config}
        self.scheduler = Scheduler(
            self.backend, EngineConfig("fake.gguf", "", **config), self._take, self.clock, work_clock or Clock()
        )
        desk = self.scheduler._state.media
        desk._begin = desk._prepare_files  # at once, on this thread
        self.outcomes: dict[int, Outcome] = {}
        self.replies: dict[int, Reply] = {}
        self.snapshots: list[Snapshot] = []
        self.frames: list[Frame] = []
        self._n_posted = 0
        self._close_when_done = False

    # ---- in -----------------------------------------------------------------------------------------------------

    def post(self, prompt: str | Sequence[int], n_predict: int = 8, **fields: object) -> int:
        """Post a task; its id. A string is its bytes."""
        tokens = tuple(prompt.encode()) if isinstance(prompt, str) else tuple(prompt)
        task = Task(self._n_posted, tokens, **{"sampling": GREEDY, "n_predict": n_predict, **fields})
        self._n_posted += 1
        self.outcomes[task.id] = Outcome()
        self.scheduler.post(task)
        return task.id

    def post_together(self, *prompts: str, n_predict: int = 8, **fields: object) -> list[int]:
        """Post the tasks of one request; their ids."""
        ids = range(self._n_posted, self._n_posted + len(prompts))
        self._n_posted += len(prompts)
        self.outcomes |= {id_task: Outcome() for id_task in ids}
        self.scheduler.post(
            Tasks(
                tuple(
                    Task(id_task, tuple(prompt.encode()), **{"sampling": GREEDY, "n_predict": n_predict, **fields})
                    for id_task, prompt in zip(ids, prompts)
                )
            )
        )
        return list(ids)

    def embed(self, *inputs: str | Sequence[int], media: Sequence[Media] = ()) -> int:
        """Post a request for vectors; its id."""
        tokens = tuple(tuple(one.encode()) if isinstance(one, str) else tuple(one) for one in inputs)
        self._n_posted += 1
        self.outcomes[self._n_posted - 1] = Outcome()
        self.scheduler.post(Embed(self._n_posted - 1, tokens, media=tuple(media)))
        return self._n_posted - 1

    def command(self, name: str, **args: object) -> int:
        """Post a command; its id."""
        self._n_posted += 1
        self.scheduler.post(Command(self._n_posted - 1, name, args))
        return self._n_posted - 1

    def answer(self, name: str, **args: object) -> dict[str, object]:
        """Post a command and step until its answer, which must be a good one."""
        id_command = self.command(name, **args)
        self.step_until(lambda: id_command in self.replies)
        assert self.replies[id_command].error is None, self.replies[id_command]
        return self.replies[id_command].result

    def refusal(self, name: str, **args: object) -> tuple[int, str]:
        """Post a command and step until its refusal."""
        id_command = self.command(name, **args)
        self.step_until(lambda: id_command in self.replies)
        assert self.replies[id_command].error is not None, self.replies[id_command]
        return self.replies[id_command].error

    def cancel(self, id_task: int) -> None:
        """What the web side says when a client has gone."""
        self.scheduler.post(Cancel(id_task))

    def close(self, grace_s: float = 0.0) -> None:
        """Post the end."""
        self.scheduler.post(Close(grace_s))

    def step(self, n: int = 1) -> None:
        """Steps of the loop, each with its frame."""
        for _ in range(n):
            self.scheduler.step(block=False)
            self.scheduler._flush()

    def step_until(self, condition: Callable[[], object], limit: int = 5000) -> None:
        """Step until `condition()`; AssertionError after `limit` steps."""
        for _ in range(limit):
            if condition():
                return
            self.step()
        raise AssertionError(f"not reached within {limit} steps")

    def finish(self, limit: int = 20000) -> None:
        """Step until every task has ended."""
        self.step_until(lambda: not self.unfinished, limit)

    def run(self) -> None:
        """Run the product's own loop until every posted task has ended, then close it."""
        self._close_when_done = True
        thread = threading.Thread(target=self.scheduler.run, name="engine-under-test", daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), f"no answer for the tasks {self.unfinished}"

    # ---- out ----------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> list[int]:
        """Tasks without an end."""
        return [id_task for id_task, outcome in self.outcomes.items() if not outcome.ends]

    @property
    def snapshot(self) -> Snapshot:
        """The latest."""
        return self.snapshots[-1]

    def text(self, id_task: int) -> str:
        """The text of a task that must have ended well."""
        outcome = self.outcomes[id_task]
        assert outcome.final is not None, f"task {id_task}: {outcome.ends}"
        return outcome.text

    def rows(self, batch: int = -1) -> list[tuple[int, int, bool]]:
        """(sequence, rows, output) of each span of a batch."""
        return [(span.seq, len(span), span.output) for span in self.backend.batches[batch]]

    def is_clean(self) -> bool:
        """Everything idle, nothing waiting, no sampler left."""
        return (
            all(slot.run is None for slot in self.scheduler.slots)
            and self.snapshot.n_processing == 0
            and self.snapshot.n_deferred == 0
            and self.backend.n_samplers == 0
        )

    def _take(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.snapshot is not None:
            self.snapshots.append(frame.snapshot)
        for event in frame.events:
            if isinstance(event, Starting):
                continue
            if isinstance(event, Reply):
                self.replies[event.id] = event
                continue
            outcome = self.outcomes[event.id]
            assert not outcome.ends, f"task {event.id} was told {event} after its end"
            lists = {Piece: outcome.pieces, Progress: outcome.progress, PromptProbs: outcome.judged}
            lists.get(type(event), outcome.ends).append(event)
        if self._close_when_done and not self.unfinished:
            self.scheduler.post(Close(0.0))


class Traffic:
    """Random events on one engine, and what has to hold after each step. Subclasses say what is asked."""

    most_events: int

    def __init__(self, rng: random.Random, driver: Driver) -> None:
        self.rng = rng
        self.driver = driver
        self.asked: dict[int, object] = {}  # task id -> what the subclass needs to know of it
        self.cancelled: set[int] = set()

    def post(self) -> None:
        """Post a task and note it in `asked`."""
        raise AssertionError("a subclass has to say what is asked")

    def fail(self) -> None:
        """Have something go wrong soon."""
        raise AssertionError("a subclass has to say what fails")

    def disturb(self) -> None:
        """Post a command."""
        raise AssertionError("a subclass has to say what disturbs")

    def cancel(self) -> None:
        """Some client leaves, maybe after its end."""
        if self.asked:
            id_task = self.rng.choice(list(self.asked))
            self.cancelled.add(id_task)
            self.driver.cancel(id_task)

    def steps(self) -> None:
        """One or some, each of them checked."""
        for _ in range(self.rng.choice((1, 1, 3, 20))):
            self.driver.step()
            self.driver.clock.now += 0.01
            self.check()

    def run(self) -> None:
        """Some random events, then everything to its end."""
        events = (self.post,) * 8 + (self.steps,) * 10 + (self.cancel, self.fail, self.disturb)
        for _ in range(self.rng.randrange(20, self.most_events)):
            self.rng.choice(events)()
        self.driver.step_until(lambda: not set(self.driver.unfinished) - self.cancelled, 20000)
        self.driver.step(3)
        self.check()
        assert self.driver.is_clean()

    def check(self) -> None:
        """The slots hold what the cache holds, and only running tasks own samplers."""
        backend, slots = self.driver.backend, self.driver.scheduler.slots
        for slot in slots:
            assert backend.history(slot.seq) == slot.tokens
        assert backend.n_samplers == sum(slot.run is not None for slot in slots)


def alone(prompt: str | Sequence[int], n: int, reply: Callable[[Sequence[int]], int] = letters) -> str:
    """The text that the fake model gives to a prompt in an endless context."""
    tokens = list(prompt.encode()) if isinstance(prompt, str) else list(prompt)
    return bytes(token for token in said_by(reply, tokens, n) if token < 256).decode("utf-8", "replace")

"""What the web side has asked of the engine and not yet been answered: the book from which a new engine goes on.

Pure data, no thread and no pipe: `supervisor` holds a lock around every call. All that a replay needs is kept
here: each open task with the tokens it has delivered, and the settings that commands have changed.

Who is to blame for a death: the engine tells which tasks it works on before it computes. A task that was being
worked on when the engine died, and was again when the next one died, without a token in between, is suspected. When
engines have died so often that there would be no other, and nobody was at work, all tasks that the last one had are.
Suspects are replayed alone, one at a time, while all others wait; one that dies alone twice running has done it, and
fails for good. So an innocent neighbour never fails, and a death by chance (a kill, a full memory) costs nobody
anything as long as there is progress between two of them. Where engines die so often that chance must be at work (more
deaths within a window than it takes to find a culprit, and no culprit found), dying alone twice may be chance as well:
it takes a third time then.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from server.engine.seam.task import (
    Cancel,
    Command,
    Embed,
    Embedded,
    Event,
    Failure,
    Final,
    Frame,
    Piece,
    Reply,
    Snapshot,
    Starting,
    Task,
    Tasks,
)
from server.records import field, record, replace

STRIKES = 2
UNLUCKY_STRIKES = 3
"""Deaths alone that convict where others have died of something else lately."""
FOUND_AFTER = 2 * STRIKES
"""Deaths that it takes to find who brings the engine down: some together with others, some alone."""
WINDOW_S = 60.0
SETTINGS = ("set_lora", "system_prompt")
"""Commands whose effect has to outlive the engine: the latest of each is repeated after a restart."""
NO_COUNTERS = (
    "slots",
    "preparing",
    "n_deferred",
    "kv_used",
    "n_ctx",
    "histograms",
    "n_restarts",
    "n_replays",
    "n_suspects",
)
"""Fields of a snapshot that aren't summed up over the lives of engines."""


@record
class Entry:
    """An open task: what it was given so far, and how often the engine has died over it without progress."""

    task: Task | Embed
    t_posted: float
    tokens: list[int] = field(default_factory=list)
    lora: tuple[tuple[int, float], ...] | None = None
    ms: float = 0.0
    told_ms: float = 0.0  # what the client was told of that, by the engine's clock, which doesn't see the pipe
    t_first: float = 0.0
    t_last: float = 0.0
    strikes: int = 0  # deaths over it without progress between them
    n_alone: int = 0  # those of them when it was the only one
    is_sent: bool = False
    is_finishing: bool = False
    ends_thinking: int = -1  # behind so many tokens it was told to

    def on_piece(self, piece: Piece, now: float) -> None:
        """Some more tokens were delivered."""
        self.tokens += piece.tokens
        if piece.timings is not None:
            self.told_ms = piece.timings.predicted_ms
        self.t_first = self.t_first or now
        self.t_last = now

    def on_death(self) -> None:
        """Forget what was true of the dead engine."""
        self.is_sent = False
        self.ms = max(self.ms + (self.t_last - self.t_first) * 1e3, self.told_ms)
        self.t_first = self.t_last = 0.0

    def replay(self, now: float) -> Task | Embed:
        """The task as an engine gets it now. Vectors are computed anew."""
        task = self.task
        if isinstance(task, Embed):
            return task
        if task.t_max_ms > 0:
            task = replace(task, t_max_ms=max(task.t_max_ms - int((now - self.t_posted) * 1e3), 1))
        if self.ends_thinking >= 0:
            task = replace(task, ends_thinking=self.ends_thinking)
        if self.tokens:
            task = replace(
                task,
                resume=tuple(self.tokens),
                resume_ms=self.ms,
                lora=task.lora if task.lora is not None else self.lora,
            )
        return task


class Ledger:
    """The open tasks and commands. `post` and `ready` return what to send to the engine now, in order."""

    def __init__(self, lora: tuple[tuple[int, float], ...] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.n_restarts = self.n_replays = self.n_suspects = 0
        self.has_progressed = False  # since the last death
        self.has_suspects = False  # somebody can be blamed for it
        self._tasks: dict[int, Entry] = {}
        self._commands = OpenCommands()
        self._settings: dict[str, Command] = {}
        self._setting_up: set[int] = set()  # ids of repeated settings that the engine hasn't answered
        self._working: set[int] = set()
        self._to_start: set[int] = set()  # replayed tasks that aren't on a slot yet
        self._probation: list[int] = []  # suspects; only the first of them is with the engine
        self._is_ready = False
        self._lora = lora
        self._clock = clock
        self._base: Snapshot | None = None  # the sum of what earlier engines counted
        self._latest = Snapshot()
        self._n_delivered = 0  # tokens, by all engines
        self._unexplained: deque[float] = deque()  # times of deaths that no conviction explains

    # ---- from the web side --------------------------------------------------------------------------------------

    def post(self, message: object) -> list[Any]:
        """Note a message; it goes to the engine unless that must wait."""
        if isinstance(message, Cancel):
            return self._cancel(message)
        new: list[Entry] = []
        if isinstance(message, (Task, Embed)):
            new = [Entry(message, self._clock())]
        elif isinstance(message, Tasks):
            new = [Entry(task, self._clock()) for task in message.tasks]
        elif isinstance(message, Command):
            self._commands.add(message)
        self._tasks |= {entry.task.id: entry for entry in new}
        if not self._is_ready or self._probation:
            return []
        tasks = [to_send for entry in new for to_send in self._send(entry)]  # what came before has been sent
        return [*together(tasks), *self._release_commands()]

    def _cancel(self, message: Cancel) -> list[Any]:
        entry = self._tasks.get(message.id)
        if entry is None:
            return [message] if self._commands.withdraw(message.id) else []
        sent = [message] if entry.is_sent else []
        if message.finish:  # an answer is wanted, from this engine or the next one
            entry.is_finishing = True
            return sent
        del self._tasks[message.id]
        return [*sent, *self._on_started(message.id), *self._end_probation(message.id)]

    def refuse(self, message: Task | Embed | Command, reason: str) -> tuple[list[Event], list[Any]]:
        """What was to be sent can't be: its answer if anybody waits for it, and what to send instead."""
        if isinstance(message, Command):
            known = self._commands.answered(message.id) is not None
            return ([Reply(message.id, {}, (500, reason))] if known else []), []
        if self._tasks.pop(message.id, None) is None:
            return [], []
        return [Failure(message.id, 500, reason)], [*self._on_started(message.id), *self._end_probation(message.id)]

    # ---- from the engine ----------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> tuple[Frame, list[Any]]:
        """Note what a frame tells; the frame as the web side should see it, and what to send to the engine now."""
        to_send: list[Any] = []
        events: list[Event] = []
        for event in frame.events:
            if type(event) is Piece:
                self._on_piece(event, to_send)
            elif isinstance(event, Starting):
                self._working.add(event.id)
                to_send += self._on_started(event.id)
                continue
            elif isinstance(event, (Final, Embedded, Failure)):
                self._tasks.pop(event.id, None)
                self.has_progressed = True
                to_send += [*self._on_started(event.id), *self._end_probation(event.id)]
            elif isinstance(event, Reply):
                if event.id in self._setting_up:
                    to_send += self._on_set_up(event)
                    continue
                self._on_reply(event)
            events.append(event)
        if frame.snapshot is None:
            return (frame if len(events) == len(frame.events) else Frame(tuple(events))), to_send
        self._working = frame.snapshot.working
        self._latest = self._summed(frame.snapshot)
        return Frame(tuple(events), self._latest), to_send

    def _on_started(self, id_task: int) -> list[Command]:
        if id_task not in self._to_start:
            return []
        self._to_start.discard(id_task)
        return self._release_commands()

    def _on_piece(self, piece: Piece, to_send: list[Any]) -> None:
        entry = self._tasks.get(piece.id)
        if entry is None:
            return
        if not entry.tokens:
            entry.lora = self._lora
        entry.on_piece(piece, self._clock())
        self._n_delivered += len(piece.tokens)
        self.has_progressed = True
        if entry.strikes:
            entry.strikes = entry.n_alone = 0
            to_send += self._end_probation(piece.id)

    def _on_reply(self, reply: Reply) -> None:
        command = self._commands.answered(reply.id)
        if command is None or reply.error is not None:
            return
        if command.name == "end_thinking" and command.args["id_task"] in self._tasks:
            self._tasks[command.args["id_task"]].ends_thinking = reply.result["at"]
        if command.name in SETTINGS:
            self._settings[command.name] = command
        if command.name == "set_lora":
            self._lora = tuple(sorted((i, scale) for i, scale in command.args["scales"] if scale))

    def summary(self) -> str:
        """What the engine was doing, in one line."""
        working = ", ".join(
            f"{id_task} ({len(entry.tokens)} tokens, {entry.strikes} strikes)"
            for id_task, entry in self._tasks.items()
            if id_task in self._working
        )
        alone = f"; suspects, tried one by one: {self._probation}" if self._probation else ""
        return f"it was working on tasks {working or 'none'} of {len(self._tasks)}{alone}"

    # ---- death and resurrection ---------------------------------------------------------------------------------

    def died(self, cause: str, is_last: bool = False) -> list[Event]:
        """The engine is gone. The answers of what won't be tried again. `is_last`: there will be no other one unless
        somebody can be blamed."""
        working = self._blamed(is_last)
        self.has_suspects = bool(working)
        self._is_ready = False
        self._working = set()
        self._setting_up.clear()
        self._to_start.clear()
        self._base = replace(
            self._latest, n_predicted_tokens=max(self._latest.n_predicted_tokens, self._n_delivered)
        )  # a snapshot is up to 0.1 s old
        for entry in self._tasks.values():
            entry.on_death()
        for entry in working:
            entry.strikes = max(entry.strikes + 1, STRIKES if is_last else 0)
            entry.n_alone = entry.n_alone + 1 if len(working) == 1 else 0
        events: list[Event] = []
        n_strikes = self._n_strikes()
        if working and working[0].n_alone >= n_strikes:
            events.append(self._convict(working[0], cause))
        self._probation = [id_task for id_task, entry in self._tasks.items() if entry.strikes >= STRIKES]
        events += self._commands.died()
        self.has_progressed = bool(events)
        return events

    def _blamed(self, is_last: bool) -> list[Entry]:
        """Who was worked on. If the engine hasn't said: a suspect that it had alone; at the very last all it had."""
        working = [self._tasks[id_task] for id_task in sorted(self._working) if id_task in self._tasks]
        if not working and (self._probation or is_last):
            working = [entry for entry in self._tasks.values() if entry.is_sent]
        return working

    def _n_strikes(self) -> int:
        """How often a task has to die alone to be at fault. Counts this death."""
        now = self._clock()
        self._unexplained.append(now)
        while now - self._unexplained[0] > WINDOW_S:
            self._unexplained.popleft()
        return STRIKES if len(self._unexplained) <= FOUND_AFTER else UNLUCKY_STRIKES

    def _convict(self, entry: Entry, cause: str) -> Failure:
        self.n_suspects += 1
        for _ in range(min(entry.strikes, len(self._unexplained))):
            self._unexplained.pop()
        del self._tasks[entry.task.id]
        return Failure(
            entry.task.id,
            500,
            f"this request has brought the engine down {entry.strikes} times ({cause}); it is not tried again",
        )

    def ready(self) -> list[Any]:
        """A new engine is ready: first the settings, then (see `_on_set_up`) the tasks."""
        commands = [replace(command, id=-1 - i) for i, command in enumerate(self._settings.values())]
        self._setting_up = {command.id for command in commands}
        return commands or self._set_up()

    def _on_set_up(self, reply: Reply) -> list[Any]:
        self._setting_up.discard(reply.id)
        return [] if self._setting_up else self._set_up()

    def _set_up(self) -> list[Any]:
        self._is_ready = True
        if not self._probation:
            return self._release()
        return self._send(self._tasks[self._probation[0]])

    def _end_probation(self, id_task: int) -> list[Any]:
        """A suspect has made progress or is gone: the next one's turn, or all others'."""
        if id_task not in self._probation:
            return []
        was_first = self._probation[0] == id_task
        self._probation.remove(id_task)
        return self._set_up() if was_first and self._is_ready else []

    def _release(self) -> list[Any]:
        """Send everything that the engine hasn't got."""
        tasks = [message for entry in self._tasks.values() if not entry.is_sent for message in self._send(entry)]
        return [*tasks, *self._release_commands()]

    def _release_commands(self) -> list[Command]:
        """Commands wait for all replayed tasks to be started: a system prompt must not get in before them."""
        return [] if self._to_start or self._probation else self._commands.to_send()

    def _send(self, entry: Entry) -> list[Any]:
        entry.is_sent = True
        if entry.tokens:
            self.n_replays += 1
            self._to_start.add(entry.task.id)
        return [entry.replay(self._clock()), *([Cancel(entry.task.id, True)] if entry.is_finishing else [])]

    # ---- counters -----------------------------------------------------------------------------------------------

    def _summed(self, snapshot: Snapshot) -> Snapshot:
        """Counters only grow: this engine's on top of those of its predecessors."""
        base = self._base
        if base is None:
            return snapshot
        sums = {
            name: getattr(base, name) + getattr(snapshot, name)
            for name in Snapshot.__slots__  # type: ignore[attr-defined]
            if name not in NO_COUNTERS
        }
        histograms = {
            name: tuple(map(sum, zip(values, base.histograms.get(name) or (0,) * len(values))))
            for name, values in snapshot.histograms.items()
        }
        return replace(
            snapshot,
            **sums,
            histograms=histograms,
            n_restarts=self.n_restarts,
            n_replays=self.n_replays,
            n_suspects=self.n_suspects,
        )


def together(messages: list[Any]) -> list[Any]:
    """Tasks in one message, if they are all there is to send."""
    if len(messages) > 1 and all(isinstance(message, Task) for message in messages):
        return [Tasks(tuple(messages))]
    return messages


# ---- commands without an answer --------------------------------------------------------------------------------------

# Most commands may be done twice: they only read (the adapters), leave the state that they name (scales, system prompt,
# an empty slot), or begin from a file. The next engine is asked for those again, until it has died over them twice. A
# slot that is being saved is gone with the engine; a second try would write an empty one over the file, so the client
# that asked is told what happened.
MAX_DEATHS = 2
ONCE = {"save": "what the slot held is lost, and the file is the one from before or the whole new one"}
"""Commands that may not be repeated, and what to tell instead."""


@record
class _Open:
    """A command without an answer: whether this engine has it, and how many have died with it."""

    command: Command
    is_sent: bool = False
    n_deaths: int = 0


class OpenCommands:
    """In the order in which they were asked for."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def add(self, command: Command) -> None:
        """One more, not sent yet."""
        self._open[command.id] = _Open(command)

    def withdraw(self, id_command: int) -> bool:
        """Nobody waits for it any more; whether the engine has it."""
        one = self._open.pop(id_command, None)
        return one is not None and one.is_sent

    def answered(self, id_command: int) -> Command | None:
        """The command that a reply belongs to; it is done."""
        one = self._open.pop(id_command, None)
        return None if one is None else one.command

    def to_send(self) -> list[Command]:
        """What the engine hasn't got; from now on it has."""
        fresh = [one for one in self._open.values() if not one.is_sent]
        for one in fresh:
            one.is_sent = True
        return [one.command for one in fresh]

    def died(self) -> list[Reply]:
        """The engine is gone: answers to what is not repeated."""
        replies = []
        for one in [one for one in self._open.values() if one.is_sent]:
            one.is_sent = False
            one.n_deaths += 1
            name = one.command.name
            if name in ONCE:
                message = f"the engine died before it answered '{name}': {ONCE[name]}"
            elif one.n_deaths >= MAX_DEATHS:
                message = f"the engine died {one.n_deaths} times while '{name}' was under way; it is not tried again"
            else:
                continue
            del self._open[one.command.id]
            replies.append(Reply(one.command.id, {}, (500, message)))
        return replies

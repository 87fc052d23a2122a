"""What a new engine needs to go on where a dead one ended: the open tasks with their tokens, commands, settings.

Pure data, no thread and no pipe: `supervisor` holds a lock around the calls.

The ledger also finds the task that kills engines. Before an engine computes, it reports which tasks it works on. A task
that two engines in a row worked on when they died, without a token of it in between, is a suspect. If no further engine
would be started, one death is enough: all tasks that the last engine reported are suspects, or all its tasks if it
reported none. Suspects are replayed alone, one at a time, while all other tasks wait. If two engines in a row die while
they work on one task alone, it is at fault and fails. It takes three if more than `FOUND_AFTER` deaths within
`WINDOW_S` have no task at fault, because some must then have another cause.
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
"""Deaths in a row that make a task a suspect. As many with no other task at work put it at fault."""
UNLUCKY_STRIKES = 3
"""Deaths that put a task at fault if engines have died of something else lately."""
FOUND_AFTER = 2 * STRIKES
"""Deaths that are needed to find a task at fault: `STRIKES` with other tasks, and as many alone."""
WINDOW_S = 60.0  # seconds in which unexplained deaths are counted
SETTINGS = ("set_lora", "system_prompt")
"""Commands whose effect outlives the engine: the latest of each is repeated after a restart."""
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
"""Fields of a snapshot that aren't added to those of former engines (`histograms` are added separately)."""


@record
class Entry:
    """An open task and its history. Times are seconds of the ledger's clock."""

    task: Task | Embed
    t_posted: float
    tokens: list[int] = field(default_factory=list)  # delivered to the web process
    lora: tuple[tuple[int, float], ...] | None = None  # the server's adapters at the first token
    ms: float = 0.0  # time of generation with former engines
    told_ms: float = 0.0  # time of generation in the last timings sent to the client; by the engine's clock
    t_first: float = 0.0  # first token from this engine
    t_last: float = 0.0  # latest token
    strikes: int = 0  # engines in a row that died while they worked on it; a token of it resets this
    n_alone: int = 0  # how many of the latest of these worked on no other task
    is_sent: bool = False  # to the current engine
    is_finishing: bool = False  # a `Cancel` with `finish` was posted
    ends_thinking: int = -1  # the number of tokens after which a command ended its reasoning

    def on_piece(self, piece: Piece, now: float) -> None:
        self.tokens += piece.tokens
        if piece.timings is not None:
            self.told_ms = piece.timings.predicted_ms
        self.t_first = self.t_first or now
        self.t_last = now

    def on_death(self) -> None:
        """Reset what concerned the dead engine."""
        self.is_sent = False
        self.ms = max(self.ms + (self.t_last - self.t_first) * 1e3, self.told_ms)
        self.t_first = self.t_last = 0.0

    def replay(self, now: float) -> Task | Embed:
        """The task to send to an engine now, with the delivered tokens and the time that is left. An `Embed` is sent
        unchanged."""
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
    """The open tasks and commands, and the settings."""

    def __init__(self, lora: tuple[tuple[int, float], ...] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.n_restarts = self.n_replays = self.n_suspects = 0
        self.has_progressed = False  # a token or answer came since the last death, or that death failed a request
        self.has_suspects = False  # the last engine that died had tasks to blame
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
        self._base: Snapshot | None = None  # with the counters of all former engines
        self._latest = Snapshot()
        self._n_delivered = 0  # tokens of all engines
        self._unexplained: deque[float] = deque()  # times of deaths without a task at fault

    # ---- from the web process --------------------------------------------------------------------------------------

    def post(self, message: object) -> list[Any]:
        """Note a message. Returns the messages to send to the engine now: none while no engine is ready or a suspect is
        tried, except for a `Cancel`."""
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
        tasks = [to_send for entry in new for to_send in self._send(entry)]
        return [*_join_tasks(tasks), *self._release_commands()]

    def _cancel(self, message: Cancel) -> list[Any]:
        entry = self._tasks.get(message.id)
        if entry is None:
            return [message] if self._commands.withdraw(message.id) else []
        sent = [message] if entry.is_sent else []
        if message.finish:  # the task stays open until an engine has answered
            entry.is_finishing = True
            return sent
        del self._tasks[message.id]
        return [*sent, *self._on_started(message.id), *self._end_probation(message.id)]

    def refuse(self, message: Task | Embed | Command, reason: str) -> tuple[list[Event], list[Any]]:
        """Give up a message that can't be sent. Returns its answer (none if it was cancelled), and messages to send."""
        if isinstance(message, Command):
            known = self._commands.take_answered(message.id) is not None
            return ([Reply(message.id, {}, (500, reason))] if known else []), []
        if self._tasks.pop(message.id, None) is None:
            return [], []
        return [Failure(message.id, 500, reason)], [*self._on_started(message.id), *self._end_probation(message.id)]

    # ---- from the engine ----------------------------------------------------------------------------------------

    def take(self, frame: Frame) -> tuple[Frame, list[Any]]:
        """Note a frame. Returns the frame for the web process, and the messages to send."""
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
        self._latest = self._sum_counters(frame.snapshot)
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
        command = self._commands.take_answered(reply.id)
        if command is None or reply.error is not None:
            return
        if command.name == "end_thinking" and command.args["id_task"] in self._tasks:
            self._tasks[command.args["id_task"]].ends_thinking = reply.result["at"]
        if command.name in SETTINGS:
            self._settings[command.name] = command
        if command.name == "set_lora":
            self._lora = tuple(sorted((i, scale) for i, scale in command.args["scales"] if scale))

    def describe_tasks(self) -> str:
        """The tasks that the engine worked on, as a line for the log."""
        working = ", ".join(
            f"{id_task} ({len(entry.tokens)} tokens, {entry.strikes} strikes)"
            for id_task, entry in self._tasks.items()
            if id_task in self._working
        )
        alone = f"; suspects, tried one by one: {self._probation}" if self._probation else ""
        return f"it was working on tasks {working or 'none'} of {len(self._tasks)}{alone}"

    # ---- death and restart ---------------------------------------------------------------------------------------

    def note_death(self, cause: str, is_last: bool = False) -> list[Event]:
        """Note that the engine has died. Returns the answers for tasks and commands that won't be tried again.

        `is_last`: another engine is started only if there are suspects or such answers.
        """
        working = self._list_blamed(is_last)
        self.has_suspects = bool(working)
        self._is_ready = False
        self._working = set()
        self._setting_up.clear()
        self._to_start.clear()
        self._base = replace(
            self._latest, n_predicted_tokens=max(self._latest.n_predicted_tokens, self._n_delivered)
        )  # the snapshot is up to 0.1 s old, so it may lack tokens that were delivered
        for entry in self._tasks.values():
            entry.on_death()
        for entry in working:
            entry.strikes = max(entry.strikes + 1, STRIKES if is_last else 0)
            entry.n_alone = entry.n_alone + 1 if len(working) == 1 else 0
        events: list[Event] = []
        n_strikes = self._count_strikes()
        if working and working[0].n_alone >= n_strikes:
            events.append(self._convict(working[0], cause))
        self._probation = [id_task for id_task, entry in self._tasks.items() if entry.strikes >= STRIKES]
        events += self._commands.note_death()
        self.has_progressed = bool(events)
        return events

    def _list_blamed(self, is_last: bool) -> list[Entry]:
        """The tasks that the engine worked on. If it reported none: the suspect on trial; with `is_last` all tasks that
        were sent to it."""
        working = [self._tasks[id_task] for id_task in sorted(self._working) if id_task in self._tasks]
        if not working and (self._probation or is_last):
            working = [entry for entry in self._tasks.values() if entry.is_sent]
        return working

    def _count_strikes(self) -> int:
        """Count this death. Returns the number of deaths that put a task at fault if it was the engine's only task."""
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

    def note_ready(self) -> list[Any]:
        """Note that an engine is ready. Returns the settings to send; when they are answered, `_on_set_up` returns the
        tasks. Without settings, returns the tasks."""
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
        """The task isn't a suspect any more. If it was on trial, returns what to send: the next suspect, or the other
        tasks and commands."""
        if id_task not in self._probation:
            return []
        was_first = self._probation[0] == id_task
        self._probation.remove(id_task)
        return self._set_up() if was_first and self._is_ready else []

    def _release(self) -> list[Any]:
        tasks = [message for entry in self._tasks.values() if not entry.is_sent for message in self._send(entry)]
        return [*tasks, *self._release_commands()]

    def _release_commands(self) -> list[Command]:
        """The unsent commands; none while a suspect is tried or a replayed task hasn't started, because a new system
        prompt must not affect such a task."""
        return [] if self._to_start or self._probation else self._commands.to_send()

    def _send(self, entry: Entry) -> list[Any]:
        entry.is_sent = True
        if entry.tokens:
            self.n_replays += 1
            self._to_start.add(entry.task.id)
        return [entry.replay(self._clock()), *([Cancel(entry.task.id, True)] if entry.is_finishing else [])]

    # ---- counters -----------------------------------------------------------------------------------------------

    def _sum_counters(self, snapshot: Snapshot) -> Snapshot:
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


def _join_tasks(messages: list[Any]) -> list[Any]:
    if len(messages) > 1 and all(isinstance(message, Task) for message in messages):
        return [Tasks(tuple(messages))]
    return messages


# ---- commands without an answer --------------------------------------------------------------------------------------

# Most commands may be repeated: they only read (the adapters), set a state (scales, system prompt, an empty slot), or
# restore a slot from a file. The next engine gets such a command again, unless `MAX_DEATHS` engines have died with it.
# Saving a slot is not repeated: the slot's contents are gone with the engine, and the next one would overwrite the file
# with an empty slot.
MAX_DEATHS = 2
ONCE = {"save": "the slot's contents are lost; the file is either unchanged or complete"}
"""Commands that are not repeated, with the end of their error message."""


@record
class _Open:
    """A command without an answer."""

    command: Command
    is_sent: bool = False  # to this engine
    n_deaths: int = 0  # engines that died before they answered it


class OpenCommands:
    """The commands without an answer, in the order in which they came."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def add(self, command: Command) -> None:
        self._open[command.id] = _Open(command)

    def withdraw(self, id_command: int) -> bool:
        """Drop a command. Returns whether the engine has got it."""
        one = self._open.pop(id_command, None)
        return one is not None and one.is_sent

    def take_answered(self, id_command: int) -> Command | None:
        """Remove the command with this id and return it; None if it was dropped."""
        one = self._open.pop(id_command, None)
        return None if one is None else one.command

    def to_send(self) -> list[Command]:
        """The unsent commands, which count as sent from now on."""
        fresh = [one for one in self._open.values() if not one.is_sent]
        for one in fresh:
            one.is_sent = True
        return [one.command for one in fresh]

    def note_death(self) -> list[Reply]:
        """Note that the engine has died. Returns error replies for commands that are not repeated."""
        replies = []
        for one in [one for one in self._open.values() if one.is_sent]:
            one.is_sent = False
            one.n_deaths += 1
            name = one.command.name
            if name in ONCE:
                message = f"the engine died before it answered '{name}': {ONCE[name]}"
            elif one.n_deaths >= MAX_DEATHS:
                message = f"the engine died {one.n_deaths} times while it did '{name}'; it is not tried again"
            else:
                continue
            del self._open[one.command.id]
            replies.append(Reply(one.command.id, {}, (500, message)))
        return replies

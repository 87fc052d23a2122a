"""The commands that the engine has not answered yet, and what becomes of them when it dies.

Pure data, part of the supervisor's ledger and under its lock. Most commands may be done twice: they only read (the
adapters), leave the state that they name (scales, system prompt, an empty slot), or begin from a file. Those are asked
of the next engine, until it has died over them twice. A slot that is being saved is gone with the engine; a second try
would write an empty one over the file, so who asked is told what happened.
"""

from __future__ import annotations

from server.engine.seam.task import Command, Reply
from server.records import record

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

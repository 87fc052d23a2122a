"""An invented session of an agent that reads a small program, fixes a bug and adds a feature.

Data; imports only the standard library. Each of the ten steps is an answer of the model (some sentences and a tool
call) and the tool's result; the last is an answer alone. As with real agents, files are shown, edited and rewritten.
Much of an answer thus repeats the prompt, inside JSON with escaped line ends.

Way not taken: the log of a real session, which would contain a user's data.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Step(NamedTuple):
    """An answer of the model, and the result of its tool call."""

    answer: str
    result: str


SYSTEM = """You work on a program in a folder on the user's machine. Use the tools; look before you change anything, and
run the tests when you have. Answer with a short sentence and one call of a tool, written as
<tool_call>{"name": NAME, "arguments": {...}}</tool_call>. When the work is done, say what you did and show what is new.

Tools:
{"name": "list_files", "description": "Names and sizes of all files in a folder.", "parameters": {"folder": "string"}}
{"name": "read_file", "description": "The whole text of a file.", "parameters": {"path": "string"}}
{"name": "edit_file", "description": "Put one piece of text in the place of another, which must occur once.",
 "parameters": {"path": "string", "old": "string", "new": "string"}}
{"name": "write_file", "description": "Write a file as a whole.",
 "parameters": {"path": "string", "content": "string"}}
{"name": "run", "description": "Run a command in the folder, and show what it prints.",
 "parameters": {"command": "string"}}"""

TASK = """Our village hall keeps its bookings with the program in this folder. Two parties that end and begin at the
same minute are refused, which is wrong: the room is free again at the end. Please mend that. And the treasurer would
like to know how many hours each group had the hall in a month."""

HALL = '''"""Bookings of the village hall: who has it, from when to when."""

from dataclasses import dataclass
from datetime import datetime, timedelta

OPENS, CLOSES = 8, 23


class BookingError(Exception):
    """Why a booking can't be made."""


@dataclass(frozen=True)
class Booking:
    """One group has the hall from `start` to `end`."""

    group: str
    start: datetime
    end: datetime

    def overlaps(self, other: "Booking") -> bool:
        """Whether both want the hall at the same time."""
        return self.start <= other.end and other.start <= self.end

    @property
    def hours(self) -> float:
        """How long the hall is taken."""
        return (self.end - self.start) / timedelta(hours=1)


class Calendar:
    """All bookings of one hall, in the order of their start."""

    def __init__(self) -> None:
        self._bookings: list[Booking] = []

    def __len__(self) -> int:
        return len(self._bookings)

    def book(self, group: str, start: datetime, end: datetime) -> Booking:
        """Take the hall for a group, or say why that can't be."""
        if not group.strip():
            raise BookingError("a booking needs the name of a group")
        if end <= start:
            raise BookingError("a booking ends after it starts")
        if start.hour < OPENS or end.hour > CLOSES:
            raise BookingError(f"the hall is open from {OPENS} to {CLOSES}")
        booking = Booking(group.strip(), start, end)
        for other in self._bookings:
            if booking.overlaps(other):
                raise BookingError(f"{other.group} has the hall then")
        self._bookings.append(booking)
        self._bookings.sort(key=lambda one: one.start)
        return booking

    def cancel(self, booking: Booking) -> None:
        """Give the hall back."""
        if booking not in self._bookings:
            raise BookingError("there is no such booking")
        self._bookings.remove(booking)

    def on(self, day: datetime) -> list[Booking]:
        """The bookings that start on a day."""
        return [one for one in self._bookings if one.start.date() == day.date()]
'''

TESTS = """from datetime import datetime

import pytest

from hall import BookingError, Calendar


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2025, 3, 14, hour, minute)


def test_a_free_hall_is_booked():
    calendar = Calendar()
    booking = calendar.book("Choir", at(18), at(20))
    assert len(calendar) == 1 and booking.hours == 2.0


def test_a_taken_hall_is_refused():
    calendar = Calendar()
    calendar.book("Choir", at(18), at(20))
    with pytest.raises(BookingError, match="Choir has the hall then"):
        calendar.book("Chess club", at(19), at(21))


def test_one_party_follows_another():
    calendar = Calendar()
    calendar.book("Choir", at(18), at(20))
    calendar.book("Chess club", at(20), at(22))
    assert [one.group for one in calendar.on(at(8))] == ["Choir", "Chess club"]


def test_a_cancelled_booking_leaves_the_hall_free():
    calendar = Calendar()
    booking = calendar.book("Choir", at(18), at(20))
    calendar.cancel(booking)
    assert len(calendar) == 0
    calendar.book("Chess club", at(19), at(21))
"""

MEANT = '''        """Whether both want the hall at the same time."""
        return self.start <= other.end and other.start <= self.end
'''
MENDED = '''        """Whether both want the hall at the same time; it is free again in the minute in which one ends."""
        return self.start < other.end and other.start < self.end
'''
LATE = """        if start.hour < OPENS or end.hour > CLOSES:
            raise BookingError(f"the hall is open from {OPENS} to {CLOSES}")
"""
IN_TIME = """        if start.hour < OPENS or end > start.replace(hour=CLOSES, minute=0):
            raise BookingError(f"the hall is open from {OPENS} to {CLOSES}")
"""
HOURS = '''
    def hours(self, year: int, month: int) -> dict[str, float]:
        """How many hours each group has the hall in a month, the busiest group first."""
        hours: dict[str, float] = {}
        for one in self._bookings:
            if (one.start.year, one.start.month) == (year, month):
                hours[one.group] = hours.get(one.group, 0.0) + one.hours
        return dict(sorted(hours.items(), key=lambda pair: -pair[1]))
'''
MORE_TESTS = """

def test_nobody_stays_after_the_hall_is_closed():
    calendar = Calendar()
    with pytest.raises(BookingError, match="the hall is open from 8 to 23"):
        calendar.book("Choir", at(22), at(23, 30))
    calendar.book("Choir", at(22), at(23))


def test_the_hours_of_a_month_are_added_up_for_each_group():
    calendar = Calendar()
    calendar.book("Choir", at(18), at(20))
    calendar.book("Chess club", at(20), at(21, 30))
    calendar.book("Choir", at(10), at(11))
    assert calendar.hours(2025, 3) == {"Choir": 3.0, "Chess club": 1.5}
    assert calendar.hours(2025, 4) == {}
"""
HALL_2 = HALL.replace(MEANT, MENDED)
HALL_3 = HALL_2.replace(LATE, IN_TIME) + HOURS
TESTS_2 = TESTS + MORE_TESTS

LISTING = "README.md 412\nhall.py 2105\ntests/test_hall.py 1240\n"
RED = """....F
=================================== FAILURES ===================================
______________________ test_one_party_follows_another __________________________
    def test_one_party_follows_another():
        calendar = Calendar()
        calendar.book("Choir", at(18), at(20))
>       calendar.book("Chess club", at(20), at(22))
tests/test_hall.py:27:
        for other in self._bookings:
            if booking.overlaps(other):
>               raise BookingError(f"{other.group} has the hall then")
E               hall.BookingError: Choir has the hall then
hall.py:53: BookingError
1 failed, 3 passed in 0.03s
"""


def call(name: str, **arguments: str) -> str:
    """A tool call as the model writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


STEPS = (
    Step("I will see what is in the folder first.\n" + call("list_files", folder="."), LISTING),
    Step("The program is in one file. Let me read it.\n" + call("read_file", path="hall.py"), HALL),
    Step("Now its tests, to see what they expect.\n" + call("read_file", path="tests/test_hall.py"), TESTS),
    Step("There is a test of just this. Does it fail?\n" + call("run", command="python -m pytest -q"), RED),
    Step(
        "It does. `overlaps` counts the last minute of a booking as taken, since it compares with <=. Both have to be "
        "strict.\n" + call("edit_file", path="hall.py", old=MEANT, new=MENDED),
        'hall.py: 1 place changed. It now reads:\n    def overlaps(self, other: "Booking") -> bool:\n' + MENDED,
    ),
    Step("Let me run the tests again.\n" + call("run", command="python -m pytest -q"), "....\n4 passed in 0.02s\n"),
    Step(
        "That is mended. While I am here: a booking until half past eleven isn't refused, because only the hour is "
        "looked at. I write the file with that corrected and with the hours of each group at the end.\n"
        + call("write_file", path="hall.py", content=HALL_3),
        "hall.py: 2611 bytes written\n",
    ),
    Step(
        "And tests for both.\n" + call("write_file", path="tests/test_hall.py", content=TESTS_2),
        "tests/test_hall.py: 1911 bytes written\n",
    ),
    Step("All tests once more.\n" + call("run", command="python -m pytest -q"), "......\n6 passed in 0.03s\n"),
    Step(
        "All six tests pass. Two parties may now follow each other without a gap: `overlaps` compares strictly.\n\n"
        "```python\n"
        '    def overlaps(self, other: "Booking") -> bool:\n'
        + MENDED
        + "```\n\nA booking that goes on after eleven in the "
        "evening is refused, also by minutes. For the treasurer there is `Calendar.hours`:\n\n```python"
        + HOURS
        + "```\n\nFor the month of March, ask `calendar.hours(2025, 3)`.",
        "",
    ),
)


def turn(role: str, text: str) -> str:
    """A message in ChatML."""
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def make_prompts(n_steps: int = len(STEPS)) -> list[tuple[str, str]]:
    """(prompt, answer) of each step; a prompt contains all earlier steps."""
    said = turn("system", SYSTEM) + turn("user", TASK)
    pairs = []
    for step in STEPS[:n_steps]:
        pairs.append((said + "<|im_start|>assistant\n", step.answer))
        said += turn("assistant", step.answer) + turn("tool", step.result)
    return pairs

"""The limits of one rendering, and the counter that enforces them.

A `Run` belongs to one `render` call on one thread. The interpreter counts what can repeat (loop items, macro calls,
items of lazy sequences) and operations on large values. Not taken: a watchdog thread, which can't stop Python code in
another thread.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from server.records import record

from .errors import TemplateLimitError

LARGE_TEXT = 4096  # characters; only longer texts are counted
TEXT_PER_STEP = 256  # characters of a large text per step
ITEMS_PER_STEP = 16  # items per step, of a sequence that is made at once
STEPS_PER_LOOK = 32  # steps from one look at the clock to the next


@record(frozen=True)
class Limits:
    """What one rendering may use.

    `steps`: loop items, macro calls, lazily made items, each 256 characters of a large text, each 16 items of a list.
    `depth`: levels of nested macros and recursive loops, and of nested values. `output`: characters printed, also into
    captured blocks. `text`: characters of one string. `items`: items of one list. `bits`: bits of one integer.
    `seconds`: wall time.
    """

    steps: int = 1_000_000
    depth: int = 100
    output: int = 32_000_000
    text: int = 16_000_000
    items: int = 1_000_000
    bits: int = 14_000
    seconds: float = 10.0


class Run:
    """The state of one rendering: what is left of the limits, and the tables that the template may use."""

    __slots__ = ("limits", "steps", "output", "depth", "deadline", "variables", "filters", "tests", "mutable")

    def __init__(self, limits: Limits, filters: Mapping[str, Any], tests: Mapping[str, Any], mutable: bool) -> None:
        self.variables: Mapping[str, Any] = {}  # the context with the globals
        self.limits = limits
        self.steps = limits.steps
        self.output = limits.output
        self.depth = 0
        self.deadline = time.monotonic() + limits.seconds
        self.filters = filters
        self.tests = tests
        self.mutable = mutable

    def tick(self) -> None:
        self.steps -= 1
        if not self.steps % STEPS_PER_LOOK:
            self._look()

    def spend(self, steps: int) -> None:
        self.steps -= steps
        self._look()

    def _look(self) -> None:
        if self.steps <= 0:
            raise TemplateLimitError(f"the template takes more than {self.limits.steps} steps")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"the template takes longer than {self.limits.seconds:g} s")

    def count_text(self, length: int) -> None:
        """Count a string of `length` characters, if possible before it is made."""
        if length > LARGE_TEXT:
            if length > self.limits.text:
                raise TemplateLimitError(f"a text would be longer than {self.limits.text} characters")
            self.spend(length // TEXT_PER_STEP)

    def count_items(self, count: int) -> None:
        """Count a sequence of `count` items that are made at once."""
        if count > ITEMS_PER_STEP:
            if count > self.limits.items:
                raise TemplateLimitError(f"a list would have more than {self.limits.items} items")
            self.spend(count // ITEMS_PER_STEP)

    def count_printed(self, length: int) -> None:
        self.output -= length
        if self.output < 0:
            raise TemplateLimitError(f"the template prints more than {self.limits.output} characters")

    def enter(self) -> None:
        """Count one more level of macros or recursive loops; `leave` undoes it."""
        self.depth += 1
        if self.depth > self.limits.depth:
            raise TemplateLimitError(f"macros or loops are nested more than {self.limits.depth} deep")
        self.tick()

    def leave(self) -> None:
        self.depth -= 1

"""What both halves of the compiler share: frames, and where in the template a node stands.

Pure data, any thread. The compiler turns each node into a Python closure that takes a frame. A frame is a
list: the `Run`, the list that collects output, the frame of the enclosing function, then the variables that
`scopes` numbered. The closures hold no state, so one compiled template serves many threads. Way not taken:
generating Python source as jinja2 does, which is faster and turns every slip in quoting into code execution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.records import record, replace

from .lexer import Source
from .scopes import Function, Scope, Slot
from .values import MISSING

RUN, OUT, PARENT = 0, 1, 2

Frame = list
Evaluate = Callable[[Frame], Any]
Execute = Callable[[Frame], "str | None"]  # gives "break" or "continue" when a loop is to be left


@record(frozen=True)
class Place:
    """Where a node stands.

    `soft`: directly inside an `if`, where unknown filters are an error only when reached. `in_loop`: may it
    `break`? `captured`: index of the variable with the text that a filter without a value applies to.
    """

    source: Source
    filters: Mapping[str, Any]
    tests: Mapping[str, Any]
    scope: Scope
    soft: bool = False
    in_loop: bool = False
    captured: int = 0

    def softer(self) -> Place:
        """The same, inside an `if`."""
        return replace(self, soft=True)

    def inner(self, scope: Scope, in_loop: bool, captured: int = 0) -> Place:
        """Inside a block with its own scope."""
        return replace(self, scope=scope, soft=False, in_loop=in_loop, captured=captured)

    def hops(self, slot: Slot) -> int:
        """How many frames out the variable's frame is."""
        count = 0
        function: Function | None = self.scope.function
        while function is not slot.function:
            function = function.parent
            count += 1
        return count


def new_frame(parent: Frame, function: Function) -> Frame:
    """A frame for a function that is called from inside `parent`'s."""
    return [parent[RUN], [], parent, *[MISSING] * len(function)]


def outer_frame(frame: Frame, hops: int) -> Frame:
    """The frame that many functions further out."""
    for _ in range(hops):
        frame = frame[PARENT]
    return frame

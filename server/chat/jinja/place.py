"""What `evaluate` and `execute`, the two halves of the compiler, share: frames, and the place of a node.

Pure data, any thread. The compiler turns each node into a Python closure that takes a frame. A frame is a list: the
`Run`, the list that collects output, the frame of the enclosing function, then the variables that `scopes` numbered.
The closures have no state, so one compiled template serves many threads. Not taken: generating Python source, as jinja2
does; an error in quoting would let templates execute code.
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
Execute = Callable[[Frame], "str | None"]  # returns "break" or "continue", or None to go on


@record(frozen=True)
class Place:
    """The surroundings of a node.

    `soft`: the node is directly inside an `if`, where an unknown filter or test is an error only when it is reached.
    `in_loop`: the node may `break`. `captured`: for a filter without a value, the index of the variable that it reads.
    """

    source: Source
    filters: Mapping[str, Any]
    tests: Mapping[str, Any]
    scope: Scope
    soft: bool = False
    in_loop: bool = False
    captured: int = 0

    def soften(self) -> Place:
        """The same place, but inside an `if`."""
        return replace(self, soft=True)

    def make_inner(self, scope: Scope, in_loop: bool, captured: int = 0) -> Place:
        return replace(self, scope=scope, soft=False, in_loop=in_loop, captured=captured)

    def count_hops(self, slot: Slot) -> int:
        """How many frames further out the frame of a variable is."""
        count = 0
        function: Function | None = self.scope.function
        while function is not slot.function:
            function = function.parent
            count += 1
        return count


def make_frame(parent: Frame, function: Function) -> Frame:
    """A frame for a function inside the function that `parent` belongs to."""
    return [parent[RUN], [], parent, *[MISSING] * len(function)]


def get_outer_frame(frame: Frame, hops: int) -> Frame:
    for _ in range(hops):
        frame = frame[PARENT]
    return frame

"""The queue of waiting tasks, shared fairly between owners. Engine thread; no clock, no backend.

Tasks of a higher `priority` go first. Owners of one priority take turns by deficit round robin: a turn is worth
`QUANTUM` tokens, and a task costs the tokens of its prompt plus a fixed number for its answer. Tasks of one owner and
priority go in order of arrival. Every `OLDEST_EVERY`th `pop` takes the oldest task that isn't in the background. So a
task of low priority doesn't wait for ever.

Tasks that can't run now (their slot is busy) are skipped and keep their place.

Not taken: shares by past use. They would punish an owner for using an idle server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from server.engine.seam.task import Task
from server.records import field, record

QUANTUM = 256  # tokens that an owner's turn is worth
COST_OF_ANSWER = 256  # tokens that a task costs besides its prompt
OLDEST_EVERY = 8  # one in so many `pop`s takes the oldest task


@record(frozen=True, eq=False)
class Waiting:
    """A task in the queue, and its time of arrival in the clock's seconds."""

    task: Task
    t_arrived: float

    @property
    def cost(self) -> int:
        """The tokens that the task takes from its owner's turns."""
        return len(self.task.prompt) + COST_OF_ANSWER


@record
class Line:
    """The waiting tasks of one owner, by id in order of arrival."""

    waiting: dict[int, Waiting] = field(default_factory=dict)
    deficit: int = 0  # tokens left of the owner's turns

    def find_first(self, can_run: Callable[[Task], bool]) -> Waiting | None:
        return next((waiting for waiting in self.waiting.values() if can_run(waiting.task)), None)


class Level:
    """All owners with tasks of one priority, in the order of their turns."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}
        self._turns: deque[str] = deque()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def push(self, waiting: Waiting) -> None:
        """Put a task behind the others of its owner."""
        owner = waiting.task.owner
        if owner not in self._lines:
            self._lines[owner] = Line()
            self._turns.append(owner)
        self._lines[owner].waiting[waiting.task.id] = waiting

    def remove(self, waiting: Waiting) -> None:
        """Take a task out. An owner without tasks loses what is left of its turns."""
        owner = waiting.task.owner
        del self._lines[owner].waiting[waiting.task.id]
        if not self._lines[owner].waiting:
            del self._lines[owner]
            self._turns.remove(owner)

    def pop(self, can_run: Callable[[Task], bool]) -> Waiting | None:
        """Take out the next task that can run; None if there is none."""
        firsts = {
            owner: first for owner, line in self._lines.items() if (first := line.find_first(can_run)) is not None
        }
        if not firsts:
            return None
        while True:
            line, first = self._lines[self._turns[0]], firsts.get(self._turns[0])
            if first is not None and (line.deficit >= first.cost or len(firsts) == 1):
                line.deficit = max(line.deficit - first.cost, 0)
                self.remove(first)
                return first
            line.deficit += QUANTUM if first is not None else 0
            self._turns.rotate(-1)


class FairQueue:
    """All waiting tasks."""

    def __init__(self) -> None:
        self._levels: dict[int, Level] = {}
        self._by_id: dict[int, Waiting] = {}
        self._by_owner: dict[str, dict[int, Waiting]] = {}  # in order of arrival
        self._n_pops = 0
        self._background: dict[int, Waiting] = {}  # background tasks, in order of arrival
        self.n_moves = 0  # counts all changes of the queue

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Waiting]:
        """All tasks in order of arrival."""
        return iter(self._by_id.values())

    @property
    def n_awaited(self) -> int:
        """How many tasks are not in the background."""
        return len(self._by_id) - len(self._background)

    def get_last_in_background(self) -> Waiting | None:
        """The latest background task; None if there is none."""
        return self._background[next(reversed(self._background))] if self._background else None

    def push(self, waiting: Waiting) -> None:
        self.n_moves += 1
        self._by_id[waiting.task.id] = waiting
        self._by_owner.setdefault(waiting.task.owner, {})[waiting.task.id] = waiting
        if waiting.task.in_background:
            self._background[waiting.task.id] = waiting
        self._levels.setdefault(waiting.task.priority, Level()).push(waiting)

    def pop(self, can_run: Callable[[Task], bool] = lambda task: True) -> Waiting | None:
        self._n_pops += 1
        if self._n_pops % OLDEST_EVERY == 0:
            oldest = next((one for one in self if not one.task.in_background and can_run(one.task)), None)
            if oldest is not None:
                return self.remove(oldest.task.id)
        for priority in sorted(self._levels, reverse=True):
            waiting = self._levels[priority].pop(can_run)
            if waiting is not None:
                self._forget(waiting)
                return waiting
        return None

    def remove(self, id_task: int) -> Waiting | None:
        """Take out the task with this id; None if it doesn't wait."""
        waiting = self._by_id.get(id_task)
        if waiting is not None:
            self._levels[waiting.task.priority].remove(waiting)
            self._forget(waiting)
        return waiting

    def find_crowding(self, owner: str) -> Waiting | None:
        """The latest task of the owner with the most tasks; None unless `owner` with one more would have fewer."""
        longest = max(self._by_owner.values(), key=len, default={})
        if len(longest) <= len(self._by_owner.get(owner, ())) + 1:
            return None
        return longest[next(reversed(longest))]

    def order(self) -> list[int]:
        """The ids of all tasks, about in the order in which they will run."""
        copy = FairQueue()
        for waiting in self:
            copy.push(waiting)
        copy._n_pops = self._n_pops
        return [copy.pop().task.id for _ in range(len(self))]

    def _forget(self, waiting: Waiting) -> None:
        self.n_moves += 1
        del self._by_id[waiting.task.id]
        self._background.pop(waiting.task.id, None)
        own = self._by_owner[waiting.task.owner]
        del own[waiting.task.id]
        if not own:
            del self._by_owner[waiting.task.owner]
        if not self._levels[waiting.task.priority]:
            del self._levels[waiting.task.priority]

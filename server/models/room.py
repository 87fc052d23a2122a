"""Decides which models have to leave so that another can be loaded. Pure.

A room is a number of bytes for each place ("memory", a GPU). The memory plan (`Fits`) says how much a model takes. Not
taken: limiting only the number of models. A model may have 300 MB or 30 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.records import field, record

Room = Mapping[str, int]
"""Bytes by the name of the place."""
Fits = Callable[[Room, bool], Room | None]
"""Returns what a model would take of a room, or None if it doesn't fit. The second argument says whether the model
would be alone; then a small context or fewer GPU layers are enough."""


@record(frozen=True)
class Resident:
    """A model that has an engine that isn't ending, or room for one. `t_used` is when it last had work. `is_idle`: it
    can leave now."""

    name: str
    takes: Room
    t_used: float
    is_idle: bool


@record(frozen=True)
class Verdict:
    """`takes` is the room for the new model, if it can be loaded now. Otherwise `leaving` are the models that have to
    leave first, and `busy` are those of them that aren't idle. If `takes` is None and `leaving` is empty, the new model
    doesn't fit even alone."""

    takes: Room | None = None
    leaving: tuple[str, ...] = ()
    busy: tuple[str, ...] = field(default=())


def judge(fits: Fits, free: Room, residents: Sequence[Resident], n_most: int) -> Verdict:
    """Decide whether a model fits beside `residents`, or which of these have to leave: no more than necessary, idle
    ones before busy ones, both in the order of their last use. With the new model, at most `n_most` may remain; 0 for
    any number."""
    order = sorted(residents, key=lambda one: (not one.is_idle, one.t_used))
    n_too_many = max(len(order) + 1 - n_most, 0) if n_most else 0
    for n in range(n_too_many, len(order) + 1):
        if fits(without(free, order[:n]), n == len(order)) is None:
            continue
        leaving = order[:n]
        for one in order[:n]:  # keep those that needn't leave
            fewer = [other for other in leaving if other is not one]
            if len(fewer) >= n_too_many and fits(without(free, fewer), len(fewer) == len(order)) is not None:
                leaving = fewer
        if not leaving:
            return Verdict(fits(free, not order))
        return Verdict(
            leaving=tuple(one.name for one in leaving), busy=tuple(one.name for one in leaving if not one.is_idle)
        )
    return Verdict()


def without(free: Room, leaving: Sequence[Resident]) -> dict[str, int]:
    """The room that is free when these models are gone."""
    return add_rooms(free, *(one.takes for one in leaving))


def add_rooms(room: Room, *given: Room) -> dict[str, int]:
    """The sum of rooms, for the places of the first one."""
    return {place: n + sum(one.get(place, 0) for one in given) for place, n in room.items()}


def subtract_rooms(room: Room, *taken: Room) -> dict[str, int]:
    """A room without what others take of it."""
    return {place: n - sum(one.get(place, 0) for one in taken) for place, n in room.items()}


def choose_lesser(room: Room, other: Room) -> dict[str, int]:
    """The smaller number for each place in `room`."""
    return {place: min(n, other.get(place, n)) for place, n in room.items()}

"""Who has to leave so that a model can be loaded: numbers in, a verdict out. Pure.

Rooms are bytes by the name of a place ("memory", a GPU). How many a model takes in a room is the memory plan's to say
(`Fits`), so this knows neither files nor layers. Not taken: counting models alone, since a folder has a model of
300 MB beside one of 30 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from server.records import field, record

Room = Mapping[str, int]
"""Bytes by the name of their place."""
Fits = Callable[[Room, bool], Room | None]
"""What a model would take of this much room, None if it doesn't fit; the second argument says whether it would be
alone, and so has to make do with what there is."""


@record(frozen=True)
class Resident:
    """A model that has an engine. `t_used` is when it was last at work; `is_idle` that nothing runs or waits for it."""

    name: str
    takes: Room
    t_used: float
    is_idle: bool


@record(frozen=True)
class Verdict:
    """`takes` is what the new model is to get, if it may be loaded now; else `leaving` are those who have to go first,
    `busy` those of them who can't go yet. Neither: there isn't enough even without all others."""

    takes: Room | None = None
    leaving: tuple[str, ...] = ()
    busy: tuple[str, ...] = field(default=())


def judge(fits: Fits, free: Room, residents: Sequence[Resident], n_most: int) -> Verdict:
    """Whether a model fits beside `residents`, else who leaves: those unused for longest, idle ones before busy ones,
    and no more than needed. At most `n_most` models have an engine at a time, 0 is any number."""
    order = sorted(residents, key=lambda one: (not one.is_idle, one.t_used))
    n_too_many = max(len(order) + 1 - n_most, 0) if n_most else 0
    for n in range(n_too_many, len(order) + 1):
        if fits(without(free, order[:n]), n == len(order)) is None:
            continue
        leaving = order[:n]
        for one in order[:n]:  # who was unused for longest may be of no help
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
    """The room that there is once these are gone."""
    return plus(free, *(one.takes for one in leaving))


def plus(room: Room, *given: Room) -> dict[str, int]:
    """A room with what others had."""
    return {place: n + sum(one.get(place, 0) for one in given) for place, n in room.items()}


def minus(room: Room, *taken: Room) -> dict[str, int]:
    """What others leave of a room."""
    return {place: n - sum(one.get(place, 0) for one in taken) for place, n in room.items()}


def lesser(room: Room, other: Room) -> dict[str, int]:
    """Of each place in `room` the smaller figure."""
    return {place: min(n, other.get(place, n)) for place, n in room.items()}

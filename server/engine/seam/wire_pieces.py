"""The events of a frame on the wire: pieces of text in columns, all others in rows.

Pure functions for `wire`, on the threads that encode and decode. Nearly all events are plain pieces, one for each
stream and step. As columns (ids, tokens, texts) a run of them is written and checked by a few calls in C instead of
some twenty steps of Python for each, which is half of what a token costs between the two processes.

Not taken: columns in `Frame` itself. Everybody who reads events would have to know of two kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from server.engine.seam.task import Event, Piece

COLUMNS = -1
"""In the place of a class's number: the row has the columns of neighbouring pieces."""
_INTS, _STRINGS, _LISTS = frozenset((int,)), frozenset((str,)), frozenset((list,))


def events_out(events: Iterable[Event], row: Callable[[Event], list[object]]) -> list[list[object]]:
    """The rows of `events`, in order; `row` makes that of one event."""
    rows: list[list[object]] = []
    ids: list[int] | None = None
    for event in events:
        if type(event) is Piece and not event.probs and event.timings is None:
            if ids is None:
                ids, tokens, texts = [], [], []
                rows.append([COLUMNS, ids, tokens, texts])
            ids.append(event.id)
            tokens.append(event.tokens)
            texts.append(event.text)
        else:
            ids = None
            rows.append(row(event))
    return rows


def events_in(rows: object, event: Callable[[object], Event]) -> tuple[Event, ...]:
    """The reverse; `event` reads one row. ValueError for what `events_out` doesn't write."""
    if type(rows) is not list:
        raise ValueError(f"{type(rows).__name__} instead of a sequence")
    events: list[Event] = []
    for row in rows:
        if type(row) is list and row and row[0] == COLUMNS:
            events += _pieces(row)
        else:
            events.append(event(row))
    return tuple(events)


def _pieces(row: list[object]) -> list[Piece]:
    if len(row) == 4 and _LISTS.issuperset(map(type, row[1:])):
        _, ids, tokens, texts = row
        if (
            len(ids) == len(tokens) == len(texts)
            and _INTS.issuperset(map(type, ids))
            and _STRINGS.issuperset(map(type, texts))
            and _LISTS.issuperset(map(type, tokens))
            and all([_INTS.issuperset(map(type, some)) for some in tokens])
        ):
            return list(map(Piece, ids, map(tuple, tokens), texts))
    raise ValueError("columns that are no pieces")

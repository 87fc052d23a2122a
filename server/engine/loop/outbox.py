"""How pieces that have waited for company become one. Pure functions, engine thread; `scheduler` decides who waits.

An answer that isn't streamed is read at its end. Sending its tokens one by one would wake the web side's threads once
per step for nothing, which costs several percent of a small model's speed where all cores compute.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.engine.seam.task import Event, Piece


def joined(events: Sequence[Event], streams: frozenset[int] = frozenset()) -> tuple[Event, ...]:
    """The events with the pieces of each task joined into its first one, but for the tasks of `streams`, whose tokens
    are told one by one. Other events of a task end its piece."""
    parts: list[Event | list[Piece]] = []
    open_parts: dict[int, list[Piece]] = {}
    for event in events:
        if type(event) is not Piece:
            open_parts.pop(event.id, None)
            parts.append(event)
        elif event.id in streams:
            parts.append(event)
        elif event.id in open_parts:
            open_parts[event.id].append(event)
        else:
            open_parts[event.id] = [event]
            parts.append(open_parts[event.id])
    return tuple(_join(part) if type(part) is list else part for part in parts)


def _join(pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        pieces[0].id,
        tuple(token for piece in pieces for token in piece.tokens),
        "".join(piece.text for piece in pieces),
        tuple(probs for piece in pieces for probs in piece.probs),
        pieces[-1].timings,
    )

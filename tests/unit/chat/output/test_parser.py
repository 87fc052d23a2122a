"""From a model's text to events, which don't depend on how the text is split."""

from __future__ import annotations

import random

import pytest

from server.chat.output.events import End, Event, Start, Text
from server.chat.output.parser import OutputParser
from server.engine.seam.task import Final, Piece, Progress, PromptProbs, Timings, TokenProbs

TIMINGS = Timings(0, 1, 1.0, 5, 5.0)
TEXTS = [
    "",
    "a",
    "Hello, world.",
    "one\ntwo\n\nthree",
    "Zürich 😀 日本語",
    '<think>no</think> [TOOL_CALLS] {"a": 1}',
    "x" * 500,
]


def final(text: str = "") -> Final:
    return Final(0, 0, text, "eos", "", 1, 5, 0, False, TIMINGS)


def piece(text: str, *tokens: int) -> Piece:
    return Piece(0, tokens or (1,), text)


def fed(*messages: object) -> list[Event]:
    parser = OutputParser()
    return [event for message in messages for event in parser.feed(message)]


def whole(events: list[Event]) -> list[Event]:
    """Events with the texts that follow each other joined: where a text is cut is no difference."""
    joined: list[Event] = []
    for event in events:
        if isinstance(event, Text) and joined and isinstance(joined[-1], Text):
            last = joined[-1]
            joined[-1] = Text(last.text + event.text, last.tokens + event.tokens, last.probs + event.probs)
        else:
            joined.append(event)
    return [event for event in joined if not (isinstance(event, Text) and not event.text and not event.tokens)]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_whole_by_characters_and_with_a_tail_the_events_are_the_same(text):
    for cut in {0, 1, len(text) // 2, max(len(text) - 1, 0), len(text)}:
        tail = text[cut:]
        expected = [Start(), *([Text(text)] if text else []), End(final(tail))]
        for pieces in ([text[:cut]] if cut else [], list(text[:cut])):
            events = fed(*(Piece(0, (), part) for part in pieces), final(tail))
            assert whole(events) == expected


def test_any_cut_into_pieces_gives_the_same_events():
    draw = random.Random(1)
    for text in TEXTS:
        for _ in range(20):
            cuts = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
            parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
            events = fed(*(piece(part, i) for i, part in enumerate(parts)), final())
            tokens = tuple(range(len(parts)))
            assert whole(events) == [Start(), Text(text, tokens), End(final())]


def test_tokens_probabilities_and_timings_come_with_their_text():
    probs = (TokenProbs(7, 0.5, -0.7, ((7, 0.5),), ((7, -0.7),)),)
    assert fed(Piece(0, (7,), "a", probs, TIMINGS)) == [Start(), Text("a", (7,), probs, TIMINGS)]


def test_a_piece_without_text_still_tells_its_tokens():
    assert fed(piece("", 5), piece("é", 6)) == [Start(), Text("", (5,)), Text("é", (6,))]


def test_text_that_was_held_back_comes_before_the_end():
    assert fed(piece("a"), final("b"))[1:] == [Text("a", (1,)), Text("b"), End(final("b"))]


def test_an_answer_without_any_text_begins_and_ends():
    assert fed(final()) == [Start(), End(final())]


def test_the_prompts_probabilities_come_before_the_beginning_and_its_progress_behind_it():
    judged, progress = PromptProbs(0, 1, ()), Progress(0, 9, 0, 4, 1.0)
    assert fed(judged, judged, progress, judged, final()) == [judged, judged, Start(), progress, judged, End(final())]

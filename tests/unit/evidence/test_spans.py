"""Texts of a request and their places among the prompt's tokens."""

from __future__ import annotations

import pytest

from server.evidence.spans import find_sentences, find_spans, texts_of

TEXT = "The key is red.  It hangs\non the wall! Dr. No said: 3.5 m? Ünïcödé 😀."


def test_sentences_and_lines_are_apart_and_nothing_is_lost():
    found = [TEXT[start:end] for start, end in find_sentences(TEXT)]
    assert found == ["The key is red.", "It hangs", "on the wall!", "Dr.", "No said: 3.5 m?", "Ünïcödé 😀."]
    assert list(find_sentences("")) == list(find_sentences(" \n ")) == []


def test_texts_of_a_request_have_the_numbers_of_their_messages():
    messages = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {}}, "c"]},
        {"role": "assistant", "content": None},
        "nonsense",
    ]
    assert texts_of({"messages": messages}) == [(0, "a"), (1, "b"), (1, "c")]
    assert texts_of({"prompt": "p"}) == [(None, "p")] and texts_of({"prompt": [1]}) == texts_of({}) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_each_span_has_the_tokens_that_end_in_it(size):
    prompt = f"<user>\n{TEXT}<end>\n<assistant>".encode()
    pieces = [prompt[i : i + size] for i in range(0, len(prompt), size)]
    spans = find_spans([(0, "not in there"), (1, f"  {TEXT}\n")], pieces)
    assert [span.text for span in spans] == [TEXT[start:end] for start, end in find_sentences(TEXT)]
    for span in spans:
        said = b"".join(pieces[span.first : span.last]).decode("utf-8", "replace")
        assert span.text[size : -size - 1] in said and len(said.encode()) <= len(span.text.encode()) + size
        assert f"  {TEXT}\n"[span.start : span.end] == span.text and span.message == 1
    assert all(one.last <= other.first for one, other in zip(spans, spans[1:]))


def test_the_last_token_of_a_prompt_belongs_to_no_span():
    assert find_spans([(None, "a b")], [b"a", b" b"])[0].last == 1
    assert find_spans([(None, "a")], [b"a"]) == []


def test_wanted_texts_are_found_at_their_first_places():
    spans = find_spans([(None, "one two one")], [b"one", b" two", b" one", b"."], ["two", "one", "three"])
    assert [(span.text, span.first, span.last) for span in spans] == [("two", 1, 2), ("one", 0, 1)]

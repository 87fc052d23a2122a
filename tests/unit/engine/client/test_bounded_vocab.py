"""Texts that are refused, split or queued before the tokenizer, with a vocabulary that records its calls."""

from __future__ import annotations

import sys
import threading

import pytest

from server import memory
from server.engine.client.bounded_vocab import (
    LARGE,
    LONG,
    MAX_WORD,
    BoundedVocab,
    may_have_long_word,
    measure_longest_word,
    on_deep_stack,
    without_middle,
)
from server.errors import ApiError
from server.memory import Budget, Share
from tests.fakes import BOS, FakeVocab
from tests.support import wait_until


class Notes(FakeVocab):
    """Remembers what it was asked, and on which threads; `gate` holds up large texts."""

    def __init__(self, has_patterns: bool = False) -> None:
        super().__init__()
        self.has_patterns = has_patterns
        self.texts: list[str] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def tokenize(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        self.texts.append(text)
        self.threads.append(threading.current_thread().name)
        assert len(text) <= LARGE or self.gate.wait(30)
        return super().tokenize(text, add_special, parse_special)


def refused(vocab: BoundedVocab, text: str, **how: bool) -> ApiError:
    with pytest.raises(ApiError) as caught:
        vocab.tokenize(text, True, True, **how)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize("letter", ["a", "é", "漢", "😀"])
def test_what_cannot_fit_is_refused_by_its_bytes_before_it_is_tokenized(letter):
    notes = Notes()
    vocab = BoundedVocab(notes, n_ctx=2000, max_bytes=1 << 20)
    n = 8001 // len(letter.encode()) + 1  # the longest token has four bytes
    error = refused(vocab, letter * n)
    assert error.type == "exceed_context_size_error" and error.reason == "context"
    assert error.extra == {"n_prompt_tokens": 2001, "n_ctx": 2000} and notes.texts == []
    assert vocab.tokenize(letter * n, False, True, must_fit=False) == list((letter * n).encode())


def test_what_could_fit_and_does_not_is_refused_when_that_is_known():
    vocab = BoundedVocab(Notes(), n_ctx=2000, max_bytes=1 << 20)
    assert len(vocab.tokenize("a" * 1999, True, True)) == 2000
    assert refused(vocab, "a" * 2000).extra["n_prompt_tokens"] == 2001
    assert len(vocab.tokenize("</s>" * 1999, True, True)) == 2000


@pytest.mark.parametrize("letter", ["a", "é", "漢", "😀"])
def test_no_text_may_have_more_bytes_than_the_server_allows(letter):
    notes = Notes()
    vocab = BoundedVocab(notes, n_ctx=10**9, max_bytes=12_000)
    n = 12_000 // len(letter.encode())
    assert len(vocab.tokenize(letter * n, False, True)) == 12_000
    for how in ({}, {"must_fit": False}, {"may_cut": True}):
        error = refused(vocab, letter * (n + 1), **how)
        assert error.reason == "too_large" and "--max-text" in error.message
    assert vocab.measure(letter * n) == 12_000 and len(notes.texts) == 1


def test_the_middle_of_prompts_is_left_out_where_the_engine_drops_it_anyway():
    notes = Notes()
    vocab = BoundedVocab(notes, n_ctx=1000, max_bytes=10_000, cuts_prompts=True)
    text = "b" * 30_000 + "漢" * 10_000 + "e" * 30_000
    assert vocab.tokenize(text, True, True, may_cut=True) == [BOS, *b"b" * 5000, *b"e" * 5000]
    assert len(vocab.tokenize("a" * 9999, True, True, may_cut=True)) == 10_000, "the engine knows how to cut it"
    assert refused(vocab, text).reason == "too_large"
    assert refused(vocab, "a" * 9999).reason == "context", "not of a prompt: nobody cuts it"


@pytest.mark.parametrize("n_bytes", [100, 101, 102, 103])
def test_a_cut_never_goes_through_a_character(n_bytes):
    text = "漢" * 20 + "😀" * 40 + "é" * 20
    cut = without_middle(text, n_bytes)
    assert n_bytes - 8 < len(cut.encode()) <= n_bytes
    half = next(i for i in range(len(cut)) if not text.startswith(cut[: i + 1]))
    assert text.endswith(cut[half:])
    assert without_middle(text, len(text.encode())) is text


def test_short_texts_are_not_held_up():
    notes = Notes(has_patterns=True)
    vocab = BoundedVocab(notes, n_ctx=10**6)
    vocab.tokenize("a" * LONG, False, True)
    assert notes.threads == [threading.current_thread().name]


def test_a_word_that_patterns_recurse_over_gets_a_stack_for_it():
    class Deep(Notes):
        def tokenize(self, text, add_special, parse_special):
            super().tokenize(text, add_special, parse_special)
            self.size = threading.stack_size()
            if "\n" in text:
                raise ValueError("as the tokenizer says it")
            return []

    notes = Deep(has_patterns=True)
    vocab, before = BoundedVocab(notes, n_ctx=10**6), threading.stack_size()
    assert vocab.tokenize("a" * (LONG + 1), False, True) == [] and notes.threads == ["tokenizer"]
    with pytest.raises(ValueError, match="as the tokenizer says it"):
        vocab.tokenize("\n" * (LONG + 1), False, True)
    assert threading.stack_size() == before
    notes.has_patterns = False
    vocab.tokenize("a" * (LONG + 1), False, True)
    assert notes.threads[-1] == threading.current_thread().name


@pytest.mark.parametrize("letter", ["a", "漢", " ", "\n", "\u2003"])
@pytest.mark.parametrize("n_before", [0, 1, 250, 499, 500, 777])
def test_wherever_a_long_run_stands_it_is_found(letter, n_before):
    assert may_have_long_word("x " * n_before + letter * (LONG + 1) + " x" * 300)


def test_ordinary_texts_of_any_length_need_no_thread():
    notes = Notes(has_patterns=True)
    vocab = BoundedVocab(notes, n_ctx=10**6)
    for text in ("many words " * 400, "w" * 400 + (" " + "w" * 400) * 20, "x\n" * 5000, ""):
        assert not may_have_long_word(text)
        vocab.tokenize(text, False, True)
    assert set(notes.threads) == {threading.current_thread().name}


def test_the_deep_stack_really_is_deep():
    def depth(n: int) -> int:
        return 0 if n == 0 else 1 + min((depth(n - 1),), key=lambda value: value)  # through C, so it needs stack

    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    try:
        assert on_deep_stack(lambda: depth(20_000), 64 << 20) == 20_000
    finally:
        sys.setrecursionlimit(before)


def test_words_beyond_any_stack_are_refused_where_patterns_recurse():
    text = "a b" * 10 + "é" * (MAX_WORD + 1) + " c"
    assert measure_longest_word(text) == MAX_WORD + 2 and measure_longest_word("a" + " \n" * 5) == 10
    vocab = BoundedVocab(Notes(has_patterns=True), n_ctx=10**7)
    assert "without a break" in refused(vocab, text).message and refused(vocab, text).reason == "too_large"
    assert BoundedVocab(Notes(), n_ctx=10**7).tokenize(text, False, True)


def test_large_texts_are_tokenized_one_at_a_time_and_others_go_on():
    notes = Notes()
    vocab = BoundedVocab(notes, n_ctx=10**7)
    notes.gate.clear()
    threads = [threading.Thread(target=vocab.tokenize, args=("a" * (LARGE + 1), False, True)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: notes.texts, "the first")
    assert vocab.tokenize("b" * LARGE, False, True) == [*b"b" * LARGE]
    assert list(map(len, notes.texts)) == [LARGE + 1, LARGE]
    notes.gate.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert list(map(len, notes.texts)) == [LARGE + 1, LARGE, LARGE + 1, LARGE + 1]


def test_memory_is_counted_while_it_is_taken_and_for_the_tokens_afterwards():
    budget = Budget(1 << 20)
    memory.use(Share(budget))
    try:
        seen = []

        class Watching(Notes):
            def tokenize(self, text, add_special, parse_special):
                seen.append(budget.n_used)
                return super().tokenize(text, add_special, parse_special)

        vocab = BoundedVocab(Watching(), n_ctx=10**7)
        vocab.tokenize("a" * 5000, False, True)
        assert seen == [120 * 5000] and budget.n_used == 40 * 5000
        with pytest.raises(ApiError) as caught:
            vocab.tokenize("a" * 9000, False, True)
        assert caught.value.status == 503 and len(seen) == 1 and budget.n_used == 40 * 5000
    finally:
        memory.use(None)

"""`slots.phases`: reasoning, visible text and tool calls don't depend on how a text is split into tokens, and a grammar
begins at the first character of its trigger.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine.seam.task import FULL, PATTERN, START, TOKEN, WORD, SamplingParams, Task, Thinking, Trigger
from server.engine.slots.phases import BEFORE, CALL, THINKING, VISIBLE, Begin, Phases, must_have_phases
from server.engine.slots.text import TextStream

END_OF_TEXT = 10_000
LAZY = SamplingParams(grammar="g", grammar_lazy=True, grammar_triggers=(Trigger(WORD, "<call>"),))
FIRM = SamplingParams(grammar="g")
THINK = Thinking("<think>", "</think>")
OPENED = Thinking("<think>", "</think>", True)
UNTIL = Thinking("", "</think>", True, until="<call>")
AGAIN = Thinking("<think>", "</think>", comes_again=True)


@dataclass
class Walk:
    """What came of a text: `constrained` is what the grammar has of it (None: it hasn't begun)."""

    shown: str = ""
    constrained: bytes | None = None
    stopping_word: str = ""
    phase: int = VISIBLE
    n_thought: int = 0
    begins: list[Begin] = field(default_factory=list)
    phases: Phases | None = None


def task(sampling: SamplingParams = LAZY, reasoning: Thinking | None = None, **fields: object) -> Task:
    return Task(1, (1,), sampling, reasoning=reasoning, **fields)


def walk(asked: Task, pieces: Sequence[bytes], hidden: Iterable[int] = ()) -> Walk:
    """Each piece is a token, the number of its place; `hidden` ones are control tokens."""
    hidden = set(hidden)

    def piece(token: int, named: bool) -> bytes:
        return pieces[token] if token not in hidden or named else b""

    text = TextStream(asked.stop)
    phases = Phases(asked, piece, frozenset({END_OF_TEXT}), text)
    result = Walk(phases=phases)
    parts = []
    for token in range(len(pieces)):
        if phases.is_waiting and (begin := phases.look(token)) is not None:
            phases.bind(True)
            result.begins.append(begin)
            written = b"".join(pieces[one] for one in begin.tokens)
            lead = begin.lead.encode()
            assert (written + pieces[token]).startswith(lead) or lead.startswith(written + pieces[token])
            result.constrained = None if begin.unless else (written + pieces[token])[len(lead) :]
        elif result.constrained is not None:
            result.constrained += pieces[token]
        parts.append(phases.take(token))
        if text.stopping_word:
            break
    parts.append(phases.finish())
    result.shown, result.stopping_word = "".join(parts), text.stopping_word
    result.phase, result.n_thought = phases.phase, phases.n_thought
    return result


def ways_to_cut(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, in two at each place, and at random."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
    rng = random.Random(7)
    for _ in range(20):
        places = sorted(rng.sample(range(1, len(data)), min(4, len(data) - 1)))
        yield [data[a:b] for a, b in zip([0, *places], [*places, len(data)])]


def has_both_marks(pieces: Sequence[bytes]) -> bool:
    """Whether one token ends the opening mark of the thinking and has all of the closing one; no vocabulary has such."""
    return any(re.search(rb"[think]*>.*</think>", piece, re.S) for piece in pieces)


def triggers(*rows: Trigger) -> SamplingParams:
    return replace(LAZY, grammar_triggers=rows)


def literal(text: str) -> tuple[tuple[int, ...], ...]:
    """The automaton of one text."""
    rows = [(0, ord(char), ord(char), i + 1) for i, char in enumerate(text)]
    return (*rows, (1,))


ALPHA = ((0, ord("a"), ord("b"), 1), (1, ord("a"), ord("b"), 1))  # [ab]+
X_THEN_Y = ((0, ord("x"), ord("x"), 1), (0, 0, 0x10FFFF, 1, ord("y"), ord("y"), 2), (1,))  # x.*y

LAZY_CASES = [
    ("no trigger", LAZY, None, "only text", None),
    ("a word", LAZY, None, 'text <call>{"a": 1}', '<call>{"a": 1}'),
    ("a word at once", LAZY, None, "<call>x", "<call>x"),
    ("a look-alike before it", LAZY, None, "<cal l> <<call>x", "<call>x"),
    ("a beginning only", LAZY, None, "text <call", None),
    ("behind letters of all widths", LAZY, None, "é€😀<call>é", "<call>é"),
    ("a trigger of all widths", triggers(Trigger(WORD, "é😀")), None, "a é😀b", "é😀b"),
    ("of two words the one that is complete first", triggers(Trigger(WORD, "bcde"), Trigger(WORD, "cd")), None,
     "abcde", "cde"),
    ("of words that begin alike the shorter", triggers(Trigger(WORD, "<call>"), Trigger(WORD, "<c")), None,
     "x<call>", "<call>"),
    ("a start", triggers(Trigger(START, "{")), None, "{x", "{x"),
    ("a start behind white space", triggers(Trigger(START, "{a")), None, " \n{a}", "{a}"),
    ("a start that comes too late", triggers(Trigger(START, "{")), None, "a {x", None),
    ("a start that only begins", triggers(Trigger(START, "{a")), None, "{b {a", None),
    ("of two starts either", triggers(Trigger(START, "[x"), Trigger(START, "[y")), None, " [y", "[y"),
    ("a trigger in the thinking", LAZY, OPENED, "so <call> it is</think>no", None),
    ("one behind it", LAZY, OPENED, "so <call> it is</think>\n<call>x", "<call>x"),
    ("one right behind it", LAZY, OPENED, "hm</think><call>x", "<call>x"),
    ("half in the thinking, half behind it", LAZY, OPENED, "<ca</think>ll>", None),
    ("a thinking that is opened", LAZY, THINK, " <think>so <call></think> <call>x", "<call>x"),
    ("none that is opened", LAZY, THINK, "<thin> <call>x", "<call>x"),
    ("a call that ends the thinking", LAZY, UNTIL, "so <cal <call>x</think>", "<call>x</think>"),
    ("one behind what ends it, too", LAZY, UNTIL, "so </think> <call>x", "<call>x"),
    ("one in a thinking that comes again", LAZY, AGAIN, "<think>a</think>b<think><call></think><call>x", "<call>x"),
    ("a start behind the thinking", triggers(Trigger(START, "{")), THINK, "<think>a</think>\n\n{x", "{x"),
    ("a start behind what might have been thinking", triggers(Trigger(START, "<t")), THINK, " <two", "<two"),
    ("a close that comes twice", LAZY, OPENED, "a</think>b</think><call>x", "<call>x"),
    ("the thinking opened later is none", LAZY, THINK, "a <think> <call>x", "<call>x"),
    ("a pattern", triggers(Trigger(PATTERN, "[ab]+", states=ALPHA)), None, "xyzab", "ab"),
    ("a pattern across letters", triggers(Trigger(PATTERN, "x.*y", states=X_THEN_Y)), None, "é xé😀y.", "xé😀y."),
    ("the match that began first", triggers(Trigger(PATTERN, "x.*y", states=X_THEN_Y)), None, "axxxy", "xxxy"),
    ("a pattern of the whole text", triggers(Trigger(FULL, "ab", states=literal("ab"))), None, "abx", "abx"),
    ("not of the whole text", triggers(Trigger(FULL, "ab", states=literal("ab"))), None, "xab", None),
]  # fmt: skip


@pytest.mark.parametrize("case", LAZY_CASES, ids=lambda case: case[0])
def test_a_lazy_grammar_begins_with_its_trigger_however_the_text_is_cut(case):
    _, sampling, thinking, text, expected = case
    for pieces in ways_to_cut(text.encode()):
        result = walk(task(sampling, thinking), pieces)
        assert result.constrained == (None if expected is None else expected.encode()), pieces
        assert result.shown == text


FIRM_CASES = [
    ("opened by the prompt", OPENED, "so</think>\n{}", "\n{}"),
    ("a look-alike of its end", OPENED, "so</thinks></think>{}", "{}"),
    ("opened by the model", THINK, "<think>so</think>{}", "{}"),
    ("ended by a call", UNTIL, "so <cal <call>{}", "<call>{}"),
    ("ended before a call", UNTIL, "so</think> <call>{}", " <call>{}"),
    ("never opened", THINK, "{}", None),
    ("never closed", OPENED, "so on and so on", None),
]


@pytest.mark.parametrize("case", FIRM_CASES, ids=lambda case: case[0])
def test_a_grammar_that_is_not_lazy_begins_behind_the_thinking(case):
    _, thinking, text, expected = case
    for pieces in ways_to_cut(text.encode()):
        if has_both_marks(pieces):
            continue
        result = walk(task(FIRM, thinking), pieces)
        assert (result.constrained or b"") == (expected or "").encode(), pieces
        assert result.shown == text


def test_before_a_thinking_that_may_be_opened_the_grammar_holds_unless_it_is():
    result = walk(task(FIRM, THINK), [b"<th", b"ink>", b"so</th", b"ink>", b"{}"])
    assert result.begins == [Begin(unless="<think>"), Begin()]
    result = walk(task(FIRM, THINK), [b"{", b"}"])
    assert result.begins == [Begin(unless="<think>")] and not result.phases.is_waiting


def test_the_end_of_the_text_inside_a_thinking_that_a_grammar_waits_for_is_turned_into_the_end_of_the_thinking():
    phases = walk(task(FIRM, OPENED), [b"so"]).phases
    assert phases.look(END_OF_TEXT) == Begin("</think>")
    assert walk(task(LAZY, OPENED), [b"so", b""]).phases.look(1) is None


def test_a_token_that_the_grammar_refuses_leaves_the_call_to_the_next_one():
    phases = walk(task(), [b"a <ca", b"ll>!", b"ll"]).phases
    fresh = Phases(task(), lambda token, named: [b"a <ca", b"ll>!", b"ll"][token], frozenset(), TextStream(("!",)))
    assert fresh.look(0) is None
    fresh.take(0)
    assert fresh.look(1) == Begin("a ", (0,))
    fresh.bind(False)
    assert (fresh.take(2), fresh.phase, fresh.is_waiting) == ("ll", CALL, False)
    assert phases.phase == CALL


def test_a_hidden_token_inside_a_trigger_is_not_told_to_the_grammar():
    result = walk(task(), [b"x<ca", b"<hidden>", b"ll>"], hidden=[1])
    assert result.begins == [Begin("x", (0,))] and result.shown == "x<call>"


def test_a_preserved_token_is_text_and_can_be_a_trigger():
    pieces = [b"a", b"<call>", b"{}"]
    assert walk(task(), pieces, hidden=[1]).shown == "a{}"
    result = walk(task(preserved_tokens=(1,)), pieces, hidden=[1])
    assert (result.shown, result.constrained) == ("a<call>{}", b"<call>{}")


def test_a_token_is_a_trigger_whether_it_is_shown_or_not_but_not_in_the_thinking():
    sampling = triggers(Trigger(TOKEN, token=1))
    assert walk(task(sampling), [b"a", b"<call>", b"{}"], hidden=[1]).begins == [Begin()]
    assert walk(task(sampling, THINK), [b" ", b"<call>", b"{}"], hidden=[1]).begins == [Begin()]
    assert walk(task(sampling, OPENED), [b"a", b"<call>", b"{}"], hidden=[1]).begins == []


def test_a_trigger_that_shares_a_token_with_half_a_character_has_the_whole_character_before_it():
    euro = "€".encode()
    result = walk(task(), [b"a" + euro[:1], euro[1:2], euro[2:] + b"<call>"])
    assert result.begins == [Begin("a€", (0, 1))]
    assert walk(task(), [b"\xff", b"\x80<call>"]).begins == [], "broken: no grammar can say that"


def test_triggers_of_a_grammar_that_is_not_lazy_only_say_where_calls_begin():
    sampling = replace(LAZY, grammar_lazy=False)
    result = walk(task(sampling, stop=("!",)), [b"a <call>!", b"!"])
    assert (result.begins, result.phase, result.shown) == ([], CALL, "a <call>!!")
    assert walk(task(replace(sampling, grammar=""), stop=("!",)), [b"a! <call>"]).shown == "a"


STOP_CASES = [
    ("in visible text", LAZY, None, "a! <call>", ("!",), "a", "!"),
    ("inside a call", LAZY, None, "a <call>!</call>", ("!", "</call>"), "a <call>!</call>", ""),
    ("in the thinking", LAZY, OPENED, "a!</think>b", ("!",), "a!</think>b", ""),
    ("behind the thinking", LAZY, OPENED, "a!</think>b!c", ("!",), "a!</think>b", "!"),
    ("in a thinking that comes again", LAZY, AGAIN, "a<think>b!</think>c!", ("!",), "a<think>b!</think>c", "!"),
    ("in a thinking that doesn't", LAZY, THINK, "a<think>b!</think>c!", ("!",), "a<think>b", "!"),
    ("behind a call that ends the thinking", LAZY, UNTIL, "a!<call>b!", ("!", "<c"), "a!<call>b!", ""),
    ("the mark of the thinking", LAZY, THINK, "<think>a</think>b", ("<think", "think>"), "<think>a</think>b", ""),
    ("a word across the end of the thinking", LAZY, OPENED, "a</think>b", (">b",), "a</think>b", ""),
    ("a beginning of a stop word before a call", LAZY, None, "a <call>x", ("> x", ">x"), "a <call>x", ""),
    ("one that is complete before the trigger", LAZY, None, "a <call>x", ("<ca",), "a ", "<ca"),
    ("what might have been thinking", LAZY, THINK, "<th!", ("<th", "!"), "", "<th"),
]  # fmt: skip


@pytest.mark.parametrize("case", STOP_CASES, ids=lambda case: case[0])
def test_stop_words_are_looked_for_in_visible_text_only(case):
    _, sampling, thinking, text, stop, shown, word = case
    for pieces in ways_to_cut(text.encode()):
        result = walk(task(sampling, thinking, stop=stop), pieces)
        assert (result.shown, result.stopping_word) == (shown, word), pieces


def test_the_tokens_of_the_thinking_are_counted():
    assert walk(task(LAZY, OPENED), [b"a", b"b", b"</think>", b"c"]).n_thought == 3
    assert walk(task(LAZY, THINK), [b"<think>", b"b", b"</think>", b"c"]).n_thought == 2
    assert walk(task(LAZY, THINK), [b"c", b"d"]).n_thought == 0


# ---- the end of the thinking -----------------------------------------------------------------------------------------


def forced_walk(asked: Task, said: Sequence[bytes], end: Sequence[bytes], n: int, ends: dict[int, int] | None = None):
    """The text of `n` tokens of a model that says `said`, with `end` as the end tokens; `ends` has calls of
    `end_thinking` by place."""
    table = [*said, *end]
    asked = replace(asked, reasoning=replace(asked.reasoning, end_tokens=tuple(range(len(said), len(table)))))
    phases = Phases(asked, lambda token, named: table[token], frozenset(), TextStream())
    text, tokens, ours = "", [], iter(range(len(said)))
    for place in range(n):
        if ends and place in ends:
            phases.end_thinking(ends[place])
        token = phases.forced if phases.forced is not None else next(ours)
        if phases.is_waiting and phases.forced is None and phases.look(token) is not None:
            phases.bind(True)
        tokens.append(token)
        text += phases.take(token)
    return text, tokens, phases


@pytest.mark.parametrize("budget, text", [(0, "S</think>a"), (1, "aS</think>b"), (3, "abcS</think>d"), (-1, "abcd")])
def test_a_budget_ends_the_thinking_with_what_is_to_be_said(budget, text):
    asked = task(FIRM, replace(OPENED, budget=budget))
    said, tokens, phases = forced_walk(asked, [b"a", b"b", b"c", b"d", b"e"], [b"S", b"</think>"], len(text) - 7
                                       if budget >= 0 else 4)  # fmt: skip
    assert said == text
    assert phases.n_thought == (budget + 2 if budget >= 0 else 4)


def test_the_budget_of_a_thinking_that_is_not_opened_ends_nothing():
    said, _, phases = forced_walk(task(LAZY, replace(THINK, budget=0)), [b"a", b"b"], [b"</think>"], 2)
    assert (said, phases.n_thought) == ("ab", 0)


def test_a_thinking_that_ends_by_itself_is_not_ended_again():
    said, _, phases = forced_walk(task(LAZY, replace(OPENED, budget=3)), [b"a", b"</think>", b"c", b"d"], [b"X"], 4)
    assert (said, phases.phase) == ("a</think>cd", VISIBLE)


def test_a_character_may_be_finished_before_the_thinking_ends():
    euro = [bytes((byte,)) for byte in "€".encode()]
    said, _, _ = forced_walk(task(LAZY, replace(OPENED, budget=1)), [*euro, b"a"], [b"</think>"], 5)
    assert said == "€</think>a"
    said, _, _ = forced_walk(task(LAZY, replace(OPENED, budget=1)), [b"\xf0"] * 9, [b"</think>"], 8)
    assert "</think>" in said, "but not for ever"


def test_the_thinking_ends_when_it_is_told_to():
    said, tokens, phases = forced_walk(task(FIRM, OPENED), [b"a", b"b", b"c"], [b"S", b"</think>"], 5, {2: 2})
    assert (said, tokens) == ("abS</think>c", [0, 1, 3, 4, 2])
    known = replace(task(FIRM, OPENED), ends_thinking=2)
    assert forced_walk(known, [b"a", b"b", b"c"], [b"S", b"</think>"], 5)[:2] == (said, tokens)


def test_telling_it_twice_changes_nothing_and_where_nobody_thinks_it_does_nothing():
    said, _, phases = forced_walk(task(FIRM, OPENED), [b"a", b"b", b"c"], [b"S", b"</think>"], 5, {1: 1, 2: 2})
    assert said == "aS</think>bc"
    assert forced_walk(task(LAZY, THINK), [b"a", b"b"], [b"</think>"], 2)[2].end_thinking(2) == -1
    assert walk(task(LAZY, OPENED), [b"a"]).phases.end_thinking(1) == -1, "nothing to say that would end it"


def test_tokens_that_are_forced_trigger_nothing():
    said, _, phases = forced_walk(task(LAZY, replace(OPENED, budget=0)), [b"a"], [b"<call>", b"</think>"], 3)
    assert (said, phases.phase, phases.is_waiting) == ("<call></think>a", VISIBLE, True)


# ---- whatever comes --------------------------------------------------------------------------------------------------

MARKS = st.sampled_from(
    ["<call>", "<ca", "</think>", "<think>", "think>", "{", " ", "\n", "a", "é", "😀", "!", "ll>", "<"]
)
TRIGGERS = (Trigger(WORD, "<call>"), Trigger(START, "{a"), Trigger(PATTERN, "x.*y", states=X_THEN_Y))


@given(st.lists(MARKS, max_size=12), st.data(), st.sampled_from([None, THINK, OPENED, UNTIL, AGAIN]), st.booleans())
def test_any_text_cut_in_any_way_comes_to_the_same(parts, data, thinking, is_lazy):
    text = "".join(parts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    asked = task(replace(LAZY if is_lazy else FIRM, grammar_triggers=TRIGGERS), thinking, stop=("!", "a{"))
    if not is_lazy and has_both_marks(pieces):
        return
    bytewise = walk(asked, [text[i : i + 1] for i in range(len(text))])
    result = walk(asked, pieces)
    assert (result.shown, result.stopping_word) == (bytewise.shown, bytewise.stopping_word)
    assert result.phase == bytewise.phase or result.stopping_word
    if not result.stopping_word:
        assert result.constrained == bytewise.constrained or not (result.constrained or bytewise.constrained)
        assert result.shown.encode() == text


def test_tasks_without_any_of_it_need_no_phases():
    assert not must_have_phases(Task(1, (1,), FIRM)) and must_have_phases(task())
    assert must_have_phases(Task(1, (1,), preserved_tokens=(3,))) and must_have_phases(Task(1, (1,), reasoning=THINK))
    assert walk(task(LAZY, THINK), [b" "]).phase == BEFORE and walk(task(LAZY, OPENED), []).phase == THINKING

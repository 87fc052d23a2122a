"""Follows which part of its answer a task is generating: the model's reasoning (here: thinking), visible text, or a
tool call.

Engine thread; pure except for the task's `TextStream`, which it feeds. `Phases` finds where a grammar begins and where
stop strings are looked for, and forces the tokens that end the thinking. Only some tasks need it (`must_have_phases`).
Except at a TOKEN trigger, the parts depend on the text, not on its tokens.

Not taken: llama.cpp's lazy grammars. They search the whole text again at each token, and end the process if the text
after a trigger doesn't fit.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence

from server.engine.seam.task import FULL, PATTERN, START, TOKEN, WORD, Task, Trigger
from server.engine.slots.text import TextStream, find_first_stop
from server.records import record, replace

BEFORE, THINKING, VISIBLE, CALL = range(4)
"""BEFORE: the model may begin to think; the text so far doesn't show whether it does."""

REACH = 1024
"""The most bytes of text that a match of a pattern may have."""
MAX_RECENT = 4 * REACH  # latest tokens kept at least, since the grammar may begin in one of them
MAX_BEFORE = 256  # bytes of white space before the thinking
MAX_TOKENS_TO_FINISH_CHARACTER = 4  # tokens for the rest of a character, before the thinking is ended
MAX_CHARACTER = 4  # bytes


@record(frozen=True)
class Begin:
    """How a grammar begins: the text of the written `tokens` and the next token is `lead`, then text of the grammar. A
    text that begins with `unless` doesn't have to fit the grammar."""

    lead: str = ""
    tokens: tuple[int, ...] = ()
    unless: str = ""


@record
class Move:
    """What a token changes."""

    phase: int  # after the token
    parts: list[tuple[bytes, bool]]  # parts of the text, and whether stop strings are looked for in each
    tail: bytes  # the end of the text, where a mark (a text that ends the part) may have begun
    seen: Seen
    begins_at: int | None = None  # the byte of the token where the grammar begins (negative: in an earlier token)


def must_have_phases(task: Task) -> bool:
    """Whether a task needs `Phases`."""
    sampling = task.sampling
    return bool(task.reasoning or task.preserved_tokens or sampling.grammar_triggers or sampling.grammar_lazy)


class Phases:
    """The parts of one answer.

    While `is_waiting` the grammar doesn't hold yet, and each drawn token must be passed to `look`. `forced` is the
    token that comes next whatever the draw is, or None. `n_thought` counts the tokens of the thinking.
    """

    def __init__(
        self, task: Task, piece: Callable[[int, bool], bytes], eog_tokens: frozenset[int], text: TextStream
    ) -> None:
        """`piece` returns the bytes of a token; its second argument asks for the name of a control token."""
        thinking, sampling = task.reasoning, task.sampling
        self._piece, self._eog_tokens, self._text = piece, eog_tokens, text
        self._preserved = frozenset(task.preserved_tokens)
        self._open = self._close = self._until = ""
        self._again = b""  # the mark that begins thinking again
        self._budget = -1
        self._end_tokens: tuple[int, ...] = ()
        self.phase = VISIBLE
        if thinking is not None and thinking.close.strip():
            self._open, self._close = thinking.open.strip(), thinking.close.strip()
            self._budget, self._end_tokens = thinking.budget, thinking.end_tokens
            self._until = thinking.until
            self._again = self._open.encode() if thinking.comes_again else b""
            self.phase = THINKING if thinking.is_opened or not self._open else BEFORE
        self._triggers = Triggers(sampling.grammar_triggers)
        self._is_lazy, self._has_grammar = sampling.grammar_lazy, bool(sampling.grammar)
        self.is_waiting = self._has_grammar and (self._is_lazy or self.phase != VISIBLE)
        self._tail = b""  # the end of the text, where a mark may have begun; in BEFORE all of the text
        self._seen = self._triggers.nothing
        self._recent: list[tuple[int, bytes]] = []  # while `is_waiting`
        self._looked: tuple[int, Move] | None = None
        self._n_tokens = self.n_thought = self._n_forced = 0
        self._ends_at = task.ends_thinking
        self.forced = self._get_next_forced()

    # ---- tokens -------------------------------------------------------------------------------------------------

    def look(self, token: int) -> Begin | None:
        """How the grammar begins if this token comes next; None if it doesn't. Only while `is_waiting`."""
        if not self._is_lazy and self.phase != THINKING:
            return Begin(unless=self._open if self.phase == BEFORE else "")
        if not self._is_lazy and token in self._eog_tokens:
            return Begin(self._close)  # the answer would end in the thinking: the grammar begins as if that were closed
        move = self._move(token)
        self._looked = token, move
        if move.begins_at is None:
            return None
        piece = self._get_shown(token)
        if not self._is_lazy and move.begins_at == len(piece):
            return None  # the grammar begins with the token after this one
        return self._begin(piece, move.begins_at)

    def bind(self, is_same: bool) -> None:
        """The grammar has begun as `look` said. `is_same` if the token that was looked at comes next; else the grammar
        didn't allow it, and another token comes."""
        self.is_waiting = False
        self._recent.clear()
        if not is_same and self._is_lazy:
            self.phase = CALL
        elif not is_same and self.phase == THINKING:
            self._end_tokens = ()  # the grammar prescribes the end of the thinking
        self.forced = self._get_next_forced()

    def take(self, token: int) -> str:
        """Add a token to the answer; return the text that may be sent now. If this sets `is_waiting`, the model has
        begun to think, and the caller ends the grammar."""
        self._n_tokens += 1
        self.n_thought += self.phase == THINKING
        if self.is_waiting:
            self._remember(token)
        if self.forced is not None:
            return self._take_forced(token)
        looked, self._looked = self._looked, None
        move = looked[1] if looked is not None and looked[0] == token else self._move(token)
        if self.phase == BEFORE and self._has_grammar and not self._is_lazy:
            self.is_waiting = move.phase == THINKING or move.begins_at is not None
        self.phase, self._tail, self._seen = move.phase, move.tail, move.seen
        shown = self._feed(move.parts)
        if move.phase == THINKING:
            self.forced = self._get_next_forced()
        return shown

    def finish(self) -> str:
        """The answer is complete: return the text that was held back."""
        held = self._feed([(self._tail, True)]) if self.phase == BEFORE else ""
        return held + self._text.finish()

    def _get_shown(self, token: int) -> bytes:
        return self._piece(token, token in self._preserved)

    def _feed(self, parts: list[tuple[bytes, bool]]) -> str:
        text, shown = self._text, ""
        for part, looks in parts:
            text.looks = looks
            shown += text.feed(part)
        return shown

    # ---- the end of the thinking --------------------------------------------------------------------------------

    def end_thinking(self, n_tokens: int) -> int:
        """Make the thinking end after `n_tokens` tokens of the text, unless its end is set already. Returns where it
        ends, -1 if there is no thinking to end."""
        if self._ends_at < 0 and self._end_tokens and (self.phase == THINKING or n_tokens > self._n_tokens):
            self._ends_at = n_tokens
            self.forced = self._get_next_forced()
        return self._ends_at

    def _get_next_forced(self) -> int | None:
        """The token that must come next because the thinking has to end, else None. A begun character may be completed
        first."""
        if self.phase != THINKING or not self._end_tokens:
            return None
        if self._n_forced:
            return self._end_tokens[self._n_forced]
        ends = (self.n_thought, self._budget), (self._n_tokens, self._ends_at)
        over = [n - end for n, end in ends if 0 <= end <= n]
        if not over or self._text.is_inside_character and max(over) < MAX_TOKENS_TO_FINISH_CHARACTER:
            return None
        return self._end_tokens[0]

    def _take_forced(self, token: int) -> str:
        self._n_forced += 1
        if self._n_forced == len(self._end_tokens):
            self.phase, self._tail, self._end_tokens = VISIBLE, b"", ()
        self.forced = self._get_next_forced()
        return self._feed([(self._get_shown(token), False)])

    # ---- what a token does --------------------------------------------------------------------------------------

    def _move(self, token: int) -> Move:
        piece = self._get_shown(token)
        if self.phase == VISIBLE:
            return self._move_visible(token, piece, 0, self._tail, [], self._seen)
        if self.phase == THINKING:
            return self._move_thinking(token, piece, 0, self._tail, [], self._seen)
        if self.phase == BEFORE:
            return self._move_before(token, piece)
        return Move(CALL, [(piece, False)], b"", self._seen)

    def _move_before(self, token: int, piece: bytes) -> Move:
        data = self._tail + piece
        text, mark = data.lstrip(), self._open.encode()
        if text.startswith(mark):
            at = len(data) - len(text) + len(mark)
            return self._move_thinking(token, data[at:], at - len(self._tail), b"", [(data[:at], False)], self._seen)
        if mark.startswith(text) and token not in self._triggers.tokens and len(data) < MAX_BEFORE + len(mark):
            return Move(BEFORE, [], data, self._seen)
        return self._move_visible(token, data, -len(self._tail), b"", [], self._seen)

    def _move_thinking(
        self, token: int, rest: bytes, offset: int, tail: bytes, parts: list[tuple[bytes, bool]], seen: Seen
    ) -> Move:
        """The move for `rest`, the token's bytes from `offset` on, inside the thinking and after `tail`."""
        data, mark, call = tail + rest, self._close.encode(), self._until.encode()
        at = data.find(mark)
        called = data.find(call, 0, at if at >= 0 else None) if call else -1
        if called >= 0:
            return Move(CALL, [*parts, (rest, False)], b"", seen, called - len(tail) + offset)
        if at < 0:
            return Move(THINKING, [*parts, (rest, False)], _end(data, max(len(mark), len(call)) - 1), seen)
        n = at + len(mark) - len(tail)
        move = self._move_visible(token, rest[n:], offset + n, b"", [*parts, (rest[:n], False)], seen)
        if not self._is_lazy:
            move.begins_at = offset + n
        return move

    def _move_visible(
        self, token: int, rest: bytes, offset: int, tail: bytes, parts: list[tuple[bytes, bool]], seen: Seen
    ) -> Move:
        """The move for `rest` in visible text. Of triggers and the mark of new thinking, the first complete one
        counts."""
        triggers, again = self._triggers, self._again
        if triggers.is_empty and not again:
            return Move(VISIBLE, [*parts, (rest, True)], b"", seen)
        found, then = triggers.find(rest, tail, seen)
        if token in triggers.tokens:
            found = -offset, -offset
        at = (tail + rest).find(again) if again else -1
        n = at + len(again) - len(tail)
        if at >= 0 and (found is None or n <= found[1]):
            then = triggers.find(rest[:n], tail, seen)[1]
            return self._move_thinking(token, rest[n:], offset + n, b"", [*parts, (rest[:n], True)], then)
        if found is None:
            tail = _end(tail + rest, max(triggers.longest, len(again)) - 1)
            return Move(VISIBLE, [*parts, (rest, True)], tail, then)
        start, end = found
        parts = [*parts, (rest[:end], True), (rest[end:], False)]
        return Move(CALL, parts, b"", then, start + offset if self._is_lazy else None)

    # ---- where the grammar begins -------------------------------------------------------------------------------

    def _remember(self, token: int) -> None:
        self._recent.append((token, self._get_shown(token)))
        if len(self._recent) > 2 * MAX_RECENT:
            del self._recent[:MAX_RECENT]

    def _begin(self, piece: bytes, at: int) -> Begin | None:
        """How the grammar begins at offset `at` in this token's bytes; None if that is inside a broken character or too
        far back."""
        tokens: list[int] = []
        before, n_more = piece, 0
        for one, data in reversed(self._recent):
            if at >= 0 and (_is_text(before[:at]) or n_more == MAX_CHARACTER):
                break
            n_more += at >= 0
            before, at = data + before, at + len(data)
            if data:
                tokens.insert(0, one)
        return Begin(before[:at].decode(), tuple(tokens)) if at >= 0 and _is_text(before[:at]) else None


def _end(data: bytes, n: int) -> bytes:
    return data[-n:] if n > 0 else b""


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


# ---- triggers --------------------------------------------------------------------------------------------------------


@record(frozen=True)
class Seen:
    """What is known of the visible text so far."""

    head: bytes | None = None  # the text without leading white space while a START trigger may still come, else None
    matches: tuple[dict[int, int], ...] = ()  # for each pattern: row of its automaton -> byte where its match began
    n_read: int = 0  # bytes of the text that the patterns have read
    rest: bytes = b""  # the beginning of a character after those


class Triggers:
    """Finds the trigger that is complete first."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self._words = [one.text.encode() for one in triggers if one.kind == WORD and one.text]
        self._starts = [one.text.encode() for one in triggers if one.kind == START and one.text]
        self.tokens = frozenset(one.token for one in triggers if one.kind == TOKEN)
        self._patterns = [(one.states, one.kind == FULL) for one in triggers if one.kind in (PATTERN, FULL)]
        self.is_empty = not triggers
        self.longest = max(map(len, self._words), default=0)
        self.nothing = Seen(b"" if self._starts else None, tuple({} for _ in self._patterns))

    def find(self, rest: bytes, tail: bytes, seen: Seen) -> tuple[tuple[int, int] | None, Seen]:
        """Look for the first trigger in `rest`, the last bytes of a token behind a text that ends with `tail`. Returns
        its start (negative if before `rest`) and end, else None; and the new `Seen`."""
        found = []
        data = tail + rest
        if any(map(data.__contains__, self._words)):
            start, word = find_first_stop(data, self._words)  # type: ignore[misc]
            found.append((start + len(word) - len(tail), start - len(tail)))
        if seen.head is not None:
            head = (seen.head + rest).lstrip()
            at = len(rest) - len(head)
            found += [(at + len(mark), at) for mark in self._starts if head.startswith(mark)]
            seen = replace(seen, head=head if any(mark.startswith(head) for mark in self._starts) else None)
        if self._patterns:
            matched, seen = self._match(rest, seen)
            found += matched
        if not found:
            return None, seen
        end, start = min(found)
        return (start, end), seen

    def _match(self, data: bytes, seen: Seen) -> tuple[list[tuple[int, int]], Seen]:
        """The first matches of patterns, as (end, start) in `data`. The time is linear in the text."""
        n_before = seen.n_read + len(seen.rest)
        data = seen.rest + data
        text, n_read = codecs.utf_8_decode(data, "surrogateescape")
        matches, at = list(seen.matches), seen.n_read
        for char in text:
            end = at + len(char.encode("utf-8", "surrogateescape"))
            found = []
            for i, (states, is_anchored) in enumerate(self._patterns):
                begun = matches[i] if is_anchored and at else {0: at, **matches[i]}
                matches[i], start = _step(states, begun, ord(char), at - REACH)
                found += [(end - n_before, start - n_before)] if start is not None else []
            if found:
                return found, seen
            at = end
        return [], Seen(seen.head, tuple(matches), at, data[n_read:])


def _step(
    states: Sequence[tuple[int, ...]], begun: Mapping[int, int], code: int, least: int
) -> tuple[dict[int, int], int | None]:
    """The matches that go on with this character: for each row the earliest start from `least` on. And the earliest
    start of a complete match, else None."""
    going: dict[int, int] = {}
    complete = None
    for row, start in begun.items():
        moves = states[row]
        for i in range(1, len(moves), 3):
            if moves[i] <= code <= moves[i + 1] and start >= least:
                after = moves[i + 2]
                going[after] = min(going.get(after, start), start)
                if states[after][0]:
                    complete = start if complete is None else min(complete, start)
    return going, complete

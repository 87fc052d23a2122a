"""Which part of its answer a task is writing: what the model thinks, visible text, or a call.

Engine thread; pure but for the task's `TextStream`, which it feeds. Only tasks with reasoning, triggers or preserved
tokens have `Phases`. They say where a grammar begins that doesn't hold from the first token on, where stop words are
looked for, and which tokens the model is made to say so that its thinking ends. A token may end one part and begin the
next. The parts are the same however the text is cut into tokens, and tokens that are known from an engine before this
one lead to the same state.

Not taken: llama.cpp's lazy grammars. They search the whole text again with each token, and end the process when what
stands behind a trigger doesn't fit.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence

from server.engine.seam.task import FULL, PATTERN, START, TOKEN, WORD, Task, Trigger
from server.engine.slots.text import TextStream, first_stop
from server.records import record, replace

BEFORE, THINKING, VISIBLE, CALL = range(4)
"""BEFORE: the model may begin to think, and the text doesn't say yet whether it does."""

REACH = 1024
"""How many bytes of text a match of a pattern may take."""
MAX_RECENT = 4 * REACH  # tokens that are kept for a grammar that begins in an earlier one
MAX_BEFORE = 256  # bytes of white space before the thinking
MAX_TOKENS_TO_FINISH_CHARACTER = 4
MAX_CHARACTER = 4  # bytes


@record(frozen=True)
class Begin:
    """How a grammar begins inside a text: `lead` is what stands before its first character. `tokens` of this text are
    written already, and the next token goes on from there. Texts that begin with `unless` are free."""

    lead: str = ""
    tokens: tuple[int, ...] = ()
    unless: str = ""


@record
class Move:
    """What a token does: the `phase` behind it, its text in parts, each with whether stop words are looked for in it,
    and what the searches know then. `begins_at` is where in its bytes the grammar begins (negative: in an earlier
    token), None for nowhere."""

    phase: int
    parts: list[tuple[bytes, bool]]
    tail: bytes
    seen: Seen
    begins_at: int | None = None


def needs_phases(task: Task) -> bool:
    """Whether there is anything to watch in a task's text."""
    sampling = task.sampling
    return bool(task.reasoning or task.preserved_tokens or sampling.grammar_triggers or sampling.grammar_lazy)


class Phases:
    """The parts of one answer.

    While `is_waiting` there is a grammar that doesn't hold yet, and `look` has to be asked about each token that is
    drawn. `forced` is the token that comes next, whatever the model says. `n_thought` counts tokens of the thinking.
    """

    def __init__(
        self, task: Task, piece: Callable[[int, bool], bytes], eog_tokens: frozenset[int], text: TextStream
    ) -> None:
        """`piece` gives the bytes of a token, and those of a control token's name if asked for it."""
        thinking, sampling = task.reasoning, task.sampling
        self._piece, self._eog_tokens, self._text = piece, eog_tokens, text
        self._preserved = frozenset(task.preserved_tokens)
        self._open = self._close = self._until = ""
        self._again = b""  # what begins the thinking once more
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
        self._tail = b""  # the end of the text, in which a mark may have begun; before the thinking all of it
        self._seen = self._triggers.nothing
        self._recent: list[tuple[int, bytes]] = []  # while waiting
        self._looked: tuple[int, Move] | None = None
        self._n_tokens = self.n_thought = self._n_forced = 0
        self._ends_at = task.ends_thinking
        self.forced = self._next_forced()

    # ---- tokens -------------------------------------------------------------------------------------------------

    def look(self, token: int) -> Begin | None:
        """How the grammar begins if this token comes next; None if it doesn't. To be asked while `is_waiting`."""
        if not self._is_lazy and self.phase != THINKING:
            return Begin(unless=self._open if self.phase == BEFORE else "")
        if not self._is_lazy and token in self._eog_tokens:
            return Begin(self._close)  # the thinking ends, the text doesn't
        move = self._move(token)
        self._looked = token, move
        if move.begins_at is None:
            return None
        piece = self._shown(token)
        if not self._is_lazy and move.begins_at == len(piece):
            return None  # it begins with the token after this one
        return self._begin(piece, move.begins_at)

    def bind(self, is_same: bool) -> None:
        """The grammar has begun as `look` said; `is_same` if that token comes next, else the grammar wants another."""
        self.is_waiting = False
        self._recent.clear()
        if not is_same and self._is_lazy:
            self.phase = CALL
        elif not is_same and self.phase == THINKING:
            self._end_tokens = ()  # the grammar itself spells the end of the thinking
        self.forced = self._next_forced()

    def take(self, token: int) -> str:
        """This token comes next; the text that may be shown now. If it sets `is_waiting`, the grammar has to stop:
        the model has begun to think."""
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
            self.forced = self._next_forced()
        return shown

    def finish(self) -> str:
        """No more tokens: the text that was held back."""
        held = self._feed([(self._tail, True)]) if self.phase == BEFORE else ""
        return held + self._text.finish()

    def _shown(self, token: int) -> bytes:
        return self._piece(token, token in self._preserved)

    def _feed(self, parts: list[tuple[bytes, bool]]) -> str:
        text, shown = self._text, ""
        for part, looks in parts:
            text.looks = looks
            shown += text.feed(part)
        return shown

    # ---- the end of the thinking --------------------------------------------------------------------------------

    def end_thinking(self, n_tokens: int) -> int:
        """Have the thinking end behind that many tokens of the text (or where it was told to before); how many they
        are, -1 if there is no thinking that could be ended."""
        if self._ends_at < 0 and self._end_tokens and (self.phase == THINKING or n_tokens > self._n_tokens):
            self._ends_at = n_tokens
            self.forced = self._next_forced()
        return self._ends_at

    def _next_forced(self) -> int | None:
        """The token that has to come next, if the thinking has lasted long enough. A character that has begun may be
        finished before."""
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
        self.forced = self._next_forced()
        return self._feed([(self._shown(token), False)])

    # ---- what a token does --------------------------------------------------------------------------------------

    def _move(self, token: int) -> Move:
        piece = self._shown(token)
        if self.phase == VISIBLE:
            return self._visible(token, piece, 0, self._tail, [], self._seen)
        if self.phase == THINKING:
            return self._thinking(token, piece, 0, self._tail, [], self._seen)
        if self.phase == BEFORE:
            return self._before(token, piece)
        return Move(CALL, [(piece, False)], b"", self._seen)

    def _before(self, token: int, piece: bytes) -> Move:
        data = self._tail + piece
        text, mark = data.lstrip(), self._open.encode()
        if text.startswith(mark):
            at = len(data) - len(text) + len(mark)
            return self._thinking(token, data[at:], at - len(self._tail), b"", [(data[:at], False)], self._seen)
        if mark.startswith(text) and token not in self._triggers.tokens and len(data) < MAX_BEFORE + len(mark):
            return Move(BEFORE, [], data, self._seen)
        return self._visible(token, data, -len(self._tail), b"", [], self._seen)

    def _thinking(
        self, token: int, rest: bytes, offset: int, tail: bytes, parts: list[tuple[bytes, bool]], seen: Seen
    ) -> Move:
        """`rest` of a token's bytes, from `offset` on, is behind `tail` inside the thinking."""
        data, mark, call = tail + rest, self._close.encode(), self._until.encode()
        at = data.find(mark)
        called = data.find(call, 0, at if at >= 0 else None) if call else -1
        if called >= 0:
            return Move(CALL, [*parts, (rest, False)], b"", seen, called - len(tail) + offset)
        if at < 0:
            return Move(THINKING, [*parts, (rest, False)], _end(data, max(len(mark), len(call)) - 1), seen)
        n = at + len(mark) - len(tail)
        move = self._visible(token, rest[n:], offset + n, b"", [*parts, (rest[:n], False)], seen)
        if not self._is_lazy:
            move.begins_at = offset + n
        return move

    def _visible(
        self, token: int, rest: bytes, offset: int, tail: bytes, parts: list[tuple[bytes, bool]], seen: Seen
    ) -> Move:
        """The same in visible text. Stop words count up to the end of a trigger: what is complete first is found."""
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
            return self._thinking(token, rest[n:], offset + n, b"", [*parts, (rest[:n], True)], then)
        if found is None:
            tail = _end(tail + rest, max(triggers.longest, len(again)) - 1)
            return Move(VISIBLE, [*parts, (rest, True)], tail, then)
        start, end = found
        parts = [*parts, (rest[:end], True), (rest[end:], False)]
        return Move(CALL, parts, b"", then, start + offset if self._is_lazy else None)

    # ---- where the grammar begins -------------------------------------------------------------------------------

    def _remember(self, token: int) -> None:
        self._recent.append((token, self._shown(token)))
        if len(self._recent) > 2 * MAX_RECENT:
            del self._recent[:MAX_RECENT]

    def _begin(self, piece: bytes, at: int) -> Begin | None:
        """The grammar begins `at` in this token's bytes. None if that is behind a broken character."""
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
    """What is known of visible text so far: its beginning without white space, as long as a START may still come (else
    None), and for each pattern the matches that have begun, by row of its automaton the place where they began. Of
    its bytes `n_read` are read by patterns, `rest` is the beginning of a character."""

    head: bytes | None = None
    matches: tuple[dict[int, int], ...] = ()
    n_read: int = 0
    rest: bytes = b""


class Triggers:
    """Looks for the trigger that is complete first."""

    def __init__(self, triggers: Sequence[Trigger]) -> None:
        self._words = [one.text.encode() for one in triggers if one.kind == WORD and one.text]
        self._starts = [one.text.encode() for one in triggers if one.kind == START and one.text]
        self.tokens = frozenset(one.token for one in triggers if one.kind == TOKEN)
        self._patterns = [(one.states, one.kind == FULL) for one in triggers if one.kind in (PATTERN, FULL)]
        self.is_empty = not triggers
        self.longest = max(map(len, self._words), default=0)
        self.nothing = Seen(b"" if self._starts else None, tuple({} for _ in self._patterns))

    def find(self, rest: bytes, tail: bytes, seen: Seen) -> tuple[tuple[int, int] | None, Seen]:
        """The first trigger in `rest` of a token's bytes, behind text that ends with `tail`: where it begins (negative:
        in the tail or before) and ends. With it what is known then."""
        found = []
        data = tail + rest
        if any(map(data.__contains__, self._words)):
            start, word = first_stop(data, self._words)  # type: ignore[misc]
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
        """The first matches of patterns, as (end, start) in `data`. Each character costs a step for each row that a
        match has come to, so all of it is linear."""
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
    """The matches that go on with this character, by row the earliest place where one began, none before `least`; and
    where the one began that is complete now."""
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

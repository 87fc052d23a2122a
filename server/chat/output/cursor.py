"""One answer's text while it comes: what has been read, what is held, and the events that are certain.

Pure; the ground on which `calls` and `reader` stand. They are written as generators, so that each format reads from top
to bottom; `yield` waits for more text (`is_end` says that there is none). Text that may be a call is held: it is looked
at, and read only once it is certain what it is.

The way not taken: regular expressions over all that has come so far, which are quadratic and know no middle of a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable

from server.chat.output.events import Reasoning, Text, ToolCall

HELD_MAX = 16_384  # characters of a call's head
SPACE_MAX = 64  # characters of white space before a call that go with it
KEY_MAX = 1000

SPACE = re.compile(r"[ \t\r\n]*")

Steps = Generator[None, None, None]


class NoCall(Exception):
    """What is held is no call."""


class Over(Exception):
    """The text ends within a call."""


class Broken(Exception):
    """A call has begun and can't be understood from here on."""


class Cursor:
    """The text from `at` on hasn't been read; while `is_held`, `cursor` characters of it have been looked at."""

    def __init__(self, beginning: str, reasoning: str, new_id: Callable[[], str]) -> None:
        self.reasoning = reasoning
        self.new_id = new_id
        self.is_end = False
        self.is_complete = False  # the model has ended the text itself
        self.is_cut_off = False  # it was ended by a limit or from outside
        self.out: list[Text | Reasoning | ToolCall] = []
        self.parts: list[str] = []  # of the last one
        self.text = beginning
        self.n_unsaid = len(beginning)  # characters that stand in the prompt: they are read, but no part of the answer
        self.at = 0
        self.cursor = 0
        self.is_held = False
        self.index = -1  # of the last call
        self.name = self.call_id = ""
        self.ids: set[str] = set()

    # What is certain

    def say(self, text: str) -> None:
        """Visible text."""
        if self.n_unsaid:
            text, self.n_unsaid = text[self.n_unsaid :], max(0, self.n_unsaid - len(text))
        self.extend(Text, text)

    def say_to(self, end: int) -> None:
        """All up to `end` is visible text."""
        if end > self.at:
            self.say(self.text[self.at : end])
            self.at = end

    def think(self, text: str) -> None:
        """Reasoning."""
        if self.reasoning != "split":
            self.say(text)
        if self.reasoning != "none":
            self.extend(Reasoning, text)

    def skip_to(self, end: int) -> None:
        """What is up to `end` belongs to the form of reasoning: it is left out, or stays where reasoning stays."""
        if self.reasoning != "split":
            self.say(self.text[self.at : end])
        self.n_unsaid = 0
        self.at = end

    def announce(self) -> None:
        """A call begins."""
        call_id = self.call_id
        if not call_id or call_id.isdigit() or call_id in self.ids:
            call_id = self.new_id()
        self.ids.add(call_id)
        self.index += 1
        self.finish_event()
        self.out.append(ToolCall(self.index, call_id, self.name))

    def write(self, arguments: str) -> None:
        """The next part of the call's arguments."""
        if self.out and type(self.out[-1]) is ToolCall:
            self.parts.append(arguments)
        elif arguments:
            self.finish_event()
            self.out.append(ToolCall(self.index))
            self.parts = [arguments]

    def extend(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        """The next part of a text."""
        if self.out and type(self.out[-1]) is kind:
            self.parts.append(text)
        elif text:
            self.finish_event()
            self.out.append(kind(""))
            self.parts = [text]

    def finish_event(self) -> None:
        """The last event gets the parts that have come for it."""
        last = self.out[-1] if self.out else None
        if type(last) is ToolCall:
            last.arguments = "".join(self.parts)
        elif last is not None:
            last.text = "".join(self.parts)
        self.parts = []

    # The place in the text

    def place(self) -> int:
        return self.at + self.cursor

    def move(self, n: int) -> None:
        if self.is_held:
            self.cursor += n
        else:
            self.at += n

    def hold(self) -> None:
        self.is_held, self.cursor = True, 0

    def let_go(self, takes_it: bool = False) -> None:
        """Nothing is held any more: what was looked at is read, or will be looked at again."""
        if takes_it:
            self.at += self.cursor
            self.n_unsaid = 0
        self.is_held, self.cursor = False, 0

    def wait(self) -> Steps:
        """More text, if there will be any; what is held must not get too long."""
        if self.is_end or self.cursor > HELD_MAX:
            raise NoCall if self.is_held else Over
        yield

    def space(self) -> Steps:
        """Passes white space."""
        while True:
            match = SPACE.match(self.text, self.place())
            assert match is not None
            self.move(match.end() - self.place())
            if self.place() < len(self.text) or self.is_end:
                return
            yield from self.wait()

    def reads(self, expected: str) -> Generator[None, None, bool]:
        """Whether `expected` comes next; if so, it is passed."""
        while True:
            place = self.place()
            if self.text.startswith(expected, place):
                self.move(len(expected))
                return True
            n = len(self.text) - place
            if self.is_end or n >= len(expected) or not expected.startswith(self.text[place:]):
                return False
            yield

    def passes(self, texts: Iterable[str]) -> Steps:
        """Passes as many of these texts as come, with white space before them."""
        for text in texts:
            self.hold()
            try:
                yield from self.space()
                found = yield from self.reads(text)
            except NoCall:
                found = False
            self.let_go(found)
            if not found:
                self.drop_rest(text)
                return

    def drop_rest(self, *texts: str) -> None:
        """At the end of the answer, what is left isn't shown if it is the beginning of one of these texts."""
        rest = self.text[self.at :].strip() if self.is_end else ""
        if rest and any(text.startswith(rest) for text in texts):
            self.at = len(self.text)

    def until(self, text: str) -> Generator[None, None, str]:
        """What comes before `text`; both are passed."""
        while True:
            most = self.at + KEY_MAX + len(text)
            end = self.text.find(text, self.at, most)
            if end >= 0:
                found = self.text[self.at : end]
                self.at = end + len(text)
                return found
            if len(self.text) >= most:
                raise Broken
            yield from self.wait()

    def before_space(self, end: int) -> int:
        """Where the white space that ends at `end` begins."""
        start, least = end, max(self.at, end - SPACE_MAX)
        while start > least and self.text[start - 1] in " \t\r\n":
            start -= 1
        return start

    def n_at_end(self, text: str) -> int:
        """How many characters at the end of what came could be the beginning of `text`."""
        longest = min(len(text) - 1, len(self.text) - self.at)
        return next((n for n in range(longest, 0, -1) if text.startswith(self.text[-n:])), 0)

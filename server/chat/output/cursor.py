"""The position in the text of one answer: what has been read, what is held back, and the events made so far.

Pure; the base of `calls` and `reader`. Methods that read are generators, so that the code for a format goes from top to
bottom. `yield` waits for more text; after `is_end` there is none. Text that may be a call is held: the code looks at
the text, which stays unread until it is known to be a call.

Not taken: regular expressions over the whole text so far. They take quadratic time and can't report parts of a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable

from server.chat.output.events import Reasoning, Text, ToolCall

HELD_MAX = 16_384  # most characters of a call's head
SPACE_MAX = 64  # most characters of white space before a call that are dropped with it
KEY_MAX = 1000  # most characters of an argument's name

SPACE = re.compile(r"[ \t\r\n]*")

Steps = Generator[None, None, None]


class NoCall(Exception):
    """The held text isn't a call."""


class Over(Exception):
    """The answer ends inside a call."""


class Broken(Exception):
    """The rest of a call can't be read."""


class Cursor:
    """The text from `at` on is unread. While `is_held`, `cursor` characters of it have been looked at."""

    def __init__(self, beginning: str, reasoning: str, new_id: Callable[[], str]) -> None:
        self.reasoning = reasoning
        self.new_id = new_id
        self.is_end = False
        self.is_complete = False  # the model has ended the text itself
        self.is_cut_off = False  # a limit or an abort has ended the text
        self.out: list[Text | Reasoning | ToolCall] = []
        self.parts: list[str] = []  # texts of the last event
        self.text = beginning
        self.n_unsaid = len(beginning)  # characters at the front that aren't in the answer
        self.at = 0
        self.cursor = 0
        self.is_held = False
        self.index = -1  # number of the last call
        self.name = self.call_id = ""
        self.ids: set[str] = set()

    # Events

    def say(self, text: str) -> None:
        if self.n_unsaid:
            text, self.n_unsaid = text[self.n_unsaid :], max(0, self.n_unsaid - len(text))
        self.extend(Text, text)

    def say_to(self, end: int) -> None:
        """Read up to `end` as visible text."""
        if end > self.at:
            self.say(self.text[self.at : end])
            self.at = end

    def think(self, text: str) -> None:
        if self.reasoning != "split":
            self.say(text)
        if self.reasoning != "none":
            self.extend(Reasoning, text)

    def skip_to(self, end: int) -> None:
        """Skip text of reasoning's tags, up to `end`. It is visible if reasoning is."""
        if self.reasoning != "split":
            self.say(self.text[self.at : end])
        self.n_unsaid = 0
        self.at = end

    def announce(self) -> None:
        """Add the beginning of a call: its id and name."""
        call_id = self.call_id
        if not call_id or call_id.isdigit() or call_id in self.ids:
            call_id = self.new_id()
        self.ids.add(call_id)
        self.index += 1
        self.finish_event()
        self.out.append(ToolCall(self.index, call_id, self.name))

    def write(self, arguments: str) -> None:
        if self.out and type(self.out[-1]) is ToolCall:
            self.parts.append(arguments)
        elif arguments:
            self.finish_event()
            self.out.append(ToolCall(self.index))
            self.parts = [arguments]

    def extend(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        if self.out and type(self.out[-1]) is kind:
            self.parts.append(text)
        elif text:
            self.finish_event()
            self.out.append(kind(""))
            self.parts = [text]

    def finish_event(self) -> None:
        """Put the collected parts into the last event."""
        last = self.out[-1] if self.out else None
        if type(last) is ToolCall:
            last.arguments = "".join(self.parts)
        elif last is not None:
            last.text = "".join(self.parts)
        self.parts = []

    # The position in the text

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
        """End holding. With `takes_it` the held text counts as read; otherwise it will be read again."""
        if takes_it:
            self.at += self.cursor
            self.n_unsaid = 0
        self.is_held, self.cursor = False, 0

    def wait(self) -> Steps:
        """Wait for more text. Raises `NoCall` (while text is held) or `Over` if none will come, or if too much is
        held."""
        if self.is_end or self.cursor > HELD_MAX:
            raise NoCall if self.is_held else Over
        yield

    def skip_space(self) -> Steps:
        while True:
            match = SPACE.match(self.text, self.place())
            assert match is not None
            self.move(match.end() - self.place())
            if self.place() < len(self.text) or self.is_end:
                return
            yield from self.wait()

    def accept(self, expected: str) -> Generator[None, None, bool]:
        """Whether `expected` comes next; if so, skip it."""
        while True:
            place = self.place()
            if self.text.startswith(expected, place):
                self.move(len(expected))
                return True
            n = len(self.text) - place
            if self.is_end or n >= len(expected) or not expected.startswith(self.text[place:]):
                return False
            yield

    def skip_texts(self, texts: Iterable[str]) -> Steps:
        """Skip these texts and the white space before each, up to the first one that is missing."""
        for text in texts:
            self.hold()
            try:
                yield from self.skip_space()
                found = yield from self.accept(text)
            except NoCall:
                found = False
            self.let_go(found)
            if not found:
                self.drop_rest(text)
                return

    def drop_rest(self, *texts: str) -> None:
        """At the end of the answer, drop the unread text if it is the beginning of one of these texts."""
        rest = self.text[self.at :].strip() if self.is_end else ""
        if rest and any(text.startswith(rest) for text in texts):
            self.at = len(self.text)

    def read_until(self, text: str) -> Generator[None, None, str]:
        """Read everything up to `text`, and skip `text`."""
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

    def start_of_space(self, end: int) -> int:
        """The beginning of the white space that ends at `end`, at most SPACE_MAX characters before."""
        start, least = end, max(self.at, end - SPACE_MAX)
        while start > least and self.text[start - 1] in " \t\r\n":
            start -= 1
        return start

    def count_at_end(self, text: str) -> int:
        """How many characters at the end of the text so far may be the beginning of `text`."""
        longest = min(len(text) - 1, len(self.text) - self.at)
        return next((n for n in range(longest, 0, -1) if text.startswith(self.text[-n:])), 0)

"""Finds reasoning and calls in the text of one answer, piece by piece, and makes events without tokens.

Pure; `parser` uses one `Reader` per answer. Most text is passed on at once. Held back are white space, the beginning of
a marker, the head of a call, an argument that may be a string or another value, arguments in a JSON string, and
arguments before the call's id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from typing import Any

from server.chat.output.calls import CallReader
from server.chat.output.cursor import SPACE, Broken, NoCall, Over, Steps
from server.chat.output.events import Reasoning, Text, ToolCall
from server.chat.output.formats import CallFormat, ChannelCall, Tags
from server.chat.output.heads import Head, find_heads, start_head
from server.engine.seam.task import STOP_ABORT, STOP_EOS, STOP_LIMIT

HEAD_MAX = 400  # most characters of a message's head (Harmony)

_CALLED = re.compile(r"\bto=(?:functions\.)?([^\s<]+)")


class Reader(CallReader):
    """`feed` takes the next text and returns the events that are certain. `is_plain`: no text is held back, and text in
    which `may_begin` finds nothing is visible text. `is_thinking`: reasoning has begun and hasn't ended."""

    def __init__(
        self, form: CallFormat, tools: Mapping[str, Mapping[str, Any]], reasoning: str, new_id: Callable[[], str]
    ) -> None:
        super().__init__(form, tools, reasoning, new_id)
        self.is_plain = False
        self.is_thinking = False
        markers: dict[str, Head | None] = dict(find_heads(form)) if tools else {}
        silent = (form.content.open, form.content.close, *form.silent) if form.content else form.silent
        markers.update({text.lstrip(): None for text in silent if text.strip()})
        if isinstance(form.call, ChannelCall):
            markers.update(dict.fromkeys((*form.call.ends, form.call.start)))
        self.markers = markers
        self.longest = max(map(len, markers), default=0)
        self.prefixes = {marker[:n] for marker in markers for n in range(1, len(marker))}
        ways = "|".join(map(re.escape, sorted(markers, key=len, reverse=True)))
        self.search = re.compile(ways).search if markers else None
        firsts = "".join(re.escape(first) for first in sorted({marker[0] for marker in markers}))
        at_end = r"|\s\Z" if tools else ""
        self.may_begin = re.compile(f"[{firsts}]{at_end}" if firsts else "(?!)").search
        self.steps = self.read_channels(form.call) if isinstance(form.call, ChannelCall) else self.read_answer()

    def feed(self, text: str, stop: str = "") -> list[Text | Reasoning | ToolCall]:
        """`stop` is the reason for the end of the answer, "" if it goes on."""
        if text and stop:  # read the text first as if it went on, then the end
            return [*self.feed(text), *self.feed("", stop)]
        self.text = self.text[self.at :] + text
        self.at = 0
        self.is_end, self.is_complete = bool(stop), stop == STOP_EOS
        self.is_cut_off = stop in (STOP_LIMIT, STOP_ABORT)
        self.out = []
        next(self.steps, None)
        self.finish_event()
        return self.out

    # Text and reasoning

    def read_answer(self) -> Steps:
        """Read reasoning, then visible text and calls."""
        yield from self.read_reasoning(self.form.reasoning is not None and self.form.reasoning.is_opened)
        if self.form.at_start and self.tools:
            yield from self.read_calls(start_head(self.form))
        while True:
            match = self.search(self.text, self.at) if self.search else None
            if match is None or not self.is_end and self.may_be_longer(match.start()):
                self.say_to(len(self.text) if self.is_end else self.find_held_start())
                if self.is_end:
                    return
                self.is_plain = self.at == len(self.text)
                yield
                self.is_plain = False
                continue
            head = self.markers[match.group()]
            if head is None:
                self.say_to(match.start())
                self.drop_to(match.end())
                continue
            self.say_to(self.start_of_space(match.start()))
            if (yield from self.read_calls(head)):
                yield from self.read_reasoning(False)

    def may_be_longer(self, start: int) -> bool:
        return len(self.text) - start < self.longest and self.text[start:] in self.prefixes

    def find_held_start(self) -> int:
        """The offset from which on text is held back, as the beginning of a marker or white space before a marker."""
        end = len(self.text)
        for start in range(max(self.at, end - self.longest + 1), end):
            if self.text[start:] in self.prefixes:
                end = start
                break
        return self.start_of_space(end) if self.tools else end

    def read_reasoning(self, is_opened: bool) -> Steps:
        """Read reasoning, if it comes next. After it, the model may leave out the next mark's `opening`."""
        tags = self.form.reasoning
        if tags is None:
            return
        opening, open_tag = self.form.opening, tags.open.strip()
        behind = open_tag.removeprefix(opening)
        self.hold()
        try:
            yield from self.skip_space()
            found = yield from self.accept(open_tag)
            if not found and behind[:1] == " ":  # the model left out the space; the engine counts this as reasoning
                found = yield from self.accept(opening + behind[1:])
        except NoCall:
            found = False
        end = self.place()
        self.let_go()
        if found:
            self.skip_to(end)
        if not found and not is_opened:
            return
        space = yield from self.read_reasoning_until(tags)
        self.hold()
        is_whole = yield from self.accept(opening)
        self.let_go()
        if not is_whole:
            if opening and space and any(marker.startswith(opening + " ") for marker in self.markers):
                opening += " "
            self.text = self.text[: self.at] + opening + self.text[self.at :]
            self.n_unsaid = len(opening)

    def read_reasoning_until(self, tags: Tags) -> Generator[None, None, str]:
        """Read reasoning to its closing tag, or to the call that ends it. Returns the white space after the tag."""
        close, called = tags.close.strip(), tags.ends_at if self.tools else ""
        self.is_thinking = True
        has_begun = False
        while True:
            end = self.text.find(close, self.at) if close else -1
            call = self.text.find(called, self.at, end if end >= 0 else None) if called else -1
            n_held = 0 if self.is_end else max(self.count_at_end(close), self.count_at_end(called))
            stop = call if call >= 0 else end if end >= 0 else len(self.text) - n_held
            if not has_begun:
                match = SPACE.match(self.text, self.at, stop)
                assert match is not None
                self.skip_to(match.end())
            stop = self.start_of_space(stop)
            if self.is_end and end < 0 and call < 0:
                stop = len(self.text)
            if stop > self.at:
                has_begun = True
                self.think(self.text[self.at : stop])
                self.at = stop
            if call >= 0:
                self.skip_to(call)
                self.is_thinking = False
                return ""
            if end >= 0:
                self.skip_to(end + len(close))
                break
            if self.is_end:
                return ""
            yield
        space = ""
        while True:
            match = SPACE.match(self.text, self.at)
            assert match is not None
            space += match.group()
            self.skip_to(match.end())
            if self.at < len(self.text) or self.is_end:
                self.is_thinking = False
                return space
            yield

    # Harmony

    def read_channels(self, call: ChannelCall) -> Steps:
        is_analysis = re.compile(re.escape(call.channel) + r"\s*analysis").search
        while True:
            yield from self.skip_texts((call.start,))
            head = yield from self.read_message_head(call)
            called = _CALLED.search(head)
            if called is not None and called.group(1) in self.tools:
                self.name, self.call_id = called.group(1), ""
                self.let_go(takes_it=True)
                self.announce()
                yield from self.read_message_call(call)
            elif called is None and is_analysis(head):
                end = self.place()
                self.let_go()
                self.skip_to(end)
                self.is_thinking = True
                yield from self.read_message(call, self.think)
                self.is_thinking = False
            else:
                self.let_go(takes_it=called is None)
                yield from self.read_message(call, self.say)
            if self.is_end and self.at == len(self.text):
                return

    def read_message_head(self, call: ChannelCall) -> Generator[None, None, str]:
        """Read the head of a message and hold it; returns "" if there is none. A head that a limit or an abort cuts off
        is dropped, unless it has marks of other messages: then it is visible text."""
        marks = (call.start, call.channel, *call.ends)
        self.hold()
        while True:
            rest = self.text[self.at : self.at + HEAD_MAX]
            end = rest.find(call.message)
            begun = rest.lstrip()
            is_head = begun.startswith((call.channel, "to="))
            if is_head and end >= 0:
                self.move(end + len(call.message))
                return rest[:end]
            may_be = is_head or call.channel.startswith(begun) or "to=".startswith(begun)
            if self.is_cut_off and is_head and not any(mark in begun[1:] for mark in marks):
                self.drop_to(len(self.text))
            if self.is_end or not may_be or len(rest) == HEAD_MAX:
                return ""
            yield

    def read_message_call(self, call: ChannelCall) -> Steps:
        """Read a message that is the arguments of a call, and its end."""
        try:
            yield from self.read_arguments()
            yield from self.skip_texts(call.ends)
        except Over:
            self.at = len(self.text)
        except Broken:
            yield from self.read_message(call, self.say)

    def read_message(self, call: ChannelCall, sink: Callable[[str], None]) -> Steps:
        assert self.search is not None
        while True:
            match = self.search(self.text, self.at)
            stop = match.start() if match else len(self.text) if self.is_end else self.find_held_start()
            sink(self.text[self.at : stop])
            self.at = stop
            if match is not None:
                if match.group() != call.start:
                    (self.skip_to if self.is_thinking else self.drop_to)(match.end())
                return
            if self.is_end:
                return
            self.is_plain = self.at == len(self.text) and not self.is_thinking
            yield
            self.is_plain = False

    def drop_to(self, end: int) -> None:
        """Drop the text up to `end`: it belongs to the format."""
        self.at, self.n_unsaid = end, 0

"""Reads tool calls: first the head, then the arguments, which are passed on as JSON, mostly while they arrive.

Pure. `CallReader` is the base class of `reader.Reader`. A call is certain once its head with the name of a known tool
has been read. If the head of a first call doesn't fit, its text becomes visible text and isn't searched for another
head.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any

from server.chat.output.cursor import HELD_MAX, SPACE, SPACE_MAX, Broken, Cursor, NoCall, Over, Steps
from server.chat.output.formats import (
    KEY,
    CallFormat,
    JsonCall,
    KeyedCall,
    NamedCall,
    ParameterCall,
    PythonCall,
    QuotelessCall,
)
from server.chat.output.heads import (
    ID,
    INDEX,
    MARKER_MIN,
    NAME,
    OBJECT,
    Head,
    find_first_word,
    find_marks,
    join_fixed_parts,
    make_next_head,
    split_words,
)
from server.chat.output.kinds import kinds_of, make_elements_json, make_fitting_json, property_of
from server.chat.output.scanner import Scanner, escape_text

ARGUMENTS_KEYS = ("arguments", "parameters")  # models confuse these two
VALUE_MAX = 65_536  # characters; a longer plain text counts as a string
ID_MAX = 100  # characters of an id

_ID = re.compile(rf"[A-Za-z0-9_.:-]{{1,{ID_MAX}}}")
_DIGITS = re.compile("[0-9]{1,9}")
_WORD_CHAR = re.compile(r"[\w.-]")
_VALUE_START = re.compile(rf"""(["']?)(?:[ \t\r\n]|\\[nrt]){{0,{SPACE_MAX}}}""")  # a string's quote, and white space

Sink = Callable[[str], object]


class CallReader(Cursor):
    """`read_calls` reads consecutive calls. `tools` has the schema of each tool's arguments, by the tool's name."""

    def __init__(
        self, form: CallFormat, tools: Mapping[str, Mapping[str, Any]], reasoning: str, new_id: Callable[[], str]
    ) -> None:
        super().__init__(form.opening, reasoning, new_id)
        self.form = form
        self.tools = tools
        self.name_max = max(map(len, tools), default=0)
        self.next_head = make_next_head(form)
        self.group_end = split_words(form.after_all)
        self.call_end = split_words(form.after_call)
        self.given: str | None = None  # JSON of arguments that came before the name
        self.is_waiting = False  # the call is announced once its id, which follows the arguments, has come
        self.body = self._choose_body()
        self.marks = find_marks(form, *self.call_end, *self.group_end)

    def _choose_body(self) -> Callable[[], Steps]:
        """The function that reads a call after its head."""
        call = self.form.call
        if isinstance(call, (JsonCall, KeyedCall)):
            return self.read_object_body
        if isinstance(call, ParameterCall):
            self.call_end = [*split_words(call.after_arguments), *self.call_end]
            return self.read_parameters
        if isinstance(call, PythonCall):
            return self.read_python_arguments
        if isinstance(call, QuotelessCall):
            return self.read_quoteless_arguments
        if isinstance(call, NamedCall):
            self.call_end = [*split_words(call.after_arguments), *self.call_end]
        return self.read_arguments

    def read_calls(self, head: Head) -> Generator[None, None, bool]:
        """Read consecutive calls. Returns False if there is no call: the text of the failed head becomes visible text,
        or is dropped if a limit or an abort cut the head off after its marker."""
        self.hold()
        try:
            yield from self.read_head(head)
        except NoCall:
            end = self.place()
            self.let_go()
            if len(head.parts[0].text) >= MARKER_MIN and self.is_call_cut_off(join_fixed_parts(head)):
                self.at = len(self.text)
            self.say_to(end)
            return False
        try:
            while True:
                yield from self.body()
                yield from self.skip_texts(self.call_end and "}}")  # models write too many brackets
                yield from self.skip_texts(self.call_end)
                if not (yield from self.has_next_call(head.in_group)):
                    break
            yield from self.skip_space()
        except Over:
            self.at = len(self.text)
        except Broken:
            pass
        self.drop_rest(*self.group_end, "".join(self.group_end), *(part.text for part in self.next_head.parts[:1]))
        return True

    def has_next_call(self, in_group: bool) -> Generator[None, None, bool]:
        """Whether another call follows; if so, read its head. If the text after all calls follows instead, skip it."""
        between = find_first_word(self.form.between)
        self.hold()
        try:
            yield from self.skip_space()
            if (in_group or len("".join(self.group_end)) >= MARKER_MIN) and (yield from self.is_group_end()):
                return False
            if between and (yield from self.accept(between)):
                yield from self.skip_space()
            yield from self.read_head(self.next_head)
            return True
        except NoCall:
            self.let_go()
            if self.is_call_cut_off("".join((*self.group_end, between, join_fixed_parts(self.next_head)))):
                raise Over from None
            return False

    def is_call_cut_off(self, own: str) -> bool:
        """Whether a limit or an abort has ended the answer inside a head with the fixed texts `own`. If the unread text
        has more marks, the head is broken instead: a quote is missing, and marks were read as part of a string."""
        unread = self.text[self.at :]
        return self.is_cut_off and all(unread.count(mark) <= own.count(mark) for mark in self.marks)

    def is_group_end(self) -> Generator[None, None, bool]:
        start = self.cursor
        for word in self.group_end:
            yield from self.skip_space()
            if not (yield from self.accept(word)):
                self.cursor = start
                return False
        self.let_go(takes_it=bool(self.group_end))
        return bool(self.group_end)

    # Heads

    def read_head(self, head: Head) -> Steps:
        """Read the head of a call. Raises `NoCall` if the text isn't a call."""
        self.name, self.call_id, self.given = "", "", None
        for part in head.parts:
            yield from self.skip_space()
            if part.text:
                if not (yield from self.accept(part.text)):
                    raise NoCall
            elif part.kind == NAME:
                self.name = yield from self.read_name()
            elif part.kind == ID:
                self.call_id = yield from self.read_match(_ID)
            elif part.kind == INDEX:
                index = yield from self.read_match(_DIGITS)
                self.call_id = self.form.ids.pattern.replace("{name}", self.name).replace("{index}", index)
            elif part.kind == OBJECT:
                yield from self.read_object_head()
        if self.cursor > HELD_MAX:
            raise NoCall
        self.let_go(takes_it=True)
        self.is_waiting = self.must_wait_for_id()
        if not self.is_waiting:
            self.announce()

    def must_wait_for_id(self) -> bool:
        """Whether the call's id follows its arguments, which then wait for the id."""
        call = self.form.call
        return isinstance(call, JsonCall) and bool(call.id_key) and not call.id_first and not self.call_id

    def read_name(self) -> Generator[None, None, str]:
        while True:
            place = self.place()
            rest = self.text[place : place + self.name_max + 1]
            name = max((name for name in self.tools if rest.startswith(name)), key=len, default="")
            may_be_longer = any(other.startswith(rest) and other != name for other in self.tools)
            if self.is_end or not (may_be_longer or len(rest) == len(name)):
                break
            yield
        if not name or _WORD_CHAR.match(rest, len(name)):
            raise NoCall
        self.move(len(name))
        return name

    def read_match(self, pattern: re.Pattern[str]) -> Generator[None, None, str]:
        while True:
            match = pattern.match(self.text, self.place())
            if match is None and self.place() < len(self.text):
                raise NoCall
            if match is not None and match.end() < len(self.text):
                self.move(len(match.group()))
                return match.group()
            yield from self.wait()

    def read_object_head(self) -> Steps:
        """Read the object of a call after its `{`: up to the arguments if the name is known by then, else the whole
        object."""
        call = self.form.call
        while True:
            yield from self.skip_space()
            may_end = self.name and (self.given is not None or not self.form.at_start)
            if may_end and (yield from self.accept("}")):
                self.given = self.given or "{}"
                return
            key = _decode_plain((yield from self.read_value()))
            yield from self.skip_space()
            if not (yield from self.accept(":")):
                raise NoCall
            yield from self.skip_space()
            if isinstance(call, KeyedCall):
                self.name = self.check_name(key)
                yield from self.check_arguments()
                return
            assert isinstance(call, JsonCall)
            if key == call.name_key:
                self.name = self.check_name(_decode_plain((yield from self.read_value())))
            elif key == call.id_key:
                self.call_id = _decode_plain((yield from self.read_value()))
            elif key in (call.arguments_key, *ARGUMENTS_KEYS):
                yield from self.check_arguments()
                if self.name:
                    return
                self.given = yield from self.read_wrapped_object()
            else:
                yield from self.read_value()
            yield from self.skip_space()
            yield from self.accept(",")

    def check_name(self, name: str) -> str:
        """Raises `NoCall` if no tool has this name."""
        if name not in self.tools:
            raise NoCall
        return name

    def check_arguments(self) -> Steps:
        """Raises `NoCall` unless the next value can be arguments: an object or null, perhaps in a string."""
        while True:
            match = _VALUE_START.match(self.text, self.place())
            assert match is not None
            rest = self.text[match.end() : match.end() + 2]
            if self.is_end or rest and rest != "\\":
                break
            yield from self.wait()
        if rest and rest[0] not in "{nN" + match[1]:
            raise NoCall

    def read_value(self) -> Generator[None, None, str]:
        scanner = Scanner()
        parts = []
        while True:
            part, end = scanner.feed(self.text, self.place())
            self.move(end - self.place())
            parts.append(part)
            if scanner.is_done:
                return "".join(parts).strip()
            if scanner.is_broken:
                raise NoCall if self.is_held else Broken
            yield from self.wait()

    # Arguments as JSON

    def read_object_body(self) -> Steps:
        """Read a call's object from the arguments' value on."""
        if self.given is not None:
            self.take_id(self.given)
            return
        if not self.is_waiting:
            yield from self.read_arguments()
            if isinstance(self.form.call, JsonCall):
                yield from self.read_further_keys()
            yield from self.skip_texts("}")
            return
        parts: list[str] = []
        try:
            yield from self.read_arguments(parts.append)
            yield from self.read_further_keys()
            yield from self.skip_texts("}")
        finally:
            self.take_id("".join(parts))

    def take_id(self, arguments: str) -> None:
        """Write the arguments of the call. First announce a call that has waited for its id."""
        if self.is_waiting:
            self.announce()
        self.write(arguments)

    def read_further_keys(self) -> Steps:
        """Read the keys of a call's object that follow the arguments."""
        call = self.form.call
        assert isinstance(call, JsonCall)
        while True:
            self.hold()
            yield from self.skip_space()
            found = yield from self.accept(",")
            self.let_go(found)
            if not found:
                return
            key = _decode_plain((yield from self.read_value()))
            yield from self.skip_texts(":")
            value = yield from self.read_value()
            if key == call.id_key:
                self.call_id = _decode_plain(value)

    def read_arguments(self, sink: Sink | None = None) -> Steps:
        """Read the arguments as an object. Missing arguments and null become {}. In JSON, a string may contain the
        object."""
        sink = sink or self.write
        yield from self.skip_space()
        char = self.text[self.at : self.at + 1]
        if char == "{":
            yield from self.scan(Scanner(), sink)
        elif not char and not self.is_complete:
            raise Over
        elif isinstance(self.form.call, (JsonCall, KeyedCall)) and char:
            sink((yield from self.read_wrapped_object()))
        else:
            sink("{}")

    def read_wrapped_object(self) -> Generator[None, None, str]:
        """Read an object that may be inside a JSON string; {} for null and ""."""
        text = _decode_plain((yield from self.read_value())).strip()
        if text in ("", "null"):
            return "{}"
        if text[0] != "{":
            raise NoCall if self.is_held else Broken
        return text

    def scan(self, scanner: Scanner, sink: Sink) -> Steps:
        """Pass the text through the scanner, up to the end of the scanner's value. If the model ends its answer early,
        missing brackets are added."""
        while True:
            part, self.at = scanner.feed(self.text, self.at)
            if part:
                sink(part)
            if scanner.is_done:
                return
            if scanner.is_broken:
                raise Broken
            missing = scanner.end(self.text[self.at :]) if self.is_complete else None
            if missing is not None:
                sink(missing)
                self.at = len(self.text)
                return
            yield from self.wait()

    def read_python_arguments(self) -> Steps:
        """Read the arguments of a Python call, after its `(`."""
        scanner = Scanner()
        properties = self.tools[self.name].get("properties")
        self.write(scanner.start_call(list(properties) if isinstance(properties, dict) else []))
        yield from self.scan(scanner, self.write)

    def read_quoteless_arguments(self) -> Steps:
        """Read an object whose keys have no quotes, after its `{`."""
        assert isinstance(self.form.call, QuotelessCall)
        scanner = Scanner(self.form.call.quote)
        self.write(scanner.start_object())
        yield from self.scan(scanner, self.write)

    # Arguments with a tag for each

    def read_parameters(self) -> Steps:
        call = self.form.call
        assert isinstance(call, ParameterCall)
        start = "{"
        opening = split_words(call.before_key)
        # In some formats the end of a call begins like an argument: `]<]ns[>[</invoke>` and `]<]ns[>[<`.
        end = [word for word in self.call_end[:1] if word.startswith(opening[0])]
        while not (end and (yield from self.accept_texts(end, takes_it=False))) and (
            yield from self.accept_texts(opening)
        ):
            key = (yield from self.read_until(find_first_word(call.after_key))).strip()
            yield from self.skip_texts(split_words(call.after_key)[1:])
            mark = (yield from self.read_until(find_first_word(call.after_mark))) if call.string_mark else ""
            if (call.after_mark or call.after_key).endswith("\n"):
                yield from self.accept("\n")
            if self.is_cut_off:
                raise Over
            self.write(f"{start}{json.dumps(key, ensure_ascii=False)}: ")
            start = ", "
            yield from self.read_parameter(call, key, mark)
        self.drop_rest(find_first_word(call.before_key), *self.call_end)
        if self.is_cut_off or not self.text[self.at :].strip() and not self.is_complete:
            raise Over
        self.write("{}" if start == "{" else "}")

    def accept_texts(self, texts: list[str], takes_it: bool = True) -> Generator[None, None, bool]:
        """Whether these texts come next; if so, skip them, unless `takes_it` is false."""
        self.hold()
        try:
            for text in texts:
                yield from self.skip_space()
                if not (yield from self.accept(text)):
                    self.let_go()
                    return False
        except NoCall:
            self.let_go()
            return False
        self.let_go(takes_it=takes_it)
        return True

    def read_parameter(self, call: ParameterCall, key: str, mark: str) -> Steps:
        """Read the value of one argument. If it must be a string, pass it on while it arrives, else at its end."""
        is_text = mark == call.string_mark[0] if mark else False
        root = self.tools[self.name]
        kinds = None if mark else kinds_of(property_of(root, key), root)
        close = call.after_value
        if call.quotes and (yield from self.accept(call.quotes[0])):
            is_text, close = True, call.quotes[1]
        if self.is_cut_off:
            raise Over
        value = _Value(self.write, is_text or kinds == frozenset(("string",)))
        try:
            yield from self.read_raw(close.replace(KEY, key), value.add)
        except (Over, Broken):
            value.cut_off(KEY in close)
            raise
        elements = (
            make_elements_json("".join(value.parts), call, property_of(root, key), root) if KEY in close else None
        )
        value.end(kinds, bool(mark) and not is_text, elements)
        if call.quotes and close == call.quotes[1]:
            yield from self.skip_texts(split_words(call.after_value.replace(KEY, key)))

    def read_raw(self, after: str, sink: Sink) -> Steps:
        """Pass the text of a value to `sink`, up to `after`. `after` ends the value only if another text of the format
        follows; otherwise it is part of the value."""
        close = after.strip()
        line_end = "\n" if after.startswith("\n") else ""
        while True:
            end = self.text.find(close, self.at)
            stop = (
                end if end >= 0 else len(self.text) - max(self.count_at_end(close), self.count_at_end(line_end + close))
            )
            if end > self.at and line_end and self.text[end - 1] == "\n":
                stop -= 1
            sink(self.text[self.at : stop])
            self.at = stop
            if end < 0:
                yield from self.wait()
                continue
            self.hold()
            self.move(end - stop + len(close))
            if (yield from self.is_format_next()):
                self.let_go(takes_it=True)
                return
            sink(self.text[self.at : self.place()])
            self.let_go(takes_it=True)

    def is_format_next(self) -> Generator[None, None, bool]:
        """Whether the text after an argument is part of the format."""
        call = self.form.call
        assert isinstance(call, ParameterCall)
        texts = [
            find_first_word(call.after_value),
            find_first_word(call.before_key),
            *self.call_end,
            *self.group_end[:1],
        ]
        texts = [text for text in texts[0 if call.quotes else 1 :] if text]
        longest = max(map(len, texts)) + SPACE_MAX
        while True:
            match = SPACE.match(self.text, self.place())
            assert match is not None
            rest = self.text[match.end() : match.end() + longest]
            if match.end() - self.place() > SPACE_MAX:
                return False
            if any(rest.startswith(text) for text in texts):
                return True
            if self.is_end or not any(text.startswith(rest) for text in texts):
                return self.is_end and any(text.startswith(rest) for text in texts)
            yield


class _Value:
    """Makes the JSON of one argument that the model writes as plain text. A string is passed on at once. Text that may
    be another value waits for its end, at most VALUE_MAX characters."""

    def __init__(self, write: Sink, is_text: bool) -> None:
        self.write = write
        self.is_text = is_text
        self.parts: list[str] = []
        self.n_waiting = 0
        if is_text:
            write('"')

    def add(self, text: str) -> None:
        if self.is_text:
            self.write(escape_text(text))
            return
        self.parts.append(text)
        self.n_waiting += len(text)
        if self.n_waiting > VALUE_MAX:
            self.is_text = True
            self.write('"' + escape_text("".join(self.parts)))

    def end(self, kinds: frozenset[str] | None, is_json: bool, known: str | None) -> None:
        """Write the value's JSON, or the rest of it. `known` is the JSON of a value that is made of nested elements."""
        self.write('"' if self.is_text else known or make_fitting_json("".join(self.parts), kinds, is_json))

    def cut_off(self, is_foreign: bool) -> None:
        """The answer ends inside the value: write the text that has waited, unless the format has nested elements
        instead of JSON (`is_foreign`)."""
        if not self.is_text and not is_foreign:
            self.write("".join(self.parts).strip())


def _decode_plain(json_text: str) -> str:
    """The text of a JSON string; any other JSON value unchanged."""
    return json.loads(json_text) if json_text.startswith('"') else json_text

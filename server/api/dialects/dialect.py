"""The parts of a dialect, and the collected form of an answer. `server.api.generation` uses them, on its threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from server.api.context import Context
from server.api.request.text_request import Arrival, Incoming, TextRequest
from server.chat.output.events import End, Event, Reasoning, Text, ToolCall
from server.engine.seam.task import Final, PromptProbs, Task, TokenProbs
from server.errors import ApiError
from server.records import field, record
from server.web.message import EVENT_STREAM, ErrorShape, Request, Response, make_error_body


@record
class Call:
    """A tool call in an answer. `parts`, joined, are its arguments as JSON text."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.parts)


@record
class Section:
    """A stretch of text or of reasoning. `kind` is the class of its events, `parts` are their texts."""

    kind: type
    parts: list[str] = field(default_factory=list)


@record
class Answer:
    """The answer to one task, collected from its events.

    `tokens` and `probs` belong to the text. `judged` has the events of text, reasoning and calls, beginning with the
    first that has probabilities. `sections` has texts, reasoning and calls in their order.
    """

    task: Task
    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    sections: list[Section | Call] = field(default_factory=list)
    judged: list[Text | Reasoning | ToolCall] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    probs: list[TokenProbs] = field(default_factory=list)
    prompt_probs: list[PromptProbs] = field(default_factory=list)
    final: Final | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, event: Event) -> None:
        if isinstance(event, (Text, Reasoning, ToolCall)) and (event.probs or self.judged):
            self.judged.append(event)
        if type(event) is Text:
            self.parts.append(event.text)
            self._say(Text, event.text)
            self.tokens += event.tokens
            self.probs += event.probs
        elif type(event) is Reasoning:
            self.thoughts.append(event.text)
            self._say(Reasoning, event.text)
        elif type(event) is ToolCall:
            if event.name:
                self.calls.append(Call(event.id, event.name))
                self.sections.append(self.calls[-1])
            self.calls[event.index].parts.append(event.arguments)
        elif isinstance(event, End):
            self.final = event.final
        elif isinstance(event, PromptProbs):
            self.prompt_probs.append(event)

    def list_events(self) -> Iterator[Text | Reasoning | ToolCall]:
        """The answer as events again, one per section."""
        for section in self.sections:
            text = "".join(section.parts)
            yield ToolCall(0, section.id, section.name, text) if isinstance(section, Call) else section.kind(text)

    def _say(self, kind: type, text: str) -> None:
        """Continue the last section, or begin one of this kind."""
        last = self.sections[-1] if self.sections else None
        if isinstance(last, Section) and last.kind is kind:
            last.parts.append(text)
        elif text:
            self.sections.append(Section(kind, [text]))


class Reply(Protocol):
    """Writes the answers to one request, event by event for a stream, or as a whole."""

    id: str
    """The id of the answer, as clients see it; "" if the dialect has none."""
    ping: bytes
    """Sent when a stream has been silent for a while; clients ignore it."""

    def encode_event(self, index: int, event: Event) -> bytes:
        """The bytes of an event of the answer with this index; b"" if the dialect doesn't show it."""

    def end(self) -> bytes:
        """The bytes behind the last event of a stream."""

    def encode_error(self, error: ApiError) -> bytes:
        """The bytes that end a stream with an error."""

    def make_whole(self, answers: Sequence[Answer]) -> object:
        """The answers as one JSON value (or a Response)."""


def make_no_headers(warnings: Sequence[str]) -> dict[str, str]:
    """For dialects that write warnings into their JSON: no headers."""
    return {}


@record(frozen=True)
class Waiting:
    """What a stream sends while its model is being loaded.

    `event` makes a progress event from the request's arrival, the model's name and `load_progress`. `error` makes the
    last event if loading fails.
    """

    event: Callable[[Arrival, str, dict[str, Any]], bytes]
    error: Callable[[ApiError], bytes]


@record(frozen=True)
class Dialect:
    read: Callable[[Incoming], TextRequest | Response]
    """Checks a body and makes the tasks; returns a Response where the model has nothing to write."""
    reply: Callable[[Context, TextRequest], Reply]
    error: ErrorShape = make_error_body
    headers: Callable[[Sequence[str]], dict[str, str]] = make_no_headers
    """Makes the headers that carry an answer's warnings."""
    stream_type: str = EVENT_STREAM
    read_body: Callable[[Request], dict[str, Any]] = Request.read_json_object
    """Makes an object of the body, which is JSON or a form."""
    waiting: Waiting | None = None
    """For streams with `return_progress`; None if the dialect can't show how a model is loaded."""

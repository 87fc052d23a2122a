"""What a dialect consists of. `server.api.generation` runs requests of any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from server.api.context import Context
from server.api.request.text_request import Arrival, Incoming, TextRequest
from server.chat.output.events import End, Event, Reasoning, Text, ToolCall
from server.engine.seam.task import Final, PromptProbs, Task, TokenProbs
from server.errors import ApiError
from server.records import field, record
from server.web.message import EVENT_STREAM, ErrorShape, Request, Response, error_body


@record
class Call:
    """A tool call in an answer: the JSON text of its arguments in `parts`."""

    id: str
    name: str
    parts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """All of them."""
        return "".join(self.parts)


@record
class Section:
    """A stretch of text or of reasoning (`kind` is the event's class) in `parts`."""

    kind: type
    parts: list[str] = field(default_factory=list)


@record
class Answer:
    """What one task has said, collected from its events. `tokens` and `probs` are those of the text; `judged` are all
    events of text, reasoning and calls where tokens have probabilities. `sections` are texts, reasoning and calls in
    their order."""

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
        """All of it."""
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        """What the model has thought before, as far as that is told from the text."""
        return "".join(self.thoughts)

    def add(self, event: Event) -> None:
        """The next event."""
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

    def events(self) -> Iterator[Text | Reasoning | ToolCall]:
        """The answer once more, an event for each section."""
        for section in self.sections:
            text = "".join(section.parts)
            yield ToolCall(0, section.id, section.name, text) if isinstance(section, Call) else section.kind(text)

    def _say(self, kind: type, text: str) -> None:
        """More of a section, or the beginning of one."""
        last = self.sections[-1] if self.sections else None
        if isinstance(last, Section) and last.kind is kind:
            last.parts.append(text)
        elif text:
            self.sections.append(Section(kind, [text]))


class Reply(Protocol):
    """Writes the answers to one request: event by event into a stream, or as a whole."""

    id: str
    """What the client knows the answer by; "" if it has no id."""
    ping: bytes
    """What a stream sends that has been silent for a while; clients ignore it."""

    def event(self, index: int, event: Event) -> bytes:
        """What a stream sends for an event of the answer `index`; b"" for nothing."""

    def end(self) -> bytes:
        """What a stream sends after the last event."""

    def error(self, error: ApiError) -> bytes:
        """What a stream that has begun sends before it breaks off."""

    def whole(self, answers: Sequence[Answer]) -> object:
        """The JSON of the whole answer."""


def no_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Those of a dialect whose answers have their warnings in their JSON."""
    return {}


@record(frozen=True)
class Waiting:
    """What a stream sends before its model is there: how far that is (`event`, given the request's arrival, the model's
    name and `load_progress`), or that it won't come (`error`), which ends the stream."""

    event: Callable[[Arrival, str, dict[str, Any]], bytes]
    error: Callable[[ApiError], bytes]


@record(frozen=True)
class Dialect:
    """`read` checks a request's JSON and makes a typed request of it, `reply` makes what writes the answers to that,
    `error` is the shape of errors, `headers` are those of an answer with these warnings,
    `stream_type` is the content type of its streams. Where nothing is to be written `read` gives the answer itself.
    `read_body` makes the JSON of a body that is none. `waiting` is for streams with `return_progress`, None where their
    form has no place for it."""

    read: Callable[[Incoming], TextRequest | Response]
    reply: Callable[[Context, TextRequest], Reply]
    error: ErrorShape = error_body
    headers: Callable[[Sequence[str]], dict[str, str]] = no_headers
    stream_type: str = EVENT_STREAM
    read_body: Callable[[Request], dict[str, Any]] = Request.json_object
    waiting: Waiting | None = None

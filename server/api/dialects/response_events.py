"""The items of a response, the events of its stream, as OpenAI's clients count and order them, and who writes them.
Connection thread.

An item of the output is announced, so is the part in which its text lies, then come deltas, and at the end all of it
once more. Every event has a number. `replay` makes the same stream of a response that is stored: a client that has lost
it goes on behind the last number that it has seen.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from server import memory
from server.api.context import Context
from server.api.dialects.dialect import Answer
from server.api.dialects.openai import TokenPlaces, likely_json
from server.api.request.chat.tools import AUTO
from server.api.request.text_request import TextRequest
from server.api.serialize import cache_json, timings_json
from server.chat.output.events import End, Event, Progress, Reasoning, Text, ToolCall
from server.engine.seam.task import STOP_ABORT, STOP_LIMIT, Final
from server.errors import ApiError
from server.records import field, record
from server.web.message import to_json
from server.web.sse import PING, named_event

MARK = secrets.token_hex(16)  # where a delta's text goes; no client knows it
QUEUED, IN_PROGRESS, COMPLETED = "queued", "in_progress", "completed"
INCOMPLETE, FAILED, CANCELLED = "incomplete", "failed", "cancelled"
LAST_EVENTS = {COMPLETED: "response.completed", FAILED: "response.failed"}  # of others `response.incomplete`


@record(frozen=True)
class Kind:
    """A kind of items: their type, what their ids begin with, how the events with their text are named, and the field
    that has it. There it lies in a list with a part of the type `part`, unless that is ""; `index` is what events call
    its place in that list, `part_events` how those about it are named."""

    type: str
    prefix: str
    events: str
    field: str
    part: str = ""
    index: str = "content_index"
    part_events: str = "response.content_part"


MESSAGE = Kind("message", "msg", "response.output_text", "content", "output_text")
REASONING = Kind("reasoning", "rs", "response.reasoning_text", "content", "reasoning_text")
SUMMARY = Kind(
    *("reasoning", "rs", "response.reasoning_summary_text", "summary", "summary_text", "summary_index"),
    "response.reasoning_summary_part",
)
FUNCTION_CALL = Kind("function_call", "fc", "response.function_call_arguments", "arguments")
CUSTOM_CALL = Kind("custom_tool_call", "ctc", "response.custom_tool_call_input", "input")
KINDS = (MESSAGE, SUMMARY, REASONING, FUNCTION_CALL, CUSTOM_CALL)
LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"  # of `include`
PROB_BYTES = 2000  # of a token's likelihood in an answer
NO_RESULTS = dict.fromkeys(("usage", "error", "incomplete_details", "completed_at")) | {"output": []}
RESULTS = (*NO_RESULTS, "timings", "cache", "warnings")
"""What a response has at its end only."""
CODES = {429: "rate_limit_exceeded"}
NO_TEXT: dict[str, dict[str, Any]] = {"message": {"role": "assistant"}, "reasoning": {"summary": []}}


@record(frozen=True)
class Exchange:
    """What of a request for a response the store has to know: whose it is, how it is called (`token`), and the items of
    its input, each with an id. With `is_stored` it can be asked for later, and others can go on from it. The items go
    into `conversation`, too, unless that is "". In the background it is made whether or not there is a client, which
    gets a stream of it where it `is_streamed`. `customs` are the names of the tools that take text."""

    token: str
    key_id: str
    created: int
    items: tuple[Any, ...]
    customs: frozenset[str]
    conversation: str = ""
    is_stored: bool = False
    is_background: bool = False
    is_streamed: bool = False

    @property
    def id(self) -> str:
        """That of the response."""
        return "resp_" + self.token


@record
class Item:
    """An item of the output, whose text is in `parts`: of a call the JSON of its arguments. `fields` are those that it
    has besides. With `is_sealed` a client that keeps no more than `encrypted_content` of reasoning keeps it all."""

    kind: Kind
    id: str
    fields: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    status: str = IN_PROGRESS
    is_sealed: bool = False

    @property
    def text(self) -> str:
        """All of it."""
        text = "".join(self.parts)
        return custom_input(text) if self.kind is CUSTOM_CALL else text

    def json(self) -> dict[str, Any]:
        """The item; as long as it is in progress it is shown empty."""
        kind = self.kind
        is_begun = self.status == IN_PROGRESS
        item = {"id": self.id, "type": kind.type, "status": self.status, **NO_TEXT.get(kind.type, {}), **self.fields}
        if not kind.part:
            return {**item, kind.field: "" if is_begun else self.text}
        item[kind.field] = [] if is_begun else [self.part()]
        return {**item, "encrypted_content": seal(self.text)} if self.is_sealed and not is_begun else item

    def part(self) -> dict[str, Any]:
        """The part in which its text lies."""
        part: dict[str, Any] = {"type": self.kind.part, "text": self.text}
        return {**part, "annotations": [], "logprobs": self.logprobs} if self.kind is MESSAGE else part


def custom_input(arguments: str) -> str:
    """What the model says to a tool that takes text; "" of a call that was cut off."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    return found["input"] if isinstance(found, dict) and isinstance(found.get("input"), str) else ""


SEAL = "unsealed:"


def seal(text: str) -> str:
    """Reasoning for a client to keep and to send again. Nothing is encrypted: it may read this."""
    import base64  # here, because few ask for it

    return SEAL + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unseal(text: object) -> str:
    """What `seal` was given; "" for what comes from elsewhere."""
    import base64

    if not isinstance(text, str) or not text.startswith(SEAL):
        return ""
    try:
        return base64.b64decode(text[len(SEAL) :], validate=True).decode()
    except ValueError:
        return ""


class EventWriter:
    """Writes the stream of one response; `response` is it before there is any output. Events up to the number `after`
    are counted and left out. One item is open at a time."""

    def __init__(self, response: Mapping[str, Any], after: int = -1) -> None:
        self.items: list[Item] = []
        self._response = response
        self._after = after
        self._number = 0
        self._open: Item | None = None
        self._place: dict[str, Any] = {}
        self._frame = (b"", b"")  # around the text of a delta

    def begin(self) -> bytes:
        """The first events, of a response in the background those before the engine begins with it."""
        if not self._response["background"]:
            return self._state("created", IN_PROGRESS) + self._state(IN_PROGRESS, IN_PROGRESS)
        return self._state("created", QUEUED) + self._state(QUEUED, QUEUED)

    def progress(self) -> bytes:
        """Behind them, once the engine has begun."""
        return self._state(IN_PROGRESS, IN_PROGRESS) if self._response["background"] else b""

    def open(self, item: Item) -> bytes:
        """Another item, of which nothing is there yet, behind the end of the one before."""
        closed = self.close(COMPLETED)
        kind = item.kind
        self._open = item
        self.items.append(item)
        index = len(self.items) - 1
        self._place = {"item_id": item.id, "output_index": index, **({kind.index: 0} if kind.part else {})}
        added = self._event("response.output_item.added", output_index=index, item=item.json())
        if kind.part:
            added += self._event(kind.part_events + ".added", **self._place, part=item.part())
        logprobs: dict[str, Any] = {"logprobs": []} if kind is MESSAGE else {}
        name = kind.events + ".delta"
        data = named_event(name, {"type": name, **self._place, **logprobs, "delta": MARK})
        before, _, _ = data.partition(to_json(MARK))
        self._frame = before, b',"sequence_number":%d}\n\n'
        return closed + added

    def delta(self, text: str, logprobs: Sequence[Any] = ()) -> bytes:
        """More text of the open item. Around an ordinary piece all but the number is the same each time, and encoded
        once. What goes to a tool that takes text is sent at the end: it is written as JSON."""
        item = self._open
        assert item is not None
        if not text:
            return b""
        item.parts.append(text)
        item.logprobs += logprobs
        if item.kind is CUSTOM_CALL:
            return b""
        if logprobs:
            return self._event(item.kind.events + ".delta", **self._place, delta=text, logprobs=list(logprobs))
        self._number += 1
        if self._number - 1 <= self._after:
            return b""
        before, behind = self._frame
        return before + encode_basestring(text).encode("utf-8", "replace") + behind % (self._number - 1)

    def close(self, status: str) -> bytes:
        """The end of the item that is open."""
        item, self._open = self._open, None
        if item is None:
            return b""
        kind = item.kind
        item.status = status
        events = b""
        if kind is CUSTOM_CALL and item.text:
            events = self._event(kind.events + ".delta", **self._place, delta=item.text)
        logprobs = {"logprobs": item.logprobs} if kind is MESSAGE else {}
        whole = {"text" if kind.part else kind.field: item.text, **logprobs}
        events += self._event(kind.events + ".done", **self._place, **whole)
        if kind.part:
            events += self._event(kind.part_events + ".done", **self._place, part=item.part())
        index = self._place["output_index"]
        return events + self._event("response.output_item.done", output_index=index, item=item.json())

    def end(self, response: Mapping[str, Any]) -> bytes:
        """The last event, with the whole response."""
        return self._event(LAST_EVENTS.get(response["status"], "response.incomplete"), response=response)

    def _state(self, name: str, status: str) -> bytes:
        return self._event("response." + name, response={**self._response, "status": status})

    def _event(self, name: str, **fields: object) -> bytes:
        self._number += 1
        if self._number - 1 <= self._after:
            return b""
        return named_event(name, {"type": name, **fields, "sequence_number": self._number - 1})


def replay(response: Mapping[str, Any], cuts: Sequence[Sequence[int]], was_begun: bool, after: int) -> Iterator[bytes]:
    """The stream of a response that has ended, from behind the number `after` on. `cuts` are how many characters each
    delta of each item had; what they don't say comes at once. `was_begun` says whether the engine began with it."""
    before = {name: value for name, value in response.items() if name not in RESULTS}
    writer = EventWriter({**before, **NO_RESULTS}, after)
    yield writer.begin()
    if was_begun:
        yield writer.progress()
    for i, found in enumerate(response["output"]):
        item, text = item_of(found)
        yield writer.open(item)
        at = 0
        for n in (*(cuts[i] if i < len(cuts) else ()), len(text)):
            yield writer.delta(text[at : at + n])
            at += n
        if item.kind is MESSAGE:
            item.logprobs = found["content"][0]["logprobs"]
        yield writer.close(found["status"])
    yield writer.end(response)


def item_of(found: Mapping[str, Any]) -> tuple[Item, str]:
    """An item as the writer takes it, and its text: the other way round than `Item.json`."""
    kind = next(kind for kind in KINDS if kind.type == found["type"] and found.get(kind.field) not in (None, []))
    text = found[kind.field][0]["text"] if kind.part else found[kind.field]
    fields = {name: found[name] for name in ("name", "call_id") if name in found}
    item = Item(kind, found["id"], fields, is_sealed="encrypted_content" in found)
    return item, json.dumps({"input": text}) if kind is CUSTOM_CALL else text


# ---- answers ----------------------------------------------------------------------------------------------------


class ResponsesReply:
    """Writes one response, and stores it when it has ended unless `is_copy`. Of a stream the events up to the number
    `after` are left out."""

    ping = PING

    def __init__(self, context: Context, asked: TextRequest, after: int = -1, is_copy: bool = False) -> None:
        self._asked, self._context, self._is_copy = asked, context, is_copy
        self._exchange: Exchange = asked.own
        self.id = self._exchange.id
        self.response = response_head(asked)
        self.was_begun = False  # by the engine
        self.share = memory.current()
        self._writer = EventWriter(self.response, after)
        self._is_open = False  # the stream
        self._kind: Kind | None = None  # of the latest item
        self._places = TokenPlaces(asked.model.vocab, asked.tasks[0].preserved_tokens, None, asked.is_parsed)
        self._thoughts = SUMMARY if wants_summary(asked.values["reasoning"]) else REASONING

    def event(self, index: int, event: Event) -> bytes:
        """What a stream sends."""
        if isinstance(event, Progress) and event.place:
            return b""
        begun = self.begin()
        if not self.was_begun:
            self.was_begun = True
            begun += self._writer.progress()
        if isinstance(event, End):
            return begun + self.finish(self._ended(event.final))
        return begun + self._more(event) if isinstance(event, (Text, Reasoning, ToolCall)) else begun

    def begin(self) -> bytes:
        """The first events, once."""
        if self._is_open:
            return b""
        self._is_open = True
        return self._writer.begin()

    def finish(self, response: dict[str, Any]) -> bytes:
        """The last events of a response that has ended in this way."""
        begun = self.begin() + self._writer.close(COMPLETED if response["status"] == COMPLETED else INCOMPLETE)
        output = [item.json() for item in self._writer.items]
        self.response = self._kept({**response, "output": output})
        return begun + self._writer.end(self.response)

    def end(self) -> bytes:
        """Nothing comes behind the last event."""
        return b""

    def error(self, error: ApiError) -> bytes:
        """The last events of a stream that breaks off."""
        code = CODES.get(error.status) or ("invalid_prompt" if error.status < 500 else "server_error")
        return self.finish({**self.response, "status": FAILED, "error": {"code": code, "message": error.message}})

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The response."""
        [answer] = answers
        assert answer.final is not None
        for event in answer.judged or answer.events():
            self._more(event)
        self.finish(self._ended(answer.final))
        return self.response

    def _more(self, event: Text | Reasoning | ToolCall) -> bytes:
        """More of the latest item, or the beginning of another one."""
        logprobs = self._logprobs(event)
        if type(event) is ToolCall:
            opened = b""
            if event.name:
                kind = CUSTOM_CALL if event.name in self._exchange.customs else FUNCTION_CALL
                opened = self._open(kind, {"call_id": event.id, "name": event.name})
            return opened + self._writer.delta(event.arguments)
        if not event.text:
            return b""
        kind = MESSAGE if type(event) is Text else self._thoughts
        return (b"" if kind is self._kind else self._open(kind, {})) + self._writer.delta(event.text, logprobs)

    def _open(self, kind: Kind, fields: dict[str, Any]) -> bytes:
        self._kind = kind
        is_sealed = kind.type == REASONING.type and SEALED in self._asked.values["include"]
        id_ = f"{kind.prefix}_{self._exchange.token}o{len(self._writer.items)}"
        return self._writer.open(Item(kind, id_, fields, is_sealed=is_sealed))

    def _logprobs(self, event: Text | Reasoning | ToolCall) -> list[dict[str, Any]]:
        """Those of the tokens that a text is made of; none of what isn't the answer's text."""
        if not event.probs and not self._asked.values["n_probs"]:
            return []
        self._places.add(event.probs)
        tokens = self._places.take(event.text) if type(event) is not ToolCall else []
        if type(event) is not Text:
            return []
        if self.share is not None:  # the last event has all of them once more
            self.share.take(PROB_BYTES * sum(1 + len(item.top_logprobs) for item, _ in tokens))
        n_top, vocab = self._asked.values["top_logprobs"], self._asked.model.vocab
        return [likely_json(item, n_top, vocab) for item, _ in tokens]

    def _ended(self, final: Final) -> dict[str, Any]:
        """The response, all but its output. One that somebody has stopped is cancelled."""
        status = {STOP_LIMIT: INCOMPLETE, STOP_ABORT: CANCELLED}.get(final.stop, COMPLETED)
        warnings = {"warnings": list(self._asked.warnings)} if self._asked.warnings else {}
        return {
            **self.response,
            "status": status,
            "completed_at": int(time.time()) if status == COMPLETED else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == INCOMPLETE else None,
            "usage": usage(final),
            "timings": timings_json(final.timings),
            "cache": cache_json(final.cache, self._asked.model.vocab),
            **warnings,
        }

    def _kept(self, response: dict[str, Any]) -> dict[str, Any]:
        """The response, which is stored if it is to be; where there is no room for it, it says so."""
        exchange, stored = self._exchange, self._context.stored
        if self._is_copy:
            return response
        found = {"response": response, "input": exchange.items, "was_begun": self.was_begun}
        if exchange.is_background:
            found["cuts"] = [[len(part) for part in item.parts] for item in self._writer.items]
        lines = []
        is_kept = exchange.is_stored and stored.put(self.id, exchange.key_id, found)
        if exchange.is_stored and not is_kept:
            lines.append("store: there is no room for this response (--store-size)")
        items = [*exchange.items, *response["output"]]
        if exchange.conversation and not stored.extend(exchange.conversation, exchange.key_id, items):
            lines.append("conversation: there is no room for these items (--store-size), or it has been deleted")
        if not lines:
            return response
        return {**response, "store": is_kept, "warnings": [*response.get("warnings", ()), *lines]}


def response_head(asked: TextRequest) -> dict[str, Any]:
    """A response before there is any output: what was asked for, and how it took effect."""
    values, sampling = asked.values, asked.tasks[0].sampling
    exchange: Exchange = asked.own
    reasoning = values["reasoning"] or {}
    return {
        "id": exchange.id,
        "object": "response",
        "created_at": exchange.created,
        "status": QUEUED if exchange.is_background else IN_PROGRESS,
        "background": exchange.is_background,
        "instructions": values["instructions"],
        "max_output_tokens": values["max_output_tokens"],
        "model": asked.model.name_for(values["model"]),
        "parallel_tool_calls": values["parallel_tool_calls"],
        "previous_response_id": values["previous_response_id"],
        **({"conversation": {"id": exchange.conversation}} if exchange.conversation else {}),
        "prompt_cache_key": values["prompt_cache_key"] or None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "service_tier": "default",
        "store": exchange.is_stored,
        "temperature": sampling.temperature,
        "text": values["text"] if (values["text"] or {}).get("format") else {"format": {"type": "text"}},
        "tool_choice": AUTO if values["tool_choice"] is None else values["tool_choice"],
        "tools": values["tools"] or [],
        "top_logprobs": values["top_logprobs"],
        "top_p": sampling.top_p,
        "truncation": values["truncation"],
        "metadata": values["metadata"] or {},
        **NO_RESULTS,
    }


def wants_summary(reasoning: Mapping[str, Any] | None) -> bool:
    """Whether what the model thinks is to come as a summary."""
    return any((reasoning or {}).get(name) not in (None, "none") for name in ("summary", "generate_summary"))


def usage(final: Final) -> dict[str, Any]:
    """What a response took."""
    return {
        "input_tokens": final.n_prompt,
        "input_tokens_details": {"cached_tokens": final.timings.cache_n, "cache_write_tokens": 0},
        "output_tokens": final.n_predicted,
        "output_tokens_details": {"reasoning_tokens": final.n_reasoning},
        "total_tokens": final.n_prompt + final.n_predicted,
    }

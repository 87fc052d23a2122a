"""The items of a response and the events of its stream, numbered and ordered as in OpenAI's API.

Runs on the threads that `server/api/generation.py` names. The dialect (`responses.py`) and the store use it.

For each item of the output, the stream has events at the item's beginning, deltas, and events with the complete text at
its end. Every event has a number. `replay` makes the stream of a stored response, so a client that lost the stream can
continue after the last number that it received.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from server.api.context import Context
from server.api.request.chat.messages import require_few
from server.api.request.chat.parts import require_text
from server.errors import ApiError
from server.records import field, record
from server.web.message import to_json
from server.web.sse import encode_named_event

Placed = tuple[Any, str]
"""An item, and its place in the request, which error messages name."""

N_TOKEN = 24  # random bytes in an id
PREFIXES = {  # of an item's id, by the item's type
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
}
MARK = secrets.token_hex(16)  # placeholder for a delta's text; random, so that no other value equals it
QUEUED, IN_PROGRESS, COMPLETED = "queued", "in_progress", "completed"
INCOMPLETE, FAILED, CANCELLED = "incomplete", "failed", "cancelled"
LAST_EVENTS = {COMPLETED: "response.completed", FAILED: "response.failed"}
"""A stream's last event for these statuses; for others it is `response.incomplete`."""


@record(frozen=True)
class Kind:
    """A kind of output items: how the API writes their text and names their events."""

    type: str
    prefix: str
    """The beginning of the items' ids."""
    events: str
    """The names of events with text begin with this."""
    field: str
    """The field with the text."""
    part: str = ""
    """The type of the part with the text, if the field is a list; "" if the field is the text."""
    index: str = "content_index"
    """The name that events have for the part's index in the list."""
    part_events: str = "response.content_part"
    """The names of events about the part begin with this."""


MESSAGE = Kind("message", "msg", "response.output_text", "content", "output_text")
REASONING = Kind("reasoning", "rs", "response.reasoning_text", "content", "reasoning_text")
SUMMARY = Kind(
    *("reasoning", "rs", "response.reasoning_summary_text", "summary", "summary_text", "summary_index"),
    "response.reasoning_summary_part",
)
FUNCTION_CALL = Kind("function_call", "fc", "response.function_call_arguments", "arguments")
CUSTOM_CALL = Kind("custom_tool_call", "ctc", "response.custom_tool_call_input", "input")
KINDS = (MESSAGE, SUMMARY, REASONING, FUNCTION_CALL, CUSTOM_CALL)
LOGPROBS, SEALED = "message.output_text.logprobs", "reasoning.encrypted_content"  # values of `include`
PROB_BYTES = 2000  # bytes of memory for one logprob of an answer
NO_RESULTS = dict.fromkeys(("usage", "error", "incomplete_details", "completed_at")) | {"output": []}
RESULTS = (*NO_RESULTS, "timings", "cache", "warnings")
"""Fields that get their values when a response ends."""
CODES = {429: "rate_limit_exceeded"}  # of errors, by HTTP status
NO_TEXT: dict[str, dict[str, Any]] = {"message": {"role": "assistant"}, "reasoning": {"summary": []}}
"""Further fields of an item, by the item's type."""


@record(frozen=True)
class Exchange:
    """What the store needs to know of a request for a response."""

    token: str
    """The part that the ids of the response and its items share."""
    key_id: str
    created: int
    """Seconds since the epoch."""
    items: tuple[Any, ...]
    """The input."""
    customs: frozenset[str]
    """The names of tools that take text instead of JSON."""
    conversation: str = ""
    """The id of the conversation that input and output are added to; "" for none."""
    is_stored: bool = False
    """Whether the response can be fetched and continued later."""
    is_background: bool = False
    """Whether the response is made even without a client."""
    is_streamed: bool = False
    """Whether the request has `stream`."""

    @property
    def id(self) -> str:
        return "resp_" + self.token


@record
class Item:
    """An item of the output. `parts` are the pieces of its text (for a call: the JSON of its arguments), `fields` its
    other fields. With `is_sealed`, reasoning has `encrypted_content`, too: some clients keep nothing else of it."""

    kind: Kind
    id: str
    fields: dict[str, Any] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    n_logprobs: list[int] = field(default_factory=list)  # of each part
    logprobs: list[Any] = field(default_factory=list)
    status: str = IN_PROGRESS
    is_sealed: bool = False

    @property
    def text(self) -> str:
        text = "".join(self.parts)
        return read_custom_input(text) if self.kind is CUSTOM_CALL else text

    def as_json(self) -> dict[str, Any]:
        """The item as JSON. While it is in progress, it is written without text."""
        kind = self.kind
        is_begun = self.status == IN_PROGRESS
        item = {"id": self.id, "type": kind.type, "status": self.status, **NO_TEXT.get(kind.type, {}), **self.fields}
        if not kind.part:
            return {**item, kind.field: "" if is_begun else self.text}
        item[kind.field] = [] if is_begun else [self.make_part()]
        return {**item, "encrypted_content": seal(self.text)} if self.is_sealed and not is_begun else item

    def make_part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.kind.part, "text": self.text}
        return {**part, "annotations": [], "logprobs": self.logprobs} if self.kind is MESSAGE else part


def read_custom_input(arguments: str) -> str:
    """The text in a custom call's JSON; "" if there is none, as in a call that was cut off."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return ""
    return found["input"] if isinstance(found, dict) and isinstance(found.get("input"), str) else ""


SEAL = "unsealed:"


def seal(text: str) -> str:
    """Pack reasoning for a client that stores it and sends it again. It isn't encrypted: the client may read it."""
    import base64  # imported here: few requests need it

    return SEAL + base64.b64encode(text.encode("utf-8", "replace")).decode()


def unseal(text: object) -> str:
    """Unpack the result of `seal`; "" for anything else."""
    import base64

    if not isinstance(text, str) or not text.startswith(SEAL):
        return ""
    try:
        return base64.b64decode(text[len(SEAL) :], validate=True).decode()
    except ValueError:
        return ""


class EventWriter:
    """Writes the events of one response, whose JSON without output is `response`. Events up to the number `after` are
    counted but not written. At most one item is open at a time."""

    def __init__(self, response: Mapping[str, Any], after: int = -1) -> None:
        self.items: list[Item] = []
        self._response = response
        self._after = after
        self._number = 0
        self._open: Item | None = None
        self._place: dict[str, Any] = {}
        self._frame = (b"", b"")  # the bytes before and after the text of a delta

    def begin(self) -> bytes:
        """The first two events."""
        if not self._response["background"]:
            return self._write_state("created", IN_PROGRESS) + self._write_state(IN_PROGRESS, IN_PROGRESS)
        return self._write_state("created", QUEUED) + self._write_state(QUEUED, QUEUED)

    def write_progress(self) -> bytes:
        """The event of a background response when the engine has begun; b"" for other responses."""
        return self._write_state(IN_PROGRESS, IN_PROGRESS) if self._response["background"] else b""

    def open(self, item: Item) -> bytes:
        """Begin an item, after closing the one before."""
        closed = self.close(COMPLETED)
        kind = item.kind
        self._open = item
        self.items.append(item)
        index = len(self.items) - 1
        self._place = {"item_id": item.id, "output_index": index, **({kind.index: 0} if kind.part else {})}
        added = self._write_event("response.output_item.added", output_index=index, item=item.as_json())
        if kind.part:
            added += self._write_event(kind.part_events + ".added", **self._place, part=item.make_part())
        logprobs: dict[str, Any] = {"logprobs": []} if kind is MESSAGE else {}
        name = kind.events + ".delta"
        data = encode_named_event(name, {"type": name, **self._place, **logprobs, "delta": MARK})
        before, _, _ = data.partition(to_json(MARK))
        self._frame = before, b',"sequence_number":%d}\n\n'
        return closed + added

    def write_delta(self, text: str, logprobs: Sequence[Any] = ()) -> bytes:
        """Add text to the open item. A custom call's text is sent when the item is closed, because the model writes it
        as JSON."""
        item = self._open
        assert item is not None
        if not text:
            return b""
        item.parts.append(text)
        item.n_logprobs.append(len(logprobs))
        item.logprobs += logprobs
        if item.kind is CUSTOM_CALL:
            return b""
        if logprobs:
            return self._write_event(item.kind.events + ".delta", **self._place, delta=text, logprobs=list(logprobs))
        self._number += 1
        if self._number - 1 <= self._after:
            return b""
        before, behind = self._frame
        return before + encode_basestring(text).encode("utf-8", "replace") + behind % (self._number - 1)

    def close(self, status: str) -> bytes:
        item, self._open = self._open, None
        if item is None:
            return b""
        kind = item.kind
        item.status = status
        events = b""
        if kind is CUSTOM_CALL and item.text:
            events = self._write_event(kind.events + ".delta", **self._place, delta=item.text)
        logprobs = {"logprobs": item.logprobs} if kind is MESSAGE else {}
        whole = {"text" if kind.part else kind.field: item.text, **logprobs}
        events += self._write_event(kind.events + ".done", **self._place, **whole)
        if kind.part:
            events += self._write_event(kind.part_events + ".done", **self._place, part=item.make_part())
        index = self._place["output_index"]
        return events + self._write_event("response.output_item.done", output_index=index, item=item.as_json())

    def end(self, response: Mapping[str, Any]) -> bytes:
        return self._write_event(LAST_EVENTS.get(response["status"], "response.incomplete"), response=response)

    def _write_state(self, name: str, status: str) -> bytes:
        return self._write_event("response." + name, response={**self._response, "status": status})

    def _write_event(self, name: str, **fields: object) -> bytes:
        self._number += 1
        if self._number - 1 <= self._after:
            return b""
        return encode_named_event(name, {"type": name, **fields, "sequence_number": self._number - 1})


def replay(
    response: Mapping[str, Any], deltas: Sequence[Sequence[Sequence[int]]], was_begun: bool, after: int
) -> Iterator[bytes]:
    """The stream of a finished response, after the event with the number `after`. `deltas` has for each item its
    deltas' numbers of characters and of logprobs; text beyond them is sent as one delta. `was_begun`: the engine had
    begun with it."""
    before = {name: value for name, value in response.items() if name not in RESULTS}
    writer = EventWriter({**before, **NO_RESULTS}, after)
    yield writer.begin()
    if was_begun:
        yield writer.write_progress()
    for i, found in enumerate(response["output"]):
        item, text = item_of(found)
        yield writer.open(item)
        logprobs = found["content"][0]["logprobs"] if item.kind is MESSAGE else []
        at = n_sent = 0
        for n, n_logprobs in (*(deltas[i] if i < len(deltas) else ()), (len(text), len(logprobs))):
            yield writer.write_delta(text[at : at + n], logprobs[n_sent : n_sent + n_logprobs])
            at += n
            n_sent += n_logprobs
        yield writer.close(found["status"])
    yield writer.end(response)


def item_of(found: Mapping[str, Any]) -> tuple[Item, str]:
    """An item from its JSON, and its text as the model writes it (for a custom call: JSON)."""
    kind = next(kind for kind in KINDS if kind.type == found["type"] and found.get(kind.field) not in (None, []))
    text = found[kind.field][0]["text"] if kind.part else found[kind.field]
    fields = {name: found[name] for name in ("name", "call_id") if name in found}
    item = Item(kind, found["id"], fields, is_sealed="encrypted_content" in found)
    return item, json.dumps({"input": text}) if kind is CUSTOM_CALL else text


# ---- where items come from --------------------------------------------------------------------------------------


def with_ids(value: object, token: str, field: str = "input") -> tuple[Any, ...]:
    """The items in `value`, with short forms written out. An item without id gets one made of `token`. ApiError 400."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if isinstance(value, tuple):  # items that have ids
        return value
    if not isinstance(value, list):
        raise ApiError(400, f"{field} is neither a text nor a list of items")
    require_few(len(value), field)
    items = []
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise ApiError(400, f"{field}[{i}] is not an object")
        if item.get("type") is None and ("role" in item or "id" in item):
            item = {**item, "type": "message" if "role" in item else "item_reference"}
        if item.get("type") == "message" and isinstance(item.get("content"), str):
            kind = "output_text" if item.get("role") == "assistant" else "input_text"
            item = {**item, "content": [{"type": kind, "text": item["content"]}]}
        if not isinstance(item.get("id"), str) and item.get("type") != "item_reference":
            prefix = PREFIXES.get(item["type"], "item") if isinstance(item.get("type"), str) else "item"
            item = {**item, "id": f"{prefix}_{token}i{i}"}
        items.append(item)
    return tuple(items)


def read_conversation_id(value: object) -> str:
    """The id in `conversation`, a text or an object; "" for None. ApiError 400."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return require_text(value, "id", "conversation")
    if not isinstance(value, str):
        raise ApiError(400, "conversation is neither an id nor an object with one")
    return value


def find_earlier_items(context: Context, key_id: str, values: Mapping[str, Any]) -> list[Placed]:
    """The items that a request continues from. ApiError 400, or 404 if they aren't stored for this key."""
    conversation, previous = read_conversation_id(values["conversation"]), values["previous_response_id"]
    if conversation and previous:
        raise ApiError(400, "conversation and previous_response_id can't be used together")
    if conversation:
        found = context.stored.get(conversation, key_id)
        if found is None:
            raise ApiError(404, f"conversation: there is no conversation {conversation[:80]!r}", param="conversation")
        return [(item, "conversation") for item in found["items"]]
    earlier = find_earlier_records(context, key_id, previous) if previous else []
    if earlier and earlier[-1]["response"]["status"] in (QUEUED, IN_PROGRESS):
        raise ApiError(400, f"previous_response_id: {previous} has not ended yet")
    return [(item, "previous_response_id") for found in earlier for item in items_of_record(found)]


def find_earlier_records(context: Context, key_id: str, id_: str) -> list[dict[str, Any]]:
    """A stored response and all that it continues from, the oldest first. ApiError 404 if one isn't stored."""
    found: dict[str, dict[str, Any]] = {}
    while id_:
        one = context.stored.get(id_, key_id) if id_ not in found else None
        if one is None:
            raise ApiError(
                404, f"previous_response_id: there is no response {id_[:80]!r}", param="previous_response_id"
            )
        found[id_] = one
        id_ = one["response"]["previous_response_id"]
    return list(found.values())[::-1]


def items_of_record(found: Mapping[str, Any]) -> list[Any]:
    return [*found["input"], *found["response"]["output"]]


def find_referred_item(
    context: Context, key_id: str, item: Mapping[str, Any], where: str, pool: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """The stored item that a reference names; its id tells which response or conversation to read. `pool` keeps the
    items that were read. Each can be referred to only once, so a request can't multiply stored data. ApiError 404."""
    id_ = require_text(item, "id", where)
    token = id_.partition("_")[2][: 2 * N_TOKEN]
    if token not in pool:
        response, conversation = (context.stored.get(prefix + token, key_id) for prefix in ("resp_", "conv_"))
        items = [*(items_of_record(response) if response else ()), *(conversation["items"] if conversation else ())]
        pool[token] = {one["id"]: one for one in items if one["type"] != "item_reference"}
    found: dict[str, Any] | None = pool[token].pop(id_, None)
    if found is None:
        raise ApiError(404, f"{where}: there is no stored item {id_[:80]!r}, or it is referred to twice", param=where)
    return found

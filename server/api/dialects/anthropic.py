"""The dialect of POST /v1/messages, for Anthropic's clients. Runs on the threads of `server.api.generation`.

A message of a request is a list of blocks. It becomes one or more messages of a `Conversation`, since each result of a
tool is a message of its own. In an answer, each call and each stretch of text or thinking is a block.

A stream begins as soon as prefill has begun, because its first event reports how much of the prompt was cached.
`thinking` blocks have a constant signature because clients expect one; signatures in requests are ignored.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring
from typing import Any

from server.api.context import Context
from server.api.dialects.dialect import Answer, Call, Dialect, Section
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import (
    Conversation,
    list_unread,
    make_chat_prompt,
    make_template_variables,
    require_few,
)
from server.api.request.chat.parts import Part, is_true, join_parts, make_text_part, one_of, require_text
from server.api.request.chat.reasoning import read_reasoning
from server.api.request.chat.tools import AUTO, NONE, REQUIRED, Tool, Tools, check_tool, index_tools, list_items
from server.api.request.constraints import Wanted, read_wanted
from server.api.request.fields import CHAT_FIELDS, MESSAGES, format_names, make_warning_header
from server.api.request.media import Files
from server.api.request.sampling import read_strings
from server.api.request.schema import COMPLETION_FIELDS, INT_MAX, SAMPLING_FIELDS, read
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.chat.output.events import End, Event, Progress, PromptProbs, Reasoning, Start, Text, ToolCall
from server.engine.seam.task import IMAGE, STOP_EOS, STOP_LIMIT, STOP_WORD, Final
from server.errors import ApiError
from server.models.model import Model
from server.web.message import to_json
from server.web.sse import encode_named_event

ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
CHOICES = {"auto": AUTO, "any": REQUIRED, "tool": REQUIRED, "none": NONE}
THINKING = ("enabled", "disabled", "adaptive")
EFFORTS = ("low", "medium", "high", "xhigh", "max")
SIGNATURE = "unsigned"
UNTHREADED = {"error_code": "thread_unsupported_request"}  # makes clients send the whole conversation from then on
BILLING = "x-anthropic-billing-header:"  # begins a system block that is left out, because it changes per request
MARK = secrets.token_hex(16)  # placeholder for a delta's text; random, so that no other value equals it
EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
DELTAS = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}
CALL_DELTA = ("input_json_delta", "partial_json")

Message = dict[str, Any]
Placed = tuple[dict[str, Any], str]
"""A block, and its place in the request for error messages."""


# ---- requests ---------------------------------------------------------------------------------------------------


def read_messages(incoming: Incoming) -> TextRequest:
    model, body = incoming.model, incoming.body
    if body.get("max_tokens") is None:
        raise ApiError(400, "max_tokens: this field is required")
    own = MESSAGES.read(body, model.defaults)
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **own}
    stop = read_strings("stop_sequences", values["stop_sequences"])
    values |= {
        "n_predict": values["max_tokens"],
        "n_cmpl": 1,
        "stop": [*stop, *read_strings("stop", values["stop"])],
        "return_progress": values["stream"],
    }
    chat = make_chat_prompt(model, read_conversation(model, own, incoming.files), incoming.files)
    return make_text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *MESSAGES.list_unread(body)),
        form=answer_form(model, chat, read_format(own["output_config"], model.defaults)),
    )


def read_conversation(model: Model, values: Mapping[str, Any], files: Files) -> Conversation:
    if values["thread"] is not None:
        raise ApiError(400, "thread: this server keeps no threads; send the whole conversation", details=UNTHREADED)
    tools, skipped = read_tools(values["tools"], values["tool_choice"])
    messages = [*read_system(values["system"]), *read_turns(values["messages"], files)]
    require_few(len(messages))
    wish = read_wish(values["thinking"], values["output_config"])
    wishes = read(wish, CHAT_FIELDS, model.defaults)
    variables = make_template_variables(model, wishes, wish, tools)
    prefill = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
    warnings = (*skipped, *list_unread(model, wish))
    return Conversation(
        messages, tools, read_reasoning(wishes, variables), variables, prefill=prefill, warnings=warnings
    )


def read_wish(thinking: Mapping[str, Any] | None, config: Mapping[str, Any] | None) -> dict[str, Any]:
    """`thinking` and `output_config.effort`, under the names that all chat dialects share."""
    wish: dict[str, Any] = {}
    if thinking is not None:
        kind = one_of(THINKING, thinking.get("type"), "thinking.type")
        wish["enable_thinking"] = kind != "disabled"
        if kind == "enabled":
            budget = thinking.get("budget_tokens")
            if type(budget) is not int or not 1 <= budget <= INT_MAX:
                raise ApiError(400, f"thinking.budget_tokens: {str(budget)[:40]!r} is not a positive number")
            wish["reasoning_budget_tokens"] = budget
    effort = (config or {}).get("effort")
    if effort is not None:
        wish["reasoning_effort"] = one_of(EFFORTS, effort, "output_config.effort")
    return wish


def read_format(config: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Wanted | None:
    form = (config or {}).get("format")
    if form is None:
        return read_wanted({}, defaults)
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise ApiError(400, "output_config.format: only an object with the type json_schema and a schema is allowed")
    if not isinstance(form.get("schema"), dict):
        raise ApiError(400, "output_config.format.schema is not an object")
    return Wanted("output_config.format.schema", form["schema"])


def read_tools(value: object, choice: Mapping[str, Any] | None) -> tuple[Tools, tuple[str, ...]]:
    """The tools and the choice among them, with a warning about tools that only Anthropic's servers have."""
    tools, strange = [], []
    for tool, where in list_items(value, "tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where} is not an object")
        kind = tool.get("type") or "custom"
        if not isinstance(kind, str):
            raise ApiError(400, f"{where}.type is not a string")
        if kind == "custom":
            tools.append(read_tool(tool, where))
        else:
            strange.append(kind)
    warnings = (
        (f"tools: ignored, because this server doesn't have these types: {format_names(strange)}",) if strange else ()
    )
    return choose_tools(index_tools(tools, "tools"), choice or {"type": "auto"}), warnings


def choose_tools(tools: Mapping[str, Tool], choice: Mapping[str, Any]) -> Tools:
    kind = one_of(CHOICES, choice.get("type"), "tool_choice.type")
    is_single = is_true(choice, "disable_parallel_tool_use", "tool_choice")
    names = list(tools)
    if kind == "tool":
        names = [require_text(choice, "name", "tool_choice")]
        if names[0] not in tools:
            raise ApiError(400, f"tool_choice.name: there is no tool {names[0][:40]!r}")
    elif kind == "any" and not names:
        raise ApiError(400, "tool_choice: there are no tools to call")
    if not tools:
        return Tools()
    allowed = () if kind == "none" else tuple(tools[name] for name in names)
    return Tools(tuple(tools.values()), allowed, CHOICES[kind], not is_single and kind != "tool")


def read_tool(tool: Mapping[str, Any], where: str) -> Tool:
    """A tool in the form that all chat dialects share."""
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise ApiError(400, f"{where}.input_schema is not an object")
    if schema.get("type", "object") != "object":
        raise ApiError(400, f"{where}.input_schema.type: {str(schema['type'])[:40]!r} is not 'object'")
    function = {name: tool[name] for name in ("name", "description", "strict") if tool.get(name) is not None}
    return check_tool({"function": {**function, "parameters": schema}}, where, where)


def read_system(value: object) -> list[Message]:
    if value is None:
        return []
    parts = [part for block in blocks_of(value, "system") for part in read_text_parts(*block, None)]
    parts = [part for part in parts if not part["text"].startswith(BILLING)]
    return [{"role": "system", "content": join_parts(parts)}] if parts else []


def read_turns(value: object, files: Files) -> Iterator[Message]:
    """The messages of the conversation. Successive messages of one role are joined."""
    if not isinstance(value, list) or not value:
        raise ApiError(400, "messages: a non-empty list of messages is required")
    require_few(len(value))
    turns: list[tuple[str, list[Placed]]] = []
    for i, message in enumerate(value):
        if not isinstance(message, dict):
            raise ApiError(400, f"messages[{i}] is not an object")
        role = one_of(ROLES, message.get("role"), f"messages[{i}].role")
        blocks = blocks_of(message.get("content"), f"messages[{i}].content")
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    for role, blocks in turns:
        yield from ROLES[role](blocks, files)


def blocks_of(content: object, where: str) -> list[Placed]:
    """Content as a list of blocks; a string is one block of text."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, where)]
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is neither a string nor a list of blocks")
    for i, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise ApiError(400, f"{where}[{i}] is not an object with a type")
    return [(block, f"{where}[{i}]") for i, block in enumerate(content)]


def read_user(blocks: list[Placed], files: Files) -> Iterator[Message]:
    """The user's messages, and one message per result of a tool."""
    parts: list[Part] = []
    for block, where in blocks:
        if block["type"] != "tool_result":
            parts += read_content_parts(block, where, files)
            continue
        if parts:
            yield {"role": "user", "content": join_parts(parts)}
            parts = []
        yield read_tool_result(block, where, files)
    if parts or not blocks:
        yield {"role": "user", "content": join_parts(parts)}


def read_tool_result(block: Mapping[str, Any], where: str, files: Files) -> Message:
    """The message with a tool's result. Templates have no field for a failure, so its text begins with `Error:`."""
    parts = [make_text_part("Error:")] if is_true(block, "is_error", where) else []
    if block.get("content") is not None:
        for inner, place in blocks_of(block["content"], f"{where}.content"):
            parts += read_content_parts(inner, place, files)
    return {"role": "tool", "tool_call_id": require_text(block, "tool_use_id", where), "content": join_parts(parts)}


def read_assistant(blocks: list[Placed], files: Files) -> Iterator[Message]:
    texts, thoughts, calls = [], [], []
    for block, where in blocks:
        kind = block["type"]
        if kind == "text":
            texts.append(require_text(block, "text", where))
        elif kind == "thinking":
            thoughts.append(require_text(block, "thinking", where))
        elif kind == "tool_use":
            calls.append(read_tool_call(block, where))
        elif kind != "redacted_thinking":  # encrypted by Anthropic, so it is skipped
            raise make_block_error(kind, where)
    message: Message = {"role": "assistant", "content": "".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    yield message


def read_tool_call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A call in the form that all chat dialects share."""
    if not isinstance(block.get("input"), dict):
        raise ApiError(400, f"{where}.input is not an object")
    function = {"name": require_text(block, "name", where), "arguments": block["input"]}
    return {"id": require_text(block, "id", where), "type": "function", "function": function}


def read_later_system(blocks: list[Placed], files: Files) -> Iterator[Message]:
    yield {
        "role": "system",
        "content": join_parts([part for block in blocks for part in read_text_parts(*block, None)]),
    }


ROLES: dict[str, Callable[[list[Placed], Files], Iterator[Message]]] = {
    "user": read_user,
    "assistant": read_assistant,
    "system": read_later_system,
}


def read_content_parts(block: Mapping[str, Any], where: str, files: Files | None) -> list[Part]:
    if block["type"] not in BLOCKS:
        raise make_block_error(block["type"], where)
    return BLOCKS[block["type"]](block, where, files)


def read_text_parts(block: Mapping[str, Any], where: str, files: Files | None) -> list[Part]:
    if block["type"] != "text":
        raise make_block_error(block["type"], where)
    return [make_text_part(require_text(block, "text", where))]


def read_image_parts(block: Mapping[str, Any], where: str, files: Files) -> list[Part]:
    source = source_of(block, where)
    if source["type"] == "base64":
        marker = files.add_base64(source.get("data"), where, IMAGE)
    elif source["type"] == "url":
        marker = files.add_image(require_text(source, "url", f"{where}.source"), where)
    else:
        raise make_source_error(source, where)
    return [{**make_text_part(marker), "is_media": True}]


def read_document_parts(block: Mapping[str, Any], where: str, files: Files) -> list[Part]:
    """The parts of a document (text or blocks), after its title and its context."""
    source = source_of(block, where)
    heads = [
        make_text_part(require_text(block, name, where)) for name in ("title", "context") if block.get(name) is not None
    ]
    if source["type"] == "text":
        return [*heads, make_text_part(require_text(source, "data", f"{where}.source"))]
    if source["type"] != "content":
        raise ApiError(
            400,
            f"{where}.source: the type {source['type'][:40]!r} isn't supported (PDF isn't either); send the "
            "document's text (a source of the type text) or images of its pages",
        )
    inner = blocks_of(source.get("content"), f"{where}.source.content")
    return heads + [part for one, place in inner for part in read_plain_parts(one, place, files)]


def read_plain_parts(block: Mapping[str, Any], where: str, files: Files) -> list[Part]:
    return (read_image_parts if block["type"] == "image" else read_text_parts)(block, where, files)


def search_result_parts(block: Mapping[str, Any], where: str, files: Files) -> list[Part]:
    """The parts of a search result, after its title and its source."""
    heads = [make_text_part(require_text(block, name, where)) for name in ("title", "source")]
    inner = blocks_of(block.get("content"), f"{where}.content")
    return heads + [part for one, place in inner for part in read_text_parts(one, place, files)]


BLOCKS: dict[str, Callable[[Mapping[str, Any], str, Any], list[Part]]] = {
    "text": read_text_parts,
    "image": read_image_parts,
    "document": read_document_parts,
    "search_result": search_result_parts,
}


def source_of(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    source = block.get("source")
    if not isinstance(source, dict) or not isinstance(source.get("type"), str):
        raise ApiError(400, f"{where}.source is not an object with a type")
    return source


def make_block_error(kind: str, where: str) -> ApiError:
    return ApiError(400, f"{where}: blocks of the type {kind[:40]!r} aren't supported")


def make_source_error(source: Mapping[str, Any], where: str) -> ApiError:
    return ApiError(400, f"{where}.source: the type {source['type'][:40]!r} isn't supported")


# ---- answers ----------------------------------------------------------------------------------------------------


class MessagesReply:
    """Writes one answer. In a stream, at most one block is open at a time."""

    ping = encode_named_event("ping", {"type": "ping"})

    def __init__(self, context: Context, asked: TextRequest) -> None:
        self.id = "msg_" + secrets.token_urlsafe(18)
        self._asked = asked
        self._task = asked.tasks[0]
        self._is_hidden = (asked.values["thinking"] or {}).get("display") == "omitted"
        self._has_begun = self._has_calls = False
        self._index = -1
        self._kind = ""  # of the open block
        self._frame = (b"", b"")  # the bytes before and after the text of its deltas

    def encode_event(self, index: int, event: Event) -> bytes:
        if type(event) is Text:
            return self._begin() + self._go_on("text") + self._encode_delta(event.text) if event.text else b""
        if type(event) is Reasoning:
            if not event.text:
                return b""
            return (
                self._begin() + self._go_on("thinking") + (b"" if self._is_hidden else self._encode_delta(event.text))
            )
        if type(event) is ToolCall:
            head = self._call(event) if event.name else b""
            return self._begin() + head + (self._encode_delta(event.arguments) if event.arguments else b"")
        if isinstance(event, Progress):
            return b"" if event.place else self._begin(event.n_cached)
        if isinstance(event, End):
            return self._begin() + self._close() + encode_named_event("message_delta", self._make_last(event.final))
        assert isinstance(event, (Start, PromptProbs))
        return b""

    def end(self) -> bytes:
        return encode_named_event("message_stop", {"type": "message_stop"})

    def encode_error(self, error: ApiError) -> bytes:
        return encode_named_event("error", make_error_json(error))

    def make_whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """The whole message, without a call that was cut off."""
        [answer] = answers
        assert answer.final is not None
        blocks = [block for section in answer.sections if (block := self._make_whole_block(section)) is not None]
        self._has_calls = bool(answer.calls)
        return {
            **self._make_message(),
            "content": blocks,
            **self._choose_stop_reason(answer.final),
            "usage": make_usage(answer.final),
        }

    def _make_whole_block(self, section: Section | Call) -> dict[str, Any] | None:
        if isinstance(section, Call):
            return make_tool_use(section)
        text = "".join(section.parts)
        if section.kind is Text:
            return {"type": "text", "text": text}
        return {"type": "thinking", "thinking": "" if self._is_hidden else text, "signature": SIGNATURE}

    # ---- blocks of a stream -------------------------------------------------------------------------------------

    def _begin(self, n_cached: int = 0) -> bytes:
        """The event `message_start`, the first time; then nothing."""
        if self._has_begun:
            return b""
        self._has_begun = True
        numbers = make_usage_json(len(self._task.prompt), n_cached, 0)
        message = {**self._make_message(), "content": [], "stop_reason": None, "stop_sequence": None, "usage": numbers}
        return encode_named_event("message_start", {"type": "message_start", "message": message})

    def _go_on(self, kind: str) -> bytes:
        """Make sure that a block of this kind is open."""
        return b"" if kind == self._kind else self._open(kind, EMPTY[kind], *DELTAS[kind])

    def _call(self, call: ToolCall) -> bytes:
        self._has_calls = True
        return self._open("call", {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}, *CALL_DELTA)

    def _open(self, kind: str, block: Mapping[str, Any], delta: str, field: str) -> bytes:
        """Begin a block. `delta` is the type of its deltas and `field` the name of their text."""
        closed = self._close()
        self._kind = kind
        self._index += 1
        before, _, behind = self._encode_block("content_block_delta", delta={"type": delta, field: MARK}).partition(
            to_json(MARK)
        )
        self._frame = before, behind
        return closed + self._encode_block("content_block_start", content_block=block)

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        signature = b""
        if self._kind == "thinking":
            signature = self._encode_block(
                "content_block_delta", delta={"type": "signature_delta", "signature": SIGNATURE}
            )
        self._kind = ""
        return signature + self._encode_block("content_block_stop")

    def _encode_delta(self, text: str) -> bytes:
        before, behind = self._frame
        return before + encode_basestring(text).encode("utf-8", "replace") + behind

    def _encode_block(self, name: str, **fields: object) -> bytes:
        return encode_named_event(name, {"type": name, "index": self._index, **fields})

    # ---- parts of streams and of whole messages -----------------------------------------------------------------

    def _make_message(self) -> dict[str, Any]:
        name = self._asked.model.choose_name(self._asked.values["model"])
        return {"id": self.id, "type": "message", "role": "assistant", "model": name}

    def _make_last(self, final: Final) -> dict[str, Any]:
        return {"type": "message_delta", "delta": self._choose_stop_reason(final), "usage": make_usage(final)}

    def _choose_stop_reason(self, final: Final) -> dict[str, Any]:
        """The stop reason. Only words of `stop_sequences` count as `stop_sequence`; other stop words are a normal
        end."""
        word, reason = None, "end_turn"
        if final.stop == STOP_LIMIT:
            is_full = final.truncated and final.n_predicted < self._task.n_predict
            reason = "model_context_window_exceeded" if is_full else "max_tokens"
        elif final.stop == STOP_WORD and final.stopping_word in self._asked.values["stop_sequences"]:
            word, reason = final.stopping_word, "stop_sequence"
        elif self._has_calls and final.stop in (STOP_EOS, STOP_WORD):
            reason = "tool_use"
        return {"stop_reason": reason, "stop_sequence": word}


def make_tool_use(call: Call) -> dict[str, Any] | None:
    """The block of a call; None if its arguments are incomplete."""
    try:
        return {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
    except (ValueError, RecursionError):
        return None


def make_usage(final: Final) -> dict[str, Any]:
    thinking = {"output_tokens_details": {"thinking_tokens": final.n_reasoning}} if final.n_reasoning else {}
    return {**make_usage_json(final.n_prompt, final.timings.cache_n, final.n_predicted), **thinking}


def make_usage_json(n_prompt: int, n_cached: int, n_predicted: int) -> dict[str, Any]:
    """Token counts; `input_tokens` doesn't include cached tokens of the prompt."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
        "output_tokens": n_predicted,
    }


def make_error_json(error: ApiError) -> dict[str, Any]:
    """An error in this dialect's form. Clients recognise the words for a prompt that is too long, and shorten the
    prompt."""
    kind = ERROR_TYPES.get(error.status) or ("invalid_request_error" if error.status < 500 else "api_error")
    message = error.message
    if error.type == "exceed_context_size_error":
        n_tokens, n_most = error.extra["n_prompt_tokens"], error.extra["n_ctx"]
        message = f"prompt is too long: {n_tokens} tokens > {n_most} maximum ({message})"
    return {"type": "error", "error": {"type": kind, "message": message, **error.extra}}


DIALECT = Dialect(read_messages, MessagesReply, make_error_json, make_warning_header)

"""The dialect of POST /v1/responses, OpenAI's newer API. Runs on the threads that `server/api/generation.py` names.

Input and output consist of items: messages, calls, results of calls, reasoning. Input items become the messages of a
`Conversation`. A response can continue from a stored response or conversation (`server/api/stored`).

A `custom` tool takes text; to the model it is a function with one argument. If the request asks for a summary of the
reasoning, the reasoning's full text is sent as the summary, because such clients show nothing else.
"""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server import memory
from server.api.context import Context
from server.api.dialects.dialect import Answer, Dialect
from server.api.dialects.openai import TokenPlaces, make_likely_json
from server.api.dialects.response_items import (
    CANCELLED,
    CODES,
    COMPLETED,
    CUSTOM_CALL,
    FAILED,
    FUNCTION_CALL,
    IN_PROGRESS,
    INCOMPLETE,
    LOGPROBS,
    MESSAGE,
    N_TOKEN,
    NO_RESULTS,
    PROB_BYTES,
    QUEUED,
    REASONING,
    SEALED,
    SUMMARY,
    EventWriter,
    Exchange,
    Item,
    Kind,
    Placed,
    find_earlier_items,
    find_referred_item,
    read_conversation_id,
    unseal,
    with_ids,
)
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import (
    ChatPrompt,
    Conversation,
    list_unread,
    make_chat_prompt,
    make_template_variables,
    require_few,
    require_short_arguments,
)
from server.api.request.chat.parts import Part, join_parts, make_text_part, one_of, require_text
from server.api.request.chat.reasoning import read_reasoning
from server.api.request.chat.tools import (
    AUTO,
    NONE,
    REQUIRED,
    Tools,
    check_tool,
    index_tools,
    list_items,
    read_known_name,
)
from server.api.request.constraints import Wanted, read_response_format_schema, read_wanted
from server.api.request.fields import CHAT_FIELDS, RESPONSES, format_names
from server.api.request.media import Files, decode
from server.api.request.sampling import read_strings
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, read
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.api.serialize import make_cache_json, make_timings_json
from server.chat.output.events import End, Event, Progress, Reasoning, Text, ToolCall
from server.engine.seam.task import STOP_ABORT, STOP_LIMIT, Final
from server.errors import ApiError
from server.models.model import Model
from server.records import replace
from server.web.sse import PING

Message = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
TRUNCATIONS = ("auto", "disabled")
CHOICES = (AUTO, NONE, REQUIRED)
FORMATS = ("text", "json_object", "json_schema")
SYNTAXES = ("regex", "lark")
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512  # of `metadata`: pairs, and characters of a name and of a value
FOREIGN = (
    *("additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction"),
    *("computer_call", "computer_call_output", "configuration_update", "file_search_call", "image_generation_call"),
    *("local_shell_call", "local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call"),
    *("mcp_list_tools", "program", "program_output", "shell_call", "shell_call_output", "tool_search_call"),
    *("tool_search_output", "web_search_call"),
)
"""Types of items that only OpenAI's servers can use."""


# ---- requests ---------------------------------------------------------------------------------------------------


def read_response(incoming: Incoming) -> TextRequest:
    context, model, body = incoming.context, incoming.model, incoming.body
    own = read_fields(model, body)
    key_id, token = incoming.files.request.key_id, secrets.token_hex(N_TOKEN)
    is_stored = own["store"] and context.stored.n_max > 0
    if own["background"] and not is_stored:
        raise ApiError(400, "background: such a response must be stored (`store`, and the server's --store-size)")
    own["input"] = items = with_ids(own["input"], token)
    chat, customs = read_conversation(context, model, own, incoming.files)
    exchange = Exchange(
        token,
        key_id,
        int(time.time()),
        items,
        customs,
        conversation=read_conversation_id(own["conversation"]),
        is_stored=is_stored,
        is_background=own["background"],
        is_streamed=own["stream"],
    )
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **own}
    n_predict = own["max_output_tokens"]
    values |= {
        "n_predict": values["n_predict"] if n_predict is None else n_predict,
        "n_cmpl": 1,
        "n_probs": max(own["top_logprobs"], 1) if own["top_logprobs"] or LOGPROBS in own["include"] else 0,
        "stream": own["stream"] or own["background"],
        "return_progress": own["stream"] or own["background"],
    }
    is_cut = own["truncation"] == "auto" and not incoming.files.media
    prompt = (
        make_fitting_prompt(model, chat, incoming.files, values["n_predict"])
        if is_cut
        else make_chat_prompt(model, chat, incoming.files)
    )
    asked = make_text_request(
        incoming,
        values,
        [prompt.prompt],
        prompt.text,
        default_ping_s=context.options.sse_ping_interval,
        warnings=(*prompt.warnings, *RESPONSES.list_unread(body)),
        form=answer_form(model, prompt, read_format(own["text"], model.defaults)),
    )
    return replace(asked, own=exchange)


def make_fitting_prompt(model: Model, chat: Conversation, files: Files, n_predict: int) -> ChatPrompt:
    """The prompt of a conversation. If it leaves too little of the context for the answer, the oldest turns are left
    out, but never the system messages at the start or the latest turn."""
    n_ctx = model.info.n_ctx_slot
    room = n_ctx - min(n_predict if n_predict > 0 else n_ctx, n_ctx // 4)
    roles = [message["role"] for message in chat.messages]
    n_first = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    cuts = sorted({n_first, *(i for i, role in enumerate(roles) if role == "user" and i > n_first)})

    def make_prompt(cut: int) -> ChatPrompt:
        left_out = f"truncation: left out {cut - n_first} messages that don't fit into the context"
        messages = [*chat.messages[:n_first], *chat.messages[cut:]]
        warnings = chat.warnings if cut == n_first else (*chat.warnings, left_out)
        return make_chat_prompt(model, replace(chat, messages=messages, warnings=warnings), files)

    def can_fit(cut: int) -> bool:
        try:
            return len(make_prompt(cut).prompt.tokens) <= room
        except ApiError as error:
            if error.type != "exceed_context_size_error":
                raise
            return False

    return make_prompt(cuts[min(bisect_left(cuts, True, key=can_fit), len(cuts) - 1)])


def read_fields(model: Model, body: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the body's fields. ApiError 400."""
    values = RESPONSES.read(body, model.defaults)
    if values["prompt"] is not None:
        raise ApiError(400, "prompt: this server stores no prompts; send the text as instructions and input")
    if values["input"] is None and values["previous_response_id"] is None and values["conversation"] is None:
        raise ApiError(400, "input: a text or a list of items is required")
    one_of(TRUNCATIONS, values["truncation"], "truncation")
    values["include"] = read_strings("include", values["include"])
    check_metadata(values["metadata"])
    return values


def check_metadata(metadata: Mapping[str, Any] | None) -> None:
    if len(metadata or {}) > MAX_PAIRS:
        raise ApiError(400, f"metadata: at most {MAX_PAIRS} pairs are allowed")
    for name, value in (metadata or {}).items():
        if len(name) > MAX_KEY or not isinstance(value, str) or len(value) > MAX_VALUE:
            raise ApiError(
                400,
                f"metadata: {name[:MAX_KEY]!r} must be a name of at most {MAX_KEY} characters with a text of at most "
                f"{MAX_VALUE}",
            )


def read_conversation(
    context: Context, model: Model, values: Mapping[str, Any], files: Files
) -> tuple[Conversation, frozenset[str]]:
    """The conversation of a request, with the items that it continues from, and the names of tools that take text.
    ApiError 400 or 404."""
    tools, customs, warnings = read_tools(values["tools"], values["tool_choice"], values["parallel_tool_calls"])
    before = find_earlier_items(context, files.request.key_id, values)
    messages, left_out = read_messages(context, values, before, files)
    warnings += left_out
    wish = read_wish(values)
    wishes = read(wish, CHAT_FIELDS, model.defaults)
    variables = make_template_variables(model, wishes, wish, tools)
    prefill = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = messages.pop()["content"]
    warnings += list_unread(model, wish)
    return (
        Conversation(messages, tools, read_reasoning(wishes, variables), variables, prefill, warnings=warnings),
        customs,
    )


def read_messages(
    context: Context, values: Mapping[str, Any], before: list[Placed], files: Files
) -> tuple[list[Message], tuple[str, ...]]:
    """The messages of the items in `before` and of the request, and a warning about FOREIGN items."""
    messages: list[Message] = []
    if values["instructions"]:
        messages.append({"role": "system", "content": [make_text_part(values["instructions"])]})
    foreign: list[str] = []
    pool: dict[str, dict[str, Any]] = {}
    items = [*before, *((item, f"input[{i}]") for i, item in enumerate(with_ids(values["input"], "")))]
    require_few(len(items), "input")
    for item, where in items:
        kind = one_of((*ITEMS, *FOREIGN, "item_reference"), item.get("type"), f"{where}.type")
        if kind == "item_reference":
            item = find_referred_item(context, files.request.key_id, item, where, pool)
            kind = item["type"]
        if kind in FOREIGN:
            foreign.append(kind)
        else:
            ITEMS[kind](messages, item, where, files)
    if not messages:
        raise ApiError(400, "input: it has no message to answer")
    messages = [{**message, "content": join_parts(message["content"])} for message in messages]
    require_short_arguments(messages, "input")
    left_out = f"input: ignored, because this server doesn't have these tools: {format_names(foreign)}"
    return messages, (left_out,) if foreign else ()


def read_wish(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of reasoning and template, under the names that all chat dialects share."""
    names = ("enable_thinking", "reasoning_budget_tokens", "chat_template_kwargs")
    wish = {name: values[name] for name in names if values[name] is not None}
    effort = (values["reasoning"] or {}).get("effort")
    if effort is not None:
        wish["reasoning_effort"] = require_text(values["reasoning"], "effort", "reasoning")
    return wish


def read_format(text: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> Wanted | None:
    form = (text or {}).get("format")
    if form is None:
        return read_wanted({}, defaults)
    if not isinstance(form, dict):
        raise ApiError(400, "text.format is not an object")
    kind = one_of(FORMATS, form.get("type"), "text.format.type")
    if kind == "text":
        return read_wanted({}, defaults)
    if kind == "json_object":
        return Wanted("text.format", *(read_response_format_schema({"type": kind}) or ()))
    if not isinstance(form.get("schema"), dict):
        raise ApiError(400, "text.format.schema is not an object")
    if not isinstance(form.get("strict"), (bool, type(None))):
        raise ApiError(400, "text.format.strict is neither true nor false")
    return Wanted("text.format.schema", form["schema"], bool(form.get("strict")))


# ---- tools ------------------------------------------------------------------------------------------------------


def read_tools(value: object, choice: object, is_parallel: bool) -> tuple[Tools, frozenset[str], tuple[str, ...]]:
    """The tools and the choice among them, the names of tools that take text, and a warning about tools of other
    types."""
    tools, customs, strange = [], [], []
    for tool, where in list_items(value, "tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where} is not an object")
        kind = require_text(tool, "type", where)
        if kind == "function":
            named = {name: tool[name] for name in ("name", "description", "parameters", "strict") if name in tool}
            tools.append(check_tool({"function": named}, where, where))
        elif kind == "custom":
            tools.append(check_tool({"function": make_custom_function(tool, where)}, where, where))
            customs.append(tool["name"])
        else:
            strange.append(kind)
    by_name = index_tools(tools, "tools")
    mode, names = read_choice(choice, tuple(by_name))
    warnings = (
        (f"tools: ignored, because this server doesn't have these types: {format_names(strange)}",) if strange else ()
    )
    if not tools:
        return Tools(), frozenset(), warnings
    is_named = isinstance(choice, dict) and choice["type"] != "allowed_tools"
    allowed = () if mode == NONE else tuple(by_name[name] for name in names)
    return Tools(tuple(tools), allowed, mode, is_parallel and not is_named), frozenset(customs), warnings


def make_custom_function(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A tool that takes text, as a function with the argument `input`. A regular expression constrains the text; a
    grammar in Lark's language is only described to the model."""
    form = tool.get("format") or {"type": "text"}
    if not isinstance(form, dict):
        raise ApiError(400, f"{where}.format is not an object")
    schema: dict[str, Any] = {"type": "string"}
    about = "" if tool.get("description") is None else require_text(tool, "description", where)
    if one_of(("text", "grammar"), form.get("type"), f"{where}.format.type") == "grammar":
        rule = require_text(form, "definition", f"{where}.format")
        if one_of(SYNTAXES, form.get("syntax"), f"{where}.format.syntax") == "regex":
            schema["pattern"] = f"^(?:{rule})$"
        else:
            about = f"{about}\n\nThe input has to follow this Lark grammar:\n{rule}".strip()
    parameters = {"type": "object", "properties": {"input": schema}, "required": ["input"]}
    function = {"name": tool.get("name"), "description": about, "strict": True}
    return {**function, "parameters": {**parameters, "additionalProperties": False}}


def read_choice(choice: object, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The kind of choice in `tool_choice`, and the names of the tools that it allows (for NONE: all)."""
    if choice is None:
        return AUTO, names
    if not isinstance(choice, dict):
        mode = one_of(CHOICES, choice, "tool_choice")
        if mode == REQUIRED and not names:
            raise ApiError(400, "tool_choice: there are no tools to call")
        return mode, names
    kind = one_of(("function", "custom", "allowed_tools"), choice.get("type"), "tool_choice.type")
    if kind != "allowed_tools":
        return REQUIRED, (read_known_name(choice, "tool_choice", names),)
    mode = one_of((AUTO, REQUIRED), choice.get("mode"), "tool_choice.mode")
    allowed = []
    for tool, where in list_items(choice.get("tools"), "tool_choice.tools"):
        if not isinstance(tool, dict):
            raise ApiError(400, f"{where} is not an object")
        if tool.get("type") in ("function", "custom"):  # other types are ignored, as in `tools`
            allowed.append(read_known_name(tool, where, names))
    if not allowed:
        raise ApiError(400, "tool_choice.tools: at least one of the tools is required")
    return mode, tuple(name for name in names if name in allowed)


# ---- items ------------------------------------------------------------------------------------------------------


def add_message(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """Add a message. The user's and the assistant's join the last message if it has the same role."""
    role = one_of(ROLES, item.get("role"), f"{where}.role")
    parts = read_content_parts(item.get("content"), f"{where}.content", files)
    if role == "assistant":
        get_assistant_message(messages)["content"] += parts
    elif role == "user" and messages and messages[-1]["role"] == "user":
        messages[-1]["content"] += parts
    else:
        messages.append({"role": role, "content": parts})


def add_reasoning(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """Add reasoning to the assistant's message. If that already has text or calls, begin a new one."""
    texts = [
        require_text(part if isinstance(part, dict) else {}, "text", f"{place}")
        for name in ("content", "summary")
        for part, place in list_items(item.get(name), f"{where}.{name}")
    ]
    if item.get("content"):  # the full reasoning is here, so the summary isn't needed
        texts = texts[: len(item["content"])]
    text = "\n\n".join(texts) or unseal(item.get("encrypted_content"))
    last = get_assistant_message(messages)
    if last["content"] or last.get("tool_calls"):
        messages.append({"role": "assistant", "content": []})
    if text:
        messages[-1]["reasoning_content"] = messages[-1].get("reasoning_content", "") + text


def add_call(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    """Add a call of a function or of a tool that takes text, unless it was cut off."""
    name, call_id = require_text(item, "name", where), require_text(item, "call_id", where)
    if item["type"] == "function_call":
        arguments = require_text(item, "arguments", where)
    else:
        arguments = json.dumps({"input": require_text(item, "input", where)}, ensure_ascii=False)
    if item.get("status") != INCOMPLETE:
        function = {"name": name, "arguments": arguments}
        get_assistant_message(messages).setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": function}
        )


def add_output(messages: list[Message], item: Mapping[str, Any], where: str, files: Files) -> None:
    parts = read_content_parts(item.get("output"), f"{where}.output", files)
    messages.append({"role": "tool", "tool_call_id": require_text(item, "call_id", where), "content": parts})


def get_assistant_message(messages: list[Message]) -> Message:
    """The last message if it is the assistant's, else a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": []})
    return messages[-1]


ITEMS: dict[str, Callable[[list[Message], Mapping[str, Any], str, Files], None]] = {
    "message": add_message,
    "reasoning": add_reasoning,
    "function_call": add_call,
    "function_call_output": add_output,
    "custom_tool_call": add_call,
    "custom_tool_call_output": add_output,
}


def read_content_parts(content: object, where: str, files: Files) -> list[Part]:
    """The parts of a message's content: texts, and markers of images and sounds. ApiError 400."""
    if isinstance(content, str):
        return [make_text_part(content)]
    if not isinstance(content, list):
        raise ApiError(400, f"{where} is neither a text nor a list of parts")
    parts = []
    for i, part in enumerate(content):
        place = f"{where}[{i}]"
        if not isinstance(part, dict):
            raise ApiError(400, f"{place} is not an object")
        kind = one_of((*TEXTS, *FILES), part.get("type"), f"{place}.type")
        parts.append(
            make_text_part(require_text(part, TEXTS[kind], place)) if kind in TEXTS else FILES[kind](part, place, files)
        )
    return parts


def read_image_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    if part.get("image_url") is None:
        raise ApiError(400, f"{where}: this server stores no files for prompts; send the image as image_url")
    return {**make_text_part(files.add_image(require_text(part, "image_url", where), where)), "is_media": True}


def read_sound_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    return {**make_text_part(files.add_part(part, where)), "is_media": True}


def read_file_part(part: Mapping[str, Any], where: str, files: Files) -> Part:
    """A part with the name (if given) and the text of a file. ApiError 400 unless the file is text."""
    if part.get("file_data") is None:
        raise ApiError(400, f"{where}: this server can't fetch files; send the content as file_data")
    data = decode(part["file_data"], where, "file_data")
    memory.hold(len(data))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ApiError(400, f"{where}: only text files (UTF-8) are supported; send the document's text") from None
    return make_text_part(text if part.get("filename") is None else f"{require_text(part, 'filename', where)}\n{text}")


TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
FILES: dict[str, Callable[[Mapping[str, Any], str, Files], Part]] = {
    "input_image": read_image_part,
    "input_audio": read_sound_part,
    "input_file": read_file_part,
}


# ---- answers ----------------------------------------------------------------------------------------------------


class ResponsesReply:
    """Writes one response and, unless `is_copy`, stores it at its end as asked. Events up to the number `after` aren't
    sent."""

    ping = PING

    def __init__(self, context: Context, asked: TextRequest, after: int = -1, is_copy: bool = False) -> None:
        self._asked, self._context, self._is_copy = asked, context, is_copy
        self._exchange: Exchange = asked.own
        self.id = self._exchange.id
        self.response = make_response_head(asked)
        self.was_begun = False  # whether the engine has begun
        self.share = memory.get_current()
        self._writer = EventWriter(self.response, after)
        self._is_open = False  # whether the stream has begun
        self._kind: Kind | None = None  # of the last item
        self._places = TokenPlaces(asked.model.vocab, asked.tasks[0].preserved_tokens, None, asked.is_parsed)
        self._thoughts = SUMMARY if is_summary_wanted(asked.values["reasoning"]) else REASONING

    def encode_event(self, index: int, event: Event) -> bytes:
        if isinstance(event, Progress) and event.place:
            return b""
        begun = self.begin()
        if not self.was_begun:
            self.was_begun = True
            begun += self._writer.write_progress()
        if isinstance(event, End):
            return begun + self.finish(self._make_ended(event.final))
        return begun + self._write_more(event) if isinstance(event, (Text, Reasoning, ToolCall)) else begun

    def begin(self) -> bytes:
        """The first events; b"" if they have been written."""
        if self._is_open:
            return b""
        self._is_open = True
        return self._writer.begin()

    def finish(self, response: dict[str, Any]) -> bytes:
        """The last events. `response` is the finished response without its output."""
        begun = self.begin() + self._writer.close(COMPLETED if response["status"] == COMPLETED else INCOMPLETE)
        output = [item.as_json() for item in self._writer.items]
        self.response = self._keep_response({**response, "output": output})
        return begun + self._writer.end(self.response)

    def end(self) -> bytes:
        """Empty: the last event has been sent."""
        return b""

    def encode_error(self, error: ApiError) -> bytes:
        code = CODES.get(error.status) or ("invalid_prompt" if error.status < 500 else "server_error")
        return self.finish({**self.response, "status": FAILED, "error": {"code": code, "message": error.message}})

    def make_whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        [answer] = answers
        assert answer.final is not None
        for event in answer.judged or answer.list_events():
            self._write_more(event)
        self.finish(self._make_ended(answer.final))
        return self.response

    def _write_more(self, event: Text | Reasoning | ToolCall) -> bytes:
        logprobs = self._make_logprobs(event)
        if type(event) is ToolCall:
            opened = b""
            if event.name:
                kind = CUSTOM_CALL if event.name in self._exchange.customs else FUNCTION_CALL
                opened = self._open(kind, {"call_id": event.id, "name": event.name})
            return opened + self._writer.write_delta(event.arguments)
        if not event.text:
            return b""
        kind = MESSAGE if type(event) is Text else self._thoughts
        return (b"" if kind is self._kind else self._open(kind, {})) + self._writer.write_delta(event.text, logprobs)

    def _open(self, kind: Kind, fields: dict[str, Any]) -> bytes:
        self._kind = kind
        is_sealed = kind.type == REASONING.type and SEALED in self._asked.values["include"]
        id_ = f"{kind.prefix}_{self._exchange.token}o{len(self._writer.items)}"
        return self._writer.open(Item(kind, id_, fields, is_sealed=is_sealed))

    def _make_logprobs(self, event: Text | Reasoning | ToolCall) -> list[dict[str, Any]]:
        """The logprobs of the tokens of a text; empty for reasoning and calls."""
        if not event.probs and not self._asked.values["n_probs"]:
            return []
        self._places.add(event.probs)
        tokens = self._places.take(event.text) if type(event) is not ToolCall else []
        if type(event) is not Text:
            return []
        if self.share is not None:  # they stay in memory until the last event, which repeats them
            self.share.take(PROB_BYTES * sum(1 + len(item.top_logprobs) for item, _ in tokens))
        n_top, vocab = self._asked.values["top_logprobs"], self._asked.model.vocab
        return [make_likely_json(item, n_top, vocab) for item, _ in tokens]

    def _make_ended(self, final: Final) -> dict[str, Any]:
        """The finished response without its output."""
        status = {STOP_LIMIT: INCOMPLETE, STOP_ABORT: CANCELLED}.get(final.stop, COMPLETED)
        warnings = {"warnings": list(self._asked.warnings)} if self._asked.warnings else {}
        return {
            **self.response,
            "status": status,
            "completed_at": int(time.time()) if status == COMPLETED else None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == INCOMPLETE else None,
            "usage": make_usage(final),
            "timings": make_timings_json(final.timings),
            "cache": make_cache_json(self._asked, final),
            **warnings,
        }

    def _keep_response(self, response: dict[str, Any]) -> dict[str, Any]:
        """Store the response and extend its conversation, as asked. Returns it, with warnings if that failed."""
        exchange, stored = self._exchange, self._context.stored
        if self._is_copy:
            return response
        found = {"response": response, "input": exchange.items, "was_begun": self.was_begun}
        if exchange.is_background:
            found["deltas"] = [
                [(len(part), n) for part, n in zip(item.parts, item.n_logprobs)] for item in self._writer.items
            ]
        lines = []
        is_kept = exchange.is_stored and stored.put(self.id, exchange.key_id, found)
        if exchange.is_stored and not is_kept:
            lines.append("store: no room is left for this response (--store-size)")
        items = [*exchange.items, *response["output"]]
        if exchange.conversation and not stored.extend(exchange.conversation, exchange.key_id, items):
            lines.append("conversation: no room is left for these items (--store-size), or it has been deleted")
        if not lines:
            return response
        return {**response, "store": is_kept, "warnings": [*response.get("warnings", ()), *lines]}


def make_response_head(asked: TextRequest) -> dict[str, Any]:
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
        "model": asked.model.choose_name(values["model"]),
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


def is_summary_wanted(reasoning: Mapping[str, Any] | None) -> bool:
    return any((reasoning or {}).get(name) not in (None, "none") for name in ("summary", "generate_summary"))


def make_usage(final: Final) -> dict[str, Any]:
    return {
        "input_tokens": final.n_prompt,
        "input_tokens_details": {"cached_tokens": final.timings.cache_n, "cache_write_tokens": 0},
        "output_tokens": final.n_predicted,
        "output_tokens_details": {"reasoning_tokens": final.n_reasoning},
        "total_tokens": final.n_prompt + final.n_predicted,
    }


DIALECT = Dialect(read_response, ResponsesReply)

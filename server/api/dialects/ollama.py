"""The dialect of POST /api/chat, for Ollama's clients: answers are lines of JSON.

Runs on the threads of `server.api.generation`. `ollama_generate` uses parts of this module. Tool calls in requests may
lack ids: this module makes those that templates need, and matches results to calls by name and order. Arguments of
calls are JSON objects, so a call is sent only when it is complete, and never if it was cut off.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from json.encoder import encode_basestring
from typing import Any

from server.api.context import Context
from server.api.dialects.dialect import Answer, Call, Dialect
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import (
    ROLE,
    Conversation,
    list_unread,
    make_chat_prompt,
    make_template_variables,
    require_few,
)
from server.api.request.chat.reasoning import read_reasoning
from server.api.request.chat.tools import Tools, read_tools
from server.api.request.constraints import Wanted, get_any_object, read_wanted
from server.api.request.fields import CHAT_FIELDS, OLLAMA_CHAT, OLLAMA_OPTIONS, make_warning_header
from server.api.request.media import Files
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, read, shorten
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.api.serialize import make_token_json
from server.chat.output.events import End, Event, Reasoning, Text, ToolCall
from server.chat.segments import read_plain_text
from server.engine.seam.task import STOP_LIMIT, Final, TokenProbs
from server.errors import ApiError
from server.models.model import Model
from server.web.message import Response, make_json_response, parse_json, to_json

STREAM_TYPE = "application/x-ndjson"
EFFORTS = ("low", "medium", "high", "max")
NUMBER = r"[0-9]+(?:\.[0-9]+)?"
DURATION = re.compile(rf"[+-]?(?:{NUMBER}|(?:{NUMBER}(?:ns|us|µs|μs|ms|s|m|h))+)")
DURATION_PART = re.compile(rf"({NUMBER})(ns|us|µs|μs|ms|s|m|h|)")
UNITS = {"": 1.0, "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOR_EVER_S = 1e9  # longer times mean that the model stays loaded
MAX_DURATION = 64  # characters of a `keep_alive`
MAX_NAME = 256  # characters of the model's name in a request; every line of the answer repeats it
MAX_CALLS = 128  # in one message; each result's call is searched for among them
NS_PER_MS = 1_000_000
MARK = secrets.token_hex(16)  # placeholder for a line's text; random, so that the model's name can't equal it
MESSAGE_TYPES = {
    "content": (str, "a string"),
    "thinking": (str, "a string"),
    "images": (list, "a list of images in base64"),
    "tool_calls": (list, "a list of objects"),
    "tool_name": (str, "a string"),
    "name": (str, "a string"),
    "tool_call_id": (str, "a string"),
}

Message = dict[str, Any]
Part = Text | Reasoning | ToolCall
MakePart = Callable[[str, str, list[Message]], Message]
"""Makes the part of a line that holds text, thinking and calls."""


# ---- requests ---------------------------------------------------------------------------------------------------


def read_chat(incoming: Incoming) -> TextRequest | Response:
    """Without messages, the request only loads or unloads the model."""
    model, files = incoming.model, incoming.files
    own = OLLAMA_CHAT.read(incoming.body)
    unknown = OLLAMA_CHAT.list_unread(incoming.body)
    if own["messages"] in (None, []):
        return answer_load(model, own, unknown, make_chat_part)
    tools = read_tools({**own, "parallel_tool_calls": True, "functions": None, "function_call": None})
    messages = read_turns(own["messages"], files)
    chat = make_chat_prompt(model, make_conversation(model, messages, own["think"], tools), files)
    form = answer_form(model, chat, read_format(own["format"], model.defaults))
    values, warnings = read_values(model, own, unknown)
    return make_text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *warnings),
        form=form,
    )


def read_values(
    model: Model, own: Mapping[str, Any], warnings: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of a request for text, and warnings. Also applies `keep_alive`."""
    given = own["options"]
    options = OLLAMA_OPTIONS.read(given, model.defaults, "options.")
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **options, "n_cmpl": 1}
    values |= {name: own[name] for name in ("stream", "model", "top_logprobs")}
    values["n_probs"] = max(own["top_logprobs"], 1) if own["logprobs"] else 0
    lines = [f"options: {line}" for line in OLLAMA_OPTIONS.list_unread(given)]
    n_ctx = model.info.n_ctx_slot
    if (options["num_ctx"] or 0) > n_ctx:
        lines.append(f"options.num_ctx has no effect: this server's context has {n_ctx} tokens (--ctx-size)")
    return values, (*warnings, *lines, *keep_alive(model, own["keep_alive"]))


def keep_alive(model: Model, value: object) -> tuple[str, ...]:
    """Set how long the model stays loaded without work. Returns a warning if the model was to be unloaded but can't be.
    ApiError 400 for an invalid time."""
    if value is None:
        return ()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ApiError(400, f"keep_alive: {shorten(value)} is neither a number of seconds nor a text such as '5m'")
    if isinstance(value, str) and not (len(value) <= MAX_DURATION and DURATION.fullmatch(value)):
        raise ApiError(400, f"keep_alive: {shorten(value)} is not a time; examples are 300, '5m' and '1h30m'")
    if model.keep(seconds_of(value)) or not is_zero(value):
        return ()
    return ("keep_alive has no effect: this server keeps its model loaded",)


def seconds_of(value: float | str) -> float:
    """A valid `keep_alive` in seconds. Negative and very long times mean for ever."""
    if not isinstance(value, str):
        return float(value) if abs(value) < FOR_EVER_S else -1.0
    seconds = sum(float(number) * UNITS[unit] for number, unit in DURATION_PART.findall(value))
    return -1.0 if seconds >= FOR_EVER_S or value.startswith("-") and seconds else seconds


def is_zero(value: object) -> bool:
    """Whether a `keep_alive` asks to unload the model at once."""
    return not any(digit in "123456789" for digit in value) if isinstance(value, str) else value == 0


def make_conversation(model: Model, messages: list[Message], think: object, tools: Tools = Tools()) -> Conversation:
    """The conversation of messages in OpenAI's form. If the last message is the assistant's text, the answer continues
    it."""
    wish = read_wish(think)
    values = read(wish, CHAT_FIELDS, model.defaults)
    variables = make_template_variables(model, values, wish, tools)
    warnings = tuple(f"think: {line}" for line in list_unread(model, wish))
    prefill = ""
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        prefill = read_plain_text(messages[-1]["content"])
        messages = messages[:-1]
    return Conversation(messages, tools, read_reasoning(values, variables), variables, prefill, warnings=warnings)


def read_wish(think: object) -> dict[str, Any]:
    """`think`, under the names that all chat dialects share."""
    if think is None or isinstance(think, bool):
        return {} if think is None else {"enable_thinking": think}
    if think not in EFFORTS:
        raise ApiError(400, f"think: {shorten(think)} is unknown; use true, false, {', '.join(EFFORTS)}")
    return {"enable_thinking": True, "reasoning_effort": think}


def read_format(value: object, defaults: Mapping[str, Any]) -> Wanted | None:
    if value is None or value == "":
        return read_wanted({}, defaults)
    if value != "json" and not isinstance(value, dict):
        raise ApiError(400, f"format: {shorten(value)} is neither 'json' nor a JSON schema")
    return Wanted("format", get_any_object() if value == "json" else value)


def read_turns(value: object, files: Files) -> list[Message]:
    """The messages in OpenAI's form. ApiError 400 names the wrong one."""
    if not isinstance(value, list):
        raise ApiError(400, "messages: a list of messages is required")
    require_few(len(value))
    pending: list[tuple[str, str]] = []  # name and id of the latest message's calls without a result
    n_calls = 0
    turns = []
    for i, message in enumerate(value):
        where = f"messages[{i}]"
        turn = read_turn(message, where, files)
        if turn.get("tool_calls"):
            if len(turn["tool_calls"]) > MAX_CALLS:
                raise ApiError(400, f"{where}.tool_calls: too many, at most {MAX_CALLS} are allowed in one message")
            turn["tool_calls"] = [
                read_call(call, f"{where}.tool_calls[{k}]", n_calls + k) for k, call in enumerate(turn["tool_calls"])
            ]
            n_calls += len(turn["tool_calls"])
            pending = [(call["function"]["name"], call["id"]) for call in turn["tool_calls"]]
        if turn["role"] == "tool" and "tool_call_id" not in turn:
            name = turn.get("name")
            found = next((pair for pair in pending if name in (None, pair[0])), None)
            if found:
                pending.remove(found)
                turn["tool_call_id"] = found[1]
        turns.append(turn)
    return turns


def read_turn(message: object, where: str, files: Files) -> Message:
    """A message in OpenAI's form, but its calls as they came. ApiError 400 if it is invalid."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{where} is not an object")
    role = message.get("role")
    if not isinstance(role, str) or not ROLE.fullmatch(role):
        raise ApiError(400, f"{where}.role: {shorten(role)} is not a role")
    for name, (kind, kind_name) in MESSAGE_TYPES.items():
        given = message.get(name)
        if given is not None and not isinstance(given, kind):
            raise ApiError(400, f"{where}.{name} is not {kind_name}")
    turn = {
        "role": role,
        "content": with_images(message.get("content") or "", message.get("images"), where + ".", files),
    }
    named = {
        "reasoning_content": message.get("thinking"),
        "name": message.get("tool_name") or message.get("name"),
        "tool_call_id": message.get("tool_call_id"),
        "tool_calls": message.get("tool_calls"),
    }
    return {**turn, **{name: given for name, given in named.items() if given}}


def with_images(text: str, images: object, where: str, files: Files) -> str | list[Message]:
    """The content of a message: its images, then its text."""
    if not isinstance(images, list) or not images:
        return text
    markers = [files.add_base64(image, f"{where}images[{k}]") for k, image in enumerate(images)]
    return [*({"type": "text", "text": marker, "is_media": True} for marker in markers), {"type": "text", "text": text}]


def read_call(call: object, where: str, number: int) -> Message:
    """A call in OpenAI's form. If it has no id, it gets one that every template accepts."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise ApiError(400, f"{where}.function is not an object")
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise ApiError(400, f"{where}.function.name is not a string")
    if arguments is not None and not isinstance(arguments, dict):
        raise ApiError(400, f"{where}.function.arguments is not an object")
    id_ = call.get("id")
    return {
        "id": id_ if isinstance(id_, str) and id_ else f"call{number:05d}",
        "type": "function",
        "function": {"name": name, "arguments": arguments or {}},
    }


# ---- answers ----------------------------------------------------------------------------------------------------


def make_chat_part(text: str, thinking: str, calls: list[Message]) -> Message:
    message: Message = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


class OllamaReply:
    """Writes answers in this dialect. For /api/generate without files, the last line has the tokens of prompt and
    visible text."""

    id = ""

    def __init__(self, context: Context, asked: TextRequest, make_part: MakePart = make_chat_part) -> None:
        self._asked = asked
        self._make_part = make_part
        self._has_context = make_part is not make_chat_part
        self._head = make_head(asked.model, asked.values["model"])
        self._call: Call | None = None  # the call that is being written
        self._n_calls = 0
        self._tokens: list[int] = []
        self._text_frame = self._encode_frame(MARK, "")
        self._thought_frame = self._encode_frame("", MARK)
        self.ping = self._encode_line(make_part("", "", []))

    def encode_event(self, index: int, event: Event) -> bytes:
        if type(event) is Text:
            self._tokens += event.tokens if self._has_context else ()
            return self._fill_frame(event, event.text, self._text_frame)
        if type(event) is Reasoning:
            return self._fill_frame(event, event.text, self._thought_frame)
        if type(event) is ToolCall:
            done = self._end_of_call() if event.name else b""
            if event.name:
                self._call = Call(event.id, event.name)
            if self._call is not None:
                self._call.parts.append(event.arguments)
            return done + self._fill_frame(event, "", self._text_frame)
        if isinstance(event, End):
            tokens = [*self._asked.tasks[0].prompt, *self._tokens]
            return self._end_of_call() + self._encode_line(
                {**self._make_part("", "", []), **self._make_numbers(event.final, tokens)}
            )
        return b""

    def end(self) -> bytes:
        """Empty: the last line has `done`."""
        return b""

    def encode_error(self, error: ApiError) -> bytes:
        return to_json(make_error_json(error)) + b"\n"

    def make_whole(self, answers: Sequence[Answer]) -> Message:
        answer = answers[0]
        calls = [made for i, call in enumerate(answer.calls) if (made := call_json(call, i))]
        result = {**self._head, **self._make_part(answer.text, answer.reasoning, calls)}
        if answer.judged:
            result["logprobs"] = [one for part in answer.judged for one in self._make_logprobs(part.probs)]
        return {**result, **self._make_numbers(answer.final, [*answer.task.prompt, *answer.tokens])}

    def _encode_line(self, fields: Message) -> bytes:
        return to_json({**self._head, "done": False, **fields}) + b"\n"

    def _encode_frame(self, text: str, thinking: str) -> tuple[bytes, bytes]:
        """The bytes of a line before and after its text."""
        before, _, behind = self._encode_line(self._make_part(text, thinking, [])).partition(to_json(MARK))
        return before, behind

    def _fill_frame(self, part: Part, text: str, frame: tuple[bytes, bytes]) -> bytes:
        if not text and not part.probs:
            return b""
        done = self._end_of_call() if self._call is not None and type(part) is not ToolCall else b""
        before, behind = frame
        if part.probs:
            behind = behind[:-2] + b',"logprobs":' + to_json(self._make_logprobs(part.probs)) + b"}\n"
        return done + before + encode_basestring(text).encode("utf-8", "replace") + behind

    def _end_of_call(self) -> bytes:
        """The line of the call that is complete now, if there is one."""
        call, self._call = self._call, None
        made = call and call_json(call, self._n_calls)
        if not made:
            return b""
        self._n_calls += 1
        return self._encode_line(self._make_part("", "", [made]))

    def _make_logprobs(self, probs: Sequence[TokenProbs]) -> list[Message]:
        vocab, n_top = self._asked.model.vocab, self._asked.values["top_logprobs"]
        result = []
        for one in probs:
            if not vocab.is_control(one.token):
                shown = make_token_json(one.token, vocab, logprob=one.logprob)
                top = [make_token_json(id_, vocab, logprob=logprob) for id_, logprob in one.top_logprobs[:n_top]]
                result.append({**shown, "top_logprobs": top} if n_top else shown)
        return result

    def _make_numbers(self, final: Final | None, tokens: list[int]) -> Message:
        """The counts and times (ns) of the last line. All other time since the request's arrival counts as
        loading, also time in the queue."""
        assert final is not None
        timings = final.timings
        prompt_ns, eval_ns = int(timings.prompt_ms * NS_PER_MS), int(timings.predicted_ms * NS_PER_MS)
        total_ns = max(time.monotonic_ns() - self._asked.arrival.t_ns, prompt_ns + eval_ns)
        numbers: Message = {
            "done": True,
            "done_reason": "length" if final.stop == STOP_LIMIT else "stop",
            "total_duration": total_ns,
            "load_duration": total_ns - prompt_ns - eval_ns,
            "prompt_eval_count": final.n_prompt,
            "prompt_eval_duration": prompt_ns,
            "eval_count": final.n_predicted,
            "eval_duration": eval_ns,
        }
        if self._has_context and not self._asked.tasks[0].media:
            numbers["context"] = tokens
        return numbers


def make_head(model: Model, name: object) -> Message:
    """The first fields of each line: the model's name, as requested if usable, and the time now."""
    now = datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {"model": name if isinstance(name, str) and 0 < len(name) <= MAX_NAME else model.name, "created_at": now}


def call_json(call: Call, index: int) -> Message | None:
    """The JSON of a call; None if its arguments are incomplete."""
    try:
        arguments = parse_json(call.arguments.encode("utf-8", "replace"))
    except ApiError:
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def answer_load(model: Model, own: Mapping[str, Any], warnings: Sequence[str], make_part: MakePart) -> Response:
    """Apply `keep_alive`, for a request that only loads or unloads the model; returns the answer."""
    warnings = (*warnings, *keep_alive(model, own["keep_alive"]))
    is_end = own["keep_alive"] is not None and is_zero(own["keep_alive"])
    reason = {"done": True, "done_reason": "unload" if is_end else "load"}
    answer = {**make_head(model, own["model"]), **make_part("", "", []), **reason}
    return make_json_response(answer, headers=make_warning_header(warnings))


def make_error_json(error: ApiError) -> Message:
    return {"error": error.message}


DIALECT = Dialect(read_chat, OllamaReply, make_error_json, make_warning_header, STREAM_TYPE)

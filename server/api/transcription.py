"""The dialect of POST /v1/audio/transcriptions and /v1/audio/translations: the text of a sound file. Connection thread.

The request becomes a chat with an instruction and the sound. Chat models don't report when something was said, so there
are no subtitles and no timestamps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.api.context import Context
from server.api.dialects.dialect import Answer, Dialect
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import make_chat_prompt, read_conversation
from server.api.request.constraints import read_wanted
from server.api.request.fields import TRANSCRIPTION, make_warning_header
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, read
from server.api.request.text_request import Incoming, TextRequest, make_text_request
from server.api.serialize import make_cache_json, make_timings_json
from server.chat.output.events import End, Event, Text
from server.engine.seam.task import AUDIO, Final
from server.errors import ApiError
from server.models.model import Model
from server.web.message import Part, Request, Response, make_error_body, parse_json
from server.web.sse import DONE, PING, encode_named_event
from server.web.sse import encode_event as sse_event

WISHES = {"transcribe": "Transcribe audio to text", "translate": "Translate audio to English text"}
"""The instruction to the model, by what the route does."""
SYSTEMS = {"<|tool_list_start|>": "Perform ASR."}
"""System prompts that replace the instruction to transcribe, by a text in the chat template of the model that needs
them (LFM2-Audio)."""
FORMATS = ("json", "text", "verbose_json")
NO_TIMES = "this server can't tell when something was said"


# ---- requests ---------------------------------------------------------------------------------------------------


def read_form(request: Request) -> dict[str, Any]:
    """The form as an object. Values are converted to the types of their fields; a name that ends with [] makes a list.
    ApiError 400 if a field is given twice."""
    body: dict[str, Any] = {}
    kinds = {name: field.kind for field in TRANSCRIPTION.rows for name in (field.name, *field.aliases)}
    for part in request.form:
        value = part if part.is_file else _read_value(part, kinds.get(part.name, str))
        if part.name.endswith("[]"):
            body.setdefault(part.name, []).append(value)
        elif part.name in body:
            raise ApiError(400, f"{part.name[:40]}: this field is given twice")
        else:
            body[part.name] = value
    return body


def _read_value(part: Part, kind: type) -> Any:
    """The value of a field, parsed as JSON unless the field is a text or a list."""
    text = part.decode_text()
    if kind is str or part.name.endswith("[]"):
        return text
    try:
        return parse_json((text.lower() if kind is bool else text).encode())
    except ApiError:
        return text  # the check of the field reports the error


def read_transcription(incoming: Incoming, task: str) -> TextRequest:
    model, body, files = incoming.model, incoming.body, incoming.files
    if not model.info.audio:
        raise ApiError(501, "this model can't hear: start the server with a model for audio and --mmproj FILE")
    own = TRANSCRIPTION.read(body, {**model.defaults, "temperature": 0.0})
    _check_shape(own)
    if not isinstance(own["file"], Part):
        raise ApiError(400, "file: a sound file (WAV, MP3, FLAC) is required")
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **own, "n_cmpl": 1}
    sound = files.add_bytes(own["file"].take(), "file", AUDIO)
    asked = {"messages": make_messages(model, own, task, sound), "enable_thinking": False}
    chat = make_chat_prompt(model, read_conversation(model, asked, files), files)
    return make_text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *TRANSCRIPTION.list_unread(body)),
        form=answer_form(model, chat, read_wanted({}, model.defaults)),
    )


def make_messages(model: Model, values: Mapping[str, Any], task: str, sound: str) -> list[dict[str, Any]]:
    """`sound` is the marker that stands for the file."""
    source, system = model.chat_template.source, ""
    if task == "transcribe" and not values["prompt"]:
        system = next((text for mark, text in SYSTEMS.items() if mark in source), "")
    wish = values["prompt"] or ("" if system else WISHES[task])
    wish += f" (language: {values['language']})" if values["language"] else ""
    content = [{"type": "text", "text": sound, "is_media": True}]
    if wish:
        content.insert(0, {"type": "text", "text": wish.lstrip()})
    said = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": content}]


def _check_shape(values: Mapping[str, Any]) -> None:
    """ApiError 400 if the answer can't have the form that is asked for."""
    shape = values["response_format"]
    if shape in ("srt", "vtt", "diarized_json"):
        raise ApiError(
            400, f"response_format: {shape} isn't supported, because {NO_TIMES}; use one of {', '.join(FORMATS)}"
        )
    if shape not in FORMATS:
        raise ApiError(400, f"response_format: {shape[:40]!r} is unknown; use one of {', '.join(FORMATS)}")
    if values["stream"] and shape != "json":
        raise ApiError(400, f"stream: a stream needs the response_format json, not {shape}")
    if values["timestamp_granularities[]"]:
        raise ApiError(400, f"timestamp_granularities[]: {NO_TIMES}")


# ---- answers ----------------------------------------------------------------------------------------------------


class TranscriptReply:
    """Writes the transcript as plain text, as an object, or as a stream."""

    id = ""
    ping = PING

    def __init__(self, context: Context, asked: TextRequest, task: str) -> None:
        self._asked = asked
        self._task = task
        self._parts: list[str] = []

    def encode_event(self, index: int, event: Event) -> bytes:
        if type(event) is Text and event.text:
            self._parts.append(event.text)
            return sse_event({"type": "transcript.text.delta", "delta": event.text})
        if isinstance(event, End):
            return sse_event({"type": "transcript.text.done", **self._make_object("".join(self._parts), event.final)})
        return b""

    def end(self) -> bytes:
        return DONE

    def encode_error(self, error: ApiError) -> bytes:
        return encode_named_event("error", make_error_body(error))

    def make_whole(self, answers: Sequence[Answer]) -> object:
        [answer] = answers
        assert answer.final is not None
        shape = self._asked.values["response_format"]
        if shape == "text":
            return Response(200, answer.text.encode("utf-8", "replace"), {"Content-Type": "text/plain; charset=utf-8"})
        result = self._make_object(answer.text, answer.final)
        if shape == "verbose_json":
            seconds = round(self._asked.tasks[0].media[0].seconds, 3)
            about = {"task": self._task, "language": self._asked.values["language"], "duration": seconds}
            result |= {**about, "usage": {"type": "duration", "seconds": seconds}}
        return result

    def _make_object(self, text: str, final: Final) -> dict[str, Any]:
        usage = {
            "type": "tokens",
            "input_tokens": final.n_prompt,
            "output_tokens": final.n_predicted,
            "total_tokens": final.n_prompt + final.n_predicted,
        }
        cache = make_cache_json(self._asked, final)
        return {"text": text, "usage": usage, "timings": make_timings_json(final.timings), "cache": cache}


def make_dialect(task: str) -> Dialect:
    return Dialect(
        partial(read_transcription, task=task),
        partial(TranscriptReply, task=task),
        headers=make_warning_header,
        read_body=read_form,
    )


TRANSCRIBE, TRANSLATE = make_dialect("transcribe"), make_dialect("translate")

"""The dialect of POST /v1/audio/transcriptions and /v1/audio/translations: a form with a sound in, its text out.
Connection thread.

A model that hears is a model that chats: the sound stands in a message of the user's, behind what is to be done with
it. It doesn't say when it has heard what, so there are no subtitles and no times of words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from server.api.context import Context
from server.api.dialects.dialect import Answer, Dialect
from server.api.request.chat.answer import answer_form
from server.api.request.chat.messages import chat_prompt, read_conversation
from server.api.request.constraints import read_wanted
from server.api.request.fields import TRANSCRIPTION, warning_header
from server.api.request.schema import COMPLETION_FIELDS, SAMPLING_FIELDS, read
from server.api.request.text_request import Incoming, TextRequest, text_request
from server.api.serialize import cache_json, timings_json
from server.chat.output.events import End, Event, Text
from server.engine.seam.task import AUDIO, Final
from server.errors import ApiError
from server.models.model import Model
from server.web.message import Part, Request, Response, error_body, parse_json
from server.web.sse import DONE, PING, named_event
from server.web.sse import event as sse_event

WISHES = {"transcribe": "Transcribe audio to text", "translate": "Translate audio to English text"}
"""What the model is told to do, by the task's name."""
SYSTEMS = {"<|tool_list_start|>": "Perform ASR."}
"""What the system says instead to models that were trained so, by a mark of their templates (LFM2-Audio)."""
FORMATS = ("json", "text", "verbose_json")
NO_TIMES = "this server doesn't know when something was said"


# ---- requests ---------------------------------------------------------------------------------------------------


def read_form(request: Request) -> dict[str, Any]:
    """The form as an object: texts become what their fields hold, a name that ends with [] a list. ApiError 400."""
    body: dict[str, Any] = {}
    kinds = {name: field.kind for field in TRANSCRIPTION.rows for name in (field.name, *field.aliases)}
    for part in request.form:
        value = part if part.is_file else _value(part, kinds.get(part.name, str))
        if part.name.endswith("[]"):
            body.setdefault(part.name, []).append(value)
        elif part.name in body:
            raise ApiError(400, f"{part.name[:40]}: this field is given twice")
        else:
            body[part.name] = value
    return body


def _value(part: Part, kind: type) -> Any:
    """The value of a field that is no file: JSON, unless it is a text."""
    text = part.text()
    if kind is str or part.name.endswith("[]"):
        return text
    try:
        return parse_json((text.lower() if kind is bool else text).encode())
    except ApiError:
        return text  # whoever reads it says what is wrong


def read_transcription(incoming: Incoming, task: str) -> TextRequest:
    """A sound, whose text is wanted."""
    model, body, files = incoming.model, incoming.body, incoming.files
    if not model.info.audio:
        raise ApiError(
            501, "this model doesn't hear, so it writes no sound down; one that does is started with --mmproj FILE"
        )
    own = TRANSCRIPTION.read(body, {**model.defaults, "temperature": 0.0})
    _check_shape(own)
    if not isinstance(own["file"], Part):
        raise ApiError(400, "file: this field is required, a file with a sound (WAV, MP3, FLAC)")
    values = {**read({}, (*COMPLETION_FIELDS, *SAMPLING_FIELDS), model.defaults), **own, "n_cmpl": 1}
    sound = files.add_bytes(own["file"].take(), "file", AUDIO)
    asked = {"messages": messages(model, own, task, sound), "enable_thinking": False}
    chat = chat_prompt(model, read_conversation(model, asked, files), files)
    return text_request(
        incoming,
        values,
        [chat.prompt],
        chat.text,
        default_ping_s=incoming.context.options.sse_ping_interval,
        warnings=(*chat.warnings, *TRANSCRIPTION.unread(body)),
        form=answer_form(model, chat, read_wanted({}, model.defaults)),
    )


def messages(model: Model, values: Mapping[str, Any], task: str, sound: str) -> list[dict[str, Any]]:
    """What the model is told. `sound` is the marker of the file."""
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
    """ApiError 400 for an answer in a shape that can't be had."""
    shape = values["response_format"]
    if shape in ("srt", "vtt", "diarized_json"):
        raise ApiError(400, f"response_format: no {shape}, because {NO_TIMES}; known are {', '.join(FORMATS)}")
    if shape not in FORMATS:
        raise ApiError(400, f"response_format: {shape[:40]!r} is unknown; known are {', '.join(FORMATS)}")
    if values["stream"] and shape != "json":
        raise ApiError(400, f"stream: what comes in parts comes as json, not as {shape}")
    if values["timestamp_granularities[]"]:
        raise ApiError(400, f"timestamp_granularities[]: {NO_TIMES}")


# ---- answers ----------------------------------------------------------------------------------------------------


class TranscriptReply:
    """Writes the text: by itself, in an object, or piece by piece."""

    id = ""
    ping = PING

    def __init__(self, context: Context, asked: TextRequest, task: str) -> None:
        self._asked = asked
        self._task = task
        self._parts: list[str] = []

    def event(self, index: int, event: Event) -> bytes:
        """What a stream sends; at the end the whole text once more."""
        if type(event) is Text and event.text:
            self._parts.append(event.text)
            return sse_event({"type": "transcript.text.delta", "delta": event.text})
        if isinstance(event, End):
            return sse_event({"type": "transcript.text.done", **self._object("".join(self._parts), event.final)})
        return b""

    def end(self) -> bytes:
        """`[DONE]`."""
        return DONE

    def error(self, error: ApiError) -> bytes:
        """An `error` event, after which the stream ends."""
        return named_event("error", error_body(error))

    def whole(self, answers: Sequence[Answer]) -> object:
        """The text in the shape that was asked for."""
        [answer] = answers
        assert answer.final is not None
        shape = self._asked.values["response_format"]
        if shape == "text":
            return Response(200, answer.text.encode("utf-8", "replace"), {"Content-Type": "text/plain; charset=utf-8"})
        result = self._object(answer.text, answer.final)
        if shape == "verbose_json":
            seconds = round(self._asked.tasks[0].media[0].seconds, 3)
            about = {"task": self._task, "language": self._asked.values["language"], "duration": seconds}
            result |= {**about, "usage": {"type": "duration", "seconds": seconds}}
        return result

    def _object(self, text: str, final: Final) -> dict[str, Any]:
        usage = {
            "type": "tokens",
            "input_tokens": final.n_prompt,
            "output_tokens": final.n_predicted,
            "total_tokens": final.n_prompt + final.n_predicted,
        }
        cache = cache_json(self._asked, final)
        return {"text": text, "usage": usage, "timings": timings_json(final.timings), "cache": cache}


def dialect(task: str) -> Dialect:
    """That of a task."""
    return Dialect(
        partial(read_transcription, task=task),
        partial(TranscriptReply, task=task),
        headers=warning_header,
        read_body=read_form,
    )


TRANSCRIBE, TRANSLATE = dialect("transcribe"), dialect("translate")

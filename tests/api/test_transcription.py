"""POST /v1/audio/transcriptions and /translations over HTTP: forms as input, text in every output format.

The fake model's text depends on every token of the prompt and on the audio. It has no chat template, so the default
ChatML is used.
"""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest

from server.api.context import Context
from tests.api.conftest import PATIENCE, Api
from tests.api.openai_wire import chatml
from tests.fake_media import Eyes, media, seeing
from tests.fakes import BOS, FakeBackend, letters, said_by
from tests.media_files import flac, png, wav
from tests.support import wait_until

URL = "/v1/audio/transcriptions"
SOUND = wav(seconds=0.5)
TYPE = {"Content-Type": "multipart/form-data; boundary=XX"}


def form(file: bytes | None = SOUND, /, **fields: str | list[str]) -> bytes:
    """The body of a request; values of a list come one after another under the name with []."""
    pairs = [(name, value) for name, value in fields.items() if isinstance(value, str)]
    pairs += [(name + "[]", one) for name, value in fields.items() if isinstance(value, list) for one in value]
    parts = [
        f'--XX\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode() for name, value in pairs
    ]
    if file is not None:
        parts.append(b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + file + b"\r\n")
    return b"".join(parts) + b"--XX--\r\n"


def post(api: Api, body: bytes, path: str = URL):
    return api.send("POST", path, body, TYPE)


def hear(api: Api, path: str = URL, **fields: str) -> dict:
    answer = post(api, form(**{"model": "m", "max_tokens": "6", **fields}), path)
    assert answer.status == 200, answer
    return answer.json()


def refuse(api: Api, body: bytes, status: int = 400) -> str:
    n_started = len(api.backend.samplers)
    answer = post(api, body)
    assert answer.status == status, answer
    assert len(api.backend.samplers) == n_started, "the engine was bothered with it"
    return answer.error["message"]


def right(wish: str, n: int = 6, sound: bytes = SOUND) -> str:
    """What the fake model says to a wish and a sound."""
    before, after = chatml(("user", "MARK")).split("MARK")
    tokens = [BOS, *(before + wish).encode()]
    for piece in Eyes(FakeBackend(), True, True).prepare(media(sound)).parts:
        tokens += piece if isinstance(piece, list) else piece.ids
    return bytes(said_by(letters, tokens + list(after.encode()), n)).decode()


@pytest.mark.covers("H01")
def test_a_sound_becomes_the_text_that_a_chat_about_it_would(eyes: Api):
    answer = hear(eyes)
    assert answer["text"] == right("Transcribe audio to text")
    usage = answer["usage"]
    assert (usage["type"], usage["output_tokens"]) == ("tokens", 6)
    assert usage["total_tokens"] == usage["input_tokens"] + 6
    assert "warnings" not in answer and set(answer) == {"text", "usage", "timings", "cache"}


@pytest.mark.covers("H01")
def test_what_the_model_is_told_is_the_request_s_business(eyes: Api):
    assert hear(eyes, language="de")["text"] == right("Transcribe audio to text (language: de)")
    assert hear(eyes, prompt="Who speaks?")["text"] == right("Who speaks?")
    assert hear(eyes, "/audio/translations")["text"] == right("Translate audio to English text")
    assert hear(eyes, "/v1/audio/translations", language="de", prompt="Sing")["text"] == right("Sing (language: de)")


def test_a_model_that_was_trained_to_be_told_by_the_system_is(make_api):
    source = "{# <|tool_list_start|> #}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    api = make_api(seeing(), ("--chat-template", source)).start()
    for fields, prompt in (
        ({}, "[system]Perform ASR.[user]<__media__>"),
        ({"language": "de"}, "[system]Perform ASR.[user](language: de)<__media__>"),
        ({"prompt": "Sing"}, "[user]Sing<__media__>"),
    ):
        seen: list[object] = []
        with patch.object(Context, "keep_prompt", lambda _, shown, seen=seen: seen.append(shown)):
            hear(api, **fields)
        assert seen == [prompt]


@pytest.mark.covers("H01")
def test_shapes_of_answers(eyes: Api):
    text = hear(eyes)["text"]
    plain = post(eyes, form(model="m", max_tokens="6", response_format="text"))
    assert (plain.status, plain.body.decode(), plain.headers["content-type"]) == (
        200,
        text,
        "text/plain; charset=utf-8",
    )
    verbose = hear(eyes, response_format="verbose_json", language="en")
    assert {name: verbose[name] for name in ("task", "language", "duration", "text", "usage")} == {
        "task": "transcribe",
        "language": "en",
        "duration": 0.5,
        "text": right("Transcribe audio to text (language: en)"),
        "usage": {"type": "duration", "seconds": 0.5},
    }
    assert hear(eyes, "/v1/audio/translations", response_format="verbose_json")["task"] == "translate"


@pytest.mark.covers("H01")
def test_a_stream_has_the_text_in_parts_and_at_its_end_as_a_whole(eyes: Api):
    whole = hear(eyes)
    answer = post(eyes, form(model="m", max_tokens="6", stream="true"))
    blocks = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert answer.headers["content-type"].startswith("text/event-stream") and blocks.pop() == "data: [DONE]"
    found = [json.loads(block.removeprefix("data: ")) for block in blocks]
    assert {event["type"] for event in found[:-1]} == {"transcript.text.delta"} and len(found) > 2
    assert "".join(event["delta"] for event in found[:-1]) == whole["text"] == found[-1]["text"]
    assert found[-1]["type"] == "transcript.text.done"
    assert {**found[-1]["usage"], "type": "tokens"} == whole["usage"]


def test_the_likeliest_text_is_written_unless_another_temperature_is_asked_for(make_api):
    api = make_api(seeing(), ("--temp", "1.5")).start()
    hear(api)
    assert not any("temp" in repr(stage) and "1.5" in repr(stage) for stage in api.backend.samplers[-1].stages)
    hear(api, temperature="0.7")
    assert any("0.7" in repr(stage) for stage in api.backend.samplers[-1].stages)


def test_files_of_other_kinds_of_sound_are_heard(eyes: Api):
    data = flac([1000, -1000, 500])
    answer = post(eyes, form(data, model="m", max_tokens="6"))
    assert answer.status == 200, answer


@pytest.mark.covers("H01")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(None, model="m"), "file: a sound file"),
        (form(None, file="x"), "file: a sound file"),
        (form(b""), "file is neither"),
        (form(b"no sound at all"), "file is neither"),
        (form(png()), "file is an image, but a sound is expected"),
        (form(SOUND[:30]), "file is a broken sound"),
        (form(response_format="srt"), "response_format: srt isn't supported, because this server can't tell when"),
        (form(response_format="vtt"), "response_format: vtt isn't supported"),
        (form(response_format="diarized_json"), "response_format: diarized_json isn't supported"),
        (form(response_format="xml"), "response_format: 'xml' is unknown; use one of json, text, verbose_json"),
        (form(response_format="text", stream="true"), "stream: a stream needs the response_format json"),
        (form(timestamp_granularities=["word", "segment"]), "timestamp_granularities[]: this server can't tell when"),
        (form(temperature="warm"), "temperature: 'warm' is not a number"),
        (form(temperature="NaN"), "temperature: 'NaN' is not a number"),
        (form(temperature="1e999"), "temperature: '1e999' is not a number"),
        (form(temperature="-1e9"), "temperature"),
        (form(max_tokens="1.5"), "max_tokens"),
        (form(max_tokens="9" * 5000), "max_tokens"),
        (form(stream="perhaps"), "stream: 'perhaps' is not true or false"),
        (form(language="de").replace(b"de", b"\xff\xfe"), "language: the value is not UTF-8"),
        (form(model="a")[:-8] + form(model="a"), "model: this field is given twice"),
        (form()[:-8] + form(), "file: this field is given twice"),
        (form()[:-8], "The form ends without its last boundary"),
        (b"", "The form ends without its last boundary"),
        (b"--XX\r\nContent-Type: a\r\n\r\nx\r\n--XX--", "has no name"),
    ],
    ids=lambda value: repr(value)[-60:],
)
def test_what_is_wrong_in_a_form_is_told_before_any_work(eyes: Api, body: bytes, words: str):
    assert words in refuse(eyes, body)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "text/plain; boundary=XX", ""])
def test_a_body_that_is_no_form_is_refused(eyes: Api, content_type: str):
    answer = eyes.send("POST", URL, form(), {"Content-Type": content_type})
    assert answer.status == 415 and "multipart/form-data" in answer.error["message"]
    assert eyes.get("/health").status == 200


@pytest.mark.covers("H01")
def test_a_model_that_does_not_hear_says_so(make_api):
    for backend in (FakeBackend(), seeing(audio=False)):
        api = make_api(backend).start()
        for path in (URL, "/v1/audio/translations"):
            answer = post(api, form(), path)
            assert answer.status == 501 and "can't hear" in answer.error["message"]
            assert answer.error["type"] == "not_supported_error"


def test_what_else_a_form_says_is_named(eyes: Api):
    answer = post(eyes, form(max_tokens="1", temprature="1", chunking_strategy="auto", include=["logprobs"]))
    assert answer.headers["x-warnings"] == "unknown and ignored: 'temprature', 'include[]'"
    assert "x-warnings" not in post(eyes, form(max_tokens="1")).headers


@pytest.mark.covers("H02")
def test_a_form_may_come_in_chunks_and_a_huge_one_is_refused_while_it_comes(make_api):
    api = make_api(seeing(), ("--max-body", "1")).start()
    data = form(max_tokens="6")
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % (
        URL.encode(),
        TYPE["Content-Type"].encode(),
    )
    with api.connect() as sock:
        sock.sendall(head)
        for at in range(0, len(data), 1000):
            piece = data[at : at + 1000]
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        sock.settimeout(PATIENCE)
        seen = b""
        while right("Transcribe audio to text").encode() not in seen:
            seen += sock.recv(65536)
    with api.connect() as sock:
        sock.sendall(head)
        sock.settimeout(PATIENCE)
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        sock.sendall(chunk)
        seen = sock.recv(65536)
        assert seen.startswith(b"HTTP/1.1 400") and b"doesn't begin with its boundary" in seen
    with api.connect() as sock:
        sock.settimeout(PATIENCE)
        sock.sendall(head + b"%x\r\n" % (2 << 20))
        assert sock.recv(65536).startswith(b"HTTP/1.1 413")
    api.settle()
    assert api.server._server.budget.n_used == 0


def test_a_client_that_leaves_frees_its_slot_and_its_sound(make_api):
    api = make_api(seeing()).start()
    api.backend.hold()
    data = form()
    with api.connect() as sock:
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {TYPE['Content-Type']}\r\nContent-Length: {len(data)}\r\n\r\n"
        sock.sendall(head.encode() + data)
        api.wait_for_decode()
    api.backend.go()
    wait_until(api.is_idle, "the slot to be free", PATIENCE)
    api.settle()
    assert api.backend.media.n_open == 0

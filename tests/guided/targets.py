"""All readers of untrusted bytes as functions of bytes that return a result or raise one documented error.

Pure Python, no library, no socket; runs in the process of a test or of `run`, on its main thread. `TARGETS` has for
each name initial inputs and a function that raises on a failure: an undocumented exception, an answer that breaks a
promise, or a second where milliseconds are usual. `words` are tokens of the input language for random changes.
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from server.api.request.constraints import read_constraint
from server.api.request.media_kinds import BadFile, check_image, kind_of
from server.api.request.media_sounds import MAX_SECONDS, make_plain_sound
from server.api.routes import make_routes
from server.chat.jinja import Limits, Template, TemplateError, mark
from server.engine.cache import slot_files
from server.engine.client.engine_client import EngineClient
from server.engine.entry.thread import ThreadTransport
from server.engine.seam.config import EngineConfig
from server.engine.seam.task import (
    Cancel,
    Final,
    Frame,
    Piece,
    Progress,
    Reply,
    SamplingParams,
    Snapshot,
    Task,
    Timings,
)
from server.engine.seam.wire import Beat, Codec, FrameReader, WireError
from server.engine.slots.png import PNG, find_png_fault
from server.errors import ApiError
from server.grammar import gbnf
from server.grammar.gbnf_rewrite import make_affordable
from server.model_files import header_checks as model_checks
from server.model_files import projector_checks
from server.model_files.gguf import GgufError, read_all
from server.options.groups import group
from server.options.parser import OptionError, parse
from server.service.edge import KeyFiles
from server.serving import make_context
from server.web.http1.head import Headers
from server.web.http1.multipart import FormParser
from server.web.message import EventStream, Request, Response, parse_json, to_json
from server.web.router import Router
from tests.fakes import FakeBackend, FakeVocab
from tests.gguf_edit import Info, Parts, numbers, scalar, string, texts
from tests.media_files import flac, gif_of, mp3, png, wav
from tests.unit.web.test_fuzz_requests import Refused, ours, theirs

PATIENCE_S = 20.0  # for one input, however slow the machine: what hangs takes for ever
MAX_BYTES = 4000
RENDERING = Limits(steps=3000, depth=20, output=20_000, text=20_000, items=3000, seconds=5.0)


@dataclass(frozen=True, slots=True)
class Target:
    """One reader: `check(data)` raises for a finding; `seeds()` are inputs to begin with."""

    check: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[str] = ()


def checked(target: Target, data: bytes) -> None:
    """Try one input. AssertionError also if it took too long."""
    started = time.monotonic()
    target.check(data)
    assert time.monotonic() - started < PATIENCE_S, "it took too long"


def text_of(data: bytes) -> str:
    """Any bytes as text without surrogates, which the edge lets nobody send."""
    return data.decode("utf-8", "replace")


@cache
def scratch() -> Path:
    """A folder for inputs that must be files, removed at the end."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def as_file(data: bytes, name: str) -> Path:
    """The input as a file."""
    path = scratch() / name
    path.write_bytes(data)
    return path


def one_line(error: Exception) -> None:
    """What every error for users has to be."""
    text = error.message if isinstance(error, ApiError) else str(error)
    assert text and "\n" not in text, text


# ---- the edge -----------------------------------------------------------------------------------------------------


def http(data: bytes) -> None:
    """The same however it is cut, and what h11 reads in it."""

    def outcome(pieces: list[bytes]) -> object:
        try:
            return ours(pieces)
        except Refused:
            return "refused"

    taken = outcome([data])
    assert taken == outcome([data[i : i + 1] for i in range(len(data))])
    if taken is None or taken == "refused":
        return
    try:
        read = theirs(data)
    except Refused:
        assert "host" not in taken[2]  # h11 wants it of HTTP/1.1 at once, here it is asked for a step later
        return
    if "transfer-encoding" in taken[2]:
        taken[2]["transfer-encoding"] = taken[2]["transfer-encoding"].lower()
    assert read == taken


def forms(data: bytes) -> None:
    """The same however it is cut, and no more than has come; what can be written again is read again."""

    def outcome(pieces: list[bytes]) -> object:
        parser = FormParser(Headers({"content-type": "multipart/form-data; boundary=b"}))
        try:
            for piece in pieces:
                parser.feed(piece)
            return [(part.name, bytes(part.data)) for part in parser.finish()]
        except ApiError as error:
            one_line(error)
            return error.message

    taken = outcome([data])
    assert taken == outcome([data[i : i + 1] for i in range(len(data))])
    if isinstance(taken, list):
        assert sum(len(name) + len(value) for name, value in taken) <= len(data)
        if not any(set(name) & set('"\\') for name, _ in taken):
            parts = (
                f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
                for name, value in taken
            )
            assert outcome([b"".join(parts) + b"--b--"]) == taken


def json_bodies(data: bytes) -> None:
    """What was read can be sent, and is what Python's own reader finds."""
    try:
        value = parse_json(data)
    except ApiError as error:
        assert error.status == 400
        one_line(error)
        return
    assert json.loads(to_json(value)) == value == json.loads(data.decode("utf-8-sig"))


@cache
def api() -> Router:
    """All routes over an engine with a made-up model."""
    backend = FakeBackend(n_ctx=256, n_slots=2)
    backend.adapters = ("a.gguf",)
    backend.info = replace(backend.info, adapters=backend.adapters)
    options = group(parse(["-m", "fake.gguf", "--metrics", "--slot-save-path", str(scratch()), "--props"], {}))
    config = EngineConfig("fake.gguf", "", n_slots=2)
    client = EngineClient(
        ThreadTransport(config, lambda config, on_progress: backend), lambda: FakeVocab({"pre": 1, "suf": 2, "mid": 3})
    )
    client.start()
    assert client.wait_until_loaded(30), client.error
    return Router(make_routes(make_context(options, client, "fake.gguf", threading.Event(), KeyFiles(options.http))))


POSTS = (
    "/completion",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/chat/completions/input_tokens",
    "/apply-template",
    "/infill",
    "/v1/abort",
    "/embedding",
    "/v1/embeddings",
    "/v1/rerank",
    "/tokenize",
    "/detokenize",
    "/props",
    "/lora-adapters",
    "/slots/0",
)


def bodies(data: bytes) -> None:
    """The first byte chooses a route, the rest is its body: an answer, or an error that is the client's fault."""
    if not data:
        return
    path = POSTS[data[0] % len(POSTS)]
    handler, params = api().resolve("POST", path)
    query = {"action": ("save", "restore", "erase")[data[0] % 3]} if path.startswith("/slots") else {}
    try:
        answer = handler(Request("POST", path, query, body=data[1:], params=params))
        if isinstance(answer, EventStream):
            chunks = iter(answer.chunks)
            try:
                text = b"".join(chunks)
            finally:
                answer.chunks.close()
            assert text.endswith(b"\n\n")
            assert all(
                line == "" or line.startswith(("data: ", "error: ", "event: ", ":"))
                for line in text.decode().split("\n")
            )
            assert '"code":500' not in text.decode()
        else:
            assert isinstance(answer, Response) and (answer.status == 200 or 400 <= answer.status < 500), answer
    except ApiError as error:
        assert 400 <= error.status < 500 or error.status == 501, error
        one_line(error)


def media(data: bytes) -> None:
    """The first look at images and sounds, and the media thread's at a PNG."""
    try:
        if kind_of(data) == "image":
            size = check_image(data, 10**6)
            assert 0 < size.width * size.height <= 10**6
            if data.startswith(PNG):
                assert "\n" not in find_png_fault(data, size.n_bytes)
        else:
            plain, seconds = make_plain_sound(data)
            assert 0 <= seconds <= MAX_SECONDS and make_plain_sound(plain) == (plain, seconds)
    except BadFile as error:
        one_line(error)


# ---- languages ----------------------------------------------------------------------------------------------------


def grammars(data: bytes) -> None:
    try:
        make_affordable(text_of(data))
    except gbnf.GrammarError as error:
        one_line(error)


def constrained(body: dict[str, object]) -> None:
    """A grammar that our own reader takes, or a 400."""
    try:
        constraint = read_constraint(body)
    except ApiError as error:
        assert error.status == 400
        one_line(error)
        return
    if constraint.grammar:
        gbnf.check(constraint.grammar)


def schemas(data: bytes) -> None:
    try:
        schema = parse_json(data[1:])
    except ApiError:
        return
    constrained(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": bool(data[0] & 1)}}}
    )


def patterns(data: bytes) -> None:
    constrained({"regex": text_of(data)})


def templates(data: bytes) -> None:
    """What may come out is text; segments tell users' text from the template's, and say the same."""
    context = {
        "messages": mark([{"role": "user", "content": "Hi <|x|>"}, {"role": "assistant", "content": "Yes", "n": 3}]),
        "tools": None,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_generation_prompt": True,
        "n": 3,
        "l": [3, 1, 2, "a"],
        "s": "text",
    }
    try:
        template = Template(text_of(data))
        whole = template.render(context, limits=RENDERING)
        assert "".join(text for text, _ in template.render_segments(context, limits=RENDERING)) == whole
    except TemplateError as error:
        assert str(error)


def config_files(data: bytes) -> None:
    path = as_file(data, "fuzzed.conf")
    try:
        parse(["--config", str(path)], {})
    except OptionError as error:
        one_line(error)


# ---- files and frames ---------------------------------------------------------------------------------------------


def ggufs(data: bytes) -> None:
    """Nothing that is read lies outside the file, and the checks that follow survive whatever the header says."""
    path = as_file(data, "fuzzed.gguf")
    try:
        parts = read_all(path, keep=model_checks.KEPT)
    except GgufError as error:
        one_line(error)
        return
    for tensor in parts[0].tensors.values():
        assert parts[0].data_start + tensor.offset + tensor.n_bytes <= parts[0].size
    ours = (model_checks.find_model_faults, model_checks.find_adapter_faults)
    for faults in (*ours, projector_checks.find_projector_faults):
        for fault in faults(parts):
            assert fault


def with_checksum(data: bytes) -> bytes:
    """A slot file with the checksum that its contents would have."""
    end = slot_files.HEAD.size + int.from_bytes(data[8:16], "little")
    try:
        header = json.loads(data[slot_files.HEAD.size : end])
        header["crc32"] = slot_files._compute_checksum(header, data[end:])
        text = json.dumps(header).encode()
    except (ValueError, TypeError, RecursionError):
        return data
    return slot_files.HEAD.pack(data[:8].ljust(8), len(text)) + text + data[end:]


def slots(data: bytes) -> None:
    """As it was written, or refused. The checksum is made right: else one input in four billion would get past it."""
    path = as_file(with_checksum(data), "fuzzed.slot")
    for read in (lambda: slot_files.read_header(path), lambda: slot_files.read(path, {"model": "m"})):
        try:
            read()
        except ApiError as error:
            assert error.status == 400
            one_line(error)


@cache
def codec() -> Codec:
    """One for all inputs: making it takes some milliseconds."""
    return Codec()


def frames(data: bytes) -> None:
    """Messages that can be written again, the same in one piece and byte by byte, or a `WireError`."""

    def read(pieces: Sequence[bytes]) -> tuple[list[bytes], bool]:
        reader, found = FrameReader(codec()), []
        try:
            for message in (message for piece in pieces for message in reader.feed(piece)):
                found.append(codec().encode(message))
        except WireError:
            return found, False
        return found, True

    found = read([data])
    assert found == read([data[i : i + 1] for i in range(len(data))])
    assert read(found[0]) == (found[0], True)


# ---- what to begin with -------------------------------------------------------------------------------------------

HTTP_SEEDS = (
    b"GET /x?y=1 HTTP/1.1\r\nHost: h\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\nx",
    b"\r\nPUT http://h/y HTTP/1.0\r\nConnection: keep-alive, close\r\nExpect: 100-continue\r\n\r\n",
)
FORM_SEEDS = (
    b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--\r\n',
    b'pre\r\n--b \r\ncontent-disposition: form-data; filename="x.wav"; name=f\r\nContent-Type: audio/wav\r\n\r\nRI\r\n-\r\n--b\r\n'
    b'Content-Disposition: form-data; name="t[]"\r\n\r\n\r\n--b--tail',
)
JSON_SEEDS = (
    b'{"a": [1, -2.5e3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {}}',
    b'\xef\xbb\xbf[1, {"x": NaN}]',
    b'"\\ud800"',
)
BODY_SEEDS = tuple(
    bytes([POSTS.index(path)]) + json.dumps(body).encode()
    for path, body in (
        (
            "/completion",
            {
                "prompt": "x",
                "n_predict": 2,
                "stream": True,
                "n_probs": 2,
                "stop": ["a"],
                "samplers": ["top_k", "temperature"],
                "logit_bias": [[5, -1.0]],
                "id_slot": 0,
                "cache_prompt": True,
                "t_max_predict_ms": 5,
                "seed": 1,
            },
        ),
        (
            "/completion",
            {
                "prompt": [[1, 2], "x", [3, "y"]],
                "n_predict": 1,
                "n_cmpl": 2,
                "response_fields": ["content", "timings/prompt_n"],
            },
        ),
        (
            "/completion",
            {
                "prompt": {"prompt_string": "x"},
                "grammar": "root ::= [a-z]",
                "n_predict": 1,
                "lora": [{"id": 0, "scale": 1}],
            },
        ),
        (
            "/v1/completions",
            {"prompt": ["a", "b"], "max_tokens": 1, "echo": True, "logprobs": 2, "n": 2, "best_of": 2, "suffix": ""},
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
                "max_tokens": 2,
                "n": 2,
                "logprobs": True,
                "top_logprobs": 2,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        (
            "/v1/chat/completions",
            {
                "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}],
                "max_tokens": 1,
                "response_format": {"type": "json_object"},
                "chat_template_kwargs": {"a": 1},
                "stop": "x",
            },
        ),
        ("/v1/chat/completions/input_tokens", {"messages": [{"role": "user", "content": "x"}]}),
        (
            "/apply-template",
            {"messages": [{"role": "user", "content": "x", "name": "n"}], "add_generation_prompt": False},
        ),
        (
            "/infill",
            {"input_prefix": "a", "input_suffix": "b", "input_extra": [{"filename": "f", "text": "t"}], "n_predict": 1},
        ),
        ("/v1/abort", {"id": "x"}),
        ("/embedding", {"content": ["x", [1, 2]]}),
        ("/v1/embeddings", {"input": ["x", "y"], "encoding_format": "base64", "dimensions": 2}),
        ("/v1/rerank", {"query": "x", "documents": ["a", {"text": "b"}], "top_n": 1, "return_text": True}),
        ("/tokenize", {"content": "x y", "add_special": True, "with_pieces": True}),
        ("/detokenize", {"tokens": [1, 2, 257]}),
        ("/props", {"system_prompt": {"prompt": "x", "anti_prompt": "y", "assistant_name": "z"}}),
        ("/lora-adapters", [{"id": 0, "scale": 0.5}]),
        ("/slots/0", {"filename": "x.bin"}),
    )
)
GRAMMAR_SEEDS = (
    b'root ::= "a" | [^b-c\\]]{2,5} (x "\\u00e9")* # c\nx ::= "y" | root?',
    b'root ::= <think> !<[12]> . "\\x41"+',
    b'root ::= x | y\nx ::= x "a"\ny ::= "b"{1000,}',
)
SCHEMA_SEEDS = tuple(
    b"\x01" + json.dumps(schema).encode()
    for schema in (
        {
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x"}},
            "$defs": {"x": {"enum": [1, "a"]}},
            "required": ["a"],
        },
        {"type": ["string", "null"], "minLength": 2, "maxLength": 5, "pattern": "^a[0-9]+$"},
        {"anyOf": [{"const": 1}, {"type": "integer", "minimum": -3}]},
        {"type": "array", "prefixItems": [{"format": "date"}], "items": False, "minItems": 1},
        {"allOf": [{"$ref": "#"}], "not": {}},
        {"type": "object", "patternProperties": {"^x": {"multipleOf": 3}}, "additionalProperties": {"type": "number"}},
    )
)
PATTERN_SEEDS = (b"^(a|b)*[^c-e]{2,3}\\d+(?:x)?$", b"(?=a)\\bword\\b", b"[[:alpha:]]\\u0041(?i)a", b"((a{9}){9}){9}")
TEMPLATE_SEEDS = (
    b"{% for m in messages %}{{ '<|' + m['role'] + '|>' + m.content | trim }}{% if loop.last %}{{ eos_token }}{% endif %}{% endfor %}",
    b"{%- set ns = namespace(a=1) -%}{% macro f(x, y=2) %}{{ x ~ y }}{% endmacro %}{{ f(1) }}{% set ns.a = ns.a + 1 %}{{ ns.a ** 2 }}",
    b"{{ messages[1:]|map(attribute='content')|join(', ')|upper }}{% raw %}{{{% endraw %}{{ l|sort(reverse=true)|tojson }}",
    b"{% filter upper %}{{ 'a'.split('b')[0] if s is defined and n > 2 else raise_exception('no') }}{% endfilter %}{# c #}",
)
CONFIG_SEEDS = (
    b"[server]\nctx-size = 512 ; c\n# x\nport=8080\n",
    b'{"model": "m.gguf", "parallel": 2, "lora": ["a", "b"]}',
    b"mlock = true\r\nhost=::1\n",
)


def gguf_seeds() -> list[bytes]:
    """A sound small file, with what the checks look at."""
    pairs = [
        (b"general.architecture", string("llama")),
        (b"llama.context_length", scalar("u32", 64)),
        (b"llama.embedding_length", scalar("u32", 8)),
        (b"llama.block_count", scalar("u32", 1)),
        (b"llama.attention.head_count", scalar("u32", 2)),
        (b"n", numbers("u32", [1, 2, 3])),
        (b"tokenizer.ggml.model", string("llama")),
        (b"tokenizer.ggml.tokens", texts([b"<unk>", b"<s>", b"</s>"])),
        (b"tokenizer.ggml.token_type", numbers("i32", [2, 3, 3])),
        (b"llama.attention.layer_norm_rms_epsilon", scalar("f32", 1e-5)),
    ]
    tensors = [Info(b"token_embd.weight", (8, 3), 0, 0), Info(b"b.weight", (32,), 8, 96)]
    path = Parts(pairs, tensors, bytes(96 + 34)).write(scratch() / "seed.gguf")
    return [path.read_bytes(), b"GGUF" + b"\3\0\0\0" + bytes(16)]


def slot_seeds() -> list[bytes]:
    """Slot files with and without checkpoints."""
    path, found = scratch() / "seed.slot", []
    for checkpoints in ((), ((2, memoryview(b"cp")),)):
        slot_files.write(path, {"model": "m"}, [1, 2, 3], [[0, 0.5]], memoryview(b"state"), False, checkpoints)
        found.append(path.read_bytes())
    return found


def frame_seeds() -> list[bytes]:
    """Messages of every shape."""
    timings = Timings(1, 2, 3.0, 4, 5.0)
    messages = (
        codec().hello,
        Beat(1, 2, True),
        Cancel(3, True),
        Frame((Piece(1, (2, 3), "x\u00e9"), Progress(1, 2, 3, 4, 5.0)), Snapshot()),
        Task(7, (1, 2), SamplingParams(logit_bias=((1, -2.0),)), stop=("a",)),
        Frame((Reply(1, {"x": b"bytes", "$y": [1]}),)),
        Frame((Final(1, 0, "", "eos", "", 1, 2, 3, False, timings),)),
    )
    return [codec().encode(message) for message in messages]


def media_seeds() -> list[bytes]:
    """Beginnings of files of the known kinds."""
    return [
        png(2, 2, lambda x, y: (1, 2, 3)),
        b"\xff\xd8\xff\xe0\0\x10JFIF\0" + b"\xff\xc0\0\x0b\x08\0\2\0\2\1\1\x11\0",
        b"GIF89a\2\0\2\0",
        b"BM" + bytes(52),
        b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0",
        b"ID3\3\0\0\0\0\0\0",
        b"fLaC",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"8BPS\0\1",
        b"P6 2 2 255\n",
        wav(0.01),
        flac([1], blocks=b"\x81\0\0\2ab"),
        mp3(2),
        mp3(2, 9),
        gif_of(3, 2, b"\x84\x51"),
    ]


TARGETS: dict[str, Target] = {
    "http": Target(
        http,
        lambda: HTTP_SEEDS,
        ("Content-Length: ", "Transfer-Encoding: chunked\r\n", "\r\n", "0\r\n\r\n", " HTTP/1.1", "Host: ", ": ", ";"),
    ),
    "forms": Target(
        forms,
        lambda: FORM_SEEDS,
        (
            "\r\n",
            "--b",
            "\r\n--b",
            "--b--",
            "Content-Disposition: form-data; name=",
            '"',
            ";",
            "filename",
            "multipart/",
            "\\",
        ),
    ),
    "json": Target(
        json_bodies, lambda: JSON_SEEDS, ("{", "}", "[", "]", '"', "\\u", "\\ud800", "NaN", "1e999", "-0", "null")
    ),
    "bodies": Target(
        bodies,
        lambda: BODY_SEEDS,
        ('"', '": ', "[", "]", "{", "}", ", ", "null", "true", "-1", "0", "1e308", "99999999999", '""', "[]", "{}"),
    ),
    "media": Target(
        media,
        media_seeds,
        (
            "\x89PNG",
            "IHDR",
            "WEBP",
            "VP8 ",
            "\xff\xd8",
            "BM",
            "GIF89a",
            "fmt ",
            "data",
            "fLaC",
            "ID3",
            "Xing",
            "\xff\xfb",
        ),
    ),
    "grammars": Target(
        grammars,
        lambda: GRAMMAR_SEEDS,
        ("root", " ::= ", '"', "[", "]", "(", ")", "*", "+", "?", "{2,}", "|", "\n", "\\", "^", "-", "<[1]>"),
    ),
    "schemas": Target(
        schemas,
        lambda: SCHEMA_SEEDS,
        (
            '"type":',
            '"object"',
            '"$ref":"#"',
            '"properties":',
            '"items":',
            '"anyOf":',
            '"allOf":',
            '"not":',
            '"enum":',
            '"const":',
            '"pattern":',
            '"minimum":',
            '"maxItems":',
            '"required":',
            "{",
            "}",
            "[",
            "]",
        ),
    ),
    "patterns": Target(
        patterns,
        lambda: PATTERN_SEEDS,
        ("(", ")", "[", "]", "^", "$", "*", "+?", "{2,3}", "|", "\\d", "(?:", "(?=", "\\b", "\\u0041"),
    ),
    "templates": Target(
        templates,
        lambda: TEMPLATE_SEEDS,
        (
            "{{ ",
            " }}",
            "{% ",
            " %}",
            "for ",
            " in ",
            "endfor",
            "if ",
            "endif",
            "set ",
            "macro ",
            "|",
            "loop.",
            "namespace(",
            "messages",
            "[0]",
            "tojson",
            "~",
            "**",
            "'",
            "is ",
            "range(",
        ),
    ),
    "config": Target(config_files, lambda: CONFIG_SEEDS, ("=", "\n", "[", "]", '"', ":", "true", "ctx-size", ";")),
    "gguf": Target(
        ggufs,
        gguf_seeds,
        ("GGUF", "\0\0\0\0", "\xff\xff\xff\xff", "split.count", "tokenizer.ggml.merges", "llama.rope.scaling.type"),
    ),
    "slots": Target(slots, slot_seeds, ("llsrvkv1", '"tokens"', '"checkpoints"', "[", "]", "-1", "null")),
    "frames": Target(frames, frame_seeds, ("[", "]", ",", "null", "$bytes", "true", "\0\0\0\0", '"')),
}

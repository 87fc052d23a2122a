"""`--config FILE`: INI and JSON have the same effect as the command line, and errors name their place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.options.parser import OptionError, Settings, parse

INI = """\
# a comment
; another one
top-k = 7

[Server]
host = 0.0.0.0
--port = 81
metrics
no_slots = on
[ anything goes ]
LLAMA_ARG_CTX_SIZE = 1024
c:d
"""


@pytest.fixture
def config(tmp_path: Path):
    """`config(text, *argv, **environ)`: the options with that file (JSON if it isn't a text)."""

    def load(content: object, *argv: str, **environ: str) -> Settings:
        path = tmp_path / "my.conf"
        text = content if isinstance(content, (str, bytes)) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parse(["--config", str(path), *argv], environ)

    return load


def refusal(config, content: object) -> str:
    with pytest.raises(OptionError) as caught:
        config(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_ini_file_takes_every_spelling_of_a_name(config):
    o = config(INI.replace("c:d\n", ""))
    assert (o.top_k, o.host, o.port, o.metrics, o.slots, o.ctx_size) == (7, ("0.0.0.0",), 81, True, False, 1024)
    assert all(map(o.is_set, ("top_k", "host", "port", "metrics", "slots", "ctx_size"))) and not o.is_set("threads")


def test_a_json_file_takes_plain_values_lists_and_sections(config):
    o = config(
        {
            "top_k": 7,
            "server": {"host": "::1", "--port": 81, "metrics": True, "inner": {"no-slots": True}},
            "threads": None,
            "temp": 0.5,
            "tensor-split": [3, 1],
            "samplers": ["top_k", "temperature"],
            "api-key": ["a", "b"],
            "stop": "x",
            "reverse-prompt": ["1,2", "3"],
        }
        | {"stop": None}
    )
    assert (o.top_k, o.host, o.port, o.metrics, o.slots, o.temperature) == (7, ("::1",), 81, True, False, 0.5)
    assert (o.tensor_split, o.samplers, o.api_key) == ((3.0, 1.0), ("top_k", "temperature"), ("a", "b"))
    assert o.stop == ("1,2", "3") and not o.is_set("threads")


def test_a_section_of_a_json_file_may_be_called_like_an_option_and_a_schema_is_no_section(config):
    o = config({"model": {"alias": "x"}, "slots": {"parallel": 3}, "json-schema": {"type": "object", "port": 1}})
    assert (o.alias, o.files, o.slots, o.parallel) == ("x", (), True, 3)
    assert o.json_schema == {"type": "object", "port": 1} and o.port == 8080


def test_command_line_over_environment_over_file_over_profile(config):
    text = "compat = 2024\nctx-size = 100\nport = 100\nthreads = 1\n"
    o = config(text, "--port", "300", LLAMA_ARG_PORT="200", LLAMA_ARG_THREADS="2")
    assert (o.compat, o.port, o.threads, o.ctx_size, o.timeout) == ("2024", 300, 2, 100, 600.0)
    assert config(text, "--compat", "modern").timeout is None
    assert config("api-key = a\napi-key = b\n", "--api-key", "c").api_key == ("c",)


def test_the_environment_may_name_the_file(tmp_path):
    path, other = tmp_path / "a.ini", tmp_path / "b.ini"
    path.write_text("port = 1\n", encoding="utf-8")
    other.write_text("port = 2\n", encoding="utf-8")
    assert parse([], {"LLAMA_SRV_CONFIG": str(path)}).port == 1
    assert parse(["--config", str(other)], {"LLAMA_SRV_CONFIG": str(path)}).port == 2


def test_values_of_an_ini_file_are_taken_as_they_stand(config):
    o = config('api-key = a;b#c\nalias =  "  spaced, name " \nreverse-prompt = "a" and "b"\nhf-token = x=y\n')
    assert (o.api_key, o.alias, o.stop, o.hf_token) == (("a;b#c",), "  spaced, name ", ('"a" and "b"',), "x=y")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_line_ends_and_byte_order_marks_do_not_matter(config, newline):
    assert config("\ufeff" + newline.join(["", "[a]", "port = 5", ""])).port == 5
    assert config("\ufeff" + newline.join(["", "{", '"port": 5', "}"])).port == 5


def test_an_empty_file_says_nothing(config):
    assert config("").port == 8080 and config("{}").port == 8080 and config({"a": {}}).port == 8080


def test_what_has_no_effect_warns_with_its_place(config):
    assert config("perf = 1\n").warnings == (
        "my.conf line 1: perf has no effect: llama.cpp's own timings are off; answers and /metrics have timings of this server",
    )
    (warning,) = config({"a": {"perf": 1}}).warnings
    assert warning.startswith("my.conf at a.perf: perf has no effect")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (INI, ["my.conf line 12", "there is no option c:d"]),
        ("[a]\nprot = 1\n", ["my.conf line 2", "prot", "did you mean port?"]),
        ("port = x\n", ["my.conf line 1: port: 'x' is not a whole number"]),
        ("port = 70000\n", ["line 1: port", "out of range"]),
        ("metrics = perhaps\n", ["line 1: metrics: 'perhaps' is neither on nor off"]),
        ("port = 1\n[b]\n--port = 2\n", ["line 3: --port is set a second time, after my.conf line 1"]),
        ("port\n", ["line 1: port: 'on' is not a whole number"]),
        ("= 5\n", ["line 1", "no name before"]),
        ("[a\n", ["line 1", "no ] at its end"]),
        ("mmproj = x\n", ["line 1: mmproj", "there is no file"]),
        ("config = x\n", ["line 1: config can be set on the command line only"]),
        ("help\n", ["line 1: help can be set on"]),
        (b"port = 1\nalias = \xff\n", ["not UTF-8 text, byte 17"]),
        ("x" * (1 << 20) + "=1", ["larger than 1 MiB"]),
        ({"a": {"prot": 1}}, ["my.conf at a.prot", "did you mean port?"]),
        ({"a": {"port": True}}, ["my.conf at a.port: port: 'on' is not a whole number"]),
        (
            {"a": {"port": 1}, "b": {"port": 2}},
            ["my.conf at b.port: port is set a second time, after my.conf at a.port"],
        ),
        ('{"port": 1, "port": 2}', ["port is set a second time"]),
        ('{"port": 1,\n}', ["my.conf line 2: this is not JSON"]),
        ('{"port": 1} x', ["my.conf line 1: this is not JSON"]),
        ('{"a":' * 100_000, ["this is not JSON"]),
        ({"port": [1, 2]}, ["'1,2' is not a whole number"]),
        ({"port": {}, "x": 1}, ["there is no option x"]),
    ],
)
def test_mistakes_name_the_file_and_the_place(config, content, words):
    message = refusal(config, content)
    assert all(word in message for word in words), message


def test_a_file_that_is_not_there_or_is_a_folder(tmp_path):
    with pytest.raises(OptionError, match="--config: there is no file"):
        parse(["--config", str(tmp_path / "x")], {})
    with pytest.raises(OptionError, match="LLAMA_SRV_CONFIG: .* is a folder"):
        parse([], {"LLAMA_SRV_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("alias = a # the model", "alias", "a"),
        ("alias = a\t; the model", "alias", "a"),
        ("alias = a#b;c", "alias", "a#b;c"),
        ('alias = "a # b"', "alias", "a # b"),
        ('alias = "a # b" ; c "d" # e', "alias", "a # b"),
        ('alias = "a\\" # a path', "alias", "a\\"),
        ('alias = x"a # b"y # c', "alias", 'x"a # b"y'),
        ('json-schema = {"const": "\\" # b"} # c', "json_schema", {"const": '" # b'}),
        ("metrics # with = a comment", "metrics", True),
        ("[Server] ; all of it", "metrics", False),
        ('[a "quoted # part"] # b', "metrics", False),
    ],
)
def test_a_comment_ends_a_line_of_an_ini_file_unless_it_is_quoted(config, line, name, value):
    assert getattr(config(line + "\n"), name) == value


def test_a_comment_in_a_value_s_place_is_no_value(config):
    assert "my.conf line 1: top-k" in refusal(config, "top-k = # seven\n")

"""The form of log lines, what must never be in them, and the access log. `test_log_writing` has the rest.

Runs in the test process. Way not taken: reading records with caplog, which wouldn't check the written bytes.
"""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from server import log


@pytest.fixture(autouse=True)
def untouched_logging(monkeypatch):
    """Each test may set up the log as it likes."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    root = logging.getLogger(log.ROOT)
    before = root.handlers[:], root.level, root.propagate, logging.raiseExceptions
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], level, root.propagate, logging.raiseExceptions = before
    root.setLevel(level)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(function, level="VERBOSE", **settings):
    stream = io.StringIO()
    log.set_up(level, stream=stream, **settings)
    function()
    log.flush()
    return stream.getvalue().splitlines()


def objects_of(function, **settings):
    return [json.loads(line) for line in lines_of(function, format="json", **settings)]


def info(*args, part="engine", **kwargs):
    """Logs that and has it written."""
    return lambda: (log.get_logger(part).info(*args, **kwargs), log.flush())


def access(**changes):
    record = {
        "id": "r1",
        "client": "10.0.0.9",
        "method": "POST",
        "path": "/completion",
        "status": 200,
        "n_bytes": 1234,
        "seconds": 0.5321,
        "complete": True,
    } | changes
    return lambda: log.log_access(SimpleNamespace(**record))


# -- what lines look like


@pytest.mark.covers("B10", "C41")
def test_a_json_line_says_when_who_where_and_what():
    def here():
        log.get_logger("engine").warning("slot %d is free", 3)

    [line] = objects_of(here)
    assert list(line)[:6] == ["tid", "timestamp", "level", "function", "line", "msg"]
    assert line["tid"] == str(threading.get_ident())
    assert isinstance(line["timestamp"], float) and line["timestamp"] > 1.7e9
    assert (line["level"], line["function"], line["msg"]) == ("WARN", "here", "slot 3 is free")
    assert line["line"] == here.__code__.co_firstlineno + 1
    assert line["logger"] == "engine" and line["thread"] == threading.current_thread().name


@pytest.mark.covers("C41")
def test_a_text_line_is_short_and_readable():
    [line] = lines_of(info("ready with %s", "wörter"))
    assert line[2] == line[5] == ":" and line[8] == "."
    assert line[12:] == " I engine: ready with wörter"


def test_lines_in_a_text_file_carry_the_date(tmp_path):
    log.set_up(file=tmp_path / "x.log", quiet=True)
    info("hello")()
    line = (tmp_path / "x.log").read_text()
    assert line.endswith(" I engine: hello\n") and line[4] == line[7] == "-" and line[10] == " "


@pytest.mark.parametrize(
    "level, expected",
    [
        ("ERROR", ["E"]),
        ("WARNING", ["E", "W"]),
        ("INFO", ["E", "W", "I"]),
        ("DEBUG", ["E", "W", "I", "D"]),
        ("VERBOSE", ["E", "W", "I", "D", "V"]),
        (logging.CRITICAL, []),
        (log.VERBOSE, ["E", "W", "I", "D", "V"]),
    ],
)
def test_the_level_decides_which_lines_appear(level, expected):
    def all_levels():
        logger = log.get_logger("app")
        for number in (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, log.VERBOSE):
            logger.log(number, "x")

    assert [line.split()[1] for line in lines_of(all_levels, level)] == expected


def test_llama_cpp_s_verbosity_numbers_have_a_level_each_that_only_gets_wider():
    levels = [log.LEVEL_BY_VERBOSITY[number] for number in range(6)]
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 6
    assert levels[3] == logging.INFO


@pytest.mark.covers("B10")
def test_llama_cpp_s_lines_name_its_function_and_not_ours():
    def native():
        log.get_logger("llama").info("%s", "llama_model_loader: loaded meta data")
        log.get_logger("llama").info("%s", "........")

    first, second = objects_of(native)
    assert (first["function"], first["line"], first["logger"]) == ("llama_model_loader", 0, "llama")
    assert (second["function"], second["msg"]) == ("", "........")


def test_a_traceback_is_a_field_in_json_and_indented_in_text():
    def fail():
        try:
            raise KeyError("inner\nline")
        except KeyError:
            log.get_logger("http").exception("request %s failed", "r7")

    [line] = objects_of(fail)
    assert line["msg"] == "request r7 failed" and "KeyError" in line["exception"]
    text = lines_of(fail)
    assert text[0].endswith("E http: request r7 failed") and len(text) > 3
    assert all(row.startswith("    ") for row in text[1:])


def test_other_programs_loggers_are_left_alone():
    stream = io.StringIO()
    log.set_up(stream=stream)
    logging.getLogger("urllib3").error("not ours")
    log.flush()
    assert stream.getvalue() == ""


def test_setting_up_again_replaces_the_settings(tmp_path):
    first = io.StringIO()
    log.set_up(stream=first, file=tmp_path / "old.log")
    assert lines_of(info("second")) != []
    assert first.getvalue() == "" and (tmp_path / "old.log").read_text() == ""


def test_an_unknown_format_or_level_is_a_mistake_of_ours():
    with pytest.raises(ValueError):
        log.set_up(format="xml")
    with pytest.raises(KeyError):
        log.set_up("LOUD")


# -- values of every kind


@dataclass
class Thing:
    n: int


@pytest.mark.parametrize(
    "value, expected",
    [
        (float("nan"), "nan"),
        ([1.5, float("inf")], [1.5, "inf"]),
        ({(1, 2): "x"}, {"(1, 2)": "x"}),
        (b"ab\xff", "ab\\xff"),
        (Thing(3), {"n": 3}),
        (frozenset({4}), [4]),
        ((1, "a"), [1, "a"]),
        (None, None),
        ({"deep": [{"x": float("nan")}]}, {"deep": [{"x": "nan"}]}),
        ("größe", "größe"),
        (2**70, 2**70),
    ],
)
def test_any_value_ends_up_as_json(value, expected):
    [line] = objects_of(lambda: log.log_verbose("x", value=value))
    assert line["value"] == expected


def test_a_loop_in_a_value_does_not_hang_or_lose_the_line():
    loop = {}
    loop["self"] = loop
    [line] = objects_of(lambda: log.log_verbose("x", value=loop))
    assert line["msg"] == "x"


def test_a_field_can_not_replace_what_every_line_has():
    [line] = objects_of(lambda: log.log_verbose("x", level="forged", msg="forged", other=1))
    assert (line["level"], line["msg"], line["other"]) == ("VERB", "x", 1)


def test_fields_in_text_are_pairs():
    [line] = lines_of(lambda: log.log_verbose("done", id="r1", words="two words", n=3, tree={"a": [1]}))
    assert line.endswith('done | id=r1 words="two words" n=3 tree={"a": [1]}')


def test_a_mistake_in_a_logging_call_still_shows_what_it_was_about():
    [line] = lines_of(info("n is %d", "three"))
    assert "n is %d" in line and "arguments don't fit" in line


def test_an_object_that_can_not_be_shown_costs_its_line_and_is_told():
    class Hostile:
        def __str__(self):
            raise RuntimeError("no")

        __repr__ = __str__

    lines = lines_of(lambda: [info(Hostile())(), info("next")()])
    assert len(lines) == 2 and "1 log lines were lost" in lines[0] and lines[1].endswith("next")


# -- what must not be in a line


@pytest.mark.parametrize("format", log.FORMATS)
@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[2Jb", "a\x9bb", "a\x7fb", "a\u2028b", "a\u202eb", "a\x00b"])
def test_what_clients_send_neither_forges_lines_nor_drives_a_terminal(text, format):
    def hostile():
        info("path %s", text)()
        access(path=text, client=text, method=text)()
        log.log_verbose("x", value=text)

    lines = lines_of(hostile, format=format)
    assert len(lines) == 3
    assert not [char for line in lines for char in line if re.match(log.UNSAFE, char)]
    if format == "json":
        assert json.loads(lines[0])["msg"] == f"path {text}" and json.loads(lines[1])["path"] == text


@pytest.mark.parametrize("format", log.FORMATS)
def test_a_traceback_can_not_forge_a_line(format):
    def fail():
        try:
            raise ValueError('x\n12:00:00 I app: forged\n{"level": "INFO"}\r\x1b[2J\u202812:00:00 I app: x')
        except ValueError:
            log.get_logger("http").exception("failed")

    lines = lines_of(fail, format=format)
    assert not [line for line in lines[1:] if not line.startswith("    ")]


@pytest.mark.parametrize("format", log.FORMATS)
def test_text_that_is_not_unicode_is_no_trouble(format, tmp_path):
    log.set_up(format=format, file=tmp_path / "x.log", quiet=True)
    info("name %s", "caf\udce9")()
    data = (tmp_path / "x.log").read_bytes()
    assert b"caf\\udce9" in data
    if format == "json":
        assert json.loads(data)["msg"] == "name caf\udce9"


@pytest.mark.parametrize("format", log.FORMATS)
def test_secrets_are_in_no_line(format):
    secrets = ["key-one", 'quote"and\\slash', "key-one-longer"]

    def careless():
        info("keys: %s", secrets)()
        log.log_verbose("request", request={"prompt": 'key-one-longer and quote"and\\slash', "list": secrets})
        log.log_verbose("request", text=json.dumps({"key": 'quote"and\\slash'}))
        access(path="/x/key-one")()
        try:
            raise RuntimeError("bad key key-one-longer")
        except RuntimeError:
            log.get_logger("http").exception("failed")

    text = "\n".join(lines_of(careless, format=format, secrets=secrets))
    assert text.count("***") >= 8
    for part in ("key-one", "longer", "and\\\\slash", "and\\slash"):
        assert part not in text


@pytest.mark.parametrize(
    "text, hidden",
    [
        ("Authorization: Bearer abc.def-123", "abc.def"),
        ("authorization: bearer   abcdef123456", "abcdef"),
        ("token hf_AbCdEfGhIjKlMnOp", "AbCdEf"),
        ("sk-proj-abcdefghijklmnop", "abcdef"),
        ("https://anna:geheim@example.org/x", "geheim"),
        ("https://nur-token@example.org/x", "nur-token"),
    ],
)
def test_what_looks_like_a_secret_is_masked_without_being_told(text, hidden):
    [line] = lines_of(info("%s", text))
    assert hidden not in line and "***" in line


@pytest.mark.parametrize(
    "text", ["bearer of news", "hf_x", "see https://example.org/a?b=c@d", "sk-1", "GET /v1/models"]
)
def test_ordinary_text_is_left_alone(text):
    [line] = lines_of(info("%s", text))
    assert line.endswith(text)


def test_short_secrets_do_not_mask_ordinary_words():
    [line] = lines_of(info("a to z"), secrets=["a", "to", ""])
    assert line.endswith("a to z")


def test_keys_that_come_later_are_hidden_too(tmp_path):
    stream = io.StringIO()
    log.set_up(stream=stream, file=tmp_path / "x.log")
    log.hide("later-key")
    info("got later-key")()
    assert "later-key" not in stream.getvalue() + (tmp_path / "x.log").read_text()


# -- the access log


@pytest.mark.covers("B10")
def test_an_answered_request_is_one_line_with_its_id():
    [line] = lines_of(access())
    assert line.endswith(" I access: 10.0.0.9 POST /completion 200 | request_id=r1 bytes=1234 ms=532.1")
    [entry] = objects_of(access())
    expected = {
        "request_id": "r1",
        "client": "10.0.0.9",
        "method": "POST",
        "path": "/completion",
        "status": 200,
        "bytes": 1234,
        "ms": 532.1,
        "complete": True,
        "logger": "access",
    }
    assert expected.items() <= entry.items()


def test_an_unfinished_answer_and_an_unreadable_head_are_told():
    [line] = lines_of(access(status=499, complete=False, method="", path=""))
    assert "10.0.0.9 - - 499 (not complete" in line


@pytest.mark.parametrize(
    "record, level",
    [
        ({"path": "/health"}, "D"),
        ({"path": "/api/v1/health/"}, "D"),
        ({"path": "/metrics"}, "D"),
        ({"path": "/health", "status": 503}, "W"),
        ({"path": "/health", "status": 401}, "I"),
        ({"status": 500}, "W"),
        ({"status": 404}, "I"),
        ({"path": "/healthy"}, "I"),
    ],
)
def test_probes_are_quiet_and_server_errors_stand_out(record, level):
    [line] = lines_of(access(**record))
    assert line.split()[1] == level


def test_a_long_path_is_cut():
    [line] = lines_of(access(path="/" + "x" * 9000))
    assert len(line) < 500 and "xxx... 200" in line


# -- verbose


@pytest.mark.covers("C01")
def test_verbose_shows_whole_requests_prompts_and_answers_and_nothing_else_does():
    def completion():
        log.log_verbose("request", request_id="r1", request={"prompt": "Hi", "n_predict": 4})
        log.log_verbose("prompt", request_id="r1", tokens=[[1, "<s>"], [15043, "Hi"]])
        log.log_verbose("response", request_id="r1", response={"content": "x" * 100_000})

    request, prompt, response = objects_of(completion)
    assert request["request"] == {"prompt": "Hi", "n_predict": 4} and request["request_id"] == "r1"
    assert prompt["tokens"] == [[1, "<s>"], [15043, "Hi"]]
    assert len(response["response"]["content"]) == 100_000
    assert request["function"] == "completion"
    for level in ("DEBUG", "INFO"):
        assert lines_of(completion, level) == []


@pytest.mark.parametrize("level, expected", [("VERBOSE", True), ("DEBUG", False), ("INFO", False)])
def test_callers_can_ask_whether_verbose_lines_are_wanted(level, expected):
    log.set_up(level, stream=io.StringIO())
    assert log.is_verbose() is expected


# -- colours


@pytest.mark.parametrize(
    "stream, colors, environ, expected",
    [
        (Terminal, "auto", {}, True),
        (io.StringIO, "auto", {}, False),
        (io.StringIO, "on", {}, True),
        (Terminal, "off", {}, False),
        (Terminal, "auto", {"NO_COLOR": "1"}, False),
        (Terminal, "auto", {"TERM": "dumb"}, False),
        (Terminal, "on", {"NO_COLOR": "1"}, True),
    ],
)
def test_colours_appear_on_terminals_only(stream, colors, environ, expected, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = stream()
    log.set_up(stream=stream, colors=colors)
    log.get_logger("app").error("x")
    log.flush()
    text = stream.getvalue()
    assert text.startswith("\x1b[31m") is expected and text.endswith("\x1b[0m\n") is expected


def test_files_and_json_are_never_coloured(tmp_path):
    terminal = Terminal()
    log.set_up(stream=terminal, file=tmp_path / "x.log", colors="on")
    log.get_logger("app").error("x")
    log.flush()
    assert "\x1b" in terminal.getvalue() and "\x1b" not in (tmp_path / "x.log").read_text()
    terminal = Terminal()
    log.set_up(stream=terminal, colors="on", format="json")
    log.get_logger("app").error("x")
    log.flush()
    assert json.loads(terminal.getvalue())["msg"] == "x"


# ---- several models


@pytest.mark.parametrize("format", log.FORMATS)
def test_lines_of_a_thread_name_the_model_that_they_are_about(format):
    stream = io.StringIO()
    log.set_up("INFO", format=format, stream=stream)
    line = log.get_logger("engine").info

    def work(text: str) -> None:
        line(text)

    def both() -> None:
        log.set_subject("user/small:Q4")
        line("ours", extra={"fields": {"n": 1}})
        for target in (log.inherit(work), work):
            thread = threading.Thread(target=target, args=("theirs",))
            thread.start()
            thread.join()
        log.set_subject("")
        line("nobody's")

    thread = threading.Thread(target=both)
    thread.start()
    thread.join()
    log.flush()
    lines = stream.getvalue().splitlines()
    assert ["user/small:Q4" in one for one in lines] == [True, True, False, False]
    if format == "text":
        assert lines[0].endswith("ours | n=1 model=user/small:Q4")
    else:
        assert [json.loads(one).get("model") for one in lines] == ["user/small:Q4"] * 2 + [None] * 2

"""Parsing options: precedence, forms of values, help, and one clear line for each mistake."""

from __future__ import annotations

import re

import pytest

from server.options.parser import GROUPS, OPTIONS, OTHER_OPTIONS, Option, OptionError, parse, render_usage
from server.options.row import IGNORED, PLANNED, REFUSED, parse_items
from server.options.table import SHORT_HELP

TABLE = (
    Option("model", ("-m", "--model"), "the model", "G", metavar="FILE", env="T_MODEL"),
    Option("count", ("-n", "--count"), "a count", "G", int, 4, "N", "T_COUNT", -1, 100),
    Option("rate", ("-r", "--rate"), "a rate", "G", float, 0.5, "R", "T_RATE", 0, 10),
    Option("shift", ("--shift",), "a switch", "G", None, False, env="T_SHIFT", off_flags=("--no-shift",)),
)
FORMS = (
    Option(
        "when",
        ("-w", "--when"),
        "with a word or without",
        "G",
        metavar="[WHEN]",
        default=-1,
        env="T_WHEN",
        choices={"on": 1, "off": 0, "auto": -1},
        bare="on",
    ),
    Option("names", ("--name",), "a list", "G", parse_items, (), "NAMES", "T_NAMES", repeat=True),
    Option(
        "more",
        ("--more",),
        "sets a list too",
        "G",
        lambda text: (text.upper(),),
        metavar="NAME",
        dest="names",
        repeat=True,
    ),
    Option("size", ("--big-size",), "a size", "G", int, 1, "N", "LLAMA_ARG_SIZE", 0, 9, default_2024=5),
    Option("quick", ("--quick",), "a switch", "G", None, True, env="LLAMA_ARG_QUICK", off_flags=("--no-quick",)),
    Option("format", ("--format",), "a word", "G", default="text", choices={"text": "text", "json": "json"}),
    Option(
        "json",
        ("--json",),
        "a switch for a word",
        "G",
        None,
        off_flags=("--no-json",),
        dest="format",
        choices={"on": "json", "off": "text"},
    ),
    Option("compat", ("--compat",), "a profile", "G", default="modern"),
    Option("old", ("--old",), "no use", "G", metavar="N", env="T_OLD", status=IGNORED, note="it is too old"),
    Option("new", ("--new", "--newer"), "no use", "G", metavar="N", env="T_NEW", status=PLANNED, note="not yet"),
    Option("gone", ("--gone",), "no use", "G", None, off_flags=("--no-gone",), status=REFUSED, note="never again"),
)


def values(*argv: str, **environ: str) -> tuple:
    options = parse(argv, environ, TABLE)
    return options.model, options.count, options.rate, options.shift


# ---- values ------------------------------------------------------------------------------------------------------


def test_without_anything_the_defaults_hold():
    assert values() == (None, 4, 0.5, False)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["-m", "a.gguf"], ("a.gguf", 4, 0.5, False)),
        (["--model", "a.gguf"], ("a.gguf", 4, 0.5, False)),
        (["--model=a=b.gguf"], ("a=b.gguf", 4, 0.5, False)),
        (["-n", "-1"], (None, -1, 0.5, False)),
        (["-n=7"], (None, 7, 0.5, False)),
        (["--rate", "2"], (None, 4, 2.0, False)),
        (["--rate", "1e0"], (None, 4, 1.0, False)),
        (["--shift"], (None, 4, 0.5, True)),
        (["--shift", "--no-shift"], (None, 4, 0.5, False)),
        (["-n", "1", "--count", "2"], (None, 2, 0.5, False)),
        (["-m", "-odd-name.gguf"], ("-odd-name.gguf", 4, 0.5, False)),
        (["--model="], ("", 4, 0.5, False)),
    ],
)
def test_every_spelling_sets_its_value(argv, expected):
    assert values(*argv) == expected


def test_the_environment_counts_but_the_command_line_wins():
    environ = {"T_MODEL": "env.gguf", "T_COUNT": "9", "T_SHIFT": "on", "UNRELATED": "x"}
    assert values(**environ) == ("env.gguf", 9, 0.5, True)
    assert values("-m", "line.gguf", "--no-shift", **environ) == ("line.gguf", 9, 0.5, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", True),
        ("on", True),
        ("TRUE", True),
        ("yes", True),
        ("enabled", True),
        ("0", False),
        ("off", False),
        ("false", False),
        ("No", False),
        ("disabled", False),
    ],
)
def test_switches_in_the_environment(text, expected):
    assert values(T_SHIFT=text)[3] is expected


def test_what_the_user_has_set_is_known_even_when_it_is_the_default():
    options = parse(["-n", "4"], {"T_RATE": "0.5"}, TABLE)
    assert [options.is_set(name) for name in ("model", "count", "rate", "shift")] == [False, True, True, False]


def form(name: str, *argv: str, **environ: str) -> object:
    return getattr(parse(argv, environ, FORMS), name)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], -1),
        (["-w"], 1),
        (["-w", "off"], 0),
        (["--when=AUTO"], -1),
        (["-w", "0"], 0),
        (["-w", "enabled"], 1),
        (["-w", "--quick"], 1),
        (["--quick", "-w"], 1),
        (["-w", "off", "-w"], 1),
    ],
)
def test_an_option_may_come_with_a_word_or_without(argv, expected):
    assert form("when", *argv) == expected


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ()),
        (["--name", "a"], ("a",)),
        (["--name", "a, b"], ("a", "b")),
        (["--name", "a", "--name", "b"], ("a", "b")),
        (["--name", "a", "--more", "x", "--name", "b"], ("a", "X", "b")),
        (["--name", ""], ()),
        (["--name", '"a,b",c'], ("a,b", "c")),
        (["--name", '"say ""hi"""'], ('say "hi"',)),
    ],
)
def test_lists_add_up_in_their_order(argv, expected):
    assert form("names", *argv) == expected


def test_a_list_of_the_command_line_replaces_that_of_the_environment():
    assert form("names", T_NAMES="a,b") == ("a", "b")
    assert form("names", "--name", "c", T_NAMES="a,b") == ("c",)


def test_several_spellings_may_set_one_value():
    assert form("format", "--json") == "json"
    assert form("format", "--json", "--format", "text") == "text"
    assert form("format", "--format", "json", "--no-json") == "text"
    assert parse(["--json"], {}, FORMS).is_set("format") and not hasattr(parse([], {}, FORMS), "json")


def test_underscores_are_dashes_in_long_flags():
    assert form("size", "--big_size", "3") == 3


def test_the_profile_chooses_defaults_and_loses_to_everything_else():
    assert form("size") == 1
    assert form("size", "--compat", "2024") == 5
    assert form("size", "--compat", "2024", LLAMA_ARG_SIZE="7") == 7
    assert form("size", "--compat", "2024", "--big-size", "1") == 1
    assert not parse(["--compat", "2024"], {}, FORMS).is_set("size")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"LLAMA_ARG_QUICK": "off"}, False),
        ({"LLAMA_ARG_NO_QUICK": "1"}, False),
        ({"LLAMA_ARG_NO_QUICK": "0"}, True),
        ({"LLAMA_ARG_NO_QUICK": "1", "LLAMA_ARG_QUICK": "1"}, False),
        ({"LLAMA_ARG_NO_QUICK": ""}, True),
    ],
)
def test_a_switch_has_a_variable_that_says_no(environ, expected):
    assert form("quick", **environ) is expected


def test_an_empty_variable_is_no_variable():
    assert values(T_COUNT="", T_SHIFT="", T_MODEL="") == (None, 4, 0.5, False)
    assert not parse([], {"T_MODEL": ""}, TABLE).is_set("model")


@pytest.mark.parametrize(
    ("argv", "environ", "source"),
    [(["--old", "5"], {}, "--old"), (["--old=5", "--old", "6"], {}, "--old"), ([], {"T_OLD": "5"}, "T_OLD")],
)
def test_an_option_without_effect_warns_once_and_says_why(argv, environ, source):
    options = parse([*argv, "--big-size", "3"], environ, FORMS)
    assert options.warnings == (f"{source} has no effect: it is too old",)
    assert options.size == 3 and not options.is_set("old")


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["-n", "many"], {}, "-n: 'many' is not a whole number"),
        (["-n", "1.5"], {}, "-n: '1.5' is not a whole number"),
        (["--rate", "fast"], {}, "--rate: 'fast' is not a number"),
        (["-n", "101"], {}, "-n: 101 is out of range, allowed is -1 to 100"),
        (["-n", "-2"], {}, "-n: -2 is out of range, allowed is -1 to 100"),
        (["--rate", "nan"], {}, "out of range"),
        (["--rate", "inf"], {}, "out of range"),
        (["-n"], {}, "-n needs a value: -n N"),
        (["-m"], {}, "-m needs a value: -m FILE"),
        (["--shift=1"], {}, "--shift is a switch and takes no value"),
        (["--shfit"], {}, "unknown option --shfit, did you mean --shift?"),
        (["--nothing-like-it"], {}, "unknown option --nothing-like-it; --help lists them"),
        (["model"], {}, "'model' is neither an option nor a model's file"),
        ([], {"T_COUNT": "many"}, "T_COUNT: 'many' is not a whole number"),
        ([], {"T_COUNT": "1000"}, "T_COUNT: 1000 is out of range"),
        ([], {"T_SHIFT": "maybe"}, "T_SHIFT: 'maybe' is neither on nor off"),
    ],
)
def test_a_mistake_is_one_line_that_names_option_value_and_limit(argv, environ, message):
    with pytest.raises(OptionError) as caught:
        parse(argv, environ, TABLE)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "environ", "message"),
    [
        (["-w", "maybe"], {}, "-w: 'maybe' is none of on, off, auto"),
        ([], {"T_WHEN": "maybe"}, "T_WHEN: 'maybe' is none of on, off, auto"),
        (["--format"], {}, "--format needs a value"),
        (["--new", "5"], {}, "--new: not yet"),
        (["--newer"], {}, "--newer: not yet"),
        ([], {"T_NEW": "5"}, "T_NEW: not yet"),
        (["--gone"], {}, "--gone: never again"),
        (["--no-gone"], {}, "--no-gone: never again"),
        (["--big-size=-1"], {}, "--big-size: -1 is out of range, allowed is 0 to 9"),
        ([], {"LLAMA_ARG_NO_QUICK": "perhaps"}, "LLAMA_ARG_NO_QUICK: 'perhaps' is neither on nor off"),
    ],
)
def test_what_can_not_be_is_refused_in_one_line(argv, environ, message):
    with pytest.raises(OptionError) as caught:
        parse(argv, environ, FORMS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["modls"], ", did you mean the command models?"),
        (["Pul", "user/model"], ", did you mean the command pull?"),
        (["sho", "x", "--port", "1"], ", did you mean the command show?"),
        (["xyzzy"], "; --help lists the options"),
        (["folder/run"], "; --help lists the options"),
    ],
)
def test_a_mistyped_command_is_told_the_near_one(argv, advice):
    with pytest.raises(OptionError) as caught:
        parse(argv, {})
    assert str(caught.value) == f"'{argv[0]}' is neither an option nor a model's file{advice}"


def test_the_value_behind_a_mistyped_flag_is_not_shown():
    with pytest.raises(OptionError) as caught:
        parse(["--api-kye=topsecret"], {})
    assert "--api-key" in str(caught.value) and "topsecret" not in str(caught.value)


# ---- help --------------------------------------------------------------------------------------------------------


def has_word(text: str, word: str) -> bool:
    return bool(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text))


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_help_shows_every_flag_and_variable_in_lines_that_fit(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = render_usage()
    for option in OPTIONS:
        for word in (*option.flags, *option.off_flags, *([option.env] if option.env else [])):
            assert has_word(text, word), word
    assert max(map(len, text.splitlines())) <= columns


def test_help_leaves_out_what_has_no_effect_and_names_groups_in_order():
    text = render_usage()
    assert not [flag for option in OTHER_OPTIONS for flag in option.flags if has_word(text, flag)]
    positions = [text.index(f"\n{group}:\n") for group in GROUPS]
    assert positions == sorted(positions)


def test_help_tells_defaults_as_the_user_would_write_them():
    text = " ".join(render_usage().split())
    assert "flash attention: on, off or auto; without a value on (default auto) (2024: off)" in text
    assert "(default 127.0.0.1)" in text and "reuse the cached prefix of earlier prompts (default on)" in text


def test_short_help_fits_a_screen_or_two_and_says_how_to_go_on(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = render_usage(is_short=True)
    names = [option.name for option in OPTIONS if has_word(text, option.flags[-1])]
    assert set(SHORT_HELP) <= set(names) and {option.name for option in OPTIONS} >= set(SHORT_HELP)
    assert len(SHORT_HELP) <= 30 and text.count("\n") < 66
    assert f"--help all shows all {len(OPTIONS)} options" in " ".join(text.split())
    assert len(render_usage().splitlines()) > 4 * len(text.splitlines())

"""A model's options that a request may set, and the errors for invalid ones."""

from __future__ import annotations

import builtins
import os

import pytest

from server.options.groups import ERRAND, MODEL, SERVER, group, scope_of
from server.options.parser import ALL_OPTIONS, OptionError, parse, read_asked

SECRET = "/etc/hostname"


def test_values_are_those_of_the_command_line():
    asked = {
        "ctx_size": 4096,
        "--parallel": "2",
        "LLAMA_ARG_FLASH_ATTN": True,
        "no-context-shift": True,
        "temp": 0.5,
        "chat-template": "chatml",
        "chat_template_kwargs": {"a": [1]},
        "reverse-prompt": ["one", "two"],
        "tags": ["x", "y"],
    }
    found = read_asked(asked)
    said = parse(["-c", "512", "-np", "4"], {}, own={"ctx_size": 1024}, asked=found)
    assert (said.ctx_size, said.parallel, said.flash_attn, said.context_shift) == (4096, 2, 1, False)
    assert (said.temperature, said.stop, said.tags) == (0.5, ("one", "two"), ("x", "y"))
    assert group(said).model.template.chat_template_kwargs == {"a": [1]}


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"ctx_sise": 1}, "options.ctx_sise: there is no such option, did you mean ctx-size?"),
        ({"ctx_size": "many"}, "options.ctx_size: 'many' is not a whole number"),
        ({"ctx_size": -1}, "options.ctx_size: -1 is out of range"),
        ({"ctx_size": True}, "options.ctx_size: 'on' is not a whole number"),
        ({"ctx_size": {"a": 1}}, "options.ctx_size: give a text, a number"),
        ({"ctx_size": None}, "options.ctx_size: give a text, a number"),
        ({"ctx_size": [1, 2]}, "options.ctx_size: '1,2' is not"),
        ({"ctx_size": 1, "-c": 2}, "options.-c is set twice"),
        ({"mlock": "perhaps"}, "options.mlock: 'perhaps' is neither on nor off"),
        ({"port": 1}, "options.port: this is not an option of a model"),
        ({"api-key": "x"}, "options.api-key: this is not an option"),
        ({"model": SECRET}, "options.model: this is not an option"),
        ({"mmproj": SECRET}, "options.mmproj: this is not an option"),
        ({"lora": SECRET}, "options.lora: requests may not set"),
        ({"cache_disk": "/tmp"}, "options.cache_disk: requests may not set"),
        ({"cpu-variant": "../x"}, "options.cpu-variant: requests may not set"),
        ({"grammar_file": SECRET}, "options.grammar_file: requests may not set"),
        ({"rpc": "10.0.0.1:1"}, "options.rpc: requests may not set"),
        ({"x" * 1000: 1}, "options." + "x" * 60 + ":"),
        ({"": 1}, "options.: there is no such option"),
        ({"a\nb": 1}, "options.a\\nb: there is no such option"),
        ({"ctx_size": "x" * 10**6}, "options.ctx_size: 'xxx"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(asked, why):
    with pytest.raises(OptionError) as caught:
        read_asked(asked)
    assert str(caught.value).startswith(why) and len(str(caught.value)) <= 300


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda option: option.name)
@pytest.mark.covers("D06")
def test_no_option_that_a_request_may_give_opens_or_names_a_file(option, monkeypatch):
    """The table is walked: what isn't refused makes neither a file be opened nor one be looked for."""
    touched: list[object] = []
    for place, name in ((builtins, "open"), (os, "open"), (os, "stat"), (os, "access"), (os.path, "exists")):
        real = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda path, *rest, real=real, **more: touched.append(path) or real(path, *rest, **more)
        )
    try:
        read_asked({option.flags[0]: SECRET})
        is_refused = False
    except OptionError as error:
        is_refused = any(why in str(error) for why in ("may not set", "not an option"))
    monkeypatch.undo()
    assert SECRET not in touched
    is_path = any(word in option.metavar for word in ("FILE", "DIR", "URL", "USER/MODEL", "PATH", "HOST", "KEY"))
    if is_path or option.secret or scope_of(option) in (SERVER, ERRAND, None):
        assert is_refused, option.metavar
    if scope_of(option) == MODEL and option.type in (int, float, None) and option.status == "works":
        assert option.is_plain and not is_refused

"""The engine's settings for an answer in a model's own format of tool calls."""

from __future__ import annotations

from types import SimpleNamespace

from server.api.request.chat.answer import make_thinking
from server.api.request.chat.reasoning import ReasoningWish
from server.chat.named_formats import HARMONY
from server.chat.output.formats import GENERIC, Tags
from server.records import replace

VOCAB = SimpleNamespace(tokenize=lambda text, add_special, parse_special: [ord(char) for char in text])
WISH = ReasoningWish("split", 5, "so")


def test_the_engine_looks_for_what_the_prompt_has_left_of_the_mark_of_reasoning():
    told = make_thinking(VOCAB, HARMONY, WISH)
    assert told is not None and (told.open, told.close) == ("<|channel|>analysis<|message|>", "<|end|>")
    tags = Tags("<think>\n", "\n</think>\n\n", is_opened=True)
    told = make_thinking(VOCAB, replace(GENERIC, reasoning=tags), WISH)
    assert told is not None and (told.open, told.close, told.is_opened, told.budget) == ("<think>", "</think>", True, 5)
    assert "".join(map(chr, told.end_tokens)) == "so\n</think>\n\n"


def test_the_engine_knows_what_else_ends_the_thinking_and_whether_it_comes_again():
    told = make_thinking(VOCAB, HARMONY, WISH)
    assert told is not None and (told.until, told.comes_again) == ("", True)
    form = replace(GENERIC, reasoning=Tags("", "[END]", True, "<tool_calls>["))
    for has_tools, until in ((True, "<tool_calls>["), (False, "")):
        told = make_thinking(VOCAB, form, WISH, has_tools)
        assert told is not None and (told.until, told.comes_again) == (until, False)


def test_a_model_that_does_not_think_is_not_watched():
    assert make_thinking(VOCAB, GENERIC, WISH) is None

"""The joined stream of a chat equals the whole answer, however the engine's text is split: messages, tool calls,
probabilities.

Pure: parser and dialect only, with bytes as the vocabulary.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.dialects.dialect import Answer
from server.api.dialects.openai import OpenAiReply
from server.api.dialects.openai_chat import ChatForm
from server.api.request.text_request import Arrival
from server.chat.output.formats import GENERIC, Tags
from server.chat.output.parser import OutputParser
from server.engine.seam.task import STOP_EOS, Final, Piece, Task, Timings, TokenProbs
from server.records import replace
from tests.fakes import FakeVocab

FORMAT = replace(GENERIC, reasoning=Tags("<think>\n", "\n</think>\n\n"))
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "ü \\"<x>\\" \\n", "b": [1, {"c": null}]}}\n</tool_call>'
TRANSCRIPTS = [
    "Hello, <b>world</b>.",
    f"Let me see.\n{CALL}\n" + CALL.replace('"f"', '"g"'),
    f"<think>\nüber <tool_call> nach\n</think>\n\n{CALL}",
    "<think>\nso\n</think>\n\nYes <tool_call> or </think> no.",
    "<think>\nnever ending",
    "<tool_call>\n" + '{"name": "stranger", "arguments": {}}\n</tool_call>',
]
TIMINGS = Timings(0, 1, 1.0, 1, 1.0)


def reply_for(reasoning: str, n_probs: int) -> OpenAiReply:
    values = {
        "model": None,
        "stream_options": {},
        "n_probs": n_probs,
        "logprobs": bool(n_probs),
        "top_logprobs": 0,
        "functions": None,
        "verbose": False,
        "reasoning_format": {"split": "auto", "legacy": "deepseek-legacy"}[reasoning],
    }
    model = SimpleNamespace(
        vocab=FakeVocab(), choose_name=lambda name: "m", info=SimpleNamespace(llama_version="x"), name="m"
    )
    asked = SimpleNamespace(
        arrival=Arrival(),
        model=model,
        values=values,
        tasks=(Task(0, ()),),
        n=1,
        warnings=(),
        is_parsed=True,
        is_list=False,
        extras={},
        cache={},
    )
    return OpenAiReply(SimpleNamespace(options=SimpleNamespace(is_verbose=False)), asked, ChatForm)


def answered(text: str, sizes: list[int], reasoning: str, n_probs: int) -> tuple[dict, dict]:
    """The choice of the whole answer, and that of the stream put together."""
    ids = iter(range(100))
    parser = OutputParser(FORMAT, TOOLS, parse_calls=True, reasoning=reasoning, new_id=lambda: f"call {next(ids)}")
    streamed, whole, answer = reply_for(reasoning, n_probs), reply_for(reasoning, n_probs), Answer(Task(0, ()))
    sent = b""
    for message in (*pieces(text, sizes, n_probs), Final(0, 0, "", STOP_EOS, "", 1, 1, 1, False, TIMINGS)):
        for event in parser.feed(message):
            sent += streamed.encode_event(0, event)
            answer.add(event)
    [choice] = whole.make_whole([answer])["choices"]
    return choice, put_together([json.loads(part[6:]) for part in sent.decode().split("\n\n") if part])


def pieces(text: str, sizes: list[int], n_probs: int):
    at = 0
    for size in (*sizes, len(text)):
        part = text[at : at + size]
        at += size
        if part:
            tokens = tuple(part.encode())
            probs = tuple(TokenProbs(token, 1.0, 0.0, (), ()) for token in tokens) if n_probs else ()
            yield Piece(0, tokens, part, probs)


def put_together(chunks: list[dict]) -> dict:
    message: dict = {"role": "assistant", "content": ""}
    logprobs: list = []
    for chunk in chunks:
        [choice] = chunk["choices"]
        delta = choice["delta"]
        logprobs += (choice["logprobs"] or {"content": []})["content"]
        message["content"] += delta.get("content") or ""
        if "reasoning_content" in delta:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                head = {"id": part["id"], "type": part["type"], "function": dict(part["function"])}
                message.setdefault("tool_calls", []).append(head)
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    if not message["content"] and "tool_calls" in message:
        message["content"] = None
    return {"message": message, "logprobs": logprobs, "finish_reason": chunks[-1]["choices"][0]["finish_reason"]}


@pytest.mark.parametrize("text", TRANSCRIPTS, ids=lambda text: repr(text[:30]))
@pytest.mark.parametrize("reasoning", ["split", "legacy"])
@given(sizes=st.lists(st.integers(1, 12), max_size=60))
def test_a_stream_says_what_the_whole_answer_says(text, reasoning, sizes):
    in_one_piece, _ = answered(text, [], reasoning, 0)
    whole, streamed = answered(text, sizes, reasoning, 0)
    assert whole["message"] == in_one_piece["message"] == streamed["message"]
    assert whole["finish_reason"] == in_one_piece["finish_reason"] == streamed["finish_reason"]


@pytest.mark.parametrize("text", TRANSCRIPTS, ids=lambda text: repr(text[:30]))
@given(sizes=st.lists(st.integers(1, 4), max_size=60))
def test_probabilities_are_those_of_the_text_in_both(text, sizes):
    whole, streamed = answered(text, [*sizes, *[1] * len(text)], "split", 1)
    assert streamed["logprobs"] == whole["logprobs"]["content"]
    said = b"".join(bytes(one["bytes"]) for one in streamed["logprobs"]).decode("utf-8", "replace")
    assert said == (whole["message"]["content"] or "")

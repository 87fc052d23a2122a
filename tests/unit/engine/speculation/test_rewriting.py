"""Drafts from text that the answer writes in another form: escaped, unescaped, or without line numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from server.engine.seam.config import SpecConfig
from server.engine.speculation.rewriting import MOST_TOKENS, Rewriting
from server.engine.speculation.trust import Trust
from tests.fakes import EOS
from tests.unit.engine.driving import Driver
from tests.unit.engine.speculation.test_speculation import driver, same_books

FILE = (
    'def greet(name):\n\t"""Say hello."""\n\tprint(f"Hello, {name}!\\n", end="")\n\n\ngreet("caf\u00e9 \\\\ bar")\n' * 3
)
WORDS = [b"\\", b'"', b"\n", b"\\n", b'\\"', b"\\\\", b"12\t", b"ab", b"caf\xc3", b"\xa9 ", b"{", b"\0", b"\xff", b" "]


def make(prompt: bytes) -> Rewriting:
    """With a token for each byte."""
    return Rewriting(list(prompt), lambda text: list(text.encode()), lambda token: bytes([token]), Trust())


def count_right(prompt: str, answer: str) -> float:
    """The share of the answer's bytes that were expected, each as the next one."""
    rewriting = make(prompt.encode())
    n_right = 0
    for token in answer.encode():
        expected = rewriting.estimate_chances(8) and rewriting.draft(1)
        n_right += expected == [token]
        rewriting.append(token)
    return n_right / len(answer.encode())


def number(text: str, form: str = "{:6}\t{}") -> str:
    return "".join(form.format(n, line) + "\n" for n, line in enumerate(text.splitlines(), 1))


def test_a_shown_file_is_expected_within_a_json_string():
    assert count_right(f"The file:\n{FILE}", f'{{"content": {json.dumps(FILE, ensure_ascii=False)}}}') > 0.9


def test_an_escaped_file_is_expected_as_it_was_meant():
    prompt = f'{{"path": "a.py", "content": {json.dumps(FILE, ensure_ascii=False)}}}\n'
    assert count_right(prompt, f"It now is:\n{FILE}") > 0.85


@pytest.mark.parametrize(
    "form", ["{:6}\t{}", "{}:{}", "{:05}| {}", "{:6}\u2192{}"], ids=["tab", "colon", "bar", "arrow"]
)
def test_line_numbers_that_a_tool_adds_are_not_expected(form):
    prompt = f"The file:\n{number(FILE, form)}"
    assert count_right(prompt, json.dumps(FILE, ensure_ascii=False)) > 0.9
    assert count_right(prompt, f"It is:\n{FILE}") > 0.9


def test_a_change_costs_the_first_bytes_behind_it_only():
    written = json.dumps(FILE.replace("hello", "good-bye"), ensure_ascii=False)
    assert 0.7 < count_right(FILE, written) < count_right(FILE, json.dumps(FILE, ensure_ascii=False))


def test_text_in_the_same_form_is_left_to_the_lookup():
    assert count_right(FILE, FILE) < 0.3, "only what looks like a string"


def test_an_answer_may_go_on_inside_a_string_that_the_prompt_begins():
    rewriting = make(f'{FILE}\n{{"content": "def greet(name)'.encode())
    for token in b":\\n":
        rewriting.append(token)
    assert rewriting.estimate_chances(8) and bytes(rewriting.draft(8)) == b'\\t\\"\\"\\"'


def test_the_second_half_of_an_escape_is_expected_alone():
    rewriting = make(b"one line here\nand another")
    for token in b'"one line here\\':
        rewriting.append(token)
    assert rewriting.estimate_chances(4) and bytes(rewriting.draft(4)) == b"nand"


def test_a_text_ends_where_another_begins():
    prompt = json.dumps("a text of two\nlines") + " and " + json.dumps("another text of two\nlines")
    rewriting = make(prompt.encode())
    for token in b"\na text of t":
        rewriting.append(token)
    assert rewriting.estimate_chances(30) and bytes(rewriting.draft(30)) == b"wo\nlines"


def test_expectations_that_prove_wrong_lower_the_chances_of_later_ones():
    rewriting = make(FILE.encode())
    chances = []
    for _ in range(6):
        for token in b'"def greet(name):\\':
            rewriting.append(token)
        chances.append(rewriting.estimate_chances(1)[0])
        for token in b'x"':
            rewriting.append(token)
    assert chances == sorted(chances, reverse=True) and chances[-1] < 0.6 * chances[0]


def test_any_bytes_leave_it_in_order():
    rng = random.Random(5)
    for _ in range(300):
        prompt = b"".join(rng.choices(WORDS, k=rng.randrange(60)))
        rewriting = make(prompt)
        for token in b"".join(rng.choices(WORDS, k=60)) + prompt:
            rewriting.append(token)
            chances = rewriting.estimate_chances(rng.randrange(1, 9))
            assert chances == sorted(chances, reverse=True) and len(rewriting.draft(len(chances))) == len(chances)


@pytest.mark.parametrize("part", [b'"', b'\\"', b'"\\', b"1\t\n", b" 1", b'"\\n', b"\\"])
def test_hostile_prompts_are_read_in_one_pass(part):
    rewriting = make(part * (4 * MOST_TOKENS))
    for token in b'"' + part * 20:
        rewriting.append(token)
        rewriting.estimate_chances(8)


# ---- in the scheduler ---------------------------------------------------------------------------------------------

WRITTEN = json.dumps({"content": FILE}, ensure_ascii=False)


def writer(history: Sequence[int]) -> int:
    """A model that writes the file of its prompt as JSON."""
    said = bytes(token for token in history if token < 256).rpartition(b"now:\n")[2]
    expected = WRITTEN.encode()
    return expected[len(said)] if len(said) < len(expected) else EOS


def run(prompt: str, spec: SpecConfig) -> Driver:
    d = driver(writer, spec=spec, n_ctx_slot=2048)
    d.post(prompt, n_predict=600)
    d.finish()
    assert d.text(0) == WRITTEN and same_books(d)
    return d


def test_a_file_written_as_json_takes_fewer_steps_and_is_the_same():
    prompt = f"{FILE}\nnow:\n"
    assert len(run(prompt, SpecConfig(lookup=True)).backend.batches) < len(WRITTEN) / 4
    assert len(run(prompt, SpecConfig()).backend.batches) > len(WRITTEN)

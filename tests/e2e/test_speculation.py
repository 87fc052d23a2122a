"""Speculative decoding in the real program with its engine process: options and visible results."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.e2e.test_command_line import failure
from tests.support import ServerProcess

LOOP = "night and day and night and day and night and "
GREEDY = {"prompt": LOOP, "n_predict": 120, "temperature": 0, "ignore_eos": True, "return_tokens": True}


def post(server: ServerProcess, body: dict) -> dict:
    request = urllib.request.Request(
        f"{server.url}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_draft_model_drafts_for_the_program(serve, tiny_spm_model):
    server = serve(
        "-m", tiny_spm_model, "-md", tiny_spm_model, "-c", "1024", "-t", "1", "--metrics", "--spec-draft-n-max", "6"
    )
    drafted, plain = post(server, GREEDY), post(server, {**GREEDY, "speculative.n_max": 0})
    assert drafted["tokens"] == plain["tokens"] and len(drafted["tokens"]) == 120
    assert drafted["generation_settings"]["speculative.n_max"] == 6
    assert "draft_n" not in plain["timings"]
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        assert "llamacpp:spec_decode_num_draft_tokens_total" in answer.read().decode()
    with urllib.request.urlopen(f"{server.url}/slots", timeout=60) as answer:
        assert json.load(answer)[0]["speculative"] is False, "the latest request had switched it off"


@pytest.mark.parametrize("argv", [["--spec-type", "none"], []], ids=["none", "default"])
def test_the_text_is_the_same_with_and_without_lookup(serve, tiny_spm_model, argv):
    server = serve("-m", tiny_spm_model, "-c", "1024", "-t", "1", *argv)
    first, again = post(server, GREEDY), post(server, {**GREEDY, "speculative.n_max": 0})
    assert first["tokens"] == again["tokens"]
    if argv:
        assert "draft_n" not in first["timings"]


def test_a_draft_model_of_another_vocabulary_ends_the_start_in_one_line(tiny_spm_model, tiny_bpe_model):
    line = failure(["-m", tiny_spm_model, "-md", tiny_bpe_model, "-c", "512", "--port", "0"])
    assert "can't draft for" in line and "kind of vocabulary" in line


def test_a_draft_model_that_is_not_there_ends_the_start_in_one_line(tiny_spm_model, tmp_path):
    line = failure(["-m", tiny_spm_model, "-md", tmp_path / "none.gguf", "--port", "0"])
    assert "there is no model file" in line and "--model-draft" in line

"""Several servers with one folder for computed prompts, killed at any moment: a prompt is computed by one server only."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tests.support import ServerProcess, wait_until

pytestmark = [
    pytest.mark.covers("Y02"),
    pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there is no SIGKILL"),
]
STEM = "Once upon a time the little girl and the big dog went into the old house near the river , and then "
PROMPTS = [f"{name} . " + STEM * 12 for name in ("the moon", "the star", "the cat", "the old house", "the river")]
N_KILLS = 12


def ask(server: ServerProcess, prompt: str) -> dict:
    body = {"prompt": prompt, "n_predict": 12, "temperature": 0, "ignore_eos": True, "id_slot": 0}
    return server.post("/completion", body).json()


def test_servers_killed_at_any_moment_share_prompts_and_say_what_each_says_alone(serve, tiny_spm_model, tmp_path):
    arguments = ("-m", tiny_spm_model, "-c", 2048, "-np", 1, "-t", 1, "--memory-f32", "-fa", "off")
    shared = (*arguments, "--cache-disk", tmp_path / "cache", "--cache-disk-size", "64")
    alone = [ask(serve(*arguments), prompt)["content"] for prompt in PROMPTS]
    servers = [serve(*shared) for _ in range(2)]
    chance = random.Random(5)
    for _ in range(N_KILLS):
        i = chance.randrange(len(PROMPTS))
        assert ask(servers[0], PROMPTS[i])["content"] == alone[i]
        victim = servers.pop(chance.randrange(2))  # while it may be writing, which an idle server does
        victim.process.kill()
        victim.process.wait()
        servers.append(serve(*shared))
    for server in servers:
        assert [ask(server, prompt)["content"] for prompt in PROMPTS] == alone


def test_a_prefix_that_one_server_has_read_is_a_read_from_disk_for_the_other(serve, tiny_spm_model, tmp_path):
    shared = ("-m", tiny_spm_model, "-c", 2048, "-np", 1, "-t", 1, "--cache-disk", tmp_path / "cache")
    first, second = (serve(*shared) for _ in range(2))
    for server in (first, second):
        server.wait_for_line("prompt cache on disk: ")
    n_tokens = ask(first, PROMPTS[0])["tokens_evaluated"]
    wait_until(lambda: n_blocks(tmp_path) >= n_tokens // 128, "the blocks to be written while nothing is to do")
    answer = ask(second, PROMPTS[0] + "and more")
    assert answer["cache"]["source"] == "disk" and answer["tokens_cached"] >= n_tokens // 128 * 128


def n_blocks(folder: Path) -> int:
    return len(list(folder.rglob("*.kvblock")))

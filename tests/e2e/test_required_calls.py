"""A required tool call always comes, is valid JSON and fits its schema: random requests against real servers.

About sixty in CI, on SmolLM2 and on a model that only a grammar makes sense of. LLAMA_SRV_TEST_CALLS sets the number (a
thousand in the long form).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.babbling_model import babble
from tests.call_templates import CALL_TEMPLATES
from tests.e2e.required_calls import Tally, run
from tests.support import start_server

IS_LONG = os.environ.get("LLAMA_SRV_TEST_LONG") == "1"
N_CALLS = int(os.environ.get("LLAMA_SRV_TEST_CALLS") or (1000 if IS_LONG else 60))
SHORT = ("hermes", "llama-3", "qwen3-coder", "mistral-args", "harmony", "generic")
FAMILIES = tuple(CALL_TEMPLATES) if IS_LONG else SHORT
N_REAL = 8  # of a hundred, on the real model


def check(model: Path, *arguments: object, seeds: list[str]) -> None:
    """Ask a server with these arguments; nothing may be wrong, and most answers come to their end."""
    with start_server(["-m", model, "-np", 2, "-t", 1, "-c", 16_384, *map(str, arguments)]) as server:
        tally = Tally()
        run(server.url, seeds, tally, n_threads=2)
    assert not tally.faults, "\n".join(f"seed {seed}: {fault}" for seed, fault in tally.faults)
    assert tally.counts["call"] > tally.counts["length"], str(tally)


@pytest.fixture(scope="module")
def babbler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return babble(tmp_path_factory.mktemp("calls") / "babble.gguf")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_required_call_comes_and_fits_whatever_the_model_babbles(libs_folder, babbler, tmp_path, family: str):
    template = tmp_path / "template.jinja"
    template.write_text(CALL_TEMPLATES[family], encoding="utf-8")
    n = -(-N_CALLS // len(FAMILIES))
    check(babbler, "--chat-template-file", template, seeds=[f"{family} {i}" for i in range(n)])


def test_a_required_call_of_a_real_model_comes_and_fits(libs_folder, smollm2):
    check(smollm2, seeds=[str(i) for i in range(max(4, N_CALLS * N_REAL // 100))])

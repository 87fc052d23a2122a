"""The model made for the bench's agent loop answers it as recorded."""

from __future__ import annotations

from server.engine.seam.config import SpecConfig
from tests.recited_loop import recite_loop, tokens_of_loop

N_PROMPT, N_ANSWER = 300, 80


def test_the_model_says_what_comes_there_in_the_recording(engine, libs_folder, tiny_bpe_model, tmp_path):
    tokens = tokens_of_loop(libs_folder, tiny_bpe_model)[: N_PROMPT + N_ANSWER]
    path = recite_loop(tmp_path / "loop.gguf", tiny_bpe_model, tokens, 64, 2, "q8_0")
    for spec in (SpecConfig(), SpecConfig(lookup=True, answers=True, min_gain=0.0)):
        one = engine(path, n_ctx=1024, spec=spec)
        for n in (N_PROMPT - 100, N_PROMPT):
            assert one.say(tokens[:n], N_ANSWER).tokens == tokens[n : n + N_ANSWER]

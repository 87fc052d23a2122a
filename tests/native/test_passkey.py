"""Self-extend on a real model: it finds a number at the beginning of a prompt twice as long as the trained context.

Takes minutes on a small machine. Needs the native libraries and SmolLM2 (trained on 8,192 tokens).
"""

from __future__ import annotations

import pytest

from tests.native.engines import Engine

N_TOKENS = 16000
HEAD = "There is a pass key hidden in a lot of text. Find it and remember it. "
FILL = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
KEY = "The pass key is 71432. Remember it. 71432 is the pass key. "
ASK = "What is the pass key? The pass key is"


@pytest.mark.long
@pytest.mark.covers("B04")
@pytest.mark.parametrize(("factor", "is_found"), [(4, True), (1, False)])
def test_a_pass_key_is_found_beyond_the_trained_context_only_with_self_extend(libs_folder, smollm2, factor, is_found):
    one = Engine(libs_folder, smollm2, n_ctx=N_TOKENS + 256, n_threads=2, n_batch=512, n_group=factor, group_width=2048)
    try:
        n_fill = N_TOKENS // len(one.client.vocab.tokenize(FILL, False, False)) - 3
        before = n_fill * 3 // 4
        said = one.say(HEAD + FILL * before + KEY + FILL * (n_fill - before) + ASK, 16)
        assert said.final.n_prompt > 1.8 * one.client.info.n_ctx_train
        assert ("71432" in said.text) == is_found, said.text
    finally:
        one.close()

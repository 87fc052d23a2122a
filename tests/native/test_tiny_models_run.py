"""The tiny models in libllama have the properties in `tests/tiny_models.py` that other tests rely on.

Needs the native libraries; uses `ctypes_api` directly, without engine or server, in the test process. The text of the
float32 models must not depend on the sizes of batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_models

PROMPTS = ("Once upon a time", "the little girl saw the fox and ran home", "a", "prompt number 7, quite long " * 8)


class Runner:
    """A model with one context for up to four sequences: tokenise, decode, choose greedily."""

    def __init__(self, libs: Any, path: Path, stack: ExitStack, **fields: Any) -> None:
        from ctypes_api.objects import Batch, Context, Model

        fields = {"n_ctx": 1024, "n_seq_max": 4, "kv_unified": True, "n_threads": 1, "n_threads_batch": 1, **fields}
        self.libs, self.api = libs, libs.llama
        self.model = stack.enter_context(Model(libs, path))
        self.context = stack.enter_context(Context(self.model, **fields))
        self.batch = stack.enter_context(Batch(libs, fields["n_ctx"]))
        self.n_vocab = self.api.llama_vocab_n_tokens(self.model.vocab)

    def tokens(self, text: str, special: bool = True) -> list[int]:
        from ctypes_api.vocabulary import tokenize

        return tokenize(self.libs, self.model.vocab, text.encode(), special, True)

    def text(self, tokens: Sequence[int]) -> str:
        from ctypes_api.vocabulary import token_to_piece

        pieces = [token_to_piece(self.libs, self.model.vocab, token, False) for token in tokens]
        return b"".join(pieces).decode()

    def clear(self) -> None:
        self.api.llama_memory_clear(self.context.memory, True)

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, wants logits)."""
        for i, (token, position, sequence, wants) in enumerate(rows):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.seq_id[i][0], self.batch.logits[i] = sequence, wants
        self.batch.n_tokens = len(rows)
        assert self.api.llama_decode(self.context, self.batch.struct) == 0

    def best(self, row: int) -> tuple[int, float]:
        """The best token of a row of the last batch, and by how many logits it leads."""
        logits = self.api.llama_get_logits_ith(self.context, row)[: self.n_vocab]
        first, second = sorted(logits)[-1:-3:-1]
        return logits.index(first), first - second

    def greedy(self, prompt: Sequence[int], n: int, chunk: int = 1024) -> tuple[list[int], float]:
        """The next `n` tokens, alone in the cache, and the smallest lead among them."""
        self.clear()
        rows = [(token, i, 0, i == len(prompt) - 1) for i, token in enumerate(prompt)]
        for start in range(0, len(rows), chunk):
            self.decode(rows[start : start + chunk])
        said, margin, row = [], math.inf, (len(rows) - 1) % chunk
        for position in range(len(rows), len(rows) + n):
            token, lead = self.best(row)
            said.append(token)
            margin = min(margin, lead)
            if self.api.llama_vocab_is_eog(self.model.vocab, token):
                break
            self.decode([(token, position, 0, True)])
            row = 0
        return said, margin

    def embedding(self, tokens: Sequence[int], size: int) -> list[float]:
        """What the sequence is pooled to."""
        self.clear()
        self.decode([(token, i, 0, True) for i, token in enumerate(tokens)])
        return self.api.llama_get_embeddings_seq(self.context, 0)[:size]


@pytest.fixture
def run(libs_folder: Path) -> Iterator[Any]:
    """`run(path, **context fields)` opens a model; the test's end closes it."""
    from ctypes_api import loader

    libs = loader.load(libs_folder)
    with ExitStack() as stack:
        yield lambda path, **fields: Runner(libs, path, stack, **fields)


@pytest.fixture(params=["tiny_spm_model", "tiny_bpe_model"])
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """Each of the two tiny text models."""
    return request.getfixturevalue(request.param)


def test_greedy_text_is_lively_endless_and_clear(run: Any, tiny_model: Path):
    runner = run(tiny_model)
    said = {}
    for prompt in PROMPTS:
        said[prompt], margin = runner.greedy(runner.tokens(prompt), 150)
        assert margin > tiny_models.MIN_MARGIN
        assert len(said[prompt]) == 150, "it ended by itself"
        assert len(set(said[prompt][-64:])) > 20, "it runs in a circle"
    assert len({tuple(tokens) for tokens in said.values()}) == len(PROMPTS)


def test_said_text_tokenises_back_to_the_same_ids(run: Any, tiny_model: Path):
    runner = run(tiny_model)
    prompt = runner.tokens("Once upon a time")
    said, _ = runner.greedy(prompt, 100)
    assert runner.tokens("Once upon a time" + runner.text(said)) == [*prompt, *said]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"flash_attn_type": 0},
        {"n_ubatch": 16},
        {"kv_unified": False, "n_ctx": 4096},
        {"type_k": 8, "type_v": 8, "flash_attn_type": 1},
    ],
    ids=str,
)
def test_text_is_the_same_in_any_batch_and_cache(run: Any, tiny_spm_model: Path, fields: dict[str, Any]):
    plain = run(tiny_spm_model)
    prompts = [plain.tokens(prompt) for prompt in PROMPTS]
    alone = [plain.greedy(prompt, 60)[0] for prompt in prompts]
    other = run(tiny_spm_model, **fields)
    assert [other.greedy(prompt, 60, chunk=7)[0] for prompt in prompts] == alone

    other.clear()
    said: list[list[int]] = [[] for _ in prompts]
    read = [0] * len(prompts)
    while min(map(len, said)) < 60:
        rows = []
        for sequence, prompt in enumerate(prompts):  # each reads its prompt at another pace
            for token in [*prompt, *said[sequence]][read[sequence] : read[sequence] + 5 + sequence]:
                read[sequence] += 1
                rows.append((token, read[sequence] - 1, sequence, read[sequence] >= len(prompt)))
        other.decode(rows)
        for row, (_, _, sequence, wants) in enumerate(rows):
            if wants:
                said[sequence].append(other.best(row)[0])
    assert [tokens[:60] for tokens in said] == alone


def test_a_foreign_cell_changes_the_text(run: Any, tiny_spm_model: Path):
    runner = run(tiny_spm_model)
    prompt = runner.tokens("the little girl saw the fox and ran home, once upon a time. " * 3)
    right, _ = runner.greedy(prompt, 40)
    strange = next(token for token in runner.tokens("naïve bread", False) if token not in prompt)
    noticed = 0
    for back in range(1, 1 + max(max(block) for block in tiny_models.DISTANCES)):
        wrong = [*prompt]
        wrong[-back] = strange
        noticed += runner.greedy(wrong, 40)[0] != right
    assert noticed > 25, "of 37 wrong tokens"


def test_recite_says_its_words_and_ends(run: Any, recite_model: Path):
    runner = run(recite_model)
    said, margin = runner.greedy(runner.tokens("count: one"), 50)
    assert runner.text(said) == "".join(tiny_models.RECITE_WORDS[1:])
    assert len(said) == len(tiny_models.RECITE_WORDS)  # the others and the end of the text
    assert margin > 10
    said, _ = runner.greedy(runner.tokens("anything else"), 50)
    assert runner.text(said) == "".join(tiny_models.RECITE_WORDS)


def test_adapter_changes_the_text_at_scale_one_only(run: Any, tiny_spm_model: Path, tiny_lora: Path):
    import ctypes

    from ctypes_api.objects import Adapter

    runner = run(tiny_spm_model)
    prompt = runner.tokens("Once upon a time")
    plain, _ = runner.greedy(prompt, 40)
    adapter = Adapter(runner.model, tiny_lora)

    def said_at(scale: float) -> tuple[list[int], float]:
        adapters = (ctypes.c_void_p * 1)(adapter.raw)
        runner.api.llama_set_adapters_lora(runner.context, adapters, 1, (ctypes.c_float * 1)(scale))
        return runner.greedy(prompt, 40)

    changed, margin = said_at(1.0)
    assert changed != plain and margin > tiny_models.MIN_MARGIN
    assert said_at(0.0)[0] == plain


def test_embeddings_are_closer_for_texts_that_share_words(run: Any, bert_embed_model: Path):
    runner = run(bert_embed_model, n_ctx=512, embeddings=True)
    cat, happy, physics = (
        runner.embedding(runner.tokens(text), 32)
        for text in ("the cat is happy", "the happy cat", "quantum physics 42")
    )
    assert _cosine(cat, happy) > 0.8 > _cosine(cat, physics)


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_reranker_scores_pairs_differently(run: Any, bert_rerank_model: Path):
    runner = run(bert_rerank_model, n_ctx=512, embeddings=True)
    query = runner.tokens("cat")
    scores = [
        runner.embedding(query + runner.tokens(text)[1:], 1)[0]
        for text in ("the cat is happy", "a dog barks", "physics")
    ]
    assert min(abs(a - b) for a, b in zip(scores, scores[1:])) > 0.01


@pytest.mark.parametrize("name", ["tiny_spm_fim_model", "tiny_bpe_fim_model"])
def test_fill_in_the_middle_tokens_are_known(run: Any, name: str, request: pytest.FixtureRequest):
    runner = run(request.getfixturevalue(name))
    api, vocab = runner.api, runner.model.vocab
    ids = [ask(vocab) for ask in (api.llama_vocab_fim_pre, api.llama_vocab_fim_suf, api.llama_vocab_fim_mid)]
    assert ids == runner.tokens("<PRE><SUF><MID>", special=False)


def test_models_without_such_tokens_say_so(run: Any, tiny_spm_model: Path):
    runner = run(tiny_spm_model)
    assert runner.api.llama_vocab_fim_pre(runner.model.vocab) == -1

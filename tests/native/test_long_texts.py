"""Long texts in libllama's tokenizers: none ends the process or takes too long, and the ids equal those of the whole
text.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.engine.client import vocab as vocab_module
from server.engine.client.bounded_vocab import MAX_WORD, BoundedVocab
from server.engine.client.vocab import NativeVocab, open_vocab
from server.errors import ApiError
from tests.gguf_edit import string, take_apart
from tests.support import ROOT
from tests.tiny_models import tiny_bert, tiny_llama

RECURSING = ("tekken", "gpt-4o", "deepseek-coder")  # pre-tokenizers whose patterns std::regex matches
CHILD = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
bounded, native = map(importlib.import_module, sys.argv[5:])
vocab = bounded.BoundedVocab(native.open_vocab(sys.argv[2], sys.argv[3]), 10**9)
for letter in ("a", "\\u6f22", " ", "="):
    text = letter * (int(sys.argv[4]) // len(letter.encode()))
    print(len(vocab.tokenize(text, False, True)), flush=True)
"""
LETTERS = st.sampled_from(
    ["a", "the", " ", "  ", "\n", "\u6f22", "\u2603", "\U0001f600", "\u00e9", "</s>", "<s>", "<|im_end|>", "\u2581",
     "<0x41>", "\0", "\x04", "1", "Z", "e\u0301", "\ufb01"]
)  # fmt: skip
TEXTS = st.lists(LETTERS, max_size=60).map("".join)


@pytest.fixture(scope="module")
def spm(libs_folder: Path, tiny_spm_model: Path) -> Iterator[NativeVocab]:
    vocab = open_vocab(str(libs_folder), str(tiny_spm_model))
    yield vocab
    vocab.close()


@pytest.fixture(scope="module", params=["spm", "bpe", "wordpiece"])
def any_vocab(request, libs_folder: Path, tiny_spm_model: Path, tiny_bpe_model: Path, tmp_path_factory):
    path = {"spm": tiny_spm_model, "bpe": tiny_bpe_model}.get(request.param)
    vocab = open_vocab(str(libs_folder), str(path or tiny_bert(tmp_path_factory.mktemp("bert") / "bert.gguf")))
    yield vocab
    vocab.close()


@settings(max_examples=400, deadline=None)
@given(text=TEXTS, add_special=st.booleans(), parse_special=st.booleans())
@example(text="a\u2603b</s>\u2603 \u2603\u2603", add_special=True, parse_special=True)
@example(text="a\u2603b<unk>\u2603 \u2603\u2603", add_special=True, parse_special=True)
def test_a_text_in_parts_has_the_tokens_of_the_whole(spm, text, add_special, parse_special):
    vocab_module.CUT_CHARACTERS, before = 2, vocab_module.CUT_CHARACTERS
    try:
        assert spm._tokenize_cut(text or "x", add_special, parse_special) == spm._tokenize(
            text or "x", add_special, parse_special
        )
    finally:
        vocab_module.CUT_CHARACTERS = before


def test_parts_are_as_short_as_they_can_be_where_the_tokenizer_takes_quadratic_time(spm):
    """Each character without a token has it copy what it has so far."""
    for letter in ("\U0001f680", "\u6f22", "a\u2603", "word \u2603 "):
        text = letter * (1 << 16)
        parts = list(spm._cut_parts(text))
        assert "".join(parts) == text
        assert max(map(len, parts)) <= 2 * vocab_module.CUT_CHARACTERS + len(letter)
    space, *snowman = spm._tokenize("\u2603", False, True)
    assert spm.tokenize("\u2603" * 100_000, True, True) == [1, space, *snowman * 100_000]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, times=st.integers(1, 30))
@example(text=" ", times=30)
@example(text="\x04", times=30)
@example(text="\u00e9</s>", times=30)
def test_no_text_has_fewer_tokens_than_its_bytes_say(any_vocab, text, times):
    assert any_vocab.least_tokens(text * times) <= len(any_vocab.tokenize(text * times, False, True))


def test_bytes_say_something_where_nothing_vanishes(any_vocab, request):
    kind = request.node.callspec.params["any_vocab"]
    assert (any_vocab.least_tokens("a" * 100_000) > 1000) == (kind != "wordpiece"), "one unknown word is one token"


@pytest.mark.parametrize("pre", RECURSING)
def test_a_word_without_end_does_not_overflow_the_stack(libs_folder: Path, tiny_bpe_model: Path, tmp_path: Path, pre):
    """Once for each letter: an ordinary stack holds 24,000 of them. In a process of its own, which it would end."""
    path = take_apart(tiny_bpe_model).set("tokenizer.ggml.pre", string(pre)).write(tmp_path / f"{pre}.gguf")
    command = [sys.executable, "-c", CHILD, str(ROOT), str(libs_folder), str(path), str(MAX_WORD)]
    command += [BoundedVocab.__module__, open_vocab.__module__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr[-2000:])
    assert all(int(line) > 1000 for line in done.stdout.split()) and len(done.stdout.split()) == 4


def test_pieces_and_texts_are_bounded(libs_folder: Path, tiny_bpe_model: Path):
    vocab = BoundedVocab(open_vocab(str(libs_folder), str(tiny_bpe_model)), 10**6, 100_000)
    tokens = vocab.tokenize("the cat " * 12_000, False, True)
    assert vocab.detokenize(tokens, 100_000) == b"the cat " * 12_000
    with pytest.raises(ApiError, match="too long"):
        vocab.detokenize(tokens, 95_999)
    with pytest.raises(ApiError, match="--max-text"):
        vocab.tokenize("the cat " * 12_501, False, True)
    assert vocab.detokenize([], 10) == b""


def test_names_of_special_tokens_are_no_place_to_cut(libs_folder: Path, tmp_path: Path):
    """What stands behind one begins anew, with the space that the model has texts begin with."""
    vocab = open_vocab(str(libs_folder), str(tiny_llama(tmp_path / "m.gguf")))
    text = "</s>\u2603" * 200
    before, vocab_module.CUT_CHARACTERS = vocab_module.CUT_CHARACTERS, 3
    try:
        assert list(vocab._cut_parts(text)) == [text]
    finally:
        vocab_module.CUT_CHARACTERS = before

"""The first check of a model's files: files that aren't models, or would crash libllama, are refused in one line."""

from __future__ import annotations

import os
import re
import struct

import pytest

from server.errors import StartError
from server.model_files import gguf
from server.model_files.checks import check_all, check_model_file, check_ranker
from server.model_files.header_checks import find_model_faults
from server.model_files.rerankers import QWEN_TEMPLATE, TEMPLATE_KEY, template_of
from server.records import replace
from tests.gguf_edit import scalar, take_apart
from tests.malformed import FAULTS, LEFT_TO_LIBLLAMA
from tests.tiny_gpt2 import tiny_gpt2

GOOD = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)


def refusal(path, option: str = "-m") -> str:
    with pytest.raises(StartError) as caught:
        check_model_file(str(path), option)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_embeddings_are_checked_in_whichever_part_of_a_split_model_they_are(tiny_spm_model):
    first, second = gguf.read(tiny_spm_model), gguf.read(tiny_spm_model)
    first.tensors = {}
    table = second.tensors["token_embd.weight"]
    second.tensors["token_embd.weight"] = replace(table, dims=(table.dims[0], table.dims[1] + 1))
    assert any("but embeddings for" in fault for fault in find_model_faults([first, second]))


@pytest.mark.parametrize(
    "model",
    ["tiny_spm_model", "tiny_bpe_model", "tiny_spm_fim_model", "recite_model", "bert_embed_model", "bert_rerank_model"],
)
def test_a_sound_model_is_accepted(request, model):
    parts = check_model_file(str(request.getfixturevalue(model)))
    assert len(parts) == 1 and parts[0].tensors


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_model_with_a_fault_is_refused(request, tmp_path, fault):
    parts = take_apart(request.getfixturevalue(fault.base))
    fault.spoil(parts)
    message = refusal(parts.write(tmp_path / "model.gguf"))
    assert re.search(fault.words, message), message


@pytest.mark.parametrize("fault", LEFT_TO_LIBLLAMA, ids=lambda fault: fault.name)
def test_what_libllama_refuses_well_is_left_to_it(request, tmp_path, fault):
    parts = take_apart(request.getfixturevalue(fault.base))
    fault.spoil(parts)
    check_model_file(str(parts.write(tmp_path / "model.gguf")))


def test_overridden_metadata_counts_as_it_will_for_libllama(tmp_path, tiny_spm_model):
    path = take_apart(tiny_spm_model).set("llama.expert_used_count", scalar("u32", 2)).write(tmp_path / "model.gguf")
    assert "experts" in refusal(path)
    check_model_file(str(path), overrides=[("llama.expert_used_count", "int", 0)])


def test_only_a_model_with_a_classification_head_can_rank(
    bert_rerank_model, bert_classes_model, bert_embed_model, tiny_spm_model
):
    for model in (bert_rerank_model, bert_classes_model):
        check_ranker(check_model_file(str(model)))
    for model in (bert_embed_model, tiny_spm_model):
        with pytest.raises(StartError, match="no classification head"):
            check_ranker(check_model_file(str(model)))


def test_a_model_that_can_be_asked_needs_no_head_to_rank(tmp_path):
    asked = tiny_gpt2(tmp_path / "asked.gguf", rerank_template="is {document} about {query}?")
    check_ranker(check_model_file(str(asked)))
    with pytest.raises(StartError, match="no reranking template"):
        check_ranker(check_model_file(str(tiny_gpt2(tmp_path / "other.gguf"))))


@pytest.mark.parametrize(
    "meta, template",
    [
        ({"general.architecture": "qwen3", "general.name": "Qwen3 Reranker 0.6B"}, QWEN_TEMPLATE),
        ({"general.architecture": "qwen3", "general.basename": "Qwen3-Reranker"}, QWEN_TEMPLATE),
        ({"general.architecture": "qwen3vl", "general.name": "Qwen3-VL-Reranker-2B"}, QWEN_TEMPLATE),
        ({"general.architecture": "qwen3", "general.name": "Qwen3 0.6B"}, ""),
        ({"general.architecture": "llama", "general.name": "Qwen3 Reranker"}, ""),
        ({"general.architecture": "qwen3", "general.name": "Qwen3 Reranker", TEMPLATE_KEY: "{query}"}, "{query}"),
        ({TEMPLATE_KEY: ""}, ""),
        ({}, ""),
    ],
)
def test_the_template_of_a_reranker_comes_from_its_metadata_or_its_name(meta, template):
    assert template_of(meta) == template


def test_adapters_and_projectors_are_accepted_where_they_belong(tiny_lora, mmproj_gemma3, tiny_spm_model):
    check_model_file(str(tiny_lora), "--lora")
    check_model_file(str(mmproj_gemma3), "--mmproj")
    check_all(str(tiny_spm_model), {"--lora": [str(tiny_lora)], "--mmproj": [str(mmproj_gemma3)]})
    assert "not an adapter" in refusal(tiny_spm_model, "--lora")
    assert "isn't clip" in refusal(tiny_spm_model, "--mmproj")
    assert "--lora" in refusal(tiny_lora, "--model-draft")


def test_a_truncated_adapter_is_refused_with_its_own_path(tmp_path, tiny_lora, tiny_spm_model):
    path = tmp_path / "adapter.gguf"
    path.write_bytes(tiny_lora.read_bytes()[:-10])
    with pytest.raises(StartError, match=re.escape(str(path))):
        check_all(str(tiny_spm_model), {"--lora": [str(path)]})


def test_a_file_that_is_not_there(tmp_path):
    assert "no model file" in refusal(tmp_path / "nothing.gguf")


def test_a_folder(tmp_path):
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize("data", [b"", b"GG", b"\x7fELF" + bytes(100), b"ggml" + bytes(100), b"<html>" + bytes(100)])
def test_a_file_that_is_no_gguf(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert "not a GGUF file" in refusal(path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b'\x40\x01\0\0\0\0\0\0{"a":', "convert_hf_to_gguf.py"),
        (b"PK\x03\x04" + bytes(40), "convert_hf_to_gguf.py"),
        (b"tjgg" + bytes(40), "get the model as GGUF"),
    ],
)
def test_what_is_often_taken_for_a_model_is_told_with_the_cure(tmp_path, data, words):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert words in refusal(path)


@pytest.mark.parametrize("n_bytes", [4, 8, 23])
def test_a_header_that_is_cut_off(tmp_path, n_bytes):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD[:n_bytes])
    assert "truncated" in refusal(path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)

    def refuse(*args, **options):
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr("builtins.open", refuse)
    assert "can't be read" in refusal(path)

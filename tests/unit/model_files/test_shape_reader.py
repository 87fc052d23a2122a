"""From a header to a model's memory per token and per sequence, for each kind of architecture."""

from __future__ import annotations

import pytest

from server.model_files import gguf
from server.model_files.gguf import Gguf, GgufError, Tensor
from server.model_files.shape_reader import Layer, shape_of


def header(arch: str, tensors: dict[str, int], **metadata: object) -> Gguf:
    """A file that says `metadata` (`__` is a dot) and has `tensors` of so many bytes."""
    values = {"block_count": 2, "context_length": 1024, "embedding_length": 64, **metadata}
    found = Gguf("model.gguf", 0, metadata={f"{arch}.{key.replace('__', '.')}": value for key, value in values.items()})
    found.metadata["general.architecture"] = arch
    found.tensors = {name: Tensor(name, (64, 100), 0, 0, n) for name, n in tensors.items()}
    return found


def kept(*args: object, **metadata: object) -> list[tuple[int, int, int]]:
    return [(layer.k, layer.v, layer.state) for layer in shape_of([header(*args, **metadata)]).layers]


PLAIN = {
    "token_embd.weight": 1000,
    "output.weight": 500,
    "output_norm.weight": 10,
    "blk.0.attn_k.weight": 7,
    "blk.1.attn_k.weight": 8,
}


def test_a_tiny_llama(tiny_spm_model):
    found = gguf.read(tiny_spm_model)
    shape = shape_of([found])
    assert shape.weights == sum(tensor.n_bytes for tensor in found.tensors.values())
    assert [(layer.k, layer.v, layer.state) for layer in shape.layers] == [(64, 64, 0)] * 2
    assert (shape.n_ctx_train, shape.n_embd, shape.n_ff, shape.n_head) == (2048, 64, 64, 4)
    assert shape.n_vocab == found.metadata["tokenizer.ggml.tokens"].count and shape.output


def test_an_embedding_model_keeps_nothing(bert_embed_model):
    shape = shape_of([gguf.read(bert_embed_model)])
    assert all(layer == Layer(layer.weights) for layer in shape.layers) and shape.n_vocab == 0


def test_the_vocabulary_is_counted_in_whichever_part_of_a_split_model_it_is():
    first, second = header("llama", {}, attention__head_count=4), header("llama", PLAIN)
    assert shape_of([first, second]) == shape_of([header("llama", PLAIN, attention__head_count=4)])
    assert shape_of([first, second]).n_vocab == 100


def test_weights_by_place():
    shape = shape_of([header("llama", PLAIN, attention__head_count=4)])
    assert (shape.input, shape.output, [layer.weights for layer in shape.layers]) == (1000, 510, [7, 8])
    pinned = shape_of([header("llama", PLAIN, attention__head_count=4)], [r"blk\.1\."])
    assert pinned.pinned == 8 and pinned.weights == shape.weights
    tied = {name: n for name, n in PLAIN.items() if name != "output.weight"}
    assert shape_of([header("llama", tied, attention__head_count=4)]).output == 0


def test_heads_in_one_number_or_in_a_list():
    assert kept("llama", PLAIN, attention__head_count=4) == [(64, 64, 0)] * 2
    assert kept("llama", PLAIN, attention__head_count=4, attention__head_count_kv=1) == [(16, 16, 0)] * 2
    assert kept("llama", PLAIN, attention__head_count=4, attention__head_count_kv=(2, 0)) == [(32, 32, 0), (0, 0, 0)]
    assert (
        kept("llama", PLAIN, attention__head_count=4, attention__key_length=128, attention__value_length=32)
        == [(512, 128, 0)] * 2
    )


def test_latent_attention_keeps_one_row():
    assert (
        kept(
            "deepseek2",
            PLAIN,
            attention__head_count=16,
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
        )
        == [(576, 0, 0)] * 2
    )


def test_layers_for_prediction_and_layers_that_share_keep_nothing():
    assert kept("glm4moe", PLAIN, attention__head_count=4, nextn_predict_layers=1) == [(64, 64, 0), (0, 0, 0)]
    assert kept("gemma4", PLAIN, attention__head_count=4, attention__shared_kv_layers=1) == [(64, 64, 0), (0, 0, 0)]


def test_windows_from_a_list_and_from_the_architecture():
    listed = shape_of(
        [
            header(
                "gemma4",
                PLAIN,
                attention__head_count=4,
                attention__sliding_window=512,
                attention__sliding_window_pattern=(True, False),
                attention__key_length=32,
                attention__key_length_swa=16,
            )
        ]
    )
    assert [(layer.is_windowed, layer.k) for layer in listed.layers] == [(True, 64), (False, 128)]
    assert listed.window == 512
    known = shape_of([header("gemma2", PLAIN, attention__head_count=4, attention__sliding_window=4096)])
    assert [layer.is_windowed for layer in known.layers] == [True, False]
    unknown = shape_of([header("phi3", PLAIN, attention__head_count=4, attention__sliding_window=2048)])
    assert unknown.window == 0 and not any(layer.is_windowed for layer in unknown.layers)


def test_recurrent_and_hybrid_models():
    mamba = {"token_embd.weight": 1, "blk.0.ssm_in.weight": 1, "blk.1.ssm_in.weight": 1}
    state = 4 * (3 * 128 + 16 * 128)
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}
    assert kept("mamba", mamba, attention__head_count=0, **ssm) == [(0, 0, state)] * 2
    hybrid = {"token_embd.weight": 1, "blk.0.ssm_in.weight": 1, "blk.1.attn_k.weight": 1}
    assert kept("jamba", hybrid, attention__head_count=4, attention__head_count_kv=(0, 2), **ssm) == [
        (0, 0, state),
        (32, 32, 0),
    ]
    both = {"token_embd.weight": 1, "blk.0.ssm_in.weight": 1, "blk.0.attn_k.weight": 1}
    assert kept("falcon-h1", both, block_count=1, attention__head_count=4, **ssm) == [(64, 64, state)]
    rwkv = {"token_embd.weight": 1, "blk.0.time_mix_key.weight": 1, "blk.1.time_mix_key.weight": 1}
    assert kept("rwkv7", rwkv, attention__head_count=0, wkv__head_size=16) == [(0, 0, 4 * 64 * 18)] * 2


def test_experts_count_as_one_wide_network():
    shape = shape_of(
        [
            header(
                "qwen3moe",
                PLAIN,
                attention__head_count=4,
                feed_forward_length=100,
                expert_used_count=8,
                expert_feed_forward_length=96,
            )
        ]
    )
    assert shape.n_ff == 768


def test_a_header_that_lacks_what_counts():
    found = header("llama", PLAIN)
    del found.metadata["llama.embedding_length"]
    with pytest.raises(GgufError, match="embedding_length"):
        shape_of([found])

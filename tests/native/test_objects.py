"""Owners of native objects and vocabulary helpers with a tiny model: life cycle, decoding, state, samplers.

The tests compare greedy text of a model made for that (see tests/tiny_models.py), so that no test depends on a CPU's
rounding.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctypes_api import loader, vocabulary
from ctypes_api.errors import LibsError, ModelLoadError
from ctypes_api.objects import AbortFlag, Adapter, Batch, Context, Model, MtmdContext, Sampler, Threadpool
from ctypes_api.vocabulary import detokenize, token_to_piece, tokenize
from tests.support import need

PROMPT = b"the quiet fox and the big river sang to the moon and the star near the old tree"


@pytest.fixture
def context(model: Model) -> Iterator[Context]:
    """A context of two sequences over one KV memory, on one thread."""
    with make_context(model) as made:
        yield made


def make_context(model: Model, **fields: object) -> Context:
    return Context(
        model,
        **{
            "n_ctx": 256,
            "n_batch": 64,
            "n_seq_max": 2,
            "kv_unified": True,
            "n_threads": 1,
            "n_threads_batch": 1,
            **fields,
        },
    )


def prompt_of(model: Model) -> list[int]:
    return tokenize(model.libs, model.vocab, PROMPT, True, False)


def decode(context: Context, tokens: list[int], start: int, seq: int = 0) -> int:
    """Decodes `tokens` at positions from `start` on; only the last one has an output. Returns
    llama_decode's."""
    batch, count = Batch(context.libs, len(tokens)), len(tokens)
    batch.token[:count] = tokens
    batch.pos[:count] = range(start, start + count)
    batch.seq[:count] = [seq] * count
    batch.logits[count - 1] = 1
    batch.n_tokens = count
    return context.libs.llama.llama_decode(context, batch.struct)


def greedy(context: Context, n: int, start: int, seq: int = 0) -> list[int]:
    """`n` tokens after what was decoded last in `seq`, which ended before position `start`."""
    llama, made = context.libs.llama, []
    with Sampler.make_chain(context.libs, llama.llama_sampler_init_greedy()) as sampler:
        for position in range(start, start + n):
            llama.llama_synchronize(context)
            made.append(llama.llama_sampler_sample(sampler, context, -1))
            assert decode(context, made[-1:], position, seq) == 0
    return made


def greedy_after_prompt(context: Context, n: int = 12, seq: int = 0) -> list[int]:
    tokens = prompt_of(context.parent)
    assert decode(context, tokens, 0, seq) == 0
    return greedy(context, n, len(tokens), seq)


# ------------------------------------------------------------------------------------------- models


def test_model_tells_what_it_is(model: Model) -> None:
    assert "llama" in model.desc
    assert model.n_params > 0 and model.size >= 4 * model.n_params  # float32 throughout
    meta = model.read_meta()
    assert meta["general.architecture"] == "llama"
    assert int(meta["llama.context_length"]) == model.libs.llama.llama_model_n_ctx_train(model)
    assert model.get_chat_template("no such template") is None
    template = model.get_chat_template()
    assert template == meta.get("tokenizer.chat_template")


@pytest.mark.parametrize(
    "content, reason",
    [(None, "No such file|failed to open"), (b"GG", "magic|failed to read"), (b"\x1b[31m" + b"no model" * 99, "magic")],
)
def test_file_that_is_no_model_gives_one_printable_line(libs, tmp_path: Path, content, reason: str) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        Model(libs, path)
    text = str(caught.value)
    assert text.startswith(f"can't load model {path}: ") and text.isprintable()


def test_truncated_model_is_refused(libs, tiny_spm_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_spm_model.read_bytes()[:-4096])
    with pytest.raises(ModelLoadError, match="cut.gguf: .*(not within the file bounds|incomplete)"):
        Model(libs, path)


def test_path_with_a_nul_is_refused(libs: loader.Libs) -> None:
    with pytest.raises(ModelLoadError, match="NUL"):
        Model(libs, "a\0b")


def test_progress_is_told_and_may_stop_the_load(libs, tiny_spm_model: Path) -> None:
    seen: list[float] = []
    Model(libs, tiny_spm_model, progress=lambda value: seen.append(value) or True).close()
    assert seen == sorted(seen) and seen[-1] == 1.0
    with pytest.raises(ModelLoadError, match="stopped by its progress callback"):
        Model(libs, tiny_spm_model, progress=lambda value: False)


def test_exception_in_progress_comes_through(libs, tiny_spm_model: Path) -> None:
    def progress(value: float) -> bool:
        raise KeyError("from the callback")

    with pytest.raises(KeyError, match="from the callback"):
        Model(libs, tiny_spm_model, progress=progress)


def test_vocabulary_alone_can_tokenize(libs, model: Model, tiny_spm_model: Path) -> None:
    with Model(libs, tiny_spm_model, vocab_only=True) as words:
        assert tokenize(libs, words.vocab, PROMPT, True, False) == prompt_of(model)


def test_unknown_field_is_a_type_error(libs, model: Model, tiny_spm_model: Path) -> None:
    with pytest.raises(TypeError, match="llama_model_params has no field 'gpu_layers'"):
        Model(libs, tiny_spm_model, gpu_layers=1)
    with pytest.raises(TypeError, match="llama_context_params has no field 'nctx'"):
        Context(model, nctx=1)


def test_impossible_context_is_refused_and_leaves_no_child(libs, tiny_spm_model: Path) -> None:
    with Model(libs, tiny_spm_model) as alone:
        with pytest.raises(ModelLoadError, match="can't create a context: "):
            Context(alone, n_batch=0, n_ubatch=0)
        assert alone._children == []


def test_device_list_is_taken(libs, tiny_spm_model: Path) -> None:
    device = libs.ggml.ggml_backend_dev_by_type(0)
    with Model(libs, tiny_spm_model, devices=[device], n_gpu_layers=0) as made:
        assert made.n_params > 0


# ------------------------------------------------------------------------------------------- life cycle


def test_closing_a_model_closes_what_hangs_on_it_and_again_does_nothing(libs, tiny_spm_model: Path) -> None:
    model = Model(libs, tiny_spm_model)
    first, second = make_context(model), make_context(model)
    second.close()
    model.close()
    assert first.raw is second.raw is model.raw is None
    for owner in (model, first, second):
        owner.close()


def test_closed_owner_never_reaches_c(libs, tiny_spm_model: Path) -> None:
    model = Model(libs, tiny_spm_model)
    context = make_context(model)
    model.close()
    with pytest.raises((LibsError, ctypes.ArgumentError), match="Context is closed"):
        libs.llama.llama_n_ctx(context)
    with pytest.raises((LibsError, ctypes.ArgumentError), match="Model is closed"):
        make_context(model)


def test_only_a_forgotten_owner_warns(libs, tiny_spm_model: Path) -> None:
    gc.collect()  # what tests before this one have left must not warn here
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_context(Model(libs, tiny_spm_model)).parent.close()
        gc.collect()
        assert not [w for w in caught if "never closed" in str(w.message)]
        forgotten = Sampler(libs, libs.llama.llama_sampler_init_greedy())
        raw = forgotten.raw
        del forgotten
        gc.collect()
        told = [str(w.message) for w in caught if "never closed" in str(w.message)]
        assert told == ["Sampler was never closed"]
    Sampler(libs, raw).close()


# ------------------------------------------------------------------------------------------- vocabulary


def test_text_survives_tokenizing(model: Model) -> None:
    tokens = tokenize(model.libs, model.vocab, "the café 😀 äöü \x00\n".encode(), False, False)
    pieces = b"".join(token_to_piece(model.libs, model.vocab, token, False) for token in tokens)
    assert pieces.lstrip(b" ") == "the café 😀 äöü \x00\n".encode()
    assert detokenize(model.libs, model.vocab, tokens).lstrip(b" ") == pieces.lstrip(b" ")


def test_special_tokens_are_added_and_shown_only_when_asked(model: Model) -> None:
    bos = model.libs.llama.llama_vocab_bos(model.vocab)
    assert tokenize(model.libs, model.vocab, b"", True, False) == [bos]
    assert tokenize(model.libs, model.vocab, b"", False, False) == []
    assert token_to_piece(model.libs, model.vocab, bos, False) == b""
    shown = token_to_piece(model.libs, model.vocab, bos, True)
    assert shown and detokenize(model.libs, model.vocab, [bos], unparse_special=True) == shown
    assert tokenize(model.libs, model.vocab, shown, False, True) == [bos]
    assert bos not in tokenize(model.libs, model.vocab, shown, False, False)


def test_text_larger_than_the_first_buffer_comes_whole(model: Model) -> None:
    text = b"the " * 5000 + bytes(range(128, 256)) * 50
    tokens = tokenize(model.libs, model.vocab, text, False, False)
    assert detokenize(model.libs, model.vocab, tokens).count(b"the") == 5000
    assert detokenize(model.libs, model.vocab, []) == b""


def test_pieces_larger_than_the_first_buffer_come_whole(model: Model, monkeypatch) -> None:
    libs, vocab = model.libs, model.vocab
    pieces = {
        token: token_to_piece(libs, vocab, token, True) for token in range(libs.llama.llama_vocab_n_tokens(vocab))
    }
    longest = max(pieces, key=lambda token: len(pieces[token]))
    assert len(pieces[longest]) > 7  # so that 100 of them are beyond the first guess
    shown = detokenize(libs, vocab, [longest] * 100, unparse_special=True)
    assert shown.count(pieces[longest].strip()) == 100
    monkeypatch.setattr(vocabulary, "_PIECE", ctypes.c_char * 1)
    assert token_to_piece(libs, vocab, longest, True) == pieces[longest]


@pytest.mark.parametrize("token", [-1, 1 << 20, 1 << 32])
def test_unknown_token_is_an_error_and_not_the_end_of_the_process(model: Model, token: int) -> None:
    with pytest.raises(LibsError, match=f"token {token} isn't in the vocabulary of "):
        token_to_piece(model.libs, model.vocab, token, False)
    with pytest.raises(LibsError, match=f"token {token} isn't in the vocabulary of "):
        detokenize(model.libs, model.vocab, [token])


def test_threads_may_tokenize_at_once(model: Model) -> None:
    expected, wrong = prompt_of(model), []

    def work() -> None:
        wrong.extend(tokens for _ in range(50) if (tokens := prompt_of(model)) != expected)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ------------------------------------------------------------------------------------------- decoding


def test_prompt_at_once_and_token_by_token_give_the_same_text(model: Model) -> None:
    with make_context(model) as context:
        at_once = greedy_after_prompt(context)
    tokens = prompt_of(model)
    with make_context(model) as context:
        for position, token in enumerate(tokens):
            assert decode(context, [token], position) == 0
        assert greedy(context, len(at_once), len(tokens)) == at_once
    assert len(set(at_once)) > 3  # lively enough to mean something


def test_context_has_what_was_asked_for(context: Context) -> None:
    llama = context.libs.llama
    assert llama.llama_n_ctx(context) == 256
    assert llama.llama_n_batch(context) == 64
    assert llama.llama_n_seq_max(context) == 2
    assert llama.llama_get_model(context) == context.parent.raw
    assert context.memory == llama.llama_get_memory(context)


def test_logits_are_the_same_by_either_kind_and_fit_the_sample(context: Context) -> None:
    llama, tokens = context.libs.llama, prompt_of(context.parent)
    assert decode(context, tokens, 0) == 0
    waited = llama.call_llama_get_logits_ith(context, -1)
    n_vocab = llama.llama_vocab_n_tokens(context.parent.vocab)
    logits = waited[:n_vocab]
    assert llama.llama_get_logits_ith(context, len(tokens) - 1)[:n_vocab] == logits
    assert not llama.llama_get_logits_ith(context, 0)  # that row had no output
    with Sampler.make_chain(context.libs, llama.llama_sampler_init_greedy()) as sampler:
        best = max(range(n_vocab), key=logits.__getitem__)
        assert llama.llama_sampler_sample(sampler, context, -1) == best
        assert llama.call_llama_sampler_sample(sampler, context, -1) == best


def test_invalid_token_in_a_batch_is_refused_by_decode(context: Context) -> None:
    assert decode(context, [1 << 20], 0) == -1
    assert decode(context, prompt_of(context.parent), 0) == 0


def test_more_tokens_than_cells_find_no_room(model: Model) -> None:
    with make_context(model, n_ctx=256) as context:
        results = [decode(context, [1] * 64, 64 * step) for step in range(5)]
    assert results == [0, 0, 0, 0, 1]


def test_copied_and_removed_sequences(context: Context) -> None:
    llama, tokens = context.libs.llama, prompt_of(context.parent)
    alone = greedy_after_prompt(context)
    assert llama.llama_memory_seq_rm(context.memory, 0, len(tokens), -1)
    assert llama.llama_memory_seq_pos_max(context.memory, 0) == len(tokens) - 1
    llama.llama_memory_seq_cp(context.memory, 0, 1, 0, len(tokens) - 1)
    assert llama.llama_memory_seq_rm(context.memory, 0, -1, -1)
    assert llama.llama_memory_seq_pos_max(context.memory, 0) == -1
    assert decode(context, tokens[-1:], len(tokens) - 1, seq=1) == 0
    assert greedy(context, len(alone), len(tokens), seq=1) == alone
    llama.llama_memory_clear(context.memory, True)
    assert llama.llama_memory_seq_pos_max(context.memory, 1) == -1


def test_rows_may_belong_to_two_sequences(context: Context) -> None:
    llama, tokens = context.libs.llama, prompt_of(context.parent)
    batch, count = Batch(context.libs, 64, n_seq_max=2), len(tokens)
    batch.token[:count], batch.pos[:count] = tokens, range(count)
    for row in range(count):
        batch.n_seq_id[row] = 2
        batch.seq_id[row][0], batch.seq_id[row][1] = 0, 1
    batch.logits[count - 1] = 1
    batch.n_tokens = count
    assert llama.llama_decode(context, batch.struct) == 0
    assert [llama.llama_memory_seq_pos_max(context.memory, seq) for seq in (0, 1)] == [count - 1] * 2


def test_abort_flag_stops_decoding_and_lets_it_go_on(model: Model) -> None:
    flag, tokens = AbortFlag(), prompt_of(model)
    with make_context(model, abort=flag) as context:
        flag.set()
        assert decode(context, tokens, 0) == 2
        flag.clear()
        context.libs.llama.llama_memory_clear(context.memory, True)
        assert greedy_after_prompt(context)


def test_own_threadpool_computes_the_same(model: Model) -> None:
    libs = model.libs
    with make_context(model) as context:
        expected = greedy_after_prompt(context)
    with Threadpool(libs, 2, poll=0) as pool, make_context(model, n_threads=2, n_threads_batch=2) as context:
        libs.llama.llama_attach_threadpool(context, pool, None)
        assert greedy_after_prompt(context) == expected
        libs.llama.llama_detach_threadpool(context)


# ------------------------------------------------------------------------------------------- state


def test_sequence_state_moves_to_another_context_and_sequence(model: Model, context: Context) -> None:
    llama, tokens = model.libs.llama, prompt_of(model)
    assert decode(context, tokens[:-1], 0) == 0
    size = llama.llama_state_seq_get_size(context, 0)
    state = bytearray(size)
    written = llama.llama_state_seq_get_data(context, (ctypes.c_uint8 * size).from_buffer(state), size, 0)
    assert 0 < written <= size
    assert decode(context, tokens[-1:], len(tokens) - 1) == 0
    expected = greedy(context, 12, len(tokens))
    with make_context(model) as other:
        assert llama.llama_state_seq_set_data(other, bytes(state), written, 1) == written
        assert llama.llama_memory_seq_pos_max(other.memory, 1) == len(tokens) - 2
        assert decode(other, tokens[-1:], len(tokens) - 1, seq=1) == 0
        assert greedy(other, 12, len(tokens), seq=1) == expected


def test_damaged_state_is_refused(model: Model, context: Context) -> None:
    assert model.libs.llama.llama_state_seq_set_data(context, b"\xff" * 64, 64, 0) == 0


def test_sequence_file_brings_tokens_and_state(model: Model, context: Context, tmp_path: Path) -> None:
    llama, tokens, path = model.libs.llama, prompt_of(model), str(tmp_path / "slot.bin").encode()
    assert decode(context, tokens, 0) == 0
    saved = (ctypes.c_int32 * len(tokens))(*tokens)
    assert llama.llama_state_seq_save_file(context, path, 0, saved, len(tokens)) > 0
    room, count = (ctypes.c_int32 * 256)(), ctypes.c_size_t()
    with make_context(model) as other:
        assert llama.llama_state_seq_load_file(other, path, 0, room, len(room), ctypes.byref(count)) > 0
        assert room[: count.value] == tokens
        assert llama.llama_memory_seq_pos_max(other.memory, 0) == len(tokens) - 1


# ------------------------------------------------------------------------------------------- samplers


def test_sampler_written_in_python_decides(context: Context) -> None:
    """It works alone, in a chain, and in the chain's clone; Python errors in it don't cross into C."""
    libs, llama, heard = context.libs, context.libs.llama, []

    def take_the_last(candidates) -> None:
        candidates.selected = candidates.size - 1

    custom = Sampler.make_custom(libs, "last", take_the_last, accept=heard.append, reset=lambda: heard.append("reset"))
    assert llama.llama_sampler_name(custom) == b"last"
    assert decode(context, prompt_of(context.parent), 0) == 0
    llama.llama_synchronize(context)
    with Sampler.make_chain(libs, custom) as chain:
        assert custom.raw is None and llama.llama_sampler_chain_n(chain) == 1
        with chain.clone() as clone:
            chosen = [llama.llama_sampler_sample(one, context, -1) for one in (chain, clone)]
        llama.llama_sampler_reset(chain)
    last = llama.llama_vocab_n_tokens(context.parent.vocab) - 1
    assert chosen == [last, last] and heard == [last, last, "reset"]


def test_python_sampler_may_change_candidates_in_place(context: Context) -> None:
    libs, llama = context.libs, context.libs.llama

    def forbid_all_but_7(candidates) -> None:
        for i in range(candidates.size):
            if candidates.data[i].id != 7:
                candidates.data[i].logit = float("-inf")

    assert decode(context, prompt_of(context.parent), 0) == 0
    llama.llama_synchronize(context)
    with Sampler.make_chain(
        libs, Sampler.make_custom(libs, "only 7", forbid_all_but_7), llama.llama_sampler_init_greedy()
    ) as chain:
        gc.collect()  # the chain alone keeps the callback alive now
        assert llama.llama_sampler_sample(chain, context, -1) == 7


def test_seeded_sampling_repeats_itself(context: Context) -> None:
    libs, llama = context.libs, context.libs.llama
    assert decode(context, prompt_of(context.parent), 0) == 0
    llama.llama_synchronize(context)
    draws = []
    for seed in (1, 1, 2):
        hot = llama.llama_sampler_init_temp(50.0)
        with Sampler.make_chain(libs, hot, llama.llama_sampler_init_dist(seed)) as chain:
            draws.append([llama.llama_sampler_sample(chain, context, -1) for _ in range(20)])
    assert draws[0] == draws[1] != draws[2]


def test_grammar_that_does_not_parse_is_an_error(model: Model) -> None:
    libs, llama = model.libs, model.libs.llama
    bad = llama.llama_sampler_init_grammar(model.vocab, b"root ::= (", b"root")
    with pytest.raises(LibsError, match="grammar"):
        Sampler(libs, bad)
    with pytest.raises(LibsError, match="grammar"):
        Sampler.make_chain(libs, llama.llama_sampler_init_greedy(), bad, llama.llama_sampler_init_top_k(1))


def test_grammar_rules_what_is_said(context: Context) -> None:
    libs, llama, model = context.libs, context.libs.llama, context.parent
    assert decode(context, prompt_of(model), 0) == 0
    grammar = llama.llama_sampler_init_grammar(model.vocab, b'root ::= " moon"', b"root")
    with Sampler.make_chain(libs, grammar, llama.llama_sampler_init_greedy()) as chain:
        token = llama.call_llama_sampler_sample(chain, context, -1)
    assert token_to_piece(libs, model.vocab, token, False).startswith(b" ")


# ------------------------------------------------------------------------------------------- adapters,
# projectors


def test_adapter_changes_the_text_and_goes_with_its_model(libs, tiny_spm_model, tiny_lora: Path) -> None:
    model = Model(libs, tiny_spm_model)
    with make_context(model) as context:
        plain = greedy_after_prompt(context)
    adapter = Adapter(model, tiny_lora)
    assert adapter.read_meta()["general.type"] == "adapter"
    with make_context(model) as context:
        handles, scales = (ctypes.c_void_p * 1)(adapter.raw), (ctypes.c_float * 1)(1.0)
        assert libs.llama.llama_set_adapters_lora(context, handles, 1, scales) == 0
        assert greedy_after_prompt(context) != plain
    model.close()
    assert adapter.raw is None


def test_file_that_is_no_adapter_is_refused(model: Model, tiny_spm_model: Path) -> None:
    children = list(model._children)
    with pytest.raises(ModelLoadError, match="can't load adapter .*adapter"):
        Adapter(model, tiny_spm_model)
    assert model._children == children


def test_projector_needs_libmtmd_to_be_loaded(
    libs: loader.Libs, model: Model, mmproj_gemma3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libs, "mtmd", None)  # another test may have loaded it
    with pytest.raises(LibsError, match="with_mtmd=True"):
        MtmdContext(model, mmproj_gemma3)


def test_projector_loads_and_goes_with_its_model(libs, tiny_spm_model: Path, mmproj_mlp: Path) -> None:
    need(libs.files.mtmd, "libmtmd isn't here: run `python build_scripts/fetch_libs.py --with-mtmd`")
    loader.load(libs.folder, with_mtmd=True)
    model = Model(libs, tiny_spm_model)
    projector = MtmdContext(model, mmproj_mlp, warmup=False, print_timings=False, use_gpu=False)
    assert libs.mtmd.mtmd_support_vision(projector) and not libs.mtmd.mtmd_support_audio(projector)
    assert libs.mtmd.mtmd_get_marker(projector) == b"<__media__>"
    with pytest.raises(ModelLoadError, match="can't load projector"):
        MtmdContext(model, tiny_spm_model)
    model.close()
    assert projector.raw is None

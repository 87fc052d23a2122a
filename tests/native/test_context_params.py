"""Options reach llama.cpp: the arguments of its two constructors, the results of its getters, and visible effects.

From the command line through `make_engine_config` to an open backend with tiny models. llama.cpp logs most parameters, so
its log is checked, too. Needs the native libraries but no GPU; GPU options are followed up to the struct.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ctypes_api import ggml, layout, llama_types, loader
from server.engine.llama import backend as native
from server.engine.slots.planner import Span
from server.errands.one_shot import ModelPlace
from server.errors import StartError
from server.model_sources import make_engine_config
from server.options import table
from server.options.groups import group
from server.options.parser import parse
from tests.support import PATIENCE, wait_until

TOKENS = [1, *range(260, 300)]
KEPT_FIELDS = 6  # of tensor_split


@dataclass
class Opened:
    """A backend, the parameter structs it was made with, and what llama.cpp printed meanwhile."""

    backend: native.LlamaBackend
    lines: list[str]
    model: object
    context: object
    numa: list[int] = field(default_factory=list)

    def printed(self, pattern: str) -> re.Match[str]:
        """The first match in a printed line; AssertionError if there is none."""
        found = next((found for line in self.lines if (found := re.search(pattern, line))), None)
        assert found, f"no line like {pattern!r} in\n" + "\n".join(self.lines)
        return found

    def get(self, name: str) -> int:
        """What a getter of the context says."""
        llama = self.backend._libs.llama
        return getattr(llama, name)(self.backend._context)

    def logits(self, tokens: list[int] = TOKENS) -> list[float]:
        """Those after `tokens`."""
        backend = self.backend
        assert backend.decode([Span(0, 0, 0, tokens, True)]) == 0
        llama = backend._libs.llama
        llama.llama_synchronize(backend._context)
        row = llama.llama_get_logits_ith(backend._context, -1)
        return row[: backend.info.n_vocab]


@pytest.fixture
def opened(libs_folder: Path, tiny_spm_model: Path, monkeypatch) -> Iterator[Callable[..., Opened]]:
    """`opened("-fa", "on", ...)`: the backend that a server with these arguments would have."""
    libs = loader.load(libs_folder)
    seen: dict[str, object] = {}
    numa: list[int] = []
    lines: list[str] = []
    backends: list[native.LlamaBackend] = []

    def spy(name: str, keep: Callable[..., None]) -> None:
        real = getattr(libs.llama, name)

        def call(*args: object) -> object:
            keep(*args)
            return real(*args)

        monkeypatch.setattr(libs.llama, name, call)

    spy("llama_model_load_from_file", lambda _path, params: seen.update(model=params))
    spy("llama_init_from_model", lambda _model, params: seen.update(context=params))
    monkeypatch.setattr(libs.llama, "llama_numa_init", numa.append)
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("llama_srv.llama")
    monkeypatch.setattr(logger, "level", 1)
    monkeypatch.setattr(logger, "handlers", [handler])
    logger._cache.clear()  # of what is enabled; setLevel would clear it

    def start(*argv: str, model: Path = tiny_spm_model) -> Opened:
        lines.clear()
        options = group(parse(["--libs", str(libs_folder), "-t", "1", "-c", "256", "--no-warmup", *argv], {}))
        backends.append(
            native.open_backend(
                make_engine_config(options.model, str(libs_folder), ModelPlace(str(model))), lambda _progress: True
            )
        )
        return Opened(backends[-1], list(lines), seen["model"], seen["context"], numa)

    yield start
    for backend in backends:
        backend.close()


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "source", "prefix"),
    [
        (table.KV_TYPES, ggml, "GGML_TYPE_"),
        (table.POOLING, llama_types, "LLAMA_POOLING_TYPE_"),
        (table.ROPE_SCALING, llama_types, "LLAMA_ROPE_SCALING_TYPE_"),
        (table.LAZY_MODES, llama_types, "LLAMA_LAZY_MODE_"),
        (table.SPLIT_MODES, llama_types, "LLAMA_SPLIT_MODE_"),
        (table.LOAD_MODES, llama_types, "LLAMA_LOAD_MODE_"),
        (table.FLASH_ATTENTION, llama_types, "LLAMA_FLASH_ATTN_TYPE_"),
        (table.NUMA, ggml, "GGML_NUMA_STRATEGY_"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_words_stand_for_the_numbers_of_the_bindings(words, source, prefix):
    other_names = {"dio": "DIRECT_IO", "mmap+mlock": "MMAP_MLOCK"}
    if prefix == "LLAMA_FLASH_ATTN_TYPE_":
        other_names = {"on": "ENABLED", "off": "DISABLED"}
    expected = {word: getattr(source, prefix + other_names.get(word, word.upper())) for word in words}
    assert words == expected


def test_no_more_threads_are_allowed_than_ggml_can_take():
    assert table.MAX_THREADS == layout.CONSTANTS["GGML_MAX_N_THREADS"]


# ---- structs -----------------------------------------------------------------------------------------------------


def test_without_options_llama_cpp_s_own_defaults_are_passed(opened):
    one = opened()
    for passed, default in (
        (one.model, one.backend._llama.llama_model_default_params()),
        (one.context, one.backend._llama.llama_context_default_params()),
    ):
        names = {row.target.partition(":")[2] for row in table.OPTIONS if re.match("model:|context:", row.target)}
        for name, *_ in default._fields_:
            if name in names and name not in ("devices", "tensor_split", "kv_overrides", "tensor_buft_overrides"):
                assert getattr(passed, name) == getattr(default, name), name
    assert not one.model.devices and not one.model.tensor_split and not one.model.kv_overrides
    assert one.numa == []


@pytest.mark.covers("C11", "C12", "C17", "C18")
@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-ngl", "0"], "n_gpu_layers", 0),
        (["-ngl", "7"], "n_gpu_layers", 7),
        (["-ngl", "all"], "n_gpu_layers", -1),
        (["-mg", "0"], "main_gpu", 0),
        (["-sm", "none"], "split_mode", 0),
        (["-sm", "row"], "split_mode", 2),
        (["-lm", "none"], "load_mode", 0),
        (["--mlock"], "load_mode", 3),
        (["--no-mmap"], "load_mode", 0),
        (["--mlock", "--no-mmap"], "load_mode", 2),
        (["-dio"], "load_mode", 4),
        (["-lzm", "off"], "lazy_mode", 0),
        (["--check-tensors"], "check_tensors", True),
        (["--no-repack"], "use_extra_bufts", False),
        (["--no-host"], "no_host", True),
    ],
)
def test_an_option_of_the_model_arrives(opened, argv, name, value):
    assert getattr(opened(*argv).model, name) == value


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-fa"], "flash_attn_type", 1),
        (["-fa", "off"], "flash_attn_type", 0),
        (["-fa", "auto"], "flash_attn_type", -1),
        (["--compat", "2024"], "flash_attn_type", 0),
        (["-nkvo"], "offload_kqv", False),
        (["--swa-full"], "swa_full", True),
        (["--no-op-offload"], "op_offload", False),
        (["-ctk", "q5_1"], "type_k", 7),
        (["-ctv", "bf16"], "type_v", 30),
        (["--memory-f32"], "type_k", 0),
        (["--memory-f32"], "type_v", 0),
        (["--pooling", "none"], "pooling_type", 0),
        (["--rope-scaling", "none"], "rope_scaling_type", 0),
        (["--rope-scaling", "linear"], "rope_scaling_type", 1),
        (["--rope-scaling", "yarn"], "rope_scaling_type", 2),
        (["--rope-freq-base", "500000"], "rope_freq_base", 5e5),
        (["--rope-freq-scale", "0.25"], "rope_freq_scale", 0.25),
        (["--rope-scale", "8"], "rope_freq_scale", 0.125),
        (["--yarn-orig-ctx", "128"], "yarn_orig_ctx", 128),
        (["--yarn-ext-factor", "0"], "yarn_ext_factor", 0.0),
        (["--yarn-attn-factor", "1.5"], "yarn_attn_factor", 1.5),
        (["--yarn-beta-slow", "2"], "yarn_beta_slow", 2.0),
        (["--yarn-beta-fast", "16"], "yarn_beta_fast", 16.0),
    ],
)
def test_an_option_of_the_context_arrives(opened, argv, name, value):
    assert getattr(opened(*argv).context, name) == value


@pytest.mark.covers("C13")
def test_the_shares_of_gpus_arrive_and_the_rest_get_none(opened):
    assert opened("-ts", "3,1").model.tensor_split[:KEPT_FIELDS] == [3.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.covers("C19")
@pytest.mark.parametrize(
    ("argv", "strategy"),
    [(["--numa"], 1), (["--numa", "distribute"], 1), (["--numa", "isolate"], 2), (["--numa", "numactl"], 3)],
)
def test_the_numa_strategy_arrives_once(opened, argv, strategy):
    assert opened(*argv).numa == [strategy]


# ---- what llama.cpp says about it --------------------------------------------------------------------------------


@pytest.mark.covers("C02", "C03", "C15")
def test_threads_and_batches_are_what_the_getters_say(opened):
    one = opened("-t", "2", "-tb", "3", "-b", "96", "-ub", "48")
    assert [one.get(f"llama_n_{name}") for name in ("threads", "threads_batch", "batch", "ubatch")] == [2, 3, 96, 48]
    one = opened("-t", "2")
    assert (one.get("llama_n_threads"), one.get("llama_n_threads_batch")) == (2, 2)
    one = opened("-b", "64")
    assert (one.get("llama_n_batch"), one.get("llama_n_ubatch")) == (64, 64)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells where threads may run")
def test_compute_threads_outlive_a_step_and_run_where_the_user_says(opened):
    def threads() -> dict[str, str]:
        """Where each thread of this process may run."""
        found = {}
        for task in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):  # one that has just ended
                found[task.name] = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())[1]
        return found

    cpus = os.sched_getaffinity(0)
    last = max(cpus)
    try:
        before = threads()
        one = opened("-t", "3", "-C", f"{1 << last:x}")
        wait_until(lambda: len(threads().keys() - before.keys()) == 2, "the threads of the start to end", PATIENCE)
        pool = {thread: where for thread, where in threads().items() if thread not in before}
        assert sorted(pool.values()) == [str(last)] * 2 and os.sched_getaffinity(0) == {last}
        one.logits()
        assert pool.keys() <= threads().keys() <= before.keys() | pool.keys(), "no other threads were started"
    finally:
        os.sched_setaffinity(0, cpus)  # this thread computes along


def test_the_context_of_2024_has_512_tokens_and_that_of_slots_is_multiplied(libs_folder, opened, tiny_spm_model):
    def n_ctx(*argv: str) -> int:
        options = group(parse(["--libs", str(libs_folder), "--no-warmup", "-t", "1", *argv], {}))
        backend = native.open_backend(
            make_engine_config(options.model, str(libs_folder), ModelPlace(str(tiny_spm_model))), lambda _progress: True
        )
        try:
            return backend.info.n_ctx
        finally:
            backend.close()

    assert n_ctx("--compat", "2024") == 512
    assert n_ctx() == n_ctx("-c", "0") == 2048  # the model's own
    assert n_ctx("--kv-unified-per-slot", "256", "-np", "3") == 768


@pytest.mark.parametrize("argv", [("-b", "1"), ("-b", "4", "-np", "4"), ("-b", "1", "-ub", "1", "-np", "3")])
def test_a_batch_has_room_for_a_row_of_each_sequence(opened, argv):
    one = opened(*argv)
    assert (
        one.get("llama_n_batch") == one.get("llama_n_seq_max")
        and len(one.logits(TOKENS[:1])) == one.backend.info.n_vocab
    )


@pytest.mark.covers("C52", "C53", "C16")
@pytest.mark.parametrize("name", table.KV_TYPES)
def test_the_cache_has_the_type_asked_for(opened, name):
    one = opened("-ctk", name, "-ctv", name, "-fa", "on")
    found = one.printed(r"K \((\w+)\): .*V \((\w+)\):")
    assert (found[1], found[2]) == (name, name)
    assert len(one.logits()) == one.backend.info.n_vocab
    assert opened("--memory-f32").printed(r"K \((f32)\): .*V \((f32)\):")


def test_keys_and_values_have_their_types_each(opened):
    assert opened("-ctk", "q8_0").printed(r"K \((\w+)\): .*V \((\w+)\):").groups() == ("q8_0", "f16")
    assert opened("-ctv", "q4_0").printed(r"K \((\w+)\): .*V \((\w+)\):").groups() == ("f16", "q4_0")


@pytest.mark.covers("C51")
@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "auto"),
        (["-fa", "auto"], "auto"),
        (["-fa"], "enabled"),
        (["-fa", "on"], "enabled"),
        (["-fa", "off"], "disabled"),
        (["--compat", "2024"], "disabled"),
        (["--compat", "2024", "-fa"], "enabled"),
    ],
)
def test_flash_attention_is_as_asked_for(opened, argv, word):
    assert opened(*argv).printed(r"flash_attn += (\w+)")[1] == word


@pytest.mark.covers("C49")
@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        ([], 1),
        (["--pooling", "none"], 0),
        (["--pooling", "mean"], 1),
        (["--pooling", "cls"], 2),
        (["--pooling", "last"], 3),
    ],
)
def test_pooling_is_the_model_s_or_the_one_asked_for(opened, bert_embed_model, argv, kind):
    assert opened(*argv, model=bert_embed_model).get("llama_pooling_type") == kind


@pytest.mark.covers("C42", "C43", "C44")
@pytest.mark.parametrize(
    ("argv", "base", "scale"),
    [
        ([], 10000.0, 1.0),
        (["--rope-freq-base", "5000"], 5000.0, 1.0),
        (["--rope-freq-scale", "0.5"], 10000.0, 0.5),
        (["--rope-scale", "4"], 10000.0, 0.25),
        (["--rope-freq-scale", "0.5", "--rope-scaling", "none"], 10000.0, 1.0),
        (["--rope-freq-scale", "0.5", "--rope-scaling", "linear"], 10000.0, 0.5),
    ],
)
def test_rope_frequencies_are_as_asked_for(opened, argv, base, scale):
    one = opened(*argv)
    assert float(one.printed(r"freq_base += ([\d.]+)$")[1]) == base
    assert float(one.printed(r"freq_scale += ([\d.]+)$")[1]) == scale


@pytest.mark.covers("C45", "C46", "C47", "C48")
def test_each_yarn_option_changes_what_is_computed(opened):
    yarn = ["--rope-scaling", "yarn", "--rope-freq-scale", "0.25", "--yarn-orig-ctx", "64"]
    base = [
        *yarn,
        "--yarn-ext-factor",
        "1",
        "--yarn-attn-factor",
        "1",
        "--yarn-beta-slow",
        "1",
        "--yarn-beta-fast",
        "32",
    ]
    assert distance(opened(*base).logits(), opened().logits()) > 0.01
    for option, value, *more in (
        ("--yarn-orig-ctx", "2048"),
        ("--yarn-ext-factor", "0"),
        ("--yarn-beta-slow", "8"),
        ("--yarn-beta-fast", "2"),
        ("--yarn-attn-factor", "2", "--yarn-ext-factor", "0"),
    ):
        reference = opened(*base, *more).logits()
        assert distance(reference, opened(*base, *more).logits()) == 0
        assert distance(reference, opened(*base, *more, option, value).logits()) > 1e-4, option


def distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("argv", "mode"),
    [(["--no-mmap"], "none"), (["--mmap"], "mmap"), (["--mlock"], "mmap+mlock"), (["-lm", "mlock"], "mlock")],
)
def test_the_file_is_loaded_as_asked_for(opened, argv, mode):
    assert opened(*argv).printed(r"load_mode = ([\w+]+)")[1] == mode


def test_invalid_numbers_in_the_weights_are_found_when_asked_for(opened, tiny_spm_model, tmp_path):
    data = bytearray(tiny_spm_model.read_bytes())
    data[-4:] = struct.pack("<f", math.nan)
    broken = tmp_path / "nan.gguf"
    broken.write_bytes(data)
    opened(model=broken)
    with pytest.raises(StartError, match="nan.gguf"):
        opened("--check-tensors", model=broken)


# ---- what needs C structs of its own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("llama.context_length=int:320", lambda one: one.backend.info.n_ctx_train == 320),
        ("llama.rope.freq_base=float:2500.5", lambda one: one.printed(r"freq_base_train += ([\d.]+)")[1] == "2500.5"),
        (
            "tokenizer.ggml.add_bos_token=bool:false",
            lambda one: not one.backend._llama.llama_vocab_get_add_bos(one.backend._vocab),
        ),
        ("general.name=str:another name", lambda one: one.printed(r"general\.name += (.*)")[1] == "another name"),
    ],
)
def test_metadata_of_the_model_can_be_replaced(opened, text, check):
    assert check(opened("--override-kv", text)) and not check(opened())


def test_several_metadata_overrides_count_together(opened):
    one = opened(
        "--override-kv",
        "llama.context_length=int:320,general.name=str:x",
        "--override-kv",
        "tokenizer.ggml.add_bos_token=bool:false",
    )
    assert one.backend.info.n_ctx_train == 320 and one.printed(r"general\.name += x$")
    assert not one.backend._llama.llama_vocab_get_add_bos(one.backend._vocab)


def test_the_cpu_alone_can_be_chosen_and_an_unknown_device_is_refused(opened):
    one = opened("-dev", "none")
    assert one.model.devices and not one.model.devices[0]
    with pytest.raises(StartError, match="--device NOPE9: no such device"):
        opened("-dev", "NOPE9")


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["-ot", r"blk\.1\.ffn_up=CPU"], ["blk.1.ffn_up.weight"]),
        (["-ot", "ffn_up=CPU,ffn_down=CPU"], [f"blk.{i}.ffn_{part}.weight" for i in (0, 1) for part in ("down", "up")]),
        (["-ncffn", "1"], ["blk.0.ffn_down.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"]),
        (["--cpu-moe"], []),
        (["-ncmoe", "2"], []),
    ],
)
def test_tensors_go_where_they_are_told_to(opened, argv, names):
    one = opened(*argv)
    found = {match[1] for line in one.lines if (match := re.search(r"tensor (\S+) .*overrid", line))}
    assert sorted(found) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ffn=NOPE", "no such buffer; available: .*CPU"),
        ("(ffn=CPU", "not a regular expression"),
        ("(?<=a)b=CPU", "can't load"),  # fine for Python, not for C++
    ],
)
def test_an_override_that_can_not_work_is_one_line(opened, text, words):
    with pytest.raises(StartError, match=words) as caught:
        opened("-ot", text)
    assert "\n" not in str(caught.value)

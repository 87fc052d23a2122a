"""The `Backend` over libllama, on the engine's thread: loads a model and calls llama.cpp for the engine.

In `server.engine` only this folder and the web process's vocabulary (`client`) may import `ctypes_api`.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from logging import DEBUG
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctypes_api import loader, vocabulary
from ctypes_api.devices import list_devices
from ctypes_api.errors import LibsError
from ctypes_api.ggml import GGML_LOG_LEVEL_DEBUG, GGML_LOG_LEVEL_ERROR, GGML_LOG_LEVEL_WARN
from ctypes_api.llama_types import LLAMA_POOLING_TYPE_LAST, LLAMA_POOLING_TYPE_NONE, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
from ctypes_api.objects import AbortFlag, Adapter, Batch, Context, Model
from server.engine.cache import kv_parts
from server.engine.cache.rollback import Rollback, count_back
from server.engine.llama.copies import SequenceCopies
from server.engine.llama.draft import Likeliest, describe_vocab_difference, make_drafter_config
from server.engine.llama.draws import BackgroundCall, Draws
from server.engine.llama.embed import (
    NON_CAUSAL,
    POOLING_NAMES,
    WORDS,
    EmbeddingShape,
    LlamaEmbeddings,
    LlamaWordScores,
    compute_longest_input,
    make_encoder_shape,
    make_generative_shape,
    must_answer_in_words,
    pooling_of,
    read_class_labels,
)
from server.engine.llama.fit import AUTO_CTX, bound_context, count_learned_positions, find_shape, make_plan
from server.engine.llama.params import add_workers, make_model_fields, open_pool
from server.engine.llama.report import NO_GPU, LoadReport, is_lacking_gpu
from server.engine.llama.sampler import LlamaSampler, SamplerFactory
from server.engine.seam.config import EngineConfig, count_threads
from server.engine.seam.task import ModelInfo
from server.engine.slots.backend import DECODE_NO_ROOM, DECODE_OK
from server.engine.slots.planner import UNLIMITED, Span
from server.engine.slots.sampling import Stage, VocabFacts
from server.errors import ApiError, StartError
from server.log import VERBOSE, get_logger
from server.model_files import memory_plan as fit
from server.model_files.host_cpus import count_usable_cores
from server.model_files.identity import Identity, Source, list_model_sources, make_source, reach_of, settings_of
from server.model_files.memory_plan import Plan
from server.model_files.rerankers import with_template

if TYPE_CHECKING:
    from server.engine.llama.embed_media import LlamaMediaEmbeddings

__all__ = ["LibsError", "LlamaBackend", "describe_devices", "describe_library", "open_backend", "preload"]

MIN_CTX_SLOT = 32  # tokens
VOCAB_READ = "token to piece cache size"  # llama.cpp's last log line about a vocabulary
_early_lines: list[tuple[int, str]] = []  # logged by the libraries during `preload`
BAD_FILES = ("mtmd_helper_", "mtmd_tokenize", "probe: ")  # log lines about a request's files: the answer has the error

log = get_logger("engine")
native_log = get_logger("llama")


def describe_library(folder: str) -> str:
    """`0.5.0-dev (linux-x64-cpu, CPU)`, for `--version`."""
    libs = _load(folder, None)
    return f"{libs.version} ({libs.folder.name}, {' '.join(libs.backends)})"


def describe_devices(folder: str, cpu_variant: str | None, workers: Sequence[str] = ()) -> list[str]:
    """A line about the libraries, and one per device for computing, including those of RPC workers."""
    libs = _load(folder, cpu_variant, workers)
    lines = [f"libraries: {libs.folder} (llama.cpp {libs.version})"]
    for device in list_devices(libs):
        lines.append(
            f"{device.name}: {device.description} ({device.memory_total >> 20} MiB, "
            f"{device.memory_free >> 20} MiB free)"
        )
    return lines


def plan_of(config: EngineConfig) -> Plan | None:
    """The plan for the model on this machine; None if the header is unreadable. StartError as in `make_plan`."""
    return make_plan(_load(config.libs, config.cpu_variant, config.rpc), config, find_shape(config))


def plan_lines(config: EngineConfig) -> list[str]:
    """The plan as text for `--dry-run`; the last line says whether the model fits. StartError as in `plan_of`."""
    plan = plan_of(config)
    if plan is None:
        return [config.model, "whether it fits is unknown: its memory can't be estimated"]
    return [config.model, *plan.render_lines(), plan.fault or "it fits"]


def open_backend(config: EngineConfig, on_progress: Callable[[float], bool]) -> LlamaBackend:
    """Load the libraries and the model. StartError with one line if that fails."""
    try:
        return LlamaBackend(config, on_progress)
    except LibsError as error:
        raise StartError(str(error)) from None


def preload(folder: str, cpu_variant: str | None = None) -> None:
    """Load the libraries before the model is known. `open_backend` repeats the errors and the log lines."""
    with contextlib.suppress(LibsError, OSError):
        loader.load(Path(folder), cpu_variant=cpu_variant, log_callback=lambda *line: _early_lines.append(line))


def _load(folder: str, cpu_variant: str | None, workers: Sequence[str] = (), with_mtmd: bool = False) -> loader.Libs:
    libs = loader.load(Path(folder), cpu_variant=cpu_variant, with_mtmd=with_mtmd, log_callback=_on_loading_log)
    for line in _early_lines:
        _on_loading_log(*line)
    _early_lines.clear()
    for note in libs.notes:
        log.warning("%s; going on without it", note)
    if is_lacking_gpu(libs.plugins, libs.notes, list_devices(libs)):
        log.warning(NO_GPU)
    add_workers(libs, workers)
    return libs


def _on_loading_log(level: int, line: str) -> None:
    """Log below the level of info, since a load raises its errors."""
    native_log.log(VERBOSE if level == GGML_LOG_LEVEL_DEBUG else DEBUG, "%s", line)


def _report_vocab(on_progress: Callable[[float], bool]) -> Callable[[int, str], None]:
    """`_on_loading_log` that also reports progress 0 once the vocabulary is read: the web process waits for that."""

    def listen(level: int, line: str) -> None:
        if VOCAB_READ in line:
            on_progress(0.0)
        _on_loading_log(level, line)

    return listen


def _on_native_log(abort: AbortFlag, level: int, line: str) -> None:
    """Log what llama.cpp says after the load. Lines about an aborted decode or a request's files are debug lines."""
    if abort.is_set() or line.startswith(BAD_FILES):
        native_log.debug("%s", line)
    elif level >= GGML_LOG_LEVEL_ERROR:
        native_log.error("%s", line)
    elif level >= GGML_LOG_LEVEL_WARN:
        native_log.info("%s", line)
    else:
        _on_loading_log(level, line)


class LlamaBackend:
    """A model and its contexts. `Backend` documents the methods."""

    def __init__(self, config: EngineConfig, on_progress: Callable[[float], bool]) -> None:
        self._config = config
        self._abort = AbortFlag()
        self.drafter: Any = None  # a LlamaBackend
        self._embeddings: LlamaEmbeddings | None = None  # this and the next two are made at their first use
        self._media_embeddings: LlamaMediaEmbeddings | None = None
        self._likeliest: Likeliest | None = None
        report = LoadReport()
        self._open_libraries(report, on_progress)
        files = _files_of(config, self._libs)  # their sizes and times before anything is read
        plan = make_plan(self._libs, config, find_shape(config))
        self._open_model(plan, on_progress)
        self._open_contexts(plan)
        self.media = self._open_projector()
        self._tell_what_was_loaded(report)
        self._look_at_cache()
        self._prepare_batches()
        self.info = self._make_model_info()
        self.identity = self._make_identity(files)
        self._prepare_sampling()
        if config.warmup:
            self._warm_up()
        self.drafter = self._open_drafter()

    # The steps of `__init__` in order; each needs those before it.

    def _open_libraries(self, report: LoadReport, on_progress: Callable[[float], bool]) -> None:
        config = self._config
        self._libs = _load(config.libs, config.cpu_variant, config.rpc, bool(config.mmproj))
        self._llama = self._libs.llama
        if config.numa:
            self._llama.llama_numa_init(config.numa)
        self._libs.log.sink = report.make_listener(_report_vocab(on_progress))

    def _open_model(self, plan: Plan | None, on_progress: Callable[[float], bool]) -> None:
        config, llama = self._config, self._llama
        self._model = model = Model(
            self._libs,
            config.model,
            offset=config.model_offset,
            progress=on_progress,
            **make_model_fields(self._libs, _fit_params(config, plan)),
        )
        self.adapters = tuple(path for path, _ in config.lora)
        self._adapters = [Adapter(model, path) for path in self.adapters]
        self._vocab = llama.llama_model_get_vocab(model)
        self._n_vocab = int(llama.llama_vocab_n_tokens(self._vocab))
        self._is_recurrent = bool(llama.llama_model_is_recurrent(model))
        self._is_hybrid = bool(llama.llama_model_is_hybrid(model))
        self._n_positions = count_learned_positions(model.read_meta().get("general.architecture", ""), config)
        self.window = int(llama.llama_model_n_swa(model))
        self.is_split = config.is_split(self.window > 0)

    def _open_contexts(self, plan: Plan | None) -> None:
        config, llama = self._config, self._llama
        self._n_ctx = bound_context(self._choose_context_size(plan), config.n_slots, self._n_positions)
        self._pool = open_pool(self._libs, config)
        eog_tokens = BackgroundCall(
            lambda: frozenset(token for token in range(self._n_vocab) if llama.llama_vocab_is_eog(self._vocab, token))
        )
        with eog_tokens:
            self._context = self._open_context()
        self.eog_tokens = eog_tokens.wait_for_result()
        self._is_generative = bool(self._context.memory and llama.llama_model_has_decoder(self._model))
        self._pooling = pooling_of(self._model, config.context_params, self._is_generative)
        self._answers_in_words = self._is_generative and must_answer_in_words(self._pooling, config)
        if not self._is_generative:
            self._context.close()  # the context for embeddings replaces it
            self._context = self.open_embeddings().context
        elif config.embeddings:
            self.open_embeddings()

    def _open_projector(self) -> Any:
        if not self._config.mmproj:
            return None
        from server.engine.llama.mtmd import Projector  # seldom needed

        return Projector(self._model, self._context, self._config, self._abort)

    def _tell_what_was_loaded(self, report: LoadReport) -> None:
        self._libs.log.sink = partial(_on_native_log, self._abort)
        devices = list_devices(self._libs)
        for line in report.list_lines(devices):
            log.info("%s", line)
        self._has_gpu = any(device.type != "CPU" for device in devices)

    def _look_at_cache(self) -> None:
        """Find out what the KV cache can do. StartError if an option needs more."""
        config = self._config
        self._memory = self._context.memory
        self.can_shift = bool(self._llama.llama_memory_can_shift(self._memory)) and not self._n_positions
        if config.n_group > 1 and not self.can_shift:
            raise StartError("--grp-attn-n: this model's KV cache can't be shifted; leave self-extend off")
        self.can_share = not (config.exact or self._is_recurrent or self._is_hybrid)
        self._rollback = Rollback(int(self._llama.llama_n_rs_seq(self._context)))
        self.n_rollback = UNLIMITED if self.can_share else self._rollback.n
        self._n_streams = config.n_slots if self.is_split and not self._is_recurrent else 1

    def _prepare_batches(self) -> None:
        self._n_batch = int(self._llama.llama_n_batch(self._context))
        self._batch = Batch(self._libs, self._n_batch)
        self._copies = SequenceCopies(self, self.window > 0)
        self._shifted: set[int] = set()  # sequences whose keys the next decode rotates
        self._lora: tuple[tuple[int, float], ...] = ()

    def _make_identity(self, files: dict[str, list[Source]]) -> Identity:
        config = self._config
        reach = reach_of(self.info.meta, config.model_params, int(self._llama.llama_n_ctx_seq(self._context)))
        settings = settings_of(config.context_params, config.model_params, config.mmproj_params)
        return Identity(
            files, {"model": self.info.desc, "libraries": self._libs.version, "settings": {**settings, **reach}}
        )

    def _prepare_sampling(self) -> None:
        suppressed = vocabulary.list_suppressed_tokens(self._libs, self._vocab)
        self.facts = VocabFacts(self.info.eog_tokens, suppressed, self.info.n_ctx_slot)
        self._samplers = SamplerFactory(self._llama, self._vocab, self._n_vocab)
        self._draws = Draws(min(count_threads(self._config)[0], count_usable_cores()) - 1)
        self._pieces: dict[int, bytes] = {}

    def _open_drafter(self) -> LlamaBackend | None:
        """The draft model; None without one, or if drafts aren't possible. StartError if it doesn't fit the model."""
        config = self._config
        if not config.spec.model:
            return None
        if not self.can_share or config.n_group > 1:
            log.warning("the draft model isn't loaded: recurrent models, --exact and self-extend don't allow drafts")
            return None
        try:
            drafter = LlamaBackend(make_drafter_config(config, self.info.n_ctx, self.is_split), lambda _: True)
            why = describe_vocab_difference(self._llama, self._vocab, drafter._vocab)
            if 0 < drafter._n_positions < self.info.n_ctx_slot:
                why = f"it has {drafter._n_positions} learned positions, a slot {self.info.n_ctx_slot} tokens"
            if not drafter.can_share:
                why = "it is recurrent, and can't drop rejected tokens"
            if why:
                drafter.close()
                raise StartError(f"{config.spec.model} can't draft for {config.model}: {why}")
        except BaseException:
            self.close()
            raise
        return drafter

    def _choose_context_size(self, plan: Plan | None) -> int:
        """Tokens in the whole KV cache: as the user set it, else what fits, else the model's own context. StartError if
        a slot gets too few."""
        config = self._config
        n_train = self._llama.llama_model_n_ctx_train(self._model)
        n_ctx = config.n_ctx or n_train
        if config.n_ctx is None and config.is_fitted:
            n_ctx = plan.n_ctx if plan else min(n_train, AUTO_CTX)
        if n_ctx // config.n_slots < MIN_CTX_SLOT:
            raise StartError(
                f"--ctx-size {n_ctx} leaves less than {MIN_CTX_SLOT} tokens for each of "
                f"{config.n_slots} slots; increase it, or reduce --parallel"
            )
        return n_ctx

    def _open_context(self) -> Context:
        config, n_ctx = self._config, self._n_ctx
        has_states = self._is_recurrent or self._is_hybrid
        # unified: one or two for system prompt and blocks; llama.cpp ends the process if n_batch < n_seq_max
        n_seqs = config.n_slots + (0 if self.is_split else 1 if has_states else 2)
        n_batch = min(max(config.n_batch, n_seqs), max(n_ctx, n_seqs))
        fields = {
            "n_ctx": n_ctx,
            "n_batch": n_batch,
            "n_ubatch": min(config.n_ubatch, n_batch),
            "n_seq_max": n_seqs,
            "kv_unified": not self.is_split,
            "n_rs_seq": count_back(config, config.shape) if has_states else 0,
            **self._compute(),
        }
        return Context(self._model, abort=self._abort, **(fields | config.context_params))

    def _compute(self) -> dict[str, Any]:
        """Parameters of all contexts. They compute one after the other, so they share the threads."""
        n_threads, n_threads_batch = count_threads(self._config)
        return {"n_threads": n_threads, "n_threads_batch": n_threads_batch, "no_perf": True, "pool": self._pool}

    def _make_embedding_shape(self, pooling: int) -> EmbeddingShape:
        config, n_ctx = self._config, self._n_ctx
        if not self._is_generative:
            return make_encoder_shape(
                pooling, compute_longest_input(self._model, n_ctx, config.context_params), config.n_ubatch
            )
        is_causal = config.context_params.get("attention_type") != NON_CAUSAL
        return make_generative_shape(
            pooling,
            n_ctx // config.n_slots,
            config.n_ubatch,
            self._n_vocab,
            self._is_recurrent or self._is_hybrid,
            is_causal,
        )

    def _make_model_info(self) -> ModelInfo:
        config, llama, model = self._config, self._llama, self._model
        n_ctx = int(llama.llama_n_ctx(self._context))
        if self.is_split:  # undo llama.cpp's rounding of each slot's part
            n_ctx = min(n_ctx, -(-self._n_ctx // fit.CELLS) * fit.CELLS)
        n_ctx_train = int(llama.llama_model_n_ctx_train(model))
        return ModelInfo(
            path=config.model,
            desc=model.desc,
            size=model.size,
            n_params=model.n_params,
            n_vocab=self._n_vocab,
            n_ctx_train=n_ctx_train,
            n_embd=llama.llama_model_n_embd(model),
            n_ctx=n_ctx,
            n_ctx_slot=self._compute_slot_context(n_ctx, n_ctx_train),
            n_slots=config.n_slots,
            n_batch=self._n_batch,
            llama_version=self._libs.version,
            variant=self._libs.folder.name,
            devices=tuple(device.name for device in list_devices(self._libs)),
            adapters=self.adapters,
            bos_token=vocabulary.get_token_text(self._libs, self._vocab, llama.llama_vocab_bos(self._vocab)),
            eos_token=vocabulary.get_token_text(self._libs, self._vocab, llama.llama_vocab_eos(self._vocab)),
            eog_tokens=tuple(sorted(self.eog_tokens)),
            is_generative=self._is_generative,
            pooling=POOLING_NAMES[self._pooling],
            classes=WORDS if self._answers_in_words else read_class_labels(model),
            meta=with_template(model.read_meta()),
            vision=self.media is not None and self.media.vision,
            audio=self.media is not None and self.media.audio,
        )

    def _compute_slot_context(self, n_ctx: int, n_ctx_train: int) -> int:
        """The most tokens of a slot: its part of a split cache, else the whole cache. Unless the user set the context
        size, it is at most the model's training context or the slot's part, whichever is larger. `n_ctx_slot` and
        learned positions limit it as well."""
        config = self._config
        part = n_ctx // config.n_slots if self._is_generative else n_ctx
        n = part if self.is_split else n_ctx
        if not config.n_ctx:
            n = min(n, max(n_ctx_train, part))
        return min(n, config.n_ctx_slot or n, self._n_positions or n)

    def _warm_up(self) -> None:
        """Decode one token, so that the first request finds weights and buffers in memory. This uses one thread,
        because the web process opens the vocabulary at the same time."""
        token = max(self._llama.llama_vocab_bos(self._vocab), 0)
        if self._is_generative:
            self.leave_cores(max(count_threads(self._config)))
            self.decode([Span(0, 0, 0, [token], True)])
            self.leave_cores(0)
            self._llama.llama_memory_clear(self._memory, True)

    # ---- the methods of `Backend` -----------------------------------------------------------------------------

    def decode(self, spans: Sequence[Span]) -> int:
        """See `Backend`. Without a GPU the logits are ready when `llama_decode` returns; `llama_synchronize` would only
        release the GIL once more."""
        batch, at = self._batch, 0
        for span in spans:
            n = len(span)
            if n == 1:
                batch.token[at] = span.tokens[0]
                batch.pos[at] = span.pos
                batch.seq[at] = span.seq
                batch.logits[at] = span.output or span.all_rows
            else:
                batch.token[at : at + n] = span.tokens
                batch.pos[at : at + n] = range(span.pos, span.pos + n)
                batch.seq[at : at + n] = [span.seq] * n
                n_output = n if span.all_rows else span.output * (1 + span.n_draft)
                batch.logits[at : at + n] = bytes(n - n_output) + b"\1" * n_output
            at += n
        batch.n_tokens = at
        self._abort.clear()
        self._copies.forget()
        code = self._llama.llama_decode(self._context, batch.struct)
        if code == 0:
            self._shifted.clear()
            self._rollback.note(spans)
        if code == 0 and self._has_gpu:
            self._llama.llama_synchronize(self._context)
        return code

    def leave_cores(self, n: int) -> None:
        self._llama.llama_set_n_threads(self._context, *(max(count - n, 1) for count in count_threads(self._config)))

    def abort(self) -> None:
        """See `Backend`. A decode on the CPU ends at the next node of its graph."""
        self._abort.set()

    def piece(self, token: int, named: bool = False) -> bytes:
        """See `Backend`; cached. Placeholders of media have no bytes."""
        if named:
            return vocabulary.token_to_piece(self._libs, self._vocab, token, True)
        piece = self._pieces.get(token) if token >= 0 else b""
        if piece is None:
            piece = vocabulary.token_to_piece(self._libs, self._vocab, token, self._config.special)
            self._pieces[token] = piece
        return piece

    def spell(self, text: str) -> list[int]:
        """See `Backend`."""
        return self._samplers.grammars.tokenize(text)

    def get_letters(self, token: int) -> bytes:
        is_text = token >= 0 and not self._llama.llama_vocab_is_control(self._vocab, token)
        return self.piece(token) if is_text else b""

    def make_sampler(self, stages: Sequence[Stage], grammar: str, waits: bool = False) -> LlamaSampler:
        return LlamaSampler(self._samplers, self._context, stages, grammar, waits)

    def draw_ahead(self, wanted: Sequence[tuple[Any, int]]) -> None:
        """See `Backend`. The first access to a batch's logits may reorder them, so it precedes the draws."""
        jobs = [(sampler.draw_ahead, row) for sampler, row in wanted if sampler.can_draw_ahead]
        if jobs:
            self._llama.llama_get_logits_ith(self._context, jobs[0][1])
            self._draws.run(jobs)

    def find_likeliest(self, row: int) -> tuple[int, float]:
        if self._likeliest is None:
            self._likeliest = Likeliest(self._samplers, self._context)
        return self._likeliest.sample(row)

    def seq_rm(self, seq: int, start: int, end: int) -> bool:
        self._copies.forget(seq)
        if self._rollback.n and start > 0 and end < 0:
            n_tokens = int(self._llama.llama_memory_seq_pos_max(self._memory, seq)) + 1 - start
            if not self._rollback.take(seq, n_tokens):
                return False
        return bool(self._llama.llama_memory_seq_rm(self._memory, seq, start, end))

    def compute_least_left(self, seq: int) -> int:
        """See `Backend`. llama.cpp overwrites cells that its window has passed, and omits them from states."""
        first = int(self._llama.llama_memory_seq_pos_min(self._memory, seq)) if self.window else 0
        return first + self.window - 1 if first > 0 else 0

    def seq_cp(self, source: int, target: int, start: int, end: int) -> None:
        if self.is_split:
            self._copies.copy(source, target, end)
        else:
            self._llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def swap(self, a: int, b: int) -> bool:
        return self._copies.swap(a, b)

    def copy_seq_stream(self, source: int, target: int) -> None:
        """Copy a whole KV stream with the next decode; in a split cache only."""
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def seq_add(self, seq: int, start: int, end: int, delta: int) -> None:
        """See `Backend`. ApiError 501 unless `can_shift`: llama.cpp would end the process."""
        if not self.can_shift:
            raise ApiError(501, "this model's KV cache can't be shifted")
        self._copies.forget(seq)
        self._shifted.add(seq)
        self._llama.llama_memory_seq_add(self._memory, seq, start, end, delta)

    def seq_div(self, seq: int, start: int, end: int, factor: int) -> None:
        """See `Backend`. Positions move one by one, from `start` upwards, so that none is moved twice.

        Not taken: `llama_memory_seq_div`, which in llama.cpp v0.5.0 rotates the keys in the wrong direction.
        """
        if not self.can_shift:
            raise ApiError(501, "this model's KV cache can't be shifted")
        for position in range(start, end):
            if position // factor != position:
                self.seq_add(seq, position, position + 1, position // factor - position)

    def unshare(self, seq: int) -> None:
        """See `Backend`. Reads the sequence out and in again, into cells of its own."""
        state = bytearray(self.read_state(seq))
        self.seq_rm(seq, -1, -1)
        if not self.set_state(seq, state):
            raise RuntimeError("a sequence's state did not fit back into its own KV cache")

    def read_state(self, seq: int) -> memoryview:
        """See `Backend`. A state in an unknown format stays as it is, and fits only a cache with the same number of
        slots."""
        state = self.read_raw_state(seq)
        with contextlib.suppress(kv_parts.UnknownState):
            return kv_parts.with_streams(state, 1, self._is_hybrid) if self._n_streams > 1 else state
        return state

    def read_raw_state(self, seq: int) -> memoryview:
        """The state as llama.cpp writes it, with all KV streams. After a shift a dummy row is decoded first, because
        only a decode rotates the keys."""
        if seq in self._shifted:
            pos = int(self._llama.llama_memory_seq_pos_max(self._memory, seq)) + 1
            code = self.decode([Span(seq, seq, pos, [0], False)])
            self._shifted.clear()  # a decode rotates the keys first, even if it fails later
            if code not in (DECODE_OK, DECODE_NO_ROOM):
                raise RuntimeError("a context shift could not be completed")
            self.seq_rm(seq, pos, -1)
        return self._get_state(seq, 0)

    def read_parts(self, seq: int) -> kv_parts.KvParts | None:
        try:
            return kv_parts.KvParts(self.read_raw_state(seq))
        except kv_parts.UnknownState:
            return None

    def write_parts(self, seq: int, parts: Sequence[bytearray | memoryview]) -> bool:
        try:
            return self.put_raw_state(seq, kv_parts.join_parts(parts, self._n_streams))
        except kv_parts.UnknownState:
            return False

    def take_checkpoint(self, seq: int) -> memoryview:
        return self._get_state(seq, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def count_state_bytes(self, seq: int) -> int:
        """The size of `read_raw_state`; cheap."""
        return self._llama.llama_state_seq_get_size_ext(self._context, seq, 0)

    def _get_state(self, seq: int, flags: int) -> memoryview:
        size = self._llama.llama_state_seq_get_size_ext(self._context, seq, flags)
        data = (ctypes.c_uint8 * size)()
        n = self._llama.llama_state_seq_get_data_ext(self._context, data, size, seq, flags)
        return memoryview(data).cast("B")[:n]

    def set_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """See `Backend`; llama.cpp checks layers, types and sizes."""
        with contextlib.suppress(kv_parts.UnknownState):
            if kv_parts.streams_of(state) != self._n_streams > 1:
                state = kv_parts.with_streams(state, self._n_streams, self._is_hybrid)
        return self.put_raw_state(seq, state)

    def put_raw_state(self, seq: int, state: bytearray | memoryview) -> bool:
        """The reverse of `read_raw_state`."""
        return self._put_state(seq, state, 0)

    def restore_checkpoint(self, seq: int, state: bytearray | memoryview) -> bool:
        return self._put_state(seq, state, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY)

    def _put_state(self, seq: int, state: bytearray | memoryview, flags: int) -> bool:
        self._copies.forget(seq)
        self._rollback.forget(seq)
        data = (ctypes.c_uint8 * len(state)).from_buffer(state)
        n = self._llama.llama_state_seq_set_data_ext(self._context, data, len(state), seq, flags)
        return n == len(state)

    def set_lora(self, scales: tuple[tuple[int, float], ...]) -> None:
        """See `Backend`; cheap if nothing changes."""
        if scales == self._lora:
            return
        n = len(scales)
        adapters = (ctypes.c_void_p * n)(*(self._adapters[i].raw for i, _ in scales))
        values = (ctypes.c_float * n)(*(scale for _, scale in scales))
        if self._llama.llama_set_adapters_lora(self._context, adapters, n, values) != 0:
            raise RuntimeError("llama.cpp refused the LoRA adapters")
        self._lora = scales

    def open_embeddings(self) -> LlamaEmbeddings:
        """See `Backend`; opened once."""
        if self._embeddings is None:
            config, model = self._config, self._model
            fields = {**self._compute(), **config.context_params}
            if self._answers_in_words:
                shape = self._make_embedding_shape(LLAMA_POOLING_TYPE_LAST)
                self._embeddings = LlamaWordScores(model, shape, config.n_ubatch, self._abort, fields)
            else:
                shape = self._make_embedding_shape(self._pooling)
                self._embeddings = LlamaEmbeddings(model, shape, self._abort, fields)
            self._embeddings.set_lora(self._lora_of())
        return self._embeddings

    def open_media_embeddings(self, n_at_once: int) -> LlamaMediaEmbeddings:
        from server.engine.llama.embed_media import LlamaMediaEmbeddings  # seldom needed

        if self._media_embeddings is None or self._media_embeddings.n_rows < n_at_once:
            config, old = self._config, self._media_embeddings
            if old is not None:
                old.close()
            shape = self._make_embedding_shape(LLAMA_POOLING_TYPE_NONE)
            self._media_embeddings = LlamaMediaEmbeddings(
                self._model, self.media, shape, n_at_once, self._abort, {**self._compute(), **config.context_params}
            )
            self._media_embeddings.set_lora(self._lora_of())
        return self._media_embeddings

    def _lora_of(self) -> list[tuple[Adapter, float]]:
        return [(adapter, scale) for adapter, (_, scale) in zip(self._adapters, self._config.lora)]

    def close(self) -> None:
        """Free everything, contexts before their model."""
        self._draws.close()
        for context in (self._embeddings, self._media_embeddings):
            if context is not None:
                context.close()
        if self.media is not None:
            self.media.close()
        if self.drafter is not None:
            self.drafter.close()
        if self._likeliest is not None:
            self._likeliest.close()
        self._samplers.close()
        self._context.close()
        self._model.close()
        if self._pool is not None:
            self._pool.close()


def _files_of(config: EngineConfig, libs: loader.Libs) -> dict[str, list[Source]]:
    """The files that a state depends on, for `Identity`. All plug-ins count, used or not: they are one build."""
    files = libs.files
    libraries = {*files.order, *files.plugins.values(), *files.fallbacks.values()}
    if config.mmproj and files.mtmd:
        libraries.add(files.mtmd)
    return {
        "model": list_model_sources(config.model, config.model_offset, config.model_size),
        "lora": [make_source(path) for path, _ in config.lora],
        "mmproj": [make_source(config.mmproj)] if config.mmproj else [],
        "libraries": [make_source(path) for path in sorted(libraries)],
    }


def _fit_params(config: EngineConfig, plan: Plan | None) -> dict[str, Any]:
    """The model's parameters, with the plan's number of layers on GPUs if the user set none. Logs the plan."""
    params: dict[str, Any] = dict(config.model_params)
    if plan:
        for line in plan.render_lines():
            log.info("%s", line)
        if config.is_fitted and len(plan.rows) > 1 and params.get("n_gpu_layers", -1) < 0:
            params["n_gpu_layers"] = plan.n_gpu_layers
    return params

"""Turns a model's options into its files and its engine's configuration (`read_model`).

Part of the composition root. Runs on the main thread, or on the thread that loads a model. The downloader is imported
inside functions, because few starts need its HTTP client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctypes_api.folder import find_folder
from server import program
from server.engine.seam.config import EngineConfig, SpecConfig, list_pinned_patterns
from server.errands import one_shot
from server.errands.bundle import Bundle
from server.errands.one_shot import ModelPlace, place_in, place_of
from server.errands.tuned import choose_tuned
from server.errors import PassingError, StartError
from server.log import get_logger
from server.model_files import host_cpus
from server.model_files.checks import check_all, check_model_file, check_ranker
from server.model_files.gguf import Gguf, GgufError, make_printable
from server.model_files.shape import Shape
from server.model_files.shape_reader import shape_of
from server.options.advice import read_advice
from server.options.groups import DownloadOptions, EngineOptions, ModelOptions, SourceOptions, SpecOptions
from server.options.row import OptionError
from server.options.speculation import ANSWERS, DRAFT, NGRAM
from server.options.table import POOLING

NO_MODEL = program.choose_advice(
    """no model given. Three ways to get going:
  python llama_srv.py model.gguf          serve a GGUF file that you have
  python build_scripts/quickstart.py      fetch the libraries and a small model, and serve it
  LLAMA_ARG_MODEL=model.gguf              name the file in the environment (see --help for the options)""",
    "no model given: {program} model.gguf serves a GGUF file that you have; --help lists the options",
)

log = get_logger("app")


def read_model(
    options: ModelOptions,
    engines: EngineOptions,
    downloads: DownloadOptions,
    own: Bundle | None,
    must_recall: bool = True,
) -> tuple[ModelPlace, EngineConfig, dict[str, Any]]:
    """The model's place, the configuration of its engine, and the sampling settings that its file recommends.
    OptionError, StartError, BundleError or LibsError if the model can't be served."""
    place, headers = find_model(options, downloads, own)
    draft_model = find_draft_model(options, downloads)
    libs = find_libs_folder(engines)
    mmproj = find_projector(options.sources, downloads, libs, place)
    config = make_engine_config(options, libs, place, headers, draft_model, mmproj, must_recall)
    return place, config, collect_advice(headers[0]) if headers else {}


def find_libs_folder(options: EngineOptions) -> str:
    """The folder of the libraries to use. LibsError."""
    return str(find_folder(program.ROOT, options.libs))


# ---- the files -------------------------------------------------------------------------------------------------------


def find_model(options: ModelOptions, downloads: DownloadOptions, own: Bundle | None) -> tuple[ModelPlace, list[Gguf]]:
    """The model's place, and the checked headers of its files. A model from a URL or a repository is downloaded first.
    Without a model in the options, it is that of the bundle `own`."""
    sources = options.sources
    if sources.model_url or sources.hf_repo:
        place = ModelPlace(
            fetch(downloads, sources.model_url, sources.hf_repo, sources.hf_file, sources.model, sources.model_sha256)
        )
    elif sources.model:
        place = place_of(sources.model)
    elif own:
        place = place_in(own)
    else:
        raise OptionError(NO_MODEL.format(program=program.describe_program()))
    parts = check_all(
        place.path,
        {"--lora": [adapter for adapter, _ in sources.lora]},
        options.override_kv,
        (place.offset, place.size),
    )
    if options.reranking or options.pooling == POOLING["rank"]:
        check_ranker(parts)
    return place, parts


def find_draft_model(options: ModelOptions, downloads: DownloadOptions) -> str:
    """The path of the draft model for speculative decoding, downloaded first if it is in a repository; "" for none."""
    sources, types = options.sources, options.spec.spec_type
    path = sources.spec_draft_model or ""
    if DRAFT not in types:
        return ""
    if sources.spec_draft_hf:
        path = fetch(downloads, repo=sources.spec_draft_hf, path=path or None)
    if path:
        check_model_file(path, "--model-draft")
    elif NGRAM not in types:
        raise OptionError("--spec-type draft needs a draft model: add --spec-draft-model FILE")
    return path


def find_projector(options: SourceOptions, downloads: DownloadOptions, libs: str, model: ModelPlace) -> str:
    """The path of the projector, "" for none. It comes from an option, the model's repository or the model's bundle."""
    if not options.mmproj_auto:
        return ""
    if not (options.mmproj or options.mmproj_url):
        if options.hf_repo:
            return fetch_repository_projector(options.hf_repo, downloads, model.path, libs)
        if model.bundle is None:
            return ""
        return one_shot.projector_of(model, program.find_cache_folder())
    path = options.mmproj or fetch(downloads, options.mmproj_url)
    check_model_file(path, "--mmproj")
    return path


def fetch_repository_projector(repo: str, downloads: DownloadOptions, model: str, libs: str) -> str:
    """The path of the downloaded projector of the model's repository. "" if there is none, if it can't be downloaded or
    is faulty, or without libmtmd."""
    if not any("mtmd" in path.name for path in Path(libs).iterdir()):
        log.info(
            "not looking for a projector in %s: there is no libmtmd here%s",
            repo,
            program.choose_advice(" (build_scripts/fetch_libs.py --with-mtmd)", ""),
        )
        return ""
    from server.download import DownloadError, fetch_projector

    try:
        path = fetch_projector(repo, Path(model), offline=downloads.offline, token=downloads.hf_token)
        if path is None:
            return ""
        check_model_file(str(path), "--mmproj")
    except (DownloadError, StartError) as error:
        log.warning(
            "%s; continuing without images and sound (--mmproj names a projector, --no-mmproj turns it off)", error
        )
        return ""
    log.info("projector: %s (--no-mmproj turns it off)", path)
    return str(path)


def fetch(
    downloads: DownloadOptions,
    url: str | None = None,
    repo: str | None = None,
    file: str | None = None,
    path: str | None = None,
    sha256: str | None = None,
) -> str:
    """See `download.fetch_model`. PassingError if the file can't be downloaded."""
    from server.download import DownloadError, fetch_model

    try:
        found = fetch_model(
            url, repo, file, path=path, offline=downloads.offline, sha256=sha256, token=downloads.hf_token
        )
    except DownloadError as error:
        raise PassingError(str(error)) from None
    return str(found)


def get_tunable(options: SourceOptions, model: ModelPlace) -> str:
    """The path under which `--tune` keeps its result; "" for a model in the program's own bundle."""
    return options.model or ("" if model.bundle else model.path)


def collect_advice(header: Gguf) -> dict[str, Any]:
    """The sampling settings that a model's file recommends, by request field. Wrong ones are logged and left out."""
    advice, faults = read_advice(header.metadata)
    if faults:
        log.warning("%s recommends settings that can't be used: %s", header.path, make_printable("; ".join(faults)))
    return advice


# ---- the engine's configuration --------------------------------------------------------------------------------------


def make_engine_config(
    options: ModelOptions,
    libs: str,
    place: ModelPlace,
    headers: Sequence[Gguf] = (),
    draft_model: str = "",
    mmproj: str = "",
    must_recall: bool = True,
) -> EngineConfig:
    """`headers` are those of the model's files; without them the engine reads the files itself. With `must_recall` the
    result of --tune sets the CPU plug-in and the threads, unless the options do."""
    tuned = choose_tuned(options, get_tunable(options.sources, place) if must_recall else "", Path(libs))
    if tuned != choose_tuned(options, "", Path(libs)):
        log.info("using %s, which --tune has found to be faster", tuned)
    return EngineConfig(
        model=place.path,
        model_offset=place.offset,
        model_size=place.size,
        shape=read_shape(headers, options.model_params),
        libs=libs,
        cpu_variant=tuned.cpu_variant,
        n_slots=options.parallel,
        n_ctx=options.ctx_size,
        n_ctx_slot=options.kv_unified_per_slot or 0,
        n_batch=options.batch_size,
        n_ubatch=options.ubatch_size,
        n_threads=tuned.n_threads if options.threads > 0 else min(tuned.n_threads, host_cpus.count_usable_cores()),
        n_threads_batch=options.threads_batch,
        warmup=options.warmup,
        max_queue=options.max_queue,
        cont_batching=options.cont_batching,
        shift_context=options.context_shift,
        n_group=options.grp_attn_n,
        group_width=options.grp_attn_w,
        lora=options.sources.lora,
        numa=options.numa or 0,
        special=options.special,
        exact=options.exact,
        kv_unified=options.kv_unified,
        stream_interval_s=options.stream_interval_ms / 1e3,
        max_stall_ms=options.prefer.max_stall_ms if options.max_stall_ms is None else options.max_stall_ms,
        group_part=options.prefer.group_part,
        is_fitted=options.fit,
        fit_target=options.fit_target,
        fit_ctx=options.fit_ctx,
        rpc=options.rpc,
        cache_ram=options.cache_ram,
        cache_disk=options.cache_disk or "",
        cache_disk_mib=options.cache_disk_size,
        slot_files=bool(options.slot_save_path),
        n_checkpoints=options.ctx_checkpoints,
        checkpoint_step=max(options.checkpoint_min_step, 64),
        embeddings=options.embeddings or options.reranking,
        spec=make_spec_config(options.spec, draft_model, options.threads),
        model_params=options.model_params,
        context_params=options.context_params,
        pool_params=options.pool_params,
        mmproj=mmproj,
        mmproj_params=options.mmproj_params,
    )


def read_shape(headers: Sequence[Gguf], model_params: Mapping[str, Any]) -> Shape | None:
    """The model's sizes for the memory plan; None if the headers don't tell them."""
    try:
        return shape_of(headers, list_pinned_patterns(model_params)) if headers else None
    except GgufError:
        return None


def make_spec_config(options: SpecOptions, draft_model: str, n_threads: int) -> SpecConfig:
    """`n_threads` is the number of threads of the large model."""
    n_threads = options.spec_draft_threads if options.spec_draft_threads > 0 else n_threads
    return SpecConfig(
        lookup=NGRAM in options.spec_type,
        answers=ANSWERS in options.spec_type,
        ngram=options.spec_ngram_size,
        lookup_max=options.spec_ngram_max,
        n_max=options.spec_draft_n_max,
        n_min=options.spec_draft_n_min,
        p_min=options.spec_draft_p_min,
        model=draft_model,
        n_threads=n_threads,
        n_threads_batch=options.spec_draft_threads_batch if options.spec_draft_threads_batch > 0 else n_threads,
        model_params=options.model_params,
        context_params=options.context_params,
    )

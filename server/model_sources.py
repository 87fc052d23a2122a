"""From a model's options to its files and to the configuration of its engine (`read_model`).

Main thread, at start; a part of the composition. The downloader brings an HTTP client along, which nearly no start
needs, so it is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ctypes_api.folder import find_folder
from server import program
from server.engine.seam.config import EngineConfig, SpecConfig, pinned_patterns
from server.errands import one_shot
from server.errands.bundle import Bundle
from server.errands.one_shot import ModelPlace, place_in, place_of
from server.errands.tuned import chosen
from server.errors import PassingError, StartError
from server.log import get_logger
from server.model_files import host_cpus
from server.model_files.checks import check_all, check_model_file, check_ranker
from server.model_files.gguf import Gguf, GgufError, printable
from server.model_files.shape import Shape
from server.model_files.shape_reader import shape_of
from server.options.advice import read_advice
from server.options.groups import DownloadOptions, EngineOptions, ModelOptions, SourceOptions, SpecOptions
from server.options.row import OptionError
from server.options.speculation import ANSWERS, DRAFT, NGRAM
from server.options.table import POOLING

NO_MODEL = program.advice(
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
    """Where a model is, what its engine has to know, and what its file advises for requests; OptionError, StartError or
    LibsError if it can't be served. The headers of its files are megabytes, and gone on return. For `must_recall` see
    `engine_config`."""
    place, headers = find_model(options, downloads, own)
    draft_model = find_draft_model(options, downloads)
    libs = libs_folder(engines)
    mmproj = find_projector(options.sources, downloads, libs, place)
    config = engine_config(options, libs, place, headers, draft_model, mmproj, must_recall)
    return place, config, advice_in(headers[0]) if headers else {}


def libs_folder(options: EngineOptions) -> str:
    """The folder whose libraries will be used; LibsError says where it looked."""
    return str(find_folder(program.ROOT, options.libs))


# ---- the files -------------------------------------------------------------------------------------------------------


def find_model(options: ModelOptions, downloads: DownloadOptions, own: Bundle | None) -> tuple[ModelPlace, list[Gguf]]:
    """Where the model is, fetched first where the options name a URL or a repository (`own` has one if they don't);
    and the headers of its files, checked."""
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
        raise OptionError(NO_MODEL.format(program=program.program()))
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
    """The path of the small model for speculative decoding, fetched first if it is a repository; "" for none."""
    sources, types = options.sources, options.spec.spec_type
    path = sources.spec_draft_model or ""
    if DRAFT not in types:
        return ""
    if sources.spec_draft_hf:
        path = fetch(downloads, repo=sources.spec_draft_hf, path=path or None)
    if path:
        check_model_file(path, "--model-draft")
    elif NGRAM not in types:
        raise OptionError("--spec-type draft needs a small model: --spec-draft-model FILE")
    return path


def find_projector(options: SourceOptions, downloads: DownloadOptions, libs: str, model: ModelPlace) -> str:
    """The path of the projector's file, "" for none; fetched first where an option names a URL, or a repository that
    has one. A bundle may hold one."""
    if not options.mmproj_auto:
        return ""
    if not (options.mmproj or options.mmproj_url):
        if options.hf_repo:
            return repository_projector(options.hf_repo, downloads, model.path, libs)
        if model.bundle is None:
            return ""
        return one_shot.projector_of(model, program.cache_folder())
    path = options.mmproj or fetch(downloads, options.mmproj_url)
    check_model_file(path, "--mmproj")
    return path


def repository_projector(repo: str, downloads: DownloadOptions, model: str, libs: str) -> str:
    """The projector that the model's repository has beside it, as llama-server fetches it; "" for none.

    It is a gift: where it can't be had, or isn't one that works here, the model is served without.
    """
    if not any("mtmd" in path.name for path in Path(libs).iterdir()):
        log.info(
            "whether %s has a projector isn't looked at: there is no libmtmd here%s",
            repo,
            program.advice(" (build_scripts/fetch_libs.py --with-mtmd)", ""),
        )
        return ""
    from server.download import DownloadError, fetch_projector

    try:
        path = fetch_projector(repo, Path(model), offline=downloads.offline, token=downloads.hf_token)
        if path is None:
            return ""
        check_model_file(str(path), "--mmproj")
    except (DownloadError, StartError) as error:
        log.warning("%s; going on without images and sound (--mmproj names a projector, --no-mmproj says none)", error)
        return ""
    log.info("projector: %s (--no-mmproj leaves it out)", path)
    return str(path)


def fetch(
    downloads: DownloadOptions,
    url: str | None = None,
    repo: str | None = None,
    file: str | None = None,
    path: str | None = None,
    sha256: str | None = None,
) -> str:
    """The path of what `download.fetch_model` fetches or has; PassingError if that can't be had."""
    from server.download import DownloadError, fetch_model

    try:
        found = fetch_model(
            url, repo, file, path=path, offline=downloads.offline, sha256=sha256, token=downloads.hf_token
        )
    except DownloadError as error:
        raise PassingError(str(error)) from None
    return str(found)


def tunable(options: SourceOptions, model: ModelPlace) -> str:
    """The file that `--tune` knows the model by; "" for the model in this very program."""
    return options.model or ("" if model.bundle else model.path)


def advice_in(header: Gguf) -> dict[str, Any]:
    """What a model's file advises for sampling, by field name; what is wrong with it is logged."""
    advice, faults = read_advice(header.metadata)
    if faults:
        log.warning("%s advises what can't be taken: %s", header.path, printable("; ".join(faults)))
    return advice


# ---- the engine's configuration --------------------------------------------------------------------------------------


def engine_config(
    options: ModelOptions,
    libs: str,
    place: ModelPlace,
    headers: Sequence[Gguf] = (),
    draft_model: str = "",
    mmproj: str = "",
    must_recall: bool = True,
) -> EngineConfig:
    """What the engine has to know. `headers` are those of the model's files: without them the engine reads them once
    more. With `must_recall` what --tune has found counts where the options leave it open."""
    tuned = chosen(options, tunable(options.sources, place) if must_recall else "", Path(libs))
    if tuned != chosen(options, "", Path(libs)):
        log.info("with %s, since --tune has found that to be quicker", tuned)
    return EngineConfig(
        model=place.path,
        model_offset=place.offset,
        model_size=place.size,
        shape=shape_in(headers, options.model_params),
        libs=libs,
        cpu_variant=tuned.cpu_variant,
        n_slots=options.parallel,
        n_ctx=options.ctx_size,
        n_ctx_slot=options.kv_unified_per_slot or 0,
        n_batch=options.batch_size,
        n_ubatch=options.ubatch_size,
        n_threads=tuned.n_threads if options.threads > 0 else min(tuned.n_threads, host_cpus.usable_cores()),
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
        max_stall_ms=options.max_stall_ms,
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
        spec=spec_config(options.spec, draft_model, options.threads),
        model_params=options.model_params,
        context_params=options.context_params,
        pool_params=options.pool_params,
        mmproj=mmproj,
        mmproj_params=options.mmproj_params,
    )


def shape_in(headers: Sequence[Gguf], model_params: Mapping[str, Any]) -> Shape | None:
    """What the planner of memory has to know of the model; None where the engine will say why that can't be seen."""
    try:
        return shape_of(headers, pinned_patterns(model_params)) if headers else None
    except GgufError:
        return None


def spec_config(options: SpecOptions, draft_model: str, n_threads: int) -> SpecConfig:
    """Speculative decoding as the options have it; `n_threads` are the large model's."""
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

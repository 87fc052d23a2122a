"""Finds the files that the options name: the small model that drafts, the projector, what has to be fetched first.

Main thread, at start; a part of the composition. The downloader brings an HTTP client along, which nearly no start
needs, so it is imported inside functions.
"""

from __future__ import annotations

from pathlib import Path

from server.engine.seam.config import SpecConfig
from server.errors import StartError
from server.log import get_logger
from server.model_files.checks import check_model_file
from server.options.parser import OptionError, Options, draft_params
from server.options.speculation import DRAFT, NGRAM

log = get_logger("app")


def fetched(*where: str | None, **how: object) -> str:
    """The path of what `download.fetch_model` fetches or has; OptionError if that can't be had."""
    from server.download import DownloadError, fetch_model

    try:
        return str(fetch_model(*where, **how))
    except DownloadError as error:
        raise OptionError(str(error)) from None


def repository_projector(options: Options, model: str, libs: str) -> str:
    """The projector that the model's repository has beside it, as llama-server fetches it; "" for none.

    It is a gift: where it can't be had, or isn't one that works here, the model is served without.
    """
    if not any("mtmd" in path.name for path in Path(libs).iterdir()):
        log.info(
            "whether %s has a projector isn't looked at: there is no libmtmd here (build_scripts/fetch_libs.py "
            "--with-mtmd)",
            options.hf_repo,
        )
        return ""
    from server.download import DownloadError, fetch_projector

    try:
        path = fetch_projector(options.hf_repo, Path(model), offline=options.offline, token=options.hf_token)
        if path is None:
            return ""
        check_model_file(str(path), "--mmproj")
    except (DownloadError, StartError) as error:
        log.warning("%s; going on without images and sound (--mmproj names a projector, --no-mmproj says none)", error)
        return ""
    log.info("projector: %s (--no-mmproj leaves it out)", path)
    return str(path)


def find_draft_model(options: Options) -> str:
    """The path of the small model for speculative decoding, fetched first if it is a repository; "" for none."""
    path = options.spec_draft_model or ""
    if DRAFT not in options.spec_type:
        return ""
    if options.spec_draft_hf:
        path = fetched(
            None, options.spec_draft_hf, None, path=path or None, offline=options.offline, token=options.hf_token
        )
    if path:
        check_model_file(path, "--model-draft")
    elif NGRAM not in options.spec_type:
        raise OptionError("--spec-type draft needs a small model: --spec-draft-model FILE")
    return path


def spec_config(options: Options, draft_model: str) -> SpecConfig:
    """Speculative decoding as the options have it."""
    model_params, context_params = draft_params(options)
    n_threads = options.spec_draft_threads if options.spec_draft_threads > 0 else options.threads
    return SpecConfig(
        lookup=NGRAM in options.spec_type,
        ngram=options.spec_ngram_size,
        lookup_max=options.spec_ngram_max,
        n_max=options.spec_draft_n_max,
        n_min=options.spec_draft_n_min,
        p_min=options.spec_draft_p_min,
        model=draft_model,
        n_threads=n_threads,
        n_threads_batch=options.spec_draft_threads_batch if options.spec_draft_threads_batch > 0 else n_threads,
        model_params=model_params,
        context_params=context_params,
    )

"""Speculative decoding from the options: which small model drafts, and what the engine is told of it.

Main thread, at start; part of the composition root. The small model's file is fetched and looked at like the large
one's.
"""

from __future__ import annotations

from server.engine.seam.config import SpecConfig
from server.fetching import fetched
from server.model_files.checks import check_model_file
from server.options.parser import OptionError, Options, draft_params
from server.options.speculation import DRAFT, NGRAM


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

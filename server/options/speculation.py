"""The options of speculative decoding, which `table` includes.

Drafts are on by default, because this server stops drafting where drafts don't make it faster.
"""

from __future__ import annotations

from server.model_files.tensor_types import CACHE_TYPES, NUMBERS
from server.options import row as to
from server.options.row import BadValue, Option

SPECULATIVE = "Speculative decoding"
NGRAM, ANSWERS, DRAFT = "ngram", "answers", "draft"
AUTO = (NGRAM, ANSWERS, DRAFT)
TYPES: dict[str, tuple[str, ...]] = {
    "none": (), "auto": AUTO, "ngram": (NGRAM,), "answers": (NGRAM, ANSWERS), "draft": (DRAFT,),
    "draft-simple": (DRAFT,), **dict.fromkeys(("ngram-simple", "ngram-map-k", "ngram-map-k4v"), (NGRAM,)),
    **dict.fromkeys(("ngram-mod", "ngram-cache"), (NGRAM, ANSWERS)),
}
HEADS = ("draft-eagle3", "draft-mtp", "draft-dflash", "draft-dspark")
KV_TYPES = {name: NUMBERS[name] for name in CACHE_TYPES}
MAX_THREADS = 512       # GGML_MAX_N_THREADS
MAX_DRAFT = 1024        # tokens


def parse_spec_types(text: str) -> tuple[str, ...]:
    """Sources of drafts, separated by commas. Of llama-server's kinds of n-gram lookup there are two here: in the same
    text, or also in earlier answers."""
    found: list[str] = []
    for word in to.parse_items(text.lower()):
        if word in HEADS:
            raise BadValue(f"'{word}' needs parts of the model that llama.cpp's C interface doesn't offer; use a "
                           "draft model with the same vocabulary: --spec-draft-model")
        if word not in TYPES:
            raise BadValue(f"'{word}' is not a source of drafts; choose from {', '.join(TYPES)}")
        found += TYPES[word]
    return tuple(dict.fromkeys(found))


SPEC_OPTIONS: tuple[Option, ...] = (
    Option("spec_type", ("--spec-type",), "where drafts come from: ngram (what followed the same tokens earlier in "
           "this text), answers (the same, also in earlier answers for the same API key), draft (the model of "
           "--spec-draft-model), several of them, or none; auto uses all that are available", SPECULATIVE,
           parse_spec_types, AUTO, "TYPES", "LLAMA_ARG_SPEC_TYPE"),
    Option("spec_default", ("--spec-default",), "the same as --spec-type auto", SPECULATIVE, None, dest="spec_type",
           choices={"on": AUTO, "off": ()}),
    Option("spec_ngram_size", ("--spec-ngram-simple-size-n", "--spec-ngram-size-n"), "how many tokens must match an "
           "earlier place in the text", SPECULATIVE, int, 3, "N", "", 1, 64),
    Option("spec_ngram_max", ("--spec-ngram-simple-size-m", "--spec-ngram-size-m"), "most tokens of an n-gram draft",
           SPECULATIVE, int, 127, "N", "", 1, MAX_DRAFT),
    Option("spec_draft_model", ("-md", "--spec-draft-model", "--model-draft"), "draft model: a small model with the "
           "same vocabulary as the large one", SPECULATIVE, metavar="FILE", env="LLAMA_ARG_SPEC_DRAFT_MODEL"),
    Option("spec_draft_hf", ("-hfd", "-hfrd", "--spec-draft-hf", "--hf-repo-draft"), "download the draft model from "
           "this repository, like --hf-repo", SPECULATIVE, to.parse_hf_repo, metavar="USER/MODEL",
           env="LLAMA_ARG_SPEC_DRAFT_HF_REPO"),
    Option("spec_draft_n_max", ("--spec-draft-n-max",), "most tokens of a draft from the draft model", SPECULATIVE,
           int, 16, "N", "LLAMA_ARG_SPEC_DRAFT_N_MAX", 0, MAX_DRAFT),
    Option("draft_max", ("--draft", "--draft-n", "--draft-max"), "older name of --spec-draft-n-max", SPECULATIVE, int,
           None, "N", "LLAMA_ARG_DRAFT_MAX", 0, MAX_DRAFT, dest="spec_draft_n_max"),
    Option("spec_draft_n_min", ("--spec-draft-n-min",), "don't use shorter drafts", SPECULATIVE, int, 0, "N",
           "LLAMA_ARG_SPEC_DRAFT_N_MIN", 0, MAX_DRAFT),
    Option("draft_min", ("--draft-min", "--draft-n-min"), "older name of --spec-draft-n-min", SPECULATIVE, int, None,
           "N", "LLAMA_ARG_DRAFT_MIN", 0, MAX_DRAFT, dest="spec_draft_n_min"),
    Option("spec_draft_p_min", ("--spec-draft-p-min", "--draft-p-min"), "end a draft at a token that the draft model "
           "finds less likely than this", SPECULATIVE, float, 0.4, "P", "LLAMA_ARG_SPEC_DRAFT_P_MIN", 0, 1),
    Option("spec_draft_ngl", ("-ngld", "--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft"),
           "layers of the draft model to put on the GPU; all, auto and -1 mean all", SPECULATIVE, to.parse_gpu_layers,
           -1, "N", "LLAMA_ARG_N_GPU_LAYERS_DRAFT", -1, 2**20, target="draft_model:n_gpu_layers"),
    Option("spec_draft_device", ("-devd", "--spec-draft-device", "--device-draft"), "devices for the draft model "
           "(default: the same as --device)", SPECULATIVE, to.parse_items, None, "NAMES", target="draft_model:devices"),
    Option("spec_draft_override_tensor", ("-otd", "--spec-draft-override-tensor", "--override-tensor-draft"),
           "put the draft model's tensors whose names match the regular expression into a buffer; may be repeated",
           SPECULATIVE, to.parse_buffer_overrides, (), "PATTERN=BUFFER", repeat=True),
    Option("spec_draft_cpu_moe", ("-cmoed", "--spec-draft-cpu-moe", "--cpu-moe-draft"), "keep the weights of all "
           "experts of the draft model on the CPU", SPECULATIVE, None, False, env="LLAMA_ARG_SPEC_DRAFT_CPU_MOE"),
    Option("spec_draft_n_cpu_moe", ("-ncmoed", "--spec-draft-n-cpu-moe", "--spec-draft-ncmoe", "--n-cpu-moe-draft"),
           "keep the experts' weights of the draft model's first N layers on the CPU", SPECULATIVE, int, 0, "N",
           "LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE", 0, 4096),
    Option("spec_draft_type_k", ("-ctkd", "--spec-draft-type-k", "--cache-type-k-draft"), "type of the draft model's "
           "cached keys", SPECULATIVE, default=1, metavar="TYPE", env="LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K",
           choices=KV_TYPES, target="draft_context:type_k"),
    Option("spec_draft_type_v", ("-ctvd", "--spec-draft-type-v", "--cache-type-v-draft"), "type of the draft model's "
           "cached values", SPECULATIVE, default=1, metavar="TYPE", env="LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V",
           choices=KV_TYPES, target="draft_context:type_v"),
    Option("spec_draft_threads", ("-td", "--spec-draft-threads", "--threads-draft"), "threads for drafting (default: "
           "the same as --threads)", SPECULATIVE, int, -1, "N", "", -1, MAX_THREADS),
    Option("spec_draft_threads_batch", ("-tbd", "--spec-draft-threads-batch", "--threads-batch-draft"),
           "threads for the draft model's prefill (default: the same as --spec-draft-threads)", SPECULATIVE, int, -1,
           "N", "", -1, MAX_THREADS),
)

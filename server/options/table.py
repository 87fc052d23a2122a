"""The table of options. The parser uses it; `--help` and docs/options.md are made from it.

Data only. Options of llama-server v0.5.0, and of its documents of 2024, keep their flags, variables and meanings. Rows
are in the order of `--help`. Options that this server lacks are in `known`. Numbers in `choices` are values of
llama.cpp's enums.
"""

from __future__ import annotations

from typing import NamedTuple

from server.options import row as to
from server.options.row import Option
from server.options.speculation import KV_TYPES, SPEC_OPTIONS, SPECULATIVE

GENERAL, MODEL, DOWNLOAD, CONTEXT = "General", "Model and libraries", "Downloading the model", "Context and slots"
MODELS = "Several models"
BUNDLES, MEDIA = "Bundles: program and model in one file", "Images and sound"
COMPUTE, DEVICES, ROPE = "Computing", "Devices and memory", "Contexts longer than trained for"
SERVER, ACCESS, REQUESTS, LOGGING = "Server", "Access", "Defaults of requests", "Logging"
EMBEDDINGS = "Embeddings and reranking"
GROUPS = (GENERAL, MODEL, MODELS, DOWNLOAD, CONTEXT, MEDIA, COMPUTE, DEVICES, ROPE, SPECULATIVE, EMBEDDINGS, SERVER,
          ACCESS, REQUESTS, LOGGING, BUNDLES)

INT_MAX = 2**31 - 1
MAX_THREADS = 512       # GGML_MAX_N_THREADS
FLASH_ATTENTION = {"on": 1, "off": 0, "auto": -1}
ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2}
POOLING = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
SPLIT_MODES = {"none": 0, "layer": 1, "row": 2, "tensor": 3}
LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}
LAZY_MODES = {"off": 0, "auto": 1, "on": 2}


class Preference(NamedTuple):
    """What follows from `--prefer`. `--max-stall-ms` overrides `max_stall_ms`."""

    max_stall_ms: float
    group_part: int
    """A step reads at most 1 / `group_part` of the short prompts that came together."""


PREFERENCES = {
    "latency": Preference(100.0, 8),
    "balance": Preference(200.0, 2),
    "throughput": Preference(1000.0, 1),
}
SHELLS = ("bash", "zsh", "fish", "powershell")
REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}
SHORT_HELP = ("help", "version", "completion", "config", "tune", "files", "alias", "hf_repo", "ctx_size", "parallel",
              "n_predict", "system_prompt_file", "chat_template_file", "mmproj", "threads", "n_gpu_layers", "dry_run",
              "embeddings", "reranking", "open", "host", "port", "api_key", "temperature", "log_file", "verbose")
"""The options that `--help` shows; `--help all` shows every option."""

OPTIONS: tuple[Option, ...] = (
    Option("help", ("-h", "--help", "--usage"), "show the most used options and exit; with all, show every option",
           GENERAL, metavar="[all]", choices={"short": "short", "all": "all"}, bare="short"),
    Option("version", ("--version",), "show the versions of the server and of llama.cpp and exit", GENERAL, None,
           False),
    Option("verify", ("--verify",), "compare the files of this program and of llama.cpp with their checksums and exit",
           GENERAL, None, False),
    Option("completion", ("--completion",), "print a script with which a shell completes these options: bash, zsh, "
           "fish or powershell", GENERAL, metavar="SHELL", choices=dict(zip(SHELLS, SHELLS))),
    Option("completion_bash", ("--completion-bash",), "the same as --completion bash", GENERAL, None, False),
    Option("man", ("--man",), "print the manual page (troff) and exit: llama-srv --man | man -l -", GENERAL,
           None, False),
    Option("config", ("--config",), "read options from an INI or JSON file; its keys are the names below, with or "
           "without dashes", GENERAL, to.require_file, metavar="FILE", env="LLAMA_SRV_CONFIG"),
    Option("compat", ("--compat",), "modern (default), or 2024: the defaults and answer formats of the 2024 documents "
           "where today's differ", GENERAL, default="modern", metavar="NAME", env="LLAMA_SRV_COMPAT",
           choices={"modern": "modern", "2024": "2024"}),

    Option("files", ("-m", "--model"), "the model to serve, a GGUF file; may be repeated, then each request names a "
           "model; with a download option, where to save the file", MODEL, to.wrap_text, (), "FILE", "LLAMA_ARG_MODEL",
           repeat=True),
    Option("alias", ("-a", "--alias"), "names of the model, separated by commas; answers show the first one (default: "
           "the file's path)", MODEL, metavar="NAME", env="LLAMA_ARG_ALIAS"),
    Option("tags", ("--tags",), "tags of the model, separated by commas; clients can read them", MODEL, to.parse_items,
           (), "WORDS", "LLAMA_ARG_TAGS"),
    Option("lora", ("--lora",), "LoRA adapters to load and apply, separated by commas; may be repeated", MODEL,
           to.parse_adapters, (), "FILE", "LLAMA_ARG_LORA", repeat=True),
    Option("lora_scaled", ("--lora-scaled",), "the same with a scale for each adapter", MODEL, to.parse_scaled_adapters,
           metavar="FILE:SCALE", env="LLAMA_ARG_LORA_SCALED", dest="lora", repeat=True),
    Option("lora_init_without_apply", ("--lora-init-without-apply",), "load the adapters with scale 0; requests or "
           "POST /lora-adapters turn them on", MODEL, None, False),
    Option("override_kv", ("--override-kv",), "override metadata of the model; types are int, float, bool and str",
           MODEL, to.parse_metadata_overrides, (), "KEY=TYPE:VALUE", "LLAMA_ARG_OVERRIDE_KV", repeat=True,
           target="model:kv_overrides"),
    Option("check_tensors", ("--check-tensors",), "check the model's tensors for invalid values while loading", MODEL,
           None, False, target="model:check_tensors"),
    Option("libs", ("--libs",), "folder of the llama.cpp libraries (default: the best one in libs/)", MODEL,
           metavar="DIR", env="LLAMA_SRV_LIBS"),
    Option("cpu_variant", ("--cpu-variant",), "load this libggml-cpu-* library instead of the one that --tune or "
           "llama.cpp chooses (auto), e.g. haswell; helps if the server stops with an illegal instruction", MODEL,
           metavar="NAME", env="LLAMA_SRV_CPU_VARIANT"),

    Option("models_dir", ("--models-dir",), "serve the models in this folder and its subfolders; each is loaded when "
           "a request names it; docs/models.md says which files count and what the models are called", MODELS,
           to.require_folder, metavar="DIR", env="LLAMA_ARG_MODELS_DIR"),
    Option("models_preset", ("--models-preset",), "INI file with a section for each model: its name and its own "
           "options; options in [*] apply to all models", MODELS, to.require_file, metavar="FILE",
           env="LLAMA_ARG_MODELS_PRESET"),
    Option("models_max", ("--models-max",), "how many models may be loaded at the same time; 0 for as many as fit "
           "into memory", MODELS, int, 0, "N", "LLAMA_ARG_MODELS_MAX", 0, 10000),
    Option("models_autoload", ("--models-autoload",), "load a model when a request names it; off: only POST "
           "/models/load loads models", MODELS, None, True, env="LLAMA_ARG_MODELS_AUTOLOAD",
           off_flags=("--no-models-autoload",)),
    Option("sleep_idle_seconds", ("--sleep-idle-seconds",), "unload a model after this many seconds without a "
           "request; the next request loads it again; -1 for never", MODELS, int, -1, "S",
           "LLAMA_SRV_SLEEP_IDLE_SECONDS", -1, INT_MAX),

    Option("model_url", ("-mu", "--model-url"), "download the model from this URL, unless it is in the cache",
           DOWNLOAD, to.parse_url, metavar="URL", env="LLAMA_ARG_MODEL_URL"),
    Option("hf_repo", ("-hf", "-hfr", "--hf-repo"), "download the model from this Hugging Face repository; without "
           "QUANT its Q4_K_M file, or else the first one", DOWNLOAD, to.parse_hf_repo, metavar="USER/MODEL[:QUANT]",
           env="LLAMA_ARG_HF_REPO"),
    Option("hf_file", ("-hff", "--hf-file"), "download this file of the repository", DOWNLOAD, metavar="FILE",
           env="LLAMA_ARG_HF_FILE"),
    Option("hf_token", ("-hft", "--hf-token"), "access token for private and gated repositories", DOWNLOAD,
           metavar="TOKEN", env="HF_TOKEN", secret=True),
    Option("model_sha256", ("--model-sha256",), "refuse a downloaded model with another SHA-256 checksum", DOWNLOAD,
           to.parse_sha256, metavar="SUM", env="LLAMA_SRV_MODEL_SHA256"),
    Option("offline", ("--offline",), "download nothing, use only files in the cache", DOWNLOAD, None, False,
           env="LLAMA_ARG_OFFLINE"),
    Option("cache_list", ("-cl", "--cache-list"), "list the models in the download cache and exit", DOWNLOAD, None,
           False),

    Option("ctx_size", ("-c", "--ctx-size"), "tokens of context, shared by all slots; 0 for the context that the "
           "model was trained with (default: the trained context for each slot, or less if memory is short)", CONTEXT,
           int, None, "N", "LLAMA_ARG_CTX_SIZE", 0, INT_MAX, default_2024=512),
    Option("kv_unified_per_slot", ("--kv-unified-per-slot",), "most tokens of context for each slot; without "
           "--ctx-size each slot gets this many", CONTEXT, int, None, "N", "LLAMA_ARG_KV_UNIFIED_PER_SLOT", 1, INT_MAX),
    Option("parallel", ("-np", "--parallel"), "slots: how many requests are computed at the same time; auto is 4",
           CONTEXT, to.parse_slot_count, 1, "N", "LLAMA_ARG_N_PARALLEL", 1, 254),
    Option("cont_batching", ("-cb", "--cont-batching"), "start a request while others are generating; off: a request "
           "waits until they are done", CONTEXT, None, True, env="LLAMA_ARG_CONT_BATCHING",
           off_flags=("-nocb", "--no-cont-batching"), default_2024=False),
    Option("n_predict", ("-n", "--n-predict", "--predict"), "tokens to generate if a request doesn't set a number; -1 "
           "for no limit (with --compat 2024 it also limits requests, as --max-predict does)", CONTEXT, int, -1, "N",
           "LLAMA_ARG_N_PREDICT", -1, INT_MAX),
    Option("max_predict", ("--max-predict",), "most tokens that a request may generate; -1 for no limit", CONTEXT, int,
           -1, "N", "LLAMA_SRV_MAX_PREDICT", -1, INT_MAX),
    Option("context_shift", ("--context-shift",), "when the context is full, drop old tokens behind the first --keep "
           "ones and continue; off: the answer ends", CONTEXT, None, False, env="LLAMA_ARG_CONTEXT_SHIFT",
           off_flags=("--no-context-shift",), default_2024=True),
    Option("context_overflow", ("--context-overflow",), "another name for --context-shift (shift) and "
           "--no-context-shift (error)", CONTEXT, metavar="HOW", env="LLAMA_SRV_CONTEXT_OVERFLOW",
           dest="context_shift", choices={"shift": True, "error": False}),
    Option("system_prompt_file", ("-spf", "--system-prompt-file"), "JSON file with prompt, anti_prompt and "
           "assistant_name; all prompts begin with its prompt", CONTEXT, to.require_file, metavar="FILE",
           env="LLAMA_ARG_SYSTEM_PROMPT_FILE"),
    Option("kv_unified", ("-kvu", "--kv-unified"), "one KV cache that all slots share, and that one slot may fill; "
           "off: a part of it for each slot, which is faster with many requests at once (default: on with one slot "
           "and for models with sliding windows)", CONTEXT, None, None, env="LLAMA_ARG_KV_UNIFIED",
           off_flags=("-no-kvu", "--no-kv-unified")),
    Option("swa_full", ("--swa-full",), "keep the whole KV cache of sliding-window layers; always on", CONTEXT, None,
           True, env="LLAMA_ARG_SWA_FULL", target="context:swa_full"),
    Option("chat_template", ("--chat-template",), "chat template: a name that llama.cpp knows, or the text of a Jinja "
           "template (default: the model's own)", CONTEXT, metavar="TEXT", env="LLAMA_ARG_CHAT_TEMPLATE"),
    Option("chat_template_file", ("--chat-template-file",), "file with a Jinja chat template", CONTEXT,
           to.require_file, metavar="FILE", env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    Option("chat_template_kwargs", ("--chat-template-kwargs",), "JSON object with variables for the chat template",
           CONTEXT, to.parse_json_object, metavar="JSON", env="LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    Option("jinja", ("--jinja",), "render chat templates with Jinja; off: use llama.cpp's built-in templates", CONTEXT,
           None, True, env="LLAMA_ARG_JINJA", off_flags=("--no-jinja",)),
    Option("skip_chat_parsing", ("--skip-chat-parsing",), "leave tool calls and reasoning in the text as the model "
           "writes them", CONTEXT, None, False, env="LLAMA_ARG_SKIP_CHAT_PARSING",
           off_flags=("--no-skip-chat-parsing",)),
    Option("spm_infill", ("--spm-infill",), "put the suffix before the prefix in /infill, as some models expect",
           CONTEXT, None, False),
    Option("exact", ("--exact",), "compute each answer alone and without cached prompts, so that the same request "
           "gets the same text whatever other requests run; much slower", CONTEXT, None, False, env="LLAMA_SRV_EXACT"),
    Option("engine", ("--engine",), "where the model is computed: process (a process that is restarted after a crash "
           "and then continues all requests) or thread (inside the server's process)", CONTEXT, default="process",
           metavar="HOW", env="LLAMA_SRV_ENGINE", choices={"process": "process", "thread": "thread"}),
    Option("engine_timeout", ("--engine-timeout",), "seconds that a step may take, and as much again for each full "
           "256 tokens in it, before a busy engine counts as hanging and its process is restarted; with --engine "
           "thread only /health?strict=1 reports it", CONTEXT, float, 60.0, "S", "LLAMA_SRV_ENGINE_TIMEOUT", 1, 86400),
    Option("warmup", ("--warmup",), "run the model once after loading, so that the first request is fast", CONTEXT,
           None, True, off_flags=("--no-warmup",)),
    Option("max_queue", ("--max-queue",), "requests that may wait for a slot; further ones get 503", CONTEXT, int,
           1024, "N", "LLAMA_SRV_MAX_QUEUE", 0, 10**6),
    Option("cache_ram", ("-cram", "--cache-ram"), "MiB of memory for prompts that had to leave the KV cache; 0 for "
           "none, -1 for no limit (default: 8192, but at most half of the free memory)", CONTEXT, int, None, "MIB",
           "LLAMA_ARG_CACHE_RAM", -1, INT_MAX),
    Option("cache_disk", ("--cache-disk",), "folder that keeps cached prompts across restarts", CONTEXT, metavar="DIR",
           env="LLAMA_SRV_CACHE_DISK"),
    Option("cache_disk_size", ("--cache-disk-size",), "MiB that the files in --cache-disk may take", CONTEXT, int,
           10240, "MIB", "LLAMA_SRV_CACHE_DISK_SIZE", 1, INT_MAX),
    Option("ctx_checkpoints", ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "most checkpoints (copies of its "
           "state) of each slot, for models whose state can't be cut to a shorter prefix (recurrent, hybrid)", CONTEXT,
           int, 8, "N", "LLAMA_ARG_CTX_CHECKPOINTS", 0, 1024),
    Option("checkpoint_min_step", ("-cms", "--checkpoint-min-step"), "tokens between two checkpoints; less than 64 "
           "counts as 64", CONTEXT, int, 1024, "N", "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT", 0, INT_MAX),
    Option("prefer", ("--prefer",), "what counts more where several requests run: latency (early first tokens, even "
           "streams), throughput (tokens per second of all together), or a balance of both", CONTEXT,
           default=PREFERENCES["balance"], metavar="WHAT", env="LLAMA_SRV_PREFER", choices=PREFERENCES),
    Option("max_stall_ms", ("--max-stall-ms",), "about how many milliseconds prefill may hold up running streams (one "
           "small step may take 2.5 times as long); 0 for no limit (default: 100, 200 or 1000 by --prefer)", CONTEXT,
           float, None, "MS", "LLAMA_SRV_MAX_STALL_MS", 0, 10**6),

    Option("mmproj", ("-mm", "--mmproj"), "the model's projector, a GGUF file; with it the model takes images or "
           "sound, depending on the projector", MEDIA, to.require_file, metavar="FILE", env="LLAMA_ARG_MMPROJ"),
    Option("mmproj_url", ("-mmu", "--mmproj-url"), "download the projector from this URL, unless it is in the cache",
           MEDIA, to.parse_url, metavar="URL", env="LLAMA_ARG_MMPROJ_URL"),
    Option("mmproj_auto", ("--mmproj-auto",), "use the projector that an option names, or the one in the repository "
           "of -hf", MEDIA, None, True, env="LLAMA_ARG_MMPROJ_AUTO", off_flags=("--no-mmproj", "--no-mmproj-auto")),
    Option("mmproj_offload", ("--mmproj-offload",), "encode images and sound on the GPU", MEDIA, None, True,
           env="LLAMA_ARG_MMPROJ_OFFLOAD", off_flags=("--no-mmproj-offload",), target="mmproj:use_gpu"),
    Option("mmproj_device", ("-mmdev", "--mmproj-device"), "the device that encodes images and sound; none for the "
           "CPU (default: the first GPU)", MEDIA, metavar="DEVICE", env="MTMD_BACKEND_DEVICE", target="mmproj:device"),
    Option("image_min_tokens", ("--image-min-tokens",), "fewest tokens of an image, for models with a variable number "
           "of tokens (default: the model's)", MEDIA, int, None, "N", "LLAMA_ARG_IMAGE_MIN_TOKENS", 1, 2**20,
           target="mmproj:image_min_tokens"),
    Option("image_max_tokens", ("--image-max-tokens",), "most tokens of an image, for models with a variable number "
           "of tokens (default: the model's)", MEDIA, int, None, "N", "LLAMA_ARG_IMAGE_MAX_TOKENS", 1, 2**20,
           target="mmproj:image_max_tokens"),
    Option("image_max_pixels", ("--image-max-pixels",), "refuse larger images, in millions of pixels; the size is "
           "read from the image's header", MEDIA, int, 50, "N", "LLAMA_SRV_IMAGE_MAX_PIXELS", 1, 10_000),
    Option("media_path", ("--media-path",), "folder whose files requests may use as file://NAME", MEDIA,
           to.require_folder, metavar="DIR", env="LLAMA_SRV_MEDIA_PATH"),
    Option("media_urls", ("--media-urls",), "download images and sound from http and https URLs in requests; never "
           "from this machine or a private network", MEDIA, None, False, env="LLAMA_SRV_MEDIA_URLS"),

    Option("threads", ("-t", "--threads"), "threads for generating (default: the number of CPU cores that the process "
           "may use)", COMPUTE, int, -1, "N", "LLAMA_ARG_THREADS", -1, MAX_THREADS),
    Option("threads_batch", ("-tb", "--threads-batch"), "threads for prefill (default: the same as --threads)",
           COMPUTE, int, -1, "N", "LLAMA_ARG_THREADS_BATCH", -1, MAX_THREADS),
    Option("cpu_mask", ("-C", "--cpu-mask"), "CPUs for the compute threads, as a hexadecimal mask (default: the "
           "operating system chooses)", COMPUTE, to.parse_cpu_mask, (), "M", repeat=True, target="pool:cpumask"),
    Option("cpu_range", ("-Cr", "--cpu-range"), "the same as a range of CPU numbers; adds to the mask", COMPUTE,
           to.parse_cpu_range, metavar="LO-HI", dest="cpu_mask", repeat=True),
    Option("cpu_strict", ("--cpu-strict",), "1 pins each compute thread to one of these CPUs", COMPUTE, default=False,
           metavar="0/1", choices={"0": False, "1": True}, target="pool:strict_cpu"),
    Option("prio", ("--prio",), "priority of the compute threads: -1 low, 0 normal, 1 medium, 2 high, 3 realtime",
           COMPUTE, int, 0, "N", low=-1, high=3, target="pool:prio"),
    Option("poll", ("--poll",), "how much compute threads poll while they wait for work: 0 sleeps, 100 always polls, "
           "which is faster only with CPUs to spare", COMPUTE, int, 0, "N", low=0, high=100, target="pool:poll"),
    Option("batch_size", ("-b", "--batch-size"), "most tokens in one step (logical batch)", COMPUTE, int, 2048, "N",
           "LLAMA_ARG_BATCH", 1, 2**20),
    Option("ubatch_size", ("-ub", "--ubatch-size"), "most tokens computed at once within a step (physical batch)",
           COMPUTE, int, 512, "N", "LLAMA_ARG_UBATCH", 1, 2**20),
    Option("flash_attn", ("-fa", "--flash-attn"), "flash attention: on, off or auto; without a value on", COMPUTE,
           default=-1, metavar="[WHEN]", env="LLAMA_ARG_FLASH_ATTN", default_2024=0, choices=FLASH_ATTENTION,
           bare="on", target="context:flash_attn_type"),

    Option("bench", ("--bench",), "measure this server with the model, print a table and exit; NAMES are workloads of "
           "docs/benchmarks.md, separated by commas", GENERAL, metavar="[NAMES]", bare="own"),
    Option("tune", ("--tune",), "find the CPU library and the number of threads with which the model is fastest on "
           "this machine; later starts use them", GENERAL, None, False),
    Option("dry_run", ("--dry-run",), "print the memory plan (model, context, layers on the GPU) and exit", DEVICES,
           None, False),
    Option("list_devices", ("--list-devices",), "list the devices that llama.cpp can use and exit", DEVICES, None,
           False),
    Option("devices", ("-dev", "--device"), "devices to use, separated by commas; none for the CPU only (default: all)",
           DEVICES, to.parse_items, None, "NAMES", "LLAMA_ARG_DEVICE", target="model:devices"),
    Option("rpc", ("--rpc",), "use the devices of workers, too: other machines that run this program's command "
           "rpc-worker, as HOST:PORT separated by commas; they become the devices RPC0, RPC1, ...", DEVICES,
           to.parse_workers, (), "WORKERS", "LLAMA_ARG_RPC"),
    Option("n_gpu_layers", ("-ngl", "--n-gpu-layers", "--gpu-layers"), "layers to put on the GPU; all, auto and -1 "
           "mean as many as fit", DEVICES, to.parse_gpu_layers, -1, "N", "LLAMA_ARG_N_GPU_LAYERS", -1, 2**20,
           target="model:n_gpu_layers"),
    Option("fit", ("-fit", "--fit"), "choose the context and the layers on the GPU, unless they are set, so that the "
           "model fits into memory; refuse a model that can't fit: on or off", DEVICES, default=True, metavar="WHEN",
           env="LLAMA_ARG_FIT", choices={"on": True, "off": False}),
    Option("fit_target", ("-fitt", "--fit-target"), "MiB to leave free on each device, separated by commas; one value "
           "applies to all (default: 1024, or an eighth of a small memory)", DEVICES, to.parse_sizes, (), "MIB",
           "LLAMA_ARG_FIT_TARGET"),
    Option("fit_ctx", ("-fitc", "--fit-ctx"), "the context of each slot, in tokens, below which --fit leaves layers "
           "on the CPU instead of reducing the context", DEVICES, int, 4096, "N", "LLAMA_ARG_FIT_CTX", 1, INT_MAX),
    Option("split_mode", ("-sm", "--split-mode"), "how to split the model across several GPUs: none, layer, row or "
           "tensor (default: layer)", DEVICES, metavar="HOW", env="LLAMA_ARG_SPLIT_MODE", choices=SPLIT_MODES,
           target="model:split_mode"),
    Option("tensor_split", ("-ts", "--tensor-split"), "each GPU's share, e.g. 3,1 (default: by free memory)", DEVICES,
           to.parse_proportions, None, "SHARES", "LLAMA_ARG_TENSOR_SPLIT", target="model:tensor_split"),
    Option("main_gpu", ("-mg", "--main-gpu"), "the GPU that holds the whole model (--split-mode none) or the small "
           "tensors (row)", DEVICES, int, 0, "N", "LLAMA_ARG_MAIN_GPU", 0, 4096, target="model:main_gpu"),
    Option("kv_offload", ("-kvo", "--kv-offload"), "keep the KV cache on the GPU", DEVICES, None, True,
           env="LLAMA_ARG_KV_OFFLOAD", off_flags=("-nkvo", "--no-kv-offload"), target="context:offload_kqv"),
    Option("op_offload", ("--op-offload",), "let the GPU compute large batches with weights that are on the CPU",
           DEVICES, None, True, env="LLAMA_ARG_OP_OFFLOAD", off_flags=("--no-op-offload",),
           target="context:op_offload"),
    Option("override_tensor", ("-ot", "--override-tensor"), "put tensors whose names match the regular expression "
           "into a buffer such as CPU or CUDA0; may be repeated", DEVICES, to.parse_buffer_overrides, (),
           "PATTERN=BUFFER", "LLAMA_ARG_OVERRIDE_TENSOR", repeat=True, target="model:tensor_buft_overrides"),
    Option("cpu_moe", ("-cmoe", "--cpu-moe"), "keep the weights of all experts on the CPU", DEVICES, None, False,
           env="LLAMA_ARG_CPU_MOE"),
    Option("n_cpu_moe", ("-ncmoe", "--n-cpu-moe"), "keep the experts' weights of the first N layers on the CPU",
           DEVICES, int, 0, "N", "LLAMA_ARG_N_CPU_MOE", 0, 4096),
    Option("n_cpu_ffn", ("-ncffn", "--n-cpu-ffn"), "keep the dense feed-forward weights of the first N layers on the "
           "CPU", DEVICES, int, 0, "N", "LLAMA_ARG_N_CPU_FFN", 0, 4096),
    Option("cache_type_k", ("-ctk", "--cache-type-k"), "type of the cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, "
           "iq4_nl, q5_0 or q5_1; smaller types save memory and cost precision", DEVICES, default=1, metavar="TYPE",
           env="LLAMA_ARG_CACHE_TYPE_K", choices=KV_TYPES, target="context:type_k"),
    Option("cache_type_v", ("-ctv", "--cache-type-v"), "type of the cached values; types with a q need flash attention",
           DEVICES, default=1, metavar="TYPE", env="LLAMA_ARG_CACHE_TYPE_V", choices=KV_TYPES, target="context:type_v"),
    Option("memory_f32", ("--memory-f32",), "the same as --cache-type-k f32 --cache-type-v f32", DEVICES, None, False),
    Option("load_mode", ("-lm", "--load-mode"), "how to load the file: auto, none (read it), mmap, mlock, mmap+mlock "
           "or dio (direct I/O)", DEVICES, default=-1, metavar="HOW", env="LLAMA_ARG_LOAD_MODE", choices=LOAD_MODES,
           target="model:load_mode"),
    Option("mlock", ("--mlock",), "lock the model in memory, so that it isn't swapped out", DEVICES, None, False,
           env="LLAMA_ARG_MLOCK"),
    Option("mmap", ("--mmap",), "map the file into memory; off: read it", DEVICES, None, True, env="LLAMA_ARG_MMAP",
           off_flags=("--no-mmap",)),
    Option("direct_io", ("-dio", "--direct-io"), "read the file without the system's file cache", DEVICES, None, False,
           env="LLAMA_ARG_DIO", off_flags=("-ndio", "--no-direct-io")),
    Option("lazy_mode", ("-lzm", "--lazy-mode"), "read rows of huge tensors from disk when they are needed: on, off, "
           "or auto for tensors over 4 GiB", DEVICES, default=1, metavar="WHEN", env="LLAMA_ARG_LAZY_MODE",
           choices=LAZY_MODES, target="model:lazy_mode"),
    Option("repack", ("--repack",), "convert weights to a faster layout for this CPU while loading", DEVICES, None,
           True, env="LLAMA_ARG_REPACK", off_flags=("-nr", "--no-repack"), target="model:use_extra_bufts"),
    Option("no_host", ("--no-host",), "don't use the GPU's host buffers, so that repacked weights can be used",
           DEVICES, None, False, env="LLAMA_ARG_NO_HOST", target="model:no_host"),
    Option("numa", ("--numa",), "NUMA mode: distribute, isolate, or numactl to use the CPU map of numactl; without a "
           "value distribute", DEVICES, metavar="[HOW]", env="LLAMA_ARG_NUMA", choices=NUMA, bare="distribute"),

    Option("rope_scaling", ("--rope-scaling",), "how to scale positions: none, linear or yarn (default: the model's, "
           "or else linear)", ROPE, metavar="HOW", env="LLAMA_ARG_ROPE_SCALING_TYPE", choices=ROPE_SCALING,
           target="context:rope_scaling_type"),
    Option("rope_freq_base", ("--rope-freq-base",), "base frequency of RoPE (default: the model's)", ROPE, float, None,
           "N", "LLAMA_ARG_ROPE_FREQ_BASE", 0, 1e12, target="context:rope_freq_base"),
    Option("rope_freq_scale", ("--rope-freq-scale",), "factor for RoPE frequencies: N extends the context by 1/N "
           "(default: the model's)", ROPE, float, None, "N", "LLAMA_ARG_ROPE_FREQ_SCALE", 0, 1e6,
           target="context:rope_freq_scale"),
    Option("rope_scale", ("--rope-scale",), "extends the context by the factor N", ROPE, to.parse_inverse, metavar="N",
           env="LLAMA_ARG_ROPE_SCALE", low=0, high=1e6, dest="rope_freq_scale"),
    Option("yarn_orig_ctx", ("--yarn-orig-ctx",), "YaRN: the context that the model was trained with (default: the "
           "model's)", ROPE, int, None, "N", "LLAMA_ARG_YARN_ORIG_CTX", 0, INT_MAX, target="context:yarn_orig_ctx"),
    Option("yarn_ext_factor", ("--yarn-ext-factor",), "YaRN: extrapolation mix factor, 0 for full interpolation "
           "(default: the model's, as for values below 0)", ROPE, float, None, "N", "LLAMA_ARG_YARN_EXT_FACTOR", -1,
           1e6, target="context:yarn_ext_factor"),
    Option("yarn_attn_factor", ("--yarn-attn-factor",), "YaRN: factor of the attention; has no effect unless "
           "--yarn-ext-factor is 0 (default: the model's)", ROPE, float, None, "N", "LLAMA_ARG_YARN_ATTN_FACTOR", -1,
           1e6, target="context:yarn_attn_factor"),
    Option("yarn_beta_slow", ("--yarn-beta-slow",), "YaRN: correction dimension of low frequencies (default: the "
           "model's)", ROPE, float, None, "N", "LLAMA_ARG_YARN_BETA_SLOW", -1, 1e6, target="context:yarn_beta_slow"),
    Option("yarn_beta_fast", ("--yarn-beta-fast",), "YaRN: correction dimension of high frequencies (default: the "
           "model's)", ROPE, float, None, "N", "LLAMA_ARG_YARN_BETA_FAST", -1, 1e6, target="context:yarn_beta_fast"),
    Option("grp_attn_n", ("-gan", "--grp-attn-n"), "self-extend: group factor, how many old positions become one; 1 "
           "is off", ROPE, int, 1, "N", "LLAMA_ARG_GRP_ATTN_N", 1, 65536),
    Option("grp_attn_w", ("-gaw", "--grp-attn-w"), "self-extend: group width in positions, a multiple of --grp-attn-n",
           ROPE, int, 512, "N", "LLAMA_ARG_GRP_ATTN_W", 1, INT_MAX),

    *SPEC_OPTIONS,

    Option("embeddings", ("--embedding", "--embeddings"), "create the context for embeddings at start instead of at "
           "the first request for embeddings; completions stay available", EMBEDDINGS, None, False,
           env="LLAMA_ARG_EMBEDDINGS"),
    Option("pooling", ("--pooling",), "how to combine the tokens' embeddings into one: none, mean, cls, last or rank "
           "(default: the model's; last for a generative model that sets none)", EMBEDDINGS, metavar="HOW",
           env="LLAMA_ARG_POOLING", choices=POOLING, target="context:pooling_type"),
    Option("embd_normalize", ("--embd-normalize",), "norm of embeddings: -1 none, 0 scales the largest value to "
           "32760, 1 taxicab, 2 Euclidean, more a p-norm", EMBEDDINGS, int, 2, "N", low=-1, high=1000,
           target="request:embd_normalize"),
    Option("reranking", ("--rerank", "--reranking"), "the model is a reranker: the same as --embeddings --pooling rank",
           EMBEDDINGS, None, False, env="LLAMA_ARG_RERANKING"),

    Option("open", ("--open",), "open the web page in a browser when the model is ready", SERVER, None, False),
    Option("host", ("--host",), "address to listen on, or the path of a UNIX socket that ends in .sock; for several, "
           "separate them by commas or repeat the option", SERVER, to.parse_hosts, ("127.0.0.1",), "ADDR",
           "LLAMA_ARG_HOST", repeat=True),
    Option("port", ("--port",), "port to listen on; 0 for a free one", SERVER, int, 8080, "N", "LLAMA_ARG_PORT", 0,
           65535),
    Option("api_prefix", ("--api-prefix",), "path with which all URLs begin, e.g. /llm", SERVER, to.parse_path_prefix,
           "", "PATH", "LLAMA_ARG_API_PREFIX"),
    Option("ui", ("--ui", "--webui"), "serve the web page", SERVER, None, True, env="LLAMA_ARG_UI",
           off_flags=("--no-ui", "--no-webui")),
    Option("path", ("--path",), "folder to serve instead of the built-in web page", SERVER, to.require_folder,
           metavar="DIR", env="LLAMA_ARG_STATIC_PATH"),
    Option("timeout", ("-to", "--timeout"), "seconds that a client may pause while it sends a request or receives an "
           "answer (default: 30)", SERVER, float, None, "S", "LLAMA_ARG_TIMEOUT", 0.1, 86400, default_2024=600.0),
    Option("max_connections", ("--max-connections",), "most connections at the same time; each has a thread; further "
           "ones get 503", SERVER, int, 512, "N", "LLAMA_SRV_MAX_CONNECTIONS", 1, 100000),
    Option("half_close", ("--half-close",), "send answers without a stream even to a client that closes its sending "
           "side (FIN) after the request; off: that counts as hanging up, except in streams", SERVER, None, False,
           env="LLAMA_SRV_HALF_CLOSE"),
    Option("rate_limit", ("--rate-limit",), "requests allowed for each API key, or without keys for each address: "
           "60/min, 5/s or 1000/h; further ones get 429 (default: no limit)", SERVER, to.parse_rate, metavar="N/UNIT",
           env="LLAMA_SRV_RATE_LIMIT"),
    Option("max_body", ("--max-body",), "largest request body in MiB", SERVER, int, 64, "N", "LLAMA_SRV_MAX_BODY", 1,
           65536),
    Option("max_text", ("--max-text",), "longest text in MiB that is tokenized at once, in a prompt or in /tokenize; "
           "tokenizing takes 120 times as much memory", SERVER, int, 4, "N", "LLAMA_SRV_MAX_TEXT", 1, 1024),
    Option("drain", ("--drain",), "seconds that running requests have to finish after Ctrl-C or SIGTERM", SERVER,
           float, 10.0, "S", "LLAMA_SRV_DRAIN", 0, 86400),
    Option("drain_delay", ("--drain-delay",), "seconds after Ctrl-C or SIGTERM in which the server still accepts "
           "requests while GET /health/ready answers 503, so that load balancers notice first", SERVER, float, 0.0,
           "S", "LLAMA_SRV_DRAIN_DELAY", 0, 86400),
    Option("sse_ping_interval", ("--sse-ping-interval",), "seconds of silence after which the server sends a comment "
           "in a stream of /v1, so that the connection isn't taken for dead; streams of /completion only if this "
           "option is set; -1 for never", SERVER, int, 30, "S", "LLAMA_ARG_SSE_PING_INTERVAL", -1, 86400),
    Option("pid_file", ("--pid-file",), "write the process id into this file; it is removed at the end", SERVER,
           metavar="FILE", env="LLAMA_SRV_PID_FILE"),
    Option("state_file", ("--state-file",), "write a JSON object with url, pid, model and state (loading, ready, "
           "stopping) into this file; it is removed at the end", SERVER, metavar="FILE", env="LLAMA_SRV_STATE_FILE"),
    Option("debug_stacks", ("--debug-stacks",), "answer POST /debug/stacks with the call stacks of all Python threads",
           SERVER, None, False, env="LLAMA_SRV_DEBUG_STACKS"),
    Option("stream_interval_ms", ("--stream-interval-ms",), "longest time, in milliseconds, that a token of a "
           "stream waits to be sent together with later ones; each token keeps its own event; with 0 no token waits",
           SERVER, int, 16, "MS", "LLAMA_SRV_STREAM_INTERVAL_MS", 0, 1000),
    Option("store_size", ("--store-size",), "MiB for stored responses and conversations (/v1/responses), and as many "
           "again for files (/v1/files); 0 stores nothing", SERVER, int, 64, "MIB", "LLAMA_SRV_STORE_SIZE", 0, 1 << 20),
    Option("store_dir", ("--store-dir",), "folder that keeps stored responses across restarts (default: memory); "
           "batches need it", SERVER, metavar="DIR", env="LLAMA_SRV_STORE_DIR"),
    Option("slots", ("--slots",), "answer GET /slots; with keys, or where other machines can connect, clients see "
           "only their own prompts there", SERVER, None, True,
           env="LLAMA_ARG_ENDPOINT_SLOTS", off_flags=("--no-slots", "--slots-endpoint-disable")),
    Option("metrics", ("--metrics",), "answer GET /metrics", SERVER, None, False, env="LLAMA_ARG_ENDPOINT_METRICS"),
    Option("props", ("--props",), "allow POST /props to change settings", SERVER, None, False,
           env="LLAMA_ARG_ENDPOINT_PROPS"),
    Option("slot_save_path", ("--slot-save-path",), "folder for saved slots (default: none; slots can't be saved)",
           SERVER, to.require_folder, metavar="DIR", env="LLAMA_ARG_SLOT_SAVE_PATH"),

    Option("api_key", ("--api-key",), "API keys, separated by commas; may be repeated; without any key the server "
           "answers every client", ACCESS, to.parse_keys, (), "KEY", "LLAMA_API_KEY", repeat=True, secret=True),
    Option("api_key_file", ("--api-key-file",), "file with more keys, one in a line; models=A,B behind a key limits "
           "it to these models; changes are noticed", ACCESS, to.require_file, metavar="FILE",
           env="LLAMA_ARG_API_KEY_FILE"),
    Option("admin_key", ("--admin-key",), "API keys that may do everything, including what --manage-models allows, "
           "separated by commas", ACCESS, to.parse_keys, (), "KEY", "LLAMA_SRV_ADMIN_KEY", repeat=True, secret=True),
    Option("manage_models", ("--manage-models",), "let requests with an --admin-key download and remove models and "
           "change their options", ACCESS, None, False, env="LLAMA_SRV_MANAGE_MODELS"),
    Option("ssl_key_file", ("--ssl-key-file",), "private key for HTTPS, a PEM file", ACCESS, to.require_file,
           metavar="FILE", env="LLAMA_ARG_SSL_KEY_FILE"),
    Option("ssl_cert_file", ("--ssl-cert-file",), "certificate for HTTPS, a PEM file", ACCESS, to.require_file,
           metavar="FILE", env="LLAMA_ARG_SSL_CERT_FILE"),
    Option("cors_origins", ("--cors-origins",), "origins of web pages on other machines that may use the server, e.g. "
           "https://example.org; * for all", ACCESS, to.parse_origins, (), "ORIGINS", "LLAMA_ARG_CORS_ORIGINS",
           repeat=True),
    Option("allowed_hosts", ("--allowed-hosts",), "further host names of this server, e.g. a proxy's, which a server "
           "that listens only on this machine would refuse; * for any", ACCESS, to.lower_items, (), "NAMES",
           "LLAMA_SRV_ALLOWED_HOSTS", repeat=True),
) + tuple(
    Option(name, flags, help, REQUESTS, kind, default, "N" if kind in (int, float) else "", env, low, high,
           target=f"request:{name}")
    for name, flags, help, kind, default, low, high, env in (
        ("temperature", ("--temp", "--temperature"), "randomness; 0 always takes the most likely token", float, 0.8,
         -100, 100, "LLAMA_ARG_TEMPERATURE"),
        ("dynatemp_range", ("--dynatemp-range",), "range of the dynamic temperature; 0 is off", float, 0.0, 0, 100, ""),
        ("dynatemp_exponent", ("--dynatemp-exp",), "exponent of the dynamic temperature", float, 1.0, 0, 100, ""),
        ("top_k", ("--top-k",), "keep the N most likely tokens; 0 is off", int, 40, -1, INT_MAX, "LLAMA_ARG_TOP_K"),
        ("top_p", ("--top-p",), "keep the most likely tokens whose probabilities add up to N; 1 is off", float, 0.95,
         0, 1, "LLAMA_ARG_TOP_P"),
        ("min_p", ("--min-p",), "keep tokens at least N times as likely as the most likely one; 0 is off", float, 0.05,
         0, 1, "LLAMA_ARG_MIN_P"),
        ("typical_p", ("--typical", "--typical-p"), "locally typical sampling; 1 is off", float, 1.0, 0, 100, ""),
        ("top_n_sigma", ("--top-nsigma", "--top-n-sigma"), "keep tokens whose logits are within N standard "
         "deviations of the highest; negative is off", float, -1.0, -1e6, 1e6, ""),
        ("xtc_probability", ("--xtc-probability",), "probability that XTC removes the most likely tokens; 0 is off",
         float, 0.0, 0, 1, ""),
        ("xtc_threshold", ("--xtc-threshold",), "XTC removes only tokens with at least this probability", float, 0.1,
         0, 1, ""),
        ("repeat_last_n", ("--repeat-last-n",), "how many of the last tokens get penalties; -1 for the whole context",
         int, 64, -1, INT_MAX, ""),
        ("presence_penalty", ("--presence-penalty",), "penalty for tokens that have occurred; 0 is off", float, 0.0,
         -1e6, 1e6, "LLAMA_ARG_PRESENCE_PENALTY"),
        ("frequency_penalty", ("--frequency-penalty",), "penalty for each occurrence of a token; 0 is off", float, 0.0,
         -1e6, 1e6, "LLAMA_ARG_FREQUENCY_PENALTY"),
        ("dry_multiplier", ("--dry-multiplier",), "strength of the DRY repetition penalty; 0 is off", float, 0.0, 0,
         1e6, ""),
        ("dry_base", ("--dry-base",), "base of the DRY penalty", float, 1.75, 0, 1e6, ""),
        ("dry_allowed_length", ("--dry-allowed-length",), "longest repetition, in tokens, without a DRY penalty", int,
         2, 0, INT_MAX, ""),
        ("dry_penalty_last_n", ("--dry-penalty-last-n",), "how many of the last tokens DRY searches; -1 for the whole "
         "context", int, -1, -1, INT_MAX, ""),
        ("mirostat", ("--mirostat",), "0 off, 1 Mirostat, 2 Mirostat 2.0", int, 0, 0, 2, ""),
        ("mirostat_eta", ("--mirostat-lr",), "learning rate of Mirostat", float, 0.1, 0, 1e6, ""),
        ("mirostat_tau", ("--mirostat-ent",), "target entropy of Mirostat", float, 5.0, 0, 1e6, ""),
        ("adaptive_target", ("--adaptive-target",), "target probability of adaptive_p; negative is off", float, -1.0,
         -1e6, 1, ""),
        ("adaptive_decay", ("--adaptive-decay",), "decay of adaptive_p's running average", float, 0.9, 0, 0.99, ""),
        ("seed", ("-s", "--seed"), "seed of the random numbers; -1 for a random one", int, -1, -1, 2**32 - 1, ""),
        ("n_keep", ("--keep",), "first tokens of the prompt to keep when the context is full; -1 for all", int, 0, -1,
         INT_MAX, ""),
        ("ignore_eos", ("--ignore-eos",), "never generate an end-of-text token", None, False, None, None, ""),
    )
) + (
    Option("repeat_penalty", ("--repeat-penalty",), "penalty for tokens that have occurred; 1 is off", REQUESTS, float,
           1.0, "N", "LLAMA_ARG_REPEAT_PENALTY", 1e-6, 1e6, default_2024=1.1, target="request:repeat_penalty"),
    Option("cache_prompt", ("--cache-prompt",), "reuse the cached prefix of earlier prompts", REQUESTS, None, True,
           env="LLAMA_ARG_CACHE_PROMPT", off_flags=("--no-cache-prompt",), default_2024=False,
           target="request:cache_prompt"),
    Option("samplers", ("--samplers",), "samplers to apply, in order, separated by semicolons", REQUESTS,
           to.parse_sampler_names,
           ("penalties", "dry", "top_n_sigma", "top_k", "tfs_z", "typical_p", "top_p", "min_p", "xtc", "temperature"),
           "NAMES", target="request:samplers"),
    Option("sampling_seq", ("--sampler-seq", "--sampling-seq"), "the same with a letter for each sampler, e.g. "
           "edskypmxt", REQUESTS, to.parse_sampler_sequence, metavar="LETTERS", dest="samplers"),
    Option("dry_sequence_breakers", ("--dry-sequence-breaker",), "a text that ends a repetition for DRY; may be "
           "repeated; none for no such text (default: line break, colon, quote, asterisk)", REQUESTS, to.wrap_text,
           None, "TEXT", repeat=True, target="request:dry_sequence_breakers"),
    Option("logit_bias", ("-l", "--logit-bias"), "make a token more likely (15043+1) or less (15043-1, 15043-inf); "
           "may be repeated", REQUESTS, to.parse_token_bias, (), "ID+BIAS", repeat=True, target="request:logit_bias"),
    Option("reasoning_format", ("--reasoning-format",), "where the reasoning of a chat goes: auto and deepseek put it "
           "into reasoning_content, none leaves it in the text, deepseek-legacy does both", REQUESTS, default="auto",
           metavar="FORMAT", env="LLAMA_ARG_THINK", choices=dict(zip(REASONING_FORMATS, REASONING_FORMATS)),
           target="request:reasoning_format"),
    Option("reasoning", ("-rea", "--reasoning"), "whether a model thinks before it answers a chat: on, off, or auto "
           "for the template's own default", REQUESTS, metavar="WHEN", env="LLAMA_ARG_REASONING", bare="on",
           choices={"on": True, "off": False, "auto": None}, target="request:enable_thinking"),
    Option("reasoning_effort", ("--reasoning-effort",), "how much the model thinks, a word that its template knows "
           "(low, medium, high, ...); default for the template's own default", REQUESTS, to.parse_unless_default,
           metavar="LEVEL", env="LLAMA_ARG_REASONING_EFFORT", target="request:reasoning_effort"),
    Option("reasoning_budget", ("--reasoning-budget",), "most tokens of reasoning in an answer; 0 for none, -1 for no "
           "limit", REQUESTS, int, -1, "N", "LLAMA_ARG_THINK_BUDGET", -1, INT_MAX,
           target="request:reasoning_budget_tokens"),
    Option("reasoning_budget_message", ("--reasoning-budget-message",), "text that is put at the end of the reasoning "
           "when the budget is used up", REQUESTS, metavar="TEXT", env="LLAMA_ARG_THINK_BUDGET_MESSAGE", default="",
           target="request:reasoning_budget_message"),
    Option("prefill_assistant", ("--prefill-assistant",), "if a chat ends with a message of the assistant, continue "
           "that message; off: answer it with a new one", REQUESTS, None, True, env="LLAMA_ARG_PREFILL_ASSISTANT",
           off_flags=("--no-prefill-assistant",), target="request:continue_final_message"),
    Option("special", ("-sp", "--special"), "show special tokens in the text of answers", REQUESTS, None, False),
    Option("stop", ("-r", "--reverse-prompt"), "a text that ends the answer (stop word); may be repeated", REQUESTS,
           to.wrap_text, (), "TEXT", repeat=True, target="request:stop"),
    Option("escape", ("-e", "--escape"), "interpret \\n, \\t, \\x1b and so on in --reverse-prompt and "
           "--dry-sequence-breaker", REQUESTS, None, True, off_flags=("--no-escape",)),
    Option("grammar", ("--grammar",), "GBNF grammar that answers must match", REQUESTS, metavar="GRAMMAR",
           target="request:grammar"),
    Option("grammar_file", ("--grammar-file",), "the same from a file", REQUESTS, to.read_file_text, metavar="FILE",
           dest="grammar"),
    Option("json_schema", ("-j", "--json-schema"), "JSON schema that answers must match; {} for any JSON", REQUESTS,
           to.parse_json_schema, metavar="SCHEMA", target="request:json_schema"),
    Option("json_schema_file", ("-jf", "--json-schema-file"), "the same from a file", REQUESTS, to.read_json_schema,
           metavar="FILE", dest="json_schema"),

    Option("verbose", ("-v", "--verbose", "--log-verbose"), "log everything: llama.cpp's own lines, and users' "
           "requests, prompt tokens and answers", LOGGING, None, False, env="LLAMA_ARG_VERBOSE"),
    Option("log_verbosity", ("-lv", "--verbosity", "--log-verbosity"), "0 nothing, 1 errors, 2 warnings, 3 normal, 4 "
           "debug, 5 everything", LOGGING, int, 3, "N", "LLAMA_ARG_LOG_VERBOSITY", 0, INT_MAX),
    Option("log_format", ("--log-format",), "text, or json for a JSON object in each line", LOGGING, default="text",
           metavar="FORMAT", env="LLAMA_ARG_LOG_FORMAT", default_2024="json", choices={"text": "text", "json": "json"}),
    Option("log_jsonl", ("--log-jsonl",), "another name for --log-format json", LOGGING, None,
           env="LLAMA_ARG_LOG_JSONL", off_flags=("--no-log-jsonl",), dest="log_format",
           choices={"on": "json", "off": "text"}),
    Option("log_file", ("--log-file",), "append log lines to this file, too (default: no file)", LOGGING,
           metavar="FILE", env="LLAMA_ARG_LOG_FILE", default_2024="llama.log"),
    Option("log_disable", ("--log-disable",), "log nothing; with --compat 2024, log to stdout only", LOGGING, None,
           False),
    Option("log_colors", ("--log-colors",), "colors in the log: on, off, or auto for terminals only", LOGGING,
           default="auto", metavar="WHEN", env="LLAMA_ARG_LOG_COLORS", bare="on",
           choices={"on": "on", "off": "off", "auto": "auto"}),
    Option("log_prompts_dir", ("--log-prompts-dir",), "write the prompt of each request into a file in this folder, "
           "which is created if it is missing", LOGGING, metavar="DIR"),
    Option("record", ("--record",), "append a line for each request for text to this file: the request, the model and "
           "its settings, all tokens; see docs/evidence.md", LOGGING, metavar="FILE", env="LLAMA_SRV_RECORD"),
    Option("record_size", ("--record-size",), "MiB for all files of the record together; then the oldest file is "
           "removed", LOGGING, int, 1024, "MIB", "LLAMA_SRV_RECORD_SIZE", 1, 2**24),

    Option("bundle", ("--bundle",), "make one executable out of this program and a model, and exit; needs the "
           "one-file program (or --base)", BUNDLES, to.require_file, metavar="MODEL"),
    Option("output", ("-o", "--output"), "the file to write (default: the model's name without .gguf)", BUNDLES,
           metavar="FILE"),
    Option("defaults", ("--defaults",), "an option that the bundle always starts with, such as ctx-size=4096; may be "
           "repeated", BUNDLES, to.parse_key_value, (), "NAME=VALUE", repeat=True),
    Option("base", ("--base",), "put the model behind this one-file program instead of the running one", BUNDLES,
           to.require_file, metavar="FILE"),
    Option("side_file", ("--side-file",), "put the model into FILE.bundle beside the program; always on for Windows",
           BUNDLES, None, False),
    Option("bundle_info", ("--bundle-info",), "show the contents of this bundle, or of the one that -m names, and exit",
           BUNDLES, None, False),
    Option("bundle_check", ("--bundle-check",), "compare the bundle's program and parts with their checksums and exit",
           BUNDLES, None, False),
    Option("unbundle", ("--unbundle",), "unpack the bundle into this folder and exit", BUNDLES, metavar="DIR"),
)

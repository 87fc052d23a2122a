"""The options that this server has: the rows that `--help`, parsing, the environment, config files and the docs read.

Data only, a leaf. Flags, variables and meanings are those of the two documents of 2024 and of llama-server v0.5.0 where
they have the option; the order within a group is that of `--help`. What is known from there but does nothing here is in
`known`. Numbers behind words are values of llama.cpp's enums, which a native test compares with the bindings.
"""

from __future__ import annotations

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
SHELLS = ("bash", "zsh", "fish", "powershell")
REASONING_FORMATS = ("auto", "none", "deepseek", "deepseek-legacy")
NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}
SHORT_HELP = ("help", "version", "completion", "config", "tune", "files", "alias", "hf_repo", "ctx_size", "parallel",
              "n_predict", "system_prompt_file", "chat_template_file", "mmproj", "threads", "n_gpu_layers", "dry_run",
              "embeddings", "reranking", "open", "host", "port", "api_key", "temperature", "log_file", "verbose")
"""What `--help` shows; the rest is in `--help all`."""

OPTIONS: tuple[Option, ...] = (
    Option("help", ("-h", "--help", "--usage"), "show the options that most people want, with all every one, and exit",
           GENERAL, metavar="[all]", choices={"short": "short", "all": "all"}, bare="short"),
    Option("version", ("--version",), "show the versions of the server and of llama.cpp and exit", GENERAL, None,
           False),
    Option("verify", ("--verify",), "compare the files of this program and of llama.cpp with their checksums, and exit",
           GENERAL, None, False),
    Option("completion", ("--completion",), "print a script that lets a shell complete these options: bash, zsh, fish "
           "or powershell", GENERAL, metavar="SHELL", choices=dict(zip(SHELLS, SHELLS))),
    Option("completion_bash", ("--completion-bash",), "the same as --completion bash", GENERAL, None, False),
    Option("man", ("--man",), "print the manual page (troff) and exit: llama-srv --man | man -l -", GENERAL,
           None, False),
    Option("config", ("--config",), "read options from an INI or JSON file; keys are the names below, with or without "
           "dashes", GENERAL, to.existing_file, metavar="FILE", env="LLAMA_SRV_CONFIG"),
    Option("compat", ("--compat",), "which defaults and shapes of answers to take where those of the 2024 documents "
           "and today's exclude each other: modern or 2024", GENERAL, default="modern", metavar="NAME",
           env="LLAMA_SRV_COMPAT", choices={"modern": "modern", "2024": "2024"}),

    Option("files", ("-m", "--model"), "the model to serve, a GGUF file; may be repeated, then requests choose one by "
           "its name; with a download, where to put it", MODEL, to.one_text, (), "FILE", "LLAMA_ARG_MODEL",
           repeat=True),
    Option("alias", ("-a", "--alias"), "names of the model in answers, separated by commas; the first one is shown "
           "(default: the file's path)", MODEL, metavar="NAME", env="LLAMA_ARG_ALIAS"),
    Option("tags", ("--tags",), "words about the model for clients to read, separated by commas", MODEL, to.items,
           (), "WORDS", "LLAMA_ARG_TAGS"),
    Option("lora", ("--lora",), "LoRA adapters to load and apply, separated by commas; may be repeated", MODEL,
           to.adapters, (), "FILE", "LLAMA_ARG_LORA", repeat=True),
    Option("lora_scaled", ("--lora-scaled",), "the same with a strength for each", MODEL, to.scaled_adapters,
           metavar="FILE:SCALE", env="LLAMA_ARG_LORA_SCALED", dest="lora", repeat=True),
    Option("lora_init_without_apply", ("--lora-init-without-apply",), "load the adapters with strength 0; requests or "
           "POST /lora-adapters switch them on", MODEL, None, False),
    Option("override_kv", ("--override-kv",), "replace metadata of the model; types are int, float, bool and str",
           MODEL, to.metadata_overrides, (), "KEY=TYPE:VALUE", "LLAMA_ARG_OVERRIDE_KV", repeat=True,
           target="model:kv_overrides"),
    Option("check_tensors", ("--check-tensors",), "look for invalid numbers in the model while loading it", MODEL, None,
           False, target="model:check_tensors"),
    Option("libs", ("--libs",), "folder with the llama.cpp libraries (default: the best one in libs/)", MODEL,
           metavar="DIR", env="LLAMA_SRV_LIBS"),
    Option("cpu_variant", ("--cpu-variant",), "use this libggml-cpu-* plug-in instead of the one that --tune "
           "found or llama.cpp chooses (auto), e.g. haswell; helps when a CPU meets illegal instructions", MODEL,
           metavar="NAME", env="LLAMA_SRV_CPU_VARIANT"),

    Option("models_dir", ("--models-dir",), "serve the models of this folder and of the folders in it, each loaded "
           "when a request names it; docs/models.md says which, and their names", MODELS,
           to.existing_folder, metavar="DIR", env="LLAMA_ARG_MODELS_DIR"),
    Option("models_preset", ("--models-preset",), "INI file with a section for each model: its name, and the options "
           "that it has of its own; what is in [*] counts for all", MODELS, to.existing_file, metavar="FILE",
           env="LLAMA_ARG_MODELS_PRESET"),
    Option("models_max", ("--models-max",), "models that may be loaded at the same time; 0 for as many as fit into "
           "memory", MODELS, int, 0, "N", "LLAMA_ARG_MODELS_MAX", 0, 10000),
    Option("models_autoload", ("--models-autoload",), "load a model when a request names it; off, POST /models/load "
           "does", MODELS, None, True, env="LLAMA_ARG_MODELS_AUTOLOAD", off_flags=("--no-models-autoload",)),
    Option("sleep_idle_seconds", ("--sleep-idle-seconds",), "seconds without a request after which a model leaves the "
           "memory; the next request loads it again; -1 for never", MODELS, int, -1, "S",
           "LLAMA_SRV_SLEEP_IDLE_SECONDS", -1, INT_MAX),

    Option("model_url", ("-mu", "--model-url"), "download the model from here, unless it is there already", DOWNLOAD,
           to.url, metavar="URL", env="LLAMA_ARG_MODEL_URL"),
    Option("hf_repo", ("-hf", "-hfr", "--hf-repo"), "download the model from this Hugging Face repository; without "
           "QUANT its Q4_K_M file, or the first one", DOWNLOAD, to.hf_repo, metavar="USER/MODEL[:QUANT]",
           env="LLAMA_ARG_HF_REPO"),
    Option("hf_file", ("-hff", "--hf-file"), "take this file of the repository", DOWNLOAD, metavar="FILE",
           env="LLAMA_ARG_HF_FILE"),
    Option("hf_token", ("-hft", "--hf-token"), "access token for repositories that ask for one", DOWNLOAD,
           metavar="TOKEN", env="HF_TOKEN", secret=True),
    Option("model_sha256", ("--model-sha256",), "refuse a downloaded model with another SHA-256 sum", DOWNLOAD,
           to.sha256, metavar="SUM", env="LLAMA_SRV_MODEL_SHA256"),
    Option("offline", ("--offline",), "use only what has been downloaded before", DOWNLOAD, None, False,
           env="LLAMA_ARG_OFFLINE"),
    Option("cache_list", ("-cl", "--cache-list"), "list the models that have been downloaded and exit", DOWNLOAD, None,
           False),

    Option("ctx_size", ("-c", "--ctx-size"), "tokens of context, shared by all slots; 0 takes the model's own "
           "(default: the model's for each slot, or what fits into memory)", CONTEXT, int, None, "N",
           "LLAMA_ARG_CTX_SIZE", 0, INT_MAX, default_2024=512),
    Option("kv_unified_per_slot", ("--kv-unified-per-slot",), "most tokens of context for a slot; without "
           "--ctx-size there is as much for each of them", CONTEXT, int, None, "N", "LLAMA_ARG_KV_UNIFIED_PER_SLOT", 1,
           INT_MAX),
    Option("parallel", ("-np", "--parallel"), "slots: how many requests are computed at the same time; auto is 4",
           CONTEXT, to.slot_count, 1, "N", "LLAMA_ARG_N_PARALLEL", 1, 254),
    Option("cont_batching", ("-cb", "--cont-batching"), "start a request while others are generating; off, it waits "
           "for them", CONTEXT, None, True, env="LLAMA_ARG_CONT_BATCHING", off_flags=("-nocb", "--no-cont-batching"),
           default_2024=False),
    Option("n_predict", ("-n", "--n-predict", "--predict"), "tokens to generate where a request doesn't say how "
           "many; -1 for no limit (--compat 2024: also what --max-predict says)", CONTEXT, int, -1, "N",
           "LLAMA_ARG_N_PREDICT", -1, INT_MAX),
    Option("max_predict", ("--max-predict",), "most tokens a request may generate; -1 for no limit", CONTEXT, int, -1,
           "N", "LLAMA_SRV_MAX_PREDICT", -1, INT_MAX),
    Option("context_shift", ("--context-shift",), "drop the middle of a full context and go on, instead of stopping",
           CONTEXT, None, False, env="LLAMA_ARG_CONTEXT_SHIFT", off_flags=("--no-context-shift",), default_2024=True),
    Option("context_overflow", ("--context-overflow",), "another way to say --context-shift (shift) or "
           "--no-context-shift (error)", CONTEXT, metavar="HOW", env="LLAMA_SRV_CONTEXT_OVERFLOW",
           dest="context_shift", choices={"shift": True, "error": False}),
    Option("system_prompt_file", ("-spf", "--system-prompt-file"), "JSON file with prompt, anti_prompt and "
           "assistant_name: what all slots start from", CONTEXT, to.existing_file, metavar="FILE",
           env="LLAMA_ARG_SYSTEM_PROMPT_FILE"),
    Option("kv_unified", ("-kvu", "--kv-unified"), "one KV cache for all slots together, of which a slot may use the "
           "whole; off: a part of it for each, which computes many requests at once faster (default: on with one slot "
           "and for models with sliding windows)", CONTEXT, None, None, env="LLAMA_ARG_KV_UNIFIED",
           off_flags=("-no-kvu", "--no-kv-unified")),
    Option("swa_full", ("--swa-full",), "keep all positions of sliding-window layers too; always on here", CONTEXT,
           None, True, env="LLAMA_ARG_SWA_FULL", target="context:swa_full"),
    Option("chat_template", ("--chat-template",), "chat template: a name that llama.cpp knows, or Jinja text (default: "
           "the model's own)", CONTEXT, metavar="TEXT", env="LLAMA_ARG_CHAT_TEMPLATE"),
    Option("chat_template_file", ("--chat-template-file",), "file with a Jinja chat template", CONTEXT,
           to.existing_file, metavar="FILE", env="LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    Option("chat_template_kwargs", ("--chat-template-kwargs",), "JSON object with variables for the chat template",
           CONTEXT, to.json_object, metavar="JSON", env="LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    Option("jinja", ("--jinja",), "render chat templates as Jinja; without it llama.cpp's fixed list does it", CONTEXT,
           None, True, env="LLAMA_ARG_JINJA", off_flags=("--no-jinja",)),
    Option("skip_chat_parsing", ("--skip-chat-parsing",), "leave calls and reasoning in the text as the model writes "
           "them", CONTEXT, None, False, env="LLAMA_ARG_SKIP_CHAT_PARSING", off_flags=("--no-skip-chat-parsing",)),
    Option("spm_infill", ("--spm-infill",), "put the suffix before the prefix in /infill, as some models want", CONTEXT,
           None, False),
    Option("exact", ("--exact",), "evaluate every request alone and from its beginning: the same request gives the "
           "same text whatever else is going on; much slower", CONTEXT, None, False, env="LLAMA_SRV_EXACT"),
    Option("engine", ("--engine",), "where the model is computed: process, which is restarted if it crashes and goes "
           "on with all requests, or thread, within the server", CONTEXT, default="process", metavar="HOW",
           env="LLAMA_SRV_ENGINE", choices={"process": "process", "thread": "thread"}),
    Option("engine_timeout", ("--engine-timeout",), "seconds without a step after which a busy engine is taken for "
           "hanging (for each 256 tokens of the step): it is restarted, but with --engine thread only "
           "/health?strict=1 tells", CONTEXT, float, 60.0, "S", "LLAMA_SRV_ENGINE_TIMEOUT", 1, 86400),
    Option("warmup", ("--warmup",), "compute once after loading, so that the first request is fast", CONTEXT, None,
           True, off_flags=("--no-warmup",)),
    Option("max_queue", ("--max-queue",), "requests that may wait for a slot; more get 503", CONTEXT, int, 1024, "N",
           "LLAMA_SRV_MAX_QUEUE", 0, 10**6),
    Option("cache_ram", ("-cram", "--cache-ram"), "MiB of memory for prompts that had to leave the KV cache; 0 for "
           "none, -1 for no limit (default: 8192, at most half of what is free)", CONTEXT, int, None, "MIB",
           "LLAMA_ARG_CACHE_RAM", -1, INT_MAX),
    Option("cache_disk", ("--cache-disk",), "folder that keeps computed prompts over restarts", CONTEXT, metavar="DIR",
           env="LLAMA_SRV_CACHE_DISK"),
    Option("cache_disk_size", ("--cache-disk-size",), "MiB that --cache-disk may take", CONTEXT, int, 10240, "MIB",
           "LLAMA_SRV_CACHE_DISK_SIZE", 1, INT_MAX),
    Option("ctx_checkpoints", ("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "copies of its state that a slot "
           "keeps with models whose state can't be cut (recurrent, hybrid)", CONTEXT, int, 8, "N",
           "LLAMA_ARG_CTX_CHECKPOINTS", 0, 1024),
    Option("checkpoint_min_step", ("-cms", "--checkpoint-min-step"), "tokens between two of them (at least 64)",
           CONTEXT, int, 1024, "N", "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT", 0, INT_MAX),
    Option("max_stall_ms", ("--max-stall-ms",), "how long running streams may wait while prompts are read, in ms; 0 "
           "for no limit", CONTEXT, float, 100.0, "MS", "LLAMA_SRV_MAX_STALL_MS", 0, 10**6),

    Option("mmproj", ("-mm", "--mmproj"), "the model's projector, a GGUF file: with it the model takes images or "
           "sound, as the file says", MEDIA, to.existing_file, metavar="FILE", env="LLAMA_ARG_MMPROJ"),
    Option("mmproj_url", ("-mmu", "--mmproj-url"), "download the projector from here, unless it is there already",
           MEDIA, to.url, metavar="URL", env="LLAMA_ARG_MMPROJ_URL"),
    Option("mmproj_auto", ("--mmproj-auto",), "use the projector that is named, or that the repository of "
           "-hf has", MEDIA, None, True, env="LLAMA_ARG_MMPROJ_AUTO", off_flags=("--no-mmproj", "--no-mmproj-auto")),
    Option("mmproj_offload", ("--mmproj-offload",), "let the GPU encode images and sound", MEDIA, None, True,
           env="LLAMA_ARG_MMPROJ_OFFLOAD", off_flags=("--no-mmproj-offload",), target="mmproj:use_gpu"),
    Option("mmproj_device", ("-mmdev", "--mmproj-device"), "the device that encodes them; none is the CPU (default: "
           "the first GPU)", MEDIA, metavar="DEVICE", env="MTMD_BACKEND_DEVICE", target="mmproj:device"),
    Option("image_min_tokens", ("--image-min-tokens",), "fewest tokens an image takes, for models that can choose "
           "(default: the model's)", MEDIA, int, None, "N", "LLAMA_ARG_IMAGE_MIN_TOKENS", 1, 2**20,
           target="mmproj:image_min_tokens"),
    Option("image_max_tokens", ("--image-max-tokens",), "most tokens an image takes, for models that can choose "
           "(default: the model's)", MEDIA, int, None, "N", "LLAMA_ARG_IMAGE_MAX_TOKENS", 1, 2**20,
           target="mmproj:image_max_tokens"),
    Option("image_max_pixels", ("--image-max-pixels",), "refuse larger images, by what their headers say, in millions "
           "of pixels", MEDIA, int, 50, "N", "LLAMA_SRV_IMAGE_MAX_PIXELS", 1, 10_000),
    Option("media_path", ("--media-path",), "folder whose files requests may name as file://NAME", MEDIA,
           to.existing_folder, metavar="DIR", env="LLAMA_SRV_MEDIA_PATH"),
    Option("media_urls", ("--media-urls",), "fetch images and sound that requests name by http or https; never from "
           "this machine or a private network", MEDIA, None, False, env="LLAMA_SRV_MEDIA_URLS"),

    Option("threads", ("-t", "--threads"), "threads for generating (default: the CPU cores that the process may use)",
           COMPUTE, int, -1, "N", "LLAMA_ARG_THREADS", -1, MAX_THREADS),
    Option("threads_batch", ("-tb", "--threads-batch"), "threads for reading prompts (default: same as --threads)",
           COMPUTE, int, -1, "N", "LLAMA_ARG_THREADS_BATCH", -1, MAX_THREADS),
    Option("cpu_mask", ("-C", "--cpu-mask"), "CPUs for the threads that compute, as a hexadecimal mask (default: the "
           "system places them)", COMPUTE, to.cpu_mask, (), "M", repeat=True, target="pool:cpumask"),
    Option("cpu_range", ("-Cr", "--cpu-range"), "the same as a range of CPU numbers; adds to the mask", COMPUTE,
           to.cpu_range, metavar="LO-HI", dest="cpu_mask", repeat=True),
    Option("cpu_strict", ("--cpu-strict",), "one of these CPUs for each thread: 0 or 1", COMPUTE, default=False,
           metavar="0/1", choices={"0": False, "1": True}, target="pool:strict_cpu"),
    Option("prio", ("--prio",), "priority of the threads that compute: -1 low, 0 normal, 1 medium, 2 high, 3 realtime",
           COMPUTE, int, 0, "N", low=-1, high=3, target="pool:prio"),
    Option("poll", ("--poll",), "how busily they wait for the next step: 0 sleeps, 100 never does, which is quicker "
           "only where CPUs are to spare", COMPUTE, int, 0, "N", low=0, high=100, target="pool:poll"),
    Option("batch_size", ("-b", "--batch-size"), "most tokens evaluated in one step", COMPUTE, int, 2048, "N",
           "LLAMA_ARG_BATCH", 1, 2**20),
    Option("ubatch_size", ("-ub", "--ubatch-size"), "most tokens computed at once within a step", COMPUTE, int, 512,
           "N", "LLAMA_ARG_UBATCH", 1, 2**20),
    Option("flash_attn", ("-fa", "--flash-attn"), "flash attention: on, off or auto; without a value on", COMPUTE,
           default=-1, metavar="[WHEN]", env="LLAMA_ARG_FLASH_ATTN", default_2024=0, choices=FLASH_ATTENTION, bare="on",
           target="context:flash_attn_type"),

    Option("bench", ("--bench",), "measure this server on the model instead of serving, print a table and exit; NAMES "
           "are workloads of docs/benchmarks.md, separated by commas", GENERAL, metavar="[NAMES]", bare="own"),
    Option("tune", ("--tune",), "find out which CPU library, and how many threads, the model is quickest with on this "
           "machine; later starts use them", GENERAL, None, False),
    Option("dry_run", ("--dry-run",), "print what the model would take of the memory, and the context and layers that "
           "would be chosen, and exit", DEVICES, None, False),
    Option("list_devices", ("--list-devices",), "show the devices that llama.cpp can compute on and exit", DEVICES,
           None, False),
    Option("devices", ("-dev", "--device"), "devices to use, separated by commas; none stays on the CPU (default: all)",
           DEVICES, to.items, None, "NAMES", "LLAMA_ARG_DEVICE", target="model:devices"),
    Option("rpc", ("--rpc",), "compute on workers, too: other machines that run this program's command rpc-worker, as "
           "HOST:PORT separated by commas; each is a device RPC0, RPC1, ...", DEVICES, to.workers, (), "WORKERS",
           "LLAMA_ARG_RPC"),
    Option("n_gpu_layers", ("-ngl", "--n-gpu-layers", "--gpu-layers"), "layers to put on the GPU; all, auto and -1 are "
           "as many as fit", DEVICES, to.gpu_layers, -1, "N", "LLAMA_ARG_N_GPU_LAYERS", -1, 2**20,
           target="model:n_gpu_layers"),
    Option("fit", ("-fit", "--fit"), "choose the context and the layers on the GPU, where they aren't set, so that the "
           "model fits into memory, and refuse what can't: on or off", DEVICES, default=True, metavar="WHEN",
           env="LLAMA_ARG_FIT", choices={"on": True, "off": False}),
    Option("fit_target", ("-fitt", "--fit-target"), "MiB to leave free on each device, separated by commas; one value "
           "is for all (default: 1024, or an eighth of a small memory)", DEVICES, to.sizes, (), "MIB",
           "LLAMA_ARG_FIT_TARGET"),
    Option("fit_ctx", ("-fitc", "--fit-ctx"), "a context for each slot below which --fit rather leaves layers on the "
           "CPU", DEVICES, int, 4096, "N", "LLAMA_ARG_FIT_CTX", 1, INT_MAX),
    Option("split_mode", ("-sm", "--split-mode"), "how several GPUs share the model: none, layer, row or tensor "
           "(default: layer)", DEVICES, metavar="HOW", env="LLAMA_ARG_SPLIT_MODE", choices=SPLIT_MODES,
           target="model:split_mode"),
    Option("tensor_split", ("-ts", "--tensor-split"), "each GPU's share, e.g. 3,1 (default: by free memory)", DEVICES,
           to.proportions, None, "SHARES", "LLAMA_ARG_TENSOR_SPLIT", target="model:tensor_split"),
    Option("main_gpu", ("-mg", "--main-gpu"), "the GPU for everything (--split-mode none) or for small tensors (row)",
           DEVICES, int, 0, "N", "LLAMA_ARG_MAIN_GPU", 0, 4096, target="model:main_gpu"),
    Option("kv_offload", ("-kvo", "--kv-offload"), "keep the cache on the GPU", DEVICES, None, True,
           env="LLAMA_ARG_KV_OFFLOAD", off_flags=("-nkvo", "--no-kv-offload"), target="context:offload_kqv"),
    Option("op_offload", ("--op-offload",), "let the GPU compute large steps with weights that stay on the CPU",
           DEVICES, None, True, env="LLAMA_ARG_OP_OFFLOAD", off_flags=("--no-op-offload",),
           target="context:op_offload"),
    Option("override_tensor", ("-ot", "--override-tensor"), "put tensors whose names match a regular expression into a "
           "buffer such as CPU or CUDA0; may be repeated", DEVICES, to.buffer_overrides, (), "PATTERN=BUFFER",
           "LLAMA_ARG_OVERRIDE_TENSOR", repeat=True, target="model:tensor_buft_overrides"),
    Option("cpu_moe", ("-cmoe", "--cpu-moe"), "keep all experts' weights on the CPU", DEVICES, None, False,
           env="LLAMA_ARG_CPU_MOE"),
    Option("n_cpu_moe", ("-ncmoe", "--n-cpu-moe"), "keep those of the first N layers on the CPU", DEVICES, int, 0, "N",
           "LLAMA_ARG_N_CPU_MOE", 0, 4096),
    Option("n_cpu_ffn", ("-ncffn", "--n-cpu-ffn"), "keep the dense feed-forward weights of the first N layers on the "
           "CPU", DEVICES, int, 0, "N", "LLAMA_ARG_N_CPU_FFN", 0, 4096),
    Option("cache_type_k", ("-ctk", "--cache-type-k"), "type of the cached keys: f32, f16, bf16, q8_0, q4_0, q4_1, "
           "iq4_nl, q5_0 or q5_1; smaller ones save memory and cost precision", DEVICES, default=1, metavar="TYPE",
           env="LLAMA_ARG_CACHE_TYPE_K", choices=KV_TYPES, target="context:type_k"),
    Option("cache_type_v", ("-ctv", "--cache-type-v"), "type of the cached values; types with a q need flash attention",
           DEVICES, default=1, metavar="TYPE", env="LLAMA_ARG_CACHE_TYPE_V", choices=KV_TYPES, target="context:type_v"),
    Option("memory_f32", ("--memory-f32",), "the same as --cache-type-k f32 --cache-type-v f32", DEVICES, None, False),
    Option("load_mode", ("-lm", "--load-mode"), "how the file gets into memory: auto, none (read), mmap, mlock, "
           "mmap+mlock or dio (direct input)", DEVICES, default=-1, metavar="HOW", env="LLAMA_ARG_LOAD_MODE",
           choices=LOAD_MODES, target="model:load_mode"),
    Option("mlock", ("--mlock",), "keep the model from being swapped out", DEVICES, None, False,
           env="LLAMA_ARG_MLOCK"),
    Option("mmap", ("--mmap",), "map the file into memory; off, it is read", DEVICES, None, True, env="LLAMA_ARG_MMAP",
           off_flags=("--no-mmap",)),
    Option("direct_io", ("-dio", "--direct-io"), "read the file past the system's cache", DEVICES, None, False,
           env="LLAMA_ARG_DIO", off_flags=("-ndio", "--no-direct-io")),
    Option("lazy_mode", ("-lzm", "--lazy-mode"), "read rows of huge tensors from disk when needed: on, off, or auto "
           "for those over 4 GiB", DEVICES, default=1, metavar="WHEN", env="LLAMA_ARG_LAZY_MODE", choices=LAZY_MODES,
           target="model:lazy_mode"),
    Option("repack", ("--repack",), "rearrange weights for this CPU while loading", DEVICES, None, True,
           env="LLAMA_ARG_REPACK", off_flags=("-nr", "--no-repack"), target="model:use_extra_bufts"),
    Option("no_host", ("--no-host",), "leave the GPU's host buffers out, so that rearranged weights can be used",
           DEVICES, None, False, env="LLAMA_ARG_NO_HOST", target="model:no_host"),
    Option("numa", ("--numa",), "on machines with several memory nodes: distribute, isolate, or numactl to keep its "
           "map; without a value distribute", DEVICES, metavar="[HOW]", env="LLAMA_ARG_NUMA", choices=NUMA,
           bare="distribute"),

    Option("rope_scaling", ("--rope-scaling",), "none, linear or yarn (default: the model's, else linear)", ROPE,
           metavar="HOW", env="LLAMA_ARG_ROPE_SCALING_TYPE", choices=ROPE_SCALING, target="context:rope_scaling_type"),
    Option("rope_freq_base", ("--rope-freq-base",), "base frequency (default: the model's)", ROPE, float, None, "N",
           "LLAMA_ARG_ROPE_FREQ_BASE", 0, 1e12, target="context:rope_freq_base"),
    Option("rope_freq_scale", ("--rope-freq-scale",), "frequencies times N: the context grows by 1/N (default: the "
           "model's)", ROPE, float, None, "N", "LLAMA_ARG_ROPE_FREQ_SCALE", 0, 1e6, target="context:rope_freq_scale"),
    Option("rope_scale", ("--rope-scale",), "the context grows by N", ROPE, to.inverse, metavar="N",
           env="LLAMA_ARG_ROPE_SCALE", low=0, high=1e6, dest="rope_freq_scale"),
    Option("yarn_orig_ctx", ("--yarn-orig-ctx",), "YaRN: the context the model was trained with (default: what its "
           "file says)", ROPE, int, None, "N", "LLAMA_ARG_YARN_ORIG_CTX", 0, INT_MAX, target="context:yarn_orig_ctx"),
    Option("yarn_ext_factor", ("--yarn-ext-factor",), "YaRN: how much is extrapolated, 0 for none; below 0 the model's "
           "(default)", ROPE, float, None, "N", "LLAMA_ARG_YARN_EXT_FACTOR", -1, 1e6,
           target="context:yarn_ext_factor"),
    Option("yarn_attn_factor", ("--yarn-attn-factor",), "YaRN: scale of the attention, without effect unless "
           "--yarn-ext-factor is 0 (default: the model's)", ROPE,
           float, None, "N", "LLAMA_ARG_YARN_ATTN_FACTOR", -1, 1e6, target="context:yarn_attn_factor"),
    Option("yarn_beta_slow", ("--yarn-beta-slow",), "YaRN: correction for slow dimensions (default: the model's)", ROPE,
           float, None, "N", "LLAMA_ARG_YARN_BETA_SLOW", -1, 1e6, target="context:yarn_beta_slow"),
    Option("yarn_beta_fast", ("--yarn-beta-fast",), "YaRN: correction for fast dimensions (default: the model's)", ROPE,
           float, None, "N", "LLAMA_ARG_YARN_BETA_FAST", -1, 1e6, target="context:yarn_beta_fast"),
    Option("grp_attn_n", ("-gan", "--grp-attn-n"), "self-extend: fold this many old positions into one; 1 is off", ROPE,
           int, 1, "N", "LLAMA_ARG_GRP_ATTN_N", 1, 65536),
    Option("grp_attn_w", ("-gaw", "--grp-attn-w"), "self-extend: how many positions at a time, a multiple of "
           "--grp-attn-n", ROPE, int, 512, "N", "LLAMA_ARG_GRP_ATTN_W", 1, INT_MAX),

    *SPEC_OPTIONS,

    Option("embeddings", ("--embedding", "--embeddings"), "make the context for embeddings at start, not at the first "
           "request for one; completions stay available", EMBEDDINGS, None, False, env="LLAMA_ARG_EMBEDDINGS"),
    Option("pooling", ("--pooling",), "how the embeddings of tokens become one: none, mean, cls, last or rank "
           "(default: the model's; last where a generative model names none)", EMBEDDINGS, metavar="HOW",
           env="LLAMA_ARG_POOLING", choices=POOLING, target="context:pooling_type"),
    Option("embd_normalize", ("--embd-normalize",), "how embeddings are normalised: -1 not at all, 0 to 32760 at most, "
           "1 taxicab, 2 Euclidean, more a p-norm", EMBEDDINGS, int, 2, "N", low=-1, high=1000,
           target="request:embd_normalize"),
    Option("reranking", ("--rerank", "--reranking"), "the model is a reranker: the same as --embeddings --pooling rank",
           EMBEDDINGS, None, False, env="LLAMA_ARG_RERANKING"),

    Option("open", ("--open",), "open the web page in the browser when the model is ready", SERVER, None, False),
    Option("host", ("--host",), "address to listen on, or the path of a UNIX socket that ends in .sock; several are "
           "separated by commas, or the option is repeated", SERVER, to.hosts, ("127.0.0.1",), "ADDR", "LLAMA_ARG_HOST",
           repeat=True),
    Option("port", ("--port",), "port to listen on; 0 picks a free one", SERVER, int, 8080, "N", "LLAMA_ARG_PORT", 0,
           65535),
    Option("api_prefix", ("--api-prefix",), "path that all URLs begin with, e.g. /llm", SERVER, to.path_prefix, "",
           "PATH", "LLAMA_ARG_API_PREFIX"),
    Option("ui", ("--ui", "--webui"), "serve the web page", SERVER, None, True, env="LLAMA_ARG_UI",
           off_flags=("--no-ui", "--no-webui")),
    Option("path", ("--path",), "folder with the files of the web page (default: the built-in page)", SERVER,
           to.existing_folder, metavar="DIR", env="LLAMA_ARG_STATIC_PATH"),
    Option("timeout", ("-to", "--timeout"), "seconds a client may stay silent while it sends or receives (default: "
           "30)", SERVER, float, None, "S", "LLAMA_ARG_TIMEOUT", 0.1, 86400, default_2024=600.0),
    Option("max_connections", ("--max-connections",), "connections at the same time, each with a thread; more get 503",
           SERVER, int, 512, "N", "LLAMA_SRV_MAX_CONNECTIONS", 1, 100000),
    Option("half_close", ("--half-close",), "answer plain requests also of clients that end their sending side (FIN) "
           "after the request; without it that counts as hanging up, except in streams", SERVER, None, False,
           env="LLAMA_SRV_HALF_CLOSE"),
    Option("rate_limit", ("--rate-limit",), "requests that each API key, or without keys each address, may make: "
           "60/min, 5/s or 1000/h; more get 429 (default: no limit)", SERVER, to.rate, metavar="N/UNIT",
           env="LLAMA_SRV_RATE_LIMIT"),
    Option("max_body", ("--max-body",), "largest request body, in MiB", SERVER, int, 64, "N", "LLAMA_SRV_MAX_BODY", 1,
           65536),
    Option("max_text", ("--max-text",), "longest text that is tokenized at once, in MiB: of a prompt, of /tokenize; it "
           "takes 120 times as much memory meanwhile", SERVER, int, 4, "N", "LLAMA_SRV_MAX_TEXT", 1, 1024),
    Option("drain", ("--drain",), "seconds that running requests get to finish after Ctrl-C or SIGTERM", SERVER, float,
           10.0, "S", "LLAMA_SRV_DRAIN", 0, 86400),
    Option("drain_delay", ("--drain-delay",), "seconds after Ctrl-C or SIGTERM in which requests are still accepted, "
           "while GET /health/ready says 503: for load balancers that have to notice first", SERVER, float, 0.0, "S",
           "LLAMA_SRV_DRAIN_DELAY", 0, 86400),
    Option("sse_ping_interval", ("--sse-ping-interval",), "seconds of silence after which a stream of /v1 carries a "
           "comment, so that nobody takes it for dead; streams of /completion only if it is set; -1 for never", SERVER,
           int, 30, "S", "LLAMA_ARG_SSE_PING_INTERVAL", -1, 86400),
    Option("pid_file", ("--pid-file",), "write the process id to this file while running", SERVER, metavar="FILE",
           env="LLAMA_SRV_PID_FILE"),
    Option("state_file", ("--state-file",), "keep a JSON object with url, pid, model and state (loading, ready, "
           "stopping) in this file while running", SERVER, metavar="FILE", env="LLAMA_SRV_STATE_FILE"),
    Option("debug_stacks", ("--debug-stacks",), "answer POST /debug/stacks with what every Python thread is doing",
           SERVER, None, False, env="LLAMA_SRV_DEBUG_STACKS"),
    Option("stream_interval_ms", ("--stream-interval-ms",), "how long tokens of a stream may wait for the next ones, "
           "to be sent together; tokens of one step share an event, others don't; 0 sends every one at once", SERVER,
           int, 16, "MS", "LLAMA_SRV_STREAM_INTERVAL_MS", 0, 1000),
    Option("store_size", ("--store-size",), "MiB that stored responses and conversations may take (/v1/responses), "
           "and as many more for files (/v1/files); 0 stores none", SERVER, int, 64, "MIB", "LLAMA_SRV_STORE_SIZE", 0,
           1 << 20),
    Option("store_dir", ("--store-dir",), "folder that keeps them over restarts (default: memory); batches need it",
           SERVER, metavar="DIR", env="LLAMA_SRV_STORE_DIR"),
    Option("slots", ("--slots",), "answer GET /slots, which shows what users have written", SERVER, None, True,
           env="LLAMA_ARG_ENDPOINT_SLOTS", off_flags=("--no-slots", "--slots-endpoint-disable")),
    Option("metrics", ("--metrics",), "answer GET /metrics", SERVER, None, False, env="LLAMA_ARG_ENDPOINT_METRICS"),
    Option("props", ("--props",), "allow POST /props", SERVER, None, False, env="LLAMA_ARG_ENDPOINT_PROPS"),
    Option("slot_save_path", ("--slot-save-path",), "folder for saved slots (default: none, slots can't be saved)",
           SERVER, to.existing_folder, metavar="DIR", env="LLAMA_ARG_SLOT_SAVE_PATH"),

    Option("api_key", ("--api-key",), "keys that clients may show, separated by commas; may be repeated; without any, "
           "everybody is served", ACCESS, to.keys, (), "KEY", "LLAMA_API_KEY", repeat=True, secret=True),
    Option("api_key_file", ("--api-key-file",), "file with more keys, one a line, behind it models=A,B for a key that "
           "may use only these; changes are noticed", ACCESS, to.existing_file, metavar="FILE",
           env="LLAMA_ARG_API_KEY_FILE"),
    Option("admin_key", ("--admin-key",), "keys that may do all, also what --manage-models allows, separated by "
           "commas", ACCESS, to.keys, (), "KEY", "LLAMA_SRV_ADMIN_KEY", repeat=True, secret=True),
    Option("manage_models", ("--manage-models",), "let requests with an --admin-key download and remove models, "
           "and give them options", ACCESS, None, False, env="LLAMA_SRV_MANAGE_MODELS"),
    Option("ssl_key_file", ("--ssl-key-file",), "private key for HTTPS, PEM", ACCESS, to.existing_file, metavar="FILE",
           env="LLAMA_ARG_SSL_KEY_FILE"),
    Option("ssl_cert_file", ("--ssl-cert-file",), "certificate for HTTPS, PEM", ACCESS, to.existing_file,
           metavar="FILE", env="LLAMA_ARG_SSL_CERT_FILE"),
    Option("cors_origins", ("--cors-origins",), "web pages of other machines that may use the server, e.g. "
           "https://example.org; * for all", ACCESS, to.origins, (), "ORIGINS", "LLAMA_ARG_CORS_ORIGINS", repeat=True),
    Option("allowed_hosts", ("--allowed-hosts",), "further names for this server, e.g. a proxy's, while it listens on "
           "this machine only; * for any", ACCESS, to.lower_items, (), "NAMES", "LLAMA_SRV_ALLOWED_HOSTS", repeat=True),
) + tuple(
    Option(name, flags, help, REQUESTS, kind, default, "N" if kind in (int, float) else "", env, low, high,
           target=f"request:{name}")
    for name, flags, help, kind, default, low, high, env in (
        ("temperature", ("--temp", "--temperature"), "randomness; 0 always takes the likeliest token", float, 0.8,
         -100, 100, "LLAMA_ARG_TEMPERATURE"),
        ("dynatemp_range", ("--dynatemp-range",), "temperature varies by this much; 0 is off", float, 0.0, 0, 100, ""),
        ("dynatemp_exponent", ("--dynatemp-exp",), "how entropy maps to temperature", float, 1.0, 0, 100, ""),
        ("top_k", ("--top-k",), "only the N likeliest tokens; 0 is off", int, 40, -1, INT_MAX, "LLAMA_ARG_TOP_K"),
        ("top_p", ("--top-p",), "only the likeliest tokens that sum up to N; 1 is off", float, 0.95, 0, 1,
         "LLAMA_ARG_TOP_P"),
        ("min_p", ("--min-p",), "only tokens at least N times as likely as the best; 0 is off", float, 0.05, 0, 1,
         "LLAMA_ARG_MIN_P"),
        ("typical_p", ("--typical", "--typical-p"), "locally typical sampling; 1 is off", float, 1.0, 0, 100, ""),
        ("top_n_sigma", ("--top-nsigma", "--top-n-sigma"), "only logits within N standard deviations of the best; "
         "negative is off", float, -1.0, -1e6, 1e6, ""),
        ("xtc_probability", ("--xtc-probability",), "chance of removing the top choices; 0 is off", float, 0.0, 0, 1,
         ""),
        ("xtc_threshold", ("--xtc-threshold",), "how likely a token must be for XTC to remove it", float, 0.1, 0, 1,
         ""),
        ("repeat_last_n", ("--repeat-last-n",), "how many tokens back penalties look; -1 is the context", int, 64, -1,
         INT_MAX, ""),
        ("presence_penalty", ("--presence-penalty",), "penalty for having occurred", float, 0.0, -1e6, 1e6,
         "LLAMA_ARG_PRESENCE_PENALTY"),
        ("frequency_penalty", ("--frequency-penalty",), "penalty for each occurrence", float, 0.0, -1e6, 1e6,
         "LLAMA_ARG_FREQUENCY_PENALTY"),
        ("dry_multiplier", ("--dry-multiplier",), "strength of the DRY repetition penalty; 0 is off", float, 0.0, 0,
         1e6, ""),
        ("dry_base", ("--dry-base",), "base of the DRY penalty", float, 1.75, 0, 1e6, ""),
        ("dry_allowed_length", ("--dry-allowed-length",), "longest repetition that DRY leaves alone", int, 2, 0,
         INT_MAX, ""),
        ("dry_penalty_last_n", ("--dry-penalty-last-n",), "how many tokens back DRY looks; -1 is the context", int, -1,
         -1, INT_MAX, ""),
        ("mirostat", ("--mirostat",), "0 off, 1 Mirostat, 2 Mirostat 2.0", int, 0, 0, 2, ""),
        ("mirostat_eta", ("--mirostat-lr",), "learning rate of Mirostat", float, 0.1, 0, 1e6, ""),
        ("mirostat_tau", ("--mirostat-ent",), "target entropy of Mirostat", float, 5.0, 0, 1e6, ""),
        ("adaptive_target", ("--adaptive-target",), "probability that adaptive_p aims at; negative is off", float, -1.0,
         -1e6, 1, ""),
        ("adaptive_decay", ("--adaptive-decay",), "how slowly adaptive_p forgets", float, 0.9, 0, 0.99, ""),
        ("seed", ("-s", "--seed"), "seed of the random numbers; -1 draws one", int, -1, -1, 2**32 - 1, ""),
        ("n_keep", ("--keep",), "tokens of the prompt to keep when the context overflows; -1 all", int, 0, -1, INT_MAX,
         ""),
        ("ignore_eos", ("--ignore-eos",), "never end a text by an end-of-text token", None, False, None, None, ""),
    )
) + (
    Option("repeat_penalty", ("--repeat-penalty",), "penalty for tokens that occurred; 1 is off", REQUESTS, float, 1.0,
           "N", "LLAMA_ARG_REPEAT_PENALTY", 1e-6, 1e6, default_2024=1.1, target="request:repeat_penalty"),
    Option("cache_prompt", ("--cache-prompt",), "reuse what a prompt shares with an earlier one", REQUESTS, None, True,
           env="LLAMA_ARG_CACHE_PROMPT", off_flags=("--no-cache-prompt",), default_2024=False,
           target="request:cache_prompt"),
    Option("samplers", ("--samplers",), "which samplers to apply, in order, separated by semicolons", REQUESTS,
           to.sampler_names, ("penalties", "dry", "top_n_sigma", "top_k", "tfs_z", "typical_p", "top_p", "min_p",
                              "xtc", "temperature"), "NAMES", target="request:samplers"),
    Option("sampling_seq", ("--sampler-seq", "--sampling-seq"), "the same with a letter for each, e.g. edskypmxt",
           REQUESTS, to.sampler_sequence, metavar="LETTERS", dest="samplers"),
    Option("dry_sequence_breakers", ("--dry-sequence-breaker",), "a text over which DRY does not look; may be "
           "repeated; none for no such text (default: line break, colon, quote, asterisk)", REQUESTS, to.one_text, None,
           "TEXT", repeat=True, target="request:dry_sequence_breakers"),
    Option("logit_bias", ("-l", "--logit-bias"), "make a token likelier (15043+1) or rarer (15043-1, 15043-inf); may "
           "be repeated", REQUESTS, to.token_bias, (), "ID+BIAS", repeat=True, target="request:logit_bias"),
    Option("reasoning_format", ("--reasoning-format",), "where the reasoning of chats goes: auto or deepseek to "
           "reasoning_content, none leaves it in the text, deepseek-legacy does both", REQUESTS, default="auto",
           metavar="FORMAT", env="LLAMA_ARG_THINK", choices=dict(zip(REASONING_FORMATS, REASONING_FORMATS)),
           target="request:reasoning_format"),
    Option("reasoning", ("-rea", "--reasoning"), "whether a model thinks before it answers a chat: on, off, or auto "
           "for what its template does by itself", REQUESTS, metavar="WHEN", env="LLAMA_ARG_REASONING", bare="on",
           choices={"on": True, "off": False, "auto": None}, target="request:enable_thinking"),
    Option("reasoning_effort", ("--reasoning-effort",), "how much it thinks, in a word that its template knows (low, "
           "medium, high, ...); default for what the template does by itself", REQUESTS, to.unless_default,
           metavar="LEVEL", env="LLAMA_ARG_REASONING_EFFORT", target="request:reasoning_effort"),
    Option("reasoning_budget", ("--reasoning-budget",), "most tokens of reasoning in an answer; 0 is none, -1 no limit",
           REQUESTS, int, -1, "N", "LLAMA_ARG_THINK_BUDGET", -1, INT_MAX, target="request:reasoning_budget_tokens"),
    Option("reasoning_budget_message", ("--reasoning-budget-message",), "text that ends the reasoning when that is "
           "used up", REQUESTS, metavar="TEXT", env="LLAMA_ARG_THINK_BUDGET_MESSAGE", default="",
           target="request:reasoning_budget_message"),
    Option("prefill_assistant", ("--prefill-assistant",), "go on with the assistant's message at the end of a chat; "
           "off: it is a message like others", REQUESTS, None, True, env="LLAMA_ARG_PREFILL_ASSISTANT",
           off_flags=("--no-prefill-assistant",), target="request:continue_final_message"),
    Option("special", ("-sp", "--special"), "show special tokens in the text of answers", REQUESTS, None, False),
    Option("stop", ("-r", "--reverse-prompt"), "a text that ends the answer; may be repeated", REQUESTS, to.one_text,
           (), "TEXT", repeat=True, target="request:stop"),
    Option("escape", ("-e", "--escape"), "read \\n, \\t, \\x1b and so on in the two options for texts above", REQUESTS,
           None, True, off_flags=("--no-escape",)),
    Option("grammar", ("--grammar",), "GBNF grammar that answers must follow", REQUESTS, metavar="GRAMMAR",
           target="request:grammar"),
    Option("grammar_file", ("--grammar-file",), "the same from a file", REQUESTS, to.file_text, metavar="FILE",
           dest="grammar"),
    Option("json_schema", ("-j", "--json-schema"), "JSON schema that answers must follow; {} is any JSON", REQUESTS,
           to.json_schema, metavar="SCHEMA", target="request:json_schema"),
    Option("json_schema_file", ("-jf", "--json-schema-file"), "the same from a file", REQUESTS, to.json_schema_file,
           metavar="FILE", dest="json_schema"),

    Option("verbose", ("-v", "--verbose", "--log-verbose"), "log everything: llama.cpp's own lines, and the requests, "
           "prompt tokens and answers of users", LOGGING, None, False, env="LLAMA_ARG_VERBOSE"),
    Option("log_verbosity", ("-lv", "--verbosity", "--log-verbosity"), "0 nothing, 1 errors, 2 warnings, 3 what "
           "happens, 4 more, 5 everything", LOGGING, int, 3, "N", "LLAMA_ARG_LOG_VERBOSITY", 0, INT_MAX),
    Option("log_format", ("--log-format",), "text, or json with an object in each line", LOGGING, default="text",
           metavar="FORMAT", env="LLAMA_ARG_LOG_FORMAT", default_2024="json",
           choices={"text": "text", "json": "json"}),
    Option("log_jsonl", ("--log-jsonl",), "another way to say --log-format json", LOGGING, None,
           env="LLAMA_ARG_LOG_JSONL", off_flags=("--no-log-jsonl",), dest="log_format",
           choices={"on": "json", "off": "text"}),
    Option("log_file", ("--log-file",), "append to this file too (default: no file)", LOGGING, metavar="FILE",
           env="LLAMA_ARG_LOG_FILE",
           default_2024="llama.log"),
    Option("log_disable", ("--log-disable",), "log nothing; with --compat 2024 to stdout only", LOGGING, None, False),
    Option("log_colors", ("--log-colors",), "colours in the log: on, off, or auto for terminals", LOGGING,
           default="auto", metavar="WHEN", env="LLAMA_ARG_LOG_COLORS", bare="on",
           choices={"on": "on", "off": "off", "auto": "auto"}),
    Option("log_prompts_dir", ("--log-prompts-dir",), "write the prompt of every request into a file of this folder, "
           "which is made if need be", LOGGING, metavar="DIR"),
    Option("record", ("--record",), "append a line for every request for text to this file: what was asked, with what "
           "it was computed, all tokens; see docs/evidence.md", LOGGING, metavar="FILE", env="LLAMA_SRV_RECORD"),
    Option("record_size", ("--record-size",), "what the record may have in all its files; the oldest one is removed",
           LOGGING, int, 1024, "MIB", "LLAMA_SRV_RECORD_SIZE", 1, 2**24),

    Option("bundle", ("--bundle",), "make one executable of this program and a model, and exit; needs the one-file "
           "program (or --base)", BUNDLES, to.existing_file, metavar="MODEL"),
    Option("output", ("-o", "--output"), "what to write (default: the model's name without .gguf)", BUNDLES,
           metavar="FILE"),
    Option("defaults", ("--defaults",), "an option that the bundle starts with, such as ctx-size=4096; may be repeated",
           BUNDLES, to.key_value, (), "NAME=VALUE", repeat=True),
    Option("base", ("--base",), "put the model behind this one-file program instead of this one", BUNDLES,
           to.existing_file, metavar="FILE"),
    Option("side_file", ("--side-file",), "put the model into FILE.bundle beside the program, as is always done for "
           "Windows", BUNDLES, None, False),
    Option("bundle_info", ("--bundle-info",), "show what this bundle, or the one that -m names, holds, and exit",
           BUNDLES, None, False),
    Option("bundle_check", ("--bundle-check",), "compare its program and its parts with their checksums, and exit",
           BUNDLES, None, False),
    Option("unbundle", ("--unbundle",), "take it apart into this folder, and exit", BUNDLES, metavar="DIR"),
)

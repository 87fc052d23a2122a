"""Options of llama-server (v0.5.0 or of 2024) that this server doesn't have.

If a user sets one, the server either warns that it has no effect (`IGNORED`), or refuses to start and says why
(`PLANNED` and `REFUSED`).
"""

from __future__ import annotations

from collections.abc import Iterator

from server.options.row import IGNORED, PLANNED, REFUSED, Option

OLD, CHAT, MEDIA = "Dead options", "Chat", "Images and videos"
SPECULATIVE, MODELS, PAGE = "Speculative decoding", "Ready-made models", "Web page and tools"
TUNING, OTHER = "Tuning", "Other"
OTHER_GROUPS = (OLD, CHAT, MEDIA, SPECULATIVE, MODELS, PAGE, TUNING, OTHER)

THREADS = "the operating system schedules the draft model's threads"
CACHE = "this server's prompt cache has no such setting"
DRAFTS = "this server finds and limits drafts in another way; see --spec-type"
READY_MADE = "name the model itself, with -m FILE or -hf USER/MODEL"
PAGES = "the web page has no such settings"
TOOLS = "this server runs no tools"

# Status, group, note, and a line for each option: flags separated by commas, those that turn it off after a bar, the
# metavar if it takes a value, its environment variable as $NAME.
ROWS: tuple[tuple[str, str, str, str], ...] = (
    (IGNORED, OLD, "llama.cpp applies adapters to the model as it is", """
        --lora-base FILE"""),
    (IGNORED, OLD, "llama.cpp's cache needs no defragmentation", """
        -dt,--defrag-thold N $LLAMA_ARG_DEFRAG_THOLD"""),
    (IGNORED, OLD, "one match is enough for a draft, and sources of bad drafts are turned off", """
        --spec-ngram-min-hits N"""),

    (IGNORED, CHAT, "the chat template decides whether it shows earlier reasoning; see --chat-template-kwargs", """
        --reasoning-preserve|--no-reasoning-preserve $LLAMA_ARG_REASONING_PRESERVE"""),

    (IGNORED, MEDIA, "images are encoded one by one", """
        --mtmd-batch-max-tokens N $LLAMA_ARG_MTMD_BATCH_MAX_TOKENS"""),
    (IGNORED, MEDIA, "this server takes images and sound, but no videos", """
        --video-fps N $LLAMA_ARG_VIDEO_FPS
        --video-timestamp-interval N $LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL
        --video-ffmpeg-dir DIR $LLAMA_ARG_VIDEO_FFMPEG_DIR"""),

    (IGNORED, SPECULATIVE, THREADS, """
        --spec-draft-cpu-mask,-Cd,--cpu-mask-draft M
        --spec-draft-cpu-range,-Crd,--cpu-range-draft LO-HI
        --spec-draft-cpu-strict,--cpu-strict-draft 0/1
        --spec-draft-prio,--prio-draft N
        --spec-draft-poll,--poll-draft N
        --spec-draft-cpu-mask-batch,-Cbd,--cpu-mask-batch-draft M
        --spec-draft-cpu-strict-batch,--cpu-strict-batch-draft 0/1
        --spec-draft-prio-batch,--prio-batch-draft N
        --spec-draft-poll-batch,--poll-batch-draft N"""),
    (REFUSED, SPECULATIVE, "it is for measuring; use --bench", """
        --spec-synth-len L $LLAMA_ARG_SPEC_SYNTH_LEN
        --spec-synth-rates P0,P1 $LLAMA_ARG_SPEC_SYNTH_RATES"""),
    (IGNORED, SPECULATIVE, DRAFTS, """
        --spec-draft-p-split,--draft-p-split P $LLAMA_ARG_SPEC_DRAFT_P_SPLIT
        --spec-draft-backend-sampling|--no-spec-draft-backend-sampling $LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING
        --spec-ngram-mod-n-min N
        --spec-ngram-mod-n-max N
        --spec-ngram-mod-n-match N
        --spec-ngram-simple-min-hits N
        --spec-ngram-map-k-size-n N
        --spec-ngram-map-k-size-m N
        --spec-ngram-map-k-min-hits N
        --spec-ngram-map-k4v-size-n N
        --spec-ngram-map-k4v-size-m N
        --spec-ngram-map-k4v-min-hits N
        -lcs,--lookup-cache-static FILE
        -lcd,--lookup-cache-dynamic FILE"""),

    (REFUSED, MODELS, READY_MADE, """
        -dr,--docker-repo REPO $LLAMA_ARG_DOCKER_REPO
        --embd-gemma-default
        --fim-qwen-1.5b-default
        --fim-qwen-3b-default
        --fim-qwen-7b-default
        --fim-qwen-7b-spec
        --fim-qwen-14b-spec
        --fim-qwen-30b-default
        --gpt-oss-20b-default
        --gpt-oss-120b-default
        --vision-gemma-4b-default
        --vision-gemma-12b-default"""),

    (IGNORED, PAGE, PAGES, """
        --ui-config,--webui-config JSON $LLAMA_ARG_UI_CONFIG
        --ui-config-file,--webui-config-file FILE $LLAMA_ARG_UI_CONFIG_FILE"""),
    (IGNORED, PAGE, "the server sets these headers by itself for each route", """
        --cors-methods METHODS $LLAMA_ARG_CORS_METHODS
        --cors-headers HEADERS $LLAMA_ARG_CORS_HEADERS
        --cors-credentials|--no-cors-credentials $LLAMA_ARG_CORS_CREDENTIALS"""),
    (REFUSED, PAGE, TOOLS, """
        --ui-mcp-proxy,--webui-mcp-proxy|--no-ui-mcp-proxy,--no-webui-mcp-proxy $LLAMA_ARG_UI_MCP_PROXY
        --tools NAMES $LLAMA_ARG_TOOLS
        --tools-runtime NAME $LLAMA_ARG_TOOLS_RUNTIME
        --mcp-servers-config FILE $LLAMA_ARG_MCP_SERVERS_CONFIG
        --mcp-servers-json JSON $LLAMA_ARG_MCP_SERVERS_JSON
        -ag,--agent|-no-ag,--no-agent $LLAMA_ARG_AGENT"""),

    (IGNORED, TUNING, "the same threads compute prefill and decoding", """
        -Cb,--cpu-mask-batch M
        -Crb,--cpu-range-batch LO-HI
        --cpu-strict-batch 0/1
        --prio-batch N
        --poll-batch N"""),
    (IGNORED, TUNING, "each connection has its own thread; see --max-connections", """
        --threads-http N $LLAMA_ARG_THREADS_HTTP"""),
    (IGNORED, TUNING, CACHE, """
        --cache-idle-slots|--no-cache-idle-slots $LLAMA_ARG_CACHE_IDLE_SLOTS
        --cache-reuse N $LLAMA_ARG_CACHE_REUSE
        -sps,--slot-prompt-similarity N"""),
    (IGNORED, TUNING, "sampling always runs on the CPU", """
        -bs,--backend-sampling $LLAMA_ARG_BACKEND_SAMPLING"""),
    (IGNORED, TUNING, "llama.cpp's own timings are off; answers and /metrics have timings of this server", """
        --perf|--no-perf $LLAMA_ARG_PERF"""),

    (IGNORED, OTHER, "log lines always have a time and the name of the part of the server", """
        --log-prefix|--no-log-prefix $LLAMA_ARG_LOG_PREFIX
        --log-timestamps|--no-log-timestamps $LLAMA_ARG_LOG_TIMESTAMPS"""),
    (PLANNED, OTHER, "this version doesn't support control vectors", """
        --control-vector FILE
        --control-vector-scaled FILE:SCALE
        --control-vector-layer-range START"""),
    (REFUSED, OTHER, "several servers can't share a port here", """
        --reuse-port $LLAMA_ARG_REUSE_PORT"""),
    (REFUSED, OTHER, "prompts come from requests", """
        -f,--file FILE
        -bf,--binary-file FILE"""),
)


def _list_options() -> Iterator[Option]:
    for status, group, note, lines in ROWS:
        for line in filter(None, map(str.strip, lines.splitlines())):
            spellings, *rest = line.split()
            flags, _, off_flags = spellings.partition("|")
            env = rest.pop()[1:] if rest and rest[-1].startswith("$") else ""
            longest = max(flags.split(","), key=len)
            yield Option(longest.lstrip("-").replace("-", "_").replace(".", "_"), tuple(flags.split(",")), note, group,
                         str if rest else None, metavar=rest[0] if rest else "", env=env,
                         off_flags=tuple(filter(None, off_flags.split(","))), status=status, note=note)


OTHER_OPTIONS: tuple[Option, ...] = tuple(_list_options())

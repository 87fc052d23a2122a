"""Options that are known from llama-server or from 2024, but do nothing here: yet, or for ever.

Data only, a leaf. A launch script that names one should either start all the same, with a line in the log that says
what the option does not do, or end with the line that says why: what is right depends on whether somebody would miss
the effect. `IGNORED` rows are about speed, memory or looks; `PLANNED` and `REFUSED` ones change what is answered.
"""

from __future__ import annotations

from collections.abc import Iterator

from server.options.row import IGNORED, PLANNED, REFUSED, Option

OLD, CHAT, MEDIA = "Dead options", "Chat", "Images and videos"
SPECULATIVE, MODELS, PAGE = "Speculative decoding", "Ready-made models", "Web page and tools"
TUNING, OTHER = "Tuning", "Other"
OTHER_GROUPS = (OLD, CHAT, MEDIA, SPECULATIVE, MODELS, PAGE, TUNING, OTHER)

SYSTEM_PLACES = "the system places its threads"
CACHE = "this server's prompt cache works without such a limit"
DRAFTS = "drafts are found and bounded in another way here; see --spec-type"
READY_MADE = "name the model itself, with -m FILE or -hf USER/MODEL"
PAGES = "the web page has no settings of this kind yet"
TOOLS = "this server runs no tools"

# status, group, note; then per line: flags separated by commas, off flags behind a bar, metavar if there is a value,
# variable if there is one as $NAME
ROWS: tuple[tuple[str, str, str, str], ...] = (
    (IGNORED, OLD, "llama.cpp applies adapters to the model as it is", """
        --lora-base FILE"""),
    (IGNORED, OLD, "llama.cpp keeps its cache in order by itself", """
        -dt,--defrag-thold N $LLAMA_ARG_DEFRAG_THOLD"""),
    (IGNORED, OLD, "one earlier place is enough for a draft, and bad ones are recognised", """
        --spec-ngram-min-hits N"""),

    (IGNORED, CHAT, "a template shows earlier reasoning as it likes; see --chat-template-kwargs", """
        --reasoning-preserve|--no-reasoning-preserve $LLAMA_ARG_REASONING_PRESERVE"""),

    (IGNORED, MEDIA, "images are encoded one by one", """
        --mtmd-batch-max-tokens N $LLAMA_ARG_MTMD_BATCH_MAX_TOKENS"""),
    (IGNORED, MEDIA, "this server takes images and sound, no videos", """
        --video-fps N $LLAMA_ARG_VIDEO_FPS
        --video-timestamp-interval N $LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL
        --video-ffmpeg-dir DIR $LLAMA_ARG_VIDEO_FFMPEG_DIR"""),

    (IGNORED, SPECULATIVE, SYSTEM_PLACES, """
        --spec-draft-cpu-mask,-Cd,--cpu-mask-draft M
        --spec-draft-cpu-range,-Crd,--cpu-range-draft LO-HI
        --spec-draft-cpu-strict,--cpu-strict-draft 0/1
        --spec-draft-prio,--prio-draft N
        --spec-draft-poll,--poll-draft N
        --spec-draft-cpu-mask-batch,-Cbd,--cpu-mask-batch-draft M
        --spec-draft-cpu-strict-batch,--cpu-strict-batch-draft 0/1
        --spec-draft-prio-batch,--prio-batch-draft N
        --spec-draft-poll-batch,--poll-batch-draft N"""),
    (REFUSED, SPECULATIVE, "only measures; --bench does that here", """
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
    (IGNORED, PAGE, "the answers say what each route and each page may do", """
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

    (IGNORED, TUNING, "prompts are read by the threads that generate", """
        -Cb,--cpu-mask-batch M
        -Crb,--cpu-range-batch LO-HI
        --cpu-strict-batch 0/1
        --prio-batch N
        --poll-batch N"""),
    (IGNORED, TUNING, "each connection has a thread of its own, see --max-connections", """
        --threads-http N $LLAMA_ARG_THREADS_HTTP"""),
    (IGNORED, TUNING, CACHE, """
        --cache-idle-slots|--no-cache-idle-slots $LLAMA_ARG_CACHE_IDLE_SLOTS
        --cache-reuse N $LLAMA_ARG_CACHE_REUSE
        -sps,--slot-prompt-similarity N"""),
    (IGNORED, TUNING, "tokens are always chosen on the CPU", """
        -bs,--backend-sampling $LLAMA_ARG_BACKEND_SAMPLING"""),
    (IGNORED, TUNING, "llama.cpp's own timings are off; answers and /metrics have this server's", """
        --perf|--no-perf $LLAMA_ARG_PERF"""),

    (IGNORED, OTHER, "log lines always have a time and the name of a part of the server", """
        --log-prefix|--no-log-prefix $LLAMA_ARG_LOG_PREFIX
        --log-timestamps|--no-log-timestamps $LLAMA_ARG_LOG_TIMESTAMPS"""),
    (PLANNED, OTHER, "control vectors are not supported yet by this version", """
        --control-vector FILE
        --control-vector-scaled FILE:SCALE
        --control-vector-layer-range START"""),
    (REFUSED, OTHER, "several servers can't share a port here", """
        --reuse-port $LLAMA_ARG_REUSE_PORT"""),
    (REFUSED, OTHER, "a server takes its prompts from requests", """
        -f,--file FILE
        -bf,--binary-file FILE"""),
)


def _options() -> Iterator[Option]:
    for status, group, note, lines in ROWS:
        for line in filter(None, map(str.strip, lines.splitlines())):
            spellings, *rest = line.split()
            flags, _, off_flags = spellings.partition("|")
            env = rest.pop()[1:] if rest and rest[-1].startswith("$") else ""
            longest = max(flags.split(","), key=len)
            yield Option(longest.lstrip("-").replace("-", "_").replace(".", "_"), tuple(flags.split(",")), note, group,
                         str if rest else None, metavar=rest[0] if rest else "", env=env,
                         off_flags=tuple(filter(None, off_flags.split(","))), status=status, note=note)


OTHER_OPTIONS: tuple[Option, ...] = tuple(_options())

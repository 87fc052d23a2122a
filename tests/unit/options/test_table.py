"""The real table of options: documented and llama-server's options, contradictions, and where values go."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from server.api.request import sampling, schema
from server.api.request.fields import CHAT_FIELDS, COMPLETION, EMBEDDING_FIELDS
from server.engine.seam.task import SAMPLER_ALIASES, SAMPLER_NAMES, SamplingParams
from server.options import row as option_row
from server.options.groups import group
from server.options.parser import (
    ALL_OPTIONS,
    GROUPS,
    OPTIONS,
    OTHER_GROUPS,
    OTHER_OPTIONS,
    OptionError,
    Settings,
    list_compat_rows,
    parse,
)
from server.options.row import IGNORED, PLANNED, REFUSED, SAME, WORKS

# llama-server v0.5.0: the flags of each option and its variable ($X is LLAMA_ARG_X unless it has another prefix)
UPSTREAM = """
-h --help --usage ; --version ; -cl --cache-list ; --completion-bash ; -t --threads $THREADS
-tb --threads-batch ; -C --cpu-mask ; -Cr --cpu-range ; --cpu-strict ; --prio ; --poll ; -Cb --cpu-mask-batch
-Crb --cpu-range-batch ; --cpu-strict-batch ; --prio-batch ; --poll-batch ; -c --ctx-size $CTX_SIZE
-n --predict --n-predict $N_PREDICT ; -b --batch-size $BATCH ; -ub --ubatch-size $UBATCH ; --keep
--swa-full $SWA_FULL ; -fa --flash-attn $FLASH_ATTN ; --perf --no-perf $PERF ; -e --escape --no-escape
--rope-scaling $ROPE_SCALING_TYPE ; --rope-scale $ROPE_SCALE ; --rope-freq-base $ROPE_FREQ_BASE
--rope-freq-scale $ROPE_FREQ_SCALE ; --yarn-orig-ctx $YARN_ORIG_CTX ; --yarn-ext-factor $YARN_EXT_FACTOR
--yarn-attn-factor $YARN_ATTN_FACTOR ; --yarn-beta-slow $YARN_BETA_SLOW ; --yarn-beta-fast $YARN_BETA_FAST
-kvo --kv-offload -nkvo --no-kv-offload $KV_OFFLOAD ; --repack -nr --no-repack $REPACK ; --no-host $NO_HOST
-ctk --cache-type-k $CACHE_TYPE_K ; -ctv --cache-type-v $CACHE_TYPE_V ; -dt --defrag-thold $DEFRAG_THOLD
--rpc $RPC ; -lm --load-mode $LOAD_MODE ; -lzm --lazy-mode $LAZY_MODE ; --numa $NUMA ; -dev --device $DEVICE
--list-devices ; -ot --override-tensor $OVERRIDE_TENSOR ; -cmoe --cpu-moe $CPU_MOE
-ncmoe --n-cpu-moe $N_CPU_MOE ; -ncffn --n-cpu-ffn $N_CPU_FFN ; -ngl --gpu-layers --n-gpu-layers $N_GPU_LAYERS
-sm --split-mode $SPLIT_MODE ; -ts --tensor-split $TENSOR_SPLIT ; -mg --main-gpu $MAIN_GPU ; -fit --fit $FIT
-fitt --fit-target $FIT_TARGET ; -fitc --fit-ctx $FIT_CTX ; --check-tensors ; --override-kv
--op-offload --no-op-offload ; --lora ; --lora-scaled ; --control-vector ; --control-vector-scaled
--control-vector-layer-range ; -m --model $MODEL ; -mu --model-url $MODEL_URL ; -dr --docker-repo $DOCKER_REPO
-hf -hfr --hf-repo $HF_REPO ; -hff --hf-file $HF_FILE ; -hft --hf-token $HF_TOKEN ; --log-disable
--log-file $LOG_FILE ; --log-jsonl --no-log-jsonl $LOG_JSONL ; --log-colors $LOG_COLORS
-v --verbose --log-verbose ; --offline $OFFLINE ; -lv --verbosity --log-verbosity $LOG_VERBOSITY
--log-prefix --no-log-prefix $LOG_PREFIX ; --log-timestamps --no-log-timestamps $LOG_TIMESTAMPS
--spec-draft-type-k -ctkd --cache-type-k-draft $SPEC_DRAFT_CACHE_TYPE_K
--spec-draft-type-v -ctvd --cache-type-v-draft $SPEC_DRAFT_CACHE_TYPE_V ; --samplers ; -s --seed
--sampler-seq --sampling-seq ; --ignore-eos ; --temp --temperature $TEMPERATURE ; --top-k $TOP_K
--top-p $TOP_P ; --min-p $MIN_P ; --top-nsigma --top-n-sigma ; --xtc-probability ; --xtc-threshold
--typical --typical-p ; --repeat-last-n ; --repeat-penalty $REPEAT_PENALTY
--presence-penalty $PRESENCE_PENALTY ; --frequency-penalty $FREQUENCY_PENALTY ; --dry-multiplier ; --dry-base
--dry-allowed-length ; --dry-penalty-last-n ; --dry-sequence-breaker ; --adaptive-target ; --adaptive-decay
--dynatemp-range ; --dynatemp-exp ; --mirostat ; --mirostat-lr ; --mirostat-ent ; -l --logit-bias ; --grammar
--grammar-file ; -j --json-schema ; -jf --json-schema-file ; -bs --backend-sampling $BACKEND_SAMPLING
-lcs --lookup-cache-static ; -lcd --lookup-cache-dynamic ; --kv-unified-per-slot $KV_UNIFIED_PER_SLOT
-ctxcp --ctx-checkpoints --swa-checkpoints $CTX_CHECKPOINTS
-cms --checkpoint-min-step $CHECKPOINT_MIN_SPACING_NT ; -cram --cache-ram $CACHE_RAM
-kvu --kv-unified -no-kvu --no-kv-unified $KV_UNIFIED
--cache-idle-slots --no-cache-idle-slots $CACHE_IDLE_SLOTS ; --context-shift --no-context-shift $CONTEXT_SHIFT
-r --reverse-prompt ; -sp --special ; --warmup --no-warmup ; --spm-infill ; --pooling $POOLING
-np --parallel $N_PARALLEL ; -cb --cont-batching -nocb --no-cont-batching $CONT_BATCHING ; -mm --mmproj $MMPROJ
-mmu --mmproj-url $MMPROJ_URL ; --mmproj-auto --no-mmproj --no-mmproj-auto $MMPROJ_AUTO
--mmproj-offload --no-mmproj-offload $MMPROJ_OFFLOAD ; -mmdev --mmproj-device $MTMD_BACKEND_DEVICE
--image-min-tokens $IMAGE_MIN_TOKENS ; --image-max-tokens $IMAGE_MAX_TOKENS
--mtmd-batch-max-tokens $MTMD_BATCH_MAX_TOKENS ; --video-fps $VIDEO_FPS
--video-timestamp-interval $VIDEO_TIMESTAMP_INTERVAL ; --video-ffmpeg-dir $VIDEO_FFMPEG_DIR ; -a --alias $ALIAS
--tags $TAGS ; --embd-normalize ; --host $HOST ; --port $PORT ; --reuse-port $REUSE_PORT ; --path $STATIC_PATH
--cors-origins $CORS_ORIGINS ; --cors-methods $CORS_METHODS ; --cors-headers $CORS_HEADERS
--cors-credentials --no-cors-credentials $CORS_CREDENTIALS ; --api-prefix $API_PREFIX
--ui-config --webui-config $UI_CONFIG ; --ui-config-file --webui-config-file $UI_CONFIG_FILE
--ui-mcp-proxy --webui-mcp-proxy --no-ui-mcp-proxy --no-webui-mcp-proxy $UI_MCP_PROXY ; --tools $TOOLS
--tools-runtime $TOOLS_RUNTIME ; --mcp-servers-config $MCP_SERVERS_CONFIG ; --mcp-servers-json $MCP_SERVERS_JSON
-ag --agent -no-ag --no-agent $AGENT ; --ui --webui --no-ui --no-webui $UI
--embedding --embeddings $EMBEDDINGS ; --rerank --reranking $RERANKING ; --api-key $LLAMA_API_KEY
--api-key-file $API_KEY_FILE ; --ssl-key-file $SSL_KEY_FILE ; --ssl-cert-file $SSL_CERT_FILE
--chat-template-kwargs $CHAT_TEMPLATE_KWARGS ; -to --timeout $TIMEOUT ; --sse-ping-interval $SSE_PING_INTERVAL
--threads-http $THREADS_HTTP ; --cache-prompt --no-cache-prompt $CACHE_PROMPT ; --cache-reuse $CACHE_REUSE
--metrics $ENDPOINT_METRICS ; --props $ENDPOINT_PROPS ; --slots --no-slots $ENDPOINT_SLOTS ; --slot-save-path
--media-path ; --models-dir $MODELS_DIR ; --models-preset $MODELS_PRESET ; --models-max $MODELS_MAX
--models-autoload --no-models-autoload $MODELS_AUTOLOAD ; --jinja --no-jinja $JINJA ; --reasoning-format $THINK
-rea --reasoning $REASONING ; --reasoning-effort $REASONING_EFFORT ; --reasoning-budget $THINK_BUDGET
--reasoning-budget-message $THINK_BUDGET_MESSAGE
--reasoning-preserve --no-reasoning-preserve $REASONING_PRESERVE ; --chat-template $CHAT_TEMPLATE
--chat-template-file $CHAT_TEMPLATE_FILE ; --skip-chat-parsing --no-skip-chat-parsing $SKIP_CHAT_PARSING
--prefill-assistant --no-prefill-assistant $PREFILL_ASSISTANT ; -sps --slot-prompt-similarity
--lora-init-without-apply ; --sleep-idle-seconds ; --log-prompts-dir
--spec-draft-hf -hfd -hfrd --hf-repo-draft $SPEC_DRAFT_HF_REPO ; --spec-draft-threads -td --threads-draft
--spec-draft-threads-batch -tbd --threads-batch-draft ; --spec-draft-cpu-mask -Cd --cpu-mask-draft
--spec-draft-cpu-range -Crd --cpu-range-draft ; --spec-draft-cpu-strict --cpu-strict-draft
--spec-draft-prio --prio-draft ; --spec-draft-poll --poll-draft
--spec-draft-cpu-mask-batch -Cbd --cpu-mask-batch-draft ; --spec-draft-cpu-strict-batch --cpu-strict-batch-draft
--spec-draft-prio-batch --prio-batch-draft ; --spec-draft-poll-batch --poll-batch-draft
--spec-draft-override-tensor -otd --override-tensor-draft
--spec-draft-cpu-moe -cmoed --cpu-moe-draft $SPEC_DRAFT_CPU_MOE
--spec-draft-n-cpu-moe --spec-draft-ncmoe -ncmoed --n-cpu-moe-draft $SPEC_DRAFT_N_CPU_MOE
--spec-draft-n-max $SPEC_DRAFT_N_MAX ; --spec-draft-n-min $SPEC_DRAFT_N_MIN ; --spec-synth-len $SPEC_SYNTH_LEN
--spec-synth-rates $SPEC_SYNTH_RATES ; --spec-draft-p-split --draft-p-split $SPEC_DRAFT_P_SPLIT
--spec-draft-p-min --draft-p-min $SPEC_DRAFT_P_MIN
--spec-draft-backend-sampling --no-spec-draft-backend-sampling $SPEC_DRAFT_BACKEND_SAMPLING
--spec-draft-device -devd --device-draft
--spec-draft-ngl -ngld --gpu-layers-draft --n-gpu-layers-draft $N_GPU_LAYERS_DRAFT
--spec-draft-model -md --model-draft $SPEC_DRAFT_MODEL ; --spec-type $SPEC_TYPE ; --spec-ngram-mod-n-min
--spec-ngram-mod-n-max ; --spec-ngram-mod-n-match ; --spec-ngram-simple-size-n ; --spec-ngram-simple-size-m
--spec-ngram-simple-min-hits ; --spec-ngram-map-k-size-n ; --spec-ngram-map-k-size-m
--spec-ngram-map-k-min-hits ; --spec-ngram-map-k4v-size-n ; --spec-ngram-map-k4v-size-m
--spec-ngram-map-k4v-min-hits ; --draft --draft-n --draft-max $DRAFT_MAX ; --draft-min --draft-n-min $DRAFT_MIN
--spec-ngram-size-n ; --spec-ngram-size-m ; --spec-ngram-min-hits ; --embd-gemma-default
--fim-qwen-1.5b-default ; --fim-qwen-3b-default ; --fim-qwen-7b-default ; --fim-qwen-7b-spec
--fim-qwen-14b-spec ; --fim-qwen-30b-default ; --gpt-oss-20b-default ; --gpt-oss-120b-default
--vision-gemma-4b-default ; --vision-gemma-12b-default ; --spec-default
"""
# the documents of March and July 2024: every spelling, with a value where there is one
DOCUMENTS = """
-v --verbose | -t 3 --threads 3 | -tb 3 --threads-batch 3 | --threads-http 3 | -m x --model x
-mu http://h/x --model-url http://h/x | -hfr u/m --hf-repo u/m | -hfr u/m -hff x | -hfr u/m --hf-file x | -a x --alias x
-c 9 --ctx-size 9 | -ngl 9 --n-gpu-layers 9 | -mg 0 --main-gpu 0 | -ts 3,2 --tensor-split 3,2 | -b 512 --batch-size 512
-ub 9 --ubatch-size 9 | --memory-f32 | --mlock | --no-mmap | --numa | --numa distribute | --numa isolate
--numa numactl | --lora FILE | --lora-base x | -to 9 --timeout 9 | --host 0.0.0.0 | --port 9 | --path FOLDER
--api-key a --api-key b | --api-key-file FILE | -np 2 --parallel 2 | -cb --cont-batching | -spf FILE
--system-prompt-file FILE | --grp-attn-n 4 | --grp-attn-w 64 | -n 9 --n-predict 9 | --slots-endpoint-disable | --metrics
--slot-save-path FOLDER | --log-disable | --log-format json | --log-format text | --rope-scaling none
--rope-scaling linear | --rope-scaling yarn | --rope-freq-base 10000 | --rope-freq-scale 0.25 | --yarn-ext-factor 1.0
--yarn-attn-factor 1.0 | --yarn-beta-slow 1.0 | --yarn-beta-fast 32.0 | --pooling none | --pooling mean | --pooling cls
-dt 0.1 --defrag-thold 0.1 | -fa | --flash-attn | -ctk q8_0 --cache-type-k iq4_nl | -ctv f16 --cache-type-v f32
--spm-infill | --ssl-key-file FILE --ssl-cert-file FILE
"""


def upstream() -> list[tuple[str, ...]]:
    """(flag..., variable or "") of each of llama-server's options."""
    found = []
    for text in " ; ".join(UPSTREAM.strip().splitlines()).split(" ; "):
        *flags, last = text.split()
        name = last[1:] if last.startswith("$") else ""
        own = ("HF_TOKEN", "LLAMA_API_KEY", "MTMD_BACKEND_DEVICE")
        found.append((*flags, *(() if name else (last,)), name and (name if name in own else f"LLAMA_ARG_{name}")))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("{}", encoding="utf-8")
    return path


# ---- the rows ----------------------------------------------------------------------------------------------------


def test_no_two_options_share_a_name_a_flag_or_a_variable():
    for names in (
        [option.name for option in ALL_OPTIONS],
        [flag for option in ALL_OPTIONS for flag in option.flags + option.off_flags],
        [option.env for option in ALL_OPTIONS if option.env],
        [option.target for option in ALL_OPTIONS if option.target],
    ):
        assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("option", ALL_OPTIONS, ids=lambda option: option.name)
def test_every_row_is_sound(option):
    works = option.status == WORKS
    assert option.group in (GROUPS if works else OTHER_GROUPS) and option.help and option.flags
    assert option.status in (WORKS, IGNORED, PLANNED, REFUSED) and bool(option.note) is not works
    assert all(
        re.fullmatch(r"-[a-zA-Z]{1,6}|-no-[a-z]{2,3}|--[a-z0-9][a-z0-9.-]*", flag)
        for flag in option.flags + option.off_flags
    )
    assert bool(option.metavar) is (option.type is not None), "a value has a name, a switch has none"
    assert option.off_flags == () or option.type is None
    assert option.dest in ("", *(row.name for row in OPTIONS))
    assert option.type not in (int, float) or option.low is not None and option.high is not None, "NaN would pass"
    if option.type is None and works:
        assert isinstance(option.default, bool) or option.dest or option.default is None and option.off_flags
    for default in (option.default, option.default_2024):
        if option.low is not None and isinstance(default, (int, float)):
            assert option.low <= default <= option.high
        if option.choices and not option.dest and default not in (None, SAME):
            assert default in option.choices.values()


@pytest.mark.parametrize("names", upstream(), ids=lambda names: names[0])
def test_every_option_of_llama_server_is_one_row_with_the_same_variable(names):
    *flags, variable = names
    by_flag = {flag: option for option in ALL_OPTIONS for flag in option.flags + option.off_flags}
    rows = {by_flag[flag].name: by_flag[flag] for flag in flags}
    assert len(rows) == 1
    (row,) = rows.values()
    assert variable in ("", row.env)


@pytest.mark.parametrize("line", [part.strip() for part in DOCUMENTS.replace("\n", "|").split("|") if part.strip()])
def test_every_flag_of_the_documents_is_taken_in_both_profiles(line, file):
    argv = [str({"FILE": file, "FOLDER": file.parent}.get(word, word)) for word in line.split()]
    for profile in ("modern", "2024"):
        parse(["--compat", profile, *argv], {})


@pytest.mark.covers("C21", "C50", "C04")
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--lora-base", "x.gguf"], "adapters"),
        (["-dt", "0.1"], "cache"),
        (["--defrag-thold=-1"], "cache"),
        (["--threads-http", "8"], "--max-connections"),
    ],
)
def test_dead_options_are_taken_and_say_why_they_do_nothing(argv, words):
    (warning,) = parse([*argv, *argv], {}).warnings
    assert warning.startswith(argv[0].partition("=")[0]) and words in warning


@pytest.mark.parametrize("option", OTHER_OPTIONS, ids=lambda option: option.name)
def test_what_has_no_effect_either_warns_or_ends_in_one_line(option):
    for flag in option.flags + option.off_flags:
        argv = [flag] if option.type is None else [flag, "5"]
        if option.status == IGNORED:
            assert parse(argv, {}).warnings == (f"{flag} has no effect: {option.note}",)
        else:
            with pytest.raises(OptionError, match=re.escape(f"{flag}: {option.note}")):
                parse(argv, {})


def test_a_yarn_factor_that_llama_cpp_overrides_is_warned_about():
    yarn = ["--rope-scaling", "yarn", "--yarn-attn-factor", "2"]
    (warning,) = parse(yarn, {}).warnings
    assert "--yarn-attn-factor" in warning and "--yarn-ext-factor is 0" in warning
    assert parse([*yarn, "--yarn-ext-factor", "0"], {}).warnings == parse(yarn[2:], {}).warnings == ()


# ---- defaults and profiles ---------------------------------------------------------------------------------------


def native_params(settings: Settings) -> tuple[dict[str, object], dict[str, object]]:
    """What goes to llama.cpp for the model and for the context."""
    model = group(settings).model
    return model.model_params, model.context_params


def request_defaults(settings: Settings) -> dict[str, object]:
    """What requests get that don't say otherwise."""
    return group(settings).model.requests.values


def test_the_defaults_of_today():
    o = parse([], {})
    assert (o.files, o.ctx_size, o.parallel, o.n_predict, o.threads) == ((), None, 1, -1, -1)
    assert (o.host, o.port, o.batch_size, o.ubatch_size) == (("127.0.0.1",), 8080, 2048, 512)
    assert (o.context_shift, o.cont_batching, o.slots, o.metrics, o.props) == (False, True, True, False, False)
    assert (o.log_format, o.log_file, o.log_disable, o.log_verbosity) == ("text", None, False, 3)
    assert (o.api_key, o.lora, o.cors_origins, o.allowed_hosts, o.tags) == ((), (), (), (), ())
    assert (o.grp_attn_n, o.grp_attn_w, o.numa, o.timeout) == (1, 512, None, None)
    assert native_params(o) == ({}, {}) and request_defaults(o) == {} and o.warnings == ()


@pytest.mark.covers("C10", "C14")
def test_the_defaults_of_2024():
    o = parse(["--compat", "2024"], {})
    assert (o.ctx_size, o.batch_size, o.ubatch_size, o.parallel, o.n_predict) == (512, 2048, 512, 1, -1)
    assert (o.context_shift, o.cont_batching, o.timeout) == (True, False, 600.0)
    assert (o.log_format, o.log_file) == ("json", "llama.log")
    assert native_params(o) == ({}, {"flash_attn_type": 0})
    assert request_defaults(o) == {"cache_prompt": False, "repeat_penalty": 1.1, "penalties_first": True}


def test_each_default_of_2024_gives_way_to_the_user():
    o = parse(
        [
            "--compat",
            "2024",
            "-c",
            "0",
            "--no-context-shift",
            "-cb",
            "-fa",
            "auto",
            "--repeat-penalty",
            "1",
            "--cache-prompt",
            "--log-format",
            "text",
            "-to",
            "5",
        ],
        {},
    )
    assert (o.ctx_size, o.context_shift, o.cont_batching, o.log_format, o.timeout) == (0, False, True, "text", 5)
    assert native_params(o) == ({}, {"flash_attn_type": -1})
    assert request_defaults(o) == {"cache_prompt": True, "repeat_penalty": 1.0, "penalties_first": True}


def test_the_table_of_differences_has_every_one():
    rows = list_compat_rows()
    for option in OPTIONS:
        found = [row for row in rows if row[0] in option.flags]
        assert len(found) == (option.default_2024 is not SAME)
    assert all(what and modern != old and modern and old for _, what, modern, old in rows)
    assert ("--flash-attn", "auto", "off") in [(flag, modern, old) for flag, _, modern, old in rows]


@pytest.mark.parametrize(
    "option", [row for row in OPTIONS if row.target.startswith("request:")], ids=lambda option: option.name
)
def test_request_defaults_have_the_names_limits_and_defaults_of_request_fields(option):
    name = option.target.partition(":")[2]
    if name == "json_schema":
        return  # not a field yet
    rows = (*schema.SAMPLING_FIELDS, *schema.COMPLETION_FIELDS, *EMBEDDING_FIELDS, *CHAT_FIELDS)
    field = {row.name: row for row in rows}[name]
    if option.type in (int, float):
        assert field.kind is option.type
        # an infinite limit of a field is a large number here, since nobody writes infinity on a command line
        assert (max(field.low, -1e6), min(field.high, 1e12)) == (option.low, option.high)
    if option.default not in (None, ()):
        assert option.default == field.default
    known = {row.name for row in (*fields(SamplingParams), *rows)}
    assert name in known


def test_samplers_have_the_names_of_the_engine():
    assert option_row.SAMPLER_LETTERS == sampling.SAMPLER_LETTERS
    assert sorted(option_row.SAMPLER_LETTERS.values()) == sorted(SAMPLER_NAMES)
    assert option_row.SAMPLER_ALIASES == SAMPLER_ALIASES


# ---- values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["-np", "auto"], "parallel", 4),
        (["-np", "-1"], "parallel", 4),
        (["-np", "3"], "parallel", 3),
        (["-ngl", "all"], "n_gpu_layers", -1),
        (["-ngl", "auto"], "n_gpu_layers", -1),
        (["-ngl", "-2"], "n_gpu_layers", -1),
        (["-ngl", "99"], "n_gpu_layers", 99),
        (["--api-key", "a,b", "--api-key", "c"], "api_key", ("a", "b", "c")),
        (["--tags", "x, y"], "tags", ("x", "y")),
        (["--cors-origins", "https://A.example/,*"], "cors_origins", ("https://a.example", "*")),
        (["--cors-origins", "localhost"], "cors_origins", ()),
        (["--allowed-hosts", "Proxy,B"], "allowed_hosts", ("proxy", "b")),
        (["--api-prefix", "/llm/"], "api_prefix", "/llm"),
        (["--api-prefix", "/"], "api_prefix", ""),
        (["--context-overflow", "shift"], "context_shift", True),
        (["--context-overflow", "error"], "context_shift", False),
        (["--context-shift", "--context-overflow", "error"], "context_shift", False),
        (["--log-jsonl"], "log_format", "json"),
        (["--numa"], "numa", 1),
        (["--numa", "numactl"], "numa", 3),
        (["--host", " ::1 "], "host", ("::1",)),
        (["--host", "x.sock, ::1", "--host", "a"], "host", ("x.sock", "::1", "a")),
        (["--kv-unified-per-slot", "100", "-np", "3"], "ctx_size", 300),
        (["-b", "64"], "ubatch_size", 64),
        (["--rope-scale", "4"], "rope_freq_scale", 0.25),
        (["--hf-repo", "u/m-GGUF:Q4_K_M"], "hf_repo", "u/m-GGUF:Q4_K_M"),
        (["--model-sha256", "AB" * 32], "model_sha256", "ab" * 32),
        (["--help"], "help", "short"),
        (["--help", "all"], "help", "all"),
        (["-h", "-m", "x"], "help", "short"),
        (["model.gguf", "-np", "2"], "files", ("model.gguf",)),
        (["a.gguf", "-m", "b"], "files", ("a.gguf", "b")),
        (["-np", "2", "Model=1.GGUF"], "files", ("Model=1.GGUF",)),
        (["-dev", "none"], "devices", ("none",)),
        (["-dev", "CUDA0,CUDA1"], "devices", ("CUDA0", "CUDA1")),
        (
            ["--override-kv", "a.b=int:5,c=bool:true", "--override-kv", "d=str:x:y"],
            "override_kv",
            (("a.b", "int", 5), ("c", "bool", True), ("d", "str", "x:y")),
        ),
    ],
)
def test_values_of_their_own_kind(argv, name, value):
    assert getattr(parse(argv, {}), name) == value


def test_adapters_come_in_the_order_of_the_command_line_with_their_strengths(tmp_path):
    a, b, c, d = (str(tmp_path / f"{name}.gguf") for name in ("a", "b", "c:0", "d"))
    for path in (a, b, c, d):
        Path(path).touch()
    argv = ["--lora", f"{a},{b}", "--lora-scaled", f"{c}:0.5", "--lora", d]
    assert parse(argv, {}).lora == ((a, 1.0), (b, 1.0), (c, 0.5), (d, 1.0))
    assert parse([*argv, "--lora-init-without-apply"], {}).lora == ((a, 0.0), (b, 0.0), (c, 0.0), (d, 0.0))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "65536"], ["out of range", "65535"]),
        (["--port", "-1"], ["out of range"]),
        (["-np", "0"], ["-np: 0 is out of range"]),
        (["-c", "-5"], ["out of range"]),
        (["-b", "0"], ["out of range"]),
        (["--timeout", "nan"], ["--timeout"]),
        (["--drain", "inf"], ["--drain"]),
        (["-t", "513"], ["512"]),
        (["--compat", "1999"], ["--compat: '1999' is none of modern, 2024"]),
        (["-ctk", "q3_k"], ["-ctk: 'q3_k' is none of f32, f16, bf16"]),
        (["-fa", "maybe"], ["on, off, auto"]),
        (["--host", ","], ["not an address"]),
        (["--host", ""], ["not an address"]),
        (["--lora", "nothing.gguf"], ["there is no file 'nothing.gguf'"]),
        (["--lora", ","], ["is an empty list"]),
        (["--lora-scaled", "x.gguf"], ["is not FILE:SCALE"]),
        (["--lora-scaled", "x.gguf:nan"], ["is not FILE:SCALE"]),
        (["-ts", "1,x"], ["proportions"]),
        (["-ts", "0,0"], ["proportions"]),
        (["-ts", "-1,2"], ["proportions"]),
        (["-l", "x+1"], ["15043+1"]),
        (["-l", "5"], ["15043+1"]),
        (["-l", "5+inf"], ["15043+1"]),
        (["--override-kv", "a=int:x"], ["'x' is not a valid int"]),
        (["--override-kv", "a=list:x"], ["KEY=TYPE:VALUE"]),
        (["-ot", "exps"], ["PATTERN=BUFFER"]),
        (["--samplers", "top_k;best"], ["'best' is not a sampler", "top_k"]),
        (["--sampling-seq", "kz"], ["'z' stands for no sampler", "k top_k"]),
        (["-j", "{"], ["not JSON"]),
        (["-j", "[]"], ["a JSON schema is an object"]),
        (["-mu", "ftp://x/y"], ["http://"]),
        (["-hf", "model"], ["USER/"]),
        (["--model-sha256", "abc"], ["64"]),
        (["--api-prefix", "llm"], ["/api"]),
        (["--cors-origins", "x"], ["origin"]),
        (["--path", "no such folder"], ["there is no folder"]),
        (["--slot-save-path", "nowhere"], ["there is no folder"]),
        (["--rope-scale", "0"], ["more than 0"]),
        (["--config", "nothing.ini"], ["there is no file"]),
        (["--seed", "4294967296"], ["out of range, allowed is -1 to 4294967295"]),
    ],
)
def test_values_that_can_not_work_are_refused_in_one_line(argv, words):
    with pytest.raises(OptionError) as caught:
        parse(argv, {})
    assert all(word in str(caught.value) for word in (argv[0], *words)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-ctv", "q8_0", "-fa", "off"], ["--cache-type-v q8_0", "--flash-attn on"]),
        (["-ctv", "q8_0", "--compat", "2024"], ["--flash-attn on"]),
        (["--grp-attn-n", "3"], ["512", "3"]),
        (["--grp-attn-n", "4", "--grp-attn-w", "10"], ["10", "4"]),
        (["-ub", "4096"], ["4096", "2048"]),
        (["-ub", "64", "-b", "32"], ["64", "32"]),
        (["--ssl-key-file", "FILE"], ["--ssl-cert-file"]),
        (["--ssl-cert-file", "FILE"], ["--ssl-key-file"]),
        (["--memory-f32", "-ctk", "f16"], ["--memory-f32"]),
        (["--load-mode", "mmap", "--mlock"], ["--load-mode"]),
        (["--direct-io", "--mlock"], ["--direct-io"]),
        (["--hf-file", "x"], ["--hf-repo"]),
        (["-mu", "http://h/x", "-hf", "u/m"], ["--model-url", "--hf-repo"]),
        (["--grammar", "root ::= [a]", "-j", "{}"], ["--grammar", "--json-schema"]),
        (["--log-disable", "--log-file", "x"], ["--log-file"]),
        (["--exact", "--kv-unified"], ["--exact", "--kv-unified"]),
        (["--kv-unified-per-slot", "2147483647", "-np", "2"], ["too much"]),
        (["--rope-freq-base", "0"], ["--rope-freq-base"]),
        (["--rope-freq-scale", "0"], ["--rope-freq-scale"]),
    ],
)
def test_options_that_contradict_each_other_are_refused_in_one_line(argv, words, file):
    argv = [str(file) if word == "FILE" else word for word in argv]
    with pytest.raises(OptionError) as caught:
        parse(argv, {})
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "is_refused"),
    [
        ("f32", False),
        ("f16", False),
        ("bf16", False),
        ("q8_0", True),
        ("q4_0", True),
        ("q4_1", True),
        ("iq4_nl", True),
        ("q5_0", True),
        ("q5_1", True),
    ],
)
def test_quantised_values_need_flash_attention_and_keys_do_not(word, is_refused):
    parse(["-ctk", word, "-fa", "off"], {})
    if is_refused:
        with pytest.raises(OptionError, match=f"--cache-type-v {word} needs flash attention"):
            parse(["-ctv", word, "-fa", "off"], {})
    else:
        parse(["-ctv", word, "-fa", "off"], {})


def test_what_looks_like_a_contradiction_but_is_none(file):
    o = parse(["-ctv", "q8_0"], {})  # flash attention is left to llama.cpp
    assert native_params(o)[1] == {"type_v": 8}
    parse(["--ssl-key-file", str(file), "--ssl-cert-file", str(file)], {})
    parse(["--compat", "2024", "--log-disable"], {})
    parse(["--grp-attn-n", "4", "-gaw", "2048"], {})


# ---- where values go ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "model", "context"),
    [
        (
            ["-ngl", "5", "-mg", "1", "-sm", "row", "-ts", "3,1"],
            {"n_gpu_layers": 5, "main_gpu": 1, "split_mode": 2, "tensor_split": (3.0, 1.0)},
            {},
        ),
        (["--mlock"], {"load_mode": 3}, {}),
        (["--no-mmap"], {"load_mode": 0}, {}),
        (["--mmap"], {"load_mode": 1}, {}),
        (["--mlock", "--no-mmap"], {"load_mode": 2}, {}),
        (["-dio"], {"load_mode": 4}, {}),
        (["-dio", "--no-mmap"], {"load_mode": 4}, {}),
        (["-lm", "mmap+mlock"], {"load_mode": 3}, {}),
        (
            ["--check-tensors", "-nr", "--no-host", "-lzm", "off"],
            {"check_tensors": True, "use_extra_bufts": False, "no_host": True, "lazy_mode": 0},
            {},
        ),
        (["--memory-f32"], {}, {"type_k": 0, "type_v": 0}),
        (["-ctk", "BF16", "-ctv", "f32"], {}, {"type_k": 30, "type_v": 0}),
        (["-fa"], {}, {"flash_attn_type": 1}),
        (["-fa", "auto"], {}, {"flash_attn_type": -1}),
        (["-nkvo", "--no-op-offload", "--swa-full"], {}, {"offload_kqv": False, "op_offload": False, "swa_full": True}),
        (
            ["--rope-scaling", "yarn", "--rope-freq-base", "5e5", "--rope-scale", "2", "--pooling", "last"],
            {},
            {"rope_scaling_type": 2, "rope_freq_base": 5e5, "rope_freq_scale": 0.5, "pooling_type": 3},
        ),
        (
            [
                "--yarn-orig-ctx",
                "9",
                "--yarn-ext-factor",
                "0",
                "--yarn-attn-factor",
                "1",
                "--yarn-beta-slow",
                "2",
                "--yarn-beta-fast",
                "32",
            ],
            {},
            {
                "yarn_orig_ctx": 9,
                "yarn_ext_factor": 0.0,
                "yarn_attn_factor": 1.0,
                "yarn_beta_slow": 2.0,
                "yarn_beta_fast": 32.0,
            },
        ),
        (
            ["-dev", "none", "--override-kv", "a=float:1.5"],
            {"devices": ("none",), "kv_overrides": (("a", "float", 1.5),)},
            {},
        ),
    ],
)
def test_what_the_user_sets_goes_to_llama_cpp_and_nothing_else(argv, model, context):
    assert native_params(parse(argv, {})) == (model, context)


@pytest.mark.parametrize(
    ("argv", "params"),
    [
        ([], {}),
        (["-C", "0x5", "--cpu-strict", "1"], {"cpumask": (0, 2), "strict_cpu": True}),
        (["-C", "8", "-Cr", "0-1"], {"cpumask": (3, 0, 1)}),
        (["-Cr", "510-"], {"cpumask": (510, 511)}),
        (["--prio", "-1", "--poll", "50"], {"prio": -1, "poll": 50}),
    ],
)
def test_how_compute_threads_run_is_the_user_s_choice(argv, params):
    assert group(parse(argv, {})).model.pool_params == params


@pytest.mark.parametrize(
    "argv",
    [
        ["-C", "0"],
        ["-C", "wide"],
        ["-C", "-1"],
        ["-C", "1" + "0" * 128],
        ["-Cr", "3-1"],
        ["-Cr", "0-512"],
        ["-Cr", "3"],
        ["--poll", "101"],
        ["--prio", "4"],
    ],
)
def test_cpus_that_can_not_be_are_refused(argv):
    with pytest.raises(OptionError, match=argv[1]):
        parse(argv, {})


def test_tensors_stay_on_the_cpu_where_the_user_says_so():
    patterns = native_params(parse(["-ot", r"blk\.0=CUDA0,exps=CPU", "-ncmoe", "2", "-ncffn", "1"], {}))[0]
    found = patterns["tensor_buft_overrides"]
    assert native_params(parse(["-ot", "(?!=)a=CPU"], {}))[0]["tensor_buft_overrides"] == (("(?!=)a", "CPU"),)
    assert found[:2] == ((r"blk\.0", "CUDA0"), ("exps", "CPU")) and len(found) == 5
    kept = [
        name
        for name in (
            "blk.0.ffn_up_exps.weight",
            "blk.1.ffn_gate_up_exps.weight",
            "blk.2.ffn_up_exps.weight",
            "blk.0.ffn_down.weight",
            "blk.1.ffn_down.weight",
            "blk.0.attn_q.weight",
        )
        if any(re.search(pattern, name) for pattern, _ in found[2:])
    ]
    assert kept == ["blk.0.ffn_up_exps.weight", "blk.1.ffn_gate_up_exps.weight", "blk.0.ffn_down.weight"]
    ((pattern, buffer),) = native_params(parse(["--cpu-moe"], {}))[0]["tensor_buft_overrides"]
    assert re.search(pattern, "blk.7.ffn_up_exps.weight") and buffer == "CPU"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--temp", "0", "--top-k", "5", "--typical", "0.5"], {"temperature": 0.0, "top_k": 5, "typical_p": 0.5}),
        (
            ["--mirostat", "2", "--mirostat-lr", "0.2", "--mirostat-ent", "4"],
            {"mirostat": 2, "mirostat_eta": 0.2, "mirostat_tau": 4.0},
        ),
        (["--samplers", "top-k; temp,typ_p"], {"samplers": ("top_k", "temperature", "typical_p")}),
        (["--sampling-seq", "kt"], {"samplers": ("top_k", "temperature")}),
        (["--sampler-seq", ""], {"samplers": ()}),
        (["-l", "5+1.5", "-l", "7-inf"], {"logit_bias": ((5, 1.5), (7, float("-inf")))}),
        (["--grammar", "root ::= [a]"], {"grammar": "root ::= [a]"}),
        (["-j", '{"type": "null"}'], {"json_schema": {"type": "null"}}),
        (["-r", r"a\nb", "-r", r"\x41\\\q"], {"stop": ("a\nb", "A\\\\q")}),
        (["-r", r"a\nb", "--no-escape"], {"stop": (r"a\nb",)}),
        (["--dry-sequence-breaker", r"\t", "--dry-sequence-breaker", ";"], {"dry_sequence_breakers": ("\t", ";")}),
        (["--dry-sequence-breaker", "x", "--dry-sequence-breaker", "none"], {"dry_sequence_breakers": ()}),
        (
            ["--keep", "-1", "--ignore-eos", "-s", "42", "--no-cache-prompt"],
            {"n_keep": -1, "ignore_eos": True, "seed": 42, "cache_prompt": False},
        ),
    ],
)
def test_defaults_of_requests(argv, expected):
    assert request_defaults(parse(argv, {})) == expected


def test_a_grammar_or_a_schema_may_stand_in_a_file(tmp_path):
    grammar, sketch = tmp_path / "a.gbnf", tmp_path / "a.json"
    grammar.write_bytes("\ufeffroot ::= [ä]\n".encode())
    sketch.write_text(json.dumps({"type": "array"}), encoding="utf-8")
    assert request_defaults(parse(["--grammar-file", str(grammar)], {})) == {"grammar": "root ::= [ä]\n"}
    assert request_defaults(parse(["-jf", str(sketch)], {})) == {"json_schema": {"type": "array"}}
    grammar.write_bytes(b"\xff")
    with pytest.raises(OptionError, match="not UTF-8"):
        parse(["--grammar-file", str(grammar)], {})
    with pytest.raises(OptionError, match="is a folder"):
        parse(["--grammar-file", str(tmp_path)], {})


def test_request_defaults_pass_the_checks_of_requests():
    class NoVocab:
        n_tokens = 100

    argv = ["--temp", "0.5", "--samplers", "top_k", "-l", "5-1", "-s", "7", "--dry-sequence-breaker", "none", "-r", "x"]
    for profile in ("modern", "2024"):
        defaults = request_defaults(parse([*argv, "--compat", profile], {}))
        values = COMPLETION.read({}, defaults)
        [params] = sampling.make_sampling_params(values, NoVocab(), defaults)
        assert (params.temperature, params.seed, params.logit_bias) == (0.5, 7, ((5, -1.0),))
        assert params.samplers == (("penalties", "top_k") if profile == "2024" else ("top_k",))
        assert params.dry_sequence_breakers == () and sampling.read_strings("stop", values["stop"]) == ("x",)


def test_secrets_are_known_as_such():
    o = parse(["--api-key", "k1,k2"], {"HF_TOKEN": "hf_x"})
    assert sorted(group(o).logging.secrets) == ["hf_x", "k1", "k2"] and group(parse([], {})).logging.secrets == ()
    assert {option.name for option in OPTIONS if option.secret} == {"api_key", "admin_key", "hf_token"}

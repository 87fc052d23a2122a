"""The options as typed, immutable groups.

`group` makes them from the parser's result, on any thread. `scope_of` says which options belong to the server, to a
model, or to an errand (something to do instead of serving). Each model has its own `ModelOptions`. The parameters of
llama.cpp's structs, which depend on several options, are computed here.

Not taken: `record`. Compiling its `__init__` for so many fields would take two milliseconds at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from server.options import table
from server.options.row import SAME, Option
from server.options.table import KV_TYPES, LOAD_MODES, OPTIONS, POOLING, Preference
from server.records import dataclass_transform

SERVER, MODEL, ERRAND = "server", "model", "errand"
SCOPES = {
    table.GENERAL: ERRAND,
    table.BUNDLES: ERRAND,
    table.SERVER: SERVER,
    table.ACCESS: SERVER,
    table.LOGGING: SERVER,
    table.MODELS: SERVER,
    table.MODEL: MODEL,
    table.DOWNLOAD: MODEL,
    table.CONTEXT: MODEL,
    table.MEDIA: MODEL,
    table.COMPUTE: MODEL,
    table.DEVICES: MODEL,
    table.ROPE: MODEL,
    table.SPECULATIVE: MODEL,
    table.EMBEDDINGS: MODEL,
    table.REQUESTS: MODEL,
}
"""The scope of the options in each group of the table."""

EXCEPTIONS = {
    SERVER: (
        "config",
        "compat",
        "files",
        "libs",
        "engine",
        "hf_token",
        "offline",
        "image_max_pixels",
        "media_path",
        "media_urls",
    ),
    MODEL: ("slot_save_path", "stream_interval_ms", "sleep_idle_seconds"),
    ERRAND: ("cache_list", "dry_run", "list_devices"),
}
"""Options whose scope differs from that of their group."""

SHARED_WITH_DRAFT = (
    "devices",
    "load_mode",
    "lazy_mode",
    "use_extra_bufts",
    "no_host",
    "flash_attn_type",
    "offload_kqv",
    "op_offload",
)
"""Parameters that the draft model of speculative decoding takes from the large model, unless options set its own."""

TARGETS = ("model", "context", "pool", "mmproj", "draft_model", "draft_context", "request")
EXPERTS, DENSE = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps", r"\.ffn_(up|down|gate)\."
Params = dict[str, Any]  # parameters of a struct of llama.cpp by field name; absent ones keep their defaults


def scope_of(option: Option) -> str | None:
    """The scope of an option; None if its group is only in `known`."""
    special = next((scope for scope, names in EXCEPTIONS.items() if option.name in names), None)
    return special or SCOPES.get(option.group)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Group:
    """Some options. A subclass annotates their names and types. They can't be set again."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the option {name} can't be changed")

    def replace(self: G, **changes: object) -> G:
        return type(self)(**{**self.__dict__, **changes})


G = TypeVar("G", bound=Group)


class Settings(Group):
    """The parser's result: the values of all options by `Option.key`.

    `given` are the keys of the options that are set. `warnings` are lines to log once the log is set up.
    """

    given: frozenset[str]
    warnings: tuple[str, ...]

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    def is_set(self, name: str) -> bool:
        return name in self.given


# ---- instead of serving ----------------------------------------------------------------------------------------------


HOW = ("output", "base", "side_file", "defaults")  # details; another option chooses the errand


class ErrandOptions(Group):
    """What to do instead of serving, and how."""

    help: str | None
    version: bool
    verify: bool
    completion: str | None
    completion_bash: bool
    man: bool
    cache_list: bool
    list_devices: bool
    dry_run: bool
    bench: str | None
    tune: bool
    bundle: str | None
    output: str | None
    base: str | None
    side_file: bool
    defaults: tuple[tuple[str, str], ...]
    bundle_info: bool
    bundle_check: bool
    unbundle: str | None

    def __bool__(self) -> bool:
        """Whether there is something to do instead of serving."""
        return any(value for name, value in vars(self).items() if name not in HOW)


# ---- the server ------------------------------------------------------------------------------------------------------


class HttpOptions(Group):
    """Where to listen, who may connect, and limits for clients."""

    host: tuple[str, ...]
    port: int
    api_prefix: str
    path: str | None
    ui: bool
    timeout: float | None  # seconds; None for the default limits
    max_connections: int
    max_body: int  # MiB
    max_text: int  # MiB
    half_close: bool
    rate_limit: tuple[int, float] | None  # (number of requests, seconds)
    api_key: tuple[str, ...]
    api_key_file: str | None
    admin_key: tuple[str, ...]
    ssl_key_file: str | None
    ssl_cert_file: str | None
    cors_origins: tuple[str, ...]
    allowed_hosts: tuple[str, ...]


class ApiOptions(Group):
    """What routes show, allow and store, and the format of their answers."""

    compat: str
    slots: bool
    metrics: bool
    props: bool
    manage_models: bool
    debug_stacks: bool
    sse_ping_interval: int  # seconds
    native_ping_interval: int  # seconds, for streams of /completion; -1 for never
    log_prompts_dir: str | None
    health_route: str  # for Vertex AI; "" for none
    predict_route: str  # for Vertex AI; "" for none
    store_dir: str | None
    store_size: int  # MiB
    is_verbose: bool

    @property
    def is_2024(self) -> bool:
        """Whether `--compat 2024` is set."""
        return self.compat == "2024"


class MediaOptions(Group):
    """Which images and sounds requests may contain or name."""

    image_max_pixels: int  # millions
    media_path: str | None
    media_urls: bool
    max_mib: int


class ServiceOptions(Group):
    """How the server tells its state, opens its page, and stops."""

    pid_file: str | None
    state_file: str | None
    drain: float  # seconds
    drain_delay: float  # seconds
    open: bool


class LoggingOptions(Group):
    """What is logged or recorded, in which format, and where. `secrets` are masked."""

    verbose: bool
    log_verbosity: int
    log_format: str
    log_file: str | None  # None for the default of `profile`
    log_disable: bool
    log_colors: str
    record: str | None
    record_size: int  # MiB
    profile: str  # the value of --compat
    secrets: tuple[str, ...]


class EngineOptions(Group):
    """How all engines are run."""

    libs: str | None
    engine: str


class DownloadOptions(Group):
    """How files are downloaded."""

    hf_token: str | None
    offline: bool


class CatalogueOptions(Group):
    """Which models the server has, and how many may be loaded. `files` are those of -m."""

    models_dir: str | None
    models_preset: str | None
    models_max: int  # 0 for as many as fit into memory
    models_autoload: bool
    files: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether the server has several models, not only the one of `SourceOptions`."""
        return bool(self.models_dir or self.models_preset or len(self.files) > 1)


# ---- a model ---------------------------------------------------------------------------------------------------------


class SourceOptions(Group):
    """The paths of a model's files, and the places to download them from."""

    model: str | None
    model_url: str | None
    hf_repo: str | None
    hf_file: str | None
    model_sha256: str | None
    lora: tuple[tuple[str, float], ...]
    mmproj: str | None
    mmproj_url: str | None
    mmproj_auto: bool
    spec_draft_model: str | None
    spec_draft_hf: str | None

    @property
    def must_fetch(self) -> bool:
        """Whether a file may have to be downloaded before the model can be loaded."""
        return bool(self.model_url or self.hf_repo or self.mmproj_url or self.spec_draft_hf)


class SpecOptions(Group):
    """Speculative decoding. `model_params` and `context_params` are the draft model's."""

    spec_type: tuple[str, ...]
    spec_ngram_size: int  # tokens, as the next three
    spec_ngram_max: int
    spec_draft_n_max: int
    spec_draft_n_min: int
    spec_draft_p_min: float  # probability
    spec_draft_threads: int
    spec_draft_threads_batch: int
    model_params: Params
    context_params: Params


class TemplateOptions(Group):
    """How chats become prompts."""

    chat_template: str | None
    chat_template_file: str | None
    chat_template_kwargs: dict[str, Any] | None
    jinja: bool
    skip_chat_parsing: bool


class RequestOptions(Group):
    """The defaults of requests (`values`, by field name), and the limit on their tokens.

    `advised` are the names of values that come from the model's file."""

    n_predict: int  # tokens; -1 for no limit
    max_predict: int  # tokens; -1 for no limit
    values: dict[str, Any]
    advised: frozenset[str]

    def with_advice(self, advice: Params) -> RequestOptions:
        """A copy with the values that the model's file recommends, where no option sets another one."""
        return self.replace(values={**advice, **self.values}, advised=frozenset(advice.keys() - self.values.keys()))


class ModelOptions(Group):
    """One model: its files, its names, how it is computed, the defaults of its requests."""

    sources: SourceOptions
    spec: SpecOptions
    template: TemplateOptions
    requests: RequestOptions
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    system_prompt_file: str | None
    spm_infill: bool
    special: bool
    embeddings: bool
    reranking: bool
    pooling: int | None
    ctx_size: int | None  # tokens of all slots together
    is_ctx_given: bool  # whether the user has set --ctx-size
    parallel: int
    cont_batching: bool
    context_shift: bool
    kv_unified: bool | None
    kv_unified_per_slot: int | None  # tokens
    exact: bool
    warmup: bool
    max_queue: int
    prefer: Preference
    max_stall_ms: float | None
    stream_interval_ms: int
    engine_timeout: float  # seconds
    cache_ram: int | None  # MiB
    cache_disk: str | None
    cache_disk_size: int  # MiB
    slot_save_path: str | None
    sleep_idle_seconds: int
    ctx_checkpoints: int
    checkpoint_min_step: int  # tokens
    cpu_variant: str | None
    threads: int
    threads_batch: int
    batch_size: int
    ubatch_size: int
    numa: int | None
    fit: bool
    fit_target: tuple[int, ...]  # MiB to leave free on each device
    fit_ctx: int  # tokens of each slot
    rpc: tuple[str, ...]
    grp_attn_n: int
    grp_attn_w: int
    override_kv: tuple[tuple[str, str, object], ...]
    model_params: Params
    context_params: Params
    pool_params: Params
    mmproj_params: Params


class Options(Group):
    """All options, in groups."""

    errands: ErrandOptions
    http: HttpOptions
    api: ApiOptions
    media: MediaOptions
    service: ServiceOptions
    logging: LoggingOptions
    engines: EngineOptions
    downloads: DownloadOptions
    catalogue: CatalogueOptions
    model: ModelOptions
    warnings: tuple[str, ...]


def group(settings: Settings) -> Options:
    s, targets = settings, _collect_targets(settings)
    return Options(
        errands=_of(ErrandOptions, s),
        http=_of(HttpOptions, s),
        api=_of(
            ApiOptions,
            s,
            native_ping_interval=s.sse_ping_interval if s.is_set("sse_ping_interval") else -1,
            is_verbose=s.verbose,
        ),
        media=_of(MediaOptions, s, max_mib=s.max_body),
        service=_of(ServiceOptions, s),
        logging=_of(
            LoggingOptions,
            s,
            log_file=s.log_file if s.is_set("log_file") else None,
            profile=s.compat,
            secrets=_list_secrets(s),
        ),
        engines=_of(EngineOptions, s),
        downloads=_of(DownloadOptions, s),
        catalogue=_of(CatalogueOptions, s),
        model=_of(
            ModelOptions,
            s,
            sources=_of(SourceOptions, s, model=s.files[0] if s.files else None),
            spec=_of(
                SpecOptions,
                s,
                model_params=_draft_model_params(s, targets),
                context_params=_draft_context_params(targets),
            ),
            template=_of(TemplateOptions, s),
            requests=_of(
                RequestOptions,
                s,
                max_predict=_choose_max_predict(s),
                values=_choose_request_values(s, targets),
                advised=frozenset(),
            ),
            aliases=tuple(name for part in (s.alias or "").split(",") if (name := part.strip())),
            is_ctx_given=s.is_set("ctx_size"),
            model_params=_make_model_params(s, targets),
            context_params=_make_context_params(s, targets),
            pool_params=targets["pool"],
            mmproj_params=_make_projector_params(s, targets),
        ),
        warnings=s.warnings,
    )


def _of(kind: type[G], settings: Settings, **derived: object) -> G:
    """A group of this class. Its values come from `derived`, or else from the option of the same name."""
    values = vars(settings)
    return kind(**{name: derived[name] if name in derived else values[name] for name in kind.__annotations__})


# ---- values that depend on several options ---------------------------------------------------------------------------


def _collect_targets(s: Settings) -> dict[str, Params]:
    """The values of all options with a `target` that the user or the profile has set, by struct and field.

    Enums are numbers. Lists (such as `devices`) are tuples, from which the backend makes C structs.
    """
    found: dict[str, Params] = {kind: {} for kind in TARGETS}
    for option in OPTIONS:
        if option.target and (s.is_set(option.key) or s.compat == "2024" and option.default_2024 is not SAME):
            kind, _, field = option.target.partition(":")
            found[kind][field] = getattr(s, option.key)
    return found


def _make_model_params(s: Settings, targets: dict[str, Params]) -> Params:
    params = dict(targets["model"])
    mode = _load_mode(s)
    if mode is not None:
        params["load_mode"] = mode
    buffers = (*s.override_tensor, *_on_cpu(s.cpu_moe, s.n_cpu_moe, s.n_cpu_ffn))
    if buffers:
        params["tensor_buft_overrides"] = buffers
    return params


def _make_context_params(s: Settings, targets: dict[str, Params]) -> Params:
    params = dict(targets["context"])
    if s.reranking:
        params.setdefault("pooling_type", POOLING["rank"])
    if s.memory_f32:
        params |= {"type_k": KV_TYPES["f32"], "type_v": KV_TYPES["f32"]}
    return params


def _draft_model_params(s: Settings, targets: dict[str, Params]) -> Params:
    """The draft model's parameters."""
    large = _make_model_params(s, targets)
    params = {name: large[name] for name in SHARED_WITH_DRAFT if name in large} | targets["draft_model"]
    buffers = (*s.spec_draft_override_tensor, *_on_cpu(s.spec_draft_cpu_moe, s.spec_draft_n_cpu_moe))
    if buffers:
        params["tensor_buft_overrides"] = buffers
    return params


def _draft_context_params(targets: dict[str, Params]) -> Params:
    large = targets["context"]
    return {name: large[name] for name in SHARED_WITH_DRAFT if name in large} | targets["draft_context"]


def _make_projector_params(s: Settings, targets: dict[str, Params]) -> Params:
    """The fields of mtmd_context_params. `device` is a name; `none` means the CPU."""
    params = {"warmup": s.warmup, **targets["mmproj"]}
    if params.get("device") == "none":
        del params["device"]
        params["use_gpu"] = False
    return params


def _choose_request_values(s: Settings, targets: dict[str, Params]) -> dict[str, Any]:
    return {**targets["request"], "penalties_first": True} if s.compat == "2024" else targets["request"]


def _choose_max_predict(s: Settings) -> int:
    """The limit on the tokens of a request. With `--compat 2024` it is `--n-predict` by default."""
    return s.n_predict if s.compat == "2024" and not s.is_set("max_predict") else s.max_predict


def _list_secrets(s: Settings) -> tuple[str, ...]:
    """Values that must not appear in the log. Keys in the key file are read elsewhere."""
    found: list[str] = []
    for option in OPTIONS:
        if option.secret:
            value = getattr(s, option.key)
            found += value if isinstance(value, tuple) else [value] if value else []
    return tuple(found)


def _load_mode(s: Settings) -> int | None:
    """The load mode that --direct-io, --mlock and --mmap choose, or None."""
    if s.direct_io:
        return LOAD_MODES["dio"]
    if s.mlock:
        return LOAD_MODES["mmap+mlock" if s.mmap else "mlock"]
    if s.is_set("mmap"):
        return LOAD_MODES["mmap" if s.mmap else "none"]
    return None


def _on_cpu(all_experts: bool, n_experts: int, n_dense: int = 0) -> Iterator[tuple[str, str]]:
    """(pattern, "CPU") pairs for the tensors that options keep on the CPU."""
    if all_experts:
        yield EXPERTS, "CPU"
    for count, pattern in ((n_experts, EXPERTS), (n_dense, DENSE)):
        yield from ((rf"blk\.{layer}{pattern}", "CPU") for layer in range(count))

"""The composition root: from the command line to a running server, and back down.

Runs on the main thread, which then only waits for signals. Builds everything else and passes it on; nobody imports
this module but `llama_srv.py`. Order of starting: listen, load the model, serve; of stopping: stop listening, let
requests finish, end the engine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from server import edge, frozen, one_shot
from server import log as logging_setup
from server.api.constraints import read_constraint
from server.api.context import Context, read_system_prompt
from server.api.routes import routes
from server.bundle import Bundle, BundleError
from server.download import DownloadError, cached_models, fetch_model
from server.download.local import cache_folder
from server.draft_model import find_draft_model, spec_config
from server.engine import backend
from server.engine.client import EngineClient, Transport
from server.engine.config import EngineConfig
from server.engine.model_file import check_all, check_model_file, check_ranker
from server.engine.supervise import Limits, ProcessTransport
from server.engine.task import FAILED, READY, RESTARTING
from server.engine.thread import ThreadTransport
from server.engine.vocab import open_vocab
from server.errors import ApiError
from server.housekeeping import Housekeeping
from server.log import LogFileError, get_logger
from server.one_shot import ModelPlace, place_in, place_of
from server.option_table import POOLING
from server.options import (OptionError, Options, native_params, parse, projector_params, request_defaults,
                            secret_values, usage)
from server.run_files import RunFileError
from server.web.httpd import HttpServer
from server.web.listen import BindError
from server.web.router import Router

VERSION = "0.1.0"
SWITCH_INTERVAL_S = 0.0005
ROOT = Path(__file__).resolve().parents[1]

NO_MODEL = """no model given. Three ways to get going:
  python llama_srv.py -m model.gguf       serve a GGUF file that you have
  python build_scripts/quickstart.py      fetch the libraries and a small model, and serve it
  LLAMA_ARG_MODEL=model.gguf              name the file in the environment (see --help for all options)"""

NO_MODEL_FROZEN = "no model given: {program} -m model.gguf serves a GGUF file that you have; --help lists all options"

log = get_logger("app")


def main(argv: Sequence[str]) -> int:
    """The whole program; the exit code: 0 after a clean stop, 1 for anything that went wrong."""
    try:
        own = one_shot.own_bundle()
        options = parse(argv, os.environ, bundled=own.defaults if own else ())
        if options.help:
            print(usage(program=frozen.program().removeprefix("python ")), flush=True)
            return 0
        if options.version:
            print(version(options))
            return 0
        if options.cache_list:
            print("\n".join(cached_models()))
            return 0
        if options.list_devices:
            print("\n".join(backend.device_lines(backend.find_libs(ROOT, options.libs), options.cpu_variant)))
            return 0
        if options.bench:
            return measure(options, argv)
        code = one_shot.run(options, own, VERSION)
        return serve(options, own) if code is None else code
    except (OptionError, ApiError, BindError, BundleError, DownloadError, LogFileError, RunFileError,
            backend.LibsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:         # `--help | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def measure(options: Options, argv: Sequence[str]) -> int:
    """`--bench`: this program as a server of its own, measured; the exit code."""
    if options.ssl_key_file:
        raise OptionError("--bench speaks plain HTTP to itself: leave out --ssl-key-file and --ssl-cert-file")
    program = [sys.executable] if frozen.is_frozen() else [sys.executable, str(ROOT / "llama_srv.py")]
    from server.bench import command     # here, because a server that serves starts faster without it
    names = command.OWN if options.bench == "own" else options.bench
    try:
        return command.measure(program, argv, names, options.model or "", options.threads,
                               next(iter(options.api_key), ""))
    except command.BenchError as error:
        raise OptionError(str(error)) from None


def version(options: Options) -> str:
    """`--version`: ours, llama.cpp's, and which libraries would be used."""
    try:
        return f"llama_srv {VERSION}\nllama.cpp {backend.library_line(backend.find_libs(ROOT, options.libs))}"
    except backend.LibsError as error:
        return f"llama_srv {VERSION}\nllama.cpp: {error}"


def serve(options: Options, own: Bundle | None = None) -> int:
    """Listen, load, serve until a signal comes; the exit code. `own` is the bundle that this program is."""
    set_up_logging(options)
    unpacked = frozen.UnpackedFolder(frozen.unpacked_folder())
    model = find_model(options, own)
    config = engine_config(options, model, find_draft_model(options))
    if options.dry_run:
        print("\n".join(backend.plan_lines(config)))
        return 0
    read_constraint({}, request_defaults(options))  # a bad --grammar is told now, not with every request
    system_prompt = read_prompt_file(options)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    leave: list[Callable[[], None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _on_signal(stop, leave))
    engine = EngineClient(make_transport(options, config),
                          lambda: open_vocab(config.libs, config.model, config.model_offset))
    context = make_context(options, engine)
    keys = edge.KeyFiles(options)
    server = make_server(options, context, keys)
    house = Housekeeping(options, server, keys, engine, stop.set)
    leave.append(house.close)
    try:
        house.start()
        server.start()
        log.info("listening on %s, loading %s", " and ".join(server.urls), model.name or model.path)
        unpacked.remove_unused()
        edge.warn_if_open(options, server, keys)
        engine.start()
        return _wait(options, context, server, house, stop, system_prompt)
    finally:
        house.report("stopping")
        server.stop(options.drain if engine.state in (READY, RESTARTING) else 0.0)
        engine.close()
        house.close()


def make_transport(options: Options, config: EngineConfig) -> Transport:
    """The engine as `--engine` wants it."""
    if options.engine == "thread":
        return ThreadTransport(config, backend.open_backend)
    return ProcessTransport(config, engine_command(), Limits(step_s=options.engine_timeout))


def engine_command() -> list[str]:
    """This program once more, as the engine's process."""
    script = [] if getattr(sys, "frozen", False) else [str(ROOT / "llama_srv.py")]
    return [sys.executable, *script, "--engine-process"]


def make_context(options: Options, engine: EngineClient) -> Context:
    """What all handlers share."""
    return Context(engine, options, request_defaults(options), template_kwargs=options.chat_template_kwargs or {},
                   is_shared=edge.is_shared(options))


def make_server(options: Options, context: Context, keys: edge.KeyFiles) -> HttpServer:
    """The HTTP edge with all routes, bound and not started."""
    return edge.http_server(options, Router(routes(context), options.api_prefix), keys, ROOT / "public")


def set_up_logging(options: Options) -> None:
    """Where log lines go, then the warnings that the options have collected."""
    level = logging_setup.VERBOSE if options.verbose else logging_setup.LEVEL_BY_VERBOSITY[
        min(options.log_verbosity, max(logging_setup.LEVEL_BY_VERBOSITY))]
    profile = logging_setup.profile_settings(
        options.compat, disable=options.log_disable, format=options.log_format,
        file=options.log_file if options.is_set("log_file") else None)
    logging_setup.setup(level, colors=options.log_colors, secrets=secret_values(options), **profile)
    for line in options.warnings:
        log.warning("%s", line)


def find_model(options: Options, own: Bundle | None) -> ModelPlace:
    """Where the model is, fetched first where the options name a URL or a repository; `own` has one if they don't."""
    if options.model_url or options.hf_repo:
        place = ModelPlace(str(fetch_model(
            options.model_url, options.hf_repo, options.hf_file, path=options.model, offline=options.offline,
            sha256=options.model_sha256, token=options.hf_token)))
    elif options.model:
        place = place_of(options.model)
    elif own:
        place = place_in(own)
    else:
        raise OptionError(NO_MODEL if not frozen.is_frozen() else NO_MODEL_FROZEN.format(program=frozen.program()))
    parts = check_all(place.path, {"--lora": [adapter for adapter, _ in options.lora]}, options.override_kv,
                      (place.offset, place.size))
    if options.reranking or options.pooling == POOLING["rank"]:
        check_ranker(parts)
    if place.name and not options.alias:
        options.alias = place.name
    return place


def find_projector(options: Options, model: ModelPlace) -> str:
    """The path of the projector's file, "" for none; fetched first where an option names a URL. A bundle may hold
    one."""
    if not options.mmproj_auto:
        return ""
    if not (options.mmproj or options.mmproj_url):
        return one_shot.projector_of(model, cache_folder(os.environ))
    path = options.mmproj or str(fetch_model(options.mmproj_url, offline=options.offline, token=options.hf_token))
    check_model_file(path, "--mmproj")
    return path


def engine_config(options: Options, model: ModelPlace, draft_model: str = "") -> EngineConfig:
    """The engine's part of the options; LibsError if there are no libraries for this machine."""
    model_params, context_params = native_params(options)
    return EngineConfig(
        model=model.path, model_offset=model.offset, model_size=model.size,
        libs=backend.find_libs(ROOT, options.libs), cpu_variant=options.cpu_variant,
        n_slots=options.parallel, n_ctx=options.ctx_size, n_batch=options.batch_size, n_ubatch=options.ubatch_size,
        n_threads=options.threads, n_threads_batch=options.threads_batch, warmup=options.warmup,
        max_queue=options.max_queue, cont_batching=options.cont_batching, shift_context=options.context_shift,
        n_group=options.grp_attn_n, group_width=options.grp_attn_w, lora=options.lora, numa=options.numa or 0,
        special=options.special, exact=options.exact,
        stream_interval_s=options.stream_interval_ms / 1e3, max_stall_ms=options.max_stall_ms,
        is_fitted=options.fit, fit_target=options.fit_target, fit_ctx=options.fit_ctx,
        cache_ram=options.cache_ram, cache_disk=options.cache_disk or "", cache_disk_mib=options.cache_disk_size,
        n_checkpoints=options.ctx_checkpoints, checkpoint_step=max(options.checkpoint_min_step, 64),
        embeddings=options.embeddings or options.reranking,
        spec=spec_config(options, draft_model), model_params=model_params, context_params=context_params,
        mmproj=find_projector(options, model), mmproj_params=projector_params(options))


def read_prompt_file(options: Options) -> object:
    """The object in `--system-prompt-file`, checked; None without one."""
    if not options.system_prompt_file:
        return None
    try:
        value = json.loads(Path(options.system_prompt_file).read_text("utf-8-sig"))
        value = value.get("system_prompt", value) if isinstance(value, dict) else value
        read_system_prompt(value)
    except (OSError, ValueError, ApiError) as error:
        raise OptionError(f"--system-prompt-file {options.system_prompt_file}: {error}") from None
    return value


def check_chat_template(options: Options, context: Context) -> None:
    """Compile the chat template now. A fault in the user's ends the server (ApiError), one in the model's is logged."""
    try:
        context.chat_template  # noqa: B018  (a property that compiles)
    except ApiError as error:
        if options.chat_template or options.chat_template_file:
            raise
        log.warning("%s; chats will be refused (--chat-template names another)", error)


def _wait(options: Options, context: Context, server: HttpServer, house: Housekeeping, stop: threading.Event,
          system_prompt: object) -> int:
    """Until a signal (0) or the end of the engine (1). The waits are short: a signal can't end a long one on
    Windows."""
    engine = context.engine
    while not stop.is_set() and not engine.wait_until_loaded(0.2):
        _show_progress(engine.progress)
        house.loading(engine.progress)
    if engine.state == READY and not stop.is_set():
        if system_prompt is not None:
            context.set_system_prompt(system_prompt)
        info = engine.info
        if info.is_generative:
            check_chat_template(options, context)
        log.info("%s: %d slots, %d tokens of context each, llama.cpp %s %s", info.desc, info.n_slots,
                 info.n_ctx_slot, info.llama_version, info.variant)
        if options.is_set("ctx_size") and 0 < options.ctx_size < info.n_ctx:
            log.warning("the context has %d tokens instead of the %d asked for: llama.cpp rounds up", info.n_ctx,
                        options.ctx_size)
        house.report("ready")
        print(f"llama_srv is ready: {server.url}{options.api_prefix}  (Ctrl-C stops it)", flush=True)
        if options.open and not one_shot.open_page(server.url + options.api_prefix):
            log.warning("--open: there is no browser here; the page is at the address above")
    was_ready = engine.info is not None     # an engine that then fails for good leaves a server that says so
    while not stop.is_set() and (engine.state in (READY, RESTARTING) or engine.state == FAILED and was_ready):
        stop.wait(house.interval_s)
        house.tick()
    if not stop.is_set():
        print(f"error: {engine.error or 'the engine ended by itself; see the log above'}", file=sys.stderr)
        return 1
    log.info("stopping; running requests have %g s to finish", options.drain)
    return 0


def _on_signal(stop: threading.Event, leave: Sequence[Callable[[], None]]) -> None:
    """The first signal asks for a clean end, the second ends at once, after what must be left in order."""
    if stop.is_set():
        for step in leave:
            step()
        os._exit(130)
    stop.set()


def _show_progress(progress: float) -> None:
    if sys.stderr.isatty() and progress > 0:
        filled = int(progress * 30)
        end = "\r" if progress < 1 else "\n"
        print(f"loading [{'#' * filled}{'.' * (30 - filled)}] {progress:4.0%}", end=end, file=sys.stderr, flush=True)

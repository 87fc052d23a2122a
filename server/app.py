"""The composition root: from the options to a running server, and back down. Its half of the engine.

Runs on the main thread, called by `launch` only. Builds each part and passes it on. Order of starting: the model's
files are looked at, the engine is told what to load, and while it does, `serving` imports the other half (HTTP, JSON,
templates), listens, and waits until the engine is ready. Hence the imports inside functions: here is what every start
needs before the engine can begin, there what can wait or is rarely needed at all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ctypes_api.errors import LibsError
from ctypes_api.folder import find_folder
from server import log as logging_setup
from server import program
from server.engine.client import spawn
from server.engine.client.engine_client import EngineClient, Transport
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.seam.config import EngineConfig, patience, pinned_patterns, threads_and_cores
from server.errands import one_shot
from server.errands.bundle import Bundle, BundleError
from server.errands.one_shot import ModelPlace, place_in, place_of
from server.errands.tuned import chosen, remember
from server.errors import StartError
from server.log import LogFileError, get_logger
from server.model_files import host_cpus
from server.model_files.checks import check_all, check_model_file, check_ranker
from server.model_files.gguf import Gguf, GgufError
from server.model_files.shape import Shape
from server.model_files.shape_reader import shape_of
from server.model_sources import fetched, find_draft_model, repository_projector, spec_config
from server.options.parser import OptionError, Options, native_params, pool_params, projector_params, secret_values
from server.options.table import POOLING

VERSION = "0.1.0"
SWITCH_INTERVAL_S = 0.0005
TUNE_CTX = 1024  # tokens of each slot while steps are measured

NO_MODEL = """no model given. Three ways to get going:
  python llama_srv.py -m model.gguf       serve a GGUF file that you have
  python build_scripts/quickstart.py      fetch the libraries and a small model, and serve it
  LLAMA_ARG_MODEL=model.gguf              name the file in the environment (see --help for all options)"""

NO_MODEL_FROZEN = "no model given: {program} -m model.gguf serves a GGUF file that you have; --help lists all options"

log = get_logger("app")


def run(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """What the options ask for; the exit code. `own` is the bundle that this program is, `process` an engine's that
    has been started for it."""
    try:
        if options.version:
            print(version(options))
            return 0
        if options.cache_list:
            from server.download import cached_models

            print("\n".join(cached_models()))
            return 0
        if options.list_devices:
            from server.engine.llama import backend

            variant = chosen(options, "", Path(libs_folder(options))).cpu_variant
            print("\n".join(backend.device_lines(libs_folder(options), variant)))
            return 0
        if options.bench:
            return measure(options, argv)
        code = one_shot.run(options, own, VERSION)
        return serve(options, own, argv, process) if code is None else code
    except (OptionError, StartError, BundleError, LogFileError, LibsError) as error:
        logging_setup.say(f"error: {error}", sys.stderr)
        return 1


def measure(options: Options, argv: Sequence[str]) -> int:
    """`--bench`: this program as a server of its own, measured; the exit code."""
    if options.ssl_key_file:
        raise OptionError("--bench speaks plain HTTP to itself: leave out --ssl-key-file and --ssl-cert-file")
    from server.bench import command  # here, because a server that serves starts faster without it

    names = command.OWN if options.bench == "own" else options.bench
    try:
        return command.measure(
            program.own_command(), argv, names, options.model or "", options.threads, next(iter(options.api_key), "")
        )
    except command.BenchError as error:
        raise OptionError(str(error)) from None


def tune_model(options: Options, argv: Sequence[str], model: ModelPlace, config: EngineConfig) -> int:
    """`--tune`: one CPU variant measured in this process if one is named, else all of them by children of it."""
    from ctypes_api.folder import read_folder
    from server.errands import tune

    if options.cpu_variant:
        from server.engine.entry.tuning import measure as measure_steps

        print(tune.text_of(measure_steps(config)))
        return 0
    path = tunable(options, model)
    if not path:
        raise OptionError("--tune needs a model's file: name one with -m FILE")
    plugins = read_folder(Path(config.libs)).cpu_variants
    command = program.own_command(*tune.without_tune(argv))
    print(
        f"{Path(path).name}: milliseconds of steps of one row, of some and of a prompt, near the beginning and "
        "further on",
        flush=True,
    )
    try:
        tuned = tune.find_best(
            sorted(plugins),
            0 if options.threads > 0 else host_cpus.usable_cores(),
            lambda words, timeout_s: tune.run_child(command, words, timeout_s),
        )
        print(tune.report(tuned, remember(path, plugins.get(tuned.cpu_variant or ""), tuned)))
    except ValueError as error:
        raise OptionError(str(error)) from None
    except OSError as error:
        raise OptionError(f"what --tune found can't be kept: {error}") from None
    return 0


def tunable(options: Options, model: ModelPlace) -> str:
    """The file that `--tune` knows the model by; "" for the model in this very program."""
    return options.model or ("" if model.bundle else model.path)


def version(options: Options) -> str:
    """`--version`: ours, llama.cpp's, and which libraries would be used."""
    from server.engine.llama import backend

    try:
        return f"llama_srv {VERSION}\nllama.cpp {backend.library_line(libs_folder(options))}"
    except LibsError as error:
        return f"llama_srv {VERSION}\nllama.cpp: {error}"


def libs_folder(options: Options) -> str:
    """The folder whose libraries will be used; LibsError says where it looked."""
    return str(find_folder(program.ROOT, options.libs))


def serve(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """Load, listen, serve until a signal comes; the exit code. For the parameters see `run`."""
    set_up_logging(options)
    unpacked = program.UnpackedFolder(program.unpacked_folder())
    if options.tune:
        options.ctx_size = TUNE_CTX * options.parallel
    model, config = read_model(options, own)
    if options.tune:
        return tune_model(options, argv, model, config)
    if options.dry_run:
        from server.engine.llama import backend

        lines = backend.plan_lines(config)
        logging_setup.flush()
        print("\n".join(lines))
        return 0
    warn_of_threads(config)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    leave: list[Callable[[], None]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _on_signal(stop, leave))
    engine = EngineClient(make_transport(options, config, process), lambda: open_vocab(config))
    try:
        engine.start()
        if options.engine == "process":
            from server.engine.client import vocab  # here, while the engine loads the model

            vocab.preload(config.libs)  # `open_vocab` is what the start ends with
        from server import serving  # likewise

        return serving.serve(options, engine, model.name or model.path, unpacked, stop, leave)
    finally:
        engine.close()


def warn_of_threads(config: EngineConfig) -> None:
    """Say so if more threads are to compute than have a core."""
    n_threads, n_cores = threads_and_cores(config)
    if n_threads > max(n_cores, 1):
        log.warning(
            "%d threads and %.3g cores for them (-t, -tb): those without a core keep the others waiting, and a "
            "step takes many times longer",
            n_threads,
            n_cores,
        )


def make_transport(options: Options, config: EngineConfig, process: subprocess.Popen | None) -> Transport:
    """The engine as `--engine` wants it."""
    step_s = options.engine_timeout * patience(config)
    if options.engine == "thread":
        from server.engine.entry.thread import ThreadTransport
        from server.engine.llama.backend import open_backend

        return ThreadTransport(config, open_backend, step_s)
    return ProcessTransport(config, spawn.engine_command(), Limits(step_s=step_s), process)


def open_vocab(config: EngineConfig) -> object:
    """The vocabulary for the web process, once the engine has shown that the file can be opened."""
    from server.engine.client import vocab

    return vocab.open_vocab(config.libs, config.model, config.model_offset)


def set_up_logging(options: Options) -> None:
    """Where log lines go, then the warnings that the options have collected."""
    level = (
        logging_setup.VERBOSE
        if options.verbose
        else logging_setup.LEVEL_BY_VERBOSITY[min(options.log_verbosity, max(logging_setup.LEVEL_BY_VERBOSITY))]
    )
    profile = logging_setup.profile_settings(
        options.compat,
        disable=options.log_disable,
        format=options.log_format,
        file=options.log_file if options.is_set("log_file") else None,
    )
    logging_setup.setup(level, colors=options.log_colors, secrets=secret_values(options), **profile)
    for line in options.warnings:
        log.warning("%s", line)


def read_model(options: Options, own: Bundle | None) -> tuple[ModelPlace, EngineConfig]:
    """Where the model is, and what the engine has to know. The headers are megabytes, and gone on return."""
    model, headers = find_model(options, own)
    return model, engine_config(options, model, headers, find_draft_model(options))


def find_model(options: Options, own: Bundle | None) -> tuple[ModelPlace, list[Gguf]]:
    """Where the model is, fetched first where the options name a URL or a repository (`own` has one if they don't);
    and the headers of its files, checked."""
    if options.model_url or options.hf_repo:
        place = ModelPlace(
            fetched(
                options.model_url,
                options.hf_repo,
                options.hf_file,
                path=options.model,
                offline=options.offline,
                sha256=options.model_sha256,
                token=options.hf_token,
            )
        )
    elif options.model:
        place = place_of(options.model)
    elif own:
        place = place_in(own)
    else:
        raise OptionError(NO_MODEL if not program.is_frozen() else NO_MODEL_FROZEN.format(program=program.program()))
    parts = check_all(
        place.path,
        {"--lora": [adapter for adapter, _ in options.lora]},
        options.override_kv,
        (place.offset, place.size),
    )
    if options.reranking or options.pooling == POOLING["rank"]:
        check_ranker(parts)
    if place.name and not options.alias:
        options.alias = place.name
    return place, parts


def find_projector(options: Options, model: ModelPlace) -> str:
    """The path of the projector's file, "" for none; fetched first where an option names a URL, or a repository that
    has one. A bundle may hold one."""
    if not options.mmproj_auto:
        return ""
    if not (options.mmproj or options.mmproj_url):
        if options.hf_repo:
            return repository_projector(options, model.path, libs_folder(options))
        if model.bundle is None:
            return ""
        return one_shot.projector_of(model, program.cache_folder())
    path = options.mmproj or fetched(options.mmproj_url, offline=options.offline, token=options.hf_token)
    check_model_file(path, "--mmproj")
    return path


def shape_in(headers: Sequence[Gguf], model_params: Mapping[str, object]) -> Shape | None:
    """What the planner of memory has to know of the model; None where the engine will say why that can't be seen."""
    try:
        return shape_of(headers, pinned_patterns(model_params)) if headers else None
    except GgufError:
        return None


def engine_config(
    options: Options, model: ModelPlace, headers: Sequence[Gguf] = (), draft_model: str = ""
) -> EngineConfig:
    """The engine's part of the options; LibsError if there are no libraries for this machine. `headers` are those of
    the model's files: without them the engine reads them once more."""
    model_params, context_params = native_params(options)
    libs = libs_folder(options)
    tuned = chosen(options, tunable(options, model), Path(libs))
    if tuned != chosen(options, "", Path(libs)):
        log.info("with %s, since --tune has found that to be quicker", tuned)
    return EngineConfig(
        model=model.path,
        model_offset=model.offset,
        model_size=model.size,
        shape=shape_in(headers, model_params),
        libs=libs,
        cpu_variant=tuned.cpu_variant,
        n_slots=options.parallel,
        n_ctx=options.ctx_size,
        n_batch=options.batch_size,
        n_ubatch=options.ubatch_size,
        n_threads=tuned.n_threads if options.threads > 0 else min(tuned.n_threads, host_cpus.usable_cores()),
        n_threads_batch=options.threads_batch,
        warmup=options.warmup,
        max_queue=options.max_queue,
        cont_batching=options.cont_batching,
        shift_context=options.context_shift,
        n_group=options.grp_attn_n,
        group_width=options.grp_attn_w,
        lora=options.lora,
        numa=options.numa or 0,
        special=options.special,
        exact=options.exact,
        kv_unified=options.kv_unified,
        stream_interval_s=options.stream_interval_ms / 1e3,
        max_stall_ms=options.max_stall_ms,
        is_fitted=options.fit,
        fit_target=options.fit_target,
        fit_ctx=options.fit_ctx,
        cache_ram=options.cache_ram,
        cache_disk=options.cache_disk or "",
        cache_disk_mib=options.cache_disk_size,
        slot_files=bool(options.slot_save_path),
        n_checkpoints=options.ctx_checkpoints,
        checkpoint_step=max(options.checkpoint_min_step, 64),
        embeddings=options.embeddings or options.reranking,
        spec=spec_config(options, draft_model),
        model_params=model_params,
        context_params=context_params,
        pool_params=pool_params(options),
        mmproj=find_projector(options, model),
        mmproj_params=projector_params(options),
    )


def _on_signal(stop: threading.Event, leave: Sequence[Callable[[], None]]) -> None:
    """The first signal asks for a clean end, the second ends at once, after what must be left in order."""
    if stop.is_set():
        for step in leave:
            step()
        logging_setup.flush(logging_setup.SAY_S)
        os._exit(130)
    stop.set()

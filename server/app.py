"""The composition root, first part: from the options to an engine that loads its model.

Runs on the main thread; only `launch` calls it. For one model, it checks the model's files and tells the engine what to
load. While the engine loads, it imports `serving` (HTTP, JSON, templates), which listens and waits for the engine. The
top imports only what every start needs before the engine can load; functions import all else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ctypes_api.errors import LibsError
from server import log as logging_setup
from server import memory, program
from server.engine.client.engine_client import EngineClient
from server.engine.seam.config import EngineConfig
from server.errands import one_shot
from server.errands.bundle import Bundle, BundleError
from server.errands.one_shot import ModelPlace
from server.errands.tuned import choose_tuned, remember
from server.errors import FAILED, MISCONFIGURED, PassingError, StartError
from server.loading.engines import make_transport, open_vocab, warn_of_threads, with_advice
from server.log import LogFileError, get_logger
from server.model_files import host_cpus
from server.model_sources import find_libs_folder, get_tunable, read_model
from server.options.groups import EngineOptions, LoggingOptions, ModelOptions, Options
from server.options.row import OptionError

if TYPE_CHECKING:
    from server.loading.starter import Starter

VERSION = "0.1.0"
SWITCH_INTERVAL_S = 0.0005
"""Seconds that a Python thread may keep the interpreter's lock while another one waits for it."""
STOPPING = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Signals that stop the server. SIGBREAK is Ctrl-Break on Windows."""
TUNE_CTX = 1024  # tokens of context for each slot during --tune

log = get_logger("app")


def run(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """Do what the options ask for, and return the exit code. `own` is the bundle that this program is part of.
    `process` is an engine process started in advance."""
    try:
        errands = options.errands
        if errands.version:
            print(describe_version(options.engines))
            return 0
        if errands.verify:
            from server.errands import verify

            print(verify.report(Path(find_libs_folder(options.engines)), own))
            return 0
        if errands.cache_list:
            from server.download import list_cached_models

            print("\n".join(list_cached_models()))
            return 0
        if errands.list_devices:
            from server.engine.llama import backend

            libs = find_libs_folder(options.engines)
            variant = choose_tuned(options.model, "", Path(libs)).cpu_variant
            print("\n".join(backend.describe_devices(libs, variant, options.model.rpc)))
            return 0
        if errands.bench:
            return measure(options, errands.bench, argv)
        code = one_shot.run(errands, options.model.sources, own, VERSION)
        return serve(options, own, argv, process) if code is None else code
    except (OptionError, StartError, BundleError, LogFileError, LibsError) as error:
        logging_setup.say(f"error: {error}", sys.stderr)
        return FAILED if isinstance(error, PassingError) else MISCONFIGURED


def measure(options: Options, names: str, argv: Sequence[str]) -> int:
    """Run `--bench names`, which starts this program again as a server. Return the exit code."""
    if options.http.ssl_key_file:
        raise OptionError("--bench uses plain HTTP: leave out --ssl-key-file and --ssl-cert-file")
    from server.bench import command  # here: the server starts faster without it

    model = options.model
    try:
        return command.measure(
            program.make_own_command(),
            argv,
            command.OWN if names == "own" else names,
            model.sources.model or "",
            model.threads,
            next(iter(options.http.api_key), ""),
        )
    except command.BenchError as error:
        raise OptionError(str(error)) from None


def tune_model(options: ModelOptions, argv: Sequence[str], model: ModelPlace, config: EngineConfig) -> int:
    """Run `--tune`. A named CPU variant is measured in this process, else each variant in a child process."""
    from ctypes_api.folder import read_folder
    from server.errands import tune

    if options.cpu_variant:
        from server.engine.entry.tuning import measure as measure_steps

        print(tune.text_of(measure_steps(config)))
        return 0
    path = get_tunable(options.sources, model)
    if not path:
        raise OptionError("--tune needs a model's file: name one with -m FILE")
    plugins = read_folder(Path(config.libs)).cpu_variants
    command = program.make_own_command(*tune.without_tune(argv))
    print(
        f"{Path(path).name}: milliseconds for a step of one token, of a few tokens and of a prompt, each with a short "
        "and with a long context",
        flush=True,
    )
    try:
        tuned = tune.find_best(
            sorted(plugins),
            0 if options.threads > 0 else host_cpus.count_usable_cores(),
            lambda words, timeout_s: tune.run_child(command, words, timeout_s),
        )
        print(tune.report(tuned, remember(path, plugins.get(tuned.cpu_variant or ""), tuned)))
    except ValueError as error:
        raise OptionError(str(error)) from None
    except OSError as error:
        raise OptionError(f"the result of --tune can't be saved: {error}") from None
    return 0


def describe_version(options: EngineOptions) -> str:
    """The text of `--version`."""
    from server.engine.llama import backend

    try:
        return f"llama_srv {VERSION}\nllama.cpp {backend.describe_library(find_libs_folder(options))}"
    except LibsError as error:
        return f"llama_srv {VERSION}\nllama.cpp: {error}"


def serve(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """Load the model and serve until a signal comes; or run --tune or --dry-run. Return the exit code. For the
    parameters see `run`."""
    set_up_logging(options.logging, options.warnings)
    unpacked = program.UnpackedFolder(program.find_unpacked_folder())
    is_tuning, model = options.errands.tune, options.model
    if options.catalogue and not options.errands:
        return serve_many(options, own, argv, process, unpacked)
    if is_tuning:
        model = model.replace(ctx_size=TUNE_CTX * model.parallel)
    place, config, advice = read_model(model, options.engines, options.downloads, own, must_recall=not is_tuning)
    if is_tuning:
        return tune_model(model, argv, place, config)
    if options.errands.dry_run:
        from server.engine.llama import backend

        lines = backend.plan_lines(config)
        logging_setup.flush()
        print("\n".join(lines))
        return 0
    require_workers(config)
    warn_of_threads(config)
    if not options.api.is_2024:  # servers of 2024 ignored what a model's file advises
        model = with_advice(model, advice)
    stop, leave = take_signals()
    transport = make_transport(options.engines, model.engine_timeout, config, process)
    engine = EngineClient(transport, lambda: open_vocab(config), options.http.max_text << 20, model.context_shift)
    if place.name and not model.aliases:  # a bundle names its model
        model = model.replace(aliases=(place.name,))
    starter = None
    try:
        engine.start()
        memory.return_large_blocks()
        preload_vocab(options.engines, config.libs)  # `open_vocab` ends the start and needs it
        from server import serving  # here, while the engine loads the model

        if model.sleep_idle_seconds >= 0:
            asked = options.model.replace(aliases=model.aliases)  # without the file's advice: each load reads it again
            starter = make_starter(options.replace(model=asked), own, argv, config.libs, None)
        return serving.serve(
            options.replace(model=model), engine, place.name or place.path, unpacked, stop, leave, starter
        )
    finally:
        engine.close()
        if starter is not None:
            starter.spare.close()


def require_workers(config: EngineConfig) -> None:
    """PassingError if a worker of --rpc doesn't answer: it may still be starting."""
    from server.engine.seam.workers import find_reachable

    _, faults = find_reachable(config.rpc)
    if faults:
        raise PassingError(f"--rpc: {faults[0]}")


def serve_many(
    options: Options,
    own: Bundle | None,
    argv: Sequence[str],
    process: subprocess.Popen | None,
    unpacked: program.UnpackedFolder,
) -> int:
    """Serve several models, each loaded when a request asks for it. See `serve`."""
    from server import serving

    libs = find_libs_folder(options.engines)
    starter = make_starter(options, own, argv, libs, process)
    starter.turns = "" if starter.gpus else make_turns()
    try:
        entries = starter.list_entries()
        starter.spare.refill()
        stop, leave = take_signals()
        memory.return_large_blocks()
        preload_vocab(options.engines, libs)
        return serving.serve_many(options, entries, starter, unpacked, stop, leave)
    finally:
        starter.spare.close()
        with contextlib.suppress(OSError):
            os.unlink(starter.turns)


def make_turns() -> str:
    """Make the file for the turns of engines on the same cores (see `engine.seam.turns`); "" if that fails."""
    import tempfile

    try:
        descriptor, path = tempfile.mkstemp(prefix="llama_srv-turns-")
    except OSError:
        return ""
    os.close(descriptor)
    return path


def make_starter(
    options: Options, own: Bundle | None, argv: Sequence[str], libs: str, process: subprocess.Popen | None
) -> Starter:
    """`process` is an engine process that the first model will use."""
    from server.loading import starter  # here: a server whose model stays loaded doesn't need it

    variant = choose_tuned(options.model, options.model.sources.model or "", Path(libs)).cpu_variant
    spare = starter.Spare([libs, variant] if variant else [libs], process)
    return starter.Starter(options, argv, os.environ, own, spare, starter.find_gpus(libs))


def take_signals() -> tuple[threading.Event, list[Callable[[], None]]]:
    """Handle the signals of STOPPING from now on. Return the event that the first one sets, and the list of functions
    to call when a second one ends the program."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    leave: list[Callable[[], None]] = []
    for name in STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: _on_signal(stop, leave))
    return stop, leave


def preload_vocab(options: EngineOptions, libs: str) -> None:
    """Load the library that opens vocabularies, unless the engine runs in this process and has loaded it."""
    if options.engine == "process":
        from server.engine.client import vocab

        vocab.preload(libs)


def set_up_logging(options: LoggingOptions, warnings: Sequence[str]) -> None:
    level = (
        logging_setup.VERBOSE
        if options.verbose
        else logging_setup.LEVEL_BY_VERBOSITY[min(options.log_verbosity, max(logging_setup.LEVEL_BY_VERBOSITY))]
    )
    profile = logging_setup.make_profile_settings(
        options.profile, disable=options.log_disable, format=options.log_format, file=options.log_file
    )
    logging_setup.set_up(level, colors=options.log_colors, secrets=options.secrets, **profile)
    for line in warnings:
        log.warning("%s", line)


def _on_signal(stop: threading.Event, leave: Sequence[Callable[[], None]]) -> None:
    """The first signal asks for a clean stop; the second calls the functions in `leave` and ends the process."""
    if stop.is_set():
        for step in leave:
            step()
        logging_setup.flush(logging_setup.SAY_S)
        os._exit(130)
    stop.set()

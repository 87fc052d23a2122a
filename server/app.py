"""The composition root: from the options to a running server, and back down. Its half of the engine.

Runs on the main thread, called by `launch` only. Builds each part and passes it on. Order of starting: the model's
files are looked at, the engine is told what to load, and while it does, `serving` imports the other half (HTTP, JSON,
templates), listens, and waits until the engine is ready. Hence the imports inside functions: here is what every start
needs before the engine can begin, there what can wait or is rarely needed at all.
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
from server.errands.tuned import chosen, remember
from server.errors import FAILED, MISCONFIGURED, PassingError, StartError
from server.loading.engines import make_transport, open_vocab, warn_of_threads, with_advice
from server.log import LogFileError, get_logger
from server.model_files import host_cpus
from server.model_sources import libs_folder, read_model, tunable
from server.options.groups import EngineOptions, LoggingOptions, ModelOptions, Options
from server.options.row import OptionError

if TYPE_CHECKING:
    from server.loading.starter import Starter

VERSION = "0.1.0"
SWITCH_INTERVAL_S = 0.0005
STOPPING = ("SIGINT", "SIGTERM", "SIGBREAK")
"""Signals that ask for an end; the last one is Ctrl-Break, on Windows only."""
TUNE_CTX = 1024  # tokens of each slot while steps are measured

log = get_logger("app")


def run(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """What the options ask for; the exit code. `own` is the bundle that this program is, `process` an engine's that
    has been started for it."""
    try:
        errands = options.errands
        if errands.version:
            print(version(options.engines))
            return 0
        if errands.verify:
            from server.errands import verify

            print(verify.report(Path(libs_folder(options.engines)), own))
            return 0
        if errands.cache_list:
            from server.download import cached_models

            print("\n".join(cached_models()))
            return 0
        if errands.list_devices:
            from server.engine.llama import backend

            libs = libs_folder(options.engines)
            variant = chosen(options.model, "", Path(libs)).cpu_variant
            print("\n".join(backend.device_lines(libs, variant, options.model.rpc)))
            return 0
        if errands.bench:
            return measure(options, errands.bench, argv)
        code = one_shot.run(errands, options.model.sources, own, VERSION)
        return serve(options, own, argv, process) if code is None else code
    except (OptionError, StartError, BundleError, LogFileError, LibsError) as error:
        logging_setup.say(f"error: {error}", sys.stderr)
        return FAILED if isinstance(error, PassingError) else MISCONFIGURED


def measure(options: Options, names: str, argv: Sequence[str]) -> int:
    """`--bench names`: this program as a server of its own, measured; the exit code."""
    if options.http.ssl_key_file:
        raise OptionError("--bench speaks plain HTTP to itself: leave out --ssl-key-file and --ssl-cert-file")
    from server.bench import command  # here, because a server that serves starts faster without it

    model = options.model
    try:
        return command.measure(
            program.own_command(),
            argv,
            command.OWN if names == "own" else names,
            model.sources.model or "",
            model.threads,
            next(iter(options.http.api_key), ""),
        )
    except command.BenchError as error:
        raise OptionError(str(error)) from None


def tune_model(options: ModelOptions, argv: Sequence[str], model: ModelPlace, config: EngineConfig) -> int:
    """`--tune`: one CPU variant measured in this process if one is named, else all of them by children of it."""
    from ctypes_api.folder import read_folder
    from server.errands import tune

    if options.cpu_variant:
        from server.engine.entry.tuning import measure as measure_steps

        print(tune.text_of(measure_steps(config)))
        return 0
    path = tunable(options.sources, model)
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


def version(options: EngineOptions) -> str:
    """`--version`: ours, llama.cpp's, and which libraries would be used."""
    from server.engine.llama import backend

    try:
        return f"llama_srv {VERSION}\nllama.cpp {backend.library_line(libs_folder(options))}"
    except LibsError as error:
        return f"llama_srv {VERSION}\nllama.cpp: {error}"


def serve(options: Options, own: Bundle | None, argv: Sequence[str], process: subprocess.Popen | None) -> int:
    """Load, listen, serve until a signal comes; the exit code. For the parameters see `run`."""
    set_up_logging(options.logging, options.warnings)
    unpacked = program.UnpackedFolder(program.unpacked_folder())
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
    if not options.api.is_2024:  # which knew no such thing
        model = with_advice(model, advice)
    stop, leave = take_signals()
    transport = make_transport(options.engines, model.engine_timeout, config, process)
    engine = EngineClient(transport, lambda: open_vocab(config), options.http.max_text << 20, model.context_shift)
    if place.name and not model.aliases:  # a bundle says what its model is called
        model = model.replace(aliases=(place.name,))
    starter = None
    try:
        engine.start()
        memory.return_large_blocks()
        preload_vocab(options.engines, config.libs)  # `open_vocab` is what the start ends with
        from server import serving  # here, while the engine loads the model

        if model.sleep_idle_seconds >= 0:
            asked = options.model.replace(aliases=model.aliases)  # the file's advice is read anew each time
            starter = make_starter(options.replace(model=asked), own, argv, config.libs, None)
        return serving.serve(
            options.replace(model=model), engine, place.name or place.path, unpacked, stop, leave, starter
        )
    finally:
        engine.close()
        if starter is not None:
            starter.spare.close()


def require_workers(config: EngineConfig) -> None:
    """PassingError if a worker of --rpc doesn't answer: it may be on its way."""
    from server.engine.seam.workers import reachable

    _, faults = reachable(config.rpc)
    if faults:
        raise PassingError(f"--rpc: {faults[0]}")


def serve_many(
    options: Options,
    own: Bundle | None,
    argv: Sequence[str],
    process: subprocess.Popen | None,
    unpacked: program.UnpackedFolder,
) -> int:
    """The same for several models, none of which is loaded before it is asked for."""
    from server import serving

    libs = libs_folder(options.engines)
    starter = make_starter(options, own, argv, libs, process)
    starter.turns = "" if starter.gpus else make_turns()
    try:
        entries = starter.entries()
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
    """The file of the turns that engines on the same cores take, see `engine.seam.turns`; "" where none can be made."""
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
    """What starts models again and again; `process` is an engine's that waits for the first of them."""
    from server.loading import starter  # here, because a server whose model stays has no use for it

    variant = chosen(options.model, options.model.sources.model or "", Path(libs)).cpu_variant
    spare = starter.Spare([libs, variant] if variant else [libs], process)
    return starter.Starter(options, argv, os.environ, own, spare, starter.find_gpus(libs))


def take_signals() -> tuple[threading.Event, list[Callable[[], None]]]:
    """What signals set, and what is put in order before a second one ends everything."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    leave: list[Callable[[], None]] = []
    for name in STOPPING:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: _on_signal(stop, leave))
    return stop, leave


def preload_vocab(options: EngineOptions, libs: str) -> None:
    """Load what opens vocabularies, unless this process has it anyway."""
    if options.engine == "process":
        from server.engine.client import vocab

        vocab.preload(libs)


def set_up_logging(options: LoggingOptions, warnings: Sequence[str]) -> None:
    """Where log lines go, then the warnings that the options have collected."""
    level = (
        logging_setup.VERBOSE
        if options.verbose
        else logging_setup.LEVEL_BY_VERBOSITY[min(options.log_verbosity, max(logging_setup.LEVEL_BY_VERBOSITY))]
    )
    profile = logging_setup.profile_settings(
        options.profile, disable=options.log_disable, format=options.log_format, file=options.log_file
    )
    logging_setup.setup(level, colors=options.log_colors, secrets=options.secrets, **profile)
    for line in warnings:
        log.warning("%s", line)


def _on_signal(stop: threading.Event, leave: Sequence[Callable[[], None]]) -> None:
    """The first signal asks for a clean end, the second ends at once, after what must be left in order."""
    if stop.is_set():
        for step in leave:
            step()
        logging_setup.flush(logging_setup.SAY_S)
        os._exit(130)
    stop.set()

"""The composition root: from the command line to a running server, and back down.

Runs on the main thread, which then only waits for signals. Builds everything else and passes it on; nobody imports
this module but `llama_srv.py`. Order of starting: listen, load the model, serve; of stopping: stop listening, let
requests finish, end the engine.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from server import log as logging_setup
from server.api.context import Context
from server.api.routes import routes
from server.engine import backend
from server.engine.client import EngineClient
from server.engine.config import EngineConfig
from server.engine.model_file import check_model_file
from server.engine.task import READY
from server.engine.thread import ThreadTransport
from server.engine.vocab import open_vocab
from server.errors import ApiError
from server.log import get_logger
from server.options import OptionError, Options, parse, usage
from server.web.httpd import BindError, HttpServer
from server.web.limits import Limits
from server.web.router import Router
from server.web.static import StaticFiles

VERSION = "0.1.0"
SWITCH_INTERVAL_S = 0.0005
ROOT = Path(__file__).resolve().parents[1]

NO_MODEL = """no model given. Three ways to get going:
  python llama_srv.py -m model.gguf       serve a GGUF file that you have
  python build_scripts/quickstart.py      fetch the libraries and a small model, and serve it
  LLAMA_ARG_MODEL=model.gguf              name the file in the environment (see --help for all options)"""

log = get_logger("app")


def main(argv: Sequence[str]) -> int:
    """The whole program; the exit code: 0 after a clean stop, 1 for anything that went wrong."""
    try:
        options = parse(argv, os.environ)
        if options.help:
            print(usage())
            return 0
        if options.version:
            print(version(options))
            return 0
        if options.list_devices:
            print("\n".join(backend.device_lines(backend.find_libs(ROOT, options.libs), options.cpu_variant)))
            return 0
        if not options.model:
            raise OptionError(NO_MODEL)
        check_model_file(options.model)
        return serve(options)
    except (OptionError, ApiError, BindError, backend.LibsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def version(options: Options) -> str:
    """`--version`: ours, llama.cpp's, and which libraries would be used."""
    try:
        return f"llama_srv {VERSION}\nllama.cpp {backend.library_line(backend.find_libs(ROOT, options.libs))}"
    except backend.LibsError as error:
        return f"llama_srv {VERSION}\nllama.cpp: {error}"


def serve(options: Options) -> int:
    """Listen, load, serve until a signal comes; the exit code."""
    logging_setup.setup("DEBUG" if options.verbose else "INFO")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _on_signal(stop))
    config = engine_config(options)
    engine = EngineClient(ThreadTransport(config, backend.open_backend), lambda: open_vocab(config.libs, config.model))
    server = http_server(options, Context(engine, options))
    server.start()
    log.info("listening on %s, loading %s", server.url, options.model)
    engine.start()
    try:
        return _wait(options, engine, server, stop)
    finally:
        server.stop(options.drain if engine.state == READY else 0.0)
        engine.close()


def _wait(options: Options, engine: EngineClient, server: HttpServer, stop: threading.Event) -> int:
    """Until a signal (0) or the end of the engine (1). The waits are short: a signal can't end a long one on Windows."""
    while not stop.is_set() and not engine.wait_until_loaded(0.2):
        _show_progress(engine.progress)
    if engine.state == READY and not stop.is_set():
        info = engine.info
        log.info("%s: %d slots, %d tokens of context each, llama.cpp %s %s", info.desc, info.n_slots,
                 info.n_ctx_slot, info.llama_version, info.variant)
        print(f"llama_srv is ready: {server.url}  (Ctrl-C stops it)", flush=True)
    while not stop.is_set() and engine.state == READY:
        stop.wait(0.5)
    if not stop.is_set():
        print(f"error: {engine.error or 'the engine ended by itself; see the log above'}", file=sys.stderr)
        return 1
    log.info("stopping; running requests have %g s to finish", options.drain)
    return 0


def _on_signal(stop: threading.Event) -> None:
    """The first signal asks for a clean end, the second ends at once."""
    if stop.is_set():
        os._exit(130)
    stop.set()


def _show_progress(progress: float) -> None:
    if sys.stderr.isatty() and progress > 0:
        filled = int(progress * 30)
        end = "\r" if progress < 1 else "\n"
        print(f"loading [{'#' * filled}{'.' * (30 - filled)}] {progress:4.0%}", end=end, file=sys.stderr, flush=True)


def engine_config(options: Options) -> EngineConfig:
    """The engine's part of the options; LibsError if there are no libraries for this machine."""
    return EngineConfig(
        model=options.model, libs=backend.find_libs(ROOT, options.libs), cpu_variant=options.cpu_variant,
        n_slots=options.parallel, n_ctx=options.ctx_size, n_batch=options.batch_size, n_ubatch=options.ubatch_size,
        n_threads=options.threads, n_threads_batch=options.threads_batch, warmup=options.warmup,
        max_queue=options.max_queue, shift_context=options.context_shift,
        model_params={"n_gpu_layers": options.n_gpu_layers})


def http_server(options: Options, context: Context) -> HttpServer:
    """The HTTP edge with all routes; not started yet."""
    limits = Limits(body_bytes=options.max_body << 20, n_connections=options.max_connections,
                    body_s=options.timeout, write_s=options.timeout)
    static = StaticFiles(Path(options.path) if options.path else ROOT / "public")
    return HttpServer(options.host, options.port, Router(routes(context)), limits=limits, static=static)

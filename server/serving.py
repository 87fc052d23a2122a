"""The composition root, second part: HTTP, JSON and templates around the models.

Runs on the main thread. Order at start: listen, wait for the engine of a lone model, serve until a signal comes. Order
at stop: serve on for `drain_delay`, stop listening, let running requests finish, end the engines (requests that still
run get the end of their answers), close the connections that are left.
"""

from __future__ import annotations

import gc
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from server import errors, program
from server.api.context import Context
from server.api.request import constraints
from server.api.routes import make_hints, make_routes
from server.api.stored.store import Store
from server.engine.client.engine_client import EngineClient
from server.engine.seam.task import READY
from server.errands import one_shot
from server.errors import MISCONFIGURED, ApiError, PassingError
from server.log import get_logger, say
from server.models.entry import FAILED, LOADED, SLEEPING, Entry, Starter
from server.models.model import Model, check_chat_template, read_prompt_file
from server.models.models import Models
from server.options.groups import HttpOptions, LoggingOptions, Options, ServiceOptions
from server.options.row import OptionError
from server.service import edge
from server.service.housekeeping import Housekeeping
from server.service.janitor import Janitor
from server.service.run_files import RunFileError
from server.web.httpd import HttpServer
from server.web.listen import BindError
from server.web.router import Router

if TYPE_CHECKING:
    from server.batches.runner import Batches
    from server.evidence.recorder import Recorder
    from server.library.library import Library

LINES_AT_ONCE, MOST_LINES_AT_ONCE = 16, 64
"""Twice as many lines of batches as slots run at the same time, within these two limits."""
PUBLIC = program.ROOT / "public"

log = get_logger("app")


def serve(
    options: Options,
    engine: EngineClient,
    model: str,
    unpacked: program.UnpackedFolder,
    stop: threading.Event,
    leave: list[Callable[[], None]],
    starter: Starter | None = None,
) -> int:
    """Listen, wait for `engine`, serve until `stop` is set. Return the exit code.

    `model` is the model's name if it has no alias. Functions in `leave` are called when a second signal ends the
    process. `starter` loads a sleeping model again. OptionError or PassingError if the server can't start."""
    prompt_file = options.model.system_prompt_file
    try:
        system_prompt = read_prompt_file(prompt_file)
        keys = edge.KeyFiles(options.http)
        context = make_context(options, engine, model, stop, keys, starter)
        context.models.is_prepared = False
        begin = partial(_wait_for_engine, options, engine, system_prompt, stop)
        return _serve(options, context, keys, unpacked, stop, leave, begin)
    except ApiError as error:
        raise OptionError(str(error)) from None


def serve_many(
    options: Options,
    entries: Sequence[Entry],
    starter: Starter,
    unpacked: program.UnpackedFolder,
    stop: threading.Event,
    leave: list[Callable[[], None]],
) -> int:
    """Listen, and serve several models. Each is loaded for a request, or at start if it `is_eager`. See `serve`."""
    catalogue, keys = options.catalogue, edge.KeyFiles(options.http)
    models = Models(
        entries, starter, n_most=catalogue.models_max, autoload=catalogue.models_autoload, may_use=keys.ring.may_use
    )
    context = context_of(options, models, stop, lambda: models.renew(starter.list_entries()))

    def begin(context: Context, house: Housekeeping) -> None:
        log.info("%d models; each is loaded when a request asks for it", len(entries))
        for entry in entries:
            if entry.is_eager:
                models.begin(entry)

    return _serve(options, context, keys, unpacked, stop, leave, begin)


def _serve(
    options: Options,
    context: Context,
    keys: edge.KeyFiles,
    unpacked: program.UnpackedFolder,
    stop: threading.Event,
    leave: list[Callable[[], None]],
    begin: Callable[[Context, Housekeeping], None],
) -> int:
    """Listen, call `begin`, and serve; see `serve`."""
    http, models = options.http, context.models
    path = options.model.sources.model or ""
    try:
        constraints.read_constraint({}, options.model.requests.values)  # reports a wrong --grammar at start
        context.recorder = make_recorder(options.logging, context)
        server = make_server(http, context, keys)
        house = Housekeeping(options.service, http, path, server, keys, models, stop.set)
        leave.append(house.close)
        janitor = None
        try:
            house.start()
            server.start()
            janitor = watch_sockets(server)
            gc.freeze()  # imported objects stay, so the collector needn't look at them
            gc.enable()
            loading = f", loading {models.lone.name}" if models.lone is not None else ""
            log.info("listening on %s%s", " and ".join(server.urls), loading)
            unpacked.remove_unused()
            edge.warn_if_open(http, server, keys, options.logging.verbose)
            begin(context, house)
            if context.batches is not None:
                context.batches.wake()
            if models.is_alive and not stop.is_set():
                house.report("ready")
                say(f"llama_srv is ready: {server.url}{http.api_prefix}  (Ctrl-C stops it)", sys.stdout)
                if options.service.open and not one_shot.open_page(server.url + http.api_prefix):
                    log.warning("--open: no browser found; open the address above yourself")
            return _wait(options.service, models, house, stop)
        finally:
            house.report("stopping")
            if stop.is_set():
                _stand_by(options.service.drain_delay, server, house, models)
            if context.batches is not None:
                context.batches.close()
            if context.library is not None:
                context.library.close()
            server.stop(options.service.drain if models.is_alive else 0.0, models.close)
            models.close()
            if context.recorder is not None:
                context.recorder.close()
            house.close()
            if janitor is not None:
                janitor.close()
    except BindError as error:
        raise PassingError(str(error)) from None
    except (ApiError, RunFileError) as error:
        raise OptionError(str(error)) from None


def make_context(
    options: Options,
    engine: EngineClient,
    name: str,
    stop: threading.Event,
    keys: edge.KeyFiles,
    starter: Starter | None = None,
) -> Context:
    """The context of a server with one model. `name` is the model's name if it has no alias."""
    model = Model(engine, options.model, options.media, name)
    return context_of(options, Models.from_one(model, starter, keys.ring.may_use), stop)


def context_of(
    options: Options, models: Models, stop: threading.Event, renew: Callable[[], None] = lambda: None
) -> Context:
    """The context that all handlers share. `renew` searches the folders of models again."""
    stored = Store(options.api.store_size << 20, options.api.store_dir)
    context = Context(models, options.api, is_shared=edge.is_shared(options.http), stop=stop, stored=stored)
    if options.api.store_dir and options.api.store_size:
        context.batches = open_batches(options, models)
    if options.api.manage_models:
        context.library = open_library(options, models, renew)
    return context


def open_library(options: Options, models: Models, renew: Callable[[], None]) -> Library:
    """The library with which requests of an admin download and remove models."""
    from server.api.admin.library import download_event
    from server.library.library import Library  # here, because it imports an HTTP client

    folder = options.catalogue.models_dir
    return Library(
        program.find_cache_folder(),
        renew,
        lambda download: models.news.tell(download_event(download)),
        folders=[Path(folder)] if folder else [],
        token=options.downloads.hf_token,
        is_offline=options.downloads.offline,
    )


def open_batches(options: Options, models: Models) -> Batches:
    """Files and batches, in the folder of --store-dir."""
    from server.batches.files import Files
    from server.batches.runner import Batches  # here, because most servers have no batches

    folder, lone = Path(options.api.store_dir or ""), models.lone
    return Batches(
        folder / "batches",
        Files(folder / "files", options.api.store_size << 20),
        lambda: models.status(lone) in (LOADED, SLEEPING, FAILED) if lone is not None else not models.are_wanted,
        lambda: min(max(2 * options.model.parallel, LINES_AT_ONCE), MOST_LINES_AT_ONCE),
    )


def make_recorder(options: LoggingOptions, context: Context) -> Recorder | None:
    """The recorder for --record; None without that option. RecordError if the file can't be written."""
    if not options.record:
        return None
    from server.evidence.recorder import Recorder  # here, because most servers record nothing

    about = {"python": platform.python_version(), "system": platform.platform()}
    return Recorder(options.record, options.record_size << 20, context.known_models, about)


def make_server(options: HttpOptions, context: Context, keys: edge.KeyFiles) -> HttpServer:
    """The HTTP server with all routes. It is bound to its addresses, but not started."""
    context.is_admin = keys.ring.is_admin
    table = make_routes(context)
    router = Router(table, options.api_prefix, make_hints(table))
    return edge.make_server(options, router, keys, PUBLIC, context.refusals)


def watch_sockets(server: HttpServer) -> Janitor | None:
    """Have the UNIX sockets removed even if the server is killed; None if that fails."""
    try:
        return Janitor(server.socket_paths)
    except OSError as error:
        log.warning("a socket will stay behind if this server is killed: %s", error)
        return None


def _wait_for_engine(
    options: Options,
    engine: EngineClient,
    system_prompt: object,
    stop: threading.Event,
    context: Context,
    house: Housekeeping,
) -> None:
    """Wait until the lone model is ready or has failed, or `stop` is set; in short intervals, because on Windows
    signals don't interrupt long waits. If it is ready, prepare its system prompt and chat template."""
    from server.chat import choose  # noqa: F401  (imported while the engine loads; the template needs it afterwards)

    models = context.models
    model = models.default
    while not stop.is_set() and not engine.wait_until_loaded(0.2):
        _show_progress(engine.progress)
        house.report_loading(engine.progress)
    info = engine.info
    if engine.state != READY or info is None or stop.is_set():
        return
    if system_prompt is not None:
        model.set_system_prompt(system_prompt)
    if info.is_generative:
        check_chat_template(options.model.template, model)
    models.is_prepared = True
    log.info(
        "%s: %d tokens of context for each slot, slots: %d, llama.cpp %s %s",
        info.desc,
        info.n_ctx_slot,
        info.n_slots,
        info.llama_version,
        info.variant,
    )
    n_asked = options.model.ctx_size if options.model.is_ctx_given else None
    if n_asked and n_asked < info.n_ctx:
        log.warning("the context has %d tokens instead of the requested %d: llama.cpp rounds up", info.n_ctx, n_asked)


def _wait(options: ServiceOptions, models: Models, house: Housekeeping, stop: threading.Event) -> int:
    """Tick until `stop` is set, and return 0. If the lone model can't be loaded, return exit code 1 or 2."""
    if models.is_alive and not stop.is_set() and (models.lone is None or models.default.info.is_generative):
        constraints.prepare()  # last, because few first requests have a constraint
    while not stop.is_set() and models.is_alive:
        stop.wait(house.interval_s)
        house.tick()
        models.tick()
    if not stop.is_set():
        engine = models.default.engine
        say(f"error: {engine.error or 'the engine ended by itself; see the log above'}", sys.stderr)
        return MISCONFIGURED if engine.is_refused else errors.FAILED
    log.info("stopping; running requests have %g s to finish", options.drain_delay + options.drain)
    return 0


def _stand_by(seconds: float, server: HttpServer, house: Housekeeping, models: Models) -> None:
    """Serve on for `seconds`, in which load balancers notice that this server is stopping."""
    if seconds:
        server.wind_down()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and models.is_alive:
        time.sleep(min(left, house.interval_s))
        house.tick()


def _show_progress(progress: float) -> None:
    if progress > 0 and program.can_show_progress():
        filled = int(progress * 30)
        end = "\r" if progress < 1 else "\n"
        say(f"loading [{'#' * filled}{'.' * (30 - filled)}] {progress:4.0%}", sys.stderr, end)

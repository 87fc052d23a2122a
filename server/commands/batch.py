"""`batch IN.jsonl OUT.jsonl -m MODEL`: answers the requests of a file without a server.

The main thread shows the progress. Threads `batch` run the lines through the routes' handlers, and an engine computes
them. The files of answers and errors are the journal (`server.batches.journal`): after an interruption, the same
command continues.

Way not taken: a child server over HTTP, which would add time to each line.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from server import log as logging_setup
from server.api.context import Context
from server.api.routes import make_routes
from server.batches.asking import Asking
from server.batches.journal import Journal
from server.batches.lines import Fault, Line, read_lines
from server.batches.work import Work
from server.commands.catalogue import Call, tell
from server.download.local import Bar
from server.engine.client.engine_client import EngineClient
from server.engine.seam.task import READY
from server.errors import FAILED, MISCONFIGURED, StartError
from server.loading.engines import make_transport, open_vocab, with_advice
from server.model_sources import read_model
from server.models.model import Model, check_chat_template
from server.models.models import Models
from server.options.groups import Options, group
from server.options.parser import OptionError, parse

SLOTS = 16  # the default of --parallel here
MIN_AT_ONCE, MAX_AT_ONCE = 16, 64  # lines that run at the same time
MAX_SHOWN = 10  # faults of the input that are printed
POLL_S = 0.1  # seconds between two updates of the progress
STOPPED = 130  # exit code after Ctrl-C
LEAVE_S = 10.0  # seconds; longest wait for running lines after Ctrl-C
SWITCH_INTERVAL_S = 0.0005  # seconds; of Python's threads, as in a server


def run(call: Call) -> int:
    """Answer all remaining lines. Returns the exit code. OptionError, StartError."""
    source, target = Path(call.names[0]), Path(call.names[1])
    words = [word for _, word in call.options]
    options = group(parse([*words, *([] if call.settings.is_set("parallel") else ["-np", str(SLOTS)])], os.environ))
    logging_setup.set_up(logging_setup.LEVEL_BY_VERBOSITY[choose_level(call)])
    lines, faults = read_input(source)
    if faults:
        for fault in faults[:MAX_SHOWN]:
            tell(f"{source}{f':{fault.line}' if fault.line else ''}: {fault.message}")
        tell(f"error: {source} is not a valid batch; no line was run")
        return MISCONFIGURED
    work = open_work(source, target, lines)
    bar = Bar()
    try:
        is_stopped = not work.is_done and not answer_all(options, work, bar)
    finally:
        work.close()
    failures = get_errors_path(target)
    if not work.n_failed:
        failures.unlink(missing_ok=True)
    n_done = work.n_completed + work.n_failed
    n_open, n_now = work.n_total - n_done, n_done - work.n_before
    errors = f", {work.n_failed:,} errors in {failures}" if work.n_failed else ""
    tell(f"{work.n_completed:,} of {work.n_total:,} lines have answers in {target}{errors}")
    if n_now:
        tell(f"{n_now:,} of them were answered now in {format_duration(bar.seconds)}, {n_now / bar.seconds:.1f}/s")
    if is_stopped:
        tell(f"stopped with {n_open:,} lines left; run the same command to continue")
        return STOPPED
    return FAILED if work.n_failed else 0


def choose_level(call: Call) -> int:
    """The verbosity of the log: warnings, unless the options say otherwise."""
    if call.settings.verbose:
        return 5
    return min(call.settings.log_verbosity, 5) if call.settings.is_set("log_verbosity") else 2


def read_input(path: Path) -> tuple[list[Line], list[Fault]]:
    """The lines of the input, and its faults. OptionError if it can't be read."""
    try:
        with open(path, "rb") as stream:
            return read_lines(stream)
    except OSError as error:
        raise OptionError(f"{path} can't be read: {error.strerror}") from None


def get_errors_path(target: Path) -> Path:
    return target.with_name(f"{target.stem}.errors{target.suffix}")


def open_work(source: Path, target: Path, lines: list[Line]) -> Work:
    """The work that remains. OptionError if the files have answers to other requests, or `target` is `source`."""
    if target.resolve() == source.resolve():
        raise OptionError("the answers can't be written to the file with the requests: name another file")
    journal = Journal(target, get_errors_path(target))
    known = {line.id for line in lines}
    if not journal.answered.ids <= known or not journal.failed.ids <= known:
        journal.close()
        raise OptionError(f"{target} has answers to requests that aren't in {source}: name another file")
    return Work(source, lines, journal)


def answer_all(options: Options, work: Work, bar: Bar) -> bool:
    """Load the model and run all lines. Returns False if that was interrupted. StartError."""
    stop = threading.Event()
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda *_: stop.set())
    place, config, advice = read_model(options.model, options.engines, options.downloads, None)
    model_options = with_advice(options.model, advice)
    transport = make_transport(options.engines, model_options.engine_timeout, config, None)
    engine = EngineClient(
        transport, partial(open_vocab, config), options.http.max_text << 20, model_options.context_shift
    )
    try:
        engine.start()
        model = Model(engine, model_options, options.media, place.name or place.path)
        context = Context(Models.from_one(model), options.api, stop=stop)
        while not engine.wait_until_loaded(POLL_S) and not stop.is_set():
            pass
        if stop.is_set():
            return False
        if engine.state != READY or engine.info is None:
            raise StartError(f"{place.path} can't be loaded: {engine.error}")
        if engine.info.is_generative:
            check_chat_template(model_options.template, model)
        n_at_once = min(max(2 * engine.info.n_slots, MIN_AT_ONCE), MAX_AT_ONCE)
        return ask_all(Asking(make_routes(context)), work, n_at_once, stop, bar)
    finally:
        engine.close()


def ask_all(asking: Asking, work: Work, n_at_once: int, stop: threading.Event, bar: Bar) -> bool:
    """Run all lines, `n_at_once` at the same time. Returns False if that was interrupted. StartError if answers can't
    be written."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    faults: list[OSError] = []

    def ask() -> None:
        while not (faults or work.is_done):
            asked = work.take()
            if asked is None:
                time.sleep(POLL_S)
                continue
            try:
                work.answer(asked, work.ask(asking, asked, ""))
            except OSError as error:
                faults.append(error)

    bar.begin()
    threads = [threading.Thread(target=ask, name="batch", daemon=True) for _ in range(n_at_once)]
    for thread in threads:
        thread.start()
    show_until_done(work, threads, stop, faults, bar)
    if faults:
        raise StartError(f"the answers can't be written: {faults[0].strerror}")
    return work.is_done


def show_until_done(
    work: Work, threads: Iterable[threading.Thread], stop: threading.Event, faults: list[OSError], bar: Bar
) -> None:
    """Show the progress until the threads end. Ctrl-C and faults stop them."""
    while any(thread.is_alive() for thread in threads) and not faults and not stop.wait(POLL_S):
        if bar.is_due():
            n_done = work.n_completed + work.n_failed
            bar.draw("batch", n_done / work.n_total, describe_progress(work, n_done - work.n_before, bar.seconds))
    bar.is_due()
    bar.clear()
    if stop.is_set() or faults:
        work.stop()
        ends = time.monotonic() + LEAVE_S
        for thread in threads:
            thread.join(max(ends - time.monotonic(), 0.0))


def describe_progress(work: Work, n_now: int, seconds: float) -> str:
    """Lines, speed and remaining time. `n_now` lines were answered in `seconds`."""
    n_left = work.n_total - work.n_before - n_now
    text = f"{work.n_total - n_left:,} of {work.n_total:,} lines"
    if work.n_failed:
        text += f", {work.n_failed:,} errors"
    if n_now:
        text += f", {n_now / seconds:.1f}/s, {format_duration(n_left * seconds / n_now)} left"
    return text


def format_duration(seconds: float) -> str:
    """40 s, 3 min or 2 h 5 min."""
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"

"""Starts one of several models: from its entry in the catalogue to an engine that loads, while others serve.

What it does runs on the thread of a load (`server.models.models`); a part of the composition, which brings files,
libraries and processes together. A server whose one model never leaves doesn't import this.

A load is quick where all that doesn't depend on the model has been done before: so there is always a spare process of
an engine, which has imported its half of the program and loaded the libraries, and waits to be told what to load.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ctypes_api.folder import read_folder
from server import program
from server.engine.client import spawn
from server.engine.client.engine_client import EngineClient
from server.engine.llama.fit import wish_of
from server.engine.seam.config import EngineConfig
from server.engine.seam.workers import reachable
from server.errands.bundle import Bundle
from server.loading.engines import make_transport, open_vocab, with_advice
from server.loading.known import Known, Memory
from server.log import get_logger
from server.model_files import host_memory, memory_plan
from server.model_files.memory_plan import Place
from server.model_sources import read_model
from server.models.catalogue import ModelEntry, find_models, model_options
from server.models.entry import FAILED, Entry
from server.models.model import Model, SystemPrompt, check_chat_template, read_prompt_file
from server.models.room import Room
from server.options.groups import ModelOptions, Options
from server.records import field, record, replace

MEMORY = "memory"
"""The name of the host's place."""
ASK_S = 60.0
LATER_S = 0.5
BUSY_S = 30.0  # that a spare process waits at most until nothing is computed
UNKNOWN_ROOM = 1 << 62  # where the system doesn't tell

log = get_logger("models")


@record
class Starter:
    """See `models.entry.Starter`. `argv`, `environ` and the bundle `own` are what the options of each model are read
    from. `gpus` are devices that layers may go to, with what was free of them without any model. `turns` is a file for
    the turns that engines take (`seam.turns`), "" for none."""

    options: Options
    argv: Sequence[str]
    environ: Mapping[str, str]
    own: Bundle | None
    spare: Spare
    gpus: tuple[Place, ...] = ()
    turns: str = ""
    memory: Memory = field(default_factory=Memory)

    def entries(self) -> list[Entry]:
        """All models that the options name. OptionError for presets that are wrong; what is wrong with a model's files
        is told when it is asked for."""
        found = find_models(self.options.catalogue, program.cache_folder(), lambda line: log.warning("%s", line))
        return [self._entry(one) for one in found]

    def _entry(self, one: ModelEntry) -> Entry:
        options = self._options(one) if one.changes else self.options.model
        entry = Entry(one.name, one, one.aliases, one.tags, one.path, one.source, one.size)
        entry.is_eager = one.is_eager
        entry.idle_s = float(options.sleep_idle_seconds)
        if one.fault:
            entry.state, entry.reason = FAILED, one.fault
        return entry

    def _options(self, one: ModelEntry) -> ModelOptions:
        return with_own_folders(
            model_options(one, self.argv, self.environ, self.own.defaults if self.own else ()), one.name
        )

    def idle_s(self, source: ModelEntry, asked: Mapping[str, Any]) -> float:
        """See `models.entry.Starter`."""
        return float(self._options(replace(source, asked=asked)).sleep_idle_seconds)

    def read(
        self, source: ModelEntry | None, before: Model | None, asked: Mapping[str, Any] = MappingProxyType({})
    ) -> PreparedModel:
        """`source` None is the server's one model. Of `before` is kept what has been set since its start."""
        options = self.options.model
        if source is not None:
            source = replace(source, asked=asked)
            options = self._options(source)
        own = self.own if source is None else None
        known = self.memory.read(
            source, options, lambda: read_model(options, self.options.engines, self.options.downloads, own)
        )
        place, config, advice = known.found
        read_ahead(place.path)
        if not self.options.api.is_2024:
            options = with_advice(options, advice)
        return PreparedModel(self, options, known, before, worker_places(config.rpc))

    def tick(self, is_busy: bool) -> None:
        """The main thread: have a spare process again, once that is due."""
        self.spare.tick(is_busy)

    def room(self) -> Room:
        """What may be allocated now."""
        n = host_memory.available()
        return {MEMORY: UNKNOWN_ROOM if n is None else n, **{gpu.name: gpu.free for gpu in self.gpus}}


@record
class PreparedModel:
    """See `models.entry.Prepared`. `n_ctx` is the context that it fits with: the engine, which sees more memory as free
    than is left to it (others' weights are files), takes it as given."""

    starter: Starter
    options: ModelOptions
    known: Known
    before: Model | None
    workers: tuple[Place, ...] = ()
    n_ctx: int | None = None

    @property
    def config(self) -> EngineConfig:
        """What its engine has to know, but for the context."""
        return self.known.found[1]

    def fits(self, room: Room, is_alone: bool) -> Room | None:
        """With a context that is worth having and all layers on the GPU that there is; or alone with any."""
        plan = self._plan(room)
        if plan is None:
            n_bytes = os.path.getsize(self.config.model)
            return {MEMORY: n_bytes} if is_alone or n_bytes <= room[MEMORY] else None
        shape = self.config.shape
        assert shape is not None
        enough = min(self.config.fit_ctx, memory_plan.useful_context(shape.n_ctx_train)) * self.config.n_slots
        has_little = self.config.n_ctx is None and plan.n_ctx < enough
        has_left_gpu = bool(plan.rows[1:]) and self.wish.n_gpu_layers is None and plan.n_gpu_layers <= len(shape.layers)
        if not is_alone and (plan.fault or has_little or has_left_gpu):
            return None
        if plan.fault and self.config.is_fitted:
            return None
        self.n_ctx = plan.n_ctx if self.config.n_ctx is None else self.config.n_ctx
        return {row.place.name: row.used for row in plan.rows}

    def refusal(self, room: Room) -> str:
        """The plan's own words."""
        plan = self._plan(room)
        return plan.fault if plan is not None else "the model doesn't fit into memory"

    def start(self, is_awaited: bool) -> Model:
        """Its engine takes the spare process, if there is one for these libraries."""
        shared, turns = self.starter.options, self.starter.turns
        config = replace(self.config, n_ctx=self.n_ctx, warmup=self.config.warmup and not is_awaited, turns=turns)
        make_folders(self.options)
        process = self.starter.spare.take(config)
        transport = make_transport(shared.engines, self.options.engine_timeout, config, process)
        known, place = self.known, self.known.found[0]
        engine = EngineClient(
            transport, lambda: known.open_vocab(open_vocab), shared.http.max_text << 20, self.options.context_shift
        )
        engine.start(must_wait=not known.is_sound)
        return Model(engine, self.options, shared.media, place.name or place.path)

    def complete(self, model: Model) -> None:
        """Its system prompt and template, as they are or as they have been set."""
        before = self.before
        prompt = read_prompt_file(self.options.system_prompt_file) if before is None else before.system_prompt
        if prompt not in (None, SystemPrompt()):
            model.set_system_prompt(prompt)
        if before is not None and before.lora is not None:
            model.set_lora(before.lora)
        assert model.info is not None
        if model.info.is_generative:
            check_chat_template(self.options.template, model)
        self.starter.spare.refill_later()

    def _plan(self, room: Room) -> memory_plan.Plan | None:
        shape = self.config.shape
        if shape is None:
            return None
        gpus = *self.workers, *(replace(gpu, free=max(room[gpu.name], 0)) for gpu in self.starter.gpus)
        return memory_plan.plan(shape, self.wish, Place(MEMORY, max(room[MEMORY], 0)), gpus)

    @property
    def wish(self) -> memory_plan.Wish:
        """What is asked of the memory."""
        return wish_of(self.config, bool(self.config.shape and self.config.shape.window))


def worker_places(addresses: Sequence[str]) -> tuple[Place, ...]:
    """The devices of the workers that answer, as the engine will name them. What they lend is this model's alone: a
    worker serves one client at a time."""
    if not addresses:
        return ()
    devices = [device for worker in reachable(addresses)[0] for device in worker.devices]
    return tuple(Place(f"RPC{i}", free) for i, (free, _) in enumerate(devices))


DEVICE = re.compile(r"(?P<name>\S+): .*\(\d+ MiB, (?P<free>\d+) MiB free\)")


def find_gpus(libs: str) -> tuple[Place, ...]:
    """The GPUs, and what is free of them. A child asks: a process that has asked a driver keeps memory of the GPU."""
    has_gpu_plugin = any(not name.startswith(("cpu-", "rpc")) for name in read_folder(Path(libs)).plugins)
    if sys.platform != "darwin" and not has_gpu_plugin:
        return ()
    try:
        command = program.own_command("--list-devices", "--libs", libs)
        text = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("what devices there are can't be told (%s): models are planned for the CPU", error)
        return ()
    return gpus_in(text)


def gpus_in(text: str) -> tuple[Place, ...]:
    """Those in the lines of `--list-devices`. Apple's have the host's memory."""
    found = filter(None, map(DEVICE.match, text.splitlines()))
    return tuple(
        Place(one["name"], int(one["free"]) << 20, one["name"].startswith(("MTL", "Metal")))
        for one in found
        if not one["name"].startswith(("CPU", "BLAS", "ACCEL"))
    )


class Spare:
    """An engine's process that waits for its configuration. `start` makes one of the command that the hints of
    `spawn.engine_command` give; `first` runs already.

    Any thread takes it, the main thread alone starts it: on Linux an engine ends with the thread that has started it,
    and those that load models don't live long."""

    def __init__(
        self,
        hints: Sequence[str],
        first: subprocess.Popen | None = None,
        start: Callable[[Sequence[str]], subprocess.Popen] = spawn.start_process,
    ) -> None:
        self._hints = tuple(hints)
        self._start = start
        self._lock = threading.Lock()  # guards what follows
        self._process = first
        self._t_due = math.inf
        self._is_closed = False

    def take(self, config: EngineConfig) -> subprocess.Popen | None:
        """The process, for an engine that has these libraries; None if there is none, which costs time alone."""
        if self._hints != hints_of(config):
            return None
        with self._lock:
            process, self._process = self._process, None
            self._t_due = math.inf  # until the load has ended
        if process is not None and process.poll() is not None:
            spawn.end_process(process)
            return None
        return process

    def refill(self) -> None:
        """The main thread: have one again."""
        with self._lock:
            self._t_due = math.inf
            if self._process is None and not self._is_closed:
                with contextlib.suppress(OSError):  # the next engine is started when it is needed, and will tell
                    self._process = self._start(spawn.engine_command(*self._hints))

    def refill_later(self) -> None:
        """Have one again in a moment: now the model that has been loaded needs the cores for its first answer."""
        with self._lock:
            self._t_due = time.monotonic() + LATER_S

    def tick(self, is_busy: bool) -> None:
        """The main thread, again and again. While engines are at work (`is_busy`), streams would falter for that."""
        if time.monotonic() >= self._t_due + (BUSY_S if is_busy else 0):
            self.refill()

    def close(self) -> None:
        """End it; there will be no other."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process is not None:
            spawn.end_process(process)


def hints_of(config: EngineConfig) -> tuple[str, ...]:
    """What an engine's process loads beforehand."""
    return (config.libs, config.cpu_variant) if config.cpu_variant else (config.libs,)


def with_own_folders(options: ModelOptions, name: str) -> ModelOptions:
    """Folders that several models are given become folders of each, named after it."""
    folder = folder_name(name)
    return options.replace(
        slot_save_path=options.slot_save_path and os.path.join(options.slot_save_path, folder),
        cache_disk=options.cache_disk and os.path.join(options.cache_disk, folder),
    )


def folder_name(name: str) -> str:
    """A model's name as that of a folder: another name is another folder, also where case doesn't count."""
    plain = re.sub(r"[^a-z0-9_-]", "_", name.lower())[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def make_folders(options: ModelOptions) -> None:
    """Those of its own."""
    for folder in (options.slot_save_path, options.cache_disk):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)


def read_ahead(path: str) -> None:
    """Have the system fetch a file while other things are waited for; nothing where it can't be asked."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

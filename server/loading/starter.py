"""Loads a model while the server runs: from its entry in the catalogue to an engine.

Part of the composition root. A load runs on a thread of its own (see `server.models.loads`); the main thread lists
entries and GPUs, and starts spare processes.
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
from server.engine.seam.workers import find_reachable
from server.errands.bundle import Bundle
from server.loading.engines import make_transport, open_vocab, with_advice
from server.loading.known import Known, Memory
from server.log import get_logger
from server.model_files import host_memory, memory_plan
from server.model_files.memory_plan import Place
from server.model_sources import read_model
from server.models.catalogue import ModelEntry, find_models, read_model_options
from server.models.entry import FAILED, Entry
from server.models.model import Model, SystemPrompt, check_chat_template, read_prompt_file
from server.models.room import Room
from server.options.groups import ModelOptions, Options
from server.records import field, record, replace

MEMORY = "memory"
"""The name of the host's memory in a `Room`."""
ASK_S = 60.0  # timeout of the child that lists the devices
LATER_S = 0.5  # seconds from the end of a load to the start of a new spare process
BUSY_S = 30.0  # further seconds for which that start waits if engines are busy
UNKNOWN_ROOM = 1 << 62  # bytes, if the system doesn't report its free memory

log = get_logger("models")


@record
class Starter:
    """See `models.entry.Starter`. The options of each model are read from `argv`, `environ` and the bundle `own`.
    `gpus` are the devices for layers, with the memory that was free on them before any model was loaded. `turns` is the
    file for engines' turns (`seam.turns`), "" for none."""

    options: Options
    argv: Sequence[str]
    environ: Mapping[str, str]
    own: Bundle | None
    spare: Spare
    gpus: tuple[Place, ...] = ()
    turns: str = ""
    memory: Memory = field(default_factory=Memory)

    def list_entries(self) -> list[Entry]:
        """All models that the options name. OptionError for wrong presets. An entry with faulty files has the state
        FAILED."""
        found = find_models(self.options.catalogue, program.find_cache_folder(), lambda line: log.warning("%s", line))
        return [self._make_entry(one) for one in found]

    def _make_entry(self, one: ModelEntry) -> Entry:
        options = self._read_options(one) if one.changes else self.options.model
        entry = Entry(one.name, one, one.aliases, one.tags, one.path, one.source, one.size)
        entry.is_eager = one.is_eager
        entry.idle_s = float(options.sleep_idle_seconds)
        if one.fault:
            entry.state, entry.reason = FAILED, one.fault
        return entry

    def _read_options(self, one: ModelEntry) -> ModelOptions:
        return with_own_folders(
            read_model_options(one, self.argv, self.environ, self.own.defaults if self.own else ()), one.name
        )

    def read_idle_s(self, source: ModelEntry, asked: Mapping[str, Any]) -> float:
        return float(self._read_options(replace(source, asked=asked)).sleep_idle_seconds)

    def read(
        self, source: ModelEntry | None, before: Model | None, asked: Mapping[str, Any] = MappingProxyType({})
    ) -> PreparedModel:
        """`source` is None for a lone model."""
        options = self.options.model
        if source is not None:
            source = replace(source, asked=asked)
            options = self._read_options(source)
        own = self.own if source is None else None
        known = self.memory.read(
            source, options, lambda: read_model(options, self.options.engines, self.options.downloads, own)
        )
        place, config, advice = known.found
        read_ahead(place.path)
        if not self.options.api.is_2024:
            options = with_advice(options, advice)
        return PreparedModel(self, options, known, before, list_worker_places(config.rpc))

    def end_load(self) -> None:
        self.spare.refill_later()

    def tick(self, is_busy: bool) -> None:
        self.spare.tick(is_busy)

    def measure_room(self) -> Room:
        """The memory that is free now; on GPUs, before any load."""
        n = host_memory.read_available()
        return {MEMORY: UNKNOWN_ROOM if n is None else n, **{gpu.name: gpu.free for gpu in self.gpus}}


@record
class PreparedModel:
    """See `models.entry.Prepared`. `n_ctx` is the context, in tokens, with which the model fits."""

    starter: Starter
    options: ModelOptions
    known: Known
    before: Model | None
    workers: tuple[Place, ...] = ()
    n_ctx: int | None = None

    @property
    def config(self) -> EngineConfig:
        """The configuration of its engine, without the context size of `find_fit`."""
        return self.known.found[1]

    def find_fit(self, room: Room, is_alone: bool) -> Room | None:
        """See `room.Fits`. Unless it is alone, a model fits only with a useful context and, if there are GPUs, with all
        layers on them. The options may say otherwise."""
        plan = self._plan(room)
        if plan is None:
            n_bytes = os.path.getsize(self.config.model)
            return {MEMORY: n_bytes} if is_alone or n_bytes <= room[MEMORY] else None
        shape = self.config.shape
        assert shape is not None
        enough = min(self.config.fit_ctx, memory_plan.choose_useful_context(shape.n_ctx_train)) * self.config.n_slots
        has_little = self.config.n_ctx is None and plan.n_ctx < enough
        has_left_gpu = bool(plan.rows[1:]) and self.wish.n_gpu_layers is None and plan.n_gpu_layers <= len(shape.layers)
        if not is_alone and (plan.fault or has_little or has_left_gpu):
            return None
        if plan.fault and self.config.is_fitted:
            return None
        self.n_ctx = plan.n_ctx if self.config.n_ctx is None else self.config.n_ctx
        return {row.place.name: row.used for row in plan.rows}

    def explain_refusal(self, room: Room) -> str:
        plan = self._plan(room)
        return plan.fault if plan is not None else "the model doesn't fit into memory"

    def start(self, is_awaited: bool) -> Model:
        """The engine uses the spare process if that has loaded the same libraries."""
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
        """Set the sleeping model's adapters and system prompt again, or else the options' prompt."""
        before = self.before
        prompt = read_prompt_file(self.options.system_prompt_file) if before is None else before.system_prompt
        if prompt not in (None, SystemPrompt()):
            model.set_system_prompt(prompt)
        if before is not None and before.lora is not None:
            model.set_lora(before.lora)
        assert model.info is not None
        if model.info.is_generative:
            check_chat_template(self.options.template, model)

    def _plan(self, room: Room) -> memory_plan.Plan | None:
        shape = self.config.shape
        if shape is None:
            return None
        gpus = *self.workers, *(replace(gpu, free=max(room[gpu.name], 0)) for gpu in self.starter.gpus)
        return memory_plan.plan(shape, self.wish, Place(MEMORY, max(room[MEMORY], 0)), gpus)

    @property
    def wish(self) -> memory_plan.Wish:
        return wish_of(self.config, bool(self.config.shape and self.config.shape.window))


def list_worker_places(addresses: Sequence[str]) -> tuple[Place, ...]:
    """The devices of the workers that answer, with the names that the engine gives them. No other model can use them,
    because a worker serves one client at a time."""
    if not addresses:
        return ()
    devices = [device for worker in find_reachable(addresses)[0] for device in worker.devices]
    return tuple(Place(f"RPC{i}", free) for i, (free, _) in enumerate(devices))


DEVICE = re.compile(r"(?P<name>\S+): .*\(\d+ MiB, (?P<free>\d+) MiB free\)")


def find_gpus(libs: str) -> tuple[Place, ...]:
    """The GPUs and their free memory; none if asking fails. A child process asks, because asking takes GPU memory until
    that process ends."""
    has_gpu_plugin = any(not name.startswith(("cpu-", "rpc")) for name in read_folder(Path(libs)).plugins)
    if sys.platform != "darwin" and not has_gpu_plugin:
        return ()
    try:
        command = program.make_own_command("--list-devices", "--libs", libs)
        text = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("can't list the devices (%s): models are planned for the CPU only", error)
        return ()
    return parse_gpus(text)


def parse_gpus(text: str) -> tuple[Place, ...]:
    """The GPUs in the output of `--list-devices`. Apple's GPUs use the host's memory."""
    found = filter(None, map(DEVICE.match, text.splitlines()))
    return tuple(
        Place(one["name"], int(one["free"]) << 20, one["name"].startswith(("MTL", "Metal")))
        for one in found
        if not one["name"].startswith(("CPU", "BLAS", "ACCEL"))
    )


class Spare:
    """The spare engine process. `hints` are those of `spawn.make_engine_command`. `first` is a process that runs
    already.

    Any thread may take it, but only the main thread starts it: on Linux an engine's process ends with the thread that
    started it, and threads that load models end soon.
    """

    def __init__(
        self,
        hints: Sequence[str],
        first: subprocess.Popen | None = None,
        start: Callable[[Sequence[str]], subprocess.Popen] = spawn.start_process,
    ) -> None:
        self._hints = tuple(hints)
        self._start = start
        self._lock = threading.Lock()  # guards the fields below
        self._process = first
        self._t_due = math.inf
        self._is_closed = False

    def take(self, config: EngineConfig) -> subprocess.Popen | None:
        """Take the process. None if none with this configuration's libraries runs."""
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
        """Start a spare process if there is none."""
        with self._lock:
            self._t_due = math.inf
            if self._process is None and not self._is_closed:
                with contextlib.suppress(OSError):  # the next load starts a process itself and reports the error
                    self._process = self._start(spawn.make_engine_command(*self._hints))

    def refill_later(self) -> None:
        """Have `tick` start a spare process after `LATER_S`."""
        with self._lock:
            self._t_due = time.monotonic() + LATER_S

    def tick(self, is_busy: bool) -> None:
        """Start a spare process when it is due, but up to `BUSY_S` later while engines work (`is_busy`), because the
        start slows down streams."""
        if time.monotonic() >= self._t_due + (BUSY_S if is_busy else 0):
            self.refill()

    def close(self) -> None:
        """End the spare process, and start no other."""
        with self._lock:
            self._is_closed = True
            process, self._process = self._process, None
        if process is not None:
            spawn.end_process(process)


def hints_of(config: EngineConfig) -> tuple[str, ...]:
    """The libraries' folder and CPU variant, for a spare process for this configuration."""
    return (config.libs, config.cpu_variant) if config.cpu_variant else (config.libs,)


def with_own_folders(options: ModelOptions, name: str) -> ModelOptions:
    """The options with a subfolder for this model in --slot-save-path and --cache-disk, which all models share."""
    folder = make_folder_name(name)
    return options.replace(
        slot_save_path=options.slot_save_path and os.path.join(options.slot_save_path, folder),
        cache_disk=options.cache_disk and os.path.join(options.cache_disk, folder),
    )


def make_folder_name(name: str) -> str:
    """A folder's name for a model. Different models get different names, even where file names ignore case."""
    plain = re.sub(r"[^a-z0-9_-]", "_", name.lower())[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode('utf-8', 'replace')).hexdigest()[:8]}"


def make_folders(options: ModelOptions) -> None:
    for folder in (options.slot_save_path, options.cache_disk):
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)


def read_ahead(path: str) -> None:
    """Ask the operating system to read a file into its cache in the background, if it supports that."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(descriptor)

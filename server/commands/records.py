"""`verify FILE` checks that a record of --record is unchanged, `replay FILE` that its answers are reproduced.

Main thread. `replay` starts an engine process for each model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from server.commands.catalogue import Call
from server.engine.client import spawn
from server.engine.client.engine_client import EngineClient
from server.engine.client.supervisor import Limits, ProcessTransport
from server.engine.client.vocab import open_vocab
from server.engine.seam.config import EngineConfig, compute_patience
from server.engine.seam.task import READY
from server.errors import FAILED, StartError
from server.evidence import chain, models, replay
from server.model_sources import find_libs_folder
from server.options.groups import EngineOptions, Settings
from server.records import replace

STEP_S = 60.0  # seconds of one step after which the engine counts as hanging


def verify(call: Call) -> int:
    print(chain.report(Path(call.names[0])))
    return 0


def run_again(call: Call) -> int:
    """Print a line for each answer that differs. Returns the exit code: 0 if none differs. RecordError if the record
    was changed; StartError."""
    verdicts = replay.Verdicts()
    for about, requests in replay.read(Path(call.names[0])):
        config = adapt_to_here(call.settings, replay.config_of(about))
        transport = ProcessTransport(
            config, spawn.make_engine_command(), Limits(step_s=STEP_S * compute_patience(config)), None
        )
        engine = EngineClient(transport, partial(open_vocab, config.libs, config.model, config.model_offset))
        try:
            engine.start()
            engine.wait_until_loaded()
            if engine.state != READY:
                raise StartError(f"{config.model} can't be loaded: {engine.error}")
            if why := replay.describe_other_model(about, models.describe_engine(engine)):
                print(f"recorded with {why}")
            for line in replay.run(engine, requests, verdicts):
                print(line, flush=True)
        finally:
            engine.close()
    print(verdicts)
    return FAILED if verdicts.n_other else 0


def adapt_to_here(settings: Settings, recorded: EngineConfig) -> EngineConfig:
    """The recorded configuration, with this machine's settings from the command line."""
    must_find = settings.libs or not Path(recorded.libs).is_dir()
    return replace(
        recorded,
        model=next(iter(settings.files), recorded.model),
        libs=find_libs_folder(EngineOptions(libs=settings.libs, engine="process")) if must_find else recorded.libs,
        cpu_variant=settings.cpu_variant or recorded.cpu_variant,
        n_threads=settings.threads if settings.threads > 0 else recorded.n_threads,
    )

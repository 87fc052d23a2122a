"""What a load needs besides an engine: the memory plan, its own folders, the spare process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.engine.seam.config import EngineConfig
from server.loading import starter
from server.loading.known import Known
from server.loading.starter import MEMORY, PreparedModel, Spare, hints_of, make_folder_name, parse_gpus
from server.model_files.memory_plan import MIB, Place
from server.model_files.shape import Layer, Shape
from server.options.groups import group
from server.options.parser import parse

LAYERS = 4
SHAPE = Shape((Layer(10 * MIB, 64, 64),) * LAYERS, MIB, MIB, 0, 8192, 64, 128, 4, 64, 1000)
OPTIONS = group(parse(["-m", "x.gguf"], {})).model


def prepared(gpus: tuple[Place, ...] = (), **fields: object) -> PreparedModel:
    """A model of some 42 MiB."""
    config = EngineConfig("x.gguf", "libs", shape=SHAPE, **fields)
    return PreparedModel(SimpleNamespace(gpus=gpus), OPTIONS, Known(None, (), (None, config, {})), None)


@pytest.mark.covers("D09")
def test_a_model_fits_with_a_context_that_is_worth_having_or_alone_with_any():
    model = prepared()
    takes = model.find_fit({MEMORY: 1000 * MIB}, False)
    assert 42 * MIB < takes[MEMORY] < 500 * MIB
    tight = next(n for n in range(40, 200) if model.find_fit({MEMORY: n * MIB}, True))
    assert model.find_fit({MEMORY: tight * MIB}, False) is None
    assert model.find_fit({MEMORY: 20 * MIB}, True) is None
    assert "doesn't fit" in model.explain_refusal({MEMORY: 20 * MIB})


def test_what_is_asked_for_in_numbers_fits_or_not():
    model = prepared(n_ctx=8192)
    need = model.find_fit({MEMORY: 1000 * MIB}, False)[MEMORY]
    assert model.find_fit({MEMORY: need}, False) and not model.find_fit({MEMORY: need - MIB}, True)
    assert prepared(n_ctx=8192, is_fitted=False).find_fit({MEMORY: 1}, True), "--fit off tries nevertheless"


def test_layers_go_to_the_gpu_and_others_leave_it_for_them():
    model = prepared((Place("CUDA0", 0),))
    roomy = model.find_fit({MEMORY: 1000 * MIB, "CUDA0": 500 * MIB}, False)
    assert roomy["CUDA0"] > 40 * MIB > roomy[MEMORY]
    full = {MEMORY: 1000 * MIB, "CUDA0": 20 * MIB}
    assert model.find_fit(full, False) is None and model.find_fit(full, True)[MEMORY] > 10 * MIB


def test_gpus_are_found_in_what_the_program_says_of_devices():
    text = "libraries: /libs (llama.cpp v1)\nCUDA0: A card (80000 MiB, 79000 MiB free)\nCPU: x (9 MiB, 8 MiB free)\n"
    assert parse_gpus(text) == (Place("CUDA0", 79000 * MIB),)
    assert parse_gpus("MTL0: Apple M2 (8000 MiB, 7000 MiB free)") == (Place("MTL0", 7000 * MIB, True),)


def test_names_of_folders_are_plain_and_differ_as_the_names_do():
    names = ("small", "Small", "user/small:Q4", "user/small_Q4", "..", "a" * 300, "größe")
    folders = [make_folder_name(name) for name in names]
    assert folders[0] == "small" and len({folder.lower() for folder in folders}) == len(names)
    assert all("/" not in folder and "." not in folder and len(folder) < 120 for folder in folders)


class FakeProcess:
    """A child that lives until it doesn't."""

    def __init__(self) -> None:
        self.code = None
        self.n_ended = 0
        self.stdin = self.stdout = self.stderr = SimpleNamespace(close=lambda: None)

    def poll(self):
        return self.code

    def kill(self) -> None:
        self.n_ended += 1

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("variant", [None, "haswell"])
def test_the_spare_process_is_for_engines_with_its_libraries(variant):
    config = EngineConfig("x.gguf", "libs", cpu_variant=variant)
    made: list[FakeProcess] = []
    spare = Spare(hints_of(config), start=lambda command: made.append(FakeProcess()) or made[-1])
    assert spare.take(config) is None, "nobody has started it"
    spare.refill()
    spare.refill()
    assert len(made) == 1
    assert spare.take(EngineConfig("x.gguf", "others")) is None
    assert spare.take(config) is made[0] and spare.take(config) is None
    spare.refill()
    made[1].code = -9
    assert spare.take(config) is None and made[1].n_ended == 1, "one that has died is of no use"
    spare.refill()
    spare.close()
    assert made[2].n_ended == 1
    spare.refill()
    assert len(made) == 3, "the server ends"


def test_the_next_spare_process_comes_once_the_first_answer_has_had_the_cores(monkeypatch):
    made: list[FakeProcess] = []
    spare = Spare(["libs"], start=lambda command: made.append(FakeProcess()) or made[-1])
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(starter, "time", SimpleNamespace(monotonic=lambda: clock.now))
    spare.refill_later()
    spare.tick(False)
    assert made == [], "not at once, nor on the thread of the load, with which it would end"
    clock.now += starter.LATER_S
    config = EngineConfig("x.gguf", "libs")
    assert spare.take(config) is None, "the next load is quicker, and gets the cores alone"
    spare.tick(False)
    assert made == []
    spare.refill_later()
    clock.now += starter.LATER_S
    spare.tick(True)
    assert made == [], "nor while streams would falter"
    spare.tick(False)
    spare.tick(False)
    assert len(made) == 1 and spare.take(config) is made[0]
    spare.refill_later()
    clock.now += starter.LATER_S + starter.BUSY_S
    spare.tick(True)
    assert len(made) == 2, "but not for ever"

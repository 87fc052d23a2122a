"""`--tune`: the winning candidate, what is stored, and when a later start uses it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import app, launch, model_sources
from server.engine.seam.config import EngineConfig
from server.errands import tune, tuned
from server.errands.one_shot import ModelPlace
from server.errands.tuned import NOTHING, Tuned, choose_tuned, recall, remember
from server.options.groups import group
from server.options.parser import parse

# ---- measuring ---------------------------------------------------------------------------------------------------


class Machine:
    """Candidates by their last word, with the factor that their steps take; `told` counts measurements."""

    def __init__(self, factors: dict[str, object], drift: float = 1.0) -> None:
        self.factors, self.drift, self.now = factors, drift, 1.0
        self.told: list[str] = []

    def run(self, words, timeout_s):
        name = words[-1]
        self.told.append(name)
        factor = self.factors[name]
        if isinstance(factor, str):
            return factor
        self.now *= self.drift
        return {kind: n_rows * factor * self.now for n_rows, kind in ((1, "1 row"), (8, "8 rows behind 512"))}


def best(factors: dict[str, object], drift: float = 1.0, n_cores: int = 0) -> Tuned:
    machine = Machine(factors, drift)
    return tune.find_best(
        [name for name in factors if name != tune.AUTO and not name.isdigit()], n_cores, machine.run, lambda line: None
    )


def test_the_quickest_library_wins():
    assert best({"auto": 1.0, "haswell": 0.9, "zen4": 1.01}) == Tuned("haswell")


def test_a_library_has_to_be_quick_in_all_kinds_of_steps():
    runs = {"auto": {"a": 1.0, "b": 1.0}, "one": {"a": 0.8, "b": 1.25}, "two": {"a": 0.95, "b": 0.95}}
    found = tune.find_best(["one", "two"], 0, lambda words, timeout_s: runs[words[-1]], lambda line: None)
    assert found == Tuned("two")


def test_what_is_hardly_quicker_does_not_count():
    assert best({"auto": 1.0, "haswell": 0.99, "zen4": 1.0}) == NOTHING


def test_a_machine_that_slows_down_favours_nobody():
    assert best({"auto": 1.0, "a": 1.0, "b": 1.0, "c": 0.999}, drift=1.004) == NOTHING
    assert best({"auto": 1.0, "a": 1.0, "b": 0.9, "c": 1.0}, drift=1.004) == Tuned("b")


def test_libraries_that_do_not_work_or_are_hopeless_are_left_out():
    machine = Machine({"auto": 1.0, "broken": "doesn't work on this CPU", "old": 3.0, "good": 0.8})
    said: list[str] = []
    assert tune.find_best(["broken", "good", "old"], 0, machine.run, said.append) == Tuned("good")
    assert machine.told.count("broken") == machine.told.count("old") == 1
    assert machine.told.count("good") == machine.told.count("auto") == tune.ROUNDS
    assert any("broken" in line and "doesn't work" in line for line in said)


def test_the_usual_choice_stays_the_measure_however_slow_it_is():
    assert best({"auto": 5.0, "good": 1.0}) == Tuned("good")


def test_nothing_can_be_said_without_the_usual_choice():
    with pytest.raises(ValueError, match="no such model"):
        best({"auto": "no such model", "good": 1.0})


@pytest.mark.parametrize(
    ("factors", "n_threads"),
    [({"8": 1.0, "6": 0.7, "4": 0.9}, 6), ({"8": 1.0, "6": 1.0, "4": 1.2}, -1), ({"8": 1.0, "6": 0.9, "4": 0.5}, 4)],
)
def test_threads_are_measured_where_there_are_some_to_choose_from(factors, n_threads):
    assert best({"auto": 1.0, **factors}, n_cores=8) == Tuned(None, n_threads)


def test_few_cores_are_all_used():
    assert best({"auto": 1.0}, n_cores=3) == NOTHING


def test_figures_are_read_as_they_are_written(tmp_path: Path):
    script = tmp_path / "child.py"
    figures = {
        "1 row": 0.00502,
        "8 rows": 0.0142,
        "128 rows of a prompt": 0.25,
        "1 row behind 512": 0.00711,
        "128 rows of a prompt behind 512": 0.3,
    }
    text = tune.text_of(figures.items())
    assert text.startswith("1 row 5.02 ms, 8 rows 14.20 ms, 128 rows of a prompt 250.00 ms, 1 row behind 512 7.11 ms")
    script.write_text(f"import sys; assert sys.argv[1:] == ['-t', '2', '--tune']; print({text!r})")
    found = tune.run_child([sys.executable, str(script)], ["-t", "2"], 60)
    assert found == pytest.approx(figures)


@pytest.mark.parametrize(
    ("script", "timeout_s", "says"),
    [
        ("import sys; sys.exit('error: the variant x is bad; take another one')", 60, "the variant x is bad"),
        ("import sys; print('1 row 0.00 ms')", 60, "ended with code 0"),
        ("import os; os.abort()", 60, "ended with code"),
        ("import time; time.sleep(600)", 0.5, "much slower"),
    ],
)
def test_a_child_that_does_not_measure_says_why(tmp_path: Path, script: str, timeout_s: float, says: str):
    (tmp_path / "child.py").write_text(script)
    found = tune.run_child([sys.executable, str(tmp_path / "child.py")], [], timeout_s)
    assert isinstance(found, str) and found.startswith(says) and "\n" not in found


def test_children_have_the_same_options():
    assert tune.without_tune(["-m", "x", "--tune", "-np", "4"]) == ["-m", "x", "-np", "4"]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (NOTHING, "nothing is faster"),
        (Tuned("haswell"), "--cpu-variant haswell,"),
        (Tuned("haswell", 6), "--cpu-variant haswell -t 6,"),
        (Tuned(None, 6), "with -t 6,"),
    ],
)
def test_the_report_names_the_options_that_later_starts_take(found: Tuned, says: str):
    assert says in tune.report(found, "a file")


# ---- what is kept --------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> SimpleNamespace:
    """A model, a folder of libraries with one plug-in, and a cache of its own."""
    model, libs = tmp_path / "model.gguf", tmp_path / "libs"
    model.write_bytes(b"GGUF and more")
    libs.mkdir()
    plugin = libs / "libggml-cpu-haswell.so"
    plugin.write_bytes(b"code")
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    return SimpleNamespace(model=str(model), libs=libs, plugin=plugin)


def test_what_was_found_is_there_at_the_next_start(place):
    assert recall(place.model, place.libs) == NOTHING
    path = remember(place.model, place.plugin, Tuned("haswell", 6))
    assert recall(place.model, place.libs) == Tuned("haswell", 6)
    remember(place.model, place.plugin, Tuned("haswell"))
    assert recall(place.model, place.libs) == Tuned("haswell")
    remember(place.model, None, NOTHING)
    assert recall(place.model, place.libs) == NOTHING
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"


def test_threads_alone_need_no_library(place, tmp_path: Path):
    remember(place.model, None, Tuned(None, 3))
    assert recall(place.model, tmp_path / "other libs") == Tuned(None, 3)


def test_each_cpu_has_a_line_of_its_own(place, monkeypatch):
    remember(place.model, place.plugin, Tuned("haswell"))
    monkeypatch.setattr(tuned, "compute_cpu_name", lambda: "another")
    assert recall(place.model, place.libs) == NOTHING
    remember(place.model, None, Tuned(None, 2))
    assert recall(place.model, place.libs) == Tuned(None, 2)
    monkeypatch.undo()


def test_another_model_of_that_name_or_another_library_is_not_meant(place):
    remember(place.model, place.plugin, Tuned("haswell"))
    place.plugin.write_bytes(b"newer code")
    assert recall(place.model, place.libs) == NOTHING
    place.plugin.unlink()
    assert recall(place.model, place.libs) == NOTHING
    place.plugin.write_bytes(b"code")
    assert recall(place.model, place.libs) == Tuned("haswell")
    Path(place.model).write_bytes(b"GGUF and another one")
    assert recall(place.model, place.libs) == NOTHING
    assert recall(place.model + ".missing", place.libs) == NOTHING


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "nonsense",
        "cpu",
        "cpu={cpu}",
        "cpu={cpu} plugin= bytes=x variant=y threads=1",
        "cpu={cpu} plugin= bytes=0 variant= threads=99999",
        "cpu={cpu} plugin=../../etc/passwd bytes=1 variant=x threads=1",
        "cpu={cpu} plugin=libggml-cpu-haswell.so bytes=5 variant=haswell threads=1",
        "\0" * 100,
        "x=" * 100_000,
    ],
)
def test_a_file_that_is_no_good_is_none(place, text: str):
    path = remember(place.model, None, Tuned(None, 2))
    path.write_text(text.replace("{cpu}", tuned.compute_cpu_name()), "utf-8")
    assert recall(place.model, place.libs) == NOTHING
    path.write_bytes(b"\xff\xfe\xff")
    assert recall(place.model, place.libs) == NOTHING
    path.unlink()
    path.mkdir()
    assert recall(place.model, place.libs) == NOTHING


def test_a_new_measurement_replaces_a_damaged_file(place):
    remember(place.model, None, Tuned(None, 2)).write_bytes(b"\xff\xfe\xff")
    remember(place.model, None, Tuned(None, 3))
    assert recall(place.model, place.libs) == Tuned(None, 3)


# ---- who takes it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], Tuned("haswell", 6)),
        (["--cpu-variant", "auto"], Tuned(None, 6)),
        (["--cpu-variant", "zen4"], Tuned("zen4", 6)),
        (["-t", "2"], Tuned("haswell", 2)),
    ],
    ids=lambda argv: " ".join(argv) if isinstance(argv, list) else "",
)
def test_options_that_are_given_count_more(place, argv: list[str], expected: Tuned):
    remember(place.model, place.plugin, Tuned("haswell", 6))
    assert choose_tuned(group(parse(argv, {})).model, place.model, place.libs) == expected


@pytest.mark.parametrize(
    ("argv", "expected"), [([], NOTHING), (["--cpu-variant", "zen4"], Tuned("zen4"))], ids=lambda value: str(value)
)
def test_tuning_starts_from_what_is_given_and_not_from_what_was_found(place, monkeypatch, argv, expected: Tuned):
    remember(place.model, place.plugin, Tuned("haswell", 6))
    configs: list[EngineConfig] = []
    monkeypatch.setattr(model_sources, "find_model", lambda *_: (ModelPlace(place.model), []))
    monkeypatch.setattr(model_sources, "find_folder", lambda root, explicit: place.libs)
    monkeypatch.setattr(app, "set_up_logging", lambda *_: None)
    monkeypatch.setattr(app, "tune_model", lambda options, argv, place, config: configs.append(config) or 0)
    assert app.serve(group(parse(["-m", place.model, "-np", "3", "--tune", *argv], {})), None, (), None) == 0
    (config,) = configs
    assert Tuned(config.cpu_variant, config.n_threads) == expected
    assert (config.n_slots, config.n_ctx) == (3, 3 * app.TUNE_CTX)


@pytest.mark.parametrize(("n_cores", "argv", "n_threads"), [(8, [], 6), (4, [], 4), (4, ["-t", "7"], 7)])
def test_the_engine_loads_what_the_configuration_will_name(place, monkeypatch, n_cores, argv, n_threads):
    monkeypatch.setattr(
        model_sources.host_cpus, "count_usable_cores", lambda: n_cores
    )  # found with more of them, maybe
    remember(place.model, place.plugin, Tuned("haswell", 6))
    options = group(parse(["-m", place.model, *argv], {}))
    monkeypatch.setattr(launch, "find_folder", lambda root, explicit: place.libs)
    config = model_sources.make_engine_config(options.model, str(place.libs), ModelPlace(place.model))
    assert (config.cpu_variant, config.n_threads) == ("haswell", n_threads)
    assert launch.find_library_hints(options) == [str(place.libs), "haswell"]


def test_the_model_inside_this_program_has_no_file_to_know_it_by(place):
    inside = ModelPlace(place.model, bundle=SimpleNamespace())

    def tunable(place: ModelPlace, *argv: str) -> str:
        return model_sources.get_tunable(group(parse(argv, {})).model.sources, place)

    assert tunable(inside) == ""
    assert tunable(inside, "-m", place.model) == place.model
    assert tunable(ModelPlace(place.model), "-hf", "a/b") == place.model

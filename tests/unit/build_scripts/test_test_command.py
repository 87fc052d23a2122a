"""`build_scripts/test.py`: its steps, steps that fail, and its exit code.

Nothing is installed or fetched: the steps and the run of pytest are replaced, the logic around them is not.
"""

from __future__ import annotations

import importlib.util
import subprocess
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.support import ROOT, build_script

STEPS = (
    "packages",
    "libraries",
    "built_libraries",
    "model",
    "embedding_model",
    "browser",
    "balancers",
    "node_packages",
)
CHECKS = ("ruff", "ruff", "mypy")


@pytest.fixture
def script() -> ModuleType:
    """A fresh copy of the script as a module; its plain name belongs to the standard library's `test`."""
    build_script("common")
    spec = importlib.util.spec_from_file_location("test_command", ROOT / "build_scripts" / "test.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Calls:
    """Stands for everything that would change the machine; `.done` is what would have happened."""

    def __init__(
        self, script: ModuleType, monkeypatch: pytest.MonkeyPatch, exit_codes: Sequence[int] = (0,), faulty: str = ""
    ) -> None:
        self.done: list[str] = []
        self.runs: list[list[str]] = []  # the arguments of each run of pytest
        self.environment: dict[str, str] = {}

        def prepare(name: str) -> Callable[..., str]:
            return lambda *_: self.done.append(name) or "ready"

        def run_process(command: list[str], *, env: dict[str, str], **_: object) -> SimpleNamespace:
            assert command[1] == "-m"
            self.done.append(command[2])
            if command[2] != "pytest":
                return SimpleNamespace(returncode=2 * (command[2] == faulty))
            self.runs.append(command[3:])
            self.environment = env
            return SimpleNamespace(returncode=exit_codes[min(len(self.runs), len(exit_codes)) - 1])

        for name in STEPS:
            monkeypatch.setattr(script, f"prepare_{name}", prepare(name))
        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run_process))
        for variable in ("CI", "LLAMA_SRV_TEST_LONG"):
            monkeypatch.delenv(variable, raising=False)

    @property
    def arguments(self) -> list[str]:
        """Those of the only run."""
        (arguments,) = self.runs
        return arguments


def cannot(script: ModuleType, reason: str) -> Callable[[], str]:
    def prepare() -> str:
        raise script.Missing(reason)

    return prepare


def test_everything_is_prepared_and_all_tests_run(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    assert script.main([]) == 0
    assert calls.done == [*STEPS, *CHECKS, "pytest", "pytest", "pytest"]
    quick, shared, alone = calls.runs
    assert quick == ["tests/unit", "tests/api", "-n", "auto"]
    browsers = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "e2e").glob("test_browser*.py"))
    assert shared == ["tests/native", *browsers, "-n", "auto", "--dist", "loadfile"] and len(browsers) > 9
    folder, ignored = alone
    assert folder == "tests/e2e"
    ignores = ignored.removeprefix("--ignore-glob=")
    assert {path.as_posix() for path in (ROOT / "tests" / "e2e").glob("*.py") if path.match(ignores)} == {
        str(ROOT / path) for path in browsers
    }


@pytest.mark.parametrize(("codes", "code"), [((0, 5), 0), ((5, 0), 0), ((5, 5), 1), ((0, 1), 1), ((1, 0), 1)])
def test_a_part_without_tests_is_no_fault_if_the_other_has_some(script, monkeypatch, codes, code):
    Calls(script, monkeypatch, codes)
    assert script.main(["-k", "web"]) == code


def test_unit_needs_only_the_packages(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    assert script.main(["--unit", "-x"]) == 0
    assert calls.done == ["packages", *CHECKS, "pytest"]
    assert calls.arguments == ["tests/unit", "tests/api", "-n", "auto", "-x"]


def test_other_arguments_reach_pytest_in_order(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    script.main(["-k", "web and not slow", "--long", "tests/unit/test_layers.py::test_x", "-q"])
    assert calls.arguments == ["-k", "web and not slow", "tests/unit/test_layers.py::test_x", "-q"]
    assert calls.environment["LLAMA_SRV_TEST_LONG"] == "1"


def test_unit_with_named_tests_runs_just_those(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    script.main(["--unit", "tests/unit/test_layers.py::test_x"])
    assert calls.arguments == ["tests/unit/test_layers.py::test_x"]


@pytest.mark.parametrize("faulty", CHECKS[1:])
def test_what_a_checker_finds_fails_the_run_and_the_tests_run_all_the_same(script, monkeypatch, faulty):
    calls = Calls(script, monkeypatch, faulty=faulty)
    assert script.main([]) == 1
    assert calls.done[-1] == "pytest"


def test_named_tests_run_without_the_checkers(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    script.main(["tests/unit/test_layers.py"])
    assert calls.done == [*STEPS, "pytest"]


def test_the_users_python_path_stays_out(script, monkeypatch):
    calls = Calls(script, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    script.main([])
    assert "PYTHONPATH" not in calls.environment
    assert calls.environment["PYTHONNOUSERSITE"] == "1"


@pytest.mark.parametrize("code, expected", [(0, 0), (1, 1), (2, 2), (5, 1)])
def test_exit_code_is_pytests_but_no_tests_is_an_error(script, monkeypatch, code, expected):
    Calls(script, monkeypatch, (code,))
    assert script.main([]) == expected


def test_a_missing_browser_is_named_at_the_end(script, monkeypatch, capsys):
    calls = Calls(script, monkeypatch)
    monkeypatch.setattr(script, "prepare_browser", cannot(script, "no right to install it"))
    assert script.main([]) == 0
    assert calls.done[-1] == "pytest"
    last = capsys.readouterr().out.splitlines()[-1]
    assert "browser" in last and "no right to install it" in last


def test_in_ci_what_is_missing_ends_the_run(script, monkeypatch, capsys):
    calls = Calls(script, monkeypatch)
    monkeypatch.setattr(script, "prepare_libraries", cannot(script, "no network"))
    monkeypatch.setenv("CI", "true")
    assert script.main([]) == 1
    assert "pytest" not in calls.done
    assert "no network" in capsys.readouterr().err


def test_help_does_nothing_else(script, monkeypatch, capsys):
    calls = Calls(script, monkeypatch)
    assert script.main(["--help"]) == 0
    assert calls.done == []
    assert "--unit" in capsys.readouterr().out


def test_a_change_of_the_requirements_makes_another_environment(script, monkeypatch, tmp_path):
    before = script.get_environment_folder()
    assert before == script.get_environment_folder()
    changed = tmp_path / "requirements.txt"
    changed.write_text(script.REQUIREMENTS.read_text(encoding="utf-8") + "another==1.0\n", encoding="utf-8")
    monkeypatch.setattr(script, "REQUIREMENTS", changed)
    assert script.get_environment_folder() != before


def test_a_half_made_environment_is_not_taken_for_a_whole_one(script, monkeypatch, tmp_path):
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / "started").touch()
        raise script.Failure("pip couldn't install")

    monkeypatch.setattr(script, "make_environment", make)
    with pytest.raises(script.Failure):
        script.prepare_packages(tmp_path / "environments" / "py")
    assert list((tmp_path / "environments").iterdir()) == []


def test_without_the_right_to_install_a_browser_it_says_how(script, monkeypatch):
    monkeypatch.setattr(script, "find_browser", lambda: "")
    monkeypatch.setattr(script.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(script.os, "geteuid", lambda: 1000, raising=False)
    with pytest.raises(script.Missing, match="sudo apt-get install chromium chromium-driver"):
        script.prepare_browser()


def test_installing_a_browser_is_tried_again(script, monkeypatch):
    installs = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        installs.append("install" in command)
        return subprocess.CompletedProcess(command, 0 if sum(installs) > 1 else 100, stdout="a mirror failed")

    monkeypatch.setattr(script, "find_browser", lambda: "/usr/bin/chromedriver" if sum(installs) > 1 else "")
    monkeypatch.setattr(script.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(script.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(script.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setenv("CI", "true")
    assert script.prepare_browser().startswith("installed")
    assert installs == [False, True, False, True]


@pytest.mark.parametrize(
    "is_terminal, answer, is_installed", [(False, "y", False), (True, "", False), (True, "y", True)]
)
def test_outside_ci_nothing_is_installed_into_the_system_without_a_yes(
    script, monkeypatch, is_terminal, answer, is_installed
):
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(script, "find_browser", lambda: "/usr/bin/chromedriver" if calls else "")
    monkeypatch.setattr(script.shutil, "which", lambda name: "/usr/bin/apt-get")
    monkeypatch.setattr(script.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.sys, "stdin", types.SimpleNamespace(isatty=lambda: is_terminal))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if is_installed:
        assert script.prepare_browser().startswith("installed")
    else:
        with pytest.raises(script.Missing, match="apt-get install chromium"):
            script.prepare_browser()
    assert bool(calls) == is_installed


@pytest.mark.parametrize("codes, is_there", [([1, 1, 0], True), ([1, 1, 1], False)])
def test_what_the_network_spoils_is_tried_again_in_ci(script, monkeypatch, codes, is_there):
    pauses = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, codes.pop(0), stdout="/a/folder\n")

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.time, "sleep", pauses.append)
    monkeypatch.setenv("CI", "true")
    if is_there:
        assert script.run_script("fetch_libs.py") == "/a/folder"
    else:
        with pytest.raises(script.Missing, match="fetch_libs.py` failed"):
            script.run_script("fetch_libs.py")
    assert codes == [] and pauses == [5, 10]


def test_packages_for_node_come_by_npm_and_only_whole(script, monkeypatch, tmp_path):
    codes, commands = [1, 0], []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (Path(command[command.index("--prefix") + 1]) / "node_modules").mkdir()
        return subprocess.CompletedProcess(command, codes.pop(0))

    monkeypatch.setattr(script, "find_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(script.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(script.Missing, match="npm install openai@"):
        script.prepare_node_packages()
    assert not script.get_node_packages_folder().exists()
    assert script.prepare_node_packages().startswith("installed")
    assert (script.get_node_packages_folder() / "node_modules").is_dir()
    assert script.prepare_node_packages() == "ready" and len(commands) == 2
    assert commands[0][1:3] == ["install", "--ignore-scripts"]


def test_without_npm_it_says_what_to_install(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "find_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(script.Missing, match="Node.js"):
        script.prepare_node_packages()

"""Set up the tests' environment, check the source, run the tests: `python build_scripts/test.py [--unit] [--long] ...`.

A command; one thread; imports the standard library and `common`. The first step prepares an environment with the
packages of requirements-dev.txt, in the cache folder. Each version of that file or interpreter has its own. Without
--unit more steps follow: native libraries, small models, browsers, load balancers, packages for Node.js. If one of
these isn't possible on this machine, the tests that need it are skipped, and a line at the end says so; with CI=true
the run fails.

Ways not taken: tox or nox (they have to be installed first), the user's site-packages (they should stay unchanged), a
prebuilt container image (CI starts from a bare machine).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NamedTuple

from common import ROOT, Failure, find_cache_folder, make_temp_folder, run_main, swap_in

REQUIREMENTS = ROOT / "requirements-dev.txt"
UNIT_FOLDERS = ("tests/unit", "tests/api")
E2E = "tests/e2e"
BROWSER_TESTS = f"{E2E}/test_browser*.py"
ON_ALL_CORES = ("-n", "auto", "--dist", "loadfile")  # a file's tests share servers and models
BROWSER_PACKAGES = ("chromium", "chromium-driver", "jq", "curl")
FIREFOX_PACKAGES = ("firefox-esr",)
BALANCERS = ("nginx", "haproxy")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHECKS = (("ruff", "check", "--quiet", "."), ("ruff", "format", "--check", "--quiet", "."), ("mypy",))
NODE_PACKAGES = (
    "openai@7.57.0",
    "ai@6.0.326",
    "@ai-sdk/openai-compatible@2.0.92",
    "@anthropic-ai/sdk@1.14.0",
    "ollama@0.6.4",
    "axe-core@4.10.3",
)
ATTEMPTS = 3  # for steps that need the network, in CI; for apt-get always
NO_TESTS_RAN = 5  # pytest's exit code

USAGE = """usage: python build_scripts/test.py [--unit] [--long] [pytest arguments]

  --unit   run only the quick tests, which need no native library, model or browser
  --long   also run tests that take minutes
All other arguments go to pytest: -k NAME, -x, -v, tests/unit/test_layers.py, ...
With CI=true, a step of the set-up that isn't possible is an error.
"""


class Missing(Exception):
    """A step isn't possible on this machine. The message: the reason, or what the user can do."""


class Step(NamedTuple):
    """A step of the set-up. `prepare` returns a few words about the result, or raises Missing or Failure."""

    name: str
    prepare: Callable[[], str]


def main(argv: list | None = None) -> int:
    """Run the command; returns pytest's exit code, or 1 if a step failed, a check found faults or no test ran."""
    return run_main("test", lambda: run_command(list(sys.argv[1:] if argv is None else argv)))


def run_command(arguments: list) -> int:
    if arguments[:1] in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    quick = take(arguments, "--unit")
    environment = {**os.environ, "PYTHONNOUSERSITE": "1"}
    environment.pop("PYTHONPATH", None)
    environment.pop("PYTHONHOME", None)
    if take(arguments, "--long"):
        environment["LLAMA_SRV_TEST_LONG"] = "1"
    strict = os.environ.get("CI") == "true"
    steps = [Step("packages", lambda: prepare_packages(get_environment_folder()))]
    if not quick:
        steps += [
            Step("libraries", prepare_libraries),
            Step("built libraries", prepare_built_libraries),
            Step("model", prepare_model),
            Step("embedding model", prepare_embedding_model),
            Step("browser", prepare_browser),
            Step("second browser", prepare_firefox),
            Step("balancers", prepare_balancers),
            Step("Node.js packages", prepare_node_packages),
        ]
    missing = [line for line in [run_step(step, strict) for step in steps] if line]
    is_whole = not any(is_test_path(argument) for argument in arguments)
    faulty = run_checks(environment) if is_whole else []
    codes = [run_pytest(words, environment) for words in parts_of(arguments, is_whole, quick)]
    code = choose_code(codes) or min(len(faulty), 1)
    for name in faulty:
        say(f"{name} found faults: see its output above the tests")
    for line in missing:
        say(f"not available: {line}")
    return code


def parts_of(arguments: list, is_whole: bool, quick: bool) -> list:
    """The arguments of each run of pytest. If the user names no tests, most run on all cores; then those of tests/e2e
    (not the browser's) one after the other."""
    if not is_whole:
        return [arguments]
    parts = [[*UNIT_FOLDERS, "-n", "auto", *arguments]]
    if not quick:
        browser_tests = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(BROWSER_TESTS))
        parts.append(["tests/native", *browser_tests, *ON_ALL_CORES, *arguments])
        parts.append([E2E, f"--ignore-glob={ROOT / BROWSER_TESTS}", *arguments])
    return parts


def take(arguments: list, flag: str) -> bool:
    """Remove a flag from the arguments; returns whether it was there."""
    found = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return found


def is_test_path(argument: str) -> bool:
    """Whether an argument is a path in the repository, or names a test in one (`tests/unit/test_layers.py::test_x`)."""
    return not argument.startswith("-") and (ROOT / argument.partition("::")[0]).exists()


def say(text: str) -> None:
    print(f"test: {text}", flush=True)


def run_step(step: Step, strict: bool) -> str:
    """Run one step; returns `""`, or one line about what is missing. With `strict` that raises Failure."""
    begun = time.monotonic()
    say(f"{step.name} ...")
    try:
        outcome, trouble = step.prepare(), ""
    except Missing as reason:
        if strict:
            raise Failure(f"{step.name}: {reason} (required with CI=true)") from reason
        outcome, trouble = f"missing: {reason}", f"{step.name} ({reason}); the tests that need this are skipped"
    say(f"{step.name}: {outcome} [{time.monotonic() - begun:.1f} s]")
    return trouble


def retry(what: str, attempt: Callable[[], str], attempts: int | None = None) -> str:
    """Returns `""`, or the error of the last attempt.

    Makes up to `attempts` attempts; by default one, in CI (CI=true) `ATTEMPTS`.
    """
    attempts = attempts or (ATTEMPTS if os.environ.get("CI") == "true" else 1)
    for number in range(1, attempts + 1):
        trouble = attempt()
        if not trouble or number == attempts:
            return trouble
        say(f"attempt {number} of {attempts} to {what} failed: {trouble}")
        time.sleep(number * 5)
    raise AssertionError("not reached")


def run_checks(environment: dict) -> list:
    """Returns the names of the checks that found faults."""
    faulty = []
    for words in CHECKS:
        begun = time.monotonic()
        command_line = [str(get_python(get_environment_folder())), "-m", *words]
        found = subprocess.run(command_line, cwd=ROOT, env=environment, check=False).returncode
        say(f"{' '.join(words)}: {'faults, see above' if found else 'fine'} [{time.monotonic() - begun:.1f} s]")
        if found:
            faulty.append(" ".join(words))
    return faulty


def choose_code(codes: list) -> int:
    """The highest of pytest's exit codes; 1 if no run found a test."""
    return max((code for code in codes if code != NO_TESTS_RAN), default=1)


def run_pytest(arguments: list, environment: dict) -> int:
    begun = time.monotonic()
    command_line = [str(get_python(get_environment_folder())), "-m", "pytest", *arguments]
    say("pytest " + " ".join(arguments))
    code = subprocess.run(command_line, cwd=ROOT, env=environment, check=False).returncode
    say(f"pytest: exit code {code} [{time.monotonic() - begun:.1f} s]")
    return code


# --- packages ---------------------------------------------------------------------------------------------


def get_environment_folder() -> Path:
    key = "\n".join((sys.version, sys.base_prefix, REQUIREMENTS.read_text(encoding="utf-8")))
    name = f"py{sys.version_info[0]}{sys.version_info[1]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return find_cache_folder() / "test-environments" / name


def get_python(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def prepare_packages(folder: Path) -> str:
    """Make the environment under another name, then rename it, so that a folder with the final name is always complete.

    The environment's scripts contain the first name and don't work, but only `python -m` is used.
    """
    if get_python(folder).exists():
        return "ready"
    with make_temp_folder(folder.parent, "new") as temp:
        make_environment(temp / "environment")
        swap_in(temp / "environment", folder, temp)
    return f"installed into {folder}"


def make_environment(folder: Path) -> None:
    """Make an environment with the test packages, by this Python's pip, else by the environment's own.

    Debian's Python has no `ensurepip` unless python3-venv is installed, but it often has pip.
    """
    environment = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    install = ["-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)]
    if can_run([sys.executable, "-m", "pip", "--version"]):
        made = can_run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        install = [sys.executable, *install, "--target", str(get_site_packages(folder))]
    else:
        made = can_run([sys.executable, "-m", "venv", str(folder)])
        install = [str(get_python(folder)), *install]
    if not made:
        raise Failure(
            f"{sys.executable} can't make an environment: install its pip and venv modules "
            "(Debian, Ubuntu: apt install python3-pip python3-venv), then run this again"
        )
    if retry(
        "install the test packages",
        lambda: "see above" if subprocess.run(install, env=environment, check=False).returncode else "",
    ):
        raise Failure("pip couldn't install the test packages, see above: fix that, then run this again")


def get_site_packages(folder: Path) -> Path:
    if os.name == "nt":
        return folder / "Lib" / "site-packages"
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def can_run(command_line: list) -> bool:
    return (
        subprocess.run(
            command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


# --- libraries, model -------------------------------------------------------------------------------------


def prepare_libraries() -> str:
    """Fetch the native libraries, unless LLAMA_SRV_LIBS names a folder."""
    given = os.environ.get("LLAMA_SRV_LIBS")
    return f"from LLAMA_SRV_LIBS, {given}" if given else run_script("fetch_libs.py")


def prepare_built_libraries() -> str:
    """Add libmtmd and libggml-rpc to the libraries, unless LLAMA_SRV_LIBS names a folder."""
    given = os.environ.get("LLAMA_SRV_LIBS")
    return f"from {given}" if given else run_script("fetch_libs.py", "--with-mtmd", "--with-rpc")


def prepare_model() -> str:
    return run_script("fetch_model.py")


def prepare_embedding_model() -> str:
    """Fetch the published embedding model that the tests compare with."""
    return run_script("fetch_model.py", "--embedding")


def run_script(name: str, *arguments: str) -> str:
    """Run another script of this folder; returns the path that it prints."""
    command, said = " ".join(["python build_scripts/" + name, *arguments]), ""

    def attempt() -> str:
        nonlocal said
        done = subprocess.run(
            [sys.executable, str(ROOT / "build_scripts" / name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        said = done.stdout.strip()
        return "see above" if done.returncode else ""

    if retry(f"run `{command}`", attempt):
        raise Missing(f"`{command}` failed, see above")
    return said or "ready"


# --- browser ----------------------------------------------------------------------------------------------


def find_browser() -> str:
    """The driver's path if browser, driver, jq and curl are installed, else `""`."""
    is_complete = any(map(shutil.which, BROWSERS)) and all(map(shutil.which, ("jq", "curl")))
    return (shutil.which("chromedriver") or "") if is_complete else ""


def may_install(packages: str) -> bool:
    if os.environ.get("CI") == "true":
        return True
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    try:
        return input(f"test: install {packages} into this system with apt-get? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def prepare_browser() -> str:
    return prepare_system_packages(BROWSER_PACKAGES, find_browser, "install Chromium or Chrome, and chromedriver")


def prepare_firefox() -> str:
    return prepare_system_packages(FIREFOX_PACKAGES, find_firefox, "install Firefox")


def find_firefox() -> str:
    return shutil.which("firefox") or shutil.which("firefox-esr") or ""


def prepare_balancers() -> str:
    return prepare_system_packages(BALANCERS, find_balancers, "install nginx and HAProxy")


def find_balancers() -> str:
    found = [shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in BALANCERS]
    return ", ".join(found) if all(found) else ""


def prepare_system_packages(names: tuple, found: Callable[[], str], advice: str) -> str:
    """Install packages with apt-get unless `found` returns a path. `advice`: for systems without apt-get."""
    if found():
        return f"ready, {found()}"
    packages = " ".join(names)
    if not shutil.which("apt-get"):
        raise Missing(advice)
    if os.geteuid() != 0:
        raise Missing(f"not installed; run sudo apt-get install {packages}")
    if not may_install(packages):
        raise Missing(f"not installed; run apt-get install {packages}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt_get = ["apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"]

    def attempt() -> str:
        # The package lists of a new machine are empty, and those of an old one name deleted files.
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *names]):
            done = subprocess.run(
                [*apt_get, *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        return "" if done.returncode == 0 and found() else f"output of apt-get:\n{done.stdout[-2000:]}"

    if trouble := retry(f"install {packages}", attempt, ATTEMPTS):
        raise Missing(f"installing {packages} failed, {trouble}")
    return f"installed, {found()}"


# --- Node.js ----------------------------------------------------------------------------------------------


def get_node_packages_folder() -> Path:
    """The folder for this list of packages; they are in its `node_modules`."""
    key = hashlib.sha256(" ".join(NODE_PACKAGES).encode()).hexdigest()[:12]
    return find_cache_folder() / "test-environments" / f"node-{key}"


def prepare_node_packages() -> str:
    """Install the packages with npm, without running their scripts."""
    folder, npm = get_node_packages_folder(), shutil.which("npm")
    if folder.exists():
        return "ready"
    if not npm or not shutil.which("node"):
        raise Missing("install Node.js with npm")
    with make_temp_folder(folder.parent, "node") as temp:
        (temp / "packages").mkdir()
        command_line = [
            npm,
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--no-package-lock",
            "--loglevel",
            "error",
            "--prefix",
            str(temp / "packages"),
            *NODE_PACKAGES,
        ]
        if retry(
            "install packages for Node.js",
            lambda: (
                "see above"
                if subprocess.run(
                    command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False
                ).returncode
                else ""
            ),
        ):
            raise Missing(f"`npm install {' '.join(NODE_PACKAGES)}` failed, see above")
        swap_in(temp / "packages", folder, temp)
    return f"installed into {folder}"


if __name__ == "__main__":
    sys.exit(main())

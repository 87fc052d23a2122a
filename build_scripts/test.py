"""Make what the tests need, then check the source and run them: `python build_scripts/test.py [--unit] [--long] ...`.

A command of its own; one thread; imports the standard library and `common`. Each step looks first whether its
work is done, so a second run goes straight to pytest: an environment with the packages of
requirements-dev.txt (in the cache folder, keyed by their text and the interpreter), the native libraries, the
library for images, the small chat model, a browser, packages for Node.js. A step that can't be done on this
machine costs the tests that need it, and says so at the end; with CI=true it ends the run.

Ways not taken: tox or nox (one more thing to install first), the user's own site-packages (nothing of ours
belongs there, and their pytest plug-ins don't belong here), a prebuilt container image (CI starts from a bare
machine).
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

from common import ROOT, Failure, cache_folder, run_main, swap_in, temp_folder

REQUIREMENTS = ROOT / "requirements-dev.txt"
UNIT_FOLDERS = ("tests/unit", "tests/api")
OTHER_FOLDERS = ("tests/native", "tests/e2e")
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
ATTEMPTS = 3  # at what needs the network, where nobody is there to start it again
NO_TESTS_RAN = 5

USAGE = """usage: python build_scripts/test.py [--unit] [--long] [pytest arguments]

  --unit   only the quick tests that need no native library, model or browser
  --long   also the tests that take minutes
Everything else goes to pytest: -k NAME, -x, -v, tests/unit/test_layers.py, ...
With CI=true nothing may be skipped: what can't be set up is a failure.
"""


class Missing(Exception):
    """A step can't be done here; the reason, and how the user could do it."""


class Step(NamedTuple):
    """`prepare` returns a few words about what it found or did, or raises Missing or Failure."""

    name: str
    prepare: Callable[[], str]


def main(argv: list | None = None) -> int:
    """Exit code: pytest's, or 1 when a step failed or no test was found."""
    return run_main("test", lambda: command(list(sys.argv[1:] if argv is None else argv)))


def command(arguments: list) -> int:
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
    steps = [Step("packages", lambda: prepare_packages(environment_folder()))]
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
    is_whole = not any(names_tests(argument) for argument in arguments)
    faulty = run_checks(environment) if is_whole else []
    codes = [run_pytest(words, environment) for words in parts_of(arguments, is_whole, quick)]
    code = one_code(codes) or min(len(faulty), 1)
    for name in faulty:
        say(f"{name} found faults: its output stands above the tests'")
    for line in missing:
        say(f"not on this machine: {line}")
    return code


def parts_of(arguments: list, is_whole: bool, quick: bool) -> list:
    """The arguments of each run of pytest. All cores share the tests without a library, since one of these uses
    one core; the others have the machine to themselves, one after the other."""
    if not is_whole:
        return [arguments]
    parts = [[*UNIT_FOLDERS, "-n", "auto", *arguments]]
    return parts if quick else [*parts, [*OTHER_FOLDERS, *arguments]]


def take(arguments: list, flag: str) -> bool:
    """Remove a flag of ours from the arguments; was it there?"""
    found = flag in arguments
    while flag in arguments:
        arguments.remove(flag)
    return found


def names_tests(argument: str) -> bool:
    """Is it a file or folder of tests, or a test in one (`tests/unit/test_layers.py::test_x`)?"""
    return not argument.startswith("-") and (ROOT / argument.partition("::")[0]).exists()


def say(text: str) -> None:
    print(f"test: {text}", flush=True)


def run_step(step: Step, strict: bool) -> str:
    """Do one step; `""`, or one line about what is missing. Packages are needed in any case."""
    begun = time.monotonic()
    say(f"{step.name} ...")
    try:
        outcome, trouble = step.prepare(), ""
    except Missing as reason:
        if strict:
            raise Failure(f"{step.name}: {reason} (nothing may be missing with CI=true)") from reason
        outcome, trouble = f"missing: {reason}", f"{step.name} ({reason}); tests that need it are skipped"
    say(f"{step.name}: {outcome} [{time.monotonic() - begun:.1f} s]")
    return trouble


def again(what: str, attempt: Callable[[], str], attempts: int | None = None) -> str:
    """Attempt something that a bad moment of the network can spoil; `""`, or what the last attempt said of its failure.

    One attempt, but in CI (CI=true) `ATTEMPTS`: a person sees at once what is wrong, and can start it again.
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
    """The linter, the formatter and the type checker; the names of those that found faults."""
    faulty = []
    for words in CHECKS:
        begun = time.monotonic()
        command_line = [str(python_in(environment_folder())), "-m", *words]
        found = subprocess.run(command_line, cwd=ROOT, env=environment, check=False).returncode
        say(f"{' '.join(words)}: {'faults, see above' if found else 'fine'} [{time.monotonic() - begun:.1f} s]")
        if found:
            faulty.append(" ".join(words))
    return faulty


def one_code(codes: list) -> int:
    """The worst of pytest's exit codes. That no run found a test is an error, too."""
    return max((code for code in codes if code != NO_TESTS_RAN), default=1)


def run_pytest(arguments: list, environment: dict) -> int:
    """Run pytest in its environment; its exit code."""
    begun = time.monotonic()
    command_line = [str(python_in(environment_folder())), "-m", "pytest", *arguments]
    say("pytest " + " ".join(arguments))
    code = subprocess.run(command_line, cwd=ROOT, env=environment, check=False).returncode
    say(f"pytest: exit code {code} [{time.monotonic() - begun:.1f} s]")
    return code


# --- packages ---------------------------------------------------------------------------------------------


def environment_folder() -> Path:
    """The environment for this interpreter and these requirements: a change of either makes a new one."""
    key = "\n".join((sys.version, sys.base_prefix, REQUIREMENTS.read_text(encoding="utf-8")))
    name = f"py{sys.version_info[0]}{sys.version_info[1]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    return cache_folder() / "test-environments" / name


def python_in(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def prepare_packages(folder: Path) -> str:
    """Make the environment under another name and rename it, so that a folder of that name is complete.

    Its scripts would remember the other name, but only `python -m` is used.
    """
    if python_in(folder).exists():
        return "ready"
    with temp_folder(folder.parent, "new") as temp:
        make_environment(temp / "environment")
        swap_in(temp / "environment", folder, temp)
    return f"installed into {folder}"


def make_environment(folder: Path) -> None:
    """An environment with the test packages: by this Python's pip, else by one made for it.

    Debian's Python comes without `ensurepip` unless python3-venv is installed, but often with pip.
    """
    environment = {
        **os.environ,
        "PIP_USER": "0",
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    install = ["-m", "pip", "install", "--quiet", "--requirement", str(REQUIREMENTS)]
    if works([sys.executable, "-m", "pip", "--version"]):
        made = works([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        install = [sys.executable, *install, "--target", str(site_packages(folder))]
    else:
        made = works([sys.executable, "-m", "venv", str(folder)])
        install = [str(python_in(folder)), *install]
    if not made:
        raise Failure(
            f"{sys.executable} can make no environment: install its pip and venv modules "
            "(Debian, Ubuntu: apt install python3-pip python3-venv), then run this again"
        )
    if again(
        "install the test packages",
        lambda: "see above" if subprocess.run(install, env=environment, check=False).returncode else "",
    ):
        raise Failure("pip couldn't install the test packages, see above: put that right, run this again")


def site_packages(folder: Path) -> Path:
    """Where an environment keeps its packages."""
    if os.name == "nt":
        return folder / "Lib" / "site-packages"
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def works(command_line: list) -> bool:
    """Run something quietly; did it end well?"""
    return (
        subprocess.run(
            command_line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


# --- libraries, model -------------------------------------------------------------------------------------


def prepare_libraries() -> str:
    """The native libraries, unless the user has named a folder."""
    given = os.environ.get("LLAMA_SRV_LIBS")
    return f"those of LLAMA_SRV_LIBS, {given}" if given else run_script("fetch_libs.py")


def prepare_built_libraries() -> str:
    """libmtmd and libggml-rpc, which are built from source: minutes the first time, then kept in the cache."""
    given = os.environ.get("LLAMA_SRV_LIBS")
    return f"as in {given}" if given else run_script("fetch_libs.py", "--with-mtmd", "--with-rpc")


def prepare_model() -> str:
    """The small chat model."""
    return run_script("fetch_model.py")


def prepare_embedding_model() -> str:
    """The published embedding model that ours is compared with."""
    return run_script("fetch_model.py", "--embedding")


def run_script(name: str, *arguments: str) -> str:
    """Run a neighbour, which shows its progress on stderr; the path it prints."""
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

    if again(f"run `{command}`", attempt):
        raise Missing(f"`{command}` failed, see above")
    return said or "ready"


# --- browser ----------------------------------------------------------------------------------------------


def browser_found() -> str:
    """The driver's path when browser, driver and the programs of the shell example are there, else `""`."""
    is_complete = any(map(shutil.which, BROWSERS)) and all(map(shutil.which, ("jq", "curl")))
    return (shutil.which("chromedriver") or "") if is_complete else ""


def may_install(packages: str) -> bool:
    """Whether packages may go into this system: yes in CI (CI=true), else whoever sits there is asked, or it is no."""
    if os.environ.get("CI") == "true":
        return True
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    try:
        return input(f"test: install {packages} into this system with apt-get? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def prepare_browser() -> str:
    """Chromium and its driver; installed into the system only in CI or after a yes."""
    return prepare_system_packages(BROWSER_PACKAGES, browser_found, "install Chromium or Chrome, and chromedriver")


def prepare_firefox() -> str:
    """Firefox, for the tests that run in both; installed like the other one."""
    return prepare_system_packages(FIREFOX_PACKAGES, firefox_found, "install Firefox")


def firefox_found() -> str:
    """Its path, else `""`."""
    return shutil.which("firefox") or shutil.which("firefox-esr") or ""


def prepare_balancers() -> str:
    """The programs that the examples for load balancers are tested with; installed like the browser."""
    return prepare_system_packages(BALANCERS, balancers_found, "install nginx and HAProxy")


def balancers_found() -> str:
    """Their paths when both are there, else `""`."""
    found = [shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") for name in BALANCERS]
    return ", ".join(found) if all(found) else ""


def prepare_system_packages(names: tuple, found: Callable[[], str], advice: str) -> str:
    """See to it that `found` finds something; `advice` is for systems whose packages aren't known here."""
    if found():
        return f"ready, {found()}"
    packages = " ".join(names)
    if not shutil.which("apt-get"):
        raise Missing(advice)
    if os.geteuid() != 0:
        raise Missing(f"no right to install it: sudo apt-get install {packages}")
    if not may_install(packages):
        raise Missing(f"not installed without asking: apt-get install {packages}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt_get = ["apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=300"]

    def attempt() -> str:
        # package lists of a fresh machine are empty, those of an old one name files that are gone
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
        return "" if done.returncode == 0 and found() else f"apt-get said\n{done.stdout[-2000:]}"

    if trouble := again(f"install {packages}", attempt, ATTEMPTS):
        raise Missing(f"installing {packages} failed, {trouble}")
    return f"installed, {found()}"


# --- Node.js ----------------------------------------------------------------------------------------------


def node_packages_folder() -> Path:
    """Where the packages for Node.js are, in `node_modules`: another list makes another folder."""
    key = hashlib.sha256(" ".join(NODE_PACKAGES).encode()).hexdigest()[:12]
    return cache_folder() / "test-environments" / f"node-{key}"


def prepare_node_packages() -> str:
    """The packages by npm, without running any code of theirs; renamed when complete, like the environment."""
    folder, npm = node_packages_folder(), shutil.which("npm")
    if folder.exists():
        return "ready"
    if not npm or not shutil.which("node"):
        raise Missing("install Node.js with npm")
    with temp_folder(folder.parent, "node") as temp:
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
        if again(
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

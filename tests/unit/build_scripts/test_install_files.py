"""The files in build_scripts/install: a linter accepts the container files and they copy enough, and the service files
are valid.
"""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from server.options.parser import parse
from tests.support import ROOT, need

INSTALL = ROOT / "build_scripts" / "install"
CONTAINERS = ("Dockerfile", "Dockerfile.cuda")


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a container file, its continued lines joined."""
    text = (INSTALL / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_linter_of_container_files_has_no_complaint(name):
    places = [Path(sys.executable).parent, Path(sysconfig.get_path("purelib")) / "bin"]
    found = shutil.which("hadolint", path=os.pathsep.join(map(str, places)))
    need(found, "hadolint isn't in the tests' environment")
    done = subprocess.run([found, str(INSTALL / name)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.covers("F08")
def test_the_documented_command_is_all_that_a_container_needs(name):
    found = instructions(name)
    first = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    final = found[first:]
    environment = dict(pair.split("=", 1) for word, rest in final if word == "ENV" for pair in rest.split())
    assert "0.0.0.0" in parse(["-m", "x"], environment).host  # so that -p 8080:8080 reaches it
    assert ("EXPOSE", "8080") in final and ("WORKDIR", "/") in final and final[-1][0] == "ENTRYPOINT"
    assert [rest for word, rest in final if word == "USER"] == ["65534:65534"]
    health = next(rest for word, rest in final if word == "HEALTHCHECK")
    assert "/health/live" in health
    ignored = (INSTALL / f"{name}.dockerignore").read_text(encoding="utf-8").split("\n")
    for source in copied(final):
        assert f"!{source}" in ignored or f"!{source}/" in ignored, source


def copied(final: list[tuple[str, str]]) -> list[str]:
    """What is copied from the tree, not from another stage."""
    lines = [rest.split() for word, rest in final if word == "COPY" and not rest.startswith("--from")]
    return [source for *sources, _ in lines for source in sources]


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_the_first_stage_copies_is_enough_to_fetch_the_libraries(name, tmp_path):
    found = instructions(name)
    last = max(number for number, (word, _) in enumerate(found) if word == "FROM")
    for word, rest in found[:last]:
        if word != "COPY":
            continue
        *sources, target = rest.split()
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    command = [sys.executable, "-s", str(tmp_path / "build_scripts" / "fetch_libs.py"), "--list"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "linux-x64-cpu" in done.stdout, done.stderr


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_a_container_copies_is_enough_to_start(name, tmp_path):
    for source in copied(instructions(name)):
        if (ROOT / source).is_dir() and source != "build_scripts":
            shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / source).is_file():
            shutil.copy(ROOT / source, tmp_path)
    program = [sys.executable, "-s", str(tmp_path / "llama_srv.py")]
    done = subprocess.run([*program, "--help"], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "--ctx-size" in done.stdout, done.stderr
    assert (tmp_path / "public" / "index.html").is_file()


def test_systemd_accepts_the_unit(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("only on machines with systemd-analyze")
    unit = tmp_path / "llama-srv.service"
    text = (INSTALL / "llama-srv.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/usr/local/bin/llama-srv", sys.executable))  # has to be there
    command = ["systemd-analyze", "verify", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "llama-srv" in line]
    assert (done.returncode, complaints) == (0, [])


def test_systemd_finds_the_service_hardly_exposed():
    """0 is best; 10 is a service without any restriction."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("only on machines with systemd-analyze")
    command = ["systemd-analyze", "security", "--offline=true", str(INSTALL / "llama-srv.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("only with systemd 250 or newer")
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert level and float(level[1]) <= 3, done.stdout + done.stderr


def test_the_property_list_is_one_and_restarts_only_after_a_fault():
    with open(INSTALL / "llama-srv.plist", "rb") as file:
        plist = plistlib.load(file)
    assert plist["Label"] == "llama-srv" and plist["KeepAlive"] == {"SuccessfulExit": False} and plist["RunAtLoad"]


@pytest.mark.parametrize("name", ["llama-srv.service", "llama-srv.plist"])
def test_units_start_the_program_with_options_that_there_are(name, tmp_path):
    text = (INSTALL / name).read_text(encoding="utf-8")
    config = tmp_path / "llama_srv.ini"
    config.write_text("model = m.gguf\nhost = 0.0.0.0\n")
    text = "\n".join(line for line in text.split("-->")[-1].splitlines() if not line.startswith("#"))
    flags = re.findall(r"--[a-z-]+(?=[ <])", text)
    assert flags == ["--config"]
    assert parse([flags[0], str(config)], {}).files == ("m.gguf",)


def test_the_unit_for_several_servers_is_that_for_one_but_for_its_port():
    one = (ROOT / "build_scripts/install/llama-srv.service").read_text("utf-8").splitlines()
    several = (ROOT / "examples/deploy/llama-srv@.service").read_text("utf-8").splitlines()
    changed = [line for line in several if line not in one and not line.startswith("#")]
    assert [line.partition("=")[0] for line in changed] == ["Description", "ExecStart", "TimeoutStopSec"]
    assert "--port %i" in changed[1]


def test_the_composed_servers_are_those_that_the_balancer_asks():
    ports = [f"127.0.0.1:{port}" for port in (8081, 8082, 8083)]
    balancer = (ROOT / "examples/deploy/haproxy.cfg").read_text("utf-8")
    composed = (ROOT / "examples/deploy/compose.yml").read_text("utf-8")
    assert all(port in balancer for port in ports)
    assert [f"LLAMA_ARG_PORT: {port[-4:]}" in composed for port in ports] == [True] * 3

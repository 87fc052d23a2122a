"""The offline archive in a namespace without a network, used by the commands of its own OFFLINE.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support import PATIENCE, ROOT, build_script

common = build_script("common")
HERE = Path(__file__).parent
CLIENT = """
import json, urllib.request
body = json.dumps({"prompt": "The capital of France is", "n_predict": 3, "temperature": 0}).encode()
url = "%s"
assert b"<html" in urllib.request.urlopen(url).read()
print(json.load(urllib.request.urlopen(url + "/completion", body))["content"])
"""


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """The beginning of a command that shall have no network."""
    flags = "-n" if os.getuid() == 0 else "-rn"
    command = ["unshare", flags, sys.executable, str(HERE / "air_gap.py")]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("only on systems that let a user have a network namespace")
    return command


def pack(folder: Path, *options: str) -> Path:
    """Make the archive and unpack it; the folder that it makes."""
    archive = folder / "offline.tar"
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "build_scripts" / "pack_offline.py"),
            "--quiet",
            "--output",
            str(archive),
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "there", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / "there" / "llama_srv-offline"


def commands(folder: Path) -> list[str]:
    """What OFFLINE.md says to type on Unix."""
    text = (folder / "OFFLINE.md").read_text(encoding="utf-8").split("Windows (PowerShell)")[0]
    return [line.strip() for line in re.findall(r"(?m)^    (\S.*)$", text) if line.split()[0] in ("export", "python3")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: it has network namespaces")
def test_the_archive_serves_where_there_is_no_network(alone, smollm2, libs_folder, tmp_path):
    folder = pack(tmp_path, "--no-tests", "--offline")
    (serve,) = commands(folder)
    script = f"""
        exec 3>&1
        {serve.replace("python3", sys.executable, 1)} --port 0 -t 1 > log 2>&1 &
        server=$!
        until url=$(sed -n 's/.*ready: \\(http[^ ]*\\).*/\\1/p' log) && [ -n "$url" ]; do
            kill -0 $server || {{ cat log; exit 1; }}
            sleep 0.2
        done
        {sys.executable} -c "$(printf '%s' "$CLIENT" | sed "s|%s|$url|")"
        kill $server; wait $server
    """
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [*alone, "sh", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "CLIENT": CLIENT},
        check=False,
    )
    assert done.returncode == 0 and "Paris" in done.stdout, done.stdout + done.stderr
    assert list(home.iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: it has network namespaces")
def test_the_archive_brings_the_packages_of_its_tests(alone, smollm2, libs_folder, tmp_path):
    folder = pack(tmp_path)
    exports, _, tests = [line for line in commands(folder) if "llama_srv.py" not in line]
    chosen = "--unit tests/unit/options/test_parser.py tests/api/test_completion.py -q -x"
    script = f"{exports} && {tests.replace('python3', sys.executable, 1)} {chosen}"
    done = subprocess.run(
        [*alone, "sh", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: it has network namespaces")
def test_the_clients_of_the_documents_need_no_network(alone, libs_folder):
    """The tests of 2024's scripts and clients once more, where nothing else can be reached."""
    command = [
        *alone,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/e2e/test_seed_clients.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]

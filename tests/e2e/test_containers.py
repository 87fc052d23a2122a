"""The Dockerfiles, if buildah is installed: the build steps run, and the server in the result answers. A long test: it
downloads an image.
"""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support import ROOT

INSTALL = ROOT / "build_scripts" / "install"
IMAGE = "llama_srv-test"


def run(*command: object) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


@pytest.fixture
def image():
    """The image of `Dockerfile`, removed afterwards."""
    if not shutil.which("buildah"):
        pytest.skip("only on machines with buildah")
    if run("buildah", "pull", "--quiet", base_image()).returncode:
        pytest.skip("only where buildah can fetch the image that the Dockerfile begins with")
    built = run("buildah", "build", "--layers=false", "-f", INSTALL / "Dockerfile", "-t", IMAGE, ".")
    assert built.returncode == 0, built.stderr[-3000:]
    yield IMAGE
    run("buildah", "rmi", "--force", IMAGE)


def base_image() -> str:
    lines = (INSTALL / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if line.startswith("FROM")][-1]


@pytest.mark.long
def test_the_program_in_the_image_starts_as_its_user_and_finds_its_libraries(image):
    container = run("buildah", "from", "--quiet", image).stdout.strip()
    try:
        for command in (["python", "/app/llama_srv.py"], ["llama-server"], ["server"]):
            done = run("buildah", "run", "--network", "none", container, "--", *command, "--version")
            assert done.returncode == 0 and "llama.cpp 0." in done.stdout, done.stdout + done.stderr
        user = run("buildah", "run", container, "--", "id", "-u")
        assert user.stdout.strip() == "65534", user.stderr
    finally:
        run("buildah", "rm", container)

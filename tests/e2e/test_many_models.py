"""Several models on real libraries: tiny F32 models that write different texts, so that a wrong answer shows."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.model_files.identity import SETTLED_S
from tests import tiny_models
from tests.support import PATIENCE, ServerProcess, child_processes, start_server, wait_until

NAMES = ("alpha", "beta", "gamma", "delta")
PROMPT = "once upon a time the dog and the moon went"
FIELDS = {"prompt": PROMPT, "temperature": 0, "n_predict": 24, "ignore_eos": True}
ARGUMENTS = ("-c", 256, "-t", 1, "--memory-f32", "-fa", "off", "--cache-ram", 0)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four models with texts of their own."""
    for i, name in enumerate(NAMES):
        tiny_models.tiny_llama(tmp_path / f"{name}.gguf", seed=i + 1)
    return tmp_path


@pytest.fixture
def server(folder) -> Iterator[ServerProcess]:
    """One server of all of them, two at a time."""
    with start_server(["--models-dir", folder, "--models-max", 2, *ARGUMENTS]) as running:
        yield running


def say(server: ServerProcess, name: str, **fields: object) -> dict:
    answer = server.post("/completion", {**FIELDS, "model": name, **fields})
    assert answer.status_code == 200, (name, answer.text)
    return answer.json()


def states(server: ServerProcess) -> dict[str, str]:
    return {one["id"]: one["status"]["value"] for one in server.get("/models").json()["data"]}


def until(server: ServerProcess, **wanted: str) -> None:
    wait_until(lambda: wanted.items() <= states(server).items(), f"{wanted}", PATIENCE)


@pytest.mark.covers("D09")
def test_each_model_says_its_own(server):
    texts = {name: say(server, name)["content"] for name in NAMES}
    assert len(set(texts.values())) == len(NAMES)
    assert sorted(states(server).values()) == ["loaded", "loaded", "unloaded", "unloaded"]
    assert {name: say(server, name)["content"] for name in reversed(NAMES)} == texts
    assert say(server, "alpha")["model"] == "alpha"


@pytest.mark.covers("D15")
def test_a_file_that_breaks_or_changes_is_its_own_models_matter(server, folder):
    text = say(server, "alpha")["content"]
    path = folder / "beta.gguf"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    answer = server.post("/completion", {**FIELDS, "model": "beta"})
    assert answer.status_code == 500 and "beta.gguf" in answer.json()["error"]["message"]
    assert states(server)["beta"] == "failed" and say(server, "alpha")["content"] == text
    path.unlink()
    server.post("/models/load", {"model": "beta"})
    until(server, beta="failed")
    path.write_bytes((folder / "gamma.gguf").read_bytes())
    server.post("/models/load", {"model": "beta"})
    until(server, beta="loaded")
    other = say(server, "beta")["content"]
    assert other == say(server, "gamma")["content"], "what the file says now counts"


@pytest.mark.covers("D12")
def test_sleeping_gives_the_memory_back_and_tokens_are_still_counted(folder):
    with start_server(["--models-dir", folder, "--sleep-idle-seconds", 1, *ARGUMENTS]) as server:
        text = say(server, "alpha")["content"]
        until(server, alpha="sleeping")
        wait_until(lambda: len(child_processes(server.process.pid)) <= 2, "the engine's end", PATIENCE)
        tokens = server.post("/tokenize", {"content": PROMPT, "model": "alpha"}).json()["tokens"]
        assert len(tokens) > 5 and states(server)["alpha"] == "sleeping"
        assert server.get("/props?model=alpha").json()["is_sleeping"] is True
        assert say(server, "alpha")["content"] == text


LONG = " ".join(["once upon a time there was a dog who went to see the moon and the sea"] * 40)


def age_of(folder: Path) -> float:
    """Seconds since the youngest file in it has changed."""
    return time.time() - max(path.stat().st_ctime for path in folder.rglob("*.gguf"))


@pytest.mark.parametrize("leaving", ["unloaded", "sleeping", "made room"])
@pytest.mark.covers("D11")
def test_what_a_model_that_leaves_had_computed_is_read_from_disk_when_it_is_back(folder, tmp_path, leaving):
    options = {"made room": ("--models-max", 1), "sleeping": ("--sleep-idle-seconds", 1), "unloaded": ()}[leaving]
    disk = tmp_path / "disk"
    arguments = ["--models-dir", folder, *options, "--cache-disk", disk, *ARGUMENTS, "-c", 2048]
    wait_until(lambda: age_of(folder) > SETTLED_S, "files that are old enough for their hashes to be remembered")
    with start_server(arguments) as server:
        first = say(server, "alpha", prompt=LONG)
        assert first["timings"]["prompt_n"] > 500
        if leaving == "made room":
            say(server, "beta", prompt=LONG)
        elif leaving == "unloaded":
            server.post("/models/unload", {"model": "alpha"})
        until(server, alpha=leaving if leaving == "sleeping" else "unloaded")
        again = say(server, "alpha", prompt=LONG)
        assert again["content"] == first["content"]
        assert again["cache"]["source"] == "disk" and again["timings"]["prompt_n"] < first["timings"]["prompt_n"] / 4
        other = say(server, "beta", prompt=LONG)
        assert other["content"] != first["content"]
        assert other["cache"]["source"] != "disk" or leaving == "made room", "no other model's"
    assert {file.name for file in disk.iterdir()} == {"alpha", "beta"}
    assert any((disk / "alpha").iterdir())


@pytest.mark.covers("D14")
def test_slots_are_saved_below_a_folder_of_their_model(folder, tmp_path):
    slots = tmp_path / "slots"
    slots.mkdir()
    with start_server(["--models-dir", folder, "--slot-save-path", slots, *ARGUMENTS]) as server:
        text = say(server, "alpha")["content"]
        say(server, "beta")
        saved = server.post("/slots/0?action=save", {"filename": "one", "model": "alpha"})
        assert saved.status_code == 200 and saved.json()["n_saved"] > 5, saved.text
        assert [path.relative_to(slots).parts for path in slots.rglob("one*")] == [("alpha", "one")]
        restore = {"filename": "one"}
        assert server.post("/slots/0?action=restore&model=beta", restore).status_code == 400, "it has none of this name"
        (slots / "beta" / "one").write_bytes((slots / "alpha" / "one").read_bytes())
        assert server.post("/slots/0?action=restore&model=beta", restore).status_code == 400, "it is another model's"
        server.post("/models/unload", {"model": "alpha"})
        until(server, alpha="unloaded")
        assert server.post("/slots/0?action=restore&model=alpha", restore).status_code == 200, "it is loaded for that"
        again = say(server, "alpha")
        assert again["content"] == text and again["timings"]["prompt_n"] == 1


def test_an_admin_loads_a_model_with_options_of_its_own(folder):
    arguments = ["--models-dir", folder, "--manage-models", "--admin-key", "root", *ARGUMENTS]
    with start_server(arguments) as server:
        text = say(server, "alpha")["content"]
        body = {"model": "beta", "options": {"ctx_size": 512, "parallel": 2, "alias": "x"}}
        headers = {"X-Api-Key": "root"}
        refused = server.post("/models/load", body, headers=headers)
        assert refused.status_code == 400 and "options.alias" in refused.json()["error"]["message"]
        del body["options"]["alias"]
        assert server.post("/models/load", body, headers=headers).status_code == 200
        until(server, beta="loaded")
        props = {name: server.get(f"/props?model={name}").json() for name in ("alpha", "beta")}
        assert [props[name]["total_slots"] for name in props] == [1, 2]
        assert [props[name]["default_generation_settings"]["n_ctx"] for name in props] == [256, 256]
        assert say(server, "alpha")["content"] == text != say(server, "beta")["content"]


@pytest.mark.skipif(sys.platform == "win32", reason="not on Windows: there are no such signals")
@pytest.mark.covers("D14")
def test_log_lines_name_the_model_that_they_are_about(folder):
    with start_server(["--models-dir", folder, "-lv", 4, *ARGUMENTS]) as server:
        say(server, "alpha")
        text = say(server, "beta")["content"]
        for pid in child_processes(server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert say(server, "beta")["content"] == text
        for name in ("alpha", "beta"):
            server.wait_for_line(f"engine: the engine process .* died: signal SIGKILL .*model={name}$")
            server.wait_for_line(f"access: .*POST /completion 200 .*model={name}$")
            server.wait_for_line(f"llama: .*model={name}$")
        server.get("/health")
        assert not [line for line in server.log.splitlines() if "model=gamma" in line or "/models" in line]


def test_one_model_can_sleep_too(folder):
    with start_server(["-m", folder / "alpha.gguf", "--sleep-idle-seconds", 1, *ARGUMENTS]) as server:
        text = say(server, "any name")["content"]
        until(server, **{str(folder / "alpha.gguf"): "sleeping"})
        assert server.get("/health").status_code == server.get("/health/ready").status_code == 200
        assert say(server, "another name")["content"] == text

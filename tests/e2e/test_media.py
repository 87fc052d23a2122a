"""A server with a projector, started as a user starts it: images in chats, a crash of the engine, refusals."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import pytest
from openai import OpenAI

from tests.media_files import data_url, picture, png
from tests.support import ServerProcess, need, run_command

QUIET = ("-t", "1", "--no-warmup", "-c", "2048")


@pytest.fixture
def mtmd_folder(libs_folder: Path) -> Path:
    """The folder of native libraries, which holds libmtmd."""
    need(
        any("mtmd" in path.name for path in libs_folder.iterdir()),
        "libmtmd isn't here (run `python build_scripts/fetch_libs.py --with-mtmd`)",
    )
    return libs_folder


@pytest.fixture
def server(serve, mtmd_folder: Path, tiny_bpe_model: Path, mmproj_mlp: Path) -> ServerProcess:
    """A model that sees."""
    return serve("-m", tiny_bpe_model, "--mmproj", mmproj_mlp, "--no-mmproj-offload", "-np", "2", *QUIET)


def look(data: bytes, text: str = "the dog") -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": data_url(data)}}, {"type": "text", "text": text}],
        }
    ]


def say(server: ServerProcess, messages: list[dict], n: int = 24, **fields) -> dict:
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": n, "temperature": 0, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.covers("C32", "B14")
def test_openais_client_shows_images(server: ServerProcess):
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
    texts = {}
    for i in (1, 2, 1):
        answer = client.chat.completions.create(model="x", messages=look(picture(i)), max_tokens=24, temperature=0)
        texts.setdefault(i, answer.choices[0].message.content)
        assert answer.choices[0].message.content == texts[i]
    assert texts[1] != texts[2]
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1
    assert server.get("/props").json()["modalities"] == {"vision": True, "audio": False}


@pytest.mark.covers("Q29", "B14")
def test_the_documents_image_data_works(server: ServerProcess):
    data = base64.b64encode(picture(3)).decode()
    result = server.complete("USER:[img-12]the dog", image_data=[{"data": data, "id": 12}])
    data = base64.b64encode(picture(4)).decode()
    other = server.complete("USER:[img-12]the dog", image_data=[{"data": data, "id": 12}])
    assert result["content"] != other["content"] and result["tokens_evaluated"] == other["tokens_evaluated"]


@pytest.mark.covers("E05", "Q29")
def test_images_have_vectors(server: ServerProcess):
    found = []
    for i in (1, 2, 1):
        data = base64.b64encode(picture(i)).decode()
        answer = server.post("/embedding", {"content": "the dog [img-12]", "image_data": [{"data": data, "id": 12}]})
        assert answer.status_code == 200, answer.text
        found.append(answer.json()["embedding"])
    assert found[0] == found[2] != found[1] and len(found[0]) == 64
    assert sum(number * number for number in found[0]) == pytest.approx(1.0, abs=1e-4)


def test_bad_images_are_refused_and_the_server_goes_on(server: ServerProcess):
    expected = say(server, look(png()))["choices"]
    for data in (png()[:100], b"no image at all", b"\xff\xd8\xff\xe0\0\x04ab\xff\xc0\0\x11\x08\0\x05\0\x07broken jpeg"):
        answer = server.post("/v1/chat/completions", {"messages": look(data), "max_tokens": 1})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"].startswith("messages[0].content[0]")
    assert say(server, look(png()))["choices"][0]["message"] == expected[0]["message"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only on Linux: /proc tells the engine's process id")
def test_a_killed_engine_costs_a_talk_about_an_image_nothing(server: ServerProcess):
    expected = say(server, look(picture(5)), 400)["choices"][0]["message"]["content"]
    killed = threading.Event()
    text = ""
    for event in server.stream(
        "/v1/chat/completions",
        {"messages": look(picture(5)), "max_tokens": 400, "temperature": 0, "cache_prompt": False},
    ):
        if event == "[DONE]":
            break
        text += event["choices"][0]["delta"].get("content") or ""
        if len(text) > 50 and not killed.is_set():
            killed.set()
            os.kill(engine_pid(server), signal.SIGKILL)
    assert killed.is_set() and text == expected


def engine_pid(server: ServerProcess) -> int:
    """The server's child process, whichever of its threads has started it."""
    [pid] = [
        pid for path in Path(f"/proc/{server.process.pid}/task").glob("*/children") for pid in path.read_text().split()
    ]
    return int(pid)


def test_a_folder_without_libmtmd_says_what_to_do(
    libs_folder: Path, tiny_bpe_model: Path, mmproj_mlp: Path, tmp_path: Path
):
    bare = tmp_path / "libs"
    shutil.copytree(libs_folder, bare, ignore=shutil.ignore_patterns("*mtmd*"))
    manifest = bare / "manifest.json"
    if manifest.exists():
        known = json.loads(manifest.read_text())
        known["mtmd"] = None
        known["files"] = {name: facts for name, facts in known["files"].items() if "mtmd" not in name}
        manifest.write_text(json.dumps(known))
    done = run_command(["-m", tiny_bpe_model, "--mmproj", mmproj_mlp, "--libs", bare, "--port", "0", *QUIET])
    assert done.returncode == 2
    assert "fetch_libs.py --with-mtmd" in done.stderr and "Traceback" not in done.stderr


def test_a_projector_that_does_not_fit_ends_the_start_in_one_line(
    mtmd_folder: Path, tiny_bpe_model: Path, tmp_path: Path
):
    from tests import tiny_models

    other = tiny_models.tiny_mmproj(tmp_path / "other.gguf", "mlp", n_embd_text=96)
    for path in (other, tiny_bpe_model):
        done = run_command(["-m", tiny_bpe_model, "--mmproj", path, "--port", "0", *QUIET])
        assert done.returncode == 2 and str(path.name) in done.stderr.splitlines()[-1], done.stderr


def test_no_mmproj_leaves_a_projector_out(serve, mtmd_folder: Path, tiny_bpe_model: Path, mmproj_mlp: Path):
    server = serve("-m", tiny_bpe_model, "--mmproj", mmproj_mlp, "--no-mmproj", *QUIET)
    assert server.get("/props").json()["modalities"] == {"vision": False, "audio": False}

"""Transcription by OpenAI's own client, on a model that accepts audio but was never trained on it."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import openai
import pytest
from openai import OpenAI

from tests.media_files import mp3, wav
from tests.support import PATIENCE, ServerProcess, need, node_package

QUIET = ("-t", "1", "--no-warmup", "-c", "4096")


@pytest.fixture
def server(serve, libs_folder: Path, tiny_bpe_model: Path, mmproj_whisper: Path) -> ServerProcess:
    """A model that hears."""
    need(
        any("mtmd" in path.name for path in libs_folder.iterdir()),
        "libmtmd isn't here (run `python build_scripts/fetch_libs.py --with-mtmd`)",
    )
    return serve("-m", tiny_bpe_model, "--mmproj", mmproj_whisper, "--no-mmproj-offload", "-n", "24", *QUIET)


@pytest.mark.covers("H01", "H03")
def test_openais_client_transcribes_and_translates(server: ServerProcess):
    client = OpenAI(base_url=server.url + "/v1", api_key="none")
    sound = wav(seconds=1.0)
    heard = client.audio.transcriptions.create(model="x", file=("tone.wav", sound))
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound).decode(), "format": "wav"}}
    content = [{"type": "text", "text": "Transcribe audio to text"}, part]
    chat = client.chat.completions.create(model="x", messages=[{"role": "user", "content": content}], temperature=0)
    assert heard.text and heard.text == chat.choices[0].message.content
    assert heard.usage and heard.usage.type == "tokens" and heard.usage.input_tokens == chat.usage.prompt_tokens

    plain = client.audio.transcriptions.create(model="x", file=io.BytesIO(sound), response_format="text")
    assert plain == heard.text
    verbose = client.audio.transcriptions.create(
        model="x", file=("tone.wav", sound), response_format="verbose_json", language="en", temperature=0.0
    )
    assert (verbose.duration, verbose.language) == (1.0, "en") and verbose.text
    english = client.audio.translations.create(model="x", file=("tone.wav", sound), prompt="Sing")
    assert english.text

    parts = list(client.audio.transcriptions.create(model="x", file=("tone.wav", sound), stream=True))
    assert parts[-1].type == "transcript.text.done" and parts[-1].text == heard.text
    assert "".join(part.delta for part in parts[:-1]) == heard.text and len(parts) > 3

    assert client.audio.transcriptions.create(model="x", file=("tone.mp3", mp3(40))).text
    with pytest.raises(openai.BadRequestError, match="srt isn't supported"):
        client.audio.transcriptions.create(model="x", file=("tone.wav", sound), response_format="srt")
    with pytest.raises(openai.BadRequestError, match="timestamp_granularities"):
        client.audio.transcriptions.create(
            model="x", file=("tone.wav", sound), response_format="verbose_json", timestamp_granularities=["word"]
        )


@pytest.mark.covers("H03")
def test_openais_client_for_javascript_does_too(server: ServerProcess, tmp_path: Path):
    need(shutil.which("node"), "no Node.js on this machine")
    sound = tmp_path / "tone.wav"
    sound.write_bytes(wav(seconds=1.0))
    client = Path(__file__).with_name("openai_client.mjs")
    command = ["node", client, node_package("openai") / "index.mjs", server.url + "/v1", "transcribe"]
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "SOUND": str(sound)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["text"] and told["duration"] == 1.0
    *parts, last = told["events"]
    assert last["type"] == "transcript.text.done" and "".join(part["delta"] for part in parts) == last["text"]


def test_a_model_that_only_reads_says_so(serve, tiny_bpe_model: Path):
    server = serve("-m", tiny_bpe_model, *QUIET)
    client = OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIStatusError, match="can't hear") as caught:
        client.audio.transcriptions.create(model="x", file=("tone.wav", wav()))
    assert caught.value.status_code == 501

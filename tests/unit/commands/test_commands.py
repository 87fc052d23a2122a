"""The commands without a server: arguments, help, mistakes; pull, rm, models and show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from server.commands import main as commands
from server.commands.run import make_child_words
from server.errors import FAILED, MISCONFIGURED
from server.launch import main
from server.models.catalogue import ModelEntry
from server.options.commands import COMMANDS, is_command
from server.options.parser import OptionError
from tests.gguf_writer import GgufFile
from tests.tiny_models import tiny_llama
from tests.unit.download.fake_site import no_proxy  # noqa: F401
from tests.unit.download.test_download_hub import REPO, FakeHub

MODEL = b"GGUF" + bytes(60)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of its own for each test, with a cache of its own."""
    for name in list(os.environ):
        if name.startswith("LLAMA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LLAMA_SRV_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hub(monkeypatch):
    """A hub that everything is pulled from."""
    hub = FakeHub()
    monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
    yield hub
    hub.stop()


def call(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line."""
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


# ---- words -----------------------------------------------------------------------------------------------------------


def test_a_file_that_is_called_like_a_command_is_a_model_as_ever(folder):
    assert is_command(["models"]) and is_command(["run", "x"])
    (folder / "pull").mkdir()
    assert is_command(["pull"])
    (folder / "models").write_bytes(MODEL)
    assert not is_command(["models"])
    assert not any(map(is_command, ([], ["x.gguf"], ["-m", "models"], ["./models"], ["--models-dir", "x"], ["Models"])))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_help_of_a_command_shows_its_words_and_options(capsys, name):
    code, out, err = call(capsys, name, "--help")
    assert (code, err) == (0, "") and out.startswith(f"usage: llama_srv.py {name} {COMMANDS[name].words}".rstrip())
    assert "--help" in out and max(map(len, out.splitlines())) <= 100
    for option in commands.table_of(COMMANDS[name]):
        assert COMMANDS[name].takes_model_options or option.flags[-1] in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pull"], "pull needs MODEL: see pull --help"),
        (["rm", "a", "b"], "unexpected word 'b': see rm --help"),
        (["models", "--port", "1"], "unknown option --port"),
        (["show", "x", "--models-dir", "nowhere"], "--models-dir: there is no folder 'nowhere'"),
        (
            ["show", "x"],
            "there is no model 'x'; pull USER/MODEL downloads one, --models-dir DIR names a folder of models",
        ),
        (["pull", "llama3"], "'llama3' can't be downloaded: use USER/MODEL, USER/MODEL:QUANT or the URL of a GGUF"),
        (["pull", "../x"], "'../x' can't be downloaded"),
        (["ps", "--url", "ftp://x"], "--url: 'ftp://x' is not an address that begins with http:// or https://"),
        (["run", "x", "hello", "--ctx-size", "many"], "--ctx-size: 'many' is not a whole number"),
        (["run", "x", "--slots"], "unknown option --slots"),
    ],
)
def test_a_mistake_is_one_line(capsys, words, message):
    code, out, err = call(capsys, *words)
    assert (code, out) == (MISCONFIGURED, "") and err.startswith(f"error: {message}") and err.count("\n") == 1


def test_names_like_a_wrong_one_are_told(capsys, folder):
    for name in ("gemma-3-4b-Q4_K_M.gguf", "Qwen3-8B.gguf"):
        (folder / name).write_bytes(MODEL)
    _, _, err = call(capsys, "show", "qwen3", "--models-dir", ".")
    assert err == "error: there is no model 'qwen3', did you mean Qwen3-8B?\n"
    _, _, err = call(capsys, "rm", "gema-3-4b", "--models-dir", ".")
    assert err == "error: there is no model 'gema-3-4b', did you mean gemma-3-4b-Q4_K_M?\n"


def test_everything_behind_two_dashes_is_text():
    found = commands.read(COMMANDS["run"], ["x", "--temp", "0.5", "a", "--", "-n", "--help"])
    assert found is not None and found.names == ["x", "a", "-n", "--help"]
    assert found.options == [("temperature", "--temp"), ("temperature", "0.5")]


def test_what_run_passes_on_to_its_server_is_what_is_about_the_model(monkeypatch):
    monkeypatch.setenv("LLAMA_ARG_MODELS_DIR", os.curdir)
    found = commands.read(COMMANDS["run"], ["x", "-c", "64", "--no-mmap", "--temp=1", "--models-dir", os.curdir])
    assert found is not None
    fixed = ["--port", "0", "--host", "127.0.0.1", "--no-ui", "-lv", "1"]
    own = ["-c", "64", "--no-mmap", "--temp=1", *fixed]
    entry = ModelEntry("x", path="x.gguf", mmproj="p.gguf", changes={"lora": (("l.gguf", 1.0),)})
    assert make_child_words(entry, found) == [
        *own,
        "-m",
        "x.gguf",
        "--alias",
        "x",
        "--mmproj",
        "p.gguf",
        "--lora",
        "l.gguf",
    ]


# ---- pull ------------------------------------------------------------------------------------------------------------


@pytest.mark.covers("D16")
def test_a_model_is_pulled_and_found_by_its_name_and_removed(capsys, hub, folder):
    hub.publish("tiny-Q4_K_M.gguf", "tiny-Q8_0.gguf", "mmproj-tiny-f16.gguf")
    code, out, err = call(capsys, "pull", f"{REPO}:Q8_0")
    path = folder / "cache" / "models" / "hf" / REPO / "tiny-Q8_0.gguf"
    assert (code, out) == (0, f"{path}\n") and f"run {REPO}:Q8_0" in err and path.is_file()
    assert path.with_name("mmproj-tiny-f16.gguf").is_file()
    assert call(capsys, "pull", f"https://huggingface.co/{REPO}:Q8_0")[1] == out
    assert f"{REPO}:Q8_0" in call(capsys, "models")[1]
    code, out, err = call(capsys, "rm", f"{REPO}:Q8_0")
    assert (code, err) == (0, "") and out.splitlines()[0] == f"removed {path}"
    assert list((folder / "cache" / "models").rglob("*")) in ([], [folder / "cache" / "models" / "hf"])


@pytest.mark.covers("D08")
def test_a_pull_that_was_cut_off_goes_on(capsys, hub, monkeypatch):
    hub.publish("tiny-Q4_K_M.gguf")
    thing = hub.things[f"/{REPO}/resolve/main/tiny-Q4_K_M.gguf"]
    thing.cuts = [5000, 0, 0, 0, 0]
    monkeypatch.setattr("server.download.fetch.time.sleep", lambda _: None)
    monkeypatch.setitem(commands.DOERS, "pull", lambda call: pull_without_waiting(monkeypatch, call))
    code, out, err = call(capsys, "pull", REPO)
    assert (code, out) == (FAILED, "") and "run this again to continue" in err
    thing.cuts = []
    code, out, err = call(capsys, "pull", REPO)
    assert code == 0 and Path(out.strip()).read_bytes() == thing.data
    assert hub.requests(f"/{REPO}/resolve/main/tiny-Q4_K_M.gguf")[-1]["range"] == "bytes=5000-"


def pull_without_waiting(monkeypatch: pytest.MonkeyPatch, call: commands.Call) -> int:
    """The command, whose tries follow each other at once."""
    from server.commands import catalogue
    from server.download import client

    monkeypatch.setattr(client.Client, "persist", persist_at_once(client.Client.persist))
    return catalogue.pull(call)


def persist_at_once(persist):
    """The method of a client that doesn't wait."""

    def at_once(self, *arguments):
        return persist(type(self)(self.endpoint, self.token, lambda _: None, self.progress, self.https), *arguments)

    return at_once


def test_a_repository_that_is_not_there_is_told_in_one_line(capsys, hub):
    code, _, err = call(capsys, "pull", "nobody/nothing-GGUF")
    assert code == FAILED and err.startswith("error: ") and "nobody/nothing-GGUF" in err and err.count("\n") == 1


# ---- rm --------------------------------------------------------------------------------------------------------------


def test_all_parts_and_the_projector_go_unless_another_model_needs_it(capsys, folder):
    (folder / "m" / "v").mkdir(parents=True)
    for name in ("b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "v/v-Q4_0.gguf", "v/v-Q8_0.gguf", "v/mmproj.gguf"):
        (folder / "m" / name).write_bytes(MODEL)
    assert call(capsys, "rm", "b", "--models-dir", "m")[0] == 0
    assert call(capsys, "rm", "v:Q4_0", "--models-dir", "m")[0] == 0
    left = sorted(path.name for path in (folder / "m").rglob("*.gguf"))
    assert left == ["mmproj.gguf", "v-Q8_0.gguf"]
    assert call(capsys, "rm", "v", "--models-dir", "m")[0] == 0
    assert list((folder / "m").iterdir()) == []


def test_nothing_outside_the_folders_is_removed(capsys, folder):
    (folder / "m").mkdir()
    (folder / "elsewhere" / "deep").mkdir(parents=True)
    for path in ("x.gguf", "elsewhere/real.gguf", "elsewhere/deep/other.gguf"):
        (folder / path).write_bytes(MODEL)
    try:
        (folder / "m" / "link.gguf").symlink_to(folder / "elsewhere" / "real.gguf")
        (folder / "m" / "way").symlink_to(folder / "elsewhere" / "deep", target_is_directory=True)
    except OSError:
        pytest.skip("no right to make links")
    code, _, err = call(capsys, "rm", "x.gguf", "--models-dir", "m")
    assert code == MISCONFIGURED and "x.gguf is not in a folder of models" in err
    code, _, err = call(capsys, "rm", "way", "--models-dir", "m")
    assert code == MISCONFIGURED and "is not in a folder of models" in err
    assert call(capsys, "rm", "link", "--models-dir", "m")[0] == 0
    assert not (folder / "m" / "link.gguf").is_symlink()
    assert all((folder / path).is_file() for path in ("x.gguf", "elsewhere/real.gguf", "elsewhere/deep/other.gguf"))


def test_the_folders_of_other_programs_stay(capsys, folder):
    store = folder / "ollama"
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / f"sha256-{'a' * 64}").write_bytes(MODEL)
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "m" / "latest"
    manifest.parent.mkdir(parents=True)
    layer = f'{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{"a" * 64}"}}'
    manifest.write_text(f'{{"layers": [{layer}]}}')
    code, _, err = call(capsys, "rm", "m", "--models-dir", str(store))
    assert code == MISCONFIGURED and err == "error: m:latest is in a folder of Ollama: remove it with that program\n"


# ---- models and show -------------------------------------------------------------------------------------------------


@pytest.mark.covers("D16")
def test_the_list_has_size_type_context_and_faults(capsys, folder):
    tiny_llama(folder / "tiny.gguf")
    (folder / "bad.gguf").write_bytes(b"<html>")
    (folder / "cut.gguf").write_bytes((folder / "tiny.gguf").read_bytes()[:200])
    code, out, err = call(capsys, "models", "--models-dir", ".", "--libs", str(folder))
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, "") and list(rows) == ["NAME", "bad", "cut", "tiny"]
    assert "bad.gguf is not a GGUF file" in rows["bad"] and "truncated" in rows["cut"]
    assert rows["tiny"].split()[2:5] == ["MB", "F32", "512"] or "F32" in rows["tiny"]
    assert rows["tiny"].endswith("unknown: the native libraries are missing")


def test_an_empty_machine_is_told_how_to_go_on(capsys):
    assert call(capsys, "models")[1].startswith("no models found: pull USER/MODEL downloads one")


@pytest.mark.covers("D16")
def test_show_tells_what_the_file_says(capsys, folder):
    tiny_llama(folder / "tiny.gguf")
    code, out, _ = call(capsys, "show", "tiny.gguf", "--libs", str(folder))
    assert code == 0 and out.startswith("model:        tiny\nfile:         tiny.gguf\n")
    assert "architecture: llama" in out and "memory on this machine:" in out


def test_what_a_file_says_cannot_steer_the_terminal(capsys, folder):
    GgufFile("llama", "\x1b]0;owned\x07evil").write(folder / "tiny.gguf")
    out = call(capsys, "show", "tiny.gguf", "--libs", str(folder))[1]
    assert "evil" in out and "\x1b" not in out and "\x07" not in out


def test_an_error_in_presets_ends_the_list(capsys, folder):
    (folder / "p.ini").write_text("[a]\nctx-size = many\n")
    code, _, err = call(capsys, "models", "--models-preset", "p.ini")
    assert code == MISCONFIGURED and err == "error: p.ini line 2 [a]: ctx-size: 'many' is not a whole number\n"


def test_commands_have_options_that_exist():
    for command in COMMANDS.values():
        assert len(set(command.options)) == len(command.options)
        named = {option.name for option in commands.table_of(command)}
        assert set(command.options) <= named
    with pytest.raises(OptionError):
        commands.read(COMMANDS["show"], [])

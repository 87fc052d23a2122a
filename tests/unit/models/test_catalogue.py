"""Which models are found and where, their names, and the effect of a presets file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from server.models import folders
from server.models.catalogue import ModelEntry, find_models, read_model_options
from server.options.groups import CatalogueOptions, group
from server.options.parser import OptionError, parse

MODEL = b"GGUF" + bytes(60)


def put(folder: Path, *names: str, data: bytes | None = None) -> None:
    """Files with these names, each with a content of its own."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(MODEL if data is None else data)


def catalogue(*argv: str) -> CatalogueOptions:
    """The options about several models, of a command line."""
    return group(parse(argv, {})).catalogue


def find(tmp_path: Path, *argv: str, told: list[str] | None = None) -> dict[str, ModelEntry]:
    """The models by their names. Nothing is told unless `told` takes it."""
    lines: list[str] = []
    entries = find_models(catalogue(*argv), tmp_path / "cache", lines.append)
    assert told is not None or lines == []
    (told if told is not None else []).extend(lines)
    names = [name for entry in entries for name in (entry.name, *entry.aliases)]
    assert len(set(names)) == len(names)
    return {entry.name: entry for entry in entries}


def names_in(folder: Path, tmp_path: Path) -> dict[str, tuple[str, ...]]:
    """Name -> aliases of what is in a folder."""
    return {name: entry.aliases for name, entry in find(tmp_path, "--models-dir", str(folder)).items()}


@pytest.fixture
def models(tmp_path) -> Path:
    """A folder for models."""
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


# ---- plain folders ---------------------------------------------------------------------------------------------------


@pytest.mark.covers("D01")
def test_files_are_called_by_their_names_and_parts_are_one_model(models, tmp_path):
    put(models, "a.gguf", "B-Q4_K_M.GGUF", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "note.txt")
    found = find(tmp_path, "--models-dir", str(models))
    assert sorted(found) == ["B-Q4_K_M", "a", "big"]
    big = found["big"]
    assert (big.size, len(big.parts), big.fault) == (128, 2, "")
    assert big.path == big.parts[0] == str(models / "big-00001-of-00002.gguf")


def test_a_folder_with_one_model_gives_it_its_name(models, tmp_path):
    put(models, "gemma/gemma-3-4b-Q4_K_M.gguf", "gemma/mmproj-F16.gguf", "x.gguf")
    found = find(tmp_path, "--models-dir", str(models))
    assert {name: entry.aliases for name, entry in found.items()} == {"gemma": ("gemma-3-4b-Q4_K_M",), "x": ()}
    assert found["gemma"].mmproj == str(models / "gemma" / "mmproj-F16.gguf")


def test_variants_in_a_folder_are_told_by_their_quantisation_and_the_folder_is_the_usual_one(models, tmp_path):
    put(models, "m/m-Q8_0.gguf", "m/m-Q4_K_M.gguf", "m/m-UD-IQ2_M.gguf", "m/m.gguf")
    assert names_in(models, tmp_path) == {
        "m:Q4_K_M": ("m-Q4_K_M", "m"),
        "m:Q8_0": ("m-Q8_0",),
        "m:UD-IQ2_M": ("m-UD-IQ2_M",),
        "m/m": (),
    }


def test_folders_of_users_and_models_are_repositories_whatever_is_below(models, tmp_path):
    put(models, "u/m-GGUF/m-Q4_0.gguf", "u/m-GGUF/Q8_0/m-Q8_0-00001-of-00001.gguf", "v/n-GGUF/n.BF16.gguf")
    put(models, "w/o/plain.gguf")
    assert names_in(models, tmp_path) == {
        "u/m-GGUF:Q4_0": ("m-Q4_0",),
        "u/m-GGUF:Q8_0": ("m-Q8_0", "u/m-GGUF"),
        "v/n-GGUF:BF16": ("n.BF16", "v/n-GGUF"),
        "w/o": ("plain",),
    }


def test_two_files_of_one_name_are_told_by_their_folders(models, tmp_path):
    put(models, "x.gguf", "a/x.gguf", "a/y.gguf", "b/x.gguf", "b/z.gguf")
    found = names_in(models, tmp_path)
    assert list(found) == ["x", "a/x", "a/y", "b/x", "b/z"]
    assert "x" not in found["a/x"] + found["b/x"]


def test_a_model_without_a_free_name_is_left_out_with_a_line(models, tmp_path):
    put(models, "x.gguf", "x-00001-of-00001.gguf", ".gguf")
    told: list[str] = []
    assert list(find(tmp_path, "--models-dir", str(models), told=told)) == ["x"]
    why = "is left out: it has no name of its own of at most 256 characters"
    assert told == [f"{models / '.gguf'} {why}", f"{models / 'x.gguf'} {why}"]
    told.clear()
    assert list(find(tmp_path, "-m", str(models / "x.gguf"), "-m", str(models / ".gguf"), told=told)) == ["x"]
    assert told == [f"{models / '.gguf'} {why}"]


@pytest.mark.parametrize(
    ("model", "projectors", "wanted"),
    [
        ("gemma-Q4_K_M.gguf", ["mmproj-gemma-f16.gguf", "mmproj-llava-f16.gguf"], "mmproj-gemma-f16.gguf"),
        ("llava.gguf", ["mmproj-gemma-f16.gguf", "llava-mmproj-bf16.gguf"], "llava-mmproj-bf16.gguf"),
        ("other.gguf", ["mmproj-gemma-f16.gguf"], ""),
        ("other.gguf", ["mmproj-F16.gguf"], ""),
    ],
)
@pytest.mark.covers("D01")
def test_a_projector_in_a_folder_of_many_models_belongs_to_the_one_it_names(
    models, tmp_path, model, projectors, wanted
):
    put(models, model, "yet-another.gguf", *projectors)
    found = find(tmp_path, "--models-dir", str(models))
    assert len(found) == 2
    assert found[model.removesuffix(".gguf")].mmproj == (str(models / wanted) if wanted else "")
    assert found["yet-another"].mmproj == ""


def test_what_is_no_model_by_itself_is_none(models, tmp_path):
    put(models, "x.imatrix.gguf", "mmproj-x.gguf", "big-00002-of-00002.gguf", "eagle3-x.gguf", "a.gguf.part")
    assert find(tmp_path, "--models-dir", str(models), told=[]) == {}


def test_a_model_that_lacks_a_part_or_is_something_else_says_so(models, tmp_path):
    put(models, "big-00001-of-00002.gguf", "huge-00001-of-99999.gguf")
    put(models, "page.gguf", data=b"<html>")
    put(models, "empty.gguf", data=b"")
    found = find(tmp_path, "--models-dir", str(models))
    assert found["big"].fault == "its part big-00002-of-00002.gguf is missing"
    assert found["huge"].fault == "its part huge-00002-of-99999.gguf is missing" and len(found["huge"].parts) == 2
    assert found["page"].fault == "page.gguf is not a GGUF file"
    assert found["empty"].fault == "empty.gguf is not a GGUF file"


def test_a_folder_without_models_is_told_of(models, tmp_path):
    told: list[str] = []
    assert find(tmp_path, "--models-dir", str(models), told=told) == {} and told == [f"no model found in {models}"]


def test_names_that_are_no_text_can_be_shown(models, tmp_path):
    try:
        put(models, os.fsdecode(b"a\xff\nb.gguf"))
    except OSError:
        pytest.skip("this file system takes only text")
    (name,) = find(tmp_path, "--models-dir", str(models))
    assert name == "a\ufffd?b"


# ---- folders that are wrong ------------------------------------------------------------------------------------------


@pytest.fixture
def link():
    """Make a link; skips where that isn't allowed."""

    def make(path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.symlink_to(target, target_is_directory=target.is_dir())
        except OSError:
            pytest.skip("no right to make links")

    return make


def test_folders_that_lead_back_end(models, tmp_path, link):
    put(models, "a/x.gguf")
    link(models / "a" / "loop", models)
    link(models / "b", models / "a")
    link(models / "dangling.gguf", models / "gone.gguf")
    found = find(tmp_path, "--models-dir", str(models))
    assert {name: bool(entry.fault) for name, entry in found.items()} == {"a": False, "dangling": True}


def test_a_folder_of_too_many_files_is_left_with_a_line(models, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_LOOKED", 10)
    put(models, *(f"{i:02}.gguf" for i in range(30)))
    told: list[str] = []
    assert len(find(tmp_path, "--models-dir", str(models), told=told)) == 10
    assert told == [f"{models}: searched only 10 of its files; name a folder that contains only models"]
    monkeypatch.setattr(folders, "MAX_LOOKED", 100)
    monkeypatch.setattr(folders, "MAX_MODELS", 5)
    assert len(find(tmp_path, "--models-dir", str(models), told=told)) == 5
    assert told[-1] == f"{models}: 30 models; all after the first 5 are left out"


def test_folders_are_looked_into_only_so_deep(models, tmp_path):
    put(models, "/".join("abcdefgh") + "/x.gguf", "/".join("ijklmnopqrst") + "/y.gguf")
    assert [entry.path[-6:] for entry in find(tmp_path, "--models-dir", str(models)).values()] == ["x.gguf"]


def test_what_may_not_be_read_is_told_in_one_line_each_and_not_for_ever(models, tmp_path, monkeypatch):
    for i in range(50):
        put(models, f"m{i:02}/x.gguf")
    scandir = os.scandir

    def refuse(path):
        if Path(path) != models:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)
    told: list[str] = []
    assert find(tmp_path, "--models-dir", str(models), told=told) == {}
    assert told[0] == f"{models / 'm00'} can't be read: Permission denied"
    assert len(told) == 21 and told[-1] == "further faults aren't listed"


# ---- other programs' folders -----------------------------------------------------------------------------------------


def put_hub(cache: Path, repo: str, files: dict[str, bytes], link, commit: str = "c0ffee", main: bool = True) -> None:
    """A repository in Hugging Face's cache, whose snapshots are links."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    for name, digest in files.items():
        put(folder, f"blobs/{digest.hex()}", data=MODEL + digest)
        link(folder / "snapshots" / commit / name, folder / "blobs" / digest.hex())
    if main:
        put(folder, "refs/main", data=commit.encode())


@pytest.mark.covers("D01")
def test_the_cache_of_hugging_face_gives_its_repositories(models, tmp_path, link):
    files = {"m-Q4_K_M.gguf": b"a" * 32, "m-Q8_0.gguf": b"b" * 32, "mmproj-F16.gguf": b"c" * 32}
    put_hub(models / "hub", "user/m-GGUF", {"old-Q4_K_M.gguf": b"d" * 32}, link, "dead", main=False)
    put_hub(models / "hub", "user/m-GGUF", files, link)
    found = find(tmp_path, "--models-dir", str(models))
    assert {name: entry.aliases for name, entry in found.items()} == {
        "user/m-GGUF:Q4_K_M": ("m-Q4_K_M", "user/m-GGUF"),
        "user/m-GGUF:Q8_0": ("m-Q8_0",),
    }
    entry = found["user/m-GGUF:Q8_0"]
    assert entry.mmproj.endswith("mmproj-F16.gguf") and entry.keeper == "Hugging Face's tools" and not entry.fault


def put_ollama(store: Path, name: str, layers: dict[str, bytes], manifest: bytes | None = None) -> None:
    """A model as Ollama keeps it: kind of layer -> content."""
    listed = []
    for kind, digest in layers.items():
        put(store, f"blobs/sha256-{digest.hex()}", data=MODEL + digest)
        listed.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest.hex()}"})
    put(store, f"manifests/{name}", data=json.dumps({"layers": listed}).encode() if manifest is None else manifest)


@pytest.mark.covers("D01")
def test_the_folder_of_ollama_gives_its_manifests(models, tmp_path):
    put_ollama(models, "registry.ollama.ai/library/llama3.2/latest", {"model": b"a" * 32, "template": b"t" * 32})
    put_ollama(models, "registry.ollama.ai/library/llava/7b", {"model": b"b" * 32, "projector": b"p" * 32})
    put_ollama(models, "registry.ollama.ai/me/mine/v1", {"model": b"c" * 32, "adapter": b"l" * 32})
    put_ollama(models, "hf.co/user/repo-GGUF/Q4_K_M", {"model": b"d" * 32})
    put_ollama(models, "registry.ollama.ai/library/copy/latest", {"model": b"b" * 32})
    found = find(tmp_path, "--models-dir", str(models))
    assert {name: entry.aliases for name, entry in found.items()} == {
        "hf.co/user/repo-GGUF:Q4_K_M": (),
        "copy:latest": ("copy", "llava:7b"),
        "llama3.2:latest": ("llama3.2",),
        "me/mine:v1": (),
    }
    assert found["copy:latest"].mmproj.endswith((b"p" * 32).hex()) and found["copy:latest"].keeper == "Ollama"
    assert found["me/mine:v1"].changes["lora"][0][0].endswith((b"l" * 32).hex())
    assert read_model_options(found["me/mine:v1"], [], {}).sources.lora == found["me/mine:v1"].changes["lora"]


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b'{"layers": 3}',
        b'{"layers": [3, {"digest": null}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:' + b"a" * 64 + b'"}]}',
        b"\xff\xfe",
    ],
)
def test_a_manifest_that_is_none_is_told_of(models, tmp_path, manifest):
    put(models, "blobs/x")
    put_ollama(models, "registry.ollama.ai/library/odd/1b", {}, manifest)
    told: list[str] = []
    assert find(tmp_path, "--models-dir", str(models), told=told) == {}
    assert len(told) == 2 and told[0].endswith("odd:1b is left out, because the manifest names no GGUF model")


@pytest.mark.covers("D01")
def test_what_was_downloaded_is_found(models, tmp_path):
    put(tmp_path / "cache" / "models", "hf/user/m-GGUF/m-Q4_K_M.gguf", "url/example.org/0123456789ab/x.gguf")
    put(models, "own.gguf")
    found = find(tmp_path, "--models-dir", str(models))
    assert {name: (entry.source, entry.aliases) for name, entry in found.items()} == {
        "own": ("dir", ()),
        "user/m-GGUF:Q4_K_M": ("cache", ("m-Q4_K_M", "user/m-GGUF")),
        "x": ("cache", ()),
    }


# ---- one model by many names -----------------------------------------------------------------------------------------


@pytest.mark.covers("D01")
def test_one_file_by_several_ways_is_one_model(models, tmp_path, link):
    put(models, "a.gguf")
    os.link(models / "a.gguf", models / "b.gguf")
    link(models / "c.gguf", models / "a.gguf")
    found = find(tmp_path, "--models-dir", str(models), "-m", str(models / "b.gguf"))
    assert {name: (entry.source, entry.aliases) for name, entry in found.items()} == {"b": ("option", ("a", "c"))}


@pytest.mark.covers("D01")
def test_one_content_by_its_checksum_is_one_model(models, tmp_path, link):
    digest = b"a" * 32
    put_hub(models / "hub", "user/m-GGUF", {"m-Q4_K_M.gguf": digest}, link)
    put_ollama(models / "ollama", "registry.ollama.ai/library/m/1b", {"model": digest})
    put(models, "mine.gguf", data=MODEL + digest)
    assert set(names_in(models, tmp_path)) == {"mine", "user/m-GGUF:Q4_K_M"}
    put(models, "mine.gguf.sha256", data=digest.hex().encode() + b"  mine.gguf\n")
    assert names_in(models, tmp_path) == {"mine": ("user/m-GGUF:Q4_K_M", "m-Q4_K_M", "user/m-GGUF", "m:1b")}
    os.utime(models / "mine.gguf.sha256", (1, 1))  # the file has been written to since
    assert len(names_in(models, tmp_path)) == 2


def test_of_two_places_that_have_a_name_the_first_counts(models, tmp_path):
    put(tmp_path / "cache" / "models", "url/example.org/0123456789ab/x.gguf")
    put(models, "x.gguf")
    told: list[str] = []
    found = find(tmp_path, "--models-dir", str(models), told=told)
    assert [entry.source for entry in found.values()] == ["dir"]
    assert told[0].endswith(f"is left out: there is another model with the name x, {models / 'x.gguf'}")


@pytest.mark.covers("D01")
def test_several_files_on_the_command_line_are_models(tmp_path):
    put(tmp_path, "a.gguf", "b.gguf")
    found = find(tmp_path, str(tmp_path / "a.gguf"), "-m", str(tmp_path / "b.gguf"), "-m", "gone.gguf")
    assert list(found) == ["a", "b", "gone"] and found["a"].source == "option"
    assert found["gone"].fault == "gone.gguf is missing"


# ---- presets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def presets(tmp_path):
    """Write a file of presets; its path."""

    def write(text: str) -> str:
        path = tmp_path / "presets.ini"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.covers("D01")
def test_a_section_is_a_model_with_options_of_its_own(models, tmp_path, presets):
    put(models, "a.gguf", "b-Q4_K_M.gguf", "c.gguf")
    path = presets(
        "version = 1  # of the format\n\n"
        "[*]\nctx-size = 1000\nn-gpu-layers = 5\n\n"
        f"[chat]\nmodel = {models / 'a.gguf'}\nalias = talk, small\ntags = de,en\nctx-size = 2000\n"
        "load-on-startup = true\nstop-timeout = 5\n\n"
        "[b-Q4_K_M]\nLLAMA_ARG_TEMPERATURE = 0.5\nno-mmap = on\n"
    )
    found = find(tmp_path, "--models-dir", str(models), "--models-preset", path)
    assert {name: (entry.source, entry.aliases) for name, entry in found.items()} == {
        "chat": ("preset", ("talk", "small", "a")),
        "b-Q4_K_M": ("preset", ()),
        "c": ("dir", ()),
    }
    chat, b, c = (read_model_options(found[name], ["-m", "x.gguf"], {}) for name in found)
    assert (chat.ctx_size, chat.tags, chat.sources.model) == (2000, ("de", "en"), str(models / "a.gguf"))
    assert (b.ctx_size, b.requests.values["temperature"], b.model_params["load_mode"]) == (1000, 0.5, 0)
    assert [model.model_params["n_gpu_layers"] for model in (chat, b, c)] == [5, 5, 5]
    assert [entry.is_eager for entry in found.values()] == [True, False, False]


def test_loading_at_start_may_be_said_for_all_models_and_otherwise_for_one(models, tmp_path, presets):
    put(models, "a.gguf", "b.gguf", "c.gguf")
    path = presets("[a]\ntemp = 1\n[b]\nload-on-startup = off\n[*]\nload-on-startup = on\n")
    found = find(tmp_path, "--models-dir", str(models), "--models-preset", path)
    assert {name: entry.is_eager for name, entry in found.items()} == {"a": True, "b": False, "c": True}


def test_one_file_may_have_several_presets(models, tmp_path, presets):
    put(models, "a.gguf")
    file = models / "a.gguf"
    path = presets(f"[cold]\nmodel = {file}\ntemp = 0\n[hot]\nmodel = {file}\ntemp = 2\n")
    found = find(tmp_path, "--models-preset", path, "--models-dir", str(models))
    assert {name: entry.aliases for name, entry in found.items()} == {"cold": ("a",), "hot": ()}


def test_a_preset_of_a_repository_has_the_file_in_the_cache_or_is_to_be_fetched(tmp_path, presets):
    put(tmp_path / "cache" / "models", "hf/user/m-GGUF/m-Q4_K_M.gguf")
    path = presets(
        "[here]\nhf-repo = user/m-GGUF\n[there]\nhf = user/n-GGUF:Q8_0\n[url]\nmodel-url = https://e.org/x\n"
    )
    found = find(tmp_path, "--models-preset", path)
    here, there, url = (read_model_options(entry, [], {}).sources for entry in found.values())
    assert here.model.endswith("m-Q4_K_M.gguf") and not here.must_fetch
    assert (there.model, there.hf_repo, there.must_fetch) == (None, "user/n-GGUF:Q8_0", True)
    assert url.model_url == "https://e.org/x" and not any(entry.fault for entry in found.values())


def test_the_command_line_counts_more_than_a_preset_and_a_preset_more_than_the_environment(models, tmp_path, presets):
    put(models, "a.gguf")
    path = presets("[a]\nctx-size = 128\ntop-k = 3\nmmproj = " + str(models / "a.gguf"))
    (entry,) = find(tmp_path, "--models-dir", str(models), "--models-preset", path).values()
    argv = ["-m", "other.gguf", "-a", "other", "--mmproj", str(models / "a.gguf"), "--top-k", "5", "-np", "2"]
    model = read_model_options(entry, argv, {"LLAMA_ARG_CTX_SIZE": "64"})
    assert (model.sources.model, model.aliases) == (entry.path, ("a",))
    assert (model.ctx_size, model.parallel, model.requests.values["top_k"]) == (128, 2, 5)
    bare = read_model_options(ModelEntry("x", path="x.gguf"), argv, {})
    assert (bare.sources.model, bare.sources.mmproj, bare.aliases) == ("x.gguf", None, ("x",))


@pytest.mark.parametrize("several", [("--models-dir", "."), ("-m", "x.gguf", "-m", "y.gguf")])
def test_options_of_one_model_are_told_of_if_there_are_several(several):
    argv = ["-m", "a.gguf", "--alias", "other", "-hf", "user/model"]
    assert parse(argv, {}).warnings == ()
    told = parse([*argv, *several], {"LLAMA_ARG_MMPROJ": __file__}).warnings
    assert [line.partition(" has no effect with several models")[0] for line in told] == [
        "--alias",
        "--hf-repo",
        "--mmproj",
    ]
    assert parse([*argv, *several], {}, own={}).warnings == ()


def test_a_section_without_a_file_is_a_model_that_says_so(tmp_path, presets):
    (entry,) = find(tmp_path, "--models-preset", presets("[gone]\nctx-size = 5\n[*]\ntemp = 1")).values()
    assert entry.fault == "presets.ini line 1: it names no file, and there is no model of this name"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[a]\nctx-size = many", "presets.ini line 2 [a]: ctx-size: 'many' is not a whole number"),
        ("[a]\nctx-sice = 5", "presets.ini line 2 [a]: there is no option ctx-sice, did you mean ctx-size?"),
        ("\n[a]\nport = 80", "presets.ini line 3 [a]: port is an option of the server, not of a model"),
        ("[a]\nmodels-dir = /", "presets.ini line 2 [a]: models-dir is an option of the server, not of a model"),
        ("[a]\nhelp = on", "presets.ini line 2 [a]: help can be set on the command line only"),
        ("[a]\nconfig = x", "presets.ini line 2 [a]: config can be set on the command line only"),
        ("ctx-size = 5\n[a]", "presets.ini line 1: this is before the first section; use [*] for all models"),
        ("[a]\n[b]\n[a]", "presets.ini line 3: the section [a] already exists, at presets.ini line 1"),
        ("[a\nx = 1", "presets.ini line 1: the section [a has no ] at its end"),
        ("[a]\nub = 64\nb = 32", "presets.ini line 1 [a]: --ubatch-size 64 is more than --batch-size 32: raise the"),
        ("[*]\nub = 64\n[a]\nb = 32", "presets.ini line 3 [a]: --ubatch-size 64 is more than"),
        ("[a]\ntemp = 1\ntemp = 2", "presets.ini line 3 [a]: temp is set a second time, after presets.ini line 2 [a]"),
        ("[a]\nload-on-startup = perhaps", "presets.ini line 2 [a]: load-on-startup: 'perhaps' is neither on nor off"),
        ("[" + "a" * 300 + "]", "presets.ini line 1: this can't be a model's name"),
        ("[a\x1b]", "presets.ini line 1: this can't be a model's name"),
    ],
)
def test_a_wrong_preset_is_told_with_its_place(tmp_path, presets, text, message):
    with pytest.raises(OptionError) as error:
        find(tmp_path, "--models-preset", presets(text))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_option_without_effect_in_a_preset_is_told_of(tmp_path, presets):
    put(tmp_path, "x.gguf")
    told: list[str] = []
    find(tmp_path, "--models-preset", presets(f"[a]\nmodel = {tmp_path / 'x.gguf'}\ndefrag-thold = 1"), told=told)
    assert told == ["presets.ini line 3 [a]: defrag-thold has no effect: llama.cpp's cache needs no defragmentation"]

"""Finds models in folders of four layouts: plain folders, `USER/MODEL/...`, Hugging Face's cache, Ollama's folder.

Runs where the catalogue is made. It reads names and small files, never a model. It bounds the search of large or
circular folders, and doesn't trust manifests. Imports only `file_names` and `server.records`. Not taken: asking the
other programs for their models. They may not be running.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from server.models.file_names import (
    PROJECTOR,
    SUFFIX,
    base_of,
    choose_file,
    choose_projector,
    is_model_file,
    quant_of,
    split_names,
    stem_of,
)
from server.records import field, record

MAX_LOOKED = 100_000
"""Names that are read below one folder."""
MAX_DEPTH = 8  # levels of subfolders
MAX_MODELS = 1000  # in one folder
MAX_NAME = 256  # characters of a model's name
MAX_NOTE = 1 << 20  # bytes of a manifest
HUB_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
BLOB = re.compile(r"(?:sha256-)?([0-9a-f]{64})")
OLLAMA = "application/vnd.ollama.image."
OLLAMA_HOST, OLLAMA_USER = "registry.ollama.ai", "library"

Tell = Callable[[str], None]


@record(frozen=True)
class Found:
    """A model that was found. `path` is its file or first part. `spare` is its name if `name` is taken. `keeper` is the
    other program that owns the folder, "" for none. `lora` is an adapter that belongs to the model."""

    path: Path
    name: str
    spare: str = ""
    aliases: tuple[str, ...] = ()
    mmproj: str = ""
    lora: str = ""
    keeper: str = ""


@record
class _Walk:
    """The search below one folder."""

    root: Path
    tell: Tell
    n_looked: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)
    repos: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)
    """The GGUF files of each repository, as (path in the repository, path) pairs; under "" those directly in `root`."""
    hub: set[str] = field(default_factory=set)
    """Repositories in Hugging Face's cache."""
    others: list[Found] = field(default_factory=list)


def find_in(root: Path, tell: Tell) -> list[Found]:
    """The models below `root`, at most `MAX_MODELS`. `tell` gets lines about what can't be used or is left out."""
    walk = _Walk(root, tell)
    _look(walk, root, (), "")
    if walk.n_looked > MAX_LOOKED:
        tell(f"{root}: searched only {MAX_LOOKED} of its files; name a folder that contains only models")
    found = [
        model for repo, files in sorted(walk.repos.items()) for model in _list_models(repo, files, repo in walk.hub)
    ]
    found += walk.others
    if len(found) > MAX_MODELS:
        tell(f"{root}: {len(found)} models; all after the first {MAX_MODELS} are left out")
    return found[:MAX_MODELS]


def _look(walk: _Walk, folder: Path, above: tuple[str, ...], repo: str) -> None:
    """Search a folder and its subfolders. `above` has the names of the folders from the root (or the snapshot) down to
    it. If `repo` is "", the first two of these name the repository."""
    entries = list(_list_entries(walk, folder))
    folders = {entry.name: entry for entry in entries if entry.is_dir()}
    if {"manifests", "blobs"} <= folders.keys():
        walk.others += _list_ollama(walk, folder)
        return
    inside = repo or "/".join(above[:2])
    for entry in entries:
        if entry.name.lower().endswith(SUFFIX) and entry.name not in folders:
            depth = len(above) if repo else min(len(above), 2)
            path = "/".join((*above[depth:], entry.name)) if not repo else "/".join((*above, entry.name))
            walk.repos.setdefault(inside, []).append((path, folder / entry.name))
    for name in sorted(folders):
        if hub := HUB_FOLDER.fullmatch(name):
            snapshot = _snapshot(folder / name)
            if snapshot is not None:
                walk.hub.add(f"{hub[1]}/{hub[2]}")
                _look(walk, snapshot, (), f"{hub[1]}/{hub[2]}")
        elif not name.startswith(".") and len(above) < MAX_DEPTH:
            _look(walk, folder / name, (*above, name), repo)


def _list_entries(walk: _Walk, folder: Path) -> Iterator[os.DirEntry[str]]:
    """The sorted contents of a folder; none if it was searched before or can't be read, or after `MAX_LOOKED` names."""
    try:
        status = os.stat(folder)
        key = status.st_dev, status.st_ino
        if key in walk.seen or walk.n_looked > MAX_LOOKED:
            return
        walk.seen.add(key)
        found = []
        with os.scandir(folder) as entries:
            for entry in entries:
                walk.n_looked += 1
                if walk.n_looked > MAX_LOOKED:
                    break
                found.append(entry)
    except OSError as error:
        walk.tell(f"{folder} can't be read: {error.strerror or error}")
        return
    yield from sorted(found, key=lambda entry: entry.name)


# ---- names -----------------------------------------------------------------------------------------------------------


def _list_models(repo: str, files: list[tuple[str, Path]], is_of_hub: bool) -> Iterator[Found]:
    """The models of one repository; `repo` is "" for files that are in none."""
    paths = [path for path, _ in files]
    models = [path for path in paths if is_model_file(path)]
    places = dict(files)
    quants = [quant_of(path) for path in models]
    default = choose_file(models, "")
    for path, quant in zip(models, quants):
        stem = stem_of(path.rpartition("/")[2])
        spare = f"{repo}/{path[: -len(path.rpartition('/')[2])]}{stem}".lstrip("/")
        if not repo:
            name = stem
        elif len(models) == 1 and ("/" not in repo or not quant):
            name = repo
        else:
            name = f"{repo}:{quant}" if quant and quants.count(quant) == 1 else spare
        aliases = (stem, repo) if path == default and repo else (stem,)
        mmproj = _find_projector(path, models, paths, bool(repo))
        yield Found(
            places[path],
            name,
            spare,
            tuple(alias for alias in aliases if alias != name),
            str(places[mmproj]) if mmproj else "",
            keeper="Hugging Face's tools" if is_of_hub else "",
        )


def _find_projector(model: str, models: list[str], paths: list[str], is_repo: bool) -> str:
    """The projector for a model; "" for none. If other models could own it, its name must match the model's."""
    projectors = [path for path in paths if PROJECTOR in path.rpartition("/")[2]]
    if not projectors:
        return ""
    bases = {base_of(path.rpartition("/")[2]) for path in models}
    own = base_of(model.rpartition("/")[2])
    if not is_repo or len(bases) > 1:
        projectors = [path for path in projectors if base_of(path.rpartition("/")[2]) == own]
    return choose_projector(projectors, model)


def clean_name(name: str) -> str:
    """The name with unprintable characters replaced; "" if it is too long."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "?" for char in name) if len(name) <= MAX_NAME else ""


# ---- Hugging Face's cache --------------------------------------------------------------------------------------------


def _snapshot(repo: Path) -> Path | None:
    """The folder of the snapshot to which `main` points, else of the newest; None if there is none."""
    try:
        names = [entry.name for entry in os.scandir(repo / "snapshots") if entry.is_dir()]
    except OSError:
        return None
    try:
        with open(repo / "refs" / "main", encoding="ascii", errors="replace") as stream:
            main = stream.read(100).strip()
    except OSError:
        main = ""
    if main in names:
        return repo / "snapshots" / main
    newest = max(names, key=lambda name: os.stat(repo / "snapshots" / name).st_mtime, default="")
    return repo / "snapshots" / newest if newest else None


# ---- Ollama's folder -------------------------------------------------------------------------------------------------


def _list_ollama(walk: _Walk, store: Path) -> Iterator[Found]:
    """The models in Ollama's folder. Its manifests, one per name and tag, name files by their checksums."""
    for path in _list_files_below(walk, store / "manifests", 0):
        parts = path.relative_to(store / "manifests").parts
        if len(parts) != 4:
            continue
        host, user, model, tag = parts
        name = f"{model}:{tag}" if user == OLLAMA_USER else f"{user}/{model}:{tag}"
        name = name if host == OLLAMA_HOST else f"{host}/{user}/{model}:{tag}"
        layers = _read_layers(path)
        if "model" not in layers:
            walk.tell(f"{path}: {name} is left out, because the manifest names no GGUF model")
            continue
        blobs = {kind: str(store / "blobs" / f"sha256-{digest}") for kind, digest in layers.items()}
        yield Found(
            Path(blobs["model"]),
            name,
            aliases=(name.removesuffix(":latest"),) if tag == "latest" else (),
            mmproj=blobs.get("projector", ""),
            lora=blobs.get("adapter", ""),
            keeper="Ollama",
        )


def _list_files_below(walk: _Walk, folder: Path, depth: int) -> Iterator[Path]:
    for entry in _list_entries(walk, folder):
        if entry.is_dir() and depth < MAX_DEPTH:
            yield from _list_files_below(walk, folder / entry.name, depth + 1)
        elif entry.is_file():
            yield folder / entry.name


def _read_layers(manifest: Path) -> dict[str, str]:
    """The first checksum of each kind of layer in a manifest; none if it can't be read."""
    found: dict[str, str] = {}
    try:
        with open(manifest, "rb") as stream:
            content = json.loads(stream.read(MAX_NOTE))
        for layer in content["layers"]:
            digest = DIGEST.fullmatch(layer["digest"])
            if digest and layer["mediaType"].startswith(OLLAMA):
                found.setdefault(layer["mediaType"].removeprefix(OLLAMA), digest[1])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return found


# ---- parts and identity of files -------------------------------------------------------------------------------------


def parts_of(path: Path) -> list[Path]:
    """The parts of the model whose first part is `path`, up to and including the first that is missing."""
    found = []
    for name in split_names(path.name):
        found.append(path.with_name(name))
        if not found[-1].is_file():
            break
    return found


def list_identities(path: Path) -> list[object]:
    """Keys that identify a file: its inode or path, and its checksum if its name or a download's note has it. Paths
    with a common key have the same content."""
    try:
        status = os.stat(path)
        target = os.path.realpath(path)
    except OSError:
        return []
    known: list[object] = [(status.st_dev, status.st_ino)] if status.st_ino else [target]
    if blob := BLOB.fullmatch(os.path.basename(target)):
        known.append(blob[1])
    note = Path(target + ".sha256")
    try:
        if note.stat().st_mtime_ns >= status.st_mtime_ns:
            with open(note, encoding="ascii", errors="replace") as stream:
                known += [digest[1] for digest in [BLOB.fullmatch(stream.read(64))] if digest]
    except OSError:
        pass
    return known

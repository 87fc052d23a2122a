"""The models of this machine (`server.models.catalogue`), for commands: find, download or remove one. Main thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server import program
from server.errors import PassingError
from server.models.catalogue import ModelEntry, find_models
from server.models.file_names import find_names_like, parse_repository, stem_of
from server.models.removal import RemovalError, remove_files
from server.options.groups import CatalogueOptions, Settings
from server.options.parser import OptionError
from server.records import record


@record(frozen=True)
class Call:
    """One command: its settings, the words that aren't options, and the options as (name, word) pairs."""

    settings: Settings
    names: list[str]
    options: list[tuple[str, str]]


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def entries_of(settings: Settings, with_notes: bool = True) -> list[ModelEntry]:
    """All models that a server with these settings would have."""
    options = CatalogueOptions(
        models_dir=settings.models_dir,
        models_preset=settings.models_preset,
        models_max=0,
        models_autoload=True,
        files=(),
    )
    return find_models(options, program.find_cache_folder(), lambda line: tell(f"note: {line}") if with_notes else None)


def find(settings: Settings, name: str) -> tuple[ModelEntry, list[ModelEntry]]:
    """The model with this name or path, and all models. OptionError suggests similar names."""
    entries = entries_of(settings, with_notes=False)
    for is_it in (str.__eq__, lambda a, b: a.lower() == b.lower()):
        for entry in entries:
            if any(is_it(own, name) for own in (entry.name, *entry.aliases)):
                return entry, entries
    if os.path.isfile(name):
        return ModelEntry(stem_of(Path(name).name), path=name, parts=(name,), source="option"), entries
    raise OptionError(f"there is no model {name!r}{describe_near(name, entries)}")


def describe_near(name: str, entries: Sequence[ModelEntry]) -> str:
    """The end of the error about an unknown name."""
    close = find_names_like(name, (own for entry in entries for own in (entry.name, *entry.aliases)))
    if close:
        return f", did you mean {' or '.join(close)}?"
    if not entries:
        return "; pull USER/MODEL downloads one, --models-dir DIR names a folder of models"
    return "; the command models lists all models"


def pull(call: Call) -> int:
    """`pull NAME`: download a model into the cache, or continue a download. Returns the exit code."""
    path = fetch(call.settings, call.names[0])
    print(path)
    tell(f"run it with: {program.describe_program()} run {call.names[0]}")
    return 0


def fetch(settings: Settings, name: str) -> Path:
    """Download a model, with a projector if there is one. Returns the model's path. OptionError, PassingError."""
    from server.download import DownloadError, fetch_model, fetch_projector

    repo = parse_repository(name)
    is_url = repo is None and name.startswith(("http://", "https://"))
    if not (repo or is_url):
        raise OptionError(f"{name!r} can't be downloaded: use USER/MODEL, USER/MODEL:QUANT or the URL of a GGUF file")
    token = settings.hf_token
    try:
        path = fetch_model(name if is_url else None, repo, settings.hf_file, sha256=settings.model_sha256, token=token)
        if repo:
            fetch_projector(repo, path, token=token)
    except DownloadError as error:
        raise PassingError(str(error)) from None
    except KeyboardInterrupt:
        tell("\nstopped; run the same command to continue the download")
        raise
    return path


def remove(call: Call) -> int:
    """`rm NAME`: delete a model's files. Returns the exit code."""
    settings = call.settings
    entry, entries = find(settings, call.names[0])
    roots = [program.find_cache_folder() / "models", *([Path(settings.models_dir)] if settings.models_dir else [])]
    try:
        removed = remove_files(entry, entries, roots)
    except RemovalError as error:
        raise OptionError(str(error)) from None
    print("\n".join(f"removed {path}" for path in removed))
    return 0

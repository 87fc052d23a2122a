"""Removes a model's files, but none outside the folders of models, and none of other programs.

Runs on a connection thread, or on the main thread of a command. Imports only the catalogue's entries. Not taken: moving
the files to the trash, which frees no disk space.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.models.catalogue import ModelEntry

NOTES = (".sha256", ".part", ".part.json", ".lock")
"""Suffixes of files that downloads put beside a model."""
MARKS = (".no-mmproj",)
"""Files that downloads put into a repository's folder."""


class RemovalError(Exception):
    """Why a model's files can't be removed: one line."""


def remove_files(entry: ModelEntry, others: Iterable[ModelEntry], roots: Sequence[Path]) -> list[Path]:
    """Remove the files of a model and their notes, its projector unless another model uses it, and folders that become
    empty. A link is removed without its target. Return the removed files.

    RemovalError: from `list_removable_files` before anything is removed; later if the system refuses."""
    places = list_removable_files(entry, others, roots)
    try:
        removed = [path for path, _ in places if _remove(path)]
    except OSError as error:
        raise RemovalError(f"{error.filename or entry.path} can't be removed: {error.strerror or error}") from None
    for path, root in places:
        _tidy(path.parent, root)
    return removed


def list_removable_files(
    entry: ModelEntry, others: Iterable[ModelEntry], roots: Sequence[Path]
) -> list[tuple[Path, Path]]:
    """The files that `remove_files` removes, each with its root. RemovalError if it finds none, or one outside `roots`
    or of another program."""
    if entry.keeper:
        raise RemovalError(f"{entry.name} is in a folder of {entry.keeper}: remove it with that program")
    if not entry.path:
        raise RemovalError(f"{entry.name} has no file on this machine")
    used = {path for other in others if other.name != entry.name for path in (other.mmproj, *other.parts)}
    files = [Path(path) for path in (*entry.parts, *([entry.mmproj] if entry.mmproj not in used else [])) if path]
    places = [(path, root) for path in files if (root := _root_of(path, roots))]
    if len(places) < len(files):
        raise RemovalError(f"{entry.path} is not in a folder of models: remove the file yourself")
    return places


def _root_of(path: Path, roots: Iterable[Path]) -> Path | None:
    """The root that contains a file, after links to folders are resolved, or None."""
    folder = Path(os.path.realpath(path.parent))
    return next((root for root in map(_resolve_real, roots) if folder == root or root in folder.parents), None)


def _resolve_real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _remove(path: Path) -> bool:
    """Remove a file and its notes. Return whether it existed."""
    for suffix in NOTES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _tidy(folder: Path, root: Path) -> None:
    """Remove `folder` and its parents below `root`, as far as they are empty but for `MARKS`."""
    folder = _resolve_real(folder)
    with contextlib.suppress(OSError):
        while root in folder.parents:
            if {entry.name for entry in os.scandir(folder)} <= set(MARKS):
                for mark in MARKS:
                    (folder / mark).unlink(missing_ok=True)
            folder.rmdir()
            folder = folder.parent

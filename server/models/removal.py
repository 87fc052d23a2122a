"""Removing a model's files: only such as lie below the folders of models, and belong to nobody else.

Runs where it is asked for: a connection's thread, or a command's main thread. A leaf but for the catalogue's entries.
Not taken: a dustbin. Who removes a model wants its room on the disk.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from server.models.catalogue import ModelEntry

NOTES = (".sha256", ".part", ".part.json", ".lock")
"""What downloads leave beside a file."""
MARKS = (".no-mmproj",)
"""What they leave in a folder."""


class RemovalError(Exception):
    """Why a model's files stay: one line."""


def remove_files(entry: ModelEntry, others: Iterable[ModelEntry], roots: Sequence[Path]) -> list[Path]:
    """Remove the files of a model, its projector if no other model has it, and folders that are empty then.

    RemovalError before anything is removed if they aren't below `roots`, or are another program's. Links are removed,
    never what they lead to."""
    places = removable_files(entry, others, roots)
    try:
        removed = [path for path, _ in places if _remove(path)]
    except OSError as error:
        raise RemovalError(f"{error.filename or entry.path} can't be removed: {error.strerror or error}") from None
    for path, root in places:
        _tidy(path.parent, root)
    return removed


def removable_files(entry: ModelEntry, others: Iterable[ModelEntry], roots: Sequence[Path]) -> list[tuple[Path, Path]]:
    """The files that `remove_files` would remove, each with the root that it is in. RemovalError."""
    if entry.keeper:
        raise RemovalError(f"{entry.name} is in a folder of {entry.keeper}: remove it there")
    if not entry.path:
        raise RemovalError(f"{entry.name} has no file here")
    used = {path for other in others if other.name != entry.name for path in (other.mmproj, *other.parts)}
    files = [Path(path) for path in (*entry.parts, *([entry.mmproj] if entry.mmproj not in used else [])) if path]
    places = [(path, root) for path in files if (root := _root_of(path, roots))]
    if len(places) < len(files):
        raise RemovalError(f"{entry.path} is not in the folder of models, so it stays: remove the file yourself")
    return places


def _root_of(path: Path, roots: Iterable[Path]) -> Path | None:
    """Which root a file is in, links of folders followed."""
    folder = Path(os.path.realpath(path.parent))
    return next((root for root in map(_real, roots) if folder == root or root in folder.parents), None)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _remove(path: Path) -> bool:
    """Whether it was there."""
    for suffix in NOTES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _tidy(folder: Path, root: Path) -> None:
    """Remove folders that have become empty, up to `root`."""
    folder = _real(folder)
    with contextlib.suppress(OSError):
        while root in folder.parents:
            if {entry.name for entry in os.scandir(folder)} <= set(MARKS):
                for mark in MARKS:
                    (folder / mark).unlink(missing_ok=True)
            folder.rmdir()
            folder = folder.parent

"""Chooses files in a repository of a model hub: Hugging Face, or one with the same API.

Runs where `fetch` runs. File names from the hub aren't trusted: files with unsafe paths are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

from server.download.client import SHA256, Client, describe_url, parse_origin, split_url
from server.download.local import DownloadError, is_safe_path, make_safe_name
from server.download.transfer import Wanted
from server.models.file_names import (
    MAX_REPO,
    QUANT_ORDER,
    REPO,
    choose_file,
    choose_projector,
    is_model_file,
    split_names,
)
from server.records import record

REVISION = "main"
NO_PROJECTOR = ".no-mmproj"
"""A file of this name says that the folder's repository has no projector, so the hub isn't asked again."""
MAX_PAGES = 100  # pages of a repository's file list
N_SHOWN = 8  # names of files in an error

Listing = Mapping[str, tuple[str, "int | None"]]
"""The files of a repository: path -> (sha256 or "", size in bytes or None)."""


@record(frozen=True)
class Hub:
    """The repository `name` ("user/repo" or "user/repo:quant"), and its files below `cache`."""

    client: Client
    name: str
    cache: Path
    offline: bool

    def find_files(self, file: str | None, target: Path | None) -> list[Wanted]:
        """The files of the model: `file`, or the best one, with its parts. Asks the hub if the cache doesn't suffice,
        unless `offline`."""
        repo, _, quant = self.name.partition(":")
        if len(repo) > MAX_REPO or not REPO.fullmatch(repo):
            raise DownloadError(f"--hf-repo takes user/repo or user/repo:quant, not {self.name[:80]!r}")
        folder = self.cache.joinpath(*map(make_safe_name, repo.split("/")))
        known: Listing = {}
        if not file:
            file, known = self._choose(repo, quant, folder)
        elif not is_safe_path(file):
            raise DownloadError(f"--hf-file takes the name of a file in the repository, not {file[:80]!r}")
        base, slash, last = file.rpartition("/")
        names = [base + slash + name for name in split_names(last)]
        files = []
        for name in names:
            place = folder.joinpath(*name.split("/"))
            if target:
                place = target if len(names) == 1 else target.parent / place.name
            url = f"{self.client.endpoint}/{repo}/resolve/{REVISION}/{quote(name)}"
            files.append(Wanted(url, place, *known.get(name, ("", None)), is_cached=target is None))
        return files

    def find_projector(self, model: Path) -> Wanted | None:
        """The projector for a model of this repository; None if there is none. Asks the hub if the cache doesn't
        suffice, unless `offline`."""
        repo = self.name.partition(":")[0]
        folder = self.cache.joinpath(*map(make_safe_name, repo.split("/")))
        name = model.relative_to(folder).as_posix() if model.is_relative_to(folder) else model.name
        cached = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
        known: Listing = {}
        found = choose_projector(cached, name)
        if not found and not self.offline and not (folder / NO_PROJECTOR).exists():
            known = self._list(repo)
            found = choose_projector(known, name)
            if not found:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / NO_PROJECTOR).touch()
        if not found:
            return None
        url = f"{self.client.endpoint}/{repo}/resolve/{REVISION}/{quote(found)}"
        return Wanted(url, folder.joinpath(*found.split("/")), *known.get(found, ("", None)))

    def _choose(self, repo: str, quant: str, folder: Path) -> tuple[str, Listing]:
        cached = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
        # a file that is preferred to all others that the repository may have
        certain = choose_file(cached, quant or QUANT_ORDER[0])
        fallback = certain or choose_file(cached, quant)
        if certain or self.offline:
            if not fallback:
                raise DownloadError(
                    f"offline: {folder} has no file of {self.name}: run once without --offline, or copy the file there"
                )
            return fallback, {}
        try:
            listing = self._list(repo)
        except DownloadError as error:
            if not fallback:
                raise
            self.client.progress.say(f"{error}; using {fallback} from the cache")
            return fallback, {}
        chosen = choose_file(listing, quant)
        if not chosen:
            raise DownloadError(_describe_no_file(repo, quant, [path for path in listing if is_model_file(path)]))
        return chosen, listing

    def _list(self, repo: str) -> Listing:
        url = f"{self.client.endpoint}/api/models/{repo}/tree/{REVISION}?recursive=true"
        found: dict[str, tuple[str, int | None]] = {}
        for _ in range(MAX_PAGES):
            page, following = self.client.persist(partial(self.client.read_json, url), lambda: 0, repo)
            if not isinstance(page, list):
                raise DownloadError(f"{describe_url(url)} is not a list of files: check MODEL_ENDPOINT")
            found.update(_read_entry(row) for row in page if _is_file(row))
            following = urljoin(url, following) if following else ""
            if not following or not split_url(following) or parse_origin(following) != parse_origin(url):
                break
            url = following
        return found


def _is_file(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.get("type") == "file"
        and isinstance(row.get("path"), str)
        and is_safe_path(row["path"])
    )


def _read_entry(row: Mapping[str, Any]) -> tuple[str, tuple[str, int | None]]:
    lfs, size = row.get("lfs"), row.get("size")
    oid = lfs.get("oid") if isinstance(lfs, dict) else None
    checksum = oid.lower() if isinstance(oid, str) and SHA256.fullmatch(oid) else ""
    return str(row["path"]), (checksum, size if type(size) is int else None)


def _describe_no_file(repo: str, quant: str, models: list[str]) -> str:
    what = f"{repo} has no {quant + ' ' if quant else ''}GGUF file"
    if not models:
        return f"{what}: choose another repository, for example one with GGUF in its name"
    more = ", ..." if len(models) > N_SHOWN else ""
    return f"{what}: choose one with --hf-file: {', '.join(models[:N_SHOWN])}{more}"

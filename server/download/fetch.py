"""Provides a model's files: chooses them, checks which exist, and downloads the others.

Runs on the caller's thread. Each file has a lock, so that two processes don't download it at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlunsplit

from server.download.client import SHA256, Client, check_url
from server.download.hub import Hub, split_names
from server.download.local import DownloadError, Progress, describe_disk_error, hold_exclusive, make_safe_name
from server.download.transfer import BLOCK, Transfer, Wanted
from server.program import find_cache_folder

HUB_URL = "https://huggingface.co"
ENDPOINT_VARIABLES = ("MODEL_ENDPOINT", "HF_ENDPOINT")


def fetch_model(
    url: str | None = None,
    hf_repo: str | None = None,
    hf_file: str | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    offline: bool = False,
    sha256: str | None = None,
    token: str | None = None,
    cache: Path | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """The path of the model (of its first file if it has several), which is downloaded unless it exists. DownloadError.

    Give either `url`, or `hf_repo` ("user/repo" or "user/repo:quant") with or without `hf_file`. `path` (`-m`) is the
    destination instead of the cache. `token`, or else HF_TOKEN, is sent only to the hub: MODEL_ENDPOINT, HF_ENDPOINT or
    huggingface.co. `sha256` is also compared with a file that exists.
    """
    environ = os.environ if environ is None else environ
    if bool(url) == bool(hf_repo) or hf_file and not hf_repo:
        raise DownloadError("unclear what to download: give --model-url alone, or --hf-repo with or without --hf-file")
    if sha256 and not SHA256.fullmatch(sha256):
        raise DownloadError(f"a sha256 has 64 hexadecimal digits, not {sha256[:80]!r}")
    client = Client(_read_endpoint(environ), _read_token(token, environ), sleep, progress or Progress())
    cache = (cache or find_cache_folder(environ)) / "models"
    target = Path(path) if path else None
    try:
        if target and target.is_file():
            files = [Wanted("", target, is_cached=False)]
        elif url:
            files = _files_of_url(url, cache / "url", target)
        else:
            files = Hub(client, str(hf_repo), cache / "hf", offline).find_files(hf_file, target)
        if sha256:
            files = [_with_sha256(files, sha256.lower())]
        for wanted in files:
            _provide(client, wanted, offline, checks=bool(sha256))
    except OSError as error:
        raise DownloadError(describe_disk_error(error, cache)) from None
    return files[0].target


def fetch_projector(
    hf_repo: str,
    model: Path,
    *,
    offline: bool = False,
    token: str | None = None,
    cache: Path | None = None,
    environ: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path | None:
    """The path of the projector for a model of this repository, downloaded unless it exists; None if there is none.
    DownloadError. See `fetch_model`."""
    environ = os.environ if environ is None else environ
    client = Client(_read_endpoint(environ), _read_token(token, environ), sleep, progress or Progress())
    cache = (cache or find_cache_folder(environ)) / "models"
    try:
        wanted = Hub(client, str(hf_repo), cache / "hf", offline).find_projector(model)
        if wanted is not None:
            _provide(client, wanted, offline, checks=False)
    except OSError as error:
        raise DownloadError(describe_disk_error(error, cache)) from None
    return None if wanted is None else wanted.target


def list_cached_models(environ: Mapping[str, str] = os.environ) -> list[str]:
    """A line for each downloaded file: its size, and the options that name it; or one line if there is none."""
    folder = find_cache_folder(environ) / "models"
    lines = []
    for path in sorted(folder.rglob("*.gguf")):
        kind, *parts = path.relative_to(folder).parts
        is_of_hub = kind == "hf" and len(parts) > 2
        name = f"-hf {'/'.join(parts[:2])} -hff {'/'.join(parts[2:])}" if is_of_hub else f"-m {path}"
        lines.append(f"{path.stat().st_size / 2**20:9.1f} MiB  {name}")
    return lines or [f"no model has been downloaded to {folder}"]


def _read_endpoint(environ: Mapping[str, str]) -> str:
    found = next((environ[name] for name in ENDPOINT_VARIABLES if environ.get(name)), HUB_URL)
    check_url(found, "MODEL_ENDPOINT")
    return found.rstrip("/")


def _read_token(given: str | None, environ: Mapping[str, str]) -> str:
    token = (given or environ.get("HF_TOKEN") or "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise DownloadError("the access token contains invalid characters: check --hf-token or HF_TOKEN")
    return token


def _files_of_url(url: str, cache: Path, target: Path | None) -> list[Wanted]:
    parts = check_url(url, "--model-url")
    base, _, last = parts.path.rpartition("/")
    names = split_names(last)
    # files with the same name at different URLs get different folders
    first = urlunsplit(parts._replace(path=f"{base}/{names[0]}"))
    digest = hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    folder = cache / make_safe_name(parts.hostname or "") / digest
    files = []
    for name in names:
        place = folder / (make_safe_name(unquote(name)) if name else "model.gguf")
        if target:
            place = target if len(names) == 1 else target.parent / place.name
        files.append(
            Wanted(urlunsplit(parts._replace(path=f"{base}/{name}", fragment="")), place, is_cached=target is None)
        )
    return files


def _with_sha256(files: list[Wanted], sha256: str) -> Wanted:
    if len(files) > 1:
        raise DownloadError("this model has several files, so one checksum can't be right: leave it out")
    [wanted] = files
    if wanted.sha256 not in ("", sha256):
        raise DownloadError(
            f"the hub says that {wanted.target.name} has the sha256 {wanted.sha256}: correct your checksum, "
            "or leave it out"
        )
    return Wanted(wanted.url, wanted.target, sha256, wanted.size, wanted.is_cached)


def _provide(client: Client, wanted: Wanted, offline: bool, checks: bool) -> None:
    """Download the file unless it exists. `checks`: it must have the sha256 of `wanted`."""
    name = wanted.target.name
    if _is_there(client, wanted, checks):
        return
    if offline:
        raise DownloadError(f"offline: {wanted.target} is missing: run once without --offline, or copy the file there")
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    lock = wanted.target.with_name(name + ".lock")
    with hold_exclusive(
        lock, lambda: client.progress.say(f"another process downloads {name}: waiting for it"), client.sleep
    ):
        if not _is_there(client, wanted, checks):
            _note_sha256(wanted, Transfer(client, wanted).run())
            client.progress.say(f"downloaded {wanted.target}")


def _is_there(client: Client, wanted: Wanted, checks: bool) -> bool:
    target = wanted.target
    if target.is_dir():
        raise DownloadError(f"{target} is a folder: set -m to the path of a file")
    if not target.is_file():
        return False
    if checks and _read_noted_sha256(wanted) != wanted.sha256:
        client.progress.say(f"checking {target}")
        digest = hashlib.sha256()
        with open(target, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != wanted.sha256:
            raise DownloadError(
                f"{target} has the sha256 {digest.hexdigest()}, not the given one: delete the file to download it "
                "again, or correct the checksum"
            )
        _note_sha256(wanted, digest.hexdigest())
    return True


def _get_sha256_note(wanted: Wanted) -> Path:
    return wanted.target.with_name(wanted.target.name + ".sha256")


def _read_noted_sha256(wanted: Wanted) -> str:
    """The sha256 from an earlier check, if the file hasn't changed since; "" if unknown."""
    note = _get_sha256_note(wanted)
    with contextlib.suppress(OSError, ValueError):
        if wanted.is_cached and note.stat().st_mtime_ns >= wanted.target.stat().st_mtime_ns:
            return note.read_text("utf-8")[:64]
    return ""


def _note_sha256(wanted: Wanted, digest: str) -> None:
    """Write the sha256 beside a file in the cache, in the format of `sha256sum -c`."""
    if wanted.is_cached:
        with contextlib.suppress(OSError):
            _get_sha256_note(wanted).write_text(f"{digest}  {wanted.target.name}\n", "utf-8")

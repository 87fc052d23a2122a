"""Where this program keeps what it can get again. Any thread; imports the standard library, since every start asks."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environ: Mapping[str, str], system: str = sys.platform) -> Path:
    """Where downloads are kept: per user, outside the program; the same place as for `build_scripts`."""
    if environ.get("LLAMA_SRV_CACHE"):
        return Path(environ["LLAMA_SRV_CACHE"]).expanduser()
    home = Path(environ.get("HOME") or Path.home())
    if system == "win32":
        return Path(environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "llama_srv" / "cache"
    if system == "darwin":
        return home / "Library" / "Caches" / "llama_srv"
    return Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "llama_srv"

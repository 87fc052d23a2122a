"""Fetching a model from the network, once: `--model-url`, `--hf-repo`, `--hf-file`.

Runs on the main thread before the server listens, or in a script; the only part of the server that opens
outbound connections, and only when one of these options asks for it. Its modules import the standard library
and one another: `fetch` (which files, is one there already), `hub` (names, the listing of a repository),
`transfer` (one file), `client` (HTTP), `local` (disk, lock, progress).

Way not taken: the layout of the Hugging Face cache (blobs, and snapshots made of links). It is somebody
else's to change, and links need rights on Windows.
"""

from server.download.fetch import cached_models, fetch_model, fetch_projector
from server.download.local import DownloadError, Progress

__all__ = ["DownloadError", "Progress", "cached_models", "fetch_model", "fetch_projector"]

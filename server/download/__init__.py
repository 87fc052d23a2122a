"""Downloads models: `--model-url`, `--hf-repo`, `--hf-file`.

Runs on the main thread before the server listens, on the thread of a load or of a download, or in a script. Modules:
`fetch` (chooses files, checks whether they exist), `hub` (the file list of a repository), `transfer` (downloads one
file), `client` (HTTP), `local` (disk, lock, progress).

Not taken: the layout of the Hugging Face cache, whose links need special rights on Windows.
"""

from server.download.fetch import fetch_model, fetch_projector, list_cached_models
from server.download.local import DownloadError, Progress

__all__ = ["DownloadError", "Progress", "list_cached_models", "fetch_model", "fetch_projector"]

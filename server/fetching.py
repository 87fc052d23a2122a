"""A model's file from the network, where the options name a URL or a repository. Main thread, at start.

Of its own because the downloader brings an HTTP client along, which nearly no start needs: it is imported here, late.
"""

from __future__ import annotations

from server.options import OptionError


def fetched(*where: str | None, **how: object) -> str:
    """The path of what `download.fetch_model` fetches or has; OptionError if that can't be had."""
    from server.download import DownloadError, fetch_model
    try:
        return str(fetch_model(*where, **how))
    except DownloadError as error:
        raise OptionError(str(error)) from None

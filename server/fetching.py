"""A model's file from the network, where the options name a URL or a repository. Main thread, at start.

Of its own because the downloader brings an HTTP client along, which nearly no start needs: it is imported here, late.
"""

from __future__ import annotations

from pathlib import Path

from server.errors import StartError
from server.log import get_logger
from server.model_files.checks import check_model_file
from server.options.parser import OptionError, Options

log = get_logger("app")


def fetched(*where: str | None, **how: object) -> str:
    """The path of what `download.fetch_model` fetches or has; OptionError if that can't be had."""
    from server.download import DownloadError, fetch_model

    try:
        return str(fetch_model(*where, **how))
    except DownloadError as error:
        raise OptionError(str(error)) from None


def repository_projector(options: Options, model: str, libs: str) -> str:
    """The projector that the model's repository has beside it, as llama-server fetches it; "" for none.

    It is a gift: where it can't be had, or isn't one that works here, the model is served without.
    """
    if not any("mtmd" in path.name for path in Path(libs).iterdir()):
        log.info(
            "whether %s has a projector isn't looked at: there is no libmtmd here (build_scripts/fetch_libs.py "
            "--with-mtmd)",
            options.hf_repo,
        )
        return ""
    from server.download import DownloadError, fetch_projector

    try:
        path = fetch_projector(options.hf_repo, Path(model), offline=options.offline, token=options.hf_token)
        if path is None:
            return ""
        check_model_file(str(path), "--mmproj")
    except (DownloadError, StartError) as error:
        log.warning("%s; going on without images and sound (--mmproj names a projector, --no-mmproj says none)", error)
        return ""
    log.info("projector: %s (--no-mmproj leaves it out)", path)
    return str(path)

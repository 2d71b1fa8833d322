"""Where archives come from: the folder in the environment variable GTL_DATA_DIR if it is set, else a download."""

import os
import sys
from pathlib import Path

import pooch

from experiments import data

RETRIES = 3


def find(url: str, archive: str, md5: str) -> Path:
    """The archive in GTL_DATA_DIR or a folder in there, and nowhere else, if that is set; else a verified download."""
    if folder := os.environ.get("GTL_DATA_DIR"):
        for place in (Path(folder), *sorted(Path(folder).glob("*/"))):
            if (path := place / archive).is_file():
                return path
        raise data.DataError(f"GTL_DATA_DIR has no {archive}: put it into {folder}, or unset it to download")
    pooch.get_logger().setLevel("WARNING")  # its messages hold absolute paths, which would end up in notebooks
    store = pooch.create(data.FOLDER, url, registry={archive: f"md5:{md5}"}, retry_if_failed=RETRIES)
    try:
        return Path(store.fetch(archive, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty())))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        reason = getattr(error, "strerror", None) or type(error).__name__
        advice = "check the network and the free disk space, or point GTL_DATA_DIR at a folder that holds the archive"
        raise data.DataError(f"cannot download {url}{archive} ({reason}): {advice}") from error

"""What people drew: Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015): 964 background and 659 evaluation
characters, 20 drawings each, reduced from 105x105 to 28x28.

The archives are read from the folder in the environment variable GTL_DATA_DIR if it is set, and downloaded otherwise;
once decoded they are no longer needed.
"""

import hashlib
import os
import sys
import zipfile
import zlib
from io import BytesIO
from pathlib import Path, PureWindowsPath

import numpy as np
import pooch
import torch
from PIL import Image

from experiments import data
from experiments.data import SIDE, DataError, Dataset

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
RETRIES = 3
ARCHIVES = {  # official md5 of the file, for downloads; sha256 of the images in it, which a repacked archive shares
    "images_background.zip": (
        "68d2efa1b9178cc56df9314c21c6e718",
        "7c563fb7d98dbd312c5e0ccb87230ca9d7e8a13d672e5de6186245e7905ed43e",
    ),
    "images_evaluation.zip": (
        "6b91aef0f799c5bb55b94e3f2daec811",
        "e5a69b751aa33f555bdc92febd48220b69a811b2ff01de32bf4d1bca47bd1809",
    ),
}


def make() -> Dataset:
    """DataError if an archive is missing, broken or not Omniglot, or if its download fails."""
    classes: dict[tuple[str, str], list[np.ndarray]] = {}
    evaluation: list[bool] = []
    for archive, (md5, content) in ARCHIVES.items():
        for name, png in _drawings(_find(archive, md5), content).items():
            _, alphabet, character, _ = name.split("/")
            image = Image.open(BytesIO(png)).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            classes.setdefault((alphabet, character), []).append(255 - np.asarray(image))
        evaluation += [archive == "images_evaluation.zip"] * (len(classes) - len(evaluation))
    return Dataset.of("omniglot", torch.from_numpy(np.stack(list(classes.values()))), list(classes), evaluation)


def _find(archive: str, md5: str) -> Path:
    """The archive in GTL_DATA_DIR, and only there, if that is set; otherwise a verified download."""
    if folder := os.environ.get("GTL_DATA_DIR"):
        if not (path := Path(folder, archive)).is_file():
            raise DataError(f"GTL_DATA_DIR has no {archive}: put it into {folder}, or unset it to download")
        return path
    pooch.get_logger().setLevel("WARNING")  # its messages hold absolute paths, which would end up in notebooks
    store = pooch.create(data.FOLDER, URL, registry={archive: f"md5:{md5}"}, retry_if_failed=RETRIES)
    try:
        return Path(store.fetch(archive, downloader=pooch.HTTPDownloader(progressbar=sys.stderr.isatty())))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        reason = getattr(error, "strerror", None) or type(error).__name__
        advice = "check the network and the free disk space, or point GTL_DATA_DIR at a folder that holds the archive"
        raise DataError(f"cannot download {URL}{archive} ({reason}): {advice}") from error


def _drawings(path: Path, content: str) -> dict[str, bytes]:
    """The .png members of an archive in sorted order. They are read in memory: nothing is ever extracted to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            drawings = {name: archive.read(name) for name in sorted(members) if name.endswith(".png")}
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole zip archive ({error}): remove it and get it again") from error
    for place in map(PureWindowsPath, members):  # which knows both kinds of slashes, and drives
        if place.anchor or ".." in place.parts:
            raise DataError(f"{path} holds an entry that points outside of it, {place}: do not trust it, get it again")
    lines = [f"{name}\0{hashlib.sha256(png).hexdigest()}\n" for name, png in drawings.items()]
    if hashlib.sha256("".join(lines).encode()).hexdigest() != content:
        raise DataError(f"the images in {path} are not those of the official archive: remove it and get it again")
    return drawings

"""What people drew: Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015): 964 background and 659 evaluation
characters, 20 drawings each, reduced from 105x105 to 28x28.

Once decoded, the archives (see `archives`) are no longer needed.
"""

import hashlib
import zipfile
import zlib
from io import BytesIO
from pathlib import Path, PureWindowsPath

import numpy as np
import torch
from PIL import Image

from experiments.data import SIDE, DataError, Dataset
from experiments.data.archives import find

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
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
MAX_BYTES = 20_000_000  # of all files in an archive: four times what the larger one unpacks to


def make() -> Dataset:
    """DataError if an archive is missing, broken or not Omniglot, or if its download fails."""
    classes: dict[tuple[str, str], list[np.ndarray]] = {}
    evaluation: list[bool] = []
    for archive, (md5, content) in ARCHIVES.items():
        for name, png in _drawings(find(URL, archive, md5), content).items():
            _, alphabet, character, _ = name.split("/")
            image = Image.open(BytesIO(png)).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            classes.setdefault((alphabet, character), []).append(255 - np.asarray(image))
        evaluation += [archive == "images_evaluation.zip"] * (len(classes) - len(evaluation))
    images = np.concatenate(list(classes.values()))
    return Dataset.of("omniglot", torch.from_numpy(images), [*map(len, classes.values())], [*classes], evaluation)


def _is_drawing(name: str) -> bool:
    """Not what macOS puts beside each file of an archive that it packs."""
    return name.endswith(".png") and not name.startswith("__MACOSX/") and not name.rpartition("/")[2].startswith("._")


def _drawings(path: Path, content: str) -> dict[str, bytes]:
    """The .png members of an archive in sorted order. They are read in memory: nothing is ever extracted to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:  # no more than that is ever unpacked
                raise DataError(f"{path} unpacks to more than {MAX_BYTES:,} bytes: do not trust it, get it again")
            drawings = {name: archive.read(name) for name in sorted(members) if _is_drawing(name)}
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a whole zip archive ({error}): remove it and get it again") from error
    for place in map(PureWindowsPath, members):  # which knows both kinds of slashes, and drives
        if place.anchor or ".." in place.parts:
            raise DataError(f"{path} holds an entry that points outside of it, {place}: do not trust it, get it again")
    lines = [f"{name}\0{hashlib.sha256(png).hexdigest()}\n" for name, png in drawings.items()]
    if hashlib.sha256("".join(lines).encode()).hexdigest() != content:
        raise DataError(f"the images in {path} are not those of the official archive: remove it and get it again")
    return drawings

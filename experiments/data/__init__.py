"""Characters to learn from one example: `glyphs` (rendered here, no download) and `omniglot` (the paper's).

Both have Omniglot's shape: alphabets of characters, each drawn once by each of 20 drawers, as 28x28 grey images. The
evaluation classes are whole alphabets that nothing may be trained on. Downloads and decoded caches land in the
project's `data/` folder, or, for an installed package, in the user's cache.
"""

import hashlib
import json
import os
import sys
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, reduce
from io import BytesIO
from pathlib import Path, PureWindowsPath
from typing import Any
from uuid import uuid4

import numpy as np
import pooch
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

VERSION = 1  # raise it whenever a change below changes a dataset: caches of another version are made again
SIDE = 28  # pixels along an example
DRAWERS = 20
Names = list[tuple[str, str]]  # (alphabet, character) of each class


class DataError(RuntimeError):
    """A dataset cannot be had; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set of characters, background classes first: `examples` is uint8 [n_classes, n_examples, 28, 28], 0 = paper and
    255 = ink; one alphabet and one character name per class; `evaluation` is bool [n_classes], True for test classes;
    `digest` is the sha256 of all of these, for the provenance of results."""

    name: str
    examples: torch.Tensor = field(repr=False)
    alphabets: tuple[str, ...] = field(repr=False)
    characters: tuple[str, ...] = field(repr=False)
    evaluation: torch.Tensor = field(repr=False)
    digest: str


@cache
def load(name: str) -> Dataset:
    """The dataset called `name`, "glyphs" or "omniglot"; DataError for any other. Kept in memory: read only."""
    if name not in (known := {"glyphs": glyphs, "omniglot": omniglot}):
        raise DataError(f"unknown dataset {name!r}: use one of {', '.join(known)}")
    return known[name]()


# --- Omniglot: what people drew -------------------------------------------------------------------

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


def omniglot() -> Dataset:
    """Omniglot (Lake, Salakhutdinov and Tenenbaum, Science 350, 2015): 964 background and 659 evaluation characters, 20
    drawings each, reduced from 105x105 to 28x28. The archives are read from the folder in the environment variable
    GTL_DATA_DIR if it is set, and downloaded otherwise; once decoded they are no longer needed.

    DataError if an archive is missing, broken or not Omniglot, if the download fails or if the cache cannot be written.
    """
    return _cached("omniglot", [VERSION, *(content for _, content in ARCHIVES.values())], _decode)


def _decode() -> Dataset:
    classes: dict[tuple[str, str], list[np.ndarray]] = {}
    evaluation: list[bool] = []
    for archive, (md5, content) in ARCHIVES.items():
        for name, png in _drawings(_find(archive, md5), content).items():
            _, alphabet, character, _ = name.split("/")
            image = Image.open(BytesIO(png)).convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            classes.setdefault((alphabet, character), []).append(255 - np.asarray(image))
        evaluation += [archive == "images_evaluation.zip"] * (len(classes) - len(evaluation))
    return _dataset("omniglot", torch.from_numpy(np.stack(list(classes.values()))), list(classes), evaluation)


def _find(archive: str, md5: str) -> Path:
    """The archive in GTL_DATA_DIR, and only there, if that is set; otherwise a verified download."""
    if folder := os.environ.get("GTL_DATA_DIR"):
        if not (path := Path(folder, archive)).is_file():
            raise DataError(f"GTL_DATA_DIR has no {archive}: put it into {folder}, or unset it to download")
        return path
    pooch.get_logger().setLevel("WARNING")  # its messages hold absolute paths, which would end up in notebooks
    store = pooch.create(_folder(), URL, registry={archive: f"md5:{md5}"}, retry_if_failed=RETRIES)
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
    for name in members:
        place = PureWindowsPath(name)  # knows both kinds of slashes, and drives
        if place.anchor or ".." in place.parts:
            raise DataError(f"{path} holds an entry that points outside of it, {name!r}: do not trust it, get it again")
    lines = [f"{name}\0{hashlib.sha256(png).hexdigest()}\n" for name, png in drawings.items()]
    if hashlib.sha256("".join(lines).encode()).hexdigest() != content:
        raise DataError(f"the images in {path} are not those of the official archive: remove it and get it again")
    return drawings


# --- glyphs: real scripts in twenty imagined hands ------------------------------------------------

# Alphabet: first and last code point. Of characters that look alike the first is kept, so the order matters.
BACKGROUND = {
    "Latin": (0x41, 0x7A),
    "Latin_extended": (0x180, 0x24F),
    "Greek": (0x391, 0x3C9),
    "Greek_archaic_and_Coptic": (0x3D0, 0x3FF),
    "Cyrillic": (0x410, 0x44F),
    "Cyrillic_historic": (0x460, 0x481),
    "Cyrillic_extended": (0x48A, 0x52F),
    "Arabic": (0x621, 0x64A),
    "Arabic_extended": (0x671, 0x6D3),
    "Ogham": (0x1681, 0x169A),
    "Syllabics_western": (0x1401, 0x14EA),
    "Syllabics_eastern": (0x14EB, 0x1676),
}
EVALUATION = {
    "Phonetic": (0x250, 0x2AF),
    "Armenian_capital": (0x531, 0x556),
    "Armenian_small": (0x561, 0x587),
    "Hebrew": (0x5D0, 0x5EA),
    "Nko": (0x7CA, 0x7EA),
    "Lao": (0xE81, 0xEDF),
    "Georgian_Asomtavruli": (0x10A0, 0x10C5),
    "Georgian_Mkhedruli": (0x10D0, 0x10FA),
    "Georgian_Nuskhuri": (0x2D00, 0x2D25),
    "Tifinagh": (0x2D30, 0x2D67),
    "Old_Italic": (0x10300, 0x1031E),
}

FIELD, BOX = 64, 42  # a bare glyph is centred in a 64x64 field, its longer side 42 pixels
REACH = 10  # distances to the line are exact up to here; at most the field's margin, since arrays wrap around
APART, LOOKALIKE = 4, 8  # look-alikes: fewer than 8 pixels of either line are over 4 pixels from the other line

SEED = 230316154
PEN = 1.75  # radius of the pen in pixels of the field
# How hands differ between drawers, and how the drawings of one drawer differ: standard deviations.
HAND = dict(size=0.06, width=0.10, slant=0.14, turn=0.06, right=0.03, down=0.03, pen=0.10, wobble=0.05)
DRAWING = dict(size=0.06, width=0.06, slant=0.06, turn=0.05, right=0.06, down=0.07, pen=0.04, wobble=0.055)


def glyphs() -> Dataset:
    """The embedded default: letters of DejaVu Sans, which matplotlib ships, reduced to the line a pen would follow and
    drawn by 20 drawers. Each has one hand (size, width, slant, ... of `HAND`) that varies a little with each drawing.

    Rendered in seconds at first use, then cached. One machine always makes the same bytes; another CPU or another
    FreeType may round a pixel differently, which the digest shows. DataError if the font is missing or the cache
    cannot be written.
    """
    return _cached("glyphs", VERSION, _draw)


def _draw() -> Dataset:
    names, lines = _lines()
    drawers = _variation(np.random.default_rng(SEED), HAND)
    examples = torch.stack([_by_hand(line, ord(char), drawers) for (_, char), line in zip(names, lines, strict=True)])
    return _dataset("glyphs", examples, names, [alphabet in EVALUATION for alphabet, _ in names])


def _lines() -> tuple[Names, np.ndarray]:
    """Letters of which no two look alike: their names and, uint8 [n, 64, 64], the squared distance to their line."""
    import matplotlib  # here, since it is slow to import and a cached dataset does not need it
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if not path.exists():
        raise DataError(f"{path} is missing: install matplotlib from PyPI or conda-forge, which ship the font")
    # The basic layout draws the very glyph of the character: no ligatures, no dependence on an installed Raqm.
    font = ImageFont.truetype(path, 2 * FIELD, layout_engine=ImageFont.Layout.BASIC)
    charmap = FT2Font(str(path)).get_charmap()
    names = [
        (alphabet, chr(code))
        for alphabet, (first, last) in (BACKGROUND | EVALUATION).items()
        for code in range(first, last + 1)
        if code in charmap
        and unicodedata.category(chr(code)) in ("Lu", "Ll", "Lo")
        and not unicodedata.decomposition(chr(code))
    ]
    thin = _thin(np.stack([_bare(font, char) for _, char in names]))
    on = np.flatnonzero(thin)
    near = sum(thin.ravel()[on + down * FIELD + right] for down in range(-4, 5) for right in range(-4, 5))
    # Dots are left out: in 28 pixels they would be all that tells dozens of syllabics or Arabic letters apart.
    dotted = set(on[near <= 4] // FIELD**2)
    names = [name for i, name in enumerate(names) if i not in dotted]
    thin = np.delete(thin, list(dotted), axis=0)
    square = np.where(thin, 0, np.int16(2 * REACH**2))
    for axis in (1, 2):  # the squared Euclidean distance is separable
        square = reduce(np.minimum, (np.roll(square, shift, axis) + shift**2 for shift in range(-REACH, REACH + 1)))
    # far[i, j]: pixels of line i that are far from line j. Whole numbers, so that every machine chooses the same.
    on, off = (x.reshape(len(names), -1).astype(np.float32) for x in (thin, square > APART**2))
    far = on @ off.T
    differ = np.maximum(far, far.T) >= LOOKALIKE
    keep: list[int] = []
    for i in range(len(names)):
        if differ[i, keep].all():
            keep.append(i)
    return [names[i] for i in keep], square[keep].astype(np.uint8)


def _bare(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray:
    """The character as printed, bool [64, 64], centred and scaled to the box."""
    mask = font.getmask(char, mode="L")
    image = Image.frombytes("L", mask.size, bytes(mask))
    image = image.crop(image.getbbox())
    scale = BOX / max(image.size)
    image = image.resize([max(1, round(scale * side)) for side in image.size], Image.Resampling.BOX)
    paper = Image.new("L", (FIELD, FIELD))
    paper.paste(image, [(FIELD - side) // 2 for side in image.size])
    return np.asarray(paper) > 127


def _thin(ink: np.ndarray) -> np.ndarray:
    """The middle of the strokes, uint8 [n, 64, 64] of 0 and 1: thinning after Zhang and Suen, CACM 27 (1984)."""
    compass = (-FIELD, 1 - FIELD, 1, FIELD + 1, FIELD, FIELD - 1, -1, -FIELD - 1)  # N, NE, E, ... in the flat array
    ring = (np.arange(256) >> np.arange(8)[:, None] & 1) == 1  # [8, 256]: all ways in which neighbours can be ink
    north, east, south, west = ring[::2]
    runs = (ring < np.roll(ring, -1, 0)).sum(0)  # stretches of ink on the way around
    edge = (ring.sum(0) >= 2) & (ring.sum(0) <= 6) & (runs == 1)
    south_east, north_west = edge & ~(east & south & (north | west)), edge & ~(north & west & (east | south))
    flat, left = ink.astype(np.uint8).ravel(), None
    while left != (left := flat.sum()):
        for peel in (south_east, north_west):
            on = np.flatnonzero(flat)
            around = sum(flat[on + step] << bit for bit, step in enumerate(compass))
            flat[on[peel[around]]] = 0
    return flat.reshape(ink.shape)


def _variation(rng: np.random.Generator, spread: dict[str, float]) -> dict[str, np.ndarray]:
    """Normal deviations of the 20 drawers, [20, 1, 1]; the wobble is a coarse field of shifts, [20, 2, 4, 4]."""
    shape = {name: (DRAWERS, 2, 4, 4) if name == "wobble" else (DRAWERS, 1, 1) for name in spread}
    return {name: sigma * rng.standard_normal(shape[name]) for name, sigma in spread.items()}


def _by_hand(square: np.ndarray, code: int, drawers: dict[str, np.ndarray]) -> torch.Tensor:
    """One character by all drawers, uint8 [20, 28, 28]: warp the distance to the line, put ink where it is small."""
    # Seeded by the character, so that a drawing does not depend on which other characters there are.
    drawing = _variation(np.random.default_rng([SEED, code]), DRAWING)
    hand = {name: value + drawing[name] for name, value in drawers.items()}
    pixel = (np.arange(SIDE) + 0.5) * 2 / SIDE - 1  # [-1, 1] across the picture
    x, y = pixel - hand["right"], pixel[:, None] - hand["down"]
    cos, sin, size = np.cos(hand["turn"]), np.sin(hand["turn"]), np.exp(hand["size"])
    x, y = (cos * x + sin * y) / size, (cos * y - sin * x) / size
    x, y = (x + hand["slant"] * y) / np.exp(hand["width"]), y * np.exp(hand["width"])
    smooth = (
        F.interpolate(torch.eye(4)[None, None], (SIDE, 4), mode="bicubic", align_corners=True)[0, 0].double().numpy()
    )
    where = np.stack([x, y], -1) + np.moveaxis(smooth @ hand["wobble"] @ smooth.T, 1, -1)
    # One tall picture and numpy around it, since torch would spread twenty small ones over threads, at a loss.
    distance, where = (
        torch.from_numpy(np.sqrt(square, dtype=np.float64)),
        torch.from_numpy(where.reshape(1, -1, SIDE, 2)),
    )
    distance = F.grid_sample(distance[None, None], where, padding_mode="border", align_corners=False)
    # The edge of a line is a ramp one pixel of the picture wide: antialiasing.
    ink = (PEN * np.exp(hand["pen"]) - size * distance.view(-1, SIDE, SIDE).numpy()) * SIDE / FIELD + 0.5
    return torch.from_numpy((255 * ink.clip(0, 1)).round().astype(np.uint8))


# --- where datasets live --------------------------------------------------------------------------


def _folder() -> Path:
    """The project's data folder, or the user's cache when this is not a checkout."""
    root = Path(__file__).resolve().parent.parent.parent
    return root / "data" if (root / "pyproject.toml").is_file() else Path(pooch.os_cache("gtl_core"))


def _dataset(name: str, examples: torch.Tensor, names: Names, evaluation: Sequence[bool]) -> Dataset:
    alphabets, characters = zip(*names, strict=True)
    about = json.dumps([name, list(examples.shape), alphabets, characters, list(evaluation)])
    digest = hashlib.sha256(about.encode() + examples.numpy().tobytes()).hexdigest()
    return Dataset(name, examples, alphabets, characters, torch.tensor(evaluation), digest)


def _cached(name: str, key: Any, make: Callable[[], Dataset]) -> Dataset:
    """The dataset in the cache if that is whole and was made for `key`, else a new one, which then replaces it."""
    path = _folder() / f"{name}.safetensors"
    # Anything may be wrong with a cache (none, cut short, another version, not ours), and the cure is the same.
    with suppress(OSError, SafetensorError, KeyError, TypeError, ValueError), safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
        names = list(zip(about["alphabets"], about["characters"], strict=True))
        dataset = _dataset(name, file.get_tensor("examples"), names, about["evaluation"])
        if about["key"] == key and about["digest"] == dataset.digest:
            return dataset
    dataset = make()
    about = {"key": key, "digest": dataset.digest, "evaluation": dataset.evaluation.tolist()}
    about |= {"alphabets": dataset.alphabets, "characters": dataset.characters}
    # One metadata key: with two or more, safetensors writes them in random order.
    _write(path, save({"examples": dataset.examples}, {"about": json.dumps(about, sort_keys=True)}))
    return dataset


def _write(path: Path, content: bytes) -> None:
    """All or nothing: a killed or concurrent writer never leaves half a file under the final name."""
    part = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"cannot write {path} ({error.strerror}): free space or make the folder writable") from error
    finally:
        with suppress(OSError):  # gone when all went well
            part.unlink()

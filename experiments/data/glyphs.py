"""Real scripts in twenty imagined hands: letters of DejaVu Sans, which matplotlib ships, reduced to a pen's line and
drawn by 20 drawers. Each has one hand (size, width, slant, ... of `HAND`) that varies a little with each drawing.

One machine always makes the same bytes; another CPU or another FreeType may round a pixel differently, which the
digest shows.
"""

import unicodedata
from functools import reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFont

from experiments.data import N_DRAWERS, SIDE, DataError, Dataset

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again

# Alphabet: first and last code point. Of characters that look alike the first is kept, so the order matters.
BACKGROUND = {
    "Latin": (0x41, 0x7A), "Latin_extended": (0x180, 0x24F), "Greek": (0x391, 0x3C9),
    "Greek_archaic_and_Coptic": (0x3D0, 0x3FF), "Cyrillic": (0x410, 0x44F), "Cyrillic_historic": (0x460, 0x481),
    "Cyrillic_extended": (0x48A, 0x52F), "Arabic": (0x621, 0x64A), "Arabic_extended": (0x671, 0x6D3),
    "Ogham": (0x1681, 0x169A), "Syllabics_western": (0x1401, 0x14EA), "Syllabics_eastern": (0x14EB, 0x1676),
}  # fmt: skip
EVALUATION = {
    "Phonetic": (0x250, 0x2AF), "Armenian_capital": (0x531, 0x556), "Armenian_small": (0x561, 0x587),
    "Hebrew": (0x5D0, 0x5EA), "Nko": (0x7CA, 0x7EA), "Lao": (0xE81, 0xEDF), "Georgian_Asomtavruli": (0x10A0, 0x10C5),
    "Georgian_Mkhedruli": (0x10D0, 0x10FA), "Georgian_Nuskhuri": (0x2D00, 0x2D25), "Tifinagh": (0x2D30, 0x2D67),
    "Old_Italic": (0x10300, 0x1031E),
}  # fmt: skip

FIELD, BOX = 64, 42  # a bare glyph is centred in a 64x64 field, its longer side 42 pixels
REACH = 10  # distances to the line are exact up to here; at most the field's margin, since arrays wrap around
APART, LOOKALIKE = 4, 8  # look-alikes: fewer than 8 pixels of either line are over 4 pixels from the other line

SEED = 230316154
PEN = 1.75  # radius of the pen in pixels of the field
# How hands differ between drawers, and how the drawings of one drawer differ: standard deviations.
HAND = dict(size=0.06, width=0.10, slant=0.14, turn=0.06, right=0.03, down=0.03, pen=0.10, wobble=0.05)
DRAWING = dict(size=0.06, width=0.06, slant=0.06, turn=0.05, right=0.06, down=0.07, pen=0.04, wobble=0.055)


def make() -> Dataset:
    """Rendered in seconds. DataError if the font is missing."""
    names, lines = _lines()
    drawers = _variation(np.random.default_rng(SEED), HAND)
    examples = torch.stack([_by_hand(line, ord(char), drawers) for (_, char), line in zip(names, lines, strict=True)])
    evaluation = [alphabet in EVALUATION for alphabet, _ in names]
    return Dataset.of("glyphs", examples.flatten(0, 1), [N_DRAWERS] * len(names), names, evaluation)


def _lines() -> tuple[list[tuple[str, str]], np.ndarray]:
    """Letters of which no two look alike: their names and, uint8 [n, 64, 64], the squared distance to their line."""
    names, printed = _letters()
    thin = _thin(printed)
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
        keep += [i] * bool(differ[i, keep].all())
    return [names[i] for i in keep], square[keep].astype(np.uint8)


def _letters() -> tuple[list[tuple[str, str]], np.ndarray]:
    """All letters of the font in these alphabets, as printed, bool [n, 64, 64]."""
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
    return names, np.stack([_bare(font, char) for _, char in names])


def _bare(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray:
    """The character as printed, bool [64, 64], centred and scaled to the box."""
    printed = font.getmask(char, mode="L")
    image = Image.frombytes("L", printed.size, bytes(printed))
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
    shape = {name: (N_DRAWERS, 2, 4, 4) if name == "wobble" else (N_DRAWERS, 1, 1) for name in spread}
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
    smooth = F.interpolate(torch.eye(4)[None, None], (SIDE, 4), mode="bicubic", align_corners=True)[0, 0]
    smooth = smooth.double().numpy()
    where = np.stack([x, y], -1) + np.moveaxis(smooth @ hand["wobble"] @ smooth.T, 1, -1)
    # One tall picture and numpy around it, since torch would spread twenty small ones over threads, at a loss.
    distance, where = np.sqrt(square, dtype=np.float64)[None, None], where.reshape(1, -1, SIDE, 2)
    distance = F.grid_sample(*map(torch.from_numpy, (distance, where)), padding_mode="border", align_corners=False)
    # The edge of a line is a ramp one pixel of the picture wide: antialiasing.
    ink = (PEN * np.exp(hand["pen"]) - size * distance.view(-1, SIDE, SIDE).numpy()) * SIDE / FIELD + 0.5
    return torch.from_numpy((255 * ink.clip(0, 1)).round().astype(np.uint8))

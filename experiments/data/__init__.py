"""Characters to learn from one example, `glyphs` (rendered here, no download) and `omniglot` (the paper's); and digits
to pretrain on, `digits` (bundled with scikit-learn, no download) and `mnist` (the paper's).

All are 28x28 grey images in classes, of which the evaluation classes may not be trained on. Characters have Omniglot's
shape: alphabets, each character drawn once by each of 20 drawers; whole alphabets are for evaluation. Digits are the
"alphabets" ``train`` and ``test`` of ten classes each. Each dataset is a module here with a ``VERSION``, which caches
are made for, and ``make()``. Downloads and caches land in the project's `data/` folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Self

import torch

from experiments.records import ROOT
from gtl_core.files import read_safetensors, write_safetensors

NAMES = ("glyphs", "omniglot", "omniglot_published", "digits", "mnist")
FOLDER = ROOT / "data"
SIDE = 28  # pixels along an example
N_DRAWERS = 20


class DataError(RuntimeError):
    """A dataset cannot be had; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A set of characters, background classes first: `images` is uint8 [N, 28, 28], 0 = paper and 255 = ink, one class
    after the other, and `counts` says how many each has; one alphabet and one character name per class; `evaluation` is
    bool [n_classes], True for test classes; `digest` is the sha256 of all of these, for the provenance of results."""

    name: str
    images: torch.Tensor = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    alphabets: tuple[str, ...] = field(repr=False)
    characters: tuple[str, ...] = field(repr=False)
    evaluation: torch.Tensor = field(repr=False)
    digest: str

    @classmethod
    def of(
        cls,
        name: str,
        images: torch.Tensor,
        counts: Sequence[int],
        classes: Sequence[tuple[str, str]],
        evaluation: Sequence[bool],
    ) -> Self:
        """With its digest. classes: (alphabet, character) of each; evaluation: whether it is a test class."""
        alphabets, characters = zip(*classes, strict=True)
        n = counts[0] if len(set(counts)) == 1 else list(counts)
        about = json.dumps([name, [len(counts), n, *images.shape[1:]], alphabets, characters, list(evaluation)])
        digest = hashlib.sha256(about.encode() + images.numpy().tobytes()).hexdigest()
        return cls(name, images, tuple(counts), alphabets, characters, torch.tensor(evaluation), digest)

    @property
    def examples(self) -> torch.Tensor:
        """The images as [n_classes, n_examples, 28, 28]; ValueError if some class has more of them than another."""
        if len(set(self.counts)) > 1:
            raise ValueError(f"the classes of {self.name} do not have equally many examples")
        return self.images.unflatten(0, (len(self.counts), -1))

    def of_alphabet(self, alphabet: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Its images [N, 28, 28], and the number of each one's character within the alphabet [N]."""
        mine = torch.tensor([name == alphabet for name in self.alphabets])
        counts = torch.tensor(self.counts)
        labels = torch.arange(int(mine.sum())).repeat_interleave(counts[mine])
        return self.images[mine.repeat_interleave(counts)], labels


@cache
def load(name: str) -> Dataset:
    """The dataset called `name`, one of `NAMES`. Kept in memory: read only.

    From the cache on disk if that is whole and of this version, else made anew, which then replaces it. DataError for
    any other name, if the dataset cannot be made, or if the cache cannot be written.
    """
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}: use one of {', '.join(NAMES)}")
    source, path = import_module(f"experiments.data.{name}"), FOLDER / f"{name}.safetensors"
    # Anything may be wrong with a cache (none, cut short, another version, not ours), and the cure is the same.
    with suppress(OSError, KeyError, TypeError, ValueError):
        tensors, about = read_safetensors(path)
        classes = list(zip(about["alphabets"], about["characters"], strict=True))
        dataset = Dataset.of(name, tensors["images"], about["counts"], classes, about["evaluation"])
        if about["version"] == source.VERSION and about["digest"] == dataset.digest:
            return dataset
    dataset = source.make()
    about = {"version": source.VERSION, "digest": dataset.digest, "evaluation": dataset.evaluation.tolist()}
    about |= {"counts": dataset.counts, "alphabets": dataset.alphabets, "characters": dataset.characters}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"images": dataset.images}, about)
    except OSError as error:
        raise DataError(f"{error}: free space, or make {path.parent} writable") from error
    return dataset


def ensure(name: str) -> None:
    """Make or download what is called ``name``, images or cells, unless it is there; DataError if it cannot be had."""
    if name in NAMES:
        load(name)
    else:
        import_module("experiments.data.genes").load_cells(name)

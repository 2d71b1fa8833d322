"""Characters to learn from one example: `glyphs` (rendered here, no download) and `omniglot` (the paper's).

Both have Omniglot's shape: alphabets of characters, each drawn once by each of 20 drawers, as 28x28 grey images. The
evaluation classes are whole alphabets that nothing may be trained on. Each is a module here with a ``VERSION``, which
caches are made for, and ``make()``. Downloads and caches land in the project's `data/` folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

import torch
from safetensors import SafetensorError

from experiments.records import ROOT
from gtl_core.files import read_safetensors, write_safetensors

NAMES = ("glyphs", "omniglot")
FOLDER = ROOT / "data"
SIDE = 28  # pixels along an example
N_DRAWERS = 20


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

    @classmethod
    def of(cls, name: str, examples: torch.Tensor, classes: Sequence[tuple[str, str]], evaluation: Sequence[bool]):
        """With its digest. classes: (alphabet, character) of each; evaluation: whether it is a test class."""
        alphabets, characters = zip(*classes, strict=True)
        about = json.dumps([name, list(examples.shape), alphabets, characters, list(evaluation)])
        digest = hashlib.sha256(about.encode() + examples.numpy().tobytes()).hexdigest()
        return cls(name, examples, alphabets, characters, torch.tensor(evaluation), digest)


@cache
def load(name: str) -> Dataset:
    """The dataset called `name`, "glyphs" or "omniglot". Kept in memory: read only.

    From the cache on disk if that is whole and of this version, else made anew, which then replaces it. DataError for
    any other name, if the dataset cannot be made, or if the cache cannot be written.
    """
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}: use one of {', '.join(NAMES)}")
    source, path = import_module(f"experiments.data.{name}"), FOLDER / f"{name}.safetensors"
    # Anything may be wrong with a cache (none, cut short, another version, not ours), and the cure is the same.
    with suppress(OSError, SafetensorError, KeyError, TypeError, ValueError):
        tensors, about = read_safetensors(path)
        classes = list(zip(about["alphabets"], about["characters"], strict=True))
        dataset = Dataset.of(name, tensors["examples"], classes, about["evaluation"])
        if about["version"] == source.VERSION and about["digest"] == dataset.digest:
            return dataset
    dataset = source.make()
    about = {"version": source.VERSION, "digest": dataset.digest, "evaluation": dataset.evaluation.tolist()}
    about |= {"alphabets": dataset.alphabets, "characters": dataset.characters}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, {"examples": dataset.examples}, about)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path} ({error}): free space or make the folder writable") from error
    return dataset

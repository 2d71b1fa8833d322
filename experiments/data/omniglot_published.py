"""Omniglot as published few-shot results have it: characters of all alphabets mixed, each in four turns.

1,200 characters to learn from and 423 for tests, drawn at random; a turn by 90 degrees makes a class of its own. It is
easier than `omniglot`, whose test classes are of alphabets that were never seen. Source: Vinyals et al. 2016, section
4.1.1; the characters themselves are not theirs, which were not published.
"""

from __future__ import annotations

import torch

from experiments.data import Dataset, load
from gtl_core.tasks import rng

VERSION = 1  # raise it whenever a change below changes the dataset: caches of another version are made again
N_BACKGROUND, TURNS = 1200, 4


def make() -> Dataset:
    """From `omniglot`; DataError if that cannot be had. What stands for an alphabet is a character, with its turns."""
    known = load("omniglot")
    order = torch.randperm(len(known.counts), generator=rng(0, "published split"))
    turned = torch.stack([known.examples[order].rot90(turn, (-2, -1)) for turn in range(TURNS)], 1)
    names = [f"{known.alphabets[c]}/{known.characters[c]}" for c in order.tolist()]
    classes = [(name, f"turned by {90 * turn} degrees") for name in names for turn in range(TURNS)]
    evaluation = [i >= TURNS * N_BACKGROUND for i in range(len(classes))]
    counts = [known.examples.shape[1]] * len(classes)
    return Dataset.of("omniglot_published", turned.flatten(0, 2), counts, classes, evaluation)

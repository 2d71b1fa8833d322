"""Which classes of a dataset serve which purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.data import Dataset
from gtl_core.tasks import rng

# Shares of the background classes; the test classes are the dataset's evaluation alphabets.
SPLIT = {"pretraining": 0.6, "scouting": 0.25, "validation": 0.15}


def split_classes(dataset: Dataset, seed: int) -> dict[str, Tensor]:
    """Class indices for ``pretraining``, ``scouting``, ``validation`` (tuning) and ``test``, disjoint.

    Whole alphabets only, so that tuning meets what testing meets: alphabets never seen before. Background alphabets are
    dealt at random (``seed``) to the purpose that is furthest below its share; the test classes are always the same.
    """
    members: dict[str, list[int]] = {}
    for c in (~dataset.evaluation).nonzero().flatten().tolist():
        members.setdefault(dataset.alphabets[c], []).append(c)
    split: dict[str, list[int]] = {purpose: [] for purpose in SPLIT}
    names = sorted(members)
    for i in torch.randperm(len(names), generator=rng(seed, "split")).tolist():
        emptiest = min(SPLIT, key=lambda purpose: len(split[purpose]) / SPLIT[purpose])
        split[emptiest] += members[names[i]]
    split["test"] = dataset.evaluation.nonzero().flatten().tolist()
    return {purpose: torch.tensor(sorted(classes)) for purpose, classes in split.items()}

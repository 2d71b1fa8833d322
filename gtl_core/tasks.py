"""Which classes serve which purpose, and the small tasks drawn from them. All randomness comes from `rng`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from gtl_core.data import Dataset

# Shares of the background classes; the test classes are the dataset's evaluation alphabets.
SPLIT = {"pretraining": 0.6, "scouting": 0.25, "validation": 0.15}


def rng(seed: int, *purpose: str | int) -> torch.Generator:
    """An independent generator for each (seed, purpose): adding a method or a task never shifts another one's draws."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


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


@dataclass(frozen=True)
class Episode:
    """An n_way-class task: ``support`` [n_way, n_shot, 1, 28, 28] to learn from, ``query`` [n_way, n_query, 1, 28, 28]
    from other drawers to be scored on; float in [0, 1]. Row k of both is class label k."""

    classes: Tensor
    support: Tensor
    query: Tensor


def sample_episode(
    dataset: Dataset, classes: Tensor, n_way: int, n_shot: int, n_query: int, generator: torch.Generator
) -> Episode:
    """Draw ``n_way`` of ``classes``, and for each of them different drawers for support and query.

    Raises ValueError if there are not enough classes or drawers.
    """
    n_drawers = dataset.examples.shape[1]
    if n_way > len(classes):
        raise ValueError(f"n_way = {n_way}: at most {len(classes)}, the number of classes to draw from")
    if n_shot + n_query > n_drawers:
        raise ValueError(f"n_shot + n_query = {n_shot + n_query}: at most {n_drawers}, the number of drawers")
    chosen = classes[torch.randperm(len(classes), generator=generator)[:n_way]]
    drawers = torch.stack([torch.randperm(n_drawers, generator=generator)[: n_shot + n_query] for _ in range(n_way)])
    images = to_float(dataset.examples[chosen[:, None], drawers])
    return Episode(chosen, images[:, :n_shot], images[:, n_shot:])


def labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """[n_way, n, ...] grouped by class -> inputs [n_way * n, ...] and labels [n_way * n]."""
    n_way, n = images.shape[:2]
    return images.flatten(0, 1), torch.arange(n_way).repeat_interleave(n)


def random_affine(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image [N, 1, H, W] turned, sheared, scaled and shifted a little: the entries of its 2x3 matrix, in units of
    half the image's width, differ from the identity's by normal noise of standard deviation ``strength``."""
    matrices = torch.eye(2, 3) + strength * torch.randn(len(images), 2, 3, generator=generator)
    return grid_sample(images, affine_grid(matrices, images.shape, align_corners=False), align_corners=False)


def to_float(images: Tensor) -> Tensor:
    """uint8 [..., 28, 28] -> float [..., 1, 28, 28] in [0, 1], as the networks take them."""
    return images.unsqueeze(-3) / 255

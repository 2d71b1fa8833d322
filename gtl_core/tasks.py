"""Which classes serve which purpose, and the small tasks drawn from them. All randomness comes from `rng`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

Stream = Literal["single", "shuffled", "class_ordered", "per_class"]


def rng(seed: int, *purpose: str | int) -> torch.Generator:
    """An independent generator for each (seed, purpose): adding a method or a task never shifts another one's draws."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(frozen=True)
class Episode:
    """An n_way-class task: ``support`` [n_way, n_shot, 1, 28, 28] to learn from, ``query`` [n_way, n_query, 1, 28, 28]
    from other drawers to be scored on; float in [0, 1]. Row k of both is class label k."""

    classes: Tensor
    support: Tensor
    query: Tensor


def sample_episode(
    examples: Tensor, classes: Tensor, n_way: int, n_shot: int, n_query: int, generator: torch.Generator
) -> Episode:
    """Draw ``n_way`` of ``classes``, and for each of them different examples for support and query.

    examples: uint8 images of all classes, as many of each, [n_classes, n_drawers, 28, 28]; classes: indices into them.
    Raises ValueError if there are not enough classes or drawers.
    """
    n_drawers = examples.shape[1]
    if n_way > len(classes):
        raise ValueError(f"n_way = {n_way}: at most {len(classes)}, the number of classes to draw from")
    if n_shot + n_query > n_drawers:
        raise ValueError(f"n_shot + n_query = {n_shot + n_query}: at most {n_drawers}, the number of drawers")
    chosen = classes[torch.randperm(len(classes), generator=generator)[:n_way]]
    drawers = torch.stack([torch.randperm(n_drawers, generator=generator)[: n_shot + n_query] for _ in range(n_way)])
    images = to_float(examples[chosen[:, None], drawers])
    return Episode(chosen, images[:, :n_shot], images[:, n_shot:])


def labelled(images: Tensor) -> tuple[Tensor, Tensor]:
    """[n_way, n, ...] grouped by class -> inputs [n_way * n, ...] and labels [n_way * n]."""
    n_way, n = images.shape[:2]
    return images.flatten(0, 1), torch.arange(n_way).repeat_interleave(n)


def arrivals_of(support: Tensor, stream: Stream, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The training examples of S streams in order of arrival, from ``support`` [n_way, 1 + n_rounds, S, ...].

    First one example of each class at once. Then the others, one at a time: round by round, one class after the other
    (``single``); in a random order of each stream's own (``shuffled``); all of a class before the next class
    (``class_ordered``). Or round by round with all classes together (``per_class``). Yields inputs [N, S, ...] and
    labels [N, S].
    """
    n_way, n_shot, n_streams = support.shape[:3]
    everything = torch.arange(n_way)[:, None].expand(-1, n_streams)
    yield support[:, 0], everything
    if stream == "per_class":
        yield from ((support[:, r], everything) for r in range(1, n_shot))
        return
    order = torch.cartesian_prod(torch.arange(1, n_shot), torch.arange(n_way))  # of pairs (round, class)
    if stream == "class_ordered":
        order = torch.cartesian_prod(torch.arange(n_way), torch.arange(1, n_shot)).flip(1)
    orders = order[:, None].expand(-1, n_streams, -1)
    if stream == "shuffled":
        orders = torch.stack([order[torch.randperm(len(order), generator=generator)] for _ in range(n_streams)], 1)
    for rounds, classes in zip(*orders.unbind(-1), strict=True):  # each [streams]
        yield support[classes, rounds, torch.arange(n_streams)][None], classes[None]


def to_float(images: Tensor) -> Tensor:
    """uint8 [..., 28, 28] -> float [..., 1, 28, 28] in [0, 1], as the networks take them."""
    return images.unsqueeze(-3) / 255


class ClassSubset(Subset):
    """Some examples of any labelled torch dataset, with labels of their own: one task for a scout.

    An example is a pair (input, label), or a dictionary that has its label under ``key``; it stays what it is.
    """

    def __init__(self, dataset: Dataset, indices: Sequence[int], labels: Sequence[Any], key: str = "label") -> None:
        super().__init__(dataset, indices)
        self.labels, self.key = labels, key

    def __getitem__(self, i: int) -> Any:
        example, label = self.dataset[self.indices[i]], self.labels[i]
        return {**example, self.key: label} if isinstance(example, Mapping) else (example[0], label)

    def __getitems__(self, batch: list[int]) -> list[Any]:  # what a DataLoader asks for
        return [self[i] for i in batch]


def class_subsets(
    dataset: Dataset,
    n_way: int,
    n_tasks: int,
    generator: torch.Generator,
    *,
    n_shot: int | None = None,
    labels: Sequence[Any] | Tensor | None = None,
    key: str = "label",
    relabel: bool = True,
) -> list[ClassSubset]:
    """``n_tasks`` easier problems within a labelled one: each has ``n_way`` classes drawn at random.

    dataset: a torch dataset of pairs (input, label), or of dictionaries with the label under ``key``. A label may be a
        number, a string, or a row of which the largest entry tells the class (one-hot).
    n_shot: examples per class, drawn at random; None takes all.
    labels: of all examples (torchvision's ``dataset.targets``); None reads the dataset once from end to end.
    relabel: count a task's labels 0 ... n_way - 1, for a head with n_way outputs, in the order in which its classes
        were drawn; False keeps the dataset's, for a head with an output per class.

    Raises ValueError if there are not enough classes, or examples of one.
    """
    size = len(dataset)  # pyright: ignore[reportArgumentType]  # torch leaves `__len__` to those that have one
    every = [_label(dataset[i], key) for i in range(size)] if labels is None else labels
    classes, label_of = _classes(every)
    if len(label_of) != size:
        raise ValueError(f"{len(label_of)} labels for {size} examples")
    if not 1 <= n_way <= len(classes):
        raise ValueError(f"n_way = {n_way}: must be from 1 to {len(classes)}, the number of classes")
    smallest = int(label_of.bincount().min())
    if n_shot is not None and not 1 <= n_shot <= smallest:
        raise ValueError(f"n_shot = {n_shot}: must be from 1 to {smallest}, the size of the smallest class")
    tasks = []
    for _ in range(n_tasks):
        examples, targets = [], []
        for new, c in enumerate(torch.randperm(len(classes), generator=generator)[:n_way]):
            members = (label_of == c).nonzero().flatten()
            if n_shot is not None:
                members = members[torch.randperm(len(members), generator=generator)[:n_shot]]
            examples += members.tolist()
            targets += [new if relabel else classes[c]] * len(members)
        tasks.append(ClassSubset(dataset, examples, targets, key))
    return tasks


def _label(example: Any, key: str) -> Any:
    if not isinstance(example, Mapping):
        return example[1]
    if key not in example:
        raise ValueError(f"key = {key!r}: an example has {', '.join(map(repr, example))}")
    return example[key]


def _classes(labels: Sequence[Any] | Tensor) -> tuple[list[Any], Tensor]:
    """The classes in order, and the place of each label among them [N]."""
    if len(labels) == 0:
        return [], torch.empty(0, dtype=torch.long)
    if isinstance(labels[0], str):
        classes = sorted(set(labels))
        place = {c: i for i, c in enumerate(classes)}
        return classes, torch.tensor([place[label] for label in labels])
    rows = labels if isinstance(labels, Tensor) else torch.stack([*map(torch.as_tensor, labels)])
    found, label_of = (rows.argmax(1) if rows.dim() == 2 else rows).unique(return_inverse=True)
    return found.tolist(), label_of


def indices(ranges: str) -> list[int]:
    """``"0-99, 200-299, 305"`` -> [0, ..., 99, 200, ..., 299, 305]: both ends included, in this order.

    ``torch.utils.data.Subset(dataset, indices(...))`` is then a scout's task. ValueError for anything else, an example
    that is named twice included.
    """
    chosen: list[int] = []
    for part in ranges.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if first > last:
            raise ValueError(f"{part!r} in {ranges!r}: must be like '7' or '0-99'")
        chosen += range(first, last + 1)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"{ranges!r} names an example twice")
    return chosen

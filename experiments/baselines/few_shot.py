"""What few-shot methods share: prepared once on tasks of other classes, then adapted to each new task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from experiments.data import Dataset
from gtl_core.guide import Displacement
from gtl_core.tasks import Episode, labelled, rng, sample_episode

Item = TypeVar("Item")


@dataclass(frozen=True)
class Prepared:
    """What a preparation leaves, and what it cost.

    model: the zero point; extra: other tensors that adapting it needs, by name; passes: examples times how often each
    went through the network (`experiments.costs`); seconds: on the clock.
    """

    model: nn.Module
    passes: int = 0
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Start:
    """What a method brings to a new task: its network, what else adapting needs, and its scouts' displacement."""

    model: nn.Sequential
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    displacement: Displacement | None = None


@dataclass(frozen=True)
class Learning:
    """How a method learns from other classes before it meets a task. ``step`` is the `MetaTraining` that asks for it.

    train: ``train(model, episodes, step) -> Prepared``, which leaves ``model`` untouched. passes: ``passes(step)`` of
    training on one episode. shape: ``shape(step)``, n_way, n_shot and n_query of an episode. own_heads: every task has
    a head of its own, which is thrown away afterwards; so the same ``step.n_tasks`` tasks are gone through again and
    again, and ``passes`` are those of one epoch. once: one episode is all, whatever the budget.
    """

    name: str
    train: Callable[[nn.Sequential, Sequence[Episode], Any], Prepared]
    passes: Callable[[Any], int]
    shape: Callable[[Any], tuple[int, int, int]] = lambda step: (step.n_way, step.n_shot, step.n_query)
    own_heads: bool = False
    once: bool = False


def measured(prepare: Callable[..., Prepared]) -> Callable[..., Prepared]:
    """Have a preparation tell how many seconds it took."""

    @wraps(prepare)
    def prepare_by_the_clock(*arguments, **options) -> Prepared:
        begin = time.perf_counter()
        prepared = prepare(*arguments, **options)
        return replace(prepared, seconds=time.perf_counter() - begin)

    return prepare_by_the_clock


@dataclass(frozen=True)
class Episodes(Sequence[Episode]):
    """``n`` episodes, drawn only when asked for: number i is the same for every method that asks."""

    dataset: Dataset
    classes: Tensor
    n_way: int
    n_shot: int
    n_query: int
    n: int
    seed: int
    purpose: str

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Episode:
        if not 0 <= i < self.n:
            raise IndexError(i)
        generator = rng(self.seed, self.purpose, "episode", i)
        return sample_episode(self.dataset.examples, self.classes, self.n_way, self.n_shot, self.n_query, generator)


def groups(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """``size`` items at a time; the last group may be smaller."""
    for start in range(0, len(items), size):
        yield [items[i] for i in range(start, min(start + size, len(items)))]


def side_by_side(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Supports or queries of T tasks [n_way, n, ...] -> inputs [n_way * n, T, ...], labels [n_way * n, 1], as
    `gtl_core._engine.stacked` takes them."""
    inputs, labels = labelled(torch.stack(list(images), 2))
    return inputs, labels[:, None]

"""One interface for all few-shot methods: prepared once on tasks of other classes, then adapted to each new task.

A preparation is a function ``(model, episodes, ...) -> Prepared`` that leaves ``model`` untouched; an adaptation is a
function ``(model, inputs, labels, ...) -> predictor`` that learns one task from its support. Any adaptation works on
any prepared zero point: ``replace(prepared, adapt=...)``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import TypeVar

import torch
from torch import Tensor, nn

from experiments.data import Dataset
from gtl_core.tasks import Episode, labelled, rng, sample_episode

Predictor = Callable[[Tensor], Tensor]  # inputs [N, 1, 28, 28] -> scores [N, n_way], the largest one wins
Adaptation = Callable[[nn.Module, Tensor, Tensor], Predictor]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Prepared:
    """A few-shot method that is ready for new tasks, and what its preparation cost.

    model: its zero point; adapt: how it learns a task from there; passes: examples times how often each went through
    the network (`FORWARD`, `TRAINING`, `TWICE`); seconds: on the clock.
    """

    model: nn.Module
    adapt: Adaptation | None = None
    passes: int = 0
    seconds: float = 0.0


def measured(prepare: Callable[..., Prepared]) -> Callable[..., Prepared]:
    """Have a preparation tell how many seconds it took."""

    @wraps(prepare)
    def prepare_by_the_clock(*arguments, **options) -> Prepared:
        begin = time.perf_counter()
        prepared = prepare(*arguments, **options)
        return replace(prepared, seconds=time.perf_counter() - begin)

    return prepare_by_the_clock


def accuracies(prepared: Prepared, episodes: Iterable[Episode]) -> Tensor:
    """Share of each episode's queries, in [0, 1], that are classified right after adapting to its support."""
    values = []
    for episode in episodes:
        predict = prepared.adapt(prepared.model, *labelled(episode.support))
        inputs, labels = labelled(episode.query)
        with torch.no_grad():
            values.append((predict(inputs).argmax(-1) == labels).float().mean())
    return torch.stack(values)


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

"""Streams of examples: a network learns classes from one example each, then from examples as they arrive.

What 03 and 07 share: which streams there are, the same ones for every method, and accuracy after each arrival.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from experiments.baselines.continual import Memory, follow
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.images import N_DRAWERS, ImageParameters
from experiments.parameters import Count
from experiments.protocol import Job, Purpose, Row
from experiments.statistics import mean_interval
from gtl_core.tasks import Episode, Stream, arrivals_of, labelled, rng, sample_episode
from gtl_core.training import correct


class StreamParameters(ImageParameters):
    """How many streams there are, how long, and the training on the first examples."""

    n_streams: Count
    n_tuning_streams: Count
    n_way: Annotated[int, Field(ge=2)]
    n_rounds: Count
    n_query: Count
    first_epochs: Count

    @model_validator(mode="after")
    def _enough_drawers(self) -> Self:
        if 1 + self.n_rounds + self.n_query > N_DRAWERS:
            allowed = N_DRAWERS - 1 - self.n_query
            raise ValueError(
                f"n_rounds = {self.n_rounds}: at most {allowed}, since 1 + n_rounds + n_query drawers of "
                f"{N_DRAWERS} are needed and n_query = {self.n_query}"
            )
        return self

    def copies(self, purpose: Purpose) -> int:
        """Streams of one network, which are trained on side by side."""
        return self.n_streams if purpose == "test" else self.n_tuning_streams

    def episodes(self, seed: int, purpose: Purpose) -> list[Episode]:
        """The streams of one network: all that will arrive is support. The same for every method: differences are
        paired."""
        dataset = load(self.dataset)
        classes, n_shot = split_classes(dataset, seed)[purpose], 1 + self.n_rounds
        return [
            sample_episode(dataset.examples, classes, self.n_way, n_shot, self.n_query, rng(seed, purpose, "stream", i))
            for i in range(self.copies(purpose))
        ]


@dataclass(frozen=True)
class Course:
    """What became of S streams.

    by_class: accuracy on each class after every step that was scored, [S, steps, n_way]. seen: examples seen by then,
    [steps]. taught: the arrival that was each class's last, [S, n_way]. seconds: of one training step of one network.
    """

    by_class: np.ndarray
    seen: np.ndarray
    taught: np.ndarray
    seconds: float

    @property
    def accuracy(self) -> np.ndarray:
        """[S, steps]."""
        return self.by_class.mean(2)


def learn_streams(
    job: Job,
    stream: Stream,
    epochs: int,
    view: Callable[[Tensor], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    memory: Memory | None = None,
) -> Course:
    """Train on the job's streams, side by side. Of validation streams, only the first and the last step are scored.

    view, model, optimizer: see `experiments.images.start`; epochs: steps on each arrival after the first.
    """
    p, episodes = job.parameters, job.parameters.episodes(job.seed, job.purpose)
    support = view(torch.stack([episode.support for episode in episodes], 2).flatten(0, 1))
    support = support.unflatten(0, (p.n_way, -1))  # [n_way, 1 + n_rounds, S, ...]
    queries, labels = labelled(torch.stack([episode.query for episode in episodes], 2))
    queries = view(queries)
    arrivals = list(arrivals_of(support, stream, rng(job.seed, job.purpose, "order")))
    scored = list(range(len(arrivals))) if job.purpose == "test" else [0, len(arrivals) - 1]
    by_class, seconds, begin = [], 0.0, time.perf_counter()
    for i in follow(model, optimizer, arrivals, memory, first_epochs=p.first_epochs, epochs=epochs):
        seconds += time.perf_counter() - begin
        if i in scored:
            by_class.append(correct(model, queries, labels[:, None]).unflatten(0, (p.n_way, -1)).mean(1))
        begin = time.perf_counter()
    each = torch.arange(p.n_way)[:, None, None]
    there = torch.stack([(each == classes).any(1).T for _, classes in arrivals])  # [arrivals, S, n_way]
    taught = len(there) - 1 - there.flip(0).int().argmax(0)
    seen = np.cumsum([len(classes) for _, classes in arrivals])[scored]
    n_steps = (p.first_epochs + epochs * (len(arrivals) - 1)) * len(episodes)
    return Course(torch.stack(by_class).permute(2, 0, 1).numpy(), seen, taught.numpy(), seconds / n_steps)


def by_setting(tested: Sequence[tuple[Job, Course]]) -> list[tuple[list[Job], list[Course]]]:
    """Test jobs, with what became of them, that differ by nothing but their network."""
    groups: dict[tuple, tuple[list[Job], list[Course]]] = {}
    for job, course in tested:
        jobs, courses = groups.setdefault((job.variant, job.setting), ([], []))
        jobs.append(job)
        courses.append(course)
    return list(groups.values())


def at_both_ends(job: Job, course: Course) -> list[Row]:
    """``accuracy`` of each stream after the first examples and at its end."""
    return [
        job.row("accuracy", value, task=task, step=course.seen[at])
        for at in (0, -1)
        for task, value in enumerate(course.accuracy[:, at])
    ]


def estimates(job: Job, metric: str, values: np.ndarray, steps: np.ndarray) -> list[Row]:
    """Mean and 95 % interval of ``values`` [networks, S, steps] as ``<metric>_mean``, ``_low`` and ``_high``."""
    estimate, all_networks = mean_interval(values), replace(job, seed="")
    return [
        all_networks.row(f"{metric}_{part}", value, task="", step=step)
        for part in ("mean", "low", "high")
        for step, value in zip(steps, getattr(estimate, part), strict=True)
    ]


def after_rounds(job: Job, courses: Sequence[Course]) -> list[Row]:
    """`estimates` of accuracy after each round: one example of each class, on average."""
    rounds = courses[0].seen % job.parameters.n_way == 0
    values = np.stack([course.accuracy for course in courses])
    return estimates(job, "accuracy", values[..., rounds], courses[0].seen[rounds])


def first_and_last(accuracy: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], ...]:
    """Of rows with ``accuracy`` `at_both_ends`: those of each method after the first examples, and at the end."""
    steps = accuracy["step"].min(), accuracy["step"].max()
    return tuple(dict(list(accuracy[accuracy["step"] == step].groupby("method", sort=False))) for step in steps)

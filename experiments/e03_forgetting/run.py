"""Catastrophic forgetting (paper: continued training on single examples): what a network still knows after each one.

A network learns new classes from one example each. Then examples arrive one after the other, each is trained on for a
fixed number of epochs and thrown away. Accuracy is measured on other people's drawings of each class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator

from experiments.baselines import continual
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.images import METHODS, N_DRAWERS, ImageParameters, ZeroPoint, start
from experiments.parameters import Count, Head, distinct
from experiments.preparations.scouting import Scouting
from experiments.statistics import at_chosen_rates, bootstrap, choose_rates, paired
from experiments.workers import parallel
from gtl_core.guide import Displacement
from gtl_core.tasks import Stream, arrivals_of, labelled, rng, sample_episode
from gtl_core.training import correct

TUNED_ON = ("same", "first", "careful", "last")


class ForgettingParameters(ImageParameters):
    """See the notebook's parameter cell for what each one means."""

    n_streams: Count
    n_tuning_streams: Count
    n_way: Annotated[int, Field(ge=2)]
    n_rounds: Count
    n_query: Count
    first_epochs: Count
    epochs: tuple[Count, ...] = Field(min_length=1)
    streams: tuple[Stream, ...] = Field(min_length=1)
    zero_points: tuple[ZeroPoint, ...] = Field(min_length=1)

    @field_validator("epochs", "streams", "zero_points")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @model_validator(mode="after")
    def _enough_drawers(self) -> ForgettingParameters:
        if 1 + self.n_rounds + self.n_query > N_DRAWERS:
            allowed = N_DRAWERS - 1 - self.n_query
            raise ValueError(
                f"n_rounds = {self.n_rounds}: at most {allowed}, since 1 + n_rounds + n_query drawers of "
                f"{N_DRAWERS} are needed and n_query = {self.n_query}"
            )
        return self

    def preparations(self) -> list[Scouting]:
        starts = dict.fromkeys((variant.zero_point, variant.head) for variant in self.variants())
        return [self.scouting(seed, *point, self.n_way) for seed, point in product(self.seeds(), starts)]

    def variants(self) -> list[Variant]:
        """The first zero point, stream and number of epochs with every head; then each other one of these in its place,
        with the first head."""
        base = (self.zero_points[0], self.streams[0], self.epochs[0])
        conditions = [(base, head) for head in self.heads]
        for i, values in enumerate((self.zero_points, self.streams, self.epochs)):
            conditions += [((*base[:i], value, *base[i + 1 :]), self.heads[0]) for value in values[1:]]
        return [
            Variant(zero_point, head, stream, epochs, method)
            for (zero_point, stream, epochs), head in conditions
            for method in METHODS[zero_point]
        ]


class Variant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    zero_point: ZeroPoint
    head: Head
    stream: Stream
    epochs: int
    method: str


@dataclass(frozen=True)
class Job:
    """Some streams of one method under one learning rate; small enough to send to a worker."""

    parameters: ForgettingParameters
    seed: int
    variant: Variant
    learning_rate: float
    purpose: Literal["validation", "test"]


@dataclass(frozen=True)
class Course:
    """What became of S streams: ``by_class`` [S, steps, n_way], accuracy on each class after every step; ``taught``
    [S, n_way], the step at which each class had its last example; ``seen`` [steps], examples seen by then."""

    by_class: np.ndarray
    taught: np.ndarray
    seen: np.ndarray

    def measures(self) -> dict[str, np.ndarray]:
        """Of each stream [S], at its end.

        - ``backward_transfer``: mean over classes of final accuracy minus accuracy when the class had just had its last
          example (Lopez-Paz & Ranzato 2017): negative where later examples of other classes did harm;
        - ``forgetting``: mean over classes of the highest accuracy on the way minus the final (Chaudhry et al. 2018).
        """
        final = self.by_class[:, -1]
        when_taught = np.take_along_axis(self.by_class, self.taught[:, None], 1)[:, 0]
        return {
            "backward_transfer": (final - when_taught).mean(1),
            "forgetting": (self.by_class.max(1) - final).mean(1),
        }


def run(parameters: ForgettingParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `Variant`, learning_rate, task (number of the stream), step (examples seen), metric, value;
    seed and task are empty where they are averaged over. Metrics:

    - ``validation_first``, ``validation_last``: mean accuracy over the tuning streams after the first examples and
      after the last one, for every learning rate;
    - ``accuracy``: of each single test stream, after the first examples and at the end, for every rate that
      `choose_rates` chooses;
    - ``accuracy_mean``, ``accuracy_low``, ``accuracy_high``: over seeds and test streams, with the 95 % interval, after
      each round (one example of each class, on average); likewise ``backward_transfer_*`` and ``forgetting_*`` at the
      end, see `Course.measures`;
    - ``class_0``, ``class_1``, ...: mean accuracy on each class after every step, at the rate tuned on ``same``.
    """
    p = parameters
    p.check_ways(p.n_way)
    scouted = p.displacements()
    tuning = [
        Job(p, seed, variant, rate, "validation")
        for variant, rate, seed in product(p.variants(), p.learning_rates, p.seeds())
    ]
    rows = []
    for job, course in zip(tuning, _courses(tuning, scouted, "tuning"), strict=True):
        first, *_, last = course.by_class.mean((0, 2))
        rows += [_row(job, "validation_first", first), _row(job, "validation_last", last)]
    chosen = {tuned_on: choose_rates(pd.DataFrame(rows), tuned_on) for tuned_on in TUNED_ON}

    tests = [
        [Job(p, seed, variant, rate, "test") for seed in p.seeds()]
        for variant in p.variants()
        for rate in sorted({rates[variant] for rates in chosen.values()})
    ]
    courses = iter(_courses([job for jobs in tests for job in jobs], scouted, "test streams"))
    for jobs in tests:
        of_seeds = [next(courses) for _ in jobs]
        seen, accuracies = of_seeds[0].seen, np.stack([course.by_class.mean(2) for course in of_seeds])
        for job, of_seed in zip(jobs, accuracies, strict=True):
            for step in (0, -1):
                rows += [_row(job, "accuracy", a, task, seen[step]) for task, a in enumerate(of_seed[:, step])]
        job = Job(p, "", jobs[0].variant, jobs[0].learning_rate, "test")
        rounds = np.arange(len(seen))[seen % p.n_way == 0]
        rows += _estimates(job, "accuracy", accuracies[..., rounds], seen[rounds])
        for metric in ("backward_transfer", "forgetting"):
            values = np.stack([course.measures()[metric] for course in of_seeds])
            rows += _estimates(job, metric, values[..., None], seen[-1:])
        if job.learning_rate == chosen["same"][job.variant]:
            by_class = np.mean([course.by_class.mean(0) for course in of_seeds], 0)
            for c, of_class in enumerate(by_class.T):
                rows += [_row(job, f"class_{c}", a, "", n) for n, a in zip(seen, of_class, strict=True)]
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided (network scope) against its rivals at the end of the stream, and what each method gained on the way.

    tuned_on: see `stats.choose_rates`. Comparisons: guided minus its rivals at the end; last minus first of every
    method. One row per (tuned_on, condition, comparison) with the mean paired difference in accuracy, its 95 %
    interval from ``low`` to ``high``, ``n``, and all of it as ``text``.
    """
    conditions = [column for column in Variant._fields if column != "method"]
    rows = []
    for tuned_on in TUNED_ON:
        test = at_chosen_rates(frame, tuned_on)
        test = test[test["metric"] == "accuracy"]
        for condition, of in test.groupby(conditions, sort=False):
            first = dict(list(of[of["step"] == of["step"].min()].groupby("method", sort=False)))
            last = dict(list(of[of["step"] == of["step"].max()].groupby("method", sort=False)))
            guided = last["guided_network"]
            estimates = {f"guided - {m}": paired(guided, last[m]) for m in last if m != "guided_network"}
            estimates |= {f"{m}: last - first": paired(last[m], first[m]) for m in last}
            key = {"tuned_on": tuned_on} | dict(zip(conditions, condition, strict=True))
            rows += [
                key | {"comparison": name, "mean": e.mean, "low": e.low, "high": e.high, "n": e.sample, "text": e.text}
                for name, e in estimates.items()
            ]
    return pd.DataFrame(rows)


def measures(frame: pd.DataFrame, tuned_on: str) -> pd.DataFrame:
    """Accuracy, backward transfer and forgetting at the end of the stream, and where accuracy was highest, as text.

    One row per `Variant`; ``peak`` is the number of examples per class after which mean accuracy was highest.
    """
    test = at_chosen_rates(frame, tuned_on)
    rows = []
    for variant, of in test.groupby(list(Variant._fields), sort=False):
        row = dict(zip(Variant._fields, variant, strict=True))
        curve = of[of["metric"] == "accuracy_mean"].set_index("step")["value"]
        end = of[of["step"] == curve.index.max()].set_index("metric")["value"]
        for name in ("accuracy", "backward_transfer", "forgetting"):
            mean, low, high = (end[f"{name}_{part}"] for part in ("mean", "low", "high"))
            row[name] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        row["peak"] = int(curve.idxmax() // curve.index.min())
        row["after the peak"] = f"{curve.iloc[-1] - curve.max():+.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def _courses(jobs: Sequence[Job], scouted: dict[Scouting, Displacement], description: str) -> list[Course]:
    p = jobs[0].parameters
    scoutings = [p.scouting(job.seed, job.variant.zero_point, job.variant.head, p.n_way) for job in jobs]
    with_start = [(job, scouted[scouting]) for job, scouting in zip(jobs, scoutings, strict=True)]
    return parallel(_run_job, with_start, p.workers, description, p.dask_scheduler)


def _row(job: Job, metric: str, value: float, task: int | str = "", step: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed} | job.variant._asdict() | {"learning_rate": job.learning_rate}
    return key | {"task": task, "step": step, "metric": metric, "value": value}


def _estimates(job: Job, metric: str, values: np.ndarray, steps: np.ndarray) -> list[dict[str, object]]:
    """Rows with mean and interval of ``values`` [seeds, streams, steps]."""
    estimate = bootstrap(values)
    parts = {f"{metric}_{part}": getattr(estimate, part) for part in ("mean", "low", "high")}
    return [
        _row(job, name, value, "", step)
        for name, curve in parts.items()
        for step, value in zip(steps, curve, strict=True)
    ]


def _run_job(job_and_start: tuple[Job, Displacement]) -> Course:
    """Train on the job's streams, side by side. Of validation streams, only the first and the last step are scored."""
    job, displacement = job_and_start
    p, purpose, variant = job.parameters, job.purpose, job.variant
    dataset = load(p.dataset)
    classes = split_classes(dataset, job.seed)[purpose]
    n_streams = p.n_streams if purpose == "test" else p.n_tuning_streams
    # The same streams for every method: differences between methods are paired.
    episodes = [
        sample_episode(
            dataset.examples, classes, p.n_way, 1 + p.n_rounds, p.n_query, rng(job.seed, purpose, "stream", i)
        )
        for i in range(n_streams)
    ]
    see, model, optimizer = start(displacement, variant.method, job.learning_rate, n_streams)
    support = see(torch.stack([episode.support for episode in episodes], 2).flatten(0, 1))
    support = support.unflatten(0, (p.n_way, -1))  # [n_way, 1 + n_rounds, streams, ...]
    queries, labels = labelled(torch.stack([episode.query for episode in episodes], 2))
    queries = see(queries)
    arrivals = list(arrivals_of(support, variant.stream, rng(job.seed, purpose, "order")))
    by_class = []
    for i in follow(model, optimizer, arrivals, p.first_epochs, variant.epochs):
        if purpose == "test" or i in (0, len(arrivals) - 1):
            by_class.append(correct(model, queries, labels[:, None]).unflatten(0, (p.n_way, -1)).mean(1))
    each = torch.arange(p.n_way)[:, None, None]
    there = torch.stack([(each == labels).any(1).T for _, labels in arrivals])  # [steps, streams, n_way]
    taught = len(there) - 1 - there.flip(0).int().argmax(0)
    seen = np.cumsum([len(labels) for _, labels in arrivals])
    return Course(torch.stack(by_class).permute(2, 0, 1).numpy(), taught.numpy(), seen)


def follow(model, optimizer, arrivals, first_epochs: int, epochs: int) -> Iterator[int]:  # until 04 has moved
    yield from continual.follow(model, optimizer, arrivals, first_epochs=first_epochs, epochs=epochs)

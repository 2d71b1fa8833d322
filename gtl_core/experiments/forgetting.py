"""Catastrophic forgetting (paper: continued training on single examples): what a network still knows after each one.

A network learns new classes from one example each. Then examples arrive one after the other, each is trained on for a
fixed number of epochs and thrown away. Accuracy is measured on drawers that never appear in training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from gtl_core.data import load
from gtl_core.experiments.parameters import Count, Dataset, Head, NotebookParameters, ParameterError, Rate
from gtl_core.experiments.preparation import Pretraining, Scouting, displacements
from gtl_core.guide import Displacement
from gtl_core.guided import Guided
from gtl_core.models import conv4
from gtl_core.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.stats import at_chosen_rates, bootstrap, choose_rates, paired
from gtl_core.tasks import labelled, rng, sample_episode, split_classes
from gtl_core.training import accuracy, fit
from gtl_core.workers import parallel

TUNED_ON = ("same", "first", "last")
CHECKPOINTS = {2**k for k in range(10)}  # examples per class
METHODS = ("scratch", "frozen", "plain", "guided_tensor", "guided_network")
N_DRAWERS = 20

Stream = Literal["single", "per_class"]


class ForgettingParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    dataset: Dataset
    n_seeds: Count
    n_streams: Count
    n_tuning_streams: Count
    n_way: Annotated[int, Field(ge=2)]
    n_rounds: Count
    n_query: Count
    first_epochs: Count
    epochs: Count
    learning_rates: tuple[Rate, ...] = Field(min_length=1)
    heads: tuple[Head, ...] = Field(min_length=1)
    streams: tuple[Stream, ...] = Field(min_length=1)
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    pretraining_epochs: Count
    n_scouts: Count
    scout_n_shot: Annotated[int, Field(ge=1, le=N_DRAWERS)]
    scout_epochs: Count
    scout_learning_rate: Rate

    @field_validator("learning_rates", "heads", "streams")
    @classmethod
    def _distinct(cls, values: tuple) -> tuple:
        if len(set(values)) < len(values):
            raise ValueError("must not name the same value twice")
        return values

    @model_validator(mode="after")
    def _enough_drawers(self) -> ForgettingParameters:
        if 1 + self.n_rounds + self.n_query > N_DRAWERS:
            allowed = N_DRAWERS - 1 - self.n_query
            raise ValueError(
                f"n_rounds = {self.n_rounds}: at most {allowed}, since 1 + n_rounds + n_query drawers of "
                f"{N_DRAWERS} are needed and n_query = {self.n_query}"
            )
        return self

    def seeds(self) -> list[int]:
        """One pretrained network each. Far apart for different ``seed``, so that two runs share none."""
        return [1000 * self.seed + i for i in range(self.n_seeds)]

    def scouting(self, seed: int, head: Head) -> Scouting:
        pretraining = Pretraining(
            dataset=self.dataset, seed=seed, channels=self.channels, epochs=self.pretraining_epochs
        )
        return Scouting(
            pretraining=pretraining,
            n_way=self.n_way,
            head=head,
            n_scouts=self.n_scouts,
            n_shot=self.scout_n_shot,
            epochs=self.scout_epochs,
            learning_rate=self.scout_learning_rate,
        )

    def preparations(self) -> list[Scouting]:
        return [self.scouting(seed, head) for seed, head in product(self.seeds(), self.heads)]

    def check_classes(self) -> None:
        """Raise ParameterError if some purpose has fewer than ``n_way`` classes in this dataset."""
        dataset = load(self.dataset)
        for seed in self.seeds():
            for purpose, classes in split_classes(dataset, seed).items():
                if self.n_way > len(classes):
                    raise ParameterError(
                        f"n_way = {self.n_way}: at most {len(classes)}, the number of {purpose} classes of "
                        f"{self.dataset} (seed {seed})"
                    )


@dataclass(frozen=True)
class Job:
    """Some streams of one method under one learning rate; small enough to send to a worker."""

    parameters: ForgettingParameters
    seed: int
    head: Head
    stream: Stream
    method: str
    learning_rate: float
    purpose: Literal["validation", "test"]


def run(parameters: ForgettingParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, method, head, stream, learning_rate, task (number of the stream), step (examples seen), metric,
    value; seed and task are empty where they are averaged over. Metrics:

    - ``validation_first``, ``validation_last``: mean accuracy over the tuning streams after the first examples and
      after the last one, for every learning rate;
    - ``accuracy_mean``, ``accuracy_low``, ``accuracy_high``: mean over seeds and test streams after every step with its
      95 % interval, for every rate that `choose_rates` chooses;
    - ``accuracy``: the same for each single test stream, where the examples per class are a power of two (1, 2, 4, ...)
      and at the end.
    """
    parameters.check_classes()
    scoutings = parameters.preparations()
    zero_points = displacements(scoutings, parameters.prepared, parameters.workers)
    start = dict(zip(product(parameters.seeds(), parameters.heads), zero_points, strict=True))
    variants = [
        (head, stream, method)
        for head, stream, method in product(parameters.heads, parameters.streams, METHODS)
        if method != "scratch" or head == parameters.heads[0]  # it has no pretrained body to put a new head on
    ]

    tuning = [
        Job(parameters, seed, *variant, rate, "validation")
        for variant, rate, seed in product(variants, parameters.learning_rates, parameters.seeds())
    ]
    tuned = _accuracies(tuning, start, "tuning")
    rows = []
    for job, accuracies in zip(tuning, tuned, strict=True):
        first, *_, last = accuracies.mean(0)
        rows += [_row(job, "", "", "validation_first", first), _row(job, "", "", "validation_last", last)]
    chosen = [choose_rates(pd.DataFrame(rows), tuned_on) for tuned_on in TUNED_ON]

    tests = [
        Job(parameters, seed, *variant, rate, "test")
        for variant, seed in product(variants, parameters.seeds())
        for rate in sorted({rates[variant] for rates in chosen})
    ]
    all_seeds: dict[Job, list[np.ndarray]] = {}
    for job, accuracies in zip(tests, _accuracies(tests, start, "test streams"), strict=True):
        all_seeds.setdefault(replace(job, seed=""), []).append(accuracies)
        n_seen = _examples_seen(parameters.n_way, parameters.n_rounds, job.stream)
        for task, of_stream in enumerate(accuracies):
            for n, a in zip(n_seen, of_stream, strict=True):
                if n / parameters.n_way in CHECKPOINTS or n == n_seen[-1]:
                    rows.append(_row(job, task, n, "accuracy", a))
    for job, accuracies in all_seeds.items():
        estimate = bootstrap(np.stack(accuracies))
        n_seen = _examples_seen(parameters.n_way, parameters.n_rounds, job.stream)
        for name in ("mean", "low", "high"):
            curve = zip(n_seen, getattr(estimate, name), strict=True)
            rows += [_row(job, "", n, f"accuracy_{name}", a) for n, a in curve]
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided (network scope) against its rivals at the end of the stream, and what each method gained on the way.

    tuned_on: see `stats.choose_rates`. Comparisons: guided minus its rivals at the end; last minus first of every
    method. One row per (tuned_on, stream, head, comparison) with the mean paired difference in accuracy, its 95 %
    interval from ``low`` to ``high``, ``n``, and all of it as ``text``.
    """
    rows = []
    for tuned_on in TUNED_ON:
        test = at_chosen_rates(frame, tuned_on)
        test = test[test["metric"] == "accuracy"]
        for (stream, head), of in test.groupby(["stream", "head"], sort=False):
            first = dict(list(of[of["step"] == of["step"].min()].groupby("method")))
            last = dict(list(of[of["step"] == of["step"].max()].groupby("method")))
            guided = last["guided_network"]
            estimates = {f"guided - {m}": paired(guided, last[m]) for m in ("plain", "frozen", "guided_tensor")}
            estimates |= {f"{m}: last - first": paired(last[m], first[m]) for m in last}
            key = {"tuned_on": tuned_on, "stream": stream, "head": head}
            rows += [
                key | {"comparison": name, "mean": e.mean, "low": e.low, "high": e.high, "n": e.sample, "text": e.text}
                for name, e in estimates.items()
            ]
    return pd.DataFrame(rows)


def _examples_seen(n_way: int, n_rounds: int, stream: Stream) -> list[int]:
    """How many examples have been trained on after each step of `stream_of`."""
    each = n_way if stream == "per_class" else 1
    return list(range(n_way, n_way * (1 + n_rounds) + 1, each))


def _accuracies(jobs: Sequence[Job], start: dict, description: str) -> list[np.ndarray]:
    with_start = [(job, start[job.seed, job.head]) for job in jobs]
    return parallel(_run_job, with_start, jobs[0].parameters.workers, description)


def _row(job: Job, task: int | str, step: int | str, metric: str, value: float) -> dict[str, object]:
    names = ("seed", "method", "head", "stream", "learning_rate")
    return {name: getattr(job, name) for name in names} | {"task": task, "step": step, "metric": metric, "value": value}


def _run_job(job_and_start: tuple[Job, Displacement]) -> np.ndarray:
    """Accuracies of one job: [streams, steps] on test streams; on validation streams the first and the last only."""
    job, displacement = job_and_start
    p = job.parameters
    dataset = load(p.dataset)
    classes = split_classes(dataset, job.seed)[job.purpose]
    n_streams = p.n_streams if job.purpose == "test" else p.n_tuning_streams
    # The same streams for every method: differences between methods are paired.
    episodes = [
        sample_episode(dataset, classes, p.n_way, 1 + p.n_rounds, p.n_query, rng(job.seed, job.purpose, "stream", i))
        for i in range(n_streams)
    ]
    support = torch.stack([episode.support for episode in episodes], 2)  # [n_way, 1 + n_rounds, streams, 1, 28, 28]
    inputs, labels = labelled(torch.stack([episode.query for episode in episodes], 2))
    model, optimizer = start_method(job, displacement, n_streams)
    last = len(_examples_seen(p.n_way, p.n_rounds, job.stream)) - 1
    accuracies = [
        accuracy(model, inputs, labels[:, None])
        for i in follow(model, optimizer, stream_of(support, job.stream), p.first_epochs, p.epochs)
        if job.purpose == "test" or i in (0, last)
    ]
    return torch.stack(accuracies, 1).numpy()


def start_method(job: Job, displacement: Displacement, n_streams: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network as the method starts from it, one copy per stream, and the optimizer that makes the method."""
    p = job.parameters
    if job.method == "scratch":
        copies = [conv4(p.n_way, p.channels, generator=rng(job.seed, "scratch", i)) for i in range(n_streams)]
    else:
        zero_point = conv4(p.n_way, p.channels, generator=rng(job.seed, "network"))
        zero_point.load_state_dict(displacement.zero_point)
        copies = [zero_point] * n_streams
    model = stack(copies)
    if job.method == "frozen":
        model.body.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=job.learning_rate)
    if job.method.startswith("guided_"):
        guide = displacement.guide(scope=job.method.removeprefix("guided_"))
        optimizer = Guided(optimizer, model, stack_guide(guide, n_streams))
    return model, optimizer


def stream_of(support: Tensor, stream: Stream) -> Iterator[tuple[Tensor, Tensor]]:
    """The training examples in order of arrival, from ``support`` [n_way, 1 + n_rounds, ...].

    First one example of each class at once. Then, round by round, another one of each class: one class after the other
    (``single``) or together (``per_class``).
    """
    n_way, n_shot = support.shape[:2]
    for r in range(n_shot):
        if r == 0 or stream == "per_class":
            yield support[:, r], torch.arange(n_way)
        else:
            yield from ((support[c, r : r + 1], torch.tensor([c])) for c in range(n_way))


def follow(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Iterator[tuple[Tensor, Tensor]],
    first_epochs: int,
    epochs: int,
) -> Iterator[int]:
    """Train a stacked network on what arrives, nothing replayed; yield each arrival's number when it is learned."""
    for i, (inputs, labels) in enumerate(examples):
        n_epochs = epochs if i else first_epochs
        fit(model, inputs, labels[:, None], optimizer, epochs=n_epochs, loss=stacked_cross_entropy)
        yield i

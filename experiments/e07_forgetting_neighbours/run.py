"""Catastrophic forgetting with everything one could have used instead: accuracy, and what is stored for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from experiments.baselines import continual
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e03_forgetting.run import Stream, arrivals_of
from experiments.images import N_DRAWERS, ImageParameters, start
from experiments.parameters import Count, Head, Rate, distinct
from experiments.preparations.scouting import Scouting
from experiments.ranking import accuracy_of, best_first, guided_minus, sides
from experiments.statistics import best_settings, bootstrap, paired
from experiments.workers import parallel
from gtl_core.guide import Displacement
from gtl_core.tasks import labelled, rng, sample_episode
from gtl_core.training import correct

Method = Literal[
    "frozen", "plain", "l2_sp", "ewc", "synaptic", "replay",
    "guided_tensor", "guided_network", "guided_ewc", "guided_replay",
]  # fmt: skip

# What a strength of 1 means: about where each of them begins to matter.
STRENGTH = {"l2_sp": 0.1, "ewc": 3.0, "synaptic": 0.3}
# Numbers that are kept for each of the network's parameters, beside the network itself; L2-SP's anchor, the anchor and
# the importance of EWC, and these and the path of synaptic intelligence.
KEPT = {"l2_sp": 1, "ewc": 2, "synaptic": 3}
PIXELS = 28 * 28


class Variant(NamedTuple):
    head: Head
    method: Method


class ForgettingNeighboursParameters(ImageParameters):
    """See the notebook's parameter cell for what each one means."""

    methods: tuple[Method, ...] = Field(min_length=1)
    strengths: tuple[Rate, ...] = Field(min_length=1)
    capacity: Count
    n_streams: Count
    n_tuning_streams: Count
    n_way: Annotated[int, Field(ge=2)]
    n_rounds: Count
    n_query: Count
    first_epochs: Count
    epochs: Count
    stream: Stream

    @field_validator("methods", mode="before")
    @classmethod
    def _all(cls, values: list | tuple) -> list | tuple:
        return get_args(Method) if list(values) == ["all"] else values

    @field_validator("methods", "strengths")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @model_validator(mode="after")
    def _fits(self) -> ForgettingNeighboursParameters:
        if 1 + self.n_rounds + self.n_query > N_DRAWERS:
            raise ValueError(f"n_rounds = {self.n_rounds}: at most {N_DRAWERS - 1 - self.n_query}, see n_query")
        if len(self.learning_rates) % len(self.strengths):
            raise ValueError(
                f"learning_rates: {len(self.learning_rates)} of them, must be a multiple of the {len(self.strengths)} "
                "strengths, so that every method can try as many settings"
            )
        return self

    def preparations(self) -> list[Scouting]:
        return [self.scouting(seed, "pretrained", head, self.n_way) for seed, head in product(self.seeds(), self.heads)]

    def variants(self) -> list[Variant]:
        return [Variant(*pair) for pair in product(self.heads, self.methods)]

    def settings(self, method: Method) -> list[tuple[float, float]]:
        """(strength, learning rate), equally many for every method: with a strength to choose, every k-th of the rates,
        from the middle of the first k, for k strengths. A strength of 0: there is none."""
        k = len(self.strengths)
        if penalty_of(method) is None:
            return [(0.0, rate) for rate in self.learning_rates]
        return list(product(self.strengths, self.learning_rates[(k - 1) // 2 :: k]))


@dataclass(frozen=True)
class Job:
    """Some streams of one method under one setting; small enough to send to a worker."""

    parameters: ForgettingNeighboursParameters
    seed: int
    variant: Variant
    strength: float
    learning_rate: float
    purpose: Literal["validation", "test"]


def run(parameters: ForgettingNeighboursParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, head, method, strength, learning_rate, task (number of the stream), step (examples seen), metric,
    value; seed and task are empty where they are averaged over. Metrics:

    - ``validation``: mean accuracy at the end of the tuning streams, for every setting; the best one is then used;
    - ``accuracy``: of each test stream, after the first examples and at the end;
    - ``accuracy_mean``, ``accuracy_low``, ``accuracy_high``: over seeds and streams, with the 95 % interval, after each
      round;
    - ``stored``: numbers that a method keeps beside the network;
    - ``step_seconds``: per gradient step of one network, what its memory does included.
    """
    p = parameters
    p.check_ways(p.n_way)
    scouted = p.displacements()
    tuning = [
        Job(p, seed, variant, *setting, "validation")
        for variant in p.variants()
        for setting in p.settings(variant.method)
        for seed in p.seeds()
    ]
    rows = [
        _row(job, "validation", accuracies[:, -1].mean())
        for job, (accuracies, _, _) in zip(tuning, _courses(tuning, scouted, "tuning"), strict=True)
    ]
    best = best_settings(pd.DataFrame(rows), Variant._fields, ("strength", "learning_rate"))
    tests = [Job(p, seed, Variant(*v), *setting, "test") for v, setting in best.items() for seed in p.seeds()]
    courses = _courses(tests, scouted, "test streams")
    n_values = sum(tensor.numel() for tensor in next(iter(scouted.values())).zero_point.values())
    for i in range(0, len(tests), p.n_seeds):
        jobs, of_seeds = tests[i : i + p.n_seeds], courses[i : i + p.n_seeds]
        seen = of_seeds[0][1]
        for job, (accuracies, _, seconds) in zip(jobs, of_seeds, strict=True):
            for at in (0, -1):
                rows += [_row(job, "accuracy", a, task, seen[at]) for task, a in enumerate(accuracies[:, at])]
            rows.append(_row(job, "stored", stored(job.variant.method, n_values, p.capacity)))
            rows.append(_row(job, "step_seconds", seconds))
        estimate = bootstrap(np.stack([accuracies for accuracies, _, _ in of_seeds]))
        for part in ("mean", "low", "high"):
            for step, value in zip(seen, getattr(estimate, part), strict=True):
                rows.append(_row(jobs[0], f"accuracy_{part}", value, "", step) | {"seed": ""})
    return pd.DataFrame(rows)


def ranking(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every method at the end of the stream, best first for each head, with what it gained on the way and its costs.

    ``guided`` is the scope that was better on the validation streams; ``difference`` is that one minus the method,
    paired over the same streams, with its 95 % interval from ``low`` to ``high``.
    """
    rows = []
    test = frame[frame["metric"] == "accuracy"]
    best = frame[frame["metric"] == "validation"].groupby([*Variant._fields, "strength", "learning_rate"])
    best = best["value"].mean().groupby(level=list(Variant._fields)).max()
    for head, of in test.groupby("head", sort=False):
        first = dict(list(of[of["step"] == of["step"].min()].groupby("method", sort=False)))
        last = dict(list(of[of["step"] == of["step"].max()].groupby("method", sort=False)))
        scopes = [m for m in last if m in ("guided_tensor", "guided_network")]
        guided = max(scopes, key=lambda m: best[head, m]) if scopes else None
        for method, values in last.items():
            row = {"head": head, "method": method} | accuracy_of(values)
            row["gain"] = paired(values, first[method]).text
            row["stored"] = _mean(frame, head, method, "stored")
            if seconds is not None:
                row["step_seconds"] = _mean(seconds, head, method, "step_seconds")
            if guided:
                row |= {"guided": guided} | guided_minus(last[guided], values, "streams")
            rows.append(row)
    return best_first(rows, ["head"])


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each head who is best, and who is above and below guidance, if it took part."""
    lines = []
    for head, of in ranking(frame).groupby("head", sort=False):
        first = of.iloc[0]
        lines.append(f"{head} head: best at the end of the stream is {first['method']} with {first['accuracy']:.3f}.")
        if "guided" not in of:
            continue
        mine = of[of["method"] == first["guided"]].iloc[0]
        lines.append(f"  {mine['method']} reaches {mine['accuracy']:.3f} and stores {mine['stored']:.0f} numbers.")
        others = of[~of["method"].isin(["guided_tensor", "guided_network"])]
        for what, group in sides(others).items():
            lines.append(f"  {what}: {', '.join(group['method']) or 'none'}.")
        for both, alone in (("guided_ewc", "ewc"), ("guided_replay", "replay")):
            if {both, alone} <= set(of["method"]):
                e = paired(*(_at_the_end(frame, head, m) for m in (both, alone)))
                lines.append(f"  what the guide adds to {alone}: {e}.")
    return "\n".join(lines)


def stored(method: Method, n_values: int, capacity: int) -> int:
    """Numbers kept for a network of ``n_values`` parameters: `KEPT` for each of them, one more for a guide, and the
    pixels of replayed images."""
    kept = KEPT.get(penalty_of(method) or "", 0) * n_values
    return kept + method.startswith("guided_") * n_values + method.endswith("replay") * capacity * PIXELS


def penalty_of(method: Method) -> str | None:
    """The penalty whose strength there is to choose, if any."""
    name = method.removeprefix("guided_")
    return name if name in STRENGTH else None


def _memory(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> continual.Memory:
    method, p = job.variant.method, job.parameters
    if method.endswith("replay"):
        return continual.Replay(p.capacity, rng(job.seed, job.purpose, "replay"))
    if (penalty := penalty_of(method)) is None:
        return continual.Memory()
    strength = job.strength * STRENGTH[penalty]
    if penalty == "ewc":
        return continual.EWC(model, strength)
    if penalty == "synaptic":
        return continual.SynapticIntelligence(model, strength, optimizer)
    return continual.L2SP(model, strength)


def _mean(frame: pd.DataFrame, head: Head, method: Method, metric: str) -> float:
    mine = (frame["head"] == head) & (frame["method"] == method) & (frame["metric"] == metric)
    return frame.loc[mine, "value"].mean()


def _at_the_end(frame: pd.DataFrame, head: Head, method: Method) -> pd.DataFrame:
    mine = frame[(frame["head"] == head) & (frame["method"] == method) & (frame["metric"] == "accuracy")]
    return mine[mine["step"] == mine["step"].max()]


def _row(job: Job, metric: str, value: float, task: int | str = "", step: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed} | job.variant._asdict() | {"strength": job.strength, "learning_rate": job.learning_rate}
    return key | {"task": task, "step": step, "metric": metric, "value": value}


def _courses(
    jobs: Sequence[Job], scouted: dict[Scouting, Displacement], description: str
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    p = jobs[0].parameters
    with_start = [(job, scouted[p.scouting(job.seed, "pretrained", job.variant.head, p.n_way)]) for job in jobs]
    return parallel(_run_job, with_start, p.workers, description, p.dask_scheduler)


def _run_job(job_and_start: tuple[Job, Displacement]) -> tuple[np.ndarray, np.ndarray, float]:
    """Train on the job's streams, side by side: accuracy [streams, rounds], examples seen by then, seconds per step."""
    job, displacement = job_and_start
    p, purpose, method = job.parameters, job.purpose, job.variant.method
    dataset = load(p.dataset)
    classes = split_classes(dataset, job.seed)[purpose]
    n_streams = p.n_streams if purpose == "test" else p.n_tuning_streams
    # The same streams for every method, those of `forgetting`: differences between methods are paired.
    episodes = [
        sample_episode(
            dataset.examples, classes, p.n_way, 1 + p.n_rounds, p.n_query, rng(job.seed, purpose, "stream", i)
        )
        for i in range(n_streams)
    ]
    base = "guided_network" if method in ("guided_ewc", "guided_replay") else method
    see, model, optimizer = start(displacement, base, job.learning_rate, n_streams)
    support = see(torch.stack([episode.support for episode in episodes], 2).flatten(0, 1)).unflatten(0, (p.n_way, -1))
    queries, labels = labelled(torch.stack([episode.query for episode in episodes], 2))
    queries = see(queries)
    arrivals = list(arrivals_of(support, p.stream, rng(job.seed, purpose, "order")))
    seen = np.cumsum([len(labels) for _, labels in arrivals])
    memory, accuracies, seconds, n_steps = _memory(job, model, optimizer), [], 0.0, 0
    begin = time.perf_counter()
    for i in continual.follow(model, optimizer, arrivals, memory, first_epochs=p.first_epochs, epochs=p.epochs):
        seconds += time.perf_counter() - begin
        n_steps += p.epochs if i else p.first_epochs
        last = i == len(arrivals) - 1
        if last or (purpose == "test" and seen[i] % p.n_way == 0):
            accuracies.append(correct(model, queries, labels[:, None]).mean(0))
        begin = time.perf_counter()
    rounds = seen[seen % p.n_way == 0]
    return torch.stack(accuracies, 1).numpy(), rounds, seconds / (n_steps * n_streams)

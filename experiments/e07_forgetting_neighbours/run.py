"""Catastrophic forgetting with everything one could have used instead: accuracy, and what is stored for it."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple

import pandas as pd
from pydantic import model_validator

from experiments.images import start
from experiments.optimizers import usual_rate
from experiments.parameters import Count, Head, Rate, Some, or_all
from experiments.preparations.scouting import Scouting
from experiments.protocol import Job, best_to_test, tune_and_test
from experiments.ranking import sides
from experiments.statistics import paired
from experiments.stream_methods import METHODS, Learner, guides, ranking
from experiments.streams import (
    Course,
    StreamParameters,
    after_rounds,
    at_both_ends,
    by_setting,
    first_and_last,
    learn_streams,
)
from gtl_core.guide import Displacement
from gtl_core.tasks import Stream, rng


class StreamVariant(NamedTuple):
    head: Head
    method: str


class StrengthSetting(NamedTuple):
    strength: float  # of the springs, times its usual one; 0: there is none
    learning_rate: float


class ForgettingNeighboursParameters(StreamParameters):
    """See the notebook's parameter cell for what each one means."""

    methods: Annotated[Some[Literal[*METHODS]], or_all(METHODS)]
    strengths: Some[Rate]
    capacity: Count
    epochs: Count
    stream: Stream

    @model_validator(mode="after")
    def _as_many_settings(self) -> ForgettingNeighboursParameters:
        if len(self.learning_rates) % len(self.strengths):
            raise ValueError(
                f"learning_rates: {len(self.learning_rates)} of them, must be a multiple of the {len(self.strengths)} "
                "strengths, so that every method can try as many settings"
            )
        return self

    def preparations(self) -> list[Scouting]:
        triples = product(self.seeds(), self.heads, self.methods)
        return list(dict.fromkeys(self.scouting_of(seed, StreamVariant(*variant)) for seed, *variant in triples))

    def scouting_of(self, seed: int, variant: StreamVariant) -> Scouting:
        """What leaves the variant's zero point and, if it has a guide, its scouts' displacement."""
        method = METHODS[variant.method]
        by = method.scouts_by if method.guide else "sgd"
        training = {"optimizer": by, "learning_rate": usual_rate(by, self.scout_learning_rate)}
        return self.scouting(seed, "pretrained", variant.head, self.n_way, **training)

    def settings(self, method: str) -> list[StrengthSetting]:
        """Equally many for every method: with a strength to choose, every k-th of the rates, from the middle of the
        first k, for k strengths."""
        k, rates = len(self.strengths), self.learning_rates
        strengths, rates = (self.strengths, rates[(k - 1) // 2 :: k]) if METHODS[method].strength else ((0.0,), rates)
        return [StrengthSetting(*pair) for pair in product(strengths, rates)]


def run(p: ForgettingNeighboursParameters) -> pd.DataFrame:
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
    p.check_ways(p.n_way)
    scouted = p.displacements()
    rows, tested = tune_and_test(
        p,
        [StreamVariant(*pair) for pair in product(p.heads, p.methods)],
        settings=lambda variant: p.settings(variant.method),
        start=lambda job: scouted[p.scouting_of(job.seed, job.variant)],
        measure=_learn,
        record=lambda job, course: [job.row("validation", course.accuracy[:, -1].mean(), task="", step="")],
        choose=partial(best_to_test, variant=StreamVariant, setting=StrengthSetting),
    )
    n_values = sum(tensor.numel() for tensor in next(iter(scouted.values())).zero_point.values())
    for jobs, courses in by_setting(tested):
        stored = METHODS[jobs[0].variant.method].stored(n_values, p.capacity)
        for job, course in zip(jobs, courses, strict=True):
            costs = {"stored": stored, "step_seconds": course.seconds}
            rows += at_both_ends(job, course)
            rows += [job.row(metric, value, task="", step="") for metric, value in costs.items()]
        rows += after_rounds(jobs[0], courses)
    return pd.DataFrame(rows)


def _learn(job: Job, displacement: Displacement) -> Course:
    p, method, setting = job.parameters, METHODS[job.variant.method], job.setting
    rate = usual_rate(method.optimizer, setting.learning_rate)
    view, model, optimizer = start(displacement, method, rate, p.copies(job.purpose), method.optimizer)
    generator = rng(job.seed, job.purpose, "replay")
    memory = method.memory(Learner(model, optimizer, setting.strength * method.strength, p.capacity, generator))
    return learn_streams(job, p.stream, p.epochs, view, model, optimizer, memory)


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each head who is best, and who is above and below guidance, if it took part."""
    lines = []
    for head, ranked in ranking(frame).groupby("head", sort=False):
        best = ranked.iloc[0]
        lines.append(f"{head} head: best at the end of the stream is {best['method']} with {best['accuracy']:.3f}.")
        if pd.isna(best["guided"]):
            continue
        mine = ranked[ranked["method"] == best["guided"]].iloc[0]
        lines.append(f"  {mine['method']} reaches {mine['accuracy']:.3f} and stores {mine['stored']:.0f} numbers.")
        others = ranked[~ranked["method"].isin(guides(METHODS))]
        for what, group in sides(others).items():
            lines.append(f"  {what}: {', '.join(group['method']) or 'none'}.")
        _, last = first_and_last(frame[(frame["head"] == head) & (frame["metric"] == "accuracy")])
        for name, alone in ((method.name, method.adds_to) for method in METHODS.values()):
            if {name, alone} <= set(last):
                lines.append(f"  what the guide adds to {alone}: {paired(last[name], last[alone])}.")
    return "\n".join(lines)

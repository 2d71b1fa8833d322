"""The protocol of every comparison: tune on validation tasks, choose, test on other tasks. It stands here once.

An experiment says which variants there are (a method under one condition), which settings each may try, what a job
begins with, what it measures, and how settings are chosen from the tuning record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import pandas as pd

from experiments.parameters import SeededParameters
from experiments.statistics import best_settings, choose_rates
from experiments.workers import parallel

Purpose = Literal["validation", "test"]
Row = dict[str, object]


class LearningRate(NamedTuple):
    """The setting of methods that have nothing else to choose. 0: not even that."""

    learning_rate: float


@dataclass(frozen=True)
class Job:
    """Some tasks of one variant under one setting; small enough to send to a worker."""

    parameters: Any
    seed: int
    variant: Any  # a NamedTuple: the columns of the table that tell a method and its condition from others
    setting: Any  # a NamedTuple: the columns that hold what was tuned
    purpose: Purpose

    def row(self, metric: str, value: float, **where: object) -> Row:
        """One line of the table; ``where``: the columns between setting and metric (``task``, ``step``)."""
        key = {"seed": self.seed} | self.variant._asdict() | self.setting._asdict()
        return key | where | {"metric": metric, "value": value}


def tune_and_test(
    p: SeededParameters,
    variants: Sequence[Any],
    settings: Callable[[Any], Sequence[Any]],
    start: Callable[[Job], object],
    measure: Callable[[Job, Any], Any],
    record: Callable[[Job, Any], list[Row]],
    choose: Callable[[pd.DataFrame], Mapping[tuple, Sequence[Any]]],
) -> tuple[list[Row], list[tuple[Job, Any]]]:
    """Returns the rows of the tuning record, and every test job with what it measured, by variant, seed and setting.

    settings: those that a variant tries, equally many for every method. start: what a job begins with, made here and
    sent to the worker. measure: done there, so a function of a module. record: the rows that a tuning job leaves.
    choose: from the tuning record, the settings of each variant that are tested; one, or one for each way to choose.
    """

    def done(jobs: Sequence[Job], description: str) -> list:
        with_start = [(job, start(job)) for job in jobs]
        return parallel(partial(_measured, measure), with_start, p.workers, description, p.dask_scheduler)

    tuning = [Job(p, seed, v, s, "validation") for v in variants for s in settings(v) for seed in p.seeds()]
    rows = [row for job, result in zip(tuning, done(tuning, "tuning"), strict=True) for row in record(job, result)]
    chosen = choose(pd.DataFrame(rows))
    tests = [Job(p, seed, v, s, "test") for v in variants for seed in p.seeds() for s in chosen[v]]
    return rows, list(zip(tests, done(tests, "test"), strict=True))


def rates_to_test(tuning: pd.DataFrame, tuned_on: Sequence[str]) -> dict[tuple, list[LearningRate]]:
    """What `tune_and_test` tests if rates are chosen in each of these ways, see `choose_rates`: every rate once."""
    chosen = [choose_rates(tuning, way) for way in tuned_on]
    return {variant: [LearningRate(r) for r in sorted({rates[variant] for rates in chosen})] for variant in chosen[0]}


def best_to_test(tuning: pd.DataFrame, variant: type, setting: type) -> dict[tuple, list]:
    """What `tune_and_test` tests if each variant uses its best setting, see `best_settings`; both are NamedTuples."""
    best = best_settings(tuning, variant._fields, setting._fields)
    return {which: [setting(*values)] for which, values in best.items()}


def _measured(measure: Callable[[Job, Any], Any], job_and_start: tuple[Job, Any]) -> Any:
    return measure(*job_and_start)

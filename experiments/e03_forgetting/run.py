"""Catastrophic forgetting (paper: continued training on single examples): what a network still knows after each one.

A network learns new classes from one example each. Then examples arrive one after the other, each is trained on for a
fixed number of epochs and thrown away. Accuracy is measured on other people's drawings of each class.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from experiments.images import OptimizersParameters, ZeroPoint, by_scouts, start
from experiments.methods import BASIC, FROZEN, NETWORK, PLAIN, SCRATCH
from experiments.optimizers import OptimizerName
from experiments.parameters import Count, Head, distinct
from experiments.preparations.scouting import Scouting
from experiments.protocol import Job, Row, rates_to_test, tune_and_test
from experiments.statistics import NONE, at_chosen_rates, choose_rates, difference
from experiments.streams import (
    Course,
    StreamParameters,
    after_rounds,
    at_both_ends,
    by_setting,
    estimates,
    first_and_last,
    learn_streams,
)
from gtl_core.guide import Displacement
from gtl_core.tasks import Stream

TUNED_ON = ("same", "first", "careful", "last")  # how rates are chosen, see `choose_rates`


class ForgettingParameters(StreamParameters, OptimizersParameters):
    """See the notebook's parameter cell for what each one means."""

    epochs: tuple[Count, ...] = Field(min_length=1)
    streams: tuple[Stream, ...] = Field(min_length=1)
    zero_points: tuple[ZeroPoint, ...] = Field(min_length=1)

    @field_validator("epochs", "streams", "zero_points")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    def preparations(self) -> list[Scouting]:
        pairs = product(self.seeds(), self.variants())
        return list(dict.fromkeys(self.scouting_of(seed, variant) for seed, variant in pairs))

    def scouting_of(self, seed: int, variant: ForgettingVariant) -> Scouting:
        """Whose displacement has the variant's zero point and, if it has scouts, theirs."""
        return self.scouting(seed, variant.zero_point, variant.head, self.n_way, optimizer=variant.scouts)

    def variants(self) -> list[ForgettingVariant]:
        """The first zero point, stream and number of epochs with every head and pair of optimizers; then each other one
        of these in its place, with the first head."""
        base = (self.zero_points[0], self.streams[0], self.epochs[0])
        conditions = [(base, head) for head in self.heads]
        for i, values in enumerate((self.zero_points, self.streams, self.epochs)):
            conditions += [((*base[:i], value, *base[i + 1 :]), self.heads[0]) for value in values[1:]]
        return [
            ForgettingVariant(*condition[:1], head, *condition[1:], *method)
            for condition, head in conditions
            for method in self.crossed(condition[0], condition == base)
        ]


class ForgettingVariant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    zero_point: ZeroPoint
    head: Head
    stream: Stream
    epochs: int
    scouts: str  # their optimizer; none where there are no scouts
    optimizer: OptimizerName
    method: str


BY_CLASS = (FROZEN.name, PLAIN.name, SCRATCH.name, NETWORK.name)
CONDITION = ("zero_point", "head", "stream", "epochs", "optimizer")


def run(p: ForgettingParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `ForgettingVariant`, learning_rate, task (number of the stream), step (examples seen),
    metric, value; seed and task are empty where they are averaged over. Metrics:

    - ``validation_first``, ``validation_last``: mean accuracy over the tuning streams after the first examples and
      after the last one, for every learning rate;
    - ``accuracy``: of each single test stream, after the first examples and at the end, for every rate that
      `choose_rates` chooses;
    - ``accuracy_mean``, ``accuracy_low``, ``accuracy_high``: over seeds and test streams, with the 95 % interval, after
      each round; likewise ``backward_transfer_*`` and ``forgetting_*`` at the end, see `end_measures`;
    - ``class_0``, ``class_1``, ...: mean accuracy on each class after every step, at the rate tuned on ``same``, of the
      methods and streams that are `followed_by_class`.
    """
    p.check_ways(p.n_way)
    scouted = p.displacements()
    rows, tested = tune_and_test(
        p,
        p.variants(),
        settings=lambda variant: p.rates(variant.optimizer),
        start=lambda job: scouted[p.scouting_of(job.seed, job.variant)],
        measure=_learn,
        record=_validation,
        choose=partial(rates_to_test, tuned_on=TUNED_ON),
    )
    same = choose_rates(pd.DataFrame(rows), "same")
    for jobs, courses in by_setting(tested):
        for job, course in zip(jobs, courses, strict=True):
            rows += at_both_ends(job, course)
        rows += after_rounds(jobs[0], courses)
        of_courses = [end_measures(course) for course in courses]
        for metric in of_courses[0]:
            values = np.stack([measured[metric] for measured in of_courses])
            rows += estimates(jobs[0], metric, values[..., None], courses[0].seen[-1:])
        variant, setting = jobs[0].variant, jobs[0].setting
        if followed_by_class(p, variant) and setting.learning_rate == same[variant]:
            rows += _class_rows(jobs, courses)
    return pd.DataFrame(rows)


def _learn(job: Job, displacement: Displacement) -> Course:
    v, copies = job.variant, job.parameters.copies(job.purpose)
    copied = start(displacement, BASIC[v.method], job.setting.learning_rate, copies, v.optimizer)
    return learn_streams(job, v.stream, v.epochs, *copied)


def _validation(job: Job, course: Course) -> list[Row]:
    first, last = course.by_class.mean((0, 2))
    means = {"validation_first": first, "validation_last": last}
    return [job.row(metric, value, task="", step="") for metric, value in means.items()]


def followed_by_class(p: ForgettingParameters, variant: ForgettingVariant) -> bool:
    """Whether each class is kept, which is most of a table: of some methods, in streams that have an order, all else as
    in the base."""
    base = p.variants()[0]._replace(stream=variant.stream, scouts=variant.scouts, method=variant.method)
    ordered, by = variant.stream != "per_class", (NONE, p.optimizers[0])
    return variant == base and ordered and variant.scouts in by and variant.method in BY_CLASS


def _class_rows(jobs: list[Job], courses: list[Course]) -> list[Row]:
    by_class = np.mean([course.by_class.mean(0) for course in courses], 0)  # [steps, n_way]
    job = replace(jobs[0], seed="")
    return [
        job.row(f"class_{c}", value, task="", step=step)
        for c, values in enumerate(by_class.T)
        for step, value in zip(courses[0].seen, values, strict=True)
    ]


def end_measures(course: Course) -> dict[str, np.ndarray]:
    """Of each stream [S], at its end.

    - ``backward_transfer``: mean over classes of final accuracy minus accuracy when the class had just had its last
      example (Lopez-Paz & Ranzato 2017): negative where later examples of other classes did harm;
    - ``forgetting``: mean over classes of the highest accuracy on the way minus the final (Chaudhry et al. 2018).
    """
    final = course.by_class[:, -1]
    when_taught = np.take_along_axis(course.by_class, course.taught[:, None], 1)[:, 0]
    return {
        "backward_transfer": (final - when_taught).mean(1),
        "forgetting": (course.by_class.max(1) - final).mean(1),
    }


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided (network scope) against its rivals at the end of the stream, and what each method gained on the way.

    tuned_on: see `choose_rates`. Comparisons: guided minus its rivals at the end; last minus first of every method.
    One row per (tuned_on, condition, comparison) with the paired `difference` in accuracy.
    """
    rows = []
    for tuned_on in TUNED_ON:
        test = at_chosen_rates(frame, tuned_on)
        for condition, accuracy in by_scouts(test[test["metric"] == "accuracy"], CONDITION):
            first, last = first_and_last(accuracy)
            guided = last[NETWORK.name]
            pairs = {f"guided - {m}": (guided, last[m]) for m in last if m != NETWORK.name}
            pairs |= {f"{m}: last - first": (last[m], first[m]) for m in last}
            key = {"tuned_on": tuned_on, **condition}
            rows += [key | {"comparison": name} | difference(*pair) for name, pair in pairs.items()]
    return pd.DataFrame(rows)


def measures(frame: pd.DataFrame, tuned_on: str) -> pd.DataFrame:
    """Accuracy, backward transfer and forgetting at the end of the stream, and where accuracy was highest, as text.

    One row per `ForgettingVariant`; ``peak`` is the number of examples per class after which mean accuracy was highest.
    """
    rows = []
    for variant, test in at_chosen_rates(frame, tuned_on).groupby(list(ForgettingVariant._fields), sort=False):
        row = dict(zip(ForgettingVariant._fields, variant, strict=True))
        curve = test[test["metric"] == "accuracy_mean"].set_index("step")["value"]
        end = test[test["step"] == curve.index.max()].set_index("metric")["value"]
        for name in ("accuracy", "backward_transfer", "forgetting"):
            mean, low, high = (end[f"{name}_{part}"] for part in ("mean", "low", "high"))
            row[name] = f"{mean:.3f} [{low:.3f}, {high:.3f}]"
        row["peak"] = int(curve.idxmax() // curve.index.min())
        row["after the peak"] = f"{curve.iloc[-1] - curve.max():+.3f}"
        rows.append(row)
    return pd.DataFrame(rows)


def like_first(table: pd.DataFrame, **values: object) -> pd.Series:
    """Which rows have the zero point, the stream and the epochs of the first one, or the ``values`` given for them."""
    wanted = table.iloc[0][["zero_point", "stream", "epochs"]].to_dict() | values
    return (table[list(wanted)] == pd.Series(wanted)).all(axis=1)

"""One-shot learning (paper: Omniglot): fine-tuning on one or a few examples per class of unknown characters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial, reduce
from itertools import chain, pairwise, product
from operator import add
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from experiments.baselines.few_shot import groups, side_by_side
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.episodes import SIDE_BY_SIDE, EpisodeParameters, Task, accuracy_rows
from experiments.images import OptimizersParameters, ShotCount, ZeroPoint, by_scouts, start
from experiments.methods import BASIC, NETWORK, TENSOR
from experiments.optimizers import OptimizerName
from experiments.parameters import Count, Distinct, Head
from experiments.preparations.scouting import Scouting
from experiments.protocol import Job, LearningRate, Row, rates_to_test, tune_and_test
from experiments.statistics import NONE, alike, at_chosen_rates, choose_rates, difference
from gtl_core._engine.stacked import stacked_cross_entropy
from gtl_core.guide import Displacement
from gtl_core.tasks import Episode, rng, sample_episode
from gtl_core.training import correct, fit

CONDITION = ("zero_point", "head", "n_way", "n_shot", "optimizer")
TUNED_ON = ("first", "same")  # how rates are chosen, see `choose_rates`
N_SHOWN = 2  # episodes, and queries per class of each, that are kept as pictures
N_SHOWN_QUERIES = 3


class OneShotVariant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    zero_point: ZeroPoint
    head: Head
    n_way: int
    n_shot: int
    scouts: str  # their optimizer; none where there are no scouts
    optimizer: OptimizerName
    method: str
    n_scouts: int
    scout_n_shot: int


def _increasing(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError("must increase")
    return values


class OneShotParameters(EpisodeParameters, OptimizersParameters):
    """See the notebook's parameter cell for what each one means."""

    n_query: Annotated[int, Field(ge=N_SHOWN_QUERIES)]
    saturation_scouts: Annotated[tuple[Count, ...], AfterValidator(_increasing)]
    saturation_n_shots: Distinct[ShotCount]

    def variants(self) -> list[OneShotVariant]:
        """Every method for every task and head, for the first task with all pairs of optimizers, and without
        pretraining for the first task (a random network's head is as random as the rest of it); then, for the first
        condition, the other numbers of scouts and images."""
        conditions = [*product(["pretrained"], self.heads, self.tasks), ("random", "random", self.tasks[0])]
        variants = [
            OneShotVariant(zero_point, head, *Task.parse(task), *method, self.n_scouts, self.scout_n_shot)
            for zero_point, head, task in conditions
            for method in self.crossed(zero_point, (zero_point, task) == ("pretrained", self.tasks[0]))
        ]
        base = next(v for v in variants if v.method == NETWORK.name)
        variants += [base._replace(n_scouts=n) for n in self.saturation_scouts if n != base.n_scouts]
        variants += [base._replace(scout_n_shot=n) for n in self.saturation_n_shots if n != base.scout_n_shot]
        return variants

    def scoutings(self, seed: int, variant: OneShotVariant) -> list[Scouting]:
        """Whose displacements, added, are the variant's. Larger numbers of scouts contain the smaller ones."""
        v, fewer = variant, [n for n in self.saturation_scouts if n <= variant.n_scouts]
        ends = [self.n_scouts] if v.n_scouts == self.n_scouts else fewer
        by = {"optimizer": v.scouts, "n_shot": v.scout_n_shot}
        scouting = partial(self.scouting, seed, v.zero_point, v.head, v.n_way, **by)
        return [scouting(first_scout=a, n_scouts=b - a) for a, b in pairwise((0, *ends))]

    def preparations(self) -> list[Scouting]:
        every = (self.scoutings(seed, variant) for seed, variant in product(self.seeds(), self.variants()))
        return list(dict.fromkeys(chain.from_iterable(every)))


def run(p: OneShotParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `OneShotVariant`, learning_rate, task, step, metric, value. Metrics:

    - ``validation_first``: mean accuracy over the tuning episodes, for every learning rate;
    - ``accuracy``: of test episodes (task; see `accuracy_rows`), for every rate that `choose_rates` chooses;
    - ``right``: 1 or 0 for the queries (step) of the first episodes (task) of the first seed and condition;
    - ``support``, ``query``: the pictures of those (see `pictures`), in rows of the method ``pictures``.
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    scouted = p.displacements()
    rows, tested = tune_and_test(
        p,
        p.variants(),
        settings=lambda variant: p.rates(variant.optimizer),
        start=lambda job: reduce(add, [scouted[scouting] for scouting in p.scoutings(job.seed, job.variant)]),
        measure=answers,
        record=lambda job, right: [job.row("validation_first", right.mean(), task="", step="")],
        choose=partial(rates_to_test, tuned_on=TUNED_ON),
    )
    best = choose_rates(pd.DataFrame(rows), "first")
    first, _ = tested[0]
    for job, right in tested:
        rows += [row | {"step": ""} for row in accuracy_rows(job, right.mean(1))]
        base = job.variant.scouts in (NONE, p.optimizers[0])
        condition = job.variant._replace(method=first.variant.method, scouts=NONE if base else job.variant.scouts)
        if (job.seed, condition) == (first.seed, first.variant) and job.setting.learning_rate == best[job.variant]:
            for task, of_episode in enumerate(right[:N_SHOWN].reshape(N_SHOWN, -1, p.n_query)):
                rows += _steps(job, "right", task, of_episode[:, :N_SHOWN_QUERIES])
    job = replace(first, variant=first.variant._replace(method="pictures"), setting=LearningRate(""))
    for task in range(N_SHOWN):
        shown = episode(first, task)
        rows += _steps(job, "support", task, _packed(shown.support[:, :1]))
        rows += _steps(job, "query", task, _packed(shown.query[:, :N_SHOWN_QUERIES]))
    return pd.DataFrame(rows)


def _steps(job: Job, metric: str, task: int, values: np.ndarray) -> list[Row]:
    return [job.row(metric, value, task=task, step=step) for step, value in enumerate(values.flatten())]


def answers(job: Job, displacement: Displacement) -> np.ndarray:
    """1 or 0 for every query that is right or wrong after fine-tuning on its episode, [episodes, n_way * n_query]."""
    p, v, rate = job.parameters, job.variant, job.setting.learning_rate
    n_episodes = p.n_tuning_episodes if job.purpose == "validation" else p.n_episodes
    episodes, right = [episode(job, i) for i in range(n_episodes)], []
    for some in groups(episodes, max(1, SIDE_BY_SIDE // (v.n_way * v.n_shot))):
        view, model, optimizer = start(displacement, BASIC[v.method], rate, len(some), v.optimizer)
        support, labels = side_by_side([one.support for one in some])
        fit(model, view(support), labels, optimizer, epochs=p.epochs, loss=stacked_cross_entropy)
        queries, labels = side_by_side([one.query for one in some])
        right.append(correct(model, view(queries), labels))
    return torch.cat(right, 1).T.numpy()


def episode(job: Job, i: int) -> Episode:
    """Episode ``i`` is the same for every method and rate: differences between methods are paired."""
    dataset, v = load(job.parameters.dataset), job.variant
    classes, generator = split_classes(dataset, job.seed)[job.purpose], rng(job.seed, job.purpose, i)
    return sample_episode(dataset.examples, classes, v.n_way, v.n_shot, job.parameters.n_query, generator)


def _packed(images: Tensor) -> np.ndarray:
    """Half a line of an image, 14 pixels, as the bits of one number; figures need no dataset then."""
    return ((images > 0.4).numpy().reshape(-1, 14) << np.arange(14)).sum(1)


def pictures(frame: pd.DataFrame, metric: str, task: int) -> np.ndarray:
    """Black-and-white images [n_way, n, 28, 28] of an episode's ``support`` or ``query``, as far as they were kept."""
    rows = frame[(frame["metric"] == metric) & (frame["task"] == task)]
    bits = rows.sort_values("step")["value"].astype(int).to_numpy()[:, None] >> np.arange(14) & 1
    return bits.reshape(rows["n_way"].iloc[0], -1, 28, 28)


def accuracies(frame: pd.DataFrame, tuned_on: str) -> pd.DataFrame:
    """The ``accuracy`` rows of every variant, at the rate that was chosen in this way."""
    test = at_chosen_rates(frame[frame["method"] != "pictures"], tuned_on)
    return test[test["metric"] == "accuracy"]


def with_all_scouts(frame: pd.DataFrame) -> pd.DataFrame:
    """Without pictures, and without what is there for saturation only."""
    return alike(frame[frame["method"] != "pictures"], "n_scouts", "scout_n_shot")


def along(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows of the guided method in which ``what`` (n_scouts or scout_n_shot) varies and all else is as at first."""
    return alike(frame[frame["method"] == NETWORK.name], *(c for c in OneShotVariant._fields if c != what))


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided (``guided``: network scope) minus its rivals: one row per (tuned_on, zero_point, head, task, optimizer,
    scouts, comparison).

    tuned_on: see `choose_rates`. With the mean paired difference in accuracy, its 95 % interval from ``low`` to
    ``high``, ``n``, and all of it as ``text``.
    """
    rows = []
    for tuned_on in TUNED_ON:
        test = accuracies(with_all_scouts(frame), tuned_on)
        for condition, found in by_scouts(test, CONDITION):
            task, by_method = Task(condition.pop("n_way"), condition.pop("n_shot")), dict(list(found.groupby("method")))
            rivals = [("guided", NETWORK, name) for name in by_method if name != NETWORK.name]
            rivals += [("guided_tensor", TENSOR, name) for name in by_method if not BASIC[name].guide]
            key = {"tuned_on": tuned_on, **condition, "task": str(task)}
            for label, guided, name in rivals:
                compared = difference(by_method[guided.name], by_method[name], "episodes")
                rows.append(key | {"comparison": f"{label} - {name}"} | compared)
    return pd.DataFrame(rows)


def saturation(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with each number of scouts, and of images per class that a scout sees, minus that with the most.

    One row per (tuned_on, what, number), in the form of `verdicts`; ``accuracy`` is the mean itself.
    """
    rows = []
    for tuned_on, what in product(TUNED_ON, ("n_scouts", "scout_n_shot")):
        by_number = dict(list(along(accuracies(frame, tuned_on), what).groupby(what)))
        for number, values in by_number.items():
            key = {"tuned_on": tuned_on, "what": what, "number": number, "accuracy": values["value"].mean()}
            rows.append(key | difference(values, by_number[max(by_number)], "episodes"))
    return pd.DataFrame(rows)


def octaves(frame: pd.DataFrame, within: float = 0.02) -> pd.DataFrame:
    """How wide a range of learning rates works: octaves around the best rate in which accuracy stays ``within`` of it.

    From the tuning episodes, whose accuracy is interpolated between rates. One row per variant: ``low`` and ``high``
    end of the range, ``octaves``, and ``open`` if no rate beyond it was tried (it is then at least so wide).
    """
    rows = []
    tuning = frame[frame["metric"] == "validation_first"]
    for variant, scores in tuning.groupby(list(OneShotVariant._fields), sort=False):
        mean = scores.groupby("learning_rate")["value"].mean()
        rates, spare = np.log2(mean.index.to_numpy(float)), mean.to_numpy() - mean.max() + within
        best = spare.argmax()
        low, high = _end(rates[best::-1], spare[best::-1]), _end(rates[best:], spare[best:])
        reach = {"low": 2**low, "high": 2**high, "octaves": high - low, "open": high == rates[-1] or low == rates[0]}
        rows.append(dict(zip(OneShotVariant._fields, variant, strict=True)) | reach)
    return pd.DataFrame(rows)


def _end(rates: np.ndarray, spare: np.ndarray) -> float:
    """Where ``spare`` first falls to 0; the last rate if nowhere."""
    below = np.flatnonzero(spare < 0)
    if not below.size:
        return rates[-1]
    across = [below[0], below[0] - 1]
    return np.interp(0, spare[across], rates[across])

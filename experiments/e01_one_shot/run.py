"""One-shot learning (paper: Omniglot): fine-tuning on one or a few examples per class of unknown characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor

from experiments.data import load
from experiments.data.splits import split_classes
from experiments.episodes import GROUP, EpisodeParameters, Task
from experiments.images import METHODS, N_DRAWERS, ZeroPoint, start
from experiments.parameters import Count, Head, distinct
from experiments.preparations.scouting import Scouting
from experiments.statistics import at_chosen_rates, choose_rates, paired
from experiments.workers import parallel
from gtl_core._engine.stacked import stacked_cross_entropy
from gtl_core.guide import Displacement
from gtl_core.tasks import Episode, labelled, rng, sample_episode
from gtl_core.training import correct, fit

TUNED_ON = ("first", "same")
N_SHOWN = 2  # episodes, and queries per class of each, that are kept as pictures
N_SHOWN_QUERIES = 3
SIDE_BY_SIDE = 40  # support images of episodes trained together: copies save overhead, not arithmetic, see `stack`


class Variant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    zero_point: ZeroPoint
    head: Head
    n_way: int
    n_shot: int
    method: str
    n_scouts: int
    scout_n_shot: int


class OneShotParameters(EpisodeParameters):
    """See the notebook's parameter cell for what each one means."""

    n_query: Annotated[int, Field(ge=N_SHOWN_QUERIES)]
    saturation_scouts: tuple[Count, ...]
    saturation_n_shots: tuple[Annotated[int, Field(ge=1, le=N_DRAWERS)], ...]

    @field_validator("saturation_n_shots")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @field_validator("saturation_scouts")
    @classmethod
    def _increasing(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if any(a >= b for a, b in pairwise(values)):
            raise ValueError("must increase")
        return values

    def variants(self) -> list[Variant]:
        """Every method for every task and head, and without pretraining for the first task (a random network's head is
        as random as the rest of it); then, for the first condition, the other numbers of scouts and images."""
        pretrained = product(["pretrained"], self.heads, self.tasks)
        random = [("random", "random", self.tasks[0])]
        variants = [
            Variant(zero_point, head, *Task.parse(task), method, self.n_scouts, self.scout_n_shot)
            for zero_point, head, task in (*pretrained, *random)
            for method in METHODS[zero_point]
        ]
        base = next(v for v in variants if v.method == "guided_network")
        variants += [base._replace(n_scouts=n) for n in self.saturation_scouts if n != base.n_scouts]
        variants += [base._replace(scout_n_shot=n) for n in self.saturation_n_shots if n != base.scout_n_shot]
        return variants

    def scoutings(self, seed: int, variant: Variant) -> list[Scouting]:
        """Whose displacements, added, are the variant's. Larger numbers of scouts contain the smaller ones."""
        scouting = self.scouting(seed, variant.zero_point, variant.head, variant.n_way, n_shot=variant.scout_n_shot)
        if variant.n_scouts == self.n_scouts:
            return [scouting]
        steps = pairwise((0, *self.saturation_scouts))
        return [
            scouting.model_copy(update={"first_scout": a, "n_scouts": b - a}) for a, b in steps if b <= variant.n_scouts
        ]

    def preparations(self) -> list[Scouting]:
        every = (self.scoutings(seed, variant) for seed, variant in product(self.seeds(), self.variants()))
        return list(dict.fromkeys(scouting for scoutings in every for scouting in scoutings))


@dataclass(frozen=True)
class Job:
    """Some episodes of one variant under one learning rate; small enough to send to a worker."""

    parameters: OneShotParameters
    seed: int
    variant: Variant
    learning_rate: float
    purpose: Literal["validation", "test"]
    n_episodes: int


def run(parameters: OneShotParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `Variant`, learning_rate, task, step, metric, value. Metrics:

    - ``validation_first``: mean accuracy over the tuning episodes, for every learning rate;
    - ``accuracy``: over each group of ``GROUP`` test episodes (task), for every rate that `choose_rates` chooses;
    - ``right``: 1 or 0 for the queries (step) of the first episodes (task) of the first seed and condition;
    - ``support``, ``query``: the pictures of those (see `pictures`), in rows of the method ``pictures``.
    """
    p = parameters
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    scouted = p.displacements()
    tuning = [
        Job(p, seed, variant, rate, "validation", p.n_tuning_episodes)
        for variant, rate, seed in product(p.variants(), p.learning_rates, p.seeds())
    ]
    scores = _scores(tuning, scouted, "tuning")
    rows = [_row(job, "validation_first", score.mean()) for job, score in zip(tuning, scores, strict=True)]
    chosen = [choose_rates(pd.DataFrame(rows), tuned_on) for tuned_on in TUNED_ON]
    tests = [
        Job(p, seed, variant, rate, "test", p.n_episodes)
        for variant, seed in product(p.variants(), p.seeds())
        for rate in sorted({rates[variant] for rates in chosen})
    ]
    first = tests[0].variant
    for job, score in zip(tests, _scores(tests, scouted, "test episodes"), strict=True):
        for task, of_group in enumerate(score.reshape(-1, GROUP, score.shape[-1])):
            rows.append(_row(job, "accuracy", of_group.mean(), task))
        condition = job.variant._replace(method=first.method)
        if (job.seed, condition) == (tests[0].seed, first) and job.learning_rate == chosen[0][job.variant]:
            for task, right in enumerate(_shown(score[:N_SHOWN].reshape(-1, first.n_way, p.n_query))):
                rows += [_row(job, "right", value, task, step) for step, value in enumerate(right.flatten())]
    for task, episode in enumerate(_episodes(replace(tests[0], n_episodes=N_SHOWN))):
        job = replace(tests[0], variant=first._replace(method="pictures"), learning_rate="")
        for metric, images in (("support", episode.support[:, :1]), ("query", _shown(episode.query[None])[0])):
            rows += [_row(job, metric, value, task, step) for step, value in enumerate(_packed(images))]
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided (``guided``: network scope) minus its rivals: one row per (tuned_on, zero_point, head, task, comparison).

    tuned_on: see `stats.choose_rates`. With the mean paired difference in accuracy, its 95 % interval from ``low`` to
    ``high``, ``n``, and all of it as ``text``.
    """
    rows = []
    for tuned_on in TUNED_ON:
        test = _accuracy(frame, tuned_on)
        test = test[
            (test["n_scouts"] == frame["n_scouts"].iloc[0]) & (test["scout_n_shot"] == frame["scout_n_shot"].iloc[0])
        ]
        for (zero_point, head, *task), of in test.groupby(["zero_point", "head", "n_way", "n_shot"], sort=False):
            by_method = dict(list(of.groupby("method")))
            pairs = [("guided_network", m) for m in by_method if m != "guided_network"]
            pairs += [("guided_tensor", m) for m in by_method if not m.startswith("guided")]
            key = {"tuned_on": tuned_on, "zero_point": zero_point, "head": head, "task": str(Task(*task))}
            for one, other in pairs:
                comparison = {"comparison": f"{one.removesuffix('_network')} - {other}"}
                rows.append(key | comparison | _estimate(by_method[one], by_method[other]))
    return pd.DataFrame(rows)


def saturation(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with each number of scouts, and of images per class that a scout sees, minus that with the most.

    One row per (tuned_on, what, number), in the form of `verdicts`; ``accuracy`` is the mean itself.
    """
    rows = []
    for tuned_on, what in product(TUNED_ON, ("n_scouts", "scout_n_shot")):
        test = along(_accuracy(frame, tuned_on), what)
        by_number = dict(list(test.groupby(what)))
        for number, of in by_number.items():
            key = {"tuned_on": tuned_on, "what": what, "number": number, "accuracy": of["value"].mean()}
            rows.append(key | _estimate(of, by_number[max(by_number)]))
    return pd.DataFrame(rows)


def along(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows of the guided method in which ``what`` (n_scouts or scout_n_shot) varies and all else is as at first."""
    base = frame.iloc[0]
    others = [c for c in Variant._fields if c not in ("method", what)]
    return frame[(frame[others] == base[others]).all(axis=1) & (frame["method"] == "guided_network")]


def octaves(frame: pd.DataFrame, within: float = 0.02) -> pd.DataFrame:
    """How wide a range of learning rates works: octaves around the best rate in which accuracy stays ``within`` of it.

    From the tuning episodes, whose accuracy is interpolated between rates. One row per variant: ``low`` and ``high``
    end of the range, ``octaves``, and ``open`` if no rate beyond it was tried (it is then at least so wide).
    """
    tuning = frame[frame["metric"] == "validation_first"]
    rows = []
    for variant, of in tuning.groupby(list(Variant._fields), sort=False):
        mean = of.groupby("learning_rate")["value"].mean()
        rates, drop = np.log2(mean.index.to_numpy(float)), mean.to_numpy() - mean.max() + within
        ends = []
        for step in (-1, 1):
            i = int(drop.argmax())
            while 0 <= i + step < len(drop) and drop[i + step] >= 0:
                i += step
            inside = 0 <= i + step < len(drop)
            share = drop[i] / (drop[i] - drop[i + step]) if inside else 0
            ends.append(rates[i] + share * (rates[i + step] - rates[i]) if inside else rates[i])
        low, high = ends
        row = dict(zip(Variant._fields, variant, strict=True))
        rows.append(
            row | {"low": 2**low, "high": 2**high, "octaves": high - low, "open": high == rates[-1] or low == rates[0]}
        )
    return pd.DataFrame(rows)


def pictures(frame: pd.DataFrame, metric: Literal["support", "query"], task: int) -> np.ndarray:
    """Black-and-white images [n_way, n, 28, 28] of an episode that was kept, from the rows that hold them."""
    rows = frame[(frame["metric"] == metric) & (frame["task"] == task)]
    bits = rows.sort_values("step")["value"].astype(int).to_numpy()[:, None] >> np.arange(14) & 1
    return bits.reshape(rows["n_way"].iloc[0], -1, 28, 28)


def _packed(images: Tensor) -> np.ndarray:
    """Half a line of an image, 14 pixels, as the bits of one number; figures need no dataset then."""
    return ((images > 0.4).numpy().reshape(-1, 14) << np.arange(14)).sum(1)


def _shown(queries: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """[episodes, n_way, n_query, ...] -> the queries that are kept as pictures."""
    return queries[:, :, :N_SHOWN_QUERIES]


def _accuracy(frame: pd.DataFrame, tuned_on: str) -> pd.DataFrame:
    test = at_chosen_rates(frame[frame["method"] != "pictures"], tuned_on)
    return test[test["metric"] == "accuracy"]


def _estimate(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, object]:
    e = paired(one, other)
    n = f"{e.n[0]} seeds x {e.n[1] * GROUP} episodes"
    return {"mean": e.mean, "low": e.low, "high": e.high, "n": n, "text": e.text}


def _row(job: Job, metric: str, value: float, task: int | str = "", step: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed} | job.variant._asdict() | {"learning_rate": job.learning_rate}
    return key | {"task": task, "step": step, "metric": metric, "value": value}


def _scores(jobs: Sequence[Job], scouted: dict[Scouting, Displacement], description: str) -> list[np.ndarray]:
    with_start = []
    for job in jobs:
        first, *others = (scouted[s] for s in job.parameters.scoutings(job.seed, job.variant))
        with_start.append((job, sum(others, start=first)))
    p = jobs[0].parameters
    return parallel(_run_job, with_start, p.workers, description, p.dask_scheduler)


def _episodes(job: Job) -> list[Episode]:
    """The same for every method and rate: differences between methods are paired."""
    dataset, variant = load(job.parameters.dataset), job.variant
    classes = split_classes(dataset, job.seed)[job.purpose]
    return [
        sample_episode(
            dataset.examples,
            classes,
            variant.n_way,
            variant.n_shot,
            job.parameters.n_query,
            rng(job.seed, job.purpose, i),
        )
        for i in range(job.n_episodes)
    ]


def _run_job(job_and_start: tuple[Job, Displacement]) -> np.ndarray:
    """For every query of every episode [episodes, n_way * n_query] whether it is classified correctly."""
    job, displacement = job_and_start
    episodes = _episodes(job)
    n_copies = max(1, SIDE_BY_SIDE // (job.variant.n_way * job.variant.n_shot))
    scores = []
    for i in range(0, len(episodes), n_copies):
        some = episodes[i : i + n_copies]
        see, model, optimizer = start(displacement, job.variant.method, job.learning_rate, len(some))
        support, labels = labelled(torch.stack([episode.support for episode in some], 2))
        fit(model, see(support), labels[:, None], optimizer, epochs=job.parameters.epochs, loss=stacked_cross_entropy)
        queries, labels = labelled(torch.stack([episode.query for episode in some], 2))
        scores.append(correct(model, see(queries), labels[:, None]))
    return torch.cat(scores, 1).T.numpy()

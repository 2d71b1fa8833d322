"""Few-shot learning after some preparation: what 06 and 08 tune, measure and rank."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines.few_shot import Start, groups, side_by_side
from experiments.data import Dataset, load
from experiments.data.splits import split_classes
from experiments.episodes import SIDE_BY_SIDE, EpisodeParameters, Task, accuracy_rows
from experiments.images import zero_point_of
from experiments.methods import Method
from experiments.neighbours import NEIGHBOURS
from experiments.optimizers import usual_rate
from experiments.parameters import Head, Rate, Some
from experiments.preparations.meta_training import MetaTraining
from experiments.preparations.scouting import ScoutingStep
from experiments.preparations.steps import Step
from experiments.protocol import Job, Row, best_to_test, tune_and_test
from experiments.ranking import rank
from gtl_core.tasks import rng, sample_episode

SCOPES = tuple(row.name for row in NEIGHBOURS.values() if row.guide and not row.prepare)  # guidance and nothing else


class PreparationSetting(NamedTuple):
    """factor: of the preparation's learning rate, or of the scouts', or of an alignment's strength."""

    factor: float
    learning_rate: float


class PreparedParameters(EpisodeParameters):
    """Parameters of methods that are prepared in ways of their own. A variant has ``n_way``, ``n_shot``, ``method``."""

    heads: tuple[Head, ...] = Field(min_length=1, max_length=1)
    preparation_factors: Some[Rate]

    def variants(self) -> Sequence[Any]:
        raise NotImplementedError

    def row(self, variant: Any) -> Method:
        """Of the variant's method."""
        return NEIGHBOURS[variant.method]

    def taught(self, job: Job, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        """The labels [N, 1] or [N, S] with which the supports of S tasks, those of these ``numbers``, are learned."""
        return labels

    def step(self, seed: int, variant: Any, factor: float) -> Step | None:
        """The last step of a variant's preparation, scaled by ``factor``; None where nothing is prepared."""
        raise NotImplementedError

    def network(self, seed: int, n_way: int) -> nn.Sequential:
        """As it is before any preparation."""
        raise NotImplementedError

    def scout_training(self, variant: Any, factor: float) -> dict[str, Any]:
        """How the variant's scouts are trained, as fields of a `Scouting`."""
        by = self.row(variant).scouts_by
        return {"optimizer": by, "learning_rate": factor * usual_rate(by, self.scout_learning_rate)}

    def images(self, variant: Any) -> Dataset:
        return load(self.dataset)

    def n_of(self, job: Job) -> int:
        """How many episodes."""
        return self.n_episodes if job.purpose == "test" else self.n_tuning_episodes

    def has_factor(self, variant: Any) -> bool:
        return bool(self.row(variant).prepare or self.row(variant).guide)

    def settings(self, variant: Any) -> list[PreparationSetting]:
        factors = self.preparation_factors if self.has_factor(variant) else (1.0,)
        rates = self.learning_rates if self.row(variant).has_rate else (0.0,)
        return [PreparationSetting(*pair) for pair in product(factors, rates)]

    def preparations(self) -> list[Step]:
        pairs = product(self.variants(), self.seeds())
        steps = [self.step(seed, v, setting.factor) for v, seed in pairs for setting in self.settings(v)]
        return list(dict.fromkeys(filter(None, steps)))

    def start(self, folder: Path, seed: int, variant: Any, factor: float) -> Start:
        """What a variant brings to new tasks, from the files of its preparation."""
        step = self.step(seed, variant, factor)
        if isinstance(step, MetaTraining):
            return step.start(folder, variant.n_way, self.heads[0])
        if isinstance(step, ScoutingStep):
            displacement = step.displacement(folder)
            return Start(zero_point_of(displacement), displacement=displacement)
        model = self.network(seed, variant.n_way)
        if step:
            model.body.load_state_dict(step.body(folder))
        return Start(model)


def tune_and_test_episodes(p: PreparedParameters, folder: Path) -> tuple[list[Row], list[tuple[Job, Any]]]:
    """`tune_and_test`, from the preparations in ``folder``: the best setting of a variant is tested.

    Returns the tuning record (``validation``, the mean accuracy over the tuning episodes), and for every test job its
    accuracy on every episode and the seconds that adapting to one and answering its queries took, on average.
    """
    start, variants = cache(partial(p.start, folder)), p.variants()  # what is read once serves all learning rates
    return tune_and_test(
        p,
        variants,
        p.settings,
        start=lambda job: start(job.seed, job.variant, job.setting.factor),
        measure=_measure,
        record=lambda job, result: [job.row("validation", result[0].mean(), task="")],
        choose=partial(best_to_test, variant=type(variants[0]), setting=PreparationSetting),
    )


def episode_rows(job: Job, accuracies: np.ndarray, step: Step | None) -> list[Row]:
    """Those of `accuracy_rows`, and ``preparation_passes``, network passes before any task (`experiments.costs`), of
    which ``step`` was the last."""
    passes = job.row("preparation_passes", step.total_cost() if step else 0, task="")
    return [*accuracy_rows(job, accuracies), passes]


def _measure(job: Job, start: Start) -> tuple[np.ndarray, float]:
    v, p = job.variant, job.parameters
    images, accuracies, seconds = p.images(v), [], 0.0
    # The same for every method and setting: differences between methods are paired.
    classes, shape = split_classes(images, job.seed)[job.purpose], (v.n_way, v.n_shot, p.n_query)
    for numbers in groups(range(p.n_of(job)), max(1, SIDE_BY_SIDE // (v.n_way * v.n_shot))):
        draws = [rng(job.seed, job.purpose, i) for i in numbers]
        some = [sample_episode(images.examples, classes, *shape, draw) for draw in draws]
        support, targets = side_by_side([episode.support for episode in some])
        targets = p.taught(job, targets, numbers)
        queries, answers = side_by_side([episode.query for episode in some])
        begin = time.perf_counter()
        predict = p.row(v).adapt(start, support, targets, job.setting.learning_rate, p)
        with torch.no_grad():
            right = (predict(queries).argmax(-1) == answers).float()
        seconds += time.perf_counter() - begin
        accuracies.append(right.mean(0))
    return torch.cat(accuracies).numpy(), seconds / p.n_of(job)


def rank_episodes(
    frame: pd.DataFrame, conditions: Sequence[str], variants: Sequence[str], guides: Sequence[str] = SCOPES
) -> pd.DataFrame:
    """`rank` for each of ``conditions`` and kind of task, which ``task`` names, of each of ``variants`` and method.

    guides: the methods that are guidance and nothing else.
    """
    conditions, variants = [*conditions, "n_way", "n_shot"], [*variants, "method"]
    test, tuning = (frame[frame["metric"] == metric] for metric in ("accuracy", "validation"))
    table = rank(test, tuning, conditions, variants, lambda variant: variant["method"] in guides)
    table.insert(0, "task", [str(Task(*task)) for task in table[["n_way", "n_shot"]].itertuples(index=False)])
    return table

"""What else can be learned before a task: zero points without labels, augmentations, examples' weights, networks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines.few_shot import Start
from experiments.baselines.reweighting import mislabelled
from experiments.data import N_DRAWERS
from experiments.e12_learned_everything.methods import (
    AT_EVERY_ZERO_POINT,
    CLUSTERS,
    GUIDES,
    METHODS,
    SEARCHED,
    UNLABELLED,
    WITH_WRONG_LABELS,
    ZERO_POINTS,
)
from experiments.e12_learned_everything.preparations import LearnedScouting, LearnedTraining
from experiments.episodes import Task
from experiments.few_shot import PreparedParameters, episode_rows, rank_episodes, tune_and_test_episodes
from experiments.methods import NETWORK, PLAIN, Method
from experiments.parameters import Count, Distinct, Rate, Some, or_all
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.steps import Step, made
from experiments.protocol import Job
from experiments.ranking import sides
from experiments.statistics import difference, rows_where, tally
from gtl_core.tasks import rng

Point = Literal[*ZERO_POINTS]
Share = Annotated[float, Field(gt=0, lt=1)]
SUPERVISED = "supervised"


class LearnedVariant(NamedTuple):
    """A row of `METHODS` for one kind of task, from one zero point; ``wrong``: the share of wrong labels."""

    zero_point: Point
    wrong: float
    n_way: int
    n_shot: int
    method: str


class LearnedEverythingParameters(PreparedParameters):
    """See the notebook's parameter cell for what each one means."""

    zero_points: Some[Point]
    methods: Annotated[Some[Literal[*METHODS]], or_all(METHODS)]
    wrong: Distinct[Share]
    passes: Count
    preparation_rate: Rate
    inner_rate: Rate

    def variants(self) -> list[LearnedVariant]:
        """All methods from the first zero point, some from the others; and some with wrong labels, in the last kind of
        task."""
        tasks, first = [Task.parse(task) for task in self.tasks], self.zero_points[0]
        chosen = [(point, 0.0, task, m) for point in self.zero_points for task in tasks for m in self.methods]
        chosen = [row for row in chosen if row[0] == first or row[3] in AT_EVERY_ZERO_POINT]
        noisy = [m for m in self.methods if m in WITH_WRONG_LABELS]
        chosen += [(first, wrong, tasks[-1], m) for wrong in self.wrong for m in noisy]
        return [LearnedVariant(point, wrong, *task, m) for point, wrong, task, m in chosen]

    def row(self, variant: LearnedVariant) -> Method:
        return METHODS[variant.method]

    def has_factor(self, variant: LearnedVariant) -> bool:
        return variant.method in SEARCHED or super().has_factor(variant)

    def taught(self, job: Job, labels: Tensor, numbers: Sequence[int]) -> Tensor:
        """With the variant's share of them wrong, the same ones for every method."""
        v = job.variant
        draws = [rng(job.seed, job.purpose, i, "wrong labels") for i in numbers]
        return torch.stack([mislabelled(labels[:, 0], v.n_way, v.wrong, draw) for draw in draws], 1)

    def pretraining(self, seed: int, labelled: bool = True) -> Pretraining:
        return self.scouting(seed, "pretrained" if labelled else "random", self.heads[0], 2).pretraining

    def training(self, seed: int, variant: LearnedVariant, method: str, factor: float = 1.0) -> LearnedTraining:
        """Of one of the `LEARNINGS`; where there are no labels, with the budget of pretraining, too."""
        unlabelled = method in UNLABELLED
        return LearnedTraining(
            pretraining=self.pretraining(seed, not unlabelled),
            method=method,
            n_way=variant.n_way,
            head=self.heads[0],
            n_shot=1 if unlabelled else variant.n_shot,
            n_query=min(5, N_DRAWERS - variant.n_shot),
            n_tasks=self.n_scouts,
            task_n_shot=self.scout_n_shot,
            passes=self.passes + (self.pretraining(seed).cost() if unlabelled else 0),
            learning_rate=factor * self.preparation_rate,
            inner_rate=self.inner_rate,
            inner_steps=1,
        )

    def zero_point(self, seed: int, variant: LearnedVariant) -> Pretraining | LearnedTraining:
        if variant.zero_point == SUPERVISED:
            return self.pretraining(seed)
        return self.training(seed, variant, variant.zero_point)

    def step(self, seed: int, variant: LearnedVariant, factor: float) -> Step:
        row = self.row(variant)
        if row.prepare:
            return self.training(seed, variant, row.prepare.name, factor)
        if not row.guide:
            return self.zero_point(seed, variant)
        by = self.scout_training(variant, factor)
        return LearnedScouting(
            zero_point=self.zero_point(seed, variant),
            scouting=self.scouting(seed, "pretrained", self.heads[0], variant.n_way, **by),
            labels="clusters" if variant.method == CLUSTERS.name else "classes",
            wrong=variant.wrong,
        )

    def network(self, seed: int, n_way: int) -> nn.Sequential:
        return self.scouting(seed, "pretrained", self.heads[0], n_way).zero_point(None)

    def start(self, folder: Path, seed: int, variant: LearnedVariant, factor: float) -> Start:
        if variant.method in SEARCHED:
            model = super().start(folder, seed, variant, 1.0).model
            return Start(model, {"magnitude": torch.tensor(factor)})
        if self.row(variant).prepare or self.row(variant).guide:
            return super().start(folder, seed, variant, factor)
        body = self.zero_point(seed, variant).body(folder)  # with a new head, wherever it comes from
        return Start(self.scouting(seed, "pretrained", self.heads[0], variant.n_way).zero_point(body))


def run(p: LearnedEverythingParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `LearnedVariant`, those of `PreparationSetting`, task, metric, value. Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: of test episodes (task; see `accuracy_rows`);
    - ``preparation_passes``, ``adaptation_passes``: network passes before any task, and of one (`experiments.costs`).
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = tune_and_test_episodes(p, folder)
    for job, (accuracies, _) in tested:
        v = job.variant
        rows += episode_rows(job, accuracies, p.step(job.seed, v, job.setting.factor))
        passes = p.row(v).passes(p.network(job.seed, v.n_way), v.n_way * v.n_shot, p)
        rows.append(job.row("adaptation_passes", passes, task=""))
    return pd.DataFrame(rows)


def ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method from the first zero point with right labels, best first for each kind of task; see `rank`."""
    there = rows_where(frame, zero_point=frame["zero_point"].iloc[0], wrong=0.0)
    table = rank_episodes(there, [], ["zero_point"], GUIDES)
    return table.assign(guided=table["guided"].str[-1])


def at_zero_points(frame: pd.DataFrame) -> pd.DataFrame:
    """For each kind of task and zero point: guided minus plain, minus its control, and minus guided without labels.

    Columns: task, zero_point, rival, and those of `statistics.difference`.
    """
    return _guided_minus(rows_where(frame, wrong=0.0), ["n_way", "n_shot", "zero_point"], [PLAIN.name, *EXTRA])


EXTRA = ("uniform", CLUSTERS.name)


def with_wrong_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """For each share of wrong labels: guided minus every other method, as `at_zero_points`."""
    last = frame[frame["wrong"] > 0]
    if last.empty:
        return pd.DataFrame()
    there = frame[frame["zero_point"] == last["zero_point"].iloc[0]]
    there = there[(there["n_way"] == last["n_way"].iloc[0]) & (there["n_shot"] == last["n_shot"].iloc[0])]
    return _guided_minus(there, ["n_way", "n_shot", "wrong"], [m for m in WITH_WRONG_LABELS if m != NETWORK.name])


def _guided_minus(frame: pd.DataFrame, condition: list[str], rivals: Sequence[str]) -> pd.DataFrame:
    rows = []
    for key, there in frame[frame["metric"] == "accuracy"].groupby(condition, sort=False):
        mine = there[there["method"] == NETWORK.name]
        for rival in rivals:
            if len(mine) and len(other := there[there["method"] == rival]):
                where = dict(zip(condition, key, strict=True))
                where = {"task": str(Task(where.pop("n_way"), where.pop("n_shot")))} | where
                rows.append(where | {"rival": rival} | difference(mine, other, "episodes"))
    return pd.DataFrame(rows)


def verdict(frame: pd.DataFrame) -> str:
    """In words: who is best in each kind of task, who is above and below guidance; what labels, zero points and wrong
    labels change."""
    lines = []
    for task, ranked in ranking(frame).groupby("task", sort=False):
        best = ranked.iloc[0]
        lines.append(f"{task}: best is {best['method']} with {best['accuracy']:.3f}.")
        if not pd.isna(best["guided"]):
            others = ranked[~ranked["method"].isin(GUIDES)]
            for what, group in sides(others).items():
                lines.append(f"  {what}: {', '.join(group['method']) or 'none'}.")
    by_point = at_zero_points(frame)
    for rival, rows in by_point.groupby("rival", sort=False) if len(by_point) else ():
        lines.append(f"Guided minus {rival}: {tally(rows['side'], 'zero points and kinds of task')}.")
    noisy = with_wrong_labels(frame)
    for row in noisy.itertuples() if len(noisy) else ():
        lines.append(f"{row.wrong:.0%} wrong labels, guided minus {row.rival}: {row.text}.")
    return "\n".join(lines)

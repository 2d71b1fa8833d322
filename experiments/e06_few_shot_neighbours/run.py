"""Few-shot learning with everything one could have used instead: accuracy, and what it costs to get there."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
from pydantic import AfterValidator, model_validator
from torch import nn

from experiments import costs
from experiments.data import N_DRAWERS
from experiments.episodes import EpisodeCount, Task
from experiments.few_shot import SCOPES, PreparedParameters, episode_rows, rank_episodes, tune_and_test_episodes
from experiments.images import ZeroPoint
from experiments.methods import SCRATCH
from experiments.models import conv4
from experiments.neighbours import LEARNING, NEIGHBOURS
from experiments.parameters import AnySplit, Count, Distinct, Rate, Some, or_all
from experiments.preparations.meta_training import Backbone, MetaTraining, network
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.protocol import Job
from experiments.ranking import sides
from gtl_core.files import read_safetensors
from gtl_core.tasks import rng

# 5-way 1-shot on Omniglot, each with its own network: Finn et al. 2017, Nichol et al. 2018, Snell et al. 2017.
PUBLISHED = {"maml": 0.987, "reptile": 0.977, "prototypical": 0.988}


def _among(value: str, known: Collection[str]) -> str:
    if value not in known:
        raise ValueError(f"must be among {', '.join(known)}")
    return value


Neighbour = Annotated[str, AfterValidator(partial(_among, known=NEIGHBOURS))]


class FewShotVariant(NamedTuple):
    """A method for one kind of task; ``zero_point`` is what its preparation starts from."""

    zero_point: ZeroPoint
    n_way: int
    n_shot: int
    method: str


class FewShotNeighboursParameters(PreparedParameters):
    """See the notebook's parameter cell for what each one means."""

    dataset: AnySplit
    methods: Annotated[Some[Neighbour], or_all(NEIGHBOURS)]
    other_methods: Annotated[Distinct[Neighbour], or_all(NEIGHBOURS)]
    random_starts: Distinct[Annotated[str, AfterValidator(partial(_among, known=LEARNING))]]
    n_other_episodes: EpisodeCount
    n_other_tuning_episodes: Count
    backbone: Backbone
    passes: Count
    preparation_rate: Rate
    inner_rate: Rate
    inner_steps: Count
    test_steps: Count

    @model_validator(mode="after")
    def _one_start(self) -> FewShotNeighboursParameters:
        others = [method for method in (*self.methods, *self.other_methods) if method != SCRATCH.name]
        if others and self.backbone != "conv4":
            raise ValueError(f"methods: {others[0]} starts from a pretrained conv4, backbone = {self.backbone!r}")
        return self

    def variants(self) -> list[FewShotVariant]:
        """All methods for the first kind of task, some for the others; some also prepared from a random network."""
        first, *others = (Task.parse(task) for task in self.tasks)
        chosen = [(first, method) for method in self.methods]
        chosen += [(task, method) for task in others for method in self.other_methods]
        variants = [FewShotVariant("random" if m == SCRATCH.name else "pretrained", *task, m) for task, m in chosen]
        return variants + [FewShotVariant("random", *first, method) for method in self.random_starts]

    def pretraining(self, seed: int, zero_point: ZeroPoint = "pretrained") -> Pretraining:
        return self.scouting(seed, zero_point, self.heads[0], 2).pretraining

    def step(self, seed: int, variant: FewShotVariant, factor: float) -> Step | None:
        """The last step of a variant's preparation, with its learning rate times ``factor``; None: a random network."""
        pretraining, row = self.pretraining(seed, variant.zero_point), NEIGHBOURS[variant.method]
        training = self._training(pretraining, seed, variant, factor) if row.prepare else None
        if row.guide:
            by = self.scout_training(variant, factor)
            scouting = self.scouting(seed, variant.zero_point, self.heads[0], variant.n_way, **by)
            return ScoutingFrom(zero_point=training, scouting=scouting) if training else scouting
        return training or (pretraining if pretraining.epochs else None)

    def _training(self, pretraining: Pretraining, seed: int, variant: FewShotVariant, factor: float) -> MetaTraining:
        extra = 0 if pretraining.epochs else self.pretraining(seed).cost()
        return MetaTraining(
            pretraining=pretraining,
            backbone=self.backbone,
            method=NEIGHBOURS[variant.method].prepare.name,
            n_way=variant.n_way,
            head=self.heads[0],
            n_shot=variant.n_shot,
            n_query=min(5, N_DRAWERS - variant.n_shot),
            n_tasks=self.n_scouts,
            task_n_shot=self.scout_n_shot,
            passes=self.passes + extra,
            learning_rate=factor * self.preparation_rate,
            inner_rate=self.inner_rate,
            inner_steps=self.inner_steps,
        )

    def network(self, seed: int, n_way: int) -> nn.Sequential:
        return network(self.pretraining(seed), self.backbone, n_way, self.heads[0])

    def n_of(self, job: Job) -> int:
        """How many episodes: of the other kinds of task fewer are enough."""
        if job.variant[1:3] == Task.parse(self.tasks[0]):
            return super().n_of(job)
        return self.n_other_episodes if job.purpose == "test" else self.n_other_tuning_episodes


def run(p: FewShotNeighboursParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `FewShotVariant`, those of `PreparationSetting`, task, metric, value.
    Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: of test episodes (task; see `accuracy_rows`);
    - ``preparation_passes``, ``adaptation_passes``: what the method cost before any task, and costs per task, in
      network passes (`experiments.costs`);
    - ``preparation_seconds``, ``adaptation_seconds``: the same by the clock, with answering the queries; see
      `records.split`.
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = tune_and_test_episodes(p, folder)
        per_pass = costs.seconds_per_pass(conv4(5, p.channels, generator=rng(0)), 64)
        for job, (accuracies, seconds) in tested:
            step = p.step(job.seed, job.variant, job.setting.factor)
            spent = {
                "adaptation_passes": adaptation_passes(p, job.variant),
                "preparation_seconds": _seconds(step, folder, per_pass) if step else 0.0,
                "adaptation_seconds": seconds,
            }
            rows += episode_rows(job, accuracies, step)
            rows += [job.row(metric, value, task="") for metric, value in spent.items()]
    return pd.DataFrame(rows)


def adaptation_passes(p: FewShotNeighboursParameters, variant: FewShotVariant) -> float:
    """Of one task, in network passes."""
    model = p.network(0, variant.n_way)
    return NEIGHBOURS[variant.method].passes(model, variant.n_way * variant.n_shot, p)


def _seconds(step: Step, folder: Path, per_pass: float) -> float:
    """Of a preparation and all that it needs: measured where it is recorded, else the passes' price on this machine."""
    recorded = read_safetensors(step.path(folder))[1].get("seconds")
    own = per_pass * step.cost() if recorded is None else recorded
    return own + sum(_seconds(need, folder, per_pass) for need in step.needs())


def ranking(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every variant with its accuracy and costs, best first in each kind of task.

    ``guided`` is the better of the two scopes on the validation episodes, ``difference`` that one minus the variant,
    paired over the same episodes, with its 95 % interval from ``low`` to ``high``.
    """
    key = ["n_way", "n_shot", "zero_point", "method"]
    table = rank_episodes(frame, [], ["zero_point"])
    table["guided"] = table["guided"].str[-1]
    for costs_of in (frame, seconds):
        if costs_of is not None:
            spent = costs_of[costs_of["metric"].str.contains("preparation_|adaptation_")]
            table = table.merge(spent.pivot_table(index=key, columns="metric", values="value").reset_index(), on=key)
    table.insert(0, "rank", table.groupby("task")["accuracy"].rank(ascending=False, method="min").astype(int))
    return table.drop(columns=key[:2])


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each kind of task who is best, and who is above and below guidance, if it took part."""
    lines = []
    for task, ranked in ranking(frame).groupby("task", sort=False):
        first = ranked.iloc[0]
        lines.append(f"{task}: best is {_called(first)} with {first['accuracy']:.3f}.")
        if pd.isna(first["guided"]):
            continue
        mine = ranked[ranked["method"] == first["guided"]].iloc[0]
        lines.append(f"  {mine['method']} ranks {mine['rank']} of {len(ranked)} with {mine['accuracy']:.3f}.")
        groups = sides(ranked[~ranked["method"].isin(SCOPES)])
        above = groups["above it"]
        groups["above it with no more passes to prepare"] = above[
            above["preparation_passes"] <= mine["preparation_passes"]
        ]
        for what, group in groups.items():
            lines.append(f"  {what}: {', '.join(map(_called, group.to_dict('records'))) or 'none'}.")
    return "\n".join(lines)


def against_published(frame: pd.DataFrame) -> pd.DataFrame:
    """What was found for the methods in `PUBLISHED`, from a random network, beside the published accuracy."""
    table = ranking(frame)
    table = table[(table["task"] == "5-way 1-shot") & (table["zero_point"] == "random")]
    table = table[table["method"].isin(PUBLISHED)]
    columns = ["method", "accuracy", "accuracy_low", "accuracy_high", "preparation_passes"]
    return table[columns].assign(published=table["method"].map(PUBLISHED)).reset_index(drop=True)


def _called(row) -> str:
    plain = row["zero_point"] == "pretrained" or row["method"] == SCRATCH.name
    return row["method"] if plain else f"{row['method']} (no pretraining)"

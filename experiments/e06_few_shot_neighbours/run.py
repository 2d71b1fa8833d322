"""Few-shot learning with everything one could have used instead: accuracy, and what it costs to get there."""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from experiments import costs
from experiments.baselines.few_shot import Start
from experiments.data import N_DRAWERS, load
from experiments.episodes import GROUP, EpisodeCount, EpisodeParameters, Task
from experiments.few_shot import PreparationSetting, episodes_of, learn_episodes
from experiments.images import ZeroPoint, zero_point_of
from experiments.methods import NETWORK, SCRATCH, TENSOR
from experiments.models import conv4
from experiments.neighbours import LEARNING, NEIGHBOURS
from experiments.parameters import Count, Head, Rate, distinct
from experiments.preparations.meta_training import Backbone, MetaTraining, network
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.protocol import Job, best_to_test, tune_and_test
from experiments.ranking import rank, sides
from gtl_core.files import read_safetensors
from gtl_core.tasks import rng

# With the standard backbone, on Omniglot, for 5-way 1-shot: Finn et al. 2017, Nichol et al. 2018, Snell et al. 2017.
PUBLISHED = {"maml": 0.987, "reptile": 0.977, "prototypical": 0.988}
SCOPES = (TENSOR.name, NETWORK.name)


class FewShotVariant(NamedTuple):
    """A method for one kind of task; ``zero_point`` is what its preparation starts from."""

    zero_point: ZeroPoint
    n_way: int
    n_shot: int
    method: str


class FewShotNeighboursParameters(EpisodeParameters):
    """See the notebook's parameter cell for what each one means."""

    heads: tuple[Head, ...] = Field(min_length=1, max_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    other_methods: tuple[str, ...]
    random_starts: tuple[str, ...]
    n_other_episodes: EpisodeCount
    n_other_tuning_episodes: Count
    backbone: Backbone
    passes: Count
    preparation_factors: tuple[Rate, ...] = Field(min_length=1)
    preparation_rate: Rate
    inner_rate: Rate
    inner_steps: Count
    test_steps: Count

    @field_validator("methods", "other_methods", "random_starts", "preparation_factors")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @field_validator("methods", "other_methods")
    @classmethod
    def _methods(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(NEIGHBOURS) if values == ("all",) else _known(values, NEIGHBOURS)

    @field_validator("random_starts")
    @classmethod
    def _random_starts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _known(values, LEARNING)

    @model_validator(mode="after")
    def _one_start(self) -> FewShotNeighboursParameters:
        if self.backbone != "conv4":
            for method in (*self.methods, *self.other_methods):
                if method != SCRATCH.name:
                    raise ValueError(f"methods: {method} starts from a pretrained conv4, backbone = {self.backbone!r}")
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
            scouting = self.scouting(seed, variant.zero_point, self.heads[0], variant.n_way)
            scouting = scouting.model_copy(update={"learning_rate": factor * self.scout_learning_rate})
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

    def settings(self, variant: FewShotVariant) -> list[PreparationSetting]:
        row = NEIGHBOURS[variant.method]
        factors = self.preparation_factors if row.prepare or row.guide else (1.0,)
        return [PreparationSetting(*pair) for pair in product(factors, self.learning_rates if row.has_rate else (0.0,))]

    def preparations(self) -> list[Step]:
        steps = [
            self.step(seed, variant, setting.factor)
            for variant, seed in product(self.variants(), self.seeds())
            for setting in self.settings(variant)
        ]
        return list(dict.fromkeys(step for step in steps if step))

    def n_of(self, job: Job) -> int:
        """How many episodes: of the other kinds of task fewer are enough."""
        first = job.variant[1:3] == Task.parse(self.tasks[0])
        if job.purpose == "validation":
            return self.n_tuning_episodes if first else self.n_other_tuning_episodes
        return self.n_episodes if first else self.n_other_episodes


def run(p: FewShotNeighboursParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `FewShotVariant`, those of `PreparationSetting`, task, metric, value.
    Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: over each group of ``GROUP`` test episodes (task);
    - ``preparation_passes``, ``adaptation_passes``: what the method cost before any task, and costs per task, in
      network passes (`experiments.costs`);
    - ``preparation_seconds``, ``adaptation_seconds``: the same by the clock, with answering the queries; see
      `records.split`.
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = tune_and_test(
            p,
            p.variants(),
            settings=p.settings,
            start=cache_by_step(p, folder),
            measure=_measure,
            validation=lambda result: {"validation": result[0].mean()},
            choose=partial(best_to_test, variant=FewShotVariant, setting=PreparationSetting),
        )
        per_pass = costs.seconds_per_pass(conv4(5, p.channels, generator=rng(0)), 64)
        for job, (scores, seconds) in tested:
            for task, of_group in enumerate(scores.reshape(-1, GROUP)):
                rows.append(job.row("accuracy", of_group.mean(), task=task))
            step = p.step(job.seed, job.variant, job.setting.factor)
            spent = {
                "preparation_passes": step.total_cost() if step else 0,
                "adaptation_passes": adaptation_passes(p, job.variant),
                "preparation_seconds": _seconds(step, folder, per_pass) if step else 0.0,
                "adaptation_seconds": seconds,
            }
            rows += [job.row(metric, value, task="") for metric, value in spent.items()]
    return pd.DataFrame(rows)


def cache_by_step(p: FewShotNeighboursParameters, folder: Path):
    """What a job starts from, read once for all jobs that start alike."""
    start = cache(partial(start_of, p, folder))
    return lambda job: start(job.seed, job.variant, job.setting.factor)


def start_of(p: FewShotNeighboursParameters, folder: Path, seed: int, variant: FewShotVariant, factor: float) -> Start:
    """What a variant brings to new tasks, from the files of its preparation."""
    step = p.step(seed, variant, factor)
    if isinstance(step, MetaTraining):
        return step.start(folder, variant.n_way, p.heads[0])
    if step is None or isinstance(step, Pretraining):
        model = network(p.pretraining(seed, variant.zero_point), p.backbone, variant.n_way, p.heads[0])
        if step:
            model.body.load_state_dict(step.body(folder))
        return Start(model)
    displacement = step.displacement(folder)
    return Start(zero_point_of(displacement), displacement=displacement)


def _measure(job: Job, start: Start) -> tuple[np.ndarray, float]:
    """Accuracy on every episode, and seconds for one."""
    p = job.parameters
    episodes = episodes_of(job, load(p.dataset), p.n_of(job))
    return learn_episodes(NEIGHBOURS[job.variant.method], start, episodes, job.setting.learning_rate, p)


def adaptation_passes(p: FewShotNeighboursParameters, variant: FewShotVariant) -> float:
    """Of one task, in network passes."""
    model = network(p.pretraining(0), p.backbone, variant.n_way, p.heads[0])
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
    test, tuning = (frame[frame["metric"] == metric] for metric in ("accuracy", "validation"))
    key = ["n_way", "n_shot", "zero_point", "method"]
    table = rank(test, tuning, key[:2], key[2:], lambda v: v["method"] in SCOPES, GROUP)
    table["guided"] = table["guided"].str[-1]
    for costs_of in (frame, seconds):
        if costs_of is not None:
            spent = costs_of[costs_of["metric"].str.contains("preparation_|adaptation_")]
            table = table.merge(spent.pivot_table(index=key, columns="metric", values="value").reset_index(), on=key)
    table.insert(0, "task", [str(Task(*task)) for task in table[key[:2]].itertuples(index=False)])
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


def _known(values: tuple[str, ...], known: Container[str] | Iterable[str]) -> tuple[str, ...]:
    for value in values:
        if value not in known:
            raise ValueError(f"{value!r}: must be among {', '.join(known)}")
    return values

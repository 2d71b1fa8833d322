"""When the new tasks look different from what was pretrained on: adapt the features, guide the training, or neither."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from experiments.baselines.few_shot import Start
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e08_domain_shift.methods import BY_KEY, METHODS, STRENGTH, Alignment, Scouts
from experiments.episodes import GROUP, EpisodeParameters, Task
from experiments.few_shot import PreparationSetting, episodes_of, learn_episodes
from experiments.images import zero_point_of
from experiments.neighbours import NEIGHBOURS
from experiments.parameters import Dataset, Head, Rate, distinct
from experiments.preparations.domain_training import DomainTraining, shifted
from experiments.preparations.pretraining import HELD_OUT_DRAWERS, Pretraining, zero_point
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.protocol import Job, best_to_test, tune_and_test
from experiments.ranking import rank, sides

Target = Literal["as_is", "inverted"]


class ShiftVariant(NamedTuple):
    """A row of `METHODS` for one kind of task."""

    target: Target
    n_way: int
    n_shot: int
    alignment: Alignment
    scouts: Scouts
    method: str


class DomainShiftParameters(EpisodeParameters):
    """See the notebook's parameter cell for what each one means."""

    source: Dataset
    targets: tuple[Target, ...] = Field(min_length=1)
    heads: tuple[Head, ...] = Field(min_length=1, max_length=1)
    preparation_factors: tuple[Rate, ...] = Field(min_length=1)

    @field_validator("targets", "preparation_factors")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @model_validator(mode="after")
    def _really_shifted(self) -> DomainShiftParameters:
        if self.source == self.dataset and "as_is" in self.targets:
            raise ValueError(f"targets: {self.dataset} as it is does not differ from the source")
        return self

    def variants(self) -> list[ShiftVariant]:
        tasks = [Task.parse(task) for task in self.tasks]
        return [ShiftVariant(t, *task, *row.key) for t, task, row in product(self.targets, tasks, METHODS.values())]

    def untrained(self, seed: int) -> Pretraining:
        """The network that pretraining on the source begins with."""
        return Pretraining(dataset=self.source, seed=seed, channels=self.channels, epochs=0)

    def step(self, seed: int, variant: ShiftVariant, factor: float) -> Step | None:
        """The last step of a variant's preparation, with the strength of its alignment, or its scouts' learning rate,
        times ``factor``; None where nothing is prepared."""
        if variant.method == "scratch":
            return None
        source = load(self.source)
        n_images = len(split_classes(source, seed)["pretraining"]) * (source.examples.shape[1] - HELD_OUT_DRAWERS)
        training = DomainTraining(
            source=self.source,
            target=self.dataset,
            inverted=variant.target == "inverted",
            seed=seed,
            channels=self.channels,
            alignment=variant.alignment,
            strength=factor * STRENGTH[variant.alignment],
            n_steps=max(1, self.pretraining_epochs * n_images // 64),
        )
        if variant.scouts == "none":
            return training
        rate = factor * self.scout_learning_rate
        scouting = self.scouting(seed, "random", self.heads[0], variant.n_way, learning_rate=rate)
        if variant.scouts == "source":
            scouting = scouting.model_copy(update={"pretraining": self.untrained(seed)})
        inverted = variant.scouts == "target" and variant.target == "inverted"
        return ScoutingFrom(zero_point=training, scouting=scouting, inverted=inverted)

    def settings(self, variant: ShiftVariant) -> list[PreparationSetting]:
        prepared = variant.scouts != "none" or variant.alignment != "none"
        rates = self.learning_rates if BY_KEY[variant[3:]].has_rate else (0.0,)
        return [PreparationSetting(*pair) for pair in product(self.preparation_factors if prepared else (1.0,), rates)]

    def preparations(self) -> list[Step]:
        steps = [
            self.step(seed, variant, setting.factor)
            for variant, seed in product(self.variants(), self.seeds())
            for setting in self.settings(variant)
        ]
        return list(dict.fromkeys(filter(None, steps)))


def run(p: DomainShiftParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `ShiftVariant`, factor, learning_rate, task, metric, value. Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: over each group of ``GROUP`` test episodes (task);
    - ``preparation_passes``: network passes before any task (`experiments.costs`).
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        start = cache(partial(_start, folder, p))  # read once for all learning rates
        rows, tested = tune_and_test(
            p,
            p.variants(),
            p.settings,
            start=lambda job: start(job.seed, job.variant, job.setting.factor),
            measure=_measure,
            validation=lambda accuracies: {"validation": accuracies.mean()},
            choose=partial(best_to_test, variant=ShiftVariant, setting=PreparationSetting),
        )
    for job, accuracies in tested:
        groups = enumerate(accuracies.reshape(-1, GROUP).mean(1))
        rows += [job.row("accuracy", accuracy, task=task) for task, accuracy in groups]
        step = p.step(job.seed, job.variant, job.setting.factor)
        rows.append(job.row("preparation_passes", step.total_cost() if step else 0, task=""))
    return pd.DataFrame(rows)


def _measure(job: Job, start: Start) -> np.ndarray:
    """Accuracy on every episode."""
    p = job.parameters
    n = p.n_episodes if job.purpose == "test" else p.n_tuning_episodes
    episodes = episodes_of(job, shifted(p.dataset, job.variant.target == "inverted"), n)
    return learn_episodes(NEIGHBOURS[job.variant.method], start, episodes, job.setting.learning_rate, p)[0]


def _start(folder: Path, p: DomainShiftParameters, seed: int, variant: ShiftVariant, factor: float) -> Start:
    """What a variant brings to new tasks, from the files of its preparation."""
    step = p.step(seed, variant, factor)
    if isinstance(step, ScoutingFrom):
        displacement = step.displacement(folder)
        return Start(zero_point_of(displacement), displacement=displacement)
    body = step.body(folder) if step else None
    return Start(zero_point(p.untrained(seed), variant.n_way, p.heads[0], body))


def ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Every variant, best first for each target and kind of task; see `rank`.

    ``name`` is that of its row in `METHODS`; ``guided`` that of the scope and scouts that were best on the validation
    episodes.
    """
    test, tuning = (frame[frame["metric"] == metric] for metric in ("accuracy", "validation"))
    conditions, variants = ["target", "n_way", "n_shot"], ["alignment", "scouts", "method"]
    table = rank(test, tuning, conditions, variants, lambda variant: variant["scouts"] != "none", GROUP)
    return table.assign(
        task=[str(Task(*task)) for task in zip(table["n_way"], table["n_shot"], strict=True)],
        name=[BY_KEY[key].name for key in zip(*(table[column] for column in variants), strict=True)],
        guided=[BY_KEY[key].name for key in table["guided"]],
    )


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each target and kind of task who is best, and who is above and below guidance."""
    lines = []
    for (target, task), there in ranking(frame).groupby(["target", "task"], sort=False):
        best, mine = there.iloc[0], there[there["name"] == there["guided"]].iloc[0]
        lines.append(f"{target}, {task}: best is {best['name']} with {best['accuracy']:.3f}.")
        lines.append(f"  {mine['name']} has {mine['accuracy']:.3f}.")
        for what, group in sides(there[there["scouts"] == "none"]).items():
            lines.append(f"  {what}: {'; '.join(group['name']) or 'none'}.")
    return "\n".join(lines)

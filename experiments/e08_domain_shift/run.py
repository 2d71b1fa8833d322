"""When the new tasks look different from what was pretrained on: adapt the features, guide the training, or neither."""

from __future__ import annotations

from itertools import product
from typing import Literal, NamedTuple

import pandas as pd
from pydantic import model_validator
from torch import nn

from experiments.data import Dataset as Images
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e08_domain_shift.methods import BY_KEY, METHODS, STRENGTH, Alignment, Scouts
from experiments.episodes import Task
from experiments.few_shot import PreparedParameters, episode_rows, rank_episodes, tune_and_test_episodes
from experiments.parameters import Dataset, Some
from experiments.preparations.domain_training import DomainTraining, shifted
from experiments.preparations.pretraining import HELD_OUT_DRAWERS, Pretraining, zero_point
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.ranking import sides

Target = Literal["as_is", "inverted"]


class ShiftVariant(NamedTuple):
    """A row of `METHODS` for one kind of task."""

    target: Target
    n_way: int
    n_shot: int
    alignment: Alignment
    scouts: Scouts
    method: str


class DomainShiftParameters(PreparedParameters):
    """See the notebook's parameter cell for what each one means."""

    source: Dataset
    targets: Some[Target]

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
        by = self.scout_training(variant, factor)
        scouting = self.scouting(seed, "random", self.heads[0], variant.n_way, **by)
        if variant.scouts == "source":
            scouting = scouting.model_copy(update={"pretraining": self.untrained(seed)})
        inverted = variant.scouts == "target" and variant.target == "inverted"
        return ScoutingFrom(zero_point=training, scouting=scouting, inverted=inverted)

    def network(self, seed: int, n_way: int) -> nn.Sequential:
        return zero_point(self.untrained(seed), n_way, self.heads[0])

    def images(self, variant: ShiftVariant) -> Images:
        return shifted(self.dataset, variant.target == "inverted")

    def has_factor(self, variant: ShiftVariant) -> bool:
        return variant.alignment != "none" or super().has_factor(variant)


def run(p: DomainShiftParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `ShiftVariant`, factor, learning_rate, task, metric, value. Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: of test episodes (task; see `accuracy_rows`);
    - ``preparation_passes``: network passes before any task (`experiments.costs`).
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = tune_and_test_episodes(p, folder)
    for job, (accuracies, _) in tested:
        rows += episode_rows(job, accuracies, p.step(job.seed, job.variant, job.setting.factor))
    return pd.DataFrame(rows)


def ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Every variant, best first for each target and kind of task; see `rank`.

    ``name`` is that of its row in `METHODS`; ``guided`` that of the scope and scouts that were best on the validation
    episodes.
    """
    variants = ["alignment", "scouts", "method"]
    table = rank_episodes(frame, ["target"], variants[:2])
    return table.assign(
        name=[BY_KEY[key].name for key in table[variants].itertuples(index=False, name=None)],
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

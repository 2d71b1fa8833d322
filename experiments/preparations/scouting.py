"""The displacement of scouts that were sent from a pretrained network, or from a zero point prepared in another way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from experiments.costs import TRAINING
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.optimizers import OptimizerName, recipe
from experiments.parameters import Count, Head, Rate
from experiments.preparations.pretraining import Body, Pretraining, zero_point
from experiments.preparations.steps import Step
from gtl_core.guide import Displacement
from gtl_core.scouting import scout
from gtl_core.tasks import labelled, rng, sample_episode
from gtl_core.training import Recipe

SIDE_BY_SIDE = 4  # scouts; another number changes the last digits of every result


class ScoutingStep(Step):
    """One that leaves a displacement."""

    def displacement(self, folder: Path) -> Displacement:
        """As `make` wrote it."""
        return Displacement.load(self.path(folder))


class Scouting(ScoutingStep):
    """Scouts sent from a pretrained body with a new head into small tasks of the scouting classes."""

    kind: Literal["scouting"] = "scouting"
    pretraining: Pretraining
    n_way: Annotated[int, Field(ge=2)]
    head: Head
    n_scouts: Count
    first_scout: Annotated[int, Field(ge=0)] = 0  # more scouts can be sent later, and their displacements added
    n_shot: Count
    epochs: Count
    learning_rate: Rate
    optimizer: OptimizerName = "sgd"

    def needs(self) -> list[Step]:
        return [self.pretraining]

    def make(self, folder: Path) -> None:
        self.scout(self.pretraining.body(folder)).save(self.path(folder))

    def cost(self) -> int:
        return TRAINING * self.n_scouts * self.epochs * self.n_way * self.n_shot

    def zero_point(self, body: Body) -> nn.Sequential:
        """The network that scouts and later training start from."""
        return zero_point(self.pretraining, self.n_way, self.head, body)

    def recipe(self) -> Recipe:
        """What each scout does."""
        return recipe(self.optimizer, self.learning_rate, self.epochs)

    def tasks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [N, 1, 28, 28] and labels [N] of each scout."""
        dataset, seed = load(self.pretraining.dataset), self.pretraining.seed
        classes = split_classes(dataset, seed)["scouting"]
        for i in range(self.first_scout, self.first_scout + self.n_scouts):
            yield labelled(
                sample_episode(dataset.examples, classes, self.n_way, self.n_shot, 0, rng(seed, "scout", i)).support
            )

    def scout(self, body: Body) -> Displacement:
        return scout(self.zero_point(body), self.tasks(), self.recipe(), side_by_side=SIDE_BY_SIDE)

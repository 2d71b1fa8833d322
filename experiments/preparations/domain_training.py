"""Pretraining on one domain with another one in view."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from experiments.baselines import domain
from experiments.baselines.few_shot import Prepared
from experiments.costs import TRAINING
from experiments.data import Dataset as Images
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import conv4
from experiments.parameters import Count, Dataset, Rate, Seed
from experiments.preparations.pretraining import HELD_OUT_DRAWERS, Body
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.tasks import labelled, rng, to_float


class DomainTraining(Step):
    """Pretraining on labelled source classes while features are made to suit the target's unlabelled images.

    These come from the target's pretraining and scouting classes, on which nothing is tested.
    """

    kind: Literal["domain_training"] = "domain_training"
    source: Dataset
    target: Dataset
    inverted: bool  # whether the target's images are white on black
    seed: Seed
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    alignment: Literal["none", "coral", "dann"]
    strength: Annotated[float, Field(ge=0)]  # of the alignment
    n_steps: Count
    batch_size: Count = 64
    learning_rate: Rate = 2e-3
    augmentation: Annotated[float, Field(ge=0)] = 0.1

    def cost(self) -> int:
        return TRAINING * self.n_steps * 2 * self.batch_size

    def train(self) -> Prepared:
        source, target = load(self.source), shifted(self.target, self.inverted)
        classes = split_classes(source, self.seed)["pretraining"]
        there = split_classes(target, self.seed)
        unlabelled = to_float(target.examples[torch.cat([there["pretraining"], there["scouting"]])]).flatten(0, 1)
        model = conv4(len(classes), self.channels, generator=rng(self.seed, "network"))
        return domain.pretrain_across(
            model,
            labelled(to_float(source.examples[classes])[:, HELD_OUT_DRAWERS:]),
            unlabelled,
            self._alignment(model.head.in_features),
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            augment=partial(random_affine, strength=self.augmentation, generator=rng(self.seed, "augmentation")),
            generator=rng(self.seed, "batches"),
        )

    def _alignment(self, n_features: int) -> domain.Alignment:
        if self.alignment == "dann":
            return domain.DANN(n_features, strength=self.strength, generator=rng(self.seed, "dann"))
        return partial(_coral, strength=self.strength) if self.alignment == "coral" else domain.no_alignment

    def make(self, folder: Path) -> None:
        prepared = self.train()
        metadata = {"parameters": self.model_dump(), "passes": prepared.passes, "seconds": prepared.seconds}
        write_safetensors(self.path(folder), dict(prepared.model.body.named_parameters()), metadata)

    def body(self, folder: Path) -> Body:
        """As `make` wrote it."""
        return read_safetensors(self.path(folder))[0]


@cache
def shifted(name: Dataset, inverted: bool) -> Images:
    """The dataset, or its negative."""
    dataset = load(name)
    return replace(dataset, images=255 - dataset.images) if inverted else dataset


def _coral(source: Tensor, target: Tensor, progress: float, *, strength: float) -> Tensor:
    return strength * domain.coral(source, target, progress)

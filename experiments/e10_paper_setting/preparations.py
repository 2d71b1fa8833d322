"""What is made before any character is seen: networks pretrained on digits, and scouts sent to a few digits each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.costs import TRAINING
from experiments.data import load
from experiments.models import cnn, conv4, new_head
from experiments.optimizers import SCOUT_RATES, OptimizerName, recipe
from experiments.parameters import Count, Rate, Seed
from experiments.preparations.pretraining import Body
from experiments.preparations.scouting import ScoutingStep
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.scouting import scout
from gtl_core.tasks import rng, to_float
from gtl_core.training import Recipe, accuracy, fit

NETWORKS = {"cnn": cnn, "conv4": conv4}

NetworkName = Literal[*NETWORKS]
Digits = Literal["digits", "mnist"]
ScoutHead = Literal["new", "pretrained"]


class DigitPretraining(Step):
    """Supervised training on all ten digits, by Adam in small batches."""

    kind: Literal["digit_pretraining"] = "digit_pretraining"
    dataset: Digits
    seed: Seed
    network: NetworkName
    channels: Count
    n_images: Annotated[int, Field(ge=10)]  # of the training images, equally many of every digit, as far as there are
    n_steps: Annotated[int, Field(ge=0)]  # 0 leaves the network as drawn
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def cost(self) -> int:
        return TRAINING * self.n_steps * self.batch_size

    def images(self) -> dict[int, Tensor]:
        """The training images of every digit, as stored, [n, 28, 28]: drawn from all of them, each seed its own."""
        images, labels = load(self.dataset).of_alphabet("train")
        order = torch.randperm(len(images), generator=rng(self.seed, "images"))
        by_digit = {digit: order[labels[order] == digit] for digit in range(10)}
        n = self.n_images // 10 if self.n_images < len(images) else len(images)
        return {digit: images[which[:n]] for digit, which in by_digit.items()}

    def train(self) -> nn.Sequential:
        """The network with a head for the ten digits."""
        model = NETWORKS[self.network](10, self.channels, generator=rng(self.seed, "network"))
        inputs, labels = digit_task(self.images())
        optimizer, generator = torch.optim.Adam(model.parameters(), lr=self.learning_rate), rng(self.seed, "batches")
        for _ in range(self.n_steps):
            batch = torch.randint(len(inputs), (self.batch_size,), generator=generator)
            fit(model, inputs[batch], labels[batch], optimizer, epochs=1)
        return model

    def make(self, folder: Path) -> None:
        model = self.train()
        images, labels = load(self.dataset).of_alphabet("test")
        held_out = accuracy(model, to_float(images), labels).item()
        write_safetensors(
            self.path(folder),
            dict(model.named_parameters()),
            {"parameters": self.model_dump(), "held_out_accuracy": held_out},
        )

    def model(self, folder: Path, n_way: int, head: str) -> nn.Sequential:
        """The zero point as `make` wrote it, with a new head; ``head = "pretrained"`` keeps that for the digits."""
        tensors = read_safetensors(self.path(folder))[0]
        model = NETWORKS[self.network](10, self.channels, generator=rng(self.seed, "network"))
        model.load_state_dict(tensors)
        if head != "pretrained":
            new_head(model, n_way, head, generator=rng(self.seed, "head", n_way))
        return model

    def body(self, folder: Path) -> Body:
        """Of the network that `make` wrote."""
        return dict(self.model(folder, 10, "pretrained").body.state_dict())


class DigitScouting(ScoutingStep):
    """Scouts from the pretrained network: one for each set of ``n_way`` digits, or for ``n_scouts`` of them."""

    kind: Literal["digit_scouting"] = "digit_scouting"
    pretraining: DigitPretraining
    n_way: Annotated[int, Field(ge=2, le=9)]
    n_scouts: Count
    head: ScoutHead  # a random one for each scout's digits, or the rows of the ten digits'
    optimizer: OptimizerName
    n_shot: Count  # images of each digit that a scout sees, where there are as many
    n_steps: Count
    batch_size: Count

    def needs(self) -> list[Step]:
        return [self.pretraining]

    def cost(self) -> int:
        return TRAINING * len(self.digits()) * self.n_steps * self.batch_size

    def digits(self) -> list[tuple[int, ...]]:
        """Of each scout."""
        every = list(combinations(range(10), self.n_way))
        if self.n_scouts >= len(every):
            return every
        order = torch.randperm(len(every), generator=rng(self.pretraining.seed, "scouts"))
        return [every[i] for i in sorted(order[: self.n_scouts].tolist())]

    def tasks(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.pretraining.images()
        for i, digits in enumerate(self.digits()):
            generator = rng(self.pretraining.seed, "scout", i)
            chosen = {d: images[d][torch.randperm(len(images[d]), generator=generator)[: self.n_shot]] for d in digits}
            inputs, labels = digit_task(chosen)
            yield inputs, torch.tensor(digits)[labels] if self.head == "pretrained" else labels

    def recipe(self, n_images: int) -> Recipe:
        """What a scout with so many images does."""
        epochs = -(-self.n_steps * self.batch_size // n_images)
        return recipe(self.optimizer, SCOUT_RATES[self.optimizer], epochs, self.batch_size)

    def make(self, folder: Path) -> None:
        model = self.pretraining.model(folder, self.n_way, "pretrained" if self.head == "pretrained" else "random")
        tasks = list(self.tasks())
        displacement = scout(model, tasks, self.recipe(len(tasks[0][0])))
        displacement.save(self.path(folder))


def digit_task(images: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs [N, 1, 28, 28] and labels [N], which count the digits from 0, of stored images by digit."""
    labels = torch.arange(len(images)).repeat_interleave(torch.tensor([len(some) for some in images.values()]))
    return to_float(torch.cat(list(images.values()))), labels

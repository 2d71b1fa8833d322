"""Zero points: networks pretrained on all pretraining classes at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.costs import TRAINING
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import conv4, new_head
from experiments.parameters import AnySplit, Count, Head, Rate, Seed
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.tasks import labelled, rng, to_float
from gtl_core.training import accuracy, fit

HELD_OUT_DRAWERS = 4
Body = dict[str, Tensor]  # the parameters of a network without its head


class Pretraining(Step):
    """Supervised training on all pretraining classes at once. ``epochs = 0`` leaves the network as drawn.

    Without augmentation the network knows its drawers by heart, and one-shot accuracy on new characters is ten points
    lower.
    """

    kind: Literal["pretraining"] = "pretraining"
    dataset: AnySplit
    seed: Seed
    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    epochs: Annotated[int, Field(ge=0)] = 15
    batch_size: Count = 64
    learning_rate: Rate = 2e-3
    augmentation: Annotated[float, Field(ge=0)] = 0.1  # see `random_affine`

    def cost(self) -> int:
        return TRAINING * self.epochs * self.images().shape[:2].numel()

    def train(self) -> tuple[nn.Sequential, float]:
        """The network with a head for the pretraining classes, and its accuracy there on held-out drawers."""
        model = self.fitted()
        return model, accuracy(model, *labelled(to_float(self.images(held_out=True)))).item()

    def fitted(self, make: Callable[..., nn.Sequential] = conv4) -> nn.Sequential:
        """The network, or another one that ``make`` makes in the place of `conv4`."""
        images = to_float(self.images())
        model = make(len(images), self.channels, generator=rng(self.seed, "network"))
        fit(
            model,
            *labelled(images),
            torch.optim.Adam(model.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            batch_size=self.batch_size,
            generator=rng(self.seed, "batches"),
            augment=partial(random_affine, strength=self.augmentation, generator=rng(self.seed, "augmentation")),
        )
        return model

    def make(self, folder: Path) -> None:
        model, held_out = self.train()
        metadata = {"parameters": self.model_dump(), "held_out_accuracy": held_out}
        write_safetensors(self.path(folder), dict(model.body.named_parameters()), metadata)

    def body(self, folder: Path) -> Body:
        """As `make` wrote it."""
        return read_safetensors(self.path(folder))[0]

    def images(self, held_out: bool = False) -> Tensor:
        """Of the pretraining classes, as stored: [n_classes, n_drawers, ...], those it trains on or the other ones."""
        dataset = load(self.dataset)
        drawers = slice(None, HELD_OUT_DRAWERS) if held_out else slice(HELD_OUT_DRAWERS, None)
        return dataset.examples[split_classes(dataset, self.seed)["pretraining"], drawers]


def zero_point(
    pretraining: Pretraining,
    n_way: int,
    head: Head,
    body: Body | None = None,
    make: Callable[..., nn.Sequential] = conv4,
) -> nn.Sequential:
    """A network for ``n_way`` classes with a new head and this ``body``; without it, as it is drawn."""
    model = make(n_way, pretraining.channels, generator=rng(pretraining.seed, "network"))
    if body is not None:
        model.body.load_state_dict(body)
    new_head(model, n_way, head, generator=rng(pretraining.seed, "head", n_way))
    return model

"""What the experiments on images share: their parameters, the zero points, and the methods that start from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from experiments.data import load
from experiments.data.splits import split_classes
from experiments.models import conv4
from experiments.parameters import Count, Dataset, Head, ParameterError, Rate, SeededParameters, distinct
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.steps import made
from gtl_core._engine.stacked import stack, stack_guide
from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.tasks import rng

N_DRAWERS = 20

ZeroPoint = Literal["pretrained", "random"]

# Plain fine-tuning of a random network is training from scratch.
METHODS = {
    "pretrained": ("frozen", "plain", "guided_tensor", "guided_network"),
    "random": ("frozen", "scratch", "guided_tensor", "guided_network"),
}


class ImageParameters(SeededParameters):
    """What is pretrained and scouted, and on what; see a notebook's parameter cell for what each one means."""

    dataset: Dataset
    heads: tuple[Head, ...] = Field(min_length=1)
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    pretraining_epochs: Count
    n_scouts: Count
    scout_n_shot: Annotated[int, Field(ge=1, le=N_DRAWERS)]
    scout_epochs: Count
    scout_learning_rate: Rate

    @field_validator("heads")
    @classmethod
    def _distinct_heads(cls, values: tuple) -> tuple:
        return distinct(values)

    def scouting(self, seed: int, zero_point: ZeroPoint, head: Head, n_way: int, **changes: int) -> Scouting:
        """What has to be scouted for tasks of ``n_way`` classes; ``changes`` replace fields of the `Scouting`."""
        epochs = self.pretraining_epochs if zero_point == "pretrained" else 0
        pretraining = Pretraining(dataset=self.dataset, seed=seed, channels=self.channels, epochs=epochs)
        settings = {
            "n_scouts": self.n_scouts,
            "n_shot": self.scout_n_shot,
            "epochs": self.scout_epochs,
            "learning_rate": self.scout_learning_rate,
        }
        return Scouting(pretraining=pretraining, n_way=n_way, head=head, **(settings | changes))

    def displacements(self) -> dict[Scouting, Displacement]:
        """Of every scouting among `preparations`."""
        scoutings = self.preparations()
        with made(scoutings, self.prepared, self.workers) as folder:
            return {scouting: scouting.displacement(folder) for scouting in scoutings}

    def check_ways(self, *n_ways: int) -> None:
        """Raise ParameterError if some purpose has fewer classes than these in this dataset."""
        dataset = load(self.dataset)
        for seed, n_way in product(self.seeds(), n_ways):
            for purpose, classes in split_classes(dataset, seed).items():
                if n_way > len(classes):
                    raise ParameterError(
                        f"n_way = {n_way}: at most {len(classes)}, the number of {purpose} classes of "
                        f"{self.dataset} (seed {seed})"
                    )


def start(
    displacement: Displacement, method: str, learning_rate: float, n_copies: int
) -> tuple[Callable[[Tensor], Tensor], nn.Module, torch.optim.Optimizer]:
    """A method at its zero point, once for each of ``n_copies`` tasks that are then trained side by side.

    Returns (see, model, optimizer). ``see`` maps images [N, n_copies, 1, 28, 28] to what ``model`` takes in their
    place: themselves, or, where the body is frozen, its features, computed once for all steps.
    """
    guide = displacement.guide(scope=method.removeprefix("guided_")) if method.startswith("guided_") else None
    return start_at(network(displacement), guide, learning_rate, n_copies, frozen=method == "frozen")


def start_at(
    zero_point: nn.Sequential, guide: Guide | None, learning_rate: float, n_copies: int, frozen: bool
) -> tuple[Callable[[Tensor], Tensor], nn.Module, torch.optim.Optimizer]:
    """As `start`, from any network with any guide, or none; ``frozen``: the head only."""
    if frozen:
        model, see = stack([zero_point.head] * n_copies), partial(_features, zero_point.body)
    else:
        model, see = stack([zero_point] * n_copies), _as_they_are
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    if guide is not None:
        optimizer = Guided(optimizer, model, stack_guide(guide, n_copies))
    return see, model, optimizer


def network(displacement: Displacement) -> nn.Sequential:
    """The `conv4` that scouts started from."""
    parameters = displacement.zero_point
    model = conv4(len(parameters["head.bias"]), len(parameters["body.0.bias"]), generator=rng(0))
    model.load_state_dict(parameters)
    return model


def _as_they_are(images: Tensor) -> Tensor:
    return images


@torch.no_grad()
def _features(body: nn.Module, images: Tensor) -> Tensor:
    return body(images.flatten(0, 1)).unflatten(0, images.shape[:2])

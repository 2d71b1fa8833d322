"""What the experiments on images share: their parameters, the zero points, and the methods that start from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.data import N_DRAWERS, load
from experiments.data.splits import split_classes
from experiments.methods import FROZEN, NETWORK, PLAIN, SCRATCH, TENSOR, Method
from experiments.models import conv4
from experiments.parameters import Count, Dataset, Head, ParameterError, Rate, Some, TunedParameters
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.steps import made
from gtl_core._engine.stacked import stack, stack_guide
from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.tasks import rng

ShotCount = Annotated[int, Field(ge=1, le=N_DRAWERS)]
ZeroPoint = Literal["pretrained", "random"]

# In the order of tables; legends follow `BASIC`. Plain fine-tuning of a random network is training from scratch.
METHODS = {
    zero_point: tuple(method.name for method in (FROZEN, fine_tuning, TENSOR, NETWORK))
    for zero_point, fine_tuning in (("pretrained", PLAIN), ("random", SCRATCH))
}


class ImageParameters(TunedParameters):
    """What is pretrained and scouted, and on what; see a notebook's parameter cell for what each one means."""

    dataset: Dataset
    heads: Some[Head]
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    pretraining_epochs: Count
    n_scouts: Count
    scout_n_shot: ShotCount
    scout_epochs: Count
    scout_learning_rate: Rate

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
        for seed, n_way in product(self.seeds(), n_ways):
            for purpose, classes in split_classes(load(self.dataset), seed).items():
                if n_way > len(classes):
                    known = f"the number of {purpose} classes of {self.dataset} (seed {seed})"
                    raise ParameterError(f"n_way = {n_way}: at most {len(classes)}, {known}")


class SideBySide(NamedTuple):
    """Copies of one network that are trained side by side, each on a task of its own.

    view: maps images [N, n_copies, 1, 28, 28] to what ``model`` takes in their place: themselves, or, where only the
    head is trained, its features, computed once for all steps.
    """

    view: Callable[[Tensor], Tensor]
    model: nn.Module
    optimizer: torch.optim.Optimizer


def start(
    displacement: Displacement,
    method: Method,
    learning_rate: float,
    n_copies: int,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> SideBySide:
    """A method at the zero point that scouts started from, with the guide that they found for it, if it has one."""
    guide = method.guide(displacement) if method.guide else None
    return start_from(zero_point_of(displacement), guide, learning_rate, n_copies, method.head_only, optimizer)


def start_from(
    zero_point: nn.Sequential,
    guide: Guide | None,
    learning_rate: float,
    n_copies: int,
    head_only: bool = False,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> SideBySide:
    """Any network, once for each of ``n_copies`` tasks, and ``optimizer(parameters, lr=learning_rate)`` for them all,
    inside a `Guided` if there is a guide. ``head_only``: the body stays as it is."""
    trained, view = (zero_point.head, partial(_features, zero_point.body)) if head_only else (zero_point, nn.Identity())
    model = stack([trained] * n_copies)
    steps = optimizer(model.parameters(), lr=learning_rate)
    return SideBySide(view, model, Guided(steps, model, stack_guide(guide, n_copies)) if guide is not None else steps)


def zero_point_of(displacement: Displacement) -> nn.Sequential:
    """The `conv4` that scouts started from."""
    parameters = displacement.zero_point
    model = conv4(len(parameters["head.bias"]), len(parameters["body.0.bias"]), generator=rng(0))
    model.load_state_dict(parameters)
    return model


@torch.no_grad()
def _features(body: nn.Module, images: Tensor) -> Tensor:
    return body(images.flatten(0, 1)).unflatten(0, images.shape[:2])

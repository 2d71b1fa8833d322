"""What the experiments on images share: their parameters, the zero points, and the methods that start from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, Self

import pandas as pd
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from experiments.data import N_DRAWERS, load
from experiments.data.splits import split_classes
from experiments.methods import BASIC, FROZEN, NETWORK, PLAIN, SCRATCH, TENSOR, Method
from experiments.models import conv4
from experiments.optimizers import ADAMS, OptimizerName, make
from experiments.parameters import Count, Dataset, Distinct, Head, ParameterError, Rate, Some, TunedParameters
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.steps import made
from experiments.protocol import LearningRate
from experiments.statistics import NONE, rows_where, scouted_alike
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

    def scouting(self, seed: int, zero_point: ZeroPoint, head: Head, n_way: int, **changes: Any) -> Scouting:
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


class OptimizersParameters(ImageParameters):
    """Of experiments that ask which optimizer trained the scouts, and which one trains on the tasks."""

    optimizers: Distinct[OptimizerName]  # of scouts and of what follows, in all pairs; twice the first one is the base
    adam_rates: Some[Rate]
    scout_adam_rate: Rate

    @model_validator(mode="after")
    def _same_budget(self) -> Self:
        if len(self.adam_rates) != len(self.learning_rates):
            raise ValueError(f"adam_rates: must be as many as learning_rates, which are {len(self.learning_rates)}")
        return self

    def scouting(self, seed: int, zero_point: ZeroPoint, head: Head, n_way: int, **changes: Any) -> Scouting:
        """As the base's, by an ``optimizer`` with the rate that suits it: that of the base where there is none to name,
        since a method without scouts needs the zero point alone."""
        by = changes.get("optimizer", NONE)
        by = self.optimizers[0] if by == NONE else by
        training = {"optimizer": by} | ({"learning_rate": self.scout_adam_rate} if by in ADAMS else {})
        return super().scouting(seed, zero_point, head, n_way, **(changes | training))

    def rates(self, optimizer: OptimizerName) -> list[LearningRate]:
        """Those that every method tries with it."""
        return [LearningRate(rate) for rate in (self.adam_rates if optimizer in ADAMS else self.learning_rates)]

    def crossed(self, zero_point: ZeroPoint, every: bool) -> list[tuple[str, OptimizerName, str]]:
        """Of each method: what trained its scouts (``none`` if it has none), what trains it, and its name; in the base,
        or (``every``) in all pairs, the base first."""
        pairs = list(product(self.optimizers, repeat=2))[: None if every else 1]
        rows = [(s if BASIC[m].guide else NONE, o, m) for s, o in pairs for m in METHODS[zero_point]]
        return list(dict.fromkeys(rows))


def by_scouts(frame: pd.DataFrame, condition: Sequence[str]) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """For every condition and every optimizer that trained scouts: both as columns, and all methods' rows.

    Methods without scouts take part in all.
    """
    for key, rows in frame.groupby(list(condition), sort=False):
        for scouts in rows.loc[rows["scouts"] != NONE, "scouts"].unique():
            by = {"scouts": scouts}
            yield dict(zip(condition, key, strict=True)) | by, scouted_alike(rows, by)


def of_base_optimizers(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows under the optimizers of the first guided one."""
    first = frame[frame["scouts"] != NONE].iloc[0]
    return scouted_alike(rows_where(frame, optimizer=first["optimizer"]), first)


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
    optimizer: OptimizerName = "sgd",
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
    optimizer: OptimizerName = "sgd",
) -> SideBySide:
    """Any network, once for each of ``n_copies`` tasks, and one of the `OPTIMIZERS` for them all, inside a `Guided` if
    there is a guide. ``head_only``: the body stays as it is."""
    trained, view = (zero_point.head, partial(_features, zero_point.body)) if head_only else (zero_point, nn.Identity())
    model = stack([trained] * n_copies)
    steps = make(optimizer, model.parameters(), learning_rate)
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

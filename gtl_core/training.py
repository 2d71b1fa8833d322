"""The one training loop, and `Recipe`, which says how it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

Loss = Callable[[Tensor, Tensor], Tensor]  # outputs [N, ...], labels [N] -> a scalar


def fit(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer: Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    loss: Loss = cross_entropy,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Minimise the mean loss of ``model`` on labelled examples, in place.

    inputs [N, ...], labels [N]; batch_size: None takes all N examples in every step, otherwise ``generator`` shuffles
    them anew in every epoch; augment: applied to the inputs of every batch, if given.
    Raises ValueError if there are no examples.
    """
    if len(inputs) == 0:
        raise ValueError("a task without examples cannot be trained on: inputs is empty")
    model.train()
    whole = batch_size is None and augment is None
    all_steps = getattr(model, "all_steps", None) if whole else None  # of a stacked network
    for epoch in range(epochs):
        # Asked twice: what an optimizer keeps is there after the first step, and nothing that counts changes later.
        if all_steps and epoch < 2 and all_steps(inputs, labels, optimizer, epochs - epoch, loss):
            return
        order = None if batch_size is None else torch.randperm(len(inputs), generator=generator)
        for batch in [slice(None)] if order is None else order.split(batch_size):
            optimizer.zero_grad()
            taken = inputs[batch] if augment is None else augment(inputs[batch])
            loss(model(taken), labels[batch]).backward()
            optimizer.step()


@dataclass(frozen=True)
class Recipe:
    """How to train on one task: what `scout` can do for many tasks at once, where a function can only be called.

    optimizer, options: ``optimizer(parameters, lr=learning_rate, **options)``, made anew for every task.
    epochs, batch_size, loss: as for `fit`; ``seed`` shuffles the examples of every task alike.

    It is itself such a function, ``recipe(model, (inputs, labels))``, that trains ``model`` in place.
    """

    learning_rate: float
    epochs: int
    batch_size: int | None = None
    optimizer: Callable[..., Optimizer] = torch.optim.SGD
    options: Mapping[str, Any] = field(default_factory=dict)
    loss: Loss = cross_entropy
    seed: int = 0

    def __call__(self, model: nn.Module, task: tuple[Tensor, Tensor]) -> None:
        self.fit(model, *task, self.make(model.parameters()), self.loss)

    def fit(self, model: nn.Module, inputs: Tensor, labels: Tensor, optimizer: Optimizer, loss: Loss) -> None:
        """Train as the recipe says, but for the optimizer and the loss."""
        order = torch.Generator().manual_seed(self.seed)
        budget: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, "generator": order}
        fit(model, inputs, labels, optimizer, loss=loss, **budget)

    def make(self, parameters: Iterable[Tensor], fused: bool = False) -> Optimizer:
        """Make the optimizer; ``fused``: in its fastest form, if it has one, with the same steps up to rounding."""
        takes = inspect.signature(self.optimizer).parameters
        options = {**getattr(self.optimizer, "keywords", {}), **self.options}  # those of a partially applied one, too
        if fused and "fused" in takes and not {"foreach", "fused"} & {*options}:
            options["fused"] = True
        return self.optimizer(parameters, **{**options, "lr": self.learning_rate})


def inputs_and_labels(task: object) -> tuple[Tensor, Tensor]:
    """The task as tensors, if it is what a `Recipe` trains on: two of them, or numpy arrays, whose real numbers get
    torch's default precision. TypeError otherwise."""
    if isinstance(task, (tuple, list)) and len(task) == 2 and all(isinstance(p, (Tensor, np.ndarray)) for p in task):
        return _tensor(task[0]), _tensor(task[1])
    raise TypeError(
        f"a Recipe trains on two tensors (inputs, labels), and this task is a {type(task).__name__}: of a dataset, "
        "torch.utils.data.default_collate(list(dataset)) makes them"
    )


def _tensor(part: Tensor | np.ndarray) -> Tensor:
    if isinstance(part, Tensor):
        return part
    tensor = torch.as_tensor(part)
    return tensor.to(torch.get_default_dtype()) if tensor.is_floating_point() else tensor


@torch.no_grad()
def correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's, else 0: [N], or [N, S] for a stacked network."""
    model.eval()
    return (model(inputs).argmax(-1) == labels).float()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Share of examples, in [0, 1], whose largest logit is their label's; one per copy of a stacked network."""
    return correct(model, inputs, labels).mean(0)

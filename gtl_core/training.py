"""The one training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def fit(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    augment: Callable[[Tensor], Tensor] = lambda inputs: inputs,
) -> None:
    """Minimise the mean loss of ``model`` on labelled examples, in place.

    inputs [N, ...], labels [N]; batch_size: None takes all N examples in every step, otherwise ``generator`` shuffles
    them anew in every epoch; augment: applied to the inputs of every batch. Raises ValueError if there are no examples.
    """
    if len(inputs) == 0:
        raise ValueError("a task without examples cannot be trained on: inputs is empty")
    model.train()
    for _ in range(epochs):
        order = None if batch_size is None else torch.randperm(len(inputs), generator=generator)
        for batch in [slice(None)] if order is None else order.split(batch_size):
            optimizer.zero_grad()
            loss(model(augment(inputs[batch])), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def correct(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """1 where the largest logit is the label's, else 0: [N], or [N, S] for a stacked network."""
    model.eval()
    return (model(inputs).argmax(-1) == labels).float()


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Share of examples, in [0, 1], whose largest logit is their label's; one per copy of a stacked network."""
    return correct(model, inputs, labels).mean(0)

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
) -> None:
    """Minimise the mean loss of ``model`` on labelled examples, in place.

    inputs [N, ...], labels [N]; batch_size: None takes all N examples in every step, otherwise ``generator`` shuffles
    them anew in every epoch. Raises ValueError if there are no examples.
    """
    if len(inputs) == 0:
        raise ValueError("a task without examples cannot be trained on: inputs is empty")
    model.train()
    for _ in range(epochs):
        order = None if batch_size is None else torch.randperm(len(inputs), generator=generator)
        for batch in [slice(None)] if order is None else order.split(batch_size):
            optimizer.zero_grad()
            loss(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of examples, in [0, 1], whose largest logit is their label's."""
    model.eval()
    return (model(inputs).argmax(1) == labels).float().mean().item()

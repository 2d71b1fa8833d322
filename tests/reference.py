"""One network on one task, written out: what everything that is trained side by side must equal."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.baselines.transfer import layers
from gtl_core.training import fit


def fine_tune(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    epochs: int,
    n_frozen: int = 0,
    memory: Callable[[nn.Module, torch.optim.Optimizer], object] | None = None,
) -> nn.Module:
    """A copy of the network, its first ``n_frozen`` layers kept, trained on the support."""
    model = copy.deepcopy(model)
    for layer in layers(model)[:n_frozen]:
        for p in layer:
            p.requires_grad_(False)
    steps = optimizer(model)
    if memory:
        memory(model, steps)
    fit(model, inputs, labels, steps, epochs=epochs, loss=cross_entropy)
    return model.eval()

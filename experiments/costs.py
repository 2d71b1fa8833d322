"""What a method costs is counted in network passes: examples times how often each goes through the network.

One forward pass is 1, and each derivative doubles (with respect to weights and to inputs). Differentiating a training
step through itself costs twice its backward pass (4) and its forward pass's backward (2).
"""

from __future__ import annotations

import time

import torch
from torch import nn

from gtl_core.tasks import rng
from gtl_core.training import fit

FORWARD, TRAINING, TWICE = 1, 3, 9


def multiplications(model: nn.Module) -> list[int]:
    """Of each layer in one forward pass of an image, from the input to the head."""
    counts: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda m, _, out: counts.append(out[0].numel() * m.weight[0].numel()))
        for layer in model.modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        model(torch.zeros(2, 1, 28, 28))
    for hook in hooks:
        hook.remove()
    return counts


def shares(model: nn.Module) -> list[float]:
    """Each layer's share of the multiplications of one forward pass, from the input to the head."""
    counts = multiplications(model)
    return [count / sum(counts) for count in counts]


def seconds_per_pass(model: nn.Module, n_images: int, n_steps: int = 10) -> float:
    """On this machine, in plain training of ``model`` (5 outputs) on batches of ``n_images``."""
    images, labels = torch.rand(n_images, 1, 28, 28, generator=rng(0)), torch.arange(n_images) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    fit(model, images, labels, optimizer, epochs=2)
    begin = time.perf_counter()
    fit(model, images, labels, optimizer, epochs=n_steps)
    return (time.perf_counter() - begin) / (TRAINING * n_steps * n_images)

"""Self-supervised zero points: a body that learned from images of the pretraining classes without being told which is
which."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, normalize

from experiments.baselines.few_shot import Prepared, measured
from experiments.costs import TRAINING

PATCH = 7  # pixels along a square that is hidden or not
HIDDEN = 0.5  # share of the patches that are hidden
TEMPERATURE = 0.5


def nt_xent(views: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Cross-entropy of finding an image's other view among all others by cosine similarity.

    views: features [2 * N, d], one view of each of N images, then the other of each. Source: Chen et al. 2020 (SimCLR,
    equation 1).
    """
    unit = normalize(views)
    itself = torch.eye(len(views), dtype=torch.bool)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    return cross_entropy(similarity, torch.arange(len(views)).roll(len(views) // 2))


@measured
def simclr(
    model: nn.Sequential,
    images: Tensor,
    *,
    augment: Callable[[Tensor], Tensor],
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Prepared:
    """Train the body, by Adam, so that two views of an image are alike and others are not, behind a small projection
    that is thrown away.

    images [N, 1, H, W]; augment: makes a view of each. Source: Chen et al. 2020 (SimCLR).
    """
    model, width = copy.deepcopy(model), model.head.in_features
    projection = _drawn(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width // 2)), generator)
    optimizer = torch.optim.Adam([*model.body.parameters(), *projection.parameters()], lr=learning_rate)
    for batch in _batches(images, n_steps, batch_size, generator):
        views = torch.cat([augment(batch), augment(batch)])
        optimizer.zero_grad()
        nt_xent(projection(model.body(views))).backward()
        optimizer.step()
    return Prepared(model, TRAINING * n_steps * 2 * batch_size)


def hidden_patches(n: int, side: int, generator: torch.Generator) -> Tensor:
    """Which pixels of ``n`` images are hidden: bool [n, 1, side, side], the same number of `PATCH` x `PATCH` squares in
    each."""
    grid = side // PATCH
    order = torch.rand(n, grid * grid, generator=generator).argsort(1)
    patches = (order < round(HIDDEN * grid * grid)).view(n, 1, grid, grid)
    return patches.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


@measured
def masked_autoencoder(
    model: nn.Sequential,
    images: Tensor,
    *,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Prepared:
    """Train the body, by Adam, so that a linear decoder, which is thrown away, fills in the hidden half of an image.

    images [N, 1, H, W], H = W a multiple of `PATCH`. The loss is the squared error of hidden pixels alone. Source:
    Pathak et al. 2016 (context encoders); He et al. 2022 (masked autoencoders), here with convolutions.
    """
    model, shape = copy.deepcopy(model), images.shape[1:]
    decoder = _drawn(nn.Sequential(nn.Linear(model.head.in_features, shape.numel())), generator)
    optimizer = torch.optim.Adam([*model.body.parameters(), *decoder.parameters()], lr=learning_rate)
    for batch in _batches(images, n_steps, batch_size, generator):
        hidden = hidden_patches(len(batch), shape[-1], generator)
        optimizer.zero_grad()
        filled = decoder(model.body(batch * ~hidden)).view_as(batch)
        mse_loss(filled[hidden], batch[hidden]).backward()
        optimizer.step()
    return Prepared(model, TRAINING * n_steps * batch_size)


def _batches(images: Tensor, n_steps: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(n_steps):
        yield images[torch.randint(len(images), (size,), generator=generator)]


def _drawn(layers: nn.Sequential, generator: torch.Generator) -> nn.Sequential:
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    return layers

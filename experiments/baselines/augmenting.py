"""Learned augmentation: how much, and in which ways, the few examples of a task are changed while it is learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.baselines.meta import descend, query_loss, unrolled_passes
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode

# Turning in radians, the logarithm of the scale, shearing, and shifting along x and y in halves of the image's width.
OPERATIONS = ("turn", "scale", "shear_x", "shear_y", "shift_x", "shift_y")
USUAL = (0.5, 0.3, 0.3, 0.3, 0.3, 0.3)  # RandAugment's strongest that keep a character readable


def warp(images: Tensor, amounts: Tensor) -> Tensor:
    """Images [..., 1, H, W], each changed by its ``amounts`` [..., 6] of the `OPERATIONS`; 0 changes nothing."""
    turn, scale, shear_x, shear_y, shift_x, shift_y = amounts.flatten(0, -2).unbind(-1)
    turned = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], -1).unflatten(-1, (2, 2))
    one = torch.ones_like(turn)
    sheared = torch.stack([one, shear_x, shear_y, one], -1).unflatten(-1, (2, 2))
    linear = scale.exp()[:, None, None] * turned @ sheared
    matrices = torch.cat([linear, torch.stack([shift_x, shift_y], -1)[:, :, None]], -1)
    flat = images.flatten(0, -4)
    grid = affine_grid(matrices, list(flat.shape), align_corners=False)
    return grid_sample(flat, grid, align_corners=False).view_as(images)


def rand_augment(images: Tensor, n_operations: int, magnitude: float, generator: torch.Generator) -> Tensor:
    """Each of the images [..., 1, H, W] changed by ``n_operations`` different ones, drawn at random, forwards or
    backwards, by ``magnitude`` times the `USUAL` amount.

    Source: Cubuk et al. 2020 (RandAugment), with the operations that do not change a drawing's ink.
    """
    shape = (*images.shape[:-3], len(OPERATIONS))
    chosen = torch.rand(shape, generator=generator).argsort(-1) < n_operations
    signs = 2.0 * torch.randint(2, shape, generator=generator) - 1
    return warp(images, magnitude * chosen * signs * torch.tensor(USUAL))


def normal_amounts(images: Tensor, deviations: Tensor, generator: torch.Generator) -> Tensor:
    """Amounts [..., 6] for images [..., 1, H, W]: normal, with these ``deviations`` [6]; differentiable in them."""
    return deviations * torch.randn(*images.shape[:-3], len(OPERATIONS), generator=generator)


@measured
def learn_augmentation(
    model: nn.Sequential,
    episodes: Sequence[Episode],
    *,
    inner_rate: float,
    n_steps: int,
    learning_rate: float,
    generator: torch.Generator,
    tasks_per_step: int = 8,
) -> Prepared:
    """Learn the deviation of each of the `OPERATIONS`, by Adam, through ``n_steps`` of descent on supports changed by
    them, for the loss on queries as they are. The model stays as it is; ``extra`` has the ``deviations`` [6].

    The change is differentiated through, as in Faster AutoAugment (Hataya et al. 2020) and DADA (Li et al. 2020); what
    it is for, the loss on other examples of the same classes after learning, is that of AutoAugment (Cubuk et al.
    2019), on scouts' tasks in the place of the task itself.
    """
    model = copy.deepcopy(model)
    zero_point = dict(model.named_parameters())
    logarithms = (0.1 * torch.tensor(USUAL)).log().requires_grad_()
    optimizer = torch.optim.Adam([logarithms], lr=learning_rate)
    rates: dict[str, float | Tensor] = dict.fromkeys(zero_point, inner_rate)
    stacked, passes = cache(lambda n_tasks: stack([model] * n_tasks)), 0
    for group in groups(episodes, tasks_per_step):
        inputs, labels = side_by_side([episode.support for episode in group])
        network = stacked(len(group))
        adapted = {name: p.detach().expand(len(group), *p.shape).requires_grad_() for name, p in zero_point.items()}
        for _ in range(n_steps):
            changed = warp(inputs, normal_amounts(inputs, logarithms.exp(), generator))
            step = {"loss": stacked_cross_entropy, "differentiable": True}
            adapted = descend(network, adapted, changed, labels, rates, 1, **step)
        optimizer.zero_grad()
        query_loss(network, adapted, group).backward()
        optimizer.step()
        passes += unrolled_passes(group, n_steps)
    return Prepared(model, passes, {"deviations": logarithms.detach().exp()})

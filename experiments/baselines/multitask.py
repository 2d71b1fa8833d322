"""Multi-task learning: one zero point from training on all tasks together, whose heads are then thrown away."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.costs import TRAINING
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode


@measured
def hard_sharing(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    tasks_per_step: int = 8,
    generator: torch.Generator,
) -> Prepared:
    """One body for all tasks, one linear head for each; the zero point has that body and the model's own head.

    Trained on the supports, ``tasks_per_step`` tasks in every step of Adam, in an order drawn from ``generator``; heads
    start at zero. Source: Caruana 1997.
    """
    model = copy.deepcopy(model)
    n_features, (n_way, n_shot) = model.head.in_features, episodes[0].support.shape[:2]
    weights = torch.zeros(len(episodes), n_features, n_way, requires_grad=True)
    biases = torch.zeros(len(episodes), 1, n_way, requires_grad=True)
    optimizer = torch.optim.Adam([*model.body.parameters(), weights, biases], lr=learning_rate)
    for _ in range(epochs):
        order = torch.randperm(len(episodes), generator=generator)
        for group in order.split(tasks_per_step):
            images = torch.stack([episodes[i].support for i in group.tolist()])
            features = model.body(images.flatten(0, 2)).unflatten(0, (len(group), -1))
            logits = torch.baddbmm(biases[group], features, weights[group])
            labels = torch.arange(n_way).repeat_interleave(n_shot).repeat(len(group))
            optimizer.zero_grad()
            cross_entropy(logits.flatten(0, 1), labels).backward()
            optimizer.step()
    return Prepared(model, TRAINING * epochs * len(episodes) * n_way * n_shot)


@measured
def soft_sharing(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    epochs: int,
    strength: float,
    learning_rate: float = 1e-3,
    tasks_per_step: int = 8,
) -> Prepared:
    """A network for each task, with a penalty of strength / 2 on the squared distance of every body to their mean.

    The mean body is the zero point; with the head of its own. Full batches of the supports, ``tasks_per_step`` tasks
    side by side, as many as share one mean at a time; it is handed on from group to group. Source: Duong et al. 2015;
    Evgeniou & Pontil 2004 (regularized multi-task learning).
    """
    model = copy.deepcopy(model)
    for group in groups(episodes, tasks_per_step):
        tasks = stack([model] * len(group))
        optimizer = torch.optim.Adam(tasks.parameters(), lr=learning_rate)
        inputs, labels = side_by_side([episode.support for episode in group])
        for _ in range(epochs):
            optimizer.zero_grad()
            (stacked_cross_entropy(tasks(inputs), labels) + strength / 2 * spread(tasks.body)).backward()
            optimizer.step()
        with torch.no_grad():
            for p, own in zip(model.body.parameters(), tasks.body.parameters(), strict=True):
                p.copy_(own.mean(0))
    n_images = sum(episode.support.shape[:2].numel() for episode in episodes)
    return Prepared(model, TRAINING * epochs * n_images)


def spread(stacked: nn.Module) -> Tensor:
    """Sum of the squared distances of stacked networks to their mean."""
    return torch.stack([((p - p.mean(0)) ** 2).sum() for p in stacked.parameters()]).sum()

"""Multi-task learning: one zero point from training on all tasks together, whose heads are then thrown away."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.costs import TRAINING
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode

BLOCK = 3  # modules of a layer of `conv4`: convolution, normalization, ReLU


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


@measured
def hierarchical_sharing(
    model: nn.Module,
    images: Tensor,
    alphabets: Tensor,
    *,
    n_steps: int,
    batch_size: int,
    learning_rate: float,
    augment: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> Prepared:
    """The easier task leaves a lower layer: the alphabet from the third, averaged over pixels, the character from the
    last; one body for both, by Adam, on batches of all classes.

    images [n_classes, n_drawers, 1, H, W]; alphabets [n_classes], counted from 0. Heads start at zero and are thrown
    away. Source: Søgaard & Goldberg 2016 (supervision at lower layers).
    """
    model, n_drawers = copy.deepcopy(model), images.shape[1]
    lower, upper = model.body[: 3 * BLOCK], model.body[3 * BLOCK :]
    channels, n_classes = lower[-BLOCK].out_channels, len(images)
    tasks = nn.ModuleList([nn.Linear(channels, int(alphabets.max()) + 1), nn.Linear(model.head.in_features, n_classes)])
    for p in tasks.parameters():
        nn.init.zeros_(p)
    optimizer = torch.optim.Adam([*model.body.parameters(), *tasks.parameters()], lr=learning_rate)
    for _ in range(n_steps):
        batch = torch.randint(n_classes * n_drawers, (batch_size,), generator=generator)
        classes = batch // n_drawers
        below = lower(augment(images.flatten(0, 1)[batch]))
        optimizer.zero_grad()
        easier = cross_entropy(tasks[0](below.mean((-2, -1))), alphabets[classes])
        (easier + cross_entropy(tasks[1](upper(below)), classes)).backward()
        optimizer.step()
    return Prepared(model, TRAINING * n_steps * batch_size)


@measured
def shared_private(
    model: nn.Module,
    episodes: Sequence[Episode],
    private: nn.Module,
    *,
    epochs: int,
    difference: float,
    learning_rate: float = 1e-3,
    tasks_per_step: int = 8,
) -> Prepared:
    """Every task's head sees the features of a body that all share beside those of a small one of its own, ``private``
    at first; the zero point has the shared body.

    difference: strength of what keeps the two apart, `overlap`. Trained on the supports, ``tasks_per_step`` tasks in a
    step of Adam; heads start at zero. Source: Bousmalis et al. 2016 (domain separation); Liu, Qiu, Huang 2017.
    """
    model = copy.deepcopy(model)
    n_way, n_shot = episodes[0].support.shape[:2]
    with torch.no_grad():
        width = model.head.in_features + private(episodes[0].support[0, :1]).shape[-1]
    parts = []
    for group in groups(episodes, tasks_per_step):
        head = torch.zeros(len(group), width + 1, n_way, requires_grad=True)
        parts.append((*side_by_side([e.support for e in group]), stack([nn.Sequential(private)] * len(group)), head))
    own = [p for _, _, bodies, head in parts for p in (*bodies.parameters(), head)]
    optimizer = torch.optim.Adam([*model.body.parameters(), *own], lr=learning_rate)
    for inputs, labels, bodies, head in epochs * parts:
        shared = model.body(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        mine = bodies(inputs)
        features = torch.cat([shared, mine, torch.ones_like(mine[..., :1])], -1)  # [n_way * n_shot, tasks, width + 1]
        optimizer.zero_grad()
        loss = stacked_cross_entropy(torch.einsum("nsd,sdc->nsc", features, head), labels) / inputs.shape[1]
        (loss + difference * overlap(shared, mine)).backward()
        optimizer.step()
    return Prepared(model, TRAINING * epochs * len(episodes) * n_way * n_shot)


def overlap(shared: Tensor, private: Tensor) -> Tensor:
    """How much two sets of features [n, tasks, d] and [n, tasks, e] say the same: the mean over tasks of the squared
    Frobenius norm of their product, every example's features at length 1, by the number of examples squared."""
    products = torch.einsum("nsd,nse->sde", normalize(shared, dim=-1), normalize(private, dim=-1))
    return (products**2).sum((1, 2)).mean() / len(shared) ** 2


def spread(stacked: nn.Module) -> Tensor:
    """Sum of the squared distances of stacked networks to their mean."""
    return torch.stack([((p - p.mean(0)) ** 2).sum() for p in stacked.parameters()]).sum()

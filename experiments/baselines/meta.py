"""Meta-learning: a zero point from which a few steps on a few examples lead far.

Tasks are trained side by side, as one stacked network whose convolutions run in groups (`gtl_core._engine`);
``python -m benchmarks.meta_learning`` tells what that saves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.costs import TRAINING, TWICE
from experiments.methods import Predictor
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode
from gtl_core.training import fit

Parameters = Mapping[str, Tensor]


def descend(
    network: nn.Module,
    parameters: Parameters,
    inputs: Tensor,
    labels: Tensor,
    rates: Mapping[str, float | Tensor],
    n_steps: int,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    differentiable: bool = False,
) -> dict[str, Tensor]:
    """``n_steps`` of gradient descent, from ``parameters`` to new ones, for those that have a rate.

    differentiable: whether the result can be differentiated with respect to ``parameters`` and ``rates`` in full;
    otherwise as if the gradients were constants.
    """
    parameters = dict(parameters)
    for _ in range(n_steps):
        value = loss(functional_call(network, parameters, (inputs,)), labels)
        moving = [parameters[name] for name in rates]
        gradients = torch.autograd.grad(value, moving, create_graph=differentiable)
        for (name, rate), p, gradient in zip(rates.items(), moving, gradients, strict=True):
            parameters[name] = p - rate * gradient
    return parameters


def meta_loss(
    stacked: nn.Module,
    zero_point: Parameters,
    rates: Mapping[str, float | Tensor],
    episodes: Sequence[Episode],
    n_steps: int,
    first_order: bool,
) -> Tensor:
    """Mean over tasks of the loss on the queries after descending on the support; ``stacked`` has one copy per task."""
    n_tasks = len(episodes)
    copies = {name: p.expand(n_tasks, *p.shape) for name, p in zero_point.items()}
    support = side_by_side([episode.support for episode in episodes])
    loss = stacked_cross_entropy
    adapted = descend(stacked, copies, *support, rates, n_steps, loss=loss, differentiable=not first_order)
    return query_loss(stacked, adapted, episodes)


def query_loss(stacked: nn.Module, adapted: Parameters, episodes: Sequence[Episode]) -> Tensor:
    """Mean over tasks of the loss on the queries, with the parameters that each task's copy has ``adapted``."""
    inputs, labels = side_by_side([episode.query for episode in episodes])
    return stacked_cross_entropy(functional_call(stacked, adapted, (inputs,)), labels) / len(episodes)


def unrolled_passes(episodes: Sequence[Episode], n_steps: int, inner_cost: int = TWICE) -> int:
    """Network passes of `query_loss` after ``n_steps`` on each support, at ``inner_cost`` for an example in a step."""
    return sum(
        inner_cost * n_steps * e.support.shape[:2].numel() + TRAINING * e.query.shape[:2].numel() for e in episodes
    )


@measured
def maml(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    inner_rate: float = 0.4,
    n_steps: int = 1,
    outer_rate: float = 1e-3,
    tasks_per_step: int = 8,
    first_order: bool = False,
    head_only: bool = False,
    learn_rates: bool = False,
) -> Prepared:
    """Descend on the loss *after* ``n_steps`` of inner descent, by Adam, through the inner gradients themselves.

    The model's head is meta-learned, too: it must have as many outputs as the episodes have classes.
    Source: Finn, Abbeel, Levine 2017 (algorithm 2). See `fomaml`, `anil`, `meta_sgd` for the switches.
    """
    model = copy.deepcopy(model)
    zero_point = dict(model.named_parameters())
    inner = [name for name in zero_point if name.startswith("head.") or not head_only]
    rates: dict[str, float | Tensor] = dict.fromkeys(inner, inner_rate)
    if learn_rates:
        rates = {name: torch.full_like(zero_point[name], inner_rate).requires_grad_() for name in inner}
    learned = [*zero_point.values(), *(rates.values() if learn_rates else ())]
    optimizer = torch.optim.Adam(learned, lr=outer_rate)
    stacked = cache(lambda n_tasks: stack([model] * n_tasks))
    inner_cost = TRAINING if first_order or head_only else TWICE
    passes = 0
    for group in groups(episodes, tasks_per_step):
        optimizer.zero_grad()
        meta_loss(stacked(len(group)), zero_point, rates, group, n_steps, first_order).backward()
        optimizer.step()
        passes += unrolled_passes(group, n_steps, inner_cost)
    return Prepared(model, passes, {name: rate.detach() for name, rate in rates.items()} if learn_rates else {})


def fomaml(model: nn.Module, episodes: Sequence[Episode], **options) -> Prepared:
    """MAML that takes the inner gradients for constants. Source: Finn et al. 2017, section 5.2; Nichol et al. 2018."""
    return maml(model, episodes, first_order=True, **options)


def anil(model: nn.Module, episodes: Sequence[Episode], **options) -> Prepared:
    """Almost no inner loop: MAML whose inner steps train the head alone. Source: Raghu et al. 2020."""
    return maml(model, episodes, head_only=True, **options)


def meta_sgd(model: nn.Module, episodes: Sequence[Episode], **options) -> Prepared:
    """MAML that learns a rate of its own for every parameter, of either sign, along with the zero point.

    The nearest relative of a guide: one number per parameter, too, but learned through the descent. Source: Li et al.
    2017.
    """
    return maml(model, episodes, learn_rates=True, **options)


def adapt_by_descent(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, rates: Mapping[str, float | Tensor], n_steps: int
) -> Predictor:
    """Plain gradient descent on the whole support, as `maml` prepares for."""
    adapted = descend(model, dict(model.named_parameters()), inputs, labels, rates, n_steps)
    return lambda queries: functional_call(model, adapted, (queries,))


@measured
def reptile(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
    epochs: int = 1,
    batch_size: int | None = None,
    meta_rate: float = 1.0,
    tasks_per_step: int = 5,
    generator: torch.Generator | None = None,
) -> Prepared:
    """Move towards where training on tasks leads: θ <- θ + ε * mean(θ_task - θ), with ε falling linearly to 0.

    epochs, batch_size: of training on one task's support (``generator`` shuffles); the published 5-way runs take 5
    steps on batches of 10 from 10 examples a class.
    Source: Nichol, Achiam, Schulman 2018 (algorithm 2).
    """
    model = copy.deepcopy(model)
    passes = 0
    n_groups = -(-len(episodes) // tasks_per_step)
    for i, group in enumerate(groups(episodes, tasks_per_step)):
        tasks = stack([model] * len(group))
        inputs, labels = side_by_side([episode.support for episode in group])
        options = {"epochs": epochs, "batch_size": batch_size, "generator": generator}
        fit(tasks, inputs, labels, optimizer(tasks), loss=stacked_cross_entropy, **options)
        with torch.no_grad():
            for p, trained in zip(model.parameters(), tasks.parameters(), strict=True):
                p.lerp_(trained.mean(0), meta_rate * (1 - i / n_groups))
        passes += TRAINING * epochs * sum(episode.support.shape[:2].numel() for episode in group)
    return Prepared(model, passes)


def reptile_adam(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """What Reptile trains tasks with, while it is prepared and on new ones. Source: Nichol et al. 2018, appendix A."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.0, 0.999))

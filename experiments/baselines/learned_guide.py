"""A guide learned by gradient: what the best guide could be worth, and what scouting leaves on the table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.baselines.few_shot import groups
from experiments.baselines.meta import meta_loss
from gtl_core._engine.stacked import stack
from gtl_core.files import digest
from gtl_core.guide import Guide
from gtl_core.tasks import Episode


def learned_guide(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    inner_rate: float = 1.0,
    n_steps: int = 15,
    start: float = 0.1,
    outer_rate: float = 0.1,
    tasks_per_step: int = 4,
    first_order: bool = True,
) -> Guide:
    """Descend, by Adam, on the queries' loss after ``n_steps`` of guided descent on the support, over the guide alone.

    Meta-SGD restricted to the rates: the zero point stays, and the rate of each parameter is ``inner_rate * g``, with
    g = sigmoid of what is learned, from ``start`` everywhere. ``model`` must have as many outputs as the episodes have
    classes. first_order: take the inner gradients for constants, at a third of the cost; the rates still get a gradient
    through every step that they scaled. Source: Li et al. 2017.
    """
    # Of its own, for the inner gradients; those that the outer loss leaves on it are not used.
    zero_point = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    logit = torch.tensor(start).logit().item()
    logits = {name: torch.full_like(p, logit).requires_grad_() for name, p in zero_point.items()}
    optimizer = torch.optim.Adam(logits.values(), lr=outer_rate)
    for group in groups(episodes, tasks_per_step):
        optimizer.zero_grad()
        stacked = stack([model] * len(group))
        meta_loss(stacked, zero_point, rates_of(logits, inner_rate), group, n_steps, first_order).backward()
        optimizer.step()
    about = {"zero_point": digest(zero_point), "learned_on": len(episodes), "inner_rate": inner_rate}
    return Guide(rates_of(logits, 1.0), about)


def rates_of(logits: dict[str, Tensor], inner_rate: float) -> dict[str, Tensor]:
    """The learning rate of every parameter: ``inner_rate * g``, g = sigmoid of its logit."""
    return {name: inner_rate * logit.sigmoid() for name, logit in logits.items()}

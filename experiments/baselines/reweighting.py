"""Learned sample weights: what an example counts, by its loss, when some labels are wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.baselines.meta import descend, query_loss, unrolled_passes
from gtl_core._engine.stacked import stack
from gtl_core.tasks import Episode

WRONG = (0.0, 0.2, 0.4)  # shares of wrong labels that it learns with


class WeightNet(nn.Module):
    """Examples' losses [...] -> what each counts, in (0, 1) [...].

    Source: Shu et al. 2019 (Meta-Weight-Net, section 2.2): one hidden layer, a sigmoid at its end.
    """

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid())

    def forward(self, losses: Tensor) -> Tensor:
        return self.layers(losses[..., None])[..., 0]


def weighted(net: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The stacked cross-entropy in which every example of a task counts what ``net`` gives its loss, as a share of the
    task's sum; all alike: `stacked_cross_entropy`."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        labels = labels.expand(-1, logits.shape[1])
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        weights = net(losses.detach())
        return (weights / weights.sum(0) * losses).sum()

    return loss


def mislabelled(labels: Tensor, n_way: int, share: float, generator: torch.Generator) -> Tensor:
    """Labels [N], of which a ``share``, rounded to whole examples, are replaced by another class each."""
    wrong = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
    found = labels.clone()
    found[wrong] = (labels[wrong] + torch.randint(1, n_way, (len(wrong),), generator=generator)) % n_way
    return found


@measured
def learn_weights(
    model: nn.Sequential,
    episodes: Sequence[Episode],
    *,
    inner_rate: float,
    n_steps: int,
    learning_rate: float,
    generator: torch.Generator,
    tasks_per_step: int = 8,
) -> Prepared:
    """Learn a `WeightNet`, by Adam, through ``n_steps`` of weighted descent on supports of which some labels are wrong,
    for the loss on queries whose labels are right. The model stays as it is; ``extra`` is the net.

    Shu et al. learn it during the one training, from a few clean examples. A task of a few examples has none to spare:
    here it is learned on other tasks before, as a guide is. Source: Shu et al. 2019 (Meta-Weight-Net, algorithm 1).
    """
    net, model = WeightNet(), copy.deepcopy(model)
    for p in net.parameters():
        nn.init.uniform_(p, -(p.shape[-1] ** -0.5), p.shape[-1] ** -0.5, generator=generator)
    optimizer, zero_point = torch.optim.Adam(net.parameters(), lr=learning_rate), dict(model.named_parameters())
    rates: dict[str, float | Tensor] = dict.fromkeys(zero_point, inner_rate)
    stacked, shares, passes = cache(lambda n_tasks: stack([model] * n_tasks)), cycle(WRONG), 0
    for group in groups(episodes, tasks_per_step):
        inputs, labels = side_by_side([episode.support for episode in group])
        n_way = len(group[0].support)
        taught = [mislabelled(labels[:, 0], n_way, next(shares), generator) for _ in group]
        copies = {name: p.detach().expand(len(group), *p.shape).requires_grad_() for name, p in zero_point.items()}
        task = (stacked(len(group)), copies, inputs, torch.stack(taught, 1), rates, n_steps)
        adapted = descend(*task, loss=weighted(net), differentiable=True)
        optimizer.zero_grad()
        query_loss(task[0], adapted, group).backward()
        optimizer.step()
        passes += unrolled_passes(group, n_steps)
    return Prepared(model, passes, dict(net.named_parameters()))

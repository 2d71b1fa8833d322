"""A learned optimizer: an LSTM that turns each parameter's gradients into its steps, the same LSTM for all of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from experiments.baselines.few_shot import Prepared, groups, measured, side_by_side
from experiments.costs import TRAINING
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode

Memory = tuple[Tensor, Tensor]  # hidden and cell state [n, hidden]


class StepRule(nn.Module):
    """Gradients [n] and memory -> steps [n] and memory, coordinate by coordinate.

    One layer of ``hidden`` units where the paper has two of 20, since every parameter pays for them in every step. And
    unlike the paper's, the rule adds to plain descent with rate ``scale``, which is what it is before training: short
    training then starts from an optimizer that works.
    """

    def __init__(self, hidden: int = 8, scale: float = 0.1, *, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = scale
        self.cell = nn.LSTMCell(2, hidden)
        self.out = nn.Linear(hidden, 1)
        for p in self.cell.parameters():
            nn.init.uniform_(p, -1 / math.sqrt(hidden), 1 / math.sqrt(hidden), generator=generator)
        for p in self.out.parameters():
            nn.init.zeros_(p)

    def forward(self, gradient: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        memory = self.cell(preprocess(gradient), memory)
        return -self.scale * (gradient + self.out(memory[0]).squeeze(-1)), memory


def preprocess(gradient: Tensor, p: float = 10.0) -> Tensor:
    """[n] -> [n, 2]: log magnitude and sign, where the magnitude is above exp(-p); else -1 and the rescaled gradient.

    Source: Andrychowicz et al. 2016, appendix A.
    """
    large = gradient.abs() >= math.exp(-p)
    logarithm = torch.where(large, gradient.abs().clamp(min=math.exp(-p)).log() / p, -1.0)
    return torch.stack([logarithm, torch.where(large, gradient.sign(), math.exp(p) * gradient)], -1)


class LearnedOptimizer(torch.optim.Optimizer):
    """A trained `StepRule` as an ordinary optimizer, which can be guided like any other."""

    def __init__(self, parameters: Iterable[Tensor], rule: StepRule) -> None:
        super().__init__(parameters, {})
        self.rule = rule

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            state = self.state[p]
            step, state["memory"] = self.rule(p.grad.flatten(), state.get("memory"))
            p.add_(step.view_as(p))
        return loss


@measured
def learn_optimizer(
    model: nn.Module,
    episodes: Sequence[Episode],
    rule: StepRule,
    *,
    n_steps: int = 5,
    learning_rate: float = 1e-3,
    tasks_per_step: int = 4,
) -> Prepared:
    """Train a copy of ``rule`` by Adam: what the steps lead to should have a low loss on the queries, all along.

    The zero point stays as it is. The gradients that the rule sees are taken for constants, as in the paper; the loss
    is on queries rather than on the examples trained on, as Ravi & Larochelle 2017 have it for few examples.
    Source: Andrychowicz et al. 2016 (equations 2 and 3).
    """
    rule = copy.deepcopy(rule)
    stacked = cache(lambda n_tasks: stack([model] * n_tasks))
    optimizer = torch.optim.Adam(rule.parameters(), lr=learning_rate)
    passes = 0
    for group in groups(episodes, tasks_per_step):
        support = side_by_side([episode.support for episode in group])
        query = side_by_side([episode.query for episode in group])
        optimizer.zero_grad()
        (unrolled_loss(stacked(len(group)), support, query, rule, n_steps) / len(group)).backward()
        optimizer.step()
        n_images = sum(images.shape[0] * images.shape[1] for images, _ in (support, query))
        passes += TRAINING * n_steps * n_images
    return Prepared(model, passes, dict(rule.named_parameters()))


def unrolled_loss(network: nn.Module, support, query, rule: StepRule, n_steps: int) -> Tensor:
    """Sum over ``n_steps`` steps of the (stacked) network's loss on the queries after each of them."""
    parameters = {name: p.detach() for name, p in network.named_parameters()}
    memory = None
    total = torch.zeros(())
    sizes = [p.numel() for p in parameters.values()]
    for _ in range(n_steps):
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        gradients = torch.autograd.grad(
            stacked_cross_entropy(functional_call(network, leaves, (support[0],)), support[1]), list(leaves.values())
        )
        steps, memory = rule(torch.cat([g.flatten() for g in gradients]), memory)
        parts = steps.split(sizes)
        parameters = {name: p + part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        total = total + stacked_cross_entropy(functional_call(network, parameters, (query[0],)), query[1])
    return total

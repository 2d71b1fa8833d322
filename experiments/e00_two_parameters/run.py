"""The idea on two parameters: a linear model whose first weight matters in a family of tasks and whose second does not.

Each task of the family is y = a * x1 + noise with its own a; x2 is a distraction that only looks useful when examples
are few. Scouts see many examples, so they learn that x2 never helps. The main task has fewer examples than weights.
"""

from __future__ import annotations

from typing import Annotated

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments.methods import GUIDED, PLAIN, Method, table
from experiments.parameters import Count, NotebookParameters, Rate
from gtl_core import Displacement, Guide, Guided, Recipe
from gtl_core.tasks import rng
from gtl_core.training import fit

FAMILIES = {"as scouted": 0, "foreign": 1}  # which of the two inputs the target depends on
METHODS = table([PLAIN, Method("guided", "guided", GUIDED)])


class TwoParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    n_scouts: Count
    scout_examples: Count
    n_examples: Count
    n_repeats: Annotated[int, Field(ge=2)]
    noise: Annotated[float, Field(ge=0)]
    learning_rate: Rate
    steps: Count


def two_weights() -> nn.Linear:
    """The zero point: both weights 0."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def draw_task(relevant: int, n_examples: int, noise: float, generator: torch.Generator) -> tuple[Tensor, ...]:
    """inputs [N, 2], targets [N, 1] and the true weights [2] of a task whose target depends on one input only."""
    truth = torch.zeros(2)
    truth[relevant] = torch.randn((), generator=generator)
    inputs = torch.randn(n_examples, 2, generator=generator)
    targets = inputs @ truth[:, None] + noise * torch.randn(n_examples, 1, generator=generator)
    return inputs, targets, truth


def run(p: TwoParameters) -> pd.DataFrame:
    """Scouts' end points, the guide, and plain and guided descent on ``n_repeats`` main tasks of each family.

    Columns: seed, method (scout, guide, plain, guided, truth, example), family, task, step, metric, value. Metrics:
    ``w1`` and ``w2`` (a weight, or its guide value; along the way for task 0 and at the end for the others), ``x1``,
    ``x2`` and ``y`` (the examples of task 0), and ``excess_loss``: the expected squared error on new examples above the
    noise, which for this model is |w - truth|^2.
    """
    rows = []

    def record(method: str, family: str, task: int | str, step: int | str, **values: Tensor) -> None:
        key = {"seed": p.seed, "method": method, "family": family, "task": task, "step": step}
        rows.extend(key | {"metric": metric, "value": value.item()} for metric, value in values.items())

    displacement, recipe = Displacement(two_weights()), Recipe(p.learning_rate, p.steps, loss=mse_loss)
    for i in range(p.n_scouts):  # as `scout` does; here one by one, since the figure shows where each one ends
        copy = two_weights()
        recipe(copy, draw_task(0, p.scout_examples, p.noise, rng(p.seed, "scout", i))[:2])
        displacement.add(copy)
        record("scout", "as scouted", i, p.steps, w1=copy.weight[0, 0], w2=copy.weight[0, 1])
    guide = displacement.guide()
    record("guide", "as scouted", "", "", w1=guide["weight"][0, 0], w2=guide["weight"][0, 1])
    for family, relevant in FAMILIES.items():
        for i in range(p.n_repeats):
            inputs, targets, truth = draw_task(relevant, p.n_examples, p.noise, rng(p.seed, "main", family, i))
            record("truth", family, i, "", w1=truth[0], w2=truth[1])
            if i == 0:  # shown in the figure: its loss landscape follows from its examples
                for n in range(p.n_examples):
                    record("example", family, i, n, x1=inputs[n, 0], x2=inputs[n, 1], y=targets[n, 0])
            for method in METHODS.values():
                path = _descent(inputs, targets, guide if method.family is GUIDED else None, p)
                for step in range(p.steps + 1) if i == 0 else [p.steps]:
                    record(method.name, family, i, step, w1=path[step, 0], w2=path[step, 1])
                record(method.name, family, i, p.steps, excess_loss=(path[-1] - truth).square().sum())
    return pd.DataFrame(rows)


def _descent(inputs: Tensor, targets: Tensor, guide: Guide | None, p: TwoParameters) -> Tensor:
    """The weights [steps + 1, 2] along the way."""
    model = two_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=p.learning_rate)
    optimizer = Guided(optimizer, model, guide) if guide is not None else optimizer
    path = [model.weight[0].detach().clone()]
    for _ in range(p.steps):
        fit(model, inputs, targets, optimizer, epochs=1, loss=mse_loss)
        path.append(model.weight[0].detach().clone())
    return torch.stack(path)

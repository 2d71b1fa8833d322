"""The optimizers that train scouts, and networks on tasks: by name, with what they take beside a learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from gtl_core.training import Recipe

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.01}),
}
ADAMS = ("adam", "adamw")
ADAM_PER_RATE = 0.01  # Adam's usual rate as a share of descent's
SCOUT_RATES = {"sgd": 0.1, "momentum": 0.01, "adam": 1e-3, "adamw": 1e-3}  # with which all scouts learn their tasks
LABELS = {"sgd": "SGD", "momentum": "SGD with momentum", "adam": "Adam", "adamw": "AdamW"}
OptimizerName = Literal[*OPTIMIZERS]


def make(
    name: OptimizerName, parameters: Iterable[torch.Tensor] | Iterable[dict], learning_rate: float, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of this name for these parameters, or groups of them, which may have rates of their own.

    fused: all parameters in one call, which rounds differently."""
    optimizer, options = OPTIMIZERS[name]
    return optimizer(parameters, lr=learning_rate, **options, **({"fused": True} if fused else {}))


def recipe(name: OptimizerName, learning_rate: float, epochs: int, batch_size: int | None = None) -> Recipe:
    """What a scout does that this optimizer trains."""
    optimizer, options = OPTIMIZERS[name]
    return Recipe(learning_rate, epochs, batch_size, optimizer, options)


def usual_rate(name: OptimizerName, rate: float) -> float:
    """What stands for descent's ``rate`` with this optimizer, where all try the same list."""
    return ADAM_PER_RATE * rate if name in ADAMS else rate

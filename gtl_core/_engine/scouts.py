"""How scouts are trained: one after the other, or several side by side with the same result up to rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.training import Recipe

Task = tuple[Tensor, Tensor]
Scouts = list[Mapping[str, Tensor]]  # the parameters of each copy after its training

# Those that treat every number by itself, and so do not notice that a tensor holds several scouts.
ELEMENTWISE = {optim.SGD, optim.ASGD, optim.Rprop, optim.RMSprop, optim.Adagrad, optim.Adadelta}
ELEMENTWISE |= {optim.Adam, optim.AdamW, optim.Adamax, optim.NAdam, optim.RAdam}


def one_by_one(model: nn.Module, train_one: Callable[[nn.Module, Any], object], tasks: Sequence) -> Scouts:
    """Train a copy of ``model`` per task, one after the other: the reference. Any module, and any function."""
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    before = {name: p._version for name, p in frozen.items()}
    scouts = []
    for task in tasks:
        scout = _copy(model, frozen.values())
        train_one(scout, task)
        for name, p in frozen.items():
            if p._version != before[name] or p.requires_grad:
                raise ValueError(
                    f"train_one trained '{name}', which requires no gradient in the model and so is shared by all "
                    "scouts and the model itself: requires_grad_() before scouting"
                )
        scouts.append({name: p.detach() for name, p in scout.named_parameters() if name not in frozen})
    return scouts


def _copy(model: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    """A copy of the network that has the ``shared`` parameters in common with it."""
    memo: dict[int, Any] = {id(p): p for p in shared}
    # What a layer has computed and kept, and will compute again: torch does not copy such tensors.
    kept = (t for module in model.modules() for t in vars(module).values() if isinstance(t, Tensor))
    memo |= {id(t): t.detach().clone() for t in kept if not t.is_leaf}
    try:
        return copy.deepcopy(model, memo)
    except (RuntimeError, TypeError, copy.Error) as error:
        raise ValueError(f"the model cannot be copied, which every scout needs: {error}") from error


def together(model: nn.Module, recipe: Recipe, tasks: Sequence[Task]) -> Scouts:
    """Train all copies as one stacked network. Tasks must have the same shapes.

    Raises TypeError for an optimizer that is not elementwise, and for a network that `stack` refuses.
    """
    optimizer = getattr(recipe.optimizer, "func", recipe.optimizer)  # of one that is partially applied
    if optimizer not in ELEMENTWISE:
        raise TypeError(f"{optimizer.__name__} looks at whole tensors, which several scouts cannot share")
    inputs, labels = (torch.stack(tensors, 1) for tensors in zip(*tasks, strict=True))
    counts_all = recipe.loss is cross_entropy and not labels.is_floating_point() and bool((labels >= 0).all())

    def summed_loss(outputs: Tensor, labels: Tensor) -> Tensor:  # every copy gets the gradient that it would have alone
        return reduce(add, (recipe.loss(outputs[:, s], labels[:, s]) for s in range(len(tasks))))

    network = stack([model] * len(tasks))
    loss = stacked_cross_entropy if counts_all else summed_loss
    recipe.fit(network, inputs, labels, recipe.make(network.parameters(), fused=True), loss)
    return [{n: p.detach()[s] for n, p in network.named_parameters() if p.requires_grad} for s in range(len(tasks))]


def in_groups(tasks: Iterable[Task], size: int) -> Iterator[list[Task]]:
    """``tasks`` in order, at most ``size`` at once, all of a group of the same shapes."""
    group, shapes = [], None
    for task in tasks:
        its = None if size == 1 else [tensor.shape for tensor in task]
        if group and (len(group) == size or its != shapes):
            yield group
            group = []
        group.append(task)
        shapes = its
    if group:
        yield group

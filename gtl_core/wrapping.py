"""What it takes to wrap an optimizer that somebody else wrote."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.optim.optimizer as registry
from torch import Tensor
from torch.optim import Optimizer

N_STEPS = 32  # more than lie between two visits of Lookahead to its slow weights, usually 5 to 10


def of_the_wrapped(name: str) -> Any:
    """An attribute that ``self.optimizer`` owns: whoever reads, edits or assigns it in the wrapper does so there."""
    return property(lambda self: getattr(self.optimizer, name), lambda self, new: setattr(self.optimizer, name, new))


class HiddenGradients:
    """Gradients that an optimizer is not to see: it leaves alone what has none, to the last bit, and at no cost.

    Those of ``zeroed`` are 0 in its eyes: it makes a state for them.
    """

    def __init__(self, parameters: Sequence[Tensor], zeroed: Sequence[Tensor]) -> None:
        self.parameters, self.zeroed = parameters, zeroed
        self.gradients: dict[Tensor, Tensor | None] = {}

    def hide(self) -> None:
        """Take them out of sight."""
        self.gradients = {p: p.grad for p in self.parameters}
        for p in self.parameters:
            p.grad = None
        for p in self.zeroed:
            gradient = self.gradients[p]
            p.grad = None if gradient is None else torch.zeros_like(gradient)

    def show(self) -> None:
        """Put them back."""
        for p, gradient in self.gradients.items():
            p.grad = gradient
        self.gradients = {}


@contextmanager
def global_hooks_left_out() -> Iterator[None]:
    """Hooks on the steps of all optimizers see that of the wrapper; without this, the wrapped one, too."""
    registered: list[dict[int, Any]] = [registry._global_optimizer_pre_hooks, registry._global_optimizer_post_hooks]
    kept = [dict(hooks) for hooks in registered]
    for hooks in registered:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, those in zip(registered, kept, strict=True):
            hooks.update(those)


def keeps_own_weights(optimizer: Optimizer) -> bool:
    """Whether the optimizer goes on from weights that it keeps, not from where it finds the parameters: then what it
    does next undoes a guided step.

    Tried on two copies of the optimizer, each with its smallest parameter alone: one has this parameter moved after a
    step, and it must be as far from the other one `N_STEPS` steps later, and after ``eval()`` where there is one. Only
    weight decay, which is switched off, could else bring them together; Lookahead and schedule-free optimizers do.
    What torch.optim has is known and not tried. A RuntimeWarning if a copy cannot be made to step.
    """
    every = [p for group in optimizer.param_groups for p in group["params"]]
    movable = [p for p in every if p.is_floating_point() and p.numel() > 1]
    if type(optimizer).__module__.startswith(("torch.optim.", "gtl_core.")) or not movable:
        return False
    smallest = min(movable, key=Tensor.numel)
    try:
        stayed, moved = (_half_without_gradient(optimizer, smallest, every, by) for by in (0.0, 1.0))
    except Exception as error:
        name = type(optimizer).__name__
        doubt = f"a copy of {name} cannot be tried ({error}): if it keeps weights of its own, it undoes the guide"
        warnings.warn(doubt, RuntimeWarning, 3)
        return False
    return not torch.allclose(moved - stayed, torch.ones_like(moved), atol=0.05)


def _half_without_gradient(optimizer: Optimizer, smallest: Tensor, every: list[Tensor], by: float) -> Tensor:
    """Where it ends if it is moved ``by`` so much after the first step: then a copy of the weights has been made."""
    p = torch.nn.Parameter(smallest.detach().clone())
    twin = _twin(optimizer, smallest, p, every)
    half = p.data.view(-1)[: p.numel() // 2]
    gradient = torch.full_like(p, 1e-3)
    gradient.view(-1)[: len(half)] = 0

    def closure() -> Tensor:
        p.grad = gradient.clone()
        return gradient.new_ones(())

    if hasattr(twin, "train"):
        twin.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for those that draw: both copies the same
        for step in range(1 + N_STEPS):
            closure()
            twin.step(closure)
            if step == 0:
                half += by
    if hasattr(twin, "eval"):
        half += by  # so that an average has not come after
        twin.eval()
        half -= by
    return half


def _twin(optimizer: Optimizer, smallest: Tensor, p: Tensor, every: list[Tensor]) -> Any:
    """A copy of the optimizer with ``p`` in the place of the ``smallest`` parameter, and without the others."""
    others = (q for q in every if q is not smallest)
    states = (state for q, state in optimizer.state.items() if q is not smallest and isinstance(state, dict))
    not_copied = itertools.chain(others, *(state.values() for state in states))
    memo: dict[int, Any] = {id(t): t for t in not_copied if isinstance(t, Tensor)} | {id(smallest): p}
    # Not `deepcopy(optimizer)`, which keeps none of its attributes. No hooks, and no scheduler's wrapper of its step.
    own = {k: OrderedDict() if k.endswith("_hooks") else v for k, v in vars(optimizer).items() if k != "step"}
    twin = object.__new__(type(optimizer))
    twin.__dict__.update(copy.deepcopy(own, memo))
    for group in twin.param_groups:
        group["params"][:] = [q for q in group["params"] if q is p]
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    twin.param_groups[:] = [group for group in twin.param_groups if group["params"]]
    return twin

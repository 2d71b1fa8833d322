"""All steps of a training in one call of the C code: stacked `Blocks` with a linear head, by torch's usual optimizers.

While a copy learns, its parameters, gradients and what the optimizer keeps stay in the cache. The steps are those of
the optimizer, and of `Guided` around it, up to rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.optim.optimizer as registry
from torch import Tensor, nn, optim

from gtl_core._engine.blocks import Blocks, Call, hooked
from gtl_core.guided import Guided

Kept = list[Any] | None  # what an optimizer keeps, one tensor for each parameter


class Rule(ctypes.Structure):
    """How an optimizer steps; see ``blocks.c``."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("adam", "decoupled")),
        ("steps", ctypes.c_long),
        *((name, ctypes.c_double) for name in ("rate", "first", "second", "eps", "decay")),
    ]


def all_steps(network: nn.Module, inputs: Tensor, labels: Tensor, optimizer: optim.Optimizer, steps: int) -> bool:
    """Make ``steps`` steps on all examples, for `stacked_cross_entropy`, and return whether; if not, nothing was done.

    inputs [N, S, 1, side, side], labels [N, S] or [N, 1]. Refused are other layers, what the C code does not know of an
    optimizer, parameters that are frozen, hooks of any kind, and labels that are none.
    """
    parts: list[Any] = list(network.children())
    if len(parts) != 2 or not isinstance(parts[0], Blocks) or not parts[0].takes(inputs) or not torch.is_grad_enabled():
        return False
    body, head = parts
    parameters = [*body.trained(), head.weight, head.bias]
    if head.bias is None or not _as_expected(network, parameters, labels, len(head.bias[0])):
        return False
    known = _optimizer(optimizer, parameters)
    if known is None:
        return False
    rule, kept, weights = known
    call = Call(inputs, body.settings, parameters)
    if any(p.data_ptr() != own.data_ptr() for p, own in zip(call.parameters, parameters, strict=True)):
        return False  # it would train a copy, in the C code's order
    call.fit(labels.expand(-1, call.size), len(head.bias[0]), steps, rule, *kept, weights)
    torch.autograd.graph.increment_version(parameters)
    for p in parameters:
        p.grad = None
        if rule.adam:
            _unguided(optimizer).state[p]["step"] += steps
    return True


def _as_expected(network: nn.Module, parameters: Sequence[Tensor], labels: Tensor, n_way: int) -> bool:
    if any(map(hooked, network.modules())):
        return False
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in parameters):
        return False
    if any(not p.requires_grad or p.dtype != torch.float32 for p in parameters):
        return False
    return labels.dtype == torch.int64 and int(labels.min()) >= 0 and int(labels.max()) < n_way


def _unguided(optimizer: optim.Optimizer) -> optim.Optimizer:
    return optimizer.optimizer if isinstance(optimizer, Guided) else optimizer


def _optimizer(
    optimizer: optim.Optimizer, parameters: Sequence[Tensor]
) -> tuple[Rule, tuple[Kept, Kept], list[Tensor | None]] | None:
    """The rule, what it keeps, and the guide of every parameter; None if there is something else to it."""
    for one in {optimizer, _unguided(optimizer)}:
        if one._optimizer_step_pre_hooks or one._optimizer_step_post_hooks or "step" in vars(one):  # a scheduler's
            return None
    if registry._global_optimizer_pre_hooks or registry._global_optimizer_post_hooks:
        return None
    guides: dict[Tensor, Tensor] = {}
    if isinstance(optimizer, Guided):
        if (found := optimizer.shares()) is None:
            return None
        guides = found
    known = _rule(_unguided(optimizer), parameters)
    weights = [guides.get(p) for p in parameters]
    if known is None or any(
        w is not None and w.stride() != p.stride() for w, p in zip(weights, parameters, strict=True)
    ):
        return None
    return *known, weights


def _rule(optimizer: optim.Optimizer, parameters: Sequence[Tensor]) -> tuple[Rule, tuple[Kept, Kept]] | None:
    adam = type(optimizer) in (optim.Adam, optim.AdamW)
    if (not adam and type(optimizer) is not optim.SGD) or len(optimizer.param_groups) != 1:
        return None
    (group,) = optimizer.param_groups
    unknown = ("nesterov", "dampening", "amsgrad", "maximize", "capturable", "differentiable")
    if {*group["params"]} != {*parameters} or any(group.get(name) for name in unknown):
        return None
    if not all(isinstance(group[name], (int, float)) for name in ("lr", "weight_decay")):
        return None
    names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",) if group["momentum"] else ()
    states = [optimizer.state.get(p) or {} for p in parameters]
    kept = [[state.get(name) for state in states] for name in names]
    if any(t is None or t.stride() != p.stride() for ts in kept for t, p in zip(ts, parameters, strict=True)):
        return None  # it has not begun
    steps = {int(state["step"]) for state in states} if adam else {0}
    if len(steps) != 1:
        return None
    first, second = group["betas"] if adam else (group["momentum"], 0.0)
    decoupled = adam and bool(group.get("decoupled_weight_decay", type(optimizer) is optim.AdamW))
    rule = Rule(adam, decoupled, steps.pop(), group["lr"], first, second, group.get("eps", 0.0), group["weight_decay"])
    return rule, (kept[0] if kept else None, kept[1] if len(kept) > 1 else None)

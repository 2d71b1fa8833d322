"""The guided step: ``p <- before + g * (after - before)`` around one step of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from gtl_core.guide import Guide

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Several tensors at once; torch's own optimizers use them, its stubs do not export them.
_copy_all, _lerp_all = torch._foreach_copy_, torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]


class Guided(torch.optim.Optimizer):
    """Wrap an optimizer so that every parameter makes only its share g of the step.

    The law, for whatever the wrapped optimizer does (momentum, adaptive rates, weight decay included):
    ``p <- lerp(before, after, g)``, hence, for finite steps, bit-identical to the plain optimizer where g = 1 and
    bit-frozen where g = 0.
    Schedulers, `GradScaler`, closures and step hooks see an ordinary optimizer; `state_dict` is the wrapped one's, so a
    checkpoint moves freely between guided and plain training. Parameters without a gradient are left alone, as usual;
    buffers, such as BatchNorm's running statistics, are not parameters and follow the data, as usual.

    optimizer: any `torch.optim.Optimizer` over parameters of ``model`` but LBFGS, whose curvature history assumes that
        the point it proposed was reached.
    guide: one tensor per parameter of ``model``, on the parameter's device; checked here, ValueError if it misfits.
    unguided: what becomes of parameters for which the guide has no entry, such as a new task's head or the layers that
        an adapter is added to: ``"free"`` trains them as usual (g = 1), ``"frozen"`` keeps them (g = 0), and
        ``"error"`` refuses such a guide. `Guide.without` makes one.
    on: ``"step"``. ``"gradient"`` multiplies the gradient instead, as the authors' code does, and exists only to
        compare: adaptive optimizers divide the factor out again, and momentum or weight decay move frozen parameters.

    Give it the plain module, not the `DistributedDataParallel` or compiled wrapper around it. Parameters sharded by
    `fully_shard` (FSDP2) are guided by the same guide, of which each process keeps its shard.

    Source: arXiv 2303.16154 (Δw_g = g · Δw).
    """

    # The wrapped optimizer owns these; whoever reads or edits them here reads or edits the real ones.
    # torch declares attributes.
    param_groups = property(lambda self: self.optimizer.param_groups)  # pyright: ignore[reportAssignmentType]
    state = property(lambda self: self.optimizer.state)  # pyright: ignore[reportAssignmentType]
    defaults = property(lambda self: self.optimizer.defaults)

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        guide: Guide,
        *,
        unguided: str = "error",
        on: str = "step",
    ) -> None:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("Guided cannot wrap LBFGS: its history assumes that every step was taken in full")
        if on not in ("step", "gradient"):
            raise ValueError(f"on = {on!r}: must be 'step' or 'gradient'")
        if unguided not in ("error", "free", "frozen"):
            raise ValueError(f"unguided = {unguided!r}: must be 'error', 'free' or 'frozen'")
        guide.check(model, partial=unguided != "error")
        self.optimizer = optimizer
        self.on = on
        self._otherwise = float(unguided == "free")
        self._names = {p: name for name, p in model.named_parameters()}
        self._guide = guide
        self.__setstate__({})  # what Optimizer.__init__ does, without groups of its own
        self._attach()

    def _attach(self) -> None:
        self._frozen: list[Tensor] = []
        self._partial: list[Tensor] = []
        self._weights: list[Tensor] = []
        for p in (p for group in self.param_groups for p in group["params"]):
            if p not in self._names:
                raise ValueError(f"the optimizer holds a parameter of shape {tuple(p.shape)} that is not in the model")
            g = self._guide.get(self._names[p])
            if g is None:
                g = torch.full((), self._otherwise, device=p.device).expand(p.shape)
            if g.device != p.device:
                raise ValueError(f"guide for '{self._names[p]}' is on {g.device}, the model on {p.device}: guide.to()")
            if (g == 0).all() and self.on == "step":
                self._frozen.append(p)
            elif not (g == 1).all():
                self._partial.append(p)
                self._weights.append(_shard(g, p).to(p.dtype))
        self._before = [torch.empty_like(_local(p), requires_grad=False) for p in self._partial if self.on == "step"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one guided step; with a closure, return its loss."""
        hidden: list[tuple[Tensor, Tensor | None]] = []

        def restrained() -> Any:
            loss = None if closure is None else closure()
            # Optimizers skip what has no gradient: the cheapest way to leave a tensor untouched to the last bit.
            hidden[:] = [(p, p.grad) for p in self._frozen]
            for p in self._frozen:
                p.grad = None
            if self.on == "gradient":
                for p, g in zip(self._partial, self._weights, strict=True):
                    if p.grad is not None:
                        _local(p.grad).mul_(g)
            return loss

        if self._before:
            with torch.no_grad():
                _copy_all(self._before, [_local(p) for p in self._partial])
        try:
            if closure is None:
                restrained()
                loss = self.optimizer.step()
            else:
                loss = self.optimizer.step(restrained)
        finally:
            for p, gradient in hidden:
                p.grad = gradient
        if self._before:
            with torch.no_grad():
                after = [_local(p) for p in self._partial]
                _lerp_all(self._before, after, self._weights)
                _copy_all(after, self._before)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict) -> None:
        self.optimizer.add_param_group(param_group)
        try:
            self._attach()
        except ValueError:
            self.param_groups.pop()
            self._attach()
            raise

    def state_dict(self) -> dict:
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.optimizer.load_state_dict(state_dict)

    def __getstate__(self) -> dict:
        # Schedulers put a wrapper of this very object's step into its __dict__: a copy must not step the original.
        return {name: value for name, value in self.__dict__.items() if name != "step"}


def _sharded(p: Tensor) -> TypeGuard[DTensor]:
    return hasattr(p, "to_local")  # without the import, which takes long and few need


def _local(p: Tensor) -> Tensor:
    """What this process holds of a parameter: all of it, unless it is sharded."""
    return p.to_local().detach() if _sharded(p) else p


def _shard(g: Tensor, p: Tensor) -> Tensor:
    """The same part of a guide's tensor. Every process has the whole guide, so nothing needs to be sent."""
    if not _sharded(p):
        return g
    from torch.distributed.tensor import distribute_tensor

    return _local(distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None))

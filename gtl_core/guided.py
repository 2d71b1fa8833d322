"""The guided step: ``p <- before + g * (after - before)`` around one step of any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from gtl_core.guide import Guide
from gtl_core.wrapping import HiddenGradients, global_hooks_left_out, keeps_own_weights, of_the_wrapped

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Several tensors at once; torch's own optimizers use them, its stubs do not export them.
_copy_all, _lerp_all = torch._foreach_copy_, torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]


class Guided(torch.optim.Optimizer):
    """Wrap an optimizer so that every parameter makes only its share g of the step.

    The law, for whatever the wrapped optimizer does (momentum, adaptive rates, weight decay included):
    ``p <- lerp(before, after, g)``, hence, for finite steps, bit-identical to the plain optimizer where g = 1 and
    bit-frozen where g = 0.
    Schedulers, `GradScaler`, closures and hooks see an ordinary optimizer; `state_dict` is the wrapped one's, so a
    checkpoint moves freely between guided and plain training. Parameters without a gradient are left alone, as usual;
    buffers, such as BatchNorm's running statistics, are not parameters and follow the data, as usual.
    Parameters that are replaced, added to the groups, moved or converted later are found again by their names in
    ``model``, at the next step, and refused as here if the guide does not fit them.

    optimizer: any `torch.optim.Optimizer` over parameters of ``model`` that steps from where they are: all of
        torch.optim but LBFGS, whose curvature history assumes that the point it proposed was reached; of others those
        without weights of their own (`keeps_own_weights`: not schedule-free, Lookahead or averaging ones). ASGD's
        average, which its steps do not use, is of the points that it proposed. ValueError for those.
    guide: one tensor per parameter of ``model`` that is trained; checked here, ValueError if it misfits.
    unguided: what becomes of parameters for which the guide has no entry, such as a new task's head or the layers that
        an adapter is added to: ``"free"`` trains them as usual (g = 1), ``"frozen"`` keeps them (g = 0), and
        ``"error"`` refuses such a guide. `Guide.without` makes one.
    on: ``"step"``. ``"gradient"`` multiplies the gradient instead, as the authors' code does, and exists only to
        compare: adaptive optimizers divide the factor out again, and momentum or weight decay move frozen parameters.

    Give it the plain module, not the `DistributedDataParallel` or compiled wrapper around it. Parameters sharded by
    `fully_shard` (FSDP2) are guided by the same guide, of which each process keeps its shard.

    Source: arXiv 2303.16154 (Δw_g = g · Δw).
    """

    param_groups = of_the_wrapped("param_groups")
    state = of_the_wrapped("state")
    defaults = of_the_wrapped("defaults")

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        guide: Guide,
        *,
        unguided: str = "error",
        on: str = "step",
    ) -> None:
        if on not in ("step", "gradient"):
            raise ValueError(f"on = {on!r}: must be 'step' or 'gradient'")
        if unguided not in ("error", "free", "frozen"):
            raise ValueError(f"unguided = {unguided!r}: must be 'error', 'free' or 'frozen'")
        kinds = {"optimizer": torch.optim.Optimizer, "model": nn.Module, "guide": Guide}
        for (name, kind), value in zip(kinds.items(), (optimizer, model, guide), strict=True):
            if not isinstance(value, kind):
                raise TypeError(f"{name}: must be an instance of {kind.__name__}, not of {type(value).__name__}")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise ValueError("Guided cannot wrap LBFGS: its history assumes that every step was taken in full")
        if keeps_own_weights(optimizer):
            name = type(optimizer).__name__
            raise ValueError(f"Guided cannot wrap {name}: it goes on from weights of its own, not from guided ones")
        self.optimizer = optimizer
        self.model = model
        self.guide = guide
        self.unguided = unguided
        self.on = on
        self.__setstate__({})  # what Optimizer.__init__ does, without groups of its own
        self._attach()

    def _attach(self) -> None:
        """Find out by name which g each parameter in the groups has; as they are now is what `step` compares with."""
        self.guide.check(self.model, partial=self.unguided != "error")
        names = {p: name for name, p in self.model.named_parameters()}
        self._frozen: list[Tensor] = []
        self._partial: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._held = [p for group in self.param_groups for p in group["params"]]  # or an id might be used again
        for p in self._held:
            if p not in names:
                raise ValueError(f"the optimizer holds a parameter of shape {tuple(p.shape)} that is not in the model")
            g = self.guide.get(names[p])
            if g is None:
                g = torch.full((), float(self.unguided == "free")).expand(p.shape)
            if (g == 0).all() and self.on == "step":
                self._frozen.append(p)
            elif not (g == 1).all():
                self._partial.append(p)
                self._weights.append(_laid_out_as(_local(p), _shard(g.to(p.device), p).to(p.dtype)))
        self._before = [torch.empty_like(_local(p), requires_grad=False) for p in self._partial if self.on == "step"]
        self._without_state = [p for p in self._frozen if not self.state.get(p)]
        self._attached = self._parameters()

    def _parameters(self) -> list[tuple]:
        """The parameters in the groups, and what of each the guide has to fit; their own ids, since tensors compare
        element by element."""
        every = (p for group in self.param_groups for p in group["params"])
        return [(id(p), p.shape, p.dtype, p.device, p.requires_grad) for p in every]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one guided step; with a closure, return its loss."""
        if self._parameters() != self._attached:
            self._attach()
        # A checkpoint needs a state for each parameter: the first step of a frozen one is made, and taken back.
        taken_back = [(p, _local(p).detach().clone()) for p in self._without_state]
        gradients = HiddenGradients(self._frozen, self._without_state)

        def restrained() -> Any:
            gradients.show()
            loss = None if closure is None else closure()
            gradients.hide()
            if self.on == "gradient":
                for p, g in zip(self._partial, self._weights, strict=True):
                    if p.grad is not None:
                        _local(p.grad).mul_(g)
            return loss

        with torch.no_grad():
            if self._before:
                _copy_all(self._before, [_local(p) for p in self._partial])
        try:
            with global_hooks_left_out():
                if closure is None:
                    restrained()
                    loss = self.optimizer.step()
                else:
                    # Already before it: optimizers that look around first, as SAM does, start from these gradients.
                    gradients.hide()
                    loss = self.optimizer.step(restrained)
        finally:
            self._without_state = [p for p in self._without_state if p.grad is None]
            gradients.show()
        with torch.no_grad():
            for p, before in taken_back:
                _local(p).copy_(before)
            if self._before:
                after = [_local(p) for p in self._partial]
                _lerp_all(self._before, after, self._weights)
                _copy_all(after, self._before)
        return loss

    def shares(self) -> dict[Tensor, Tensor] | None:
        """The g of every parameter that goes a part of its steps; None if some go none, or if gradients are scaled."""
        if self._parameters() != self._attached:
            self._attach()
        if self.on != "step" or self._frozen:
            return None
        return dict(zip(self._partial, self._weights, strict=True))

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
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self.optimizer.state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        return state_dict

    def load_state_dict(self, state_dict: dict) -> None:
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self.optimizer.load_state_dict(state_dict)
        self._attach()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict:
        # Schedulers put a wrapper of this very object's step into its __dict__: a copy must not step the original.
        return {name: value for name, value in self.__dict__.items() if name not in ("step", "_attached")}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self._attached = []  # ids are not those of the original


def _sharded(p: Tensor) -> TypeGuard[DTensor]:
    return hasattr(p, "to_local")  # without the import, which takes long and few need


def _local(p: Tensor) -> Tensor:
    """What this process holds of a parameter: all of it, unless it is sharded."""
    return p.to_local().detach() if _sharded(p) else p


def _laid_out_as(p: Tensor, g: Tensor) -> Tensor:
    """The same g, in memory as its parameter, or elementwise steps on many tensors at once would go one by one."""
    return g if g.stride() == p.stride() else torch.empty_like(p, requires_grad=False).copy_(g)


def _shard(g: Tensor, p: Tensor) -> Tensor:
    """The same part of a guide's tensor. Every process has the whole guide, so nothing needs to be sent."""
    if not _sharded(p):
        return g
    from torch.distributed.tensor import distribute_tensor

    return _local(distribute_tensor(g, p.device_mesh, p.placements, src_data_rank=None))

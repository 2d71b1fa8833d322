"""Many copies of a small network trained side by side as one: the same arithmetic with a fraction of the overhead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, group_norm

from gtl_core.guide import Guide


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One network that holds all ``models`` (of one architecture): [N, S, ...] -> [N, S, ...], copy s sees ``[:, s]``.

    Parameters keep their names and get a leading dimension S. Elementwise optimizers, `Guided` with `stack_guide`, and
    `stacked_cross_entropy` then train every copy as it would be trained alone, up to rounding. The convolutions of all
    copies run as the groups of one: on a CPU, small networks then no longer wait for Python.

    Raises TypeError for a layer that it does not know.
    """
    first = models[0]
    if isinstance(first, nn.Sequential):
        names = [name for name, _ in first.named_children()]
        return nn.Sequential(OrderedDict((name, stack([m.get_submodule(name) for m in models])) for name in names))
    if isinstance(first, nn.Flatten):
        return nn.Flatten(first.start_dim + 1, first.end_dim)
    if not list(first.parameters()) and isinstance(first, (nn.ReLU, nn.Tanh, nn.Sigmoid)):
        return first
    if type(first) in _LAYERS:
        return _LAYERS[type(first)](models)
    known = ", ".join(layer.__name__ for layer in _LAYERS)
    raise TypeError(f"cannot stack a {type(first).__name__}: the layers with parameters that can be are {known}")


def stack_guide(guide: Guide, size: int) -> Guide:
    """The same guide for each of ``size`` copies."""
    return Guide({name: g.expand(size, *g.shape) for name, g in guide.items()}, guide.metadata)


def stacked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over copies of each one's mean cross-entropy: every copy gets the gradient that it would have alone.

    logits [N, S, n_way]; labels [N, S], or [N, 1] where they are the same for all copies.
    """
    size = logits.shape[1]
    return size * cross_entropy(logits.flatten(0, 1), labels.expand(-1, size).flatten())


class _Stacked(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for name, _ in layers[0].named_parameters():
            copies = [layer.get_parameter(name).detach() for layer in layers]
            self.register_parameter(name, nn.Parameter(torch.stack(copies)))
        self.size = len(layers)
        self.settings = {name: getattr(layers[0], name) for name in self.uses}


class _Conv2d(_Stacked):
    uses = ("stride", "padding", "dilation")

    def forward(self, x: Tensor) -> Tensor:
        y = conv2d(x.flatten(1, 2), self.weight.flatten(0, 1), self.bias.flatten(), groups=self.size, **self.settings)
        return y.unflatten(1, (self.size, -1))


class _GroupNorm(_Stacked):
    uses = ("num_groups", "eps")

    def forward(self, x: Tensor) -> Tensor:
        groups = self.size * self.settings["num_groups"]
        y = group_norm(x.flatten(1, 2), groups, self.weight.flatten(), self.bias.flatten(), self.settings["eps"])
        return y.unflatten(1, (self.size, -1))


class _Linear(_Stacked):
    uses = ()

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)


_LAYERS = {nn.Conv2d: _Conv2d, nn.GroupNorm: _GroupNorm, nn.Linear: _Linear}

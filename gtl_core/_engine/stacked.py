"""Many copies of a small network trained side by side as one: the same arithmetic with a fraction of the overhead.

Between layers, images are [N, S * channels, height, width] with channels innermost in memory, so that a convolution of
all copies is one grouped convolution that need not rearrange anything; vectors are [N, S, features].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, group_norm, max_pool2d
from torch.optim import Optimizer

from gtl_core._engine.at_once import all_steps
from gtl_core._engine.blocks import Blocks, hooked, in_its_order
from gtl_core._engine.pooled import PooledBlocks
from gtl_core.guide import Guide


def stack(models: Sequence[nn.Module]) -> nn.Module:
    """One network that holds all ``models`` (of one architecture): [N, S, ...] -> [N, S, ...], copy s sees ``[:, s]``.

    Parameters keep their names and get a leading dimension S. Elementwise optimizers, `Guided` with `stack_guide`, and
    `stacked_cross_entropy` then train every copy as it would be trained alone, up to rounding. What is frozen stays so.

    Raises TypeError for a layer that it does not know, a layer with hooks, and shared parameters.
    """
    network = _stack(models)
    if isinstance(network, nn.Sequential):
        return Stacked(network, len(models))
    if isinstance(network, Linear):
        return network
    raise TypeError(f"cannot stack a {type(models[0]).__name__} that is not in a Sequential")


class Stacked(nn.Sequential):
    """The layers of ``size`` networks, and what goes in and comes out in the order that `stack` promises."""

    def __init__(self, layers: nn.Sequential, size: int) -> None:
        super().__init__(OrderedDict(layers.named_children()))
        self.size = size

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if x.dim() > 3 and not isinstance(self[0], StackedBlocks):
            x = _side_by_side(x)
        y = super().forward(x)
        return y.unflatten(1, (self.size, -1)) if y.dim() > 3 else y

    def all_steps(self, inputs: Tensor, labels: Tensor, optimizer: Optimizer, steps: int, loss: object) -> bool:
        """As `gtl_core._engine.at_once.all_steps`, if this is the loss that it knows."""
        return loss is stacked_cross_entropy and all_steps(self, inputs, labels, optimizer, steps)


class StackedBlocks(Blocks):
    """`Blocks` of several networks, which take their images apart: [N, S, 1, side, side]."""

    def __init__(self, layers: OrderedDict[str, nn.Module]) -> None:
        super().__init__(layers)
        if self.settings is not None:  # what computes with weights says how they lie in memory
            for layer in layers.values():
                if isinstance(layer, Conv2d):
                    layer.weight.data = in_its_order(layer.weight.data)

    def by_layers(self, input: Tensor) -> Tensor:
        return super().by_layers(_side_by_side(input) if input.dim() == 5 else input)


def _side_by_side(images: Tensor) -> Tensor:
    return images.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _stack(models: Sequence[nn.Module]) -> nn.Module:
    first = models[0]
    name = type(first).__name__
    if hooked(first):
        raise TypeError(f"cannot stack a {name} with hooks")
    if type(first) in (nn.Sequential, Blocks, PooledBlocks):
        if len(list(first.named_parameters())) < len(list(first.named_parameters(remove_duplicate=False))):
            raise TypeError("cannot stack a network with shared parameters")
        # Not `named_children`, which leaves out a layer that comes a second time.
        layers = OrderedDict((key, _stack([m.get_submodule(key) for m in models])) for key in first._modules)
        blocks = StackedBlocks(layers)
        return blocks if blocks.settings else nn.Sequential(layers)
    if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1):
        return Flatten(models)
    if type(first) in (nn.ReLU, nn.Tanh, nn.Sigmoid):
        return type(first)()
    if type(first) not in _LAYERS:
        known = ", ".join(layer.__name__ for layer in (*_LAYERS, nn.Flatten, nn.ReLU, nn.Tanh, nn.Sigmoid))
        raise TypeError(f"cannot stack a {name}: the layers that can be are {known}")
    layer = _LAYERS[type(first)]
    changed = [key for key, value in layer.takes if getattr(first, key) != value]
    changed += ["padding"] * isinstance(getattr(first, "padding", 0), str)
    if changed:
        raise TypeError(f"cannot stack a {name} with {changed[0]} = {getattr(first, changed[0])!r}")
    return layer(models)


def stack_guide(guide: Guide, size: int) -> Guide:
    """The same guide for each of ``size`` copies."""
    return Guide({name: g.expand(size, *g.shape) for name, g in guide.items()}, guide.metadata)


def stacked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over copies of each one's mean cross-entropy: every copy gets the gradient that it would have alone.

    logits [N, S, n_way]; labels [N, S], or [N, 1] where they are the same for all copies.
    """
    size = logits.shape[1]
    return size * cross_entropy(logits.flatten(0, 1), labels.expand(-1, size).flatten())


def _parameter(copies: list[nn.Parameter]) -> nn.Parameter:
    stacked = torch.stack(tuple(copies)).detach()
    if stacked.dim() == 5:  # weights of convolutions [S, out, in, height, width], channels innermost as in images
        stacked = stacked.movedim(2, 4).contiguous().movedim(4, 2)
    return nn.Parameter(stacked, requires_grad=copies[0].requires_grad)


class _Layer(nn.Module):
    """A layer of ``size`` networks, on images or vectors as they are between layers."""

    takes: tuple[tuple[str, object], ...] = ()  # settings, and the only value of each that can be stacked
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size, self.first = len(layers), f"{layers[0]}"
        for name in ("weight", "bias"):
            copies = [p for layer in layers if (p := getattr(layer, name, None)) is not None]
            self.register_parameter(name, _parameter(copies) if copies else None)

    def extra_repr(self) -> str:
        return f"{self.size} x {self.first}"

    def flat(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as one layer of S * channels takes them."""
        return self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten()


class Conv2d(_Layer):
    takes = (("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros"))

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        super().__init__(layers)
        self.stride, self.padding = layers[0].stride, cast(tuple[int, int], layers[0].padding)  # "same" is refused

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.flat()
        return conv2d(x, weight, bias, self.stride, self.padding, groups=self.size)


class GroupNorm(_Layer):
    takes = (("affine", True),)

    def __init__(self, layers: Sequence[nn.GroupNorm]) -> None:
        super().__init__(layers)
        self.num_groups, self.eps = layers[0].num_groups, layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        n_groups = self.size * self.num_groups
        if x.dim() == 3:
            return group_norm(x.flatten(1), n_groups, *self.flat(), self.eps).view_as(x)
        return group_norm(x, n_groups, *self.flat(), self.eps)


class BatchNorm2d(_Layer):
    # Running statistics would be one more thing to stack; statistics of the batch are each copy's own.
    takes = (("affine", True), ("track_running_stats", False))

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__(layers)
        self.eps = layers[0].eps

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, None, None, *self.flat(), training=True, eps=self.eps)


class MaxPool2d(_Layer):
    takes = (("dilation", 1), ("ceil_mode", False), ("return_indices", False))

    def __init__(self, layers: Sequence[nn.MaxPool2d]) -> None:
        super().__init__(layers)
        self.settings = layers[0].kernel_size, layers[0].stride, layers[0].padding

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, *self.settings)


class Flatten(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.dim() == 3 else x.unflatten(1, (self.size, -1)).flatten(2)


class Linear(_Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 2, 0)  # [S, features, N]: so the weights' gradient comes out in their own order
        y = torch.bmm(self.weight, x) if self.bias is None else torch.baddbmm(self.bias[..., None], self.weight, x)
        return y.permute(2, 0, 1)


_LAYERS = {
    nn.Conv2d: Conv2d,
    nn.GroupNorm: GroupNorm,
    nn.BatchNorm2d: BatchNorm2d,
    nn.Linear: Linear,
    nn.MaxPool2d: MaxPool2d,
}

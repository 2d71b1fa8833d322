"""A training pass of a stacked network without autograd's graph: each layer leaves a function that undoes it.

Images pass as [N, S * C, height, width] with channels innermost in memory, so that a convolution of all copies is one
grouped convolution; vectors as [S, N, features], so that a linear layer is one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gtl_core._engine import stacked

aten = torch.ops.aten
Undo = Callable[[Tensor, bool], list[Tensor | None]]  # (dy, whether dx is needed) -> dx, gradients of the parameters


class Taped(nn.Module):
    """`stack` for training alone: the same parameters and, up to rounding, the same [N, S, ...] -> [N, S, ...].

    Faster than a `Program` with many examples, for which products over patches of images are too large for the cache.
    Layers without a rule here are left to autograd, one by one.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.network = stacked.stack(models, graph=True)
        self.layers = [layer for layer in self.network.modules() if type(layer) is not nn.Sequential]
        for p in self.network.parameters():
            if p.dim() == 5:  # [S, out, in, height, width], as a grouped convolution takes it
                p.data = p.detach().movedim(2, 4).contiguous().movedim(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return _Pass.apply(self.layers, x, *self.network.parameters())


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layers: Sequence[nn.Module], x: Tensor, *parameters: Tensor) -> Tensor:
        size = x.shape[1]
        x = x.transpose(0, 1) if x.dim() == 3 else x.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        ctx.tape = []
        for layer in layers:
            x, undo = _RULES.get(type(layer), _by_autograd)(layer, x, size)
            ctx.tape.append(undo)
        return x.transpose(0, 1)

    @staticmethod
    @once_differentiable
    # What `once_differentiable` returns has no types.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        dx, gradients = grad_outputs[0].transpose(0, 1), []
        while ctx.tape:
            undo = ctx.tape.pop()  # with the activations that it holds
            dx, *own = undo(dx, bool(ctx.tape))
            gradients = own + gradients
        return None, None, *gradients


def _convolution(layer: stacked.Conv2d, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    weight, bias = layer.weight.detach().flatten(0, 1), layer.flat_bias()
    settings = (layer.stride, layer.padding, (1, 1), False, (0, 0), size)

    def undo(dy: Tensor, further: bool) -> list[Tensor | None]:
        wanted = (further, True, bias is not None)
        dx, dw, db = aten.convolution_backward(dy, x, weight, [len(weight)], *settings, wanted)
        return [dx, dw.unflatten(0, (size, -1)), *([] if db is None else [db.view(size, -1)])]

    return aten.convolution(x, weight, bias, *settings), undo


def _normalization(layer: stacked.GroupNorm, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    if x.dim() == 3:
        return _by_autograd(layer, x, size)
    n, channels, pixels = *x.shape[:2], x.shape[2:].numel()
    weight, groups = layer.weight.detach().flatten(), size * layer.num_groups
    y, mean, scale = aten.native_group_norm(x, weight, layer.flat_bias(), n, channels, pixels, groups, layer.eps)

    def undo(dy: Tensor, further: bool) -> list[Tensor | None]:
        wanted = (True, True, True)
        dx, dw, db = aten.native_group_norm_backward(dy, x, mean, scale, weight, n, channels, pixels, groups, wanted)
        return [dx, dw.view(size, -1), db.view(size, -1)]

    return y, undo


def _linear(layer: stacked.Linear, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    weight, bias = layer.weight.detach(), layer.bias

    def undo(dy: Tensor, further: bool) -> list[Tensor | None]:
        gradients = [torch.bmm(dy.mT, x), *([] if bias is None else [dy.sum(1)])]
        return [torch.bmm(dy, weight) if further else None, *gradients]

    y = torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.detach()[:, None], x, weight.mT)
    return y, undo


def _relu(layer: nn.ReLU, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    y = torch.relu(x)
    return y, lambda dy, further: [aten.threshold_backward(dy, y, 0)]


def _flatten(layer: stacked.Flatten, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    if x.dim() == 3:
        return x, lambda dy, further: [dy]
    images = x.unflatten(1, (size, -1))

    def undo(dy: Tensor, further: bool) -> list[Tensor | None]:
        dx = dy.transpose(0, 1).unflatten(2, images.shape[2:]).flatten(1, 2)
        return [dx.contiguous(memory_format=torch.channels_last)]

    return images.transpose(0, 1).flatten(2), undo


def _by_autograd(layer: nn.Module, x: Tensor, size: int) -> tuple[Tensor, Undo]:
    def apart(x: Tensor) -> Tensor:  # [N, S, ...]
        return x.transpose(0, 1) if x.dim() == 3 else x.unflatten(1, (size, -1))

    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = layer(apart(x))
        y = y.transpose(0, 1) if y.dim() == 3 else y.flatten(1, 2)
    sources = [x, *layer.parameters()]
    return y.detach(), lambda dy, further: list(torch.autograd.grad(y, sources, dy))


_RULES = {
    stacked.Conv2d: _convolution,
    stacked.GroupNorm: _normalization,
    stacked.Linear: _linear,
    stacked.Flatten: _flatten,
    nn.ReLU: _relu,
}

"""Convolutional blocks with max-pooling in one pass, by C code (``pooled.c``); `Blocks` has strides instead."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, relu

from gtl_core._engine.blocks import MOST_BLOCKS, MOST_PIXELS, fits, in_its_order, library, plain, pointers, windows


class PooledBlocks(nn.Sequential):
    """A body of blocks, each of a 3x3 convolution without padding, 2x2 max-pooling and ReLU, then Flatten; in one pass.

    As `nn.Sequential` of the same layers, images [N, 1, side, side] -> features [N, F]. Torch computes what follows
    Flatten, and everything if a layer is of another kind.
    """

    @property
    def n_blocks(self) -> int:
        """How many blocks there are; 0 if some layer is of another kind."""
        layers: list[Any] = list(self)
        types = [type(layer) for layer in layers]
        n = types.index(nn.Flatten) // 3 if nn.Flatten in types else 0
        if not 1 <= n <= MOST_BLOCKS or types[: 3 * n + 1] != [*[nn.Conv2d, nn.MaxPool2d, nn.ReLU] * n, nn.Flatten]:
            return 0
        convolutions, pools, flatten = layers[: 3 * n : 3], layers[1 : 3 * n : 3], layers[3 * n]
        if not all(fits(c.weight) and c.bias is not None and windows(c, 1, 0) for c in convolutions):
            return 0
        if [c.weight.shape[1] for c in convolutions] != [1, *(len(c.weight) for c in convolutions[:-1])]:
            return 0
        halves = all((p.kernel_size, p.stride, p.padding, p.dilation) == (2, 2, 0, 1) for p in pools)
        halves &= not any(p.ceil_mode or p.return_indices for p in pools)
        return n if halves and (flatten.start_dim, flatten.end_dim) == (1, -1) else 0

    def takes(self, input: Tensor) -> bool:
        """Whether the C code can be given these images."""
        n, side = self.n_blocks, input.shape[-1]
        if not n or input.requires_grad or input.dim() != 4 or input.shape[1:] != (1, side, side):
            return False
        return 0 < side**2 <= MOST_PIXELS and _sides(side, n)[-1] > 0 and plain(self, input)

    def forward(self, input: Tensor) -> Tensor:
        if not self.takes(input):
            return super().forward(input)
        layers: list[Any] = list(self)
        end = [type(layer) for layer in layers].index(nn.Flatten)  # of the blocks
        features = _Features.apply(input, *(p for layer in layers[:end:3] for p in (layer.weight, layer.bias)))
        for layer in layers[end + 1 :]:
            features = layer(features)
        return features


def _sides(side: int, n_blocks: int) -> list[int]:
    """Of the images that each block takes, and of what the last one puts out."""
    sides = [side]
    for _ in range(n_blocks):
        sides.append((sides[-1] - 2) // 2)
    return sides


class _Features(torch.autograd.Function):
    """images [N, 1, side, side], then weight and bias of every block -> features [N, F]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, *parameters: Tensor) -> Tensor:
        ordered = [(in_its_order(p[None])[0] if p.dim() == 4 else p.contiguous()).detach() for p in parameters]
        images = images.contiguous()
        sides = _sides(images.shape[-1], len(parameters) // 2)
        kept = any(ctx.needs_input_grad[1:])
        n = len(images) if kept else library().chunk()
        sizes = [(n, side**2 * len(bias)) for side, bias in zip(sides[1:], parameters[1::2], strict=True)]
        chosen = [images.new_empty(size, dtype=torch.int32) for size in sizes]
        passed = [images.new_empty(size) for size in sizes[:-1]]
        features = images.new_empty(len(images), sizes[-1][1])
        arguments = _arguments(images, ordered, sides, chosen, passed)
        library().pooled_forward(*arguments, int(kept), ctypes.c_void_p(features.data_ptr()))
        if kept:
            ctx.save_for_backward(images, *parameters)
            ctx.ordered, ctx.sides, ctx.chosen, ctx.passed = ordered, sides, chosen, passed
        return features

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        images, *parameters = ctx.saved_tensors  # an error, if something has changed since
        if torch.is_grad_enabled():  # these gradients will be differentiated in their turn, which is torch's business
            needed = [p for p in parameters if p.requires_grad]
            found = iter(torch.autograd.grad(_layers(images, parameters), needed, *gradients, create_graph=True))
            return None, *(next(found) if p.requires_grad else None for p in parameters)
        gradient, found = gradients[0].contiguous(), [torch.empty_like(p) for p in ctx.ordered]
        arguments = _arguments(images, ctx.ordered, ctx.sides, ctx.chosen, ctx.passed)
        library().pooled_backward(*arguments, ctypes.c_void_p(gradient.data_ptr()), pointers(found))
        return None, *found


def _arguments(
    images: Tensor, ordered: Sequence[Tensor], sides: Sequence[int], chosen: Sequence[Tensor], passed: Sequence[Tensor]
) -> tuple:
    """What the C code is told, whichever way it goes."""
    shapes = [n for w, side in zip(ordered[::2], sides, strict=False) for n in (w.shape[1], w.shape[0], side)]
    numbers = (len(sides) - 1, (ctypes.c_int * len(shapes))(*shapes), pointers(ordered), len(images))
    return *numbers, ctypes.c_void_p(images.data_ptr()), pointers(chosen), pointers(passed)


def _layers(images: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    x = images
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        x = relu(max_pool2d(conv2d(x, weight, bias), 2))
    return x.flatten(1)

"""A training pass of a stacked network, prepared once and replayed: products and elementwise operations, no graph.

A small network on a CPU waits for Python, for the allocator and for cache misses more than for arithmetic. So every
operation of the forward and the backward pass is bound once to its operands, in buffers that stay, and a step is
``for operation in operations: operation()``. All copies go through each operation together; a convolution is one
batched matrix product over columns of image patches ("im2col"), with channels innermost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial as bind
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
Operations = list[Callable[[], object]]


class Program:
    """Forward and backward pass of stacked ``layers`` for one batch shape.

    Write inputs to ``x`` [S, N, ...] (images: [S, N, height, width, channels]), call `forward`, read ``y`` [S, N, ...];
    write the loss's gradient to ``dy``, call `backward`, read ``gradients``, one per parameter in the layers' order.
    """

    def __init__(self, layers: Sequence[nn.Module], x: Tensor) -> None:
        size, n, channels, *image = x.transpose(0, 1).shape
        shape = (*image, channels)
        self.cells: list[_Cell] = []
        for layer in layers:
            cell = getattr(layer, "cell", Activation)
            self.cells.append(cell(layer, (size, n, *shape), x))
            shape = self.cells[-1].shape
        self.x, self.y = self.cells[0].x, x.new_empty(size, n, *shape)
        self._forward: Operations = []
        for cell, y in zip(self.cells, [cell.x for cell in self.cells[1:]] + [self.y], strict=True):
            self._forward += cell.forward(y)
        self.dy = dy = torch.empty_like(self.y)
        self._backward: Operations = []
        for cell in reversed(self.cells):
            operations, dy = cell.backward(dy, further=cell is not self.cells[0])
            self._backward += operations
        self.gradients = [gradient for cell in self.cells for gradient in cell.gradients]
        self.run = 0  # number of the latest forward pass, whose values the buffers hold

    def forward(self) -> None:
        self.run += 1
        for operation in self._forward:
            operation()

    def backward(self) -> None:
        for operation in self._backward:
            operation()


def knows(layer: nn.Module) -> bool:
    """Whether a `Program` can have this layer."""
    return hasattr(layer, "cell") or type(layer) in _ACTIVATIONS


class Replay(torch.autograd.Function):
    """A `Program` as one node of autograd's graph: inputs [N, S, ...] -> outputs [N, S, ...]."""

    @staticmethod
    def forward(ctx: Any, program: Program, x: Tensor, *parameters: Tensor) -> Tensor:
        program.x.copy_(_channels_last(x))
        program.forward()
        ctx.program, ctx.run = program, program.run
        y = program.y
        return y.permute(1, 0, y.dim() - 1, *range(2, y.dim() - 1)).clone()

    @staticmethod
    @once_differentiable
    # What `once_differentiable` returns has no types.
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.program.run != ctx.run:
            raise RuntimeError("a stacked network was called again before backward(): its buffers hold the later call")
        ctx.program.dy.copy_(_channels_last(grad_outputs[0]))
        ctx.program.backward()
        return None, None, *(gradient.clone() for gradient in ctx.program.gradients)


def _channels_last(x: Tensor) -> Tensor:
    """[N, S, channels, ...] -> [S, N, ..., channels], as programs have it."""
    return x.permute(1, 0, *range(3, x.dim()), 2)


class _Cell:
    """One layer in a program: ``x`` is where it wants its input, ``shape`` that of its output for one example.

    layer: one of `stacked`, which imports this module and so cannot be named as a type here.
    """

    layer: Any

    def __init__(self, layer: Any, shape: tuple[int, ...], like: Tensor) -> None:
        self.layer, self.x, self.shape = layer, like.new_empty(shape), shape[2:]
        self.gradients: list[Tensor] = []

    def forward(self, y: Tensor) -> Operations:
        """Operations that compute the output into ``y``."""
        raise NotImplementedError

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        """Operations that turn ``dy`` into gradients, and where the input's will be, if it is needed ``further``."""
        raise NotImplementedError


class Convolution(_Cell):
    def __init__(self, layer: Any, shape: tuple[int, ...], like: Tensor) -> None:
        self.layer = layer
        size, n, *image, channels = shape
        *_, height, width = layer.weight.shape
        self.weight = layer.weight.detach().permute(0, 3, 4, 2, 1).view(size, -1, layer.weight.shape[1])
        (a, b), (p, q) = layer.stride, layer.padding
        padded = like.new_zeros(size, n, image[0] + 2 * p, image[1] + 2 * q, channels)
        self.x = padded[:, :, p : p + image[0], q : q + image[1]]
        self.windows = padded.unfold(2, height, a).unfold(3, width, b).permute(0, 1, 2, 3, 5, 6, 4)
        self.columns = like.new_empty(self.windows.shape)
        self.flat = self.columns.view(size, -1, self.weight.shape[1])
        self.shape = (*self.windows.shape[2:4], self.weight.shape[2])

    def forward(self, y: Tensor) -> Operations:
        product = bind(torch.baddbmm, _bias(self.layer), self.flat, self.weight, out=_rows(y))
        return [bind(self.columns.copy_, self.windows), product]

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        operations, dy = _dense(dy)
        dy = _rows(dy)
        weight = torch.empty_like(self.weight)
        *_, height, width, channels = self.windows.shape
        self.gradients = [weight.unflatten(1, (height, width, channels)).permute(0, 4, 3, 1, 2)]
        operations.append(bind(torch.bmm, self.flat.mT, dy, out=weight))
        operations += _sum_bias(self, dy)
        columns = torch.empty_like(self.columns)
        (p, q), (h, w) = self.layer.padding, self.x.shape[2:4]
        dx, add_up = _fold(columns, self.layer.stride, (p + h, q + w))
        product = bind(torch.bmm, dy, self.weight.mT, out=columns.view(self.flat.shape))
        return operations + [product, *add_up] * further, dx[:, :, p : p + h, q : q + w]


def _fold(columns: Tensor, stride: tuple[int, int], least: tuple[int, int]) -> tuple[Tensor, Operations]:
    """Add patches [S, N, h, w, height, width, C] up to images of ``least`` this size, as many pixels at once as do not
    overlap."""
    size, n, h, w, height, width, channels = columns.shape
    a, b = stride
    rows, cols = max(h + (height - 1) // a, ceil(least[0] / a)), max(w + (width - 1) // b, ceil(least[1] / b))
    image = columns.new_zeros(size, n, rows, a, cols, b, channels)
    operations: Operations = [image.zero_]
    for i in range(0, height, a):
        for j in range(0, width, b):
            tile = columns[..., i : i + a, j : j + b, :].transpose(3, 4)
            onto = image[:, :, i // a :, : tile.shape[3], j // b :, : tile.shape[5]][:, :, :h, :, :w]
            operations.append(bind(onto.add_, tile))
    return image.flatten(4, 5).flatten(2, 3), operations


class Normalization(_Cell):
    """Group normalization. Sums over pixels are per channel; a small matrix averages those over a group's channels."""

    def forward(self, y: Tensor) -> Operations:
        size, n, *image, c = self.x.shape
        pixels = prod(image)
        self.flat = x = self.x.view(size, n, pixels, c)
        group = torch.arange(c, device=x.device) // (c // self.layer.num_groups)
        self.average = (group[:, None] == group).to(x.dtype) * (self.layer.num_groups / (pixels * c))
        eps = x.new_tensor([0, self.layer.eps]).repeat_interleave(size * n)[:, None]
        sums, moments = x.new_empty(2, size, n, c), x.new_empty(2, size, n, c)
        self.mean, variance = moments
        self.scale, self.factor, offset = x.new_empty(3, size, n, c)
        self.product = torch.empty_like(x)
        return [
            bind(torch.sum, x, 2, out=sums[0]),
            bind(torch.mul, x, x, out=self.product),
            bind(torch.sum, self.product, 2, out=sums[1]),
            bind(torch.addmm, eps, sums.view(-1, c), self.average, out=moments.view(-1, c)),
            bind(variance.addcmul_, self.mean, self.mean, value=-1),
            bind(variance.clamp_min_, self.layer.eps),
            bind(torch.rsqrt, variance, out=self.scale),
            bind(torch.mul, self.scale, self.layer.weight.detach()[:, None], out=self.factor),
            bind(torch.addcmul, _bias(self.layer), self.mean, self.factor, value=-1, out=offset),
            bind(torch.addcmul, offset[:, :, None], x, self.factor[:, :, None], out=y.view(x.shape)),
        ]

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        operations, dy = _dense(dy)
        x, dy, dx = self.flat, dy.view(self.flat.shape), torch.empty_like(self.flat)
        sums, averages = x.new_empty(2, *self.mean.shape), x.new_empty(2, *self.mean.shape)
        offset, factor = averages
        weighted = torch.empty_like(sums)
        self.gradients = [torch.empty_like(self.layer.weight), torch.empty_like(self.layer.bias)]
        operations += [
            bind(torch.sum, dy, 2, out=sums[0]),
            bind(torch.mul, dy, x, out=self.product),
            bind(torch.sum, self.product, 2, out=sums[1]),
            bind(sums[1].addcmul_, self.mean, sums[0], value=-1),
            bind(sums[1].mul_, self.scale),  # now the sum of dy times normalized x
            bind(torch.sum, sums[1], 1, out=self.gradients[0]),
            bind(torch.sum, sums[0], 1, out=self.gradients[1]),
            bind(torch.mul, sums, self.factor, out=weighted),
            bind(torch.mm, weighted.view(-1, x.shape[-1]), -self.average, out=averages.view(-1, x.shape[-1])),
            bind(factor.mul_, self.scale),
            bind(offset.addcmul_, factor, self.mean, value=-1),
            bind(torch.addcmul, offset[:, :, None], x, factor[:, :, None], out=dx),
            bind(dx.addcmul_, dy, self.factor[:, :, None]),
        ]
        return operations, dx.view(self.x.shape)


class Linear(_Cell):
    def __init__(self, layer: Any, shape: tuple[int, ...], like: Tensor) -> None:
        super().__init__(layer, shape, like)
        self.weight = layer.weight.detach()
        self.shape = (self.weight.shape[1],)

    def forward(self, y: Tensor) -> Operations:
        return [bind(torch.baddbmm, _bias(self.layer), self.x, self.weight.mT, out=y)]

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        operations, dy = _dense(dy)
        self.gradients = [torch.empty_like(self.weight)]
        operations.append(bind(torch.bmm, dy.mT, self.x, out=self.gradients[0]))
        operations += _sum_bias(self, dy)
        dx = torch.empty_like(self.x)
        return operations + [bind(torch.bmm, dy, self.weight, out=dx)] * further, dx


class Activation(_Cell):
    def forward(self, y: Tensor) -> Operations:
        self.y = y
        return [bind(_ACTIVATIONS[type(self.layer)][0], self.x, out=y)]

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        dx = torch.empty_like(self.x)
        return [bind(_ACTIVATIONS[type(self.layer)][1], dy, self.y, grad_input=dx)], dx


class Flattening(_Cell):
    """From channels last to the order in which PyTorch flattens."""

    def __init__(self, layer: Any, shape: tuple[int, ...], like: Tensor) -> None:
        super().__init__(layer, shape, like)
        self.shape = (prod(shape[2:]),)

    def forward(self, y: Tensor) -> Operations:
        return [bind(self._as_images(y).copy_, self.x)]

    def backward(self, dy: Tensor, further: bool) -> tuple[Operations, Tensor]:
        return [], self._as_images(dy)

    def _as_images(self, vectors: Tensor) -> Tensor:
        *image, channels = self.x.shape[2:]
        return vectors.unflatten(2, (channels, *image)).movedim(2, -1)


def _bias(layer: Any) -> Tensor:
    if layer.bias is None:
        return layer.weight.new_zeros(len(layer.weight), 1, layer.weight.shape[1])
    return layer.bias.detach()[:, None]


def _sum_bias(cell: _Cell, dy: Tensor) -> Operations:
    if cell.layer.bias is None:
        return []
    cell.gradients.append(torch.empty_like(cell.layer.bias))
    return [bind(torch.sum, dy, 1, out=cell.gradients[-1])]


def _rows(images: Tensor) -> Tensor:
    return images.view(len(images), -1, images.shape[-1])


def _dense(dy: Tensor) -> tuple[Operations, Tensor]:
    if dy.is_contiguous():
        return [], dy
    dense = torch.empty(dy.shape, dtype=dy.dtype, device=dy.device)
    return [bind(dense.copy_, dy)], dense


_ACTIVATIONS = {
    nn.ReLU: (bind(torch.clamp_min, min=0), bind(aten.threshold_backward.grad_input, threshold=0)),
    nn.Tanh: (torch.tanh, aten.tanh_backward.grad_input),
    nn.Sigmoid: (torch.sigmoid, aten.sigmoid_backward.grad_input),
}

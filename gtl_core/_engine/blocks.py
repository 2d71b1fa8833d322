"""Convolutional blocks in one pass, by C code that keeps many copies of a small body in the cache (``blocks.c``).

It is compiled when the package is installed, if there is a compiler; otherwise, and for whatever it does not know,
torch's layers do the same arithmetic, to the last digits.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, relu

_Pointer = ctypes.c_void_p
MOST_BLOCKS, _MOST_CHANNELS, MOST_PIXELS = 8, 1024, 256**2  # what the C code has room for


@cache
def compiled() -> ctypes.CDLL | None:
    """The C code for this machine, if it was compiled and ``GTL_ENGINE=torch`` does not say otherwise.

    RuntimeError if it was compiled from other files of C than those beside this one.
    """
    if os.environ.get("GTL_ENGINE") == "torch":
        return None
    levels = (torch.backends.cpu.get_cpu_capability().lower(), "default")
    found = (importlib.util.find_spec(f"{__package__}._blocks_{level}") for level in levels)
    spec = next(filter(None, found), None)
    if spec is None or spec.origin is None:
        return None
    code = ctypes.CDLL(spec.origin)
    code.source.restype = ctypes.c_uint
    sources = sorted(Path(__file__).parent.glob("*.[ch]"))
    if code.source() != zlib.crc32(b"".join(path.read_bytes() for path in sources)):
        raise RuntimeError(f"{spec.origin} was compiled from other source code: pip install the package again")
    return code


def engine() -> str:
    """Which code trains small networks here: ``compiled``, or ``torch``, which differs from it in the last digits."""
    return "compiled" if compiled() else "torch"


def fits(weight: Tensor) -> bool:
    """Whether the C code takes this weight [..., out, in, 3, 3]: 3x3, with channels that fill its vectors."""
    code, (out, n_in, *kernel) = compiled(), weight.shape[-4:]
    if code is None or kernel != [3, 3] or max(out, n_in) > _MOST_CHANNELS:
        return False
    return weight.device.type == "cpu" and not out % code.width() and (n_in == 1 or not n_in % code.width())


def in_its_order(weight: Tensor) -> Tensor:
    """The same weights [S, out, in, 3, 3], in memory as the C code reads them: copy, tap, in, out."""
    return weight.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


class Blocks(nn.Sequential):
    """A body of blocks, each of a 3x3 convolution of stride 2, GroupNorm and ReLU, and Flatten at its end, in one pass.

    As `nn.Sequential` of the same layers: images [N, 1, side, side] -> features [N, F]; with layers of S stacked
    networks, [N, S, 1, side, side] -> [N, S, F]. Other layers may be in it; then it is nothing else than that.
    """

    @property
    def settings(self) -> list[tuple[int, float]] | None:
        """Groups and epsilon of every block; None if some layer is of another kind. Looked up once for these layers."""
        layers = (*self._modules.values(),)
        if self._known is None or self._known[0] != layers:
            self._known = layers, self._settings(list(layers))
        return self._known[1]

    _known: tuple[tuple, list[tuple[int, float]] | None] | None = None

    @staticmethod
    def _settings(layers: list[Any]) -> list[tuple[int, float]] | None:
        names = [type(layer).__name__ for layer in layers]
        n = len(layers) // 3
        if not 1 <= n <= MOST_BLOCKS or names != [*["Conv2d", "GroupNorm", "ReLU"] * n, "Flatten"]:
            return None
        convolutions, norms, flatten = layers[:-1:3], layers[1::3], layers[-1]
        if not all(fits(c.weight) and c.bias is not None and windows(c, 2, 1) for c in convolutions):
            return None
        channels = [(c.weight.shape[-3], c.weight.shape[-4]) for c in convolutions]
        follows = [n_in for n_in, _ in channels] == [1, *(out for _, out in channels[:-1])]
        usual = (getattr(flatten, "start_dim", 1), getattr(flatten, "end_dim", -1)) == (1, -1)
        if not follows or not usual or any(norm.weight is None for norm in norms):
            return None
        return [(norm.num_groups, norm.eps) for norm in norms]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}  # of this machine

    def trained(self) -> list[Tensor]:
        """Weight, bias, gain and shift of every block."""
        layers: list[Any] = [layer for i, layer in enumerate(self) if i % 3 < 2][: 2 * len(self.settings or ())]
        return [p for layer in layers for p in (layer.weight, layer.bias)]

    def takes(self, input: Tensor) -> bool:
        """Whether the C code can be given these images."""
        if self.settings is None or input.requires_grad:
            return False
        first: Any = self[0]
        square = input.dim() == first.weight.dim() and input.shape[-1] ** 2 == input.shape[-2:].numel() <= MOST_PIXELS
        return square and plain(self, input)

    def forward(self, input: Tensor) -> Tensor:
        if not self.takes(input):
            return self.by_layers(input)
        parameters, copies = self.trained(), input.dim() == 5
        parameters = parameters if copies else [p[None] for p in parameters]
        features = _Features.apply(input if copies else input[:, None], self.settings, *parameters)
        return features if copies else features[:, 0]

    def by_layers(self, input: Tensor) -> Tensor:
        """One layer after the other, by torch."""
        return super().forward(input)


def plain(body: nn.Module, images: Tensor) -> bool:
    """Whether all numbers are what the C code reads, there are images, and nobody listens to a layer: it would not be
    heard in one pass."""
    usual = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in (images, *body.parameters()))
    return usual and len(images) > 0 and not any(map(hooked, body.modules()))


def hooked(module: nn.Module) -> bool:
    """Whether someone listens to this module itself."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def windows(layer: Any, stride: int, padding: int) -> bool:
    """Whether a convolution's windows are so far apart, with so many zeros around, and all else is as it usually is."""
    expected = {"stride": (stride, stride), "padding": (padding, padding), "dilation": (1, 1), "groups": 1}
    return all(getattr(layer, key, value) == value for key, value in (expected | {"padding_mode": "zeros"}).items())


class _Features(torch.autograd.Function):
    """images [N, S, 1, side, side], settings, then weight, bias, gain and shift of every block, each [S, ...]."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, settings: Sequence[tuple[int, float]], *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(images, *parameters)
        ctx.settings = settings
        call = Call(images, settings, parameters)
        if not any(ctx.needs_input_grad[2:]):
            return call.forward(None)
        ctx.call, ctx.kept = call, call.room()
        return call.forward(ctx.kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple:
        images, *parameters = ctx.saved_tensors  # an error, if something has changed since
        if torch.is_grad_enabled():  # these gradients will be differentiated in their turn, which is torch's business
            needed = [p for p in parameters if p.requires_grad]
            found = iter(
                torch.autograd.grad(_layers(images, ctx.settings, parameters), needed, *gradients, create_graph=True)
            )
            return None, None, *(next(found) if p.requires_grad else None for p in parameters)
        return None, None, *ctx.call.backward(ctx.kept, *gradients)


def _layers(images: Tensor, settings: Sequence[tuple[int, float]], parameters: Sequence[Tensor]) -> Tensor:
    size = images.shape[1]
    x = images.flatten(1, 2)
    for i, (groups, eps) in enumerate(settings):
        weight, bias, gain, shift = (p.flatten(0, 1) for p in parameters[4 * i : 4 * i + 4])
        x = relu(group_norm(conv2d(x, weight, bias, 2, 1, groups=size), size * groups, gain, shift, eps))
    return x.unflatten(1, (size, -1)).flatten(2)


class Call:
    """What the C code is told of images and parameters, for each of the ways that it can be asked to go."""

    def __init__(self, images: Tensor, settings: Sequence[tuple[int, float]], parameters: Sequence[Tensor]) -> None:
        ordered = [in_its_order(p) if p.dim() == 5 else p.contiguous() for p in parameters]
        self.parameters = [p.detach() for p in ordered]
        self.images = images if images.stride()[-2:] == (images.shape[-1], 1) else images.contiguous()
        n, size, _, side, _ = images.shape
        self.shapes, self.halves = [], []
        for i, (groups, _) in enumerate(settings):
            out, n_in = parameters[4 * i].shape[1:3]
            self.shapes += [n_in, out, groups, side]
            side = (side + 1) // 2
            self.halves.append((out, groups, side))
        strides = (ctypes.c_long(self.images.stride(i)) for i in (0, 1))
        self.arguments = [
            len(settings),
            (ctypes.c_int * len(self.shapes))(*self.shapes),
            (ctypes.c_float * len(settings))(*(eps for _, eps in settings)),
            pointers(self.parameters),
            *(size, n, _Pointer(self.images.data_ptr()), *strides),
        ]
        self.n, self.size = n, size

    def room(self) -> tuple[list[Tensor], list[Tensor]]:
        """For what the way back needs: normalized values of every block, and what they were multiplied with."""
        empty = self.images.new_empty
        normalized = [empty(self.size, self.n, side * side, out) for out, _, side in self.halves]
        return normalized, [empty(self.size, self.n, groups) for _, groups, _ in self.halves]

    def forward(self, kept: tuple[list[Tensor], list[Tensor]] | None) -> Tensor:
        out, _, side = self.halves[-1]
        features = self.images.new_empty(self.n, self.size, out * side * side)
        rooms = map(pointers, kept) if kept else (None, None)
        library().forward(*self.arguments, *rooms, _Pointer(features.data_ptr()))
        return features

    def fit(
        self,
        labels: Tensor,
        n_way: int,
        steps: int,
        rule: ctypes.Structure,
        first: Sequence[Tensor] | None,
        second: Sequence[Tensor] | None,
        guide: Sequence[Tensor | None],
    ) -> None:
        """Train in place. The last two of ``parameters`` are a head's; labels [N, S]."""
        strides = (ctypes.c_long(labels.stride(i)) for i in (0, 1))
        kept = (None if tensors is None else pointers(tensors) for tensors in (first, second))
        training = (_Pointer(labels.data_ptr()), *strides, n_way, steps, ctypes.byref(rule), *kept, pointers(guide))
        library().fit(*self.arguments, *training)

    def backward(self, kept: tuple[list[Tensor], list[Tensor]], gradient: Tensor) -> list[Tensor]:
        gradient = gradient.contiguous()
        gradients = [torch.empty_like(p) for p in self.parameters]
        library().backward(*self.arguments, *map(pointers, kept), _Pointer(gradient.data_ptr()), pointers(gradients))
        return gradients


def library() -> ctypes.CDLL:
    """The C code, where it is known to be there."""
    code = compiled()
    assert code is not None
    return code


def pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array:
    return (_Pointer * len(tensors))(*(0 if t is None else t.data_ptr() for t in tensors))

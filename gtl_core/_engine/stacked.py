"""Many copies of a small network trained side by side as one: the same arithmetic with a fraction of the overhead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, cross_entropy, group_norm, max_pool2d

from gtl_core._engine import program
from gtl_core.guide import Guide


def stack(models: Sequence[nn.Module], graph: bool = False) -> nn.Module:
    """One network that holds all ``models`` (of one architecture): [N, S, ...] -> [N, S, ...], copy s sees ``[:, s]``.

    Parameters keep their names and get a leading dimension S. Elementwise optimizers, `Guided` with `stack_guide`, and
    `stacked_cross_entropy` then train every copy as it would be trained alone, up to rounding. On a CPU, a training
    step replays a `program.Program` and small networks no longer wait for Python; it is fastest with 20 to 40 examples
    in all, N * S, and does not gain from more. graph: leave all to autograd instead, as gradients of gradients and
    `torch.func.functional_call` need it.

    Raises TypeError for a layer that it does not know, a layer with hooks, and shared parameters.
    """
    first = models[0]
    hooks = (first._forward_hooks, first._forward_pre_hooks, first._backward_hooks, first._backward_pre_hooks)
    if any(hooks):
        raise TypeError(f"cannot stack a {type(first).__name__} with hooks")
    if type(first) is nn.Sequential:
        if len(list(first.named_parameters())) < len(list(first.named_parameters(remove_duplicate=False))):
            raise TypeError("cannot stack a network with shared parameters")
        # Not `named_children`, which leaves out a layer that comes a second time.
        layers = [(name, stack([m.get_submodule(name) for m in models], graph)) for name in first._modules]
        return (nn.Sequential if graph else _Sequential)(OrderedDict(layers))
    if type(first) is nn.Flatten and (first.start_dim, first.end_dim) == (1, -1):
        return Flatten(2)
    if type(first) in (nn.ReLU, nn.Tanh, nn.Sigmoid):
        return type(first)()
    if type(first) in _LAYERS:
        layer = _LAYERS[type(first)]
        changed = [name for name, value in layer.takes if getattr(first, name) != value]
        if isinstance(getattr(first, "padding", 0), str):
            changed.append("padding")
        if changed:
            raise TypeError(f"cannot stack a {type(first).__name__} with {changed[0]} = {getattr(first, changed[0])!r}")
        return layer(models)
    known = ", ".join(layer.__name__ for layer in (*_LAYERS, nn.Flatten, nn.ReLU, nn.Tanh, nn.Sigmoid))
    raise TypeError(f"cannot stack a {type(first).__name__}: the layers that can be are {known}")


def stack_guide(guide: Guide, size: int) -> Guide:
    """The same guide for each of ``size`` copies."""
    return Guide({name: _in_order(g.expand(size, *g.shape)) for name, g in guide.items()}, guide.metadata)


def stacked_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over copies of each one's mean cross-entropy: every copy gets the gradient that it would have alone.

    logits [N, S, n_way]; labels [N, S], or [N, 1] where they are the same for all copies.
    """
    size = logits.shape[1]
    return size * cross_entropy(logits.flatten(0, 1), labels.expand(-1, size).flatten())


def _in_order(stacked: Tensor) -> Tensor:
    """Weights of convolutions [S, out, in, height, width] lie in memory as the products of a `Program` take them."""
    if stacked.dim() != 5:
        return stacked
    return stacked.permute(0, 3, 4, 2, 1).contiguous().permute(0, 4, 3, 1, 2)


class _Sequential(nn.Sequential):
    _program: program.Program | None = None

    def forward(self, input: Tensor) -> Tensor:
        x, parameters = input, list(self.parameters())
        trained = torch.is_grad_enabled() and not x.requires_grad and all(p.requires_grad for p in parameters)
        if not trained or x.is_cuda or not all(map(program.knows, self.flat())):
            return super().forward(x)
        # Whatever moves a parameter to other memory, `Module.to` for instance, makes the program stale.
        key = x.shape, x.dtype, *(p.data_ptr() for p in parameters)
        if self._program is None or self._key != key:
            self._program, self._key = program.Program(list(self.flat()), x), key
        return program.Replay.apply(self._program, x, *parameters)

    def flat(self) -> Iterator[nn.Module]:
        for layer in self:
            yield from layer.flat() if isinstance(layer, _Sequential) else [layer]

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_program", "_key")}


class Flatten(nn.Flatten):
    cell = program.Flattening


class _Stacked(nn.Module):
    """A layer's weights [S, ...] of all copies; ``uses`` are settings of theirs, ``takes`` the values it insists on."""

    uses: tuple[str, ...] = ()
    takes: tuple[tuple[str, object], ...] = ()
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        for name in ("weight", "bias"):
            copies = [getattr(layer, name) for layer in layers]
            stacked = None if copies[0] is None else nn.Parameter(_in_order(torch.stack(copies).detach()))
            self.register_parameter(name, stacked)
        self.size = len(layers)
        for name in self.uses:
            setattr(self, name, getattr(layers[0], name))

    def flat_bias(self) -> Tensor | None:
        return None if self.bias is None else self.bias.flatten()


class Conv2d(_Stacked):
    cell = program.Convolution
    uses = ("stride", "padding")
    takes = (("dilation", (1, 1)), ("groups", 1), ("padding_mode", "zeros"))
    stride: tuple[int, int]
    padding: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(0, 1), self.flat_bias()
        y = conv2d(x.flatten(1, 2), weight, bias, self.stride, self.padding, groups=self.size)
        return y.unflatten(1, (self.size, -1))


class GroupNorm(_Stacked):
    cell = program.Normalization
    uses = ("num_groups", "eps")
    takes = (("affine", True),)
    num_groups: int
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        groups = self.size * self.num_groups
        y = group_norm(x.flatten(1, 2), groups, self.weight.flatten(), self.flat_bias(), self.eps)
        return y.unflatten(1, (self.size, -1))


class BatchNorm2d(_Stacked):
    uses = ("eps",)
    # Running statistics would be one more thing to stack; statistics of the batch are each copy's own.
    takes = (("affine", True), ("track_running_stats", False))
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.flatten(), self.flat_bias()
        y = batch_norm(x.flatten(1, 2), None, None, weight, bias, training=True, eps=self.eps)
        return y.unflatten(1, (self.size, -1))


class MaxPool2d(nn.MaxPool2d):
    takes = (("dilation", 1), ("ceil_mode", False), ("return_indices", False))

    def __init__(self, layers: Sequence[nn.MaxPool2d]) -> None:
        super().__init__(layers[0].kernel_size, layers[0].stride, layers[0].padding)

    def forward(self, input: Tensor) -> Tensor:
        y = max_pool2d(input.flatten(1, 2), self.kernel_size, self.stride, self.padding)
        return y.unflatten(1, input.shape[1:3])


class Linear(_Stacked):
    cell = program.Linear

    def forward(self, x: Tensor) -> Tensor:
        y = torch.bmm(x.transpose(0, 1), self.weight.mT)
        return (y if self.bias is None else y + self.bias[:, None]).transpose(0, 1)


_LAYERS = {
    nn.Conv2d: Conv2d,
    nn.GroupNorm: GroupNorm,
    nn.BatchNorm2d: BatchNorm2d,
    nn.Linear: Linear,
    nn.MaxPool2d: MaxPool2d,
}

"""The networks of the experiments."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from gtl_core._engine import Blocks, PooledBlocks

HEADS = ("zero", "random")


def conv4(n_way: int, channels: int = 32, *, generator: torch.Generator) -> nn.Sequential:
    """Four 3x3 convolutions of stride 2 with GroupNorm, then a linear head: [N, 1, 28, 28] -> [N, n_way] logits.

    The backbone of the few-shot literature (Vinyals et al. 2016) with strides instead of pooling, and with GroupNorm,
    since batch statistics mean nothing for the single examples of the forgetting experiment. Parameters are named
    ``body.*`` and ``head.*``; all are drawn from ``generator``.
    """
    return _four_blocks(n_way, channels, partial(nn.GroupNorm, 4), generator)


def strided_conv4(n_way: int, channels: int = 64, *, generator: torch.Generator) -> nn.Sequential:
    """Four 3x3 convolutions of stride 2, each with BatchNorm and ReLU, then a linear head: Reptile's own.

    [N, 1, 28, 28] -> [N, n_way] logits, from 4 * ``channels`` features. BatchNorm always uses the statistics of the
    batch at hand, as the published results of MAML and Reptile do: queries are classified together. MAML's own averages
    over what is left of the image before the head, that of Prototypical networks pools in the place of strides. Named
    ``body.*`` and ``head.*``, as `conv4`. Source: Nichol et al. 2018 (appendix A).
    """
    return _four_blocks(n_way, channels, partial(nn.BatchNorm2d, track_running_stats=False), generator)


def _four_blocks(
    n_way: int, channels: int, norm: Callable[[int], nn.Module], generator: torch.Generator
) -> nn.Sequential:
    blocks = []
    for width in (1, channels, channels, channels):
        blocks += [nn.Conv2d(width, channels, 3, stride=2, padding=1), norm(channels), nn.ReLU()]
    body = Blocks(*blocks, nn.Flatten())
    for layer in body:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(4 * channels, n_way)))
    new_head(model, n_way, "random", generator=generator)
    return model


def cnn(n_way: int, channels: int = 16, *, generator: torch.Generator) -> nn.Sequential:
    """A very basic CNN: two 3x3 convolutions, each with 2x2 max-pooling and ReLU, 128 hidden units, a linear head.

    [N, 1, 28, 28] -> [N, n_way] logits; ``channels`` in the first convolution, twice as many in the second. No
    normalization. Named ``body.*`` and ``head.*``, as `conv4`. ReLU and maximum commute, and after pooling there is a
    quarter to do; channels innermost, for a third of the time.
    """
    body = PooledBlocks(
        *(nn.Conv2d(1, channels, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(channels, 2 * channels, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(2 * channels * 5 * 5, 128), nn.ReLU()),
    )
    for layer in body:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    model = nn.Sequential(OrderedDict(body=body, head=nn.Linear(128, n_way)))
    new_head(model, n_way, "random", generator=generator)
    return model.to(memory_format=torch.channels_last)


def multilayer_perceptron(
    sizes: Sequence[int], activation: type[nn.Module], *, generator: torch.Generator
) -> nn.Sequential:
    """Linear layers from each of the ``sizes`` to the next, an activation between them: [N, first] -> [N, last].

    Drawn from ``generator`` as PyTorch draws them: uniform within 1 / sqrt(inputs of the layer) of zero.
    """
    layers: list[nn.Module] = []
    for n_inputs, n_outputs in pairwise(sizes):
        layers += [nn.Linear(n_inputs, n_outputs), activation()]
        for p in layers[-2].parameters():
            nn.init.uniform_(p, -1 / math.sqrt(n_inputs), 1 / math.sqrt(n_inputs), generator=generator)
    return nn.Sequential(*layers[:-1])


def new_head(model: nn.Sequential, n_way: int, head: str, *, generator: torch.Generator) -> None:
    """Replace ``model.head``, in place, by one for ``n_way`` classes.

    head: ``zero`` starts with equal logits for every class; ``random`` is PyTorch's default, uniform within
    1 / sqrt(features) of zero.
    """
    if head not in HEADS:
        raise ValueError(f"head = {head!r}: must be one of {', '.join(HEADS)}")
    model.head = nn.Linear(model.head.in_features, n_way)
    bound = 1 / math.sqrt(model.head.in_features) if head == "random" else 0.0
    for p in model.head.parameters():
        nn.init.uniform_(p, -bound, bound, generator=generator)


BACKBONES = {"conv4": conv4, "strided_conv4": strided_conv4}  # ours, and one of the literature, for published numbers

"""The network of the few-shot literature, to check the baselines against published numbers."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from experiments.models import new_head


def pooled_conv4(n_way: int, channels: int = 64, *, generator: torch.Generator) -> nn.Sequential:
    """Four 3x3 convolutions, each with BatchNorm, ReLU and 2x2 max-pooling, then a linear head.

    [N, 1, 28, 28] -> [N, n_way] logits, from ``channels`` features. BatchNorm always uses the statistics of the batch
    at hand, as the published results of MAML and Reptile do: queries are classified together. Named ``body.*`` and
    ``head.*``, as `models.conv4`. Source: Vinyals et al. 2016; Finn et al. 2017, section 5.2.
    """
    blocks = []
    for width in (1, channels, channels, channels):
        convolution = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(convolution.bias)
        blocks += [convolution, nn.BatchNorm2d(channels, track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
    model = nn.Sequential(OrderedDict(body=nn.Sequential(*blocks, nn.Flatten()), head=nn.Linear(channels, n_way)))
    new_head(model, n_way, "random", generator=generator)
    return model

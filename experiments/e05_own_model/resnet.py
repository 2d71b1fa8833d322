"""A small ResNet in plain torch, as a reader might bring one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """The basic block of He et al. (2016): two 3x3 convolutions and a way around them; halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.downsample(x))


class ResNet(nn.Module):
    """torchvision's names and layout, with one block per layer: [N, 1, 28, 28] -> [N, n_classes] logits.

    All parameters are drawn from ``generator``.
    """

    def __init__(
        self, n_classes: int, widths: tuple[int, int, int] = (16, 32, 64), *, generator: torch.Generator
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(1, a, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1, self.layer2, self.layer3 = Block(a, a), Block(a, b), Block(b, c)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        self.fc = nn.Linear(c, n_classes)
        self.replace_head(n_classes, generator)

    def replace_head(self, n_classes: int, generator: torch.Generator) -> None:
        """A new ``fc``, in place, that starts as PyTorch starts every linear layer."""
        self.fc = nn.Linear(self.fc.in_features, n_classes)
        bound = 1 / math.sqrt(self.fc.in_features)
        for p in self.fc.parameters():
            nn.init.uniform_(p, -bound, bound, generator=generator)

    def features(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] -> [N, widths[-1]]."""
        x = relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

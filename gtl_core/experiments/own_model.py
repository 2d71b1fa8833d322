"""Any network can be guided: here a small ResNet with BatchNorm, in plain torch, as a reader might bring one."""

from __future__ import annotations

from collections.abc import Sequence

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
    """torchvision's names and layout, with one block per layer: [N, 1, 28, 28] -> [N, n_classes] logits."""

    def __init__(self, n_classes: int, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, widths[0], 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for i, (inputs, outputs) in enumerate(zip((widths[0], *widths), widths, strict=False), start=1):
            setattr(self, f"layer{i}", Block(inputs, outputs))
        self.depth = len(widths)
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        for i in range(1, self.depth + 1):
            x = getattr(self, f"layer{i}")(x)
        return x.mean((2, 3))

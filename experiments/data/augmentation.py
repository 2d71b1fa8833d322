"""Images changed a little, as another hand might have drawn them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def random_affine(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each image [N, 1, H, W] turned, sheared, scaled and shifted a little: the entries of its 2x3 matrix, in units of
    half the image's width, differ from the identity's by normal noise of standard deviation ``strength``."""
    matrices = torch.eye(2, 3) + strength * torch.randn(len(images), 2, 3, generator=generator)
    return grid_sample(images, affine_grid(matrices, images.shape, align_corners=False), align_corners=False)

"""Domain adaptation: pretraining on labelled source images whose features suit unlabelled target images as well."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from experiments.baselines.few_shot import Prepared, measured
from experiments.costs import TRAINING

# (source features [n, d], target features [m, d], progress from 0 to 1) -> what is added to the loss
Alignment = Callable[[Tensor, Tensor, float], Tensor]


@measured
def pretrain_across(
    model: nn.Module,
    source: tuple[Tensor, Tensor],
    target: Tensor,
    alignment: Alignment,
    *,
    n_steps: int,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    augment: Callable[[Tensor], Tensor] = lambda images: images,
    generator: torch.Generator,
) -> Prepared:
    """Classify batches of ``source`` while ``alignment`` makes the features of source and target alike.

    source: images [N, 1, 28, 28] and labels [N], as many classes as the model's head has outputs; target: images
    without labels, from classes that nothing is tested on. The zero point's head
    still has the source's classes (`models.new_head`).
    """
    model, alignment = copy.deepcopy((model, alignment))
    learned = [*model.parameters(), *(alignment.parameters() if isinstance(alignment, nn.Module) else ())]
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    images, labels = source
    for step in range(n_steps):
        here = torch.randint(len(images), (batch_size,), generator=generator)
        there = torch.randint(len(target), (batch_size,), generator=generator)
        features = model.body(augment(torch.cat([images[here], target[there]])))
        source_features, target_features = features.split(batch_size)
        loss = cross_entropy(model.head(source_features), labels[here])
        optimizer.zero_grad()
        (loss + alignment(source_features, target_features, step / n_steps)).backward()
        optimizer.step()
    return Prepared(model, TRAINING * n_steps * 2 * batch_size)


def no_alignment(source: Tensor, target: Tensor, progress: float) -> float:
    """Source only: what alignment has to beat."""
    return 0.0


def coral(source: Tensor, target: Tensor, progress: float) -> Tensor:
    """Squared distance between the covariances of source and target features, over 4 d².

    ``lambda *f: 10 * coral(*f)`` weighs it. Source: Sun & Saenko 2016 (Deep CORAL, equation 1).
    """
    return ((covariance(source) - covariance(target)) ** 2).sum() / (4 * source.shape[1] ** 2)


def covariance(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)


class DANN(nn.Module):
    """A classifier learns to tell the domains apart, and the body, through a reversed gradient, to confuse it.

    The reversal grows from 0 to ``strength`` as 2 / (1 + exp(-10 progress)) - 1. Source: Ganin et al. 2016 (sections
    4.2 and 5.2.2).
    """

    def __init__(self, n_features: int, hidden: int = 64, strength: float = 1.0, *, generator: torch.Generator) -> None:
        super().__init__()
        self.strength = strength
        self.tell_apart = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        for layer in (self.tell_apart[0], self.tell_apart[2]):
            nn.init.kaiming_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, source: Tensor, target: Tensor, progress: float) -> Tensor:
        weight = self.strength * (2 / (1 + math.exp(-10 * progress)) - 1)
        logits = self.tell_apart(Reversal.apply(torch.cat([source, target]), weight)).squeeze(1)
        is_target = torch.cat([torch.zeros(len(source)), torch.ones(len(target))])
        return binary_cross_entropy_with_logits(logits, is_target)


class Reversal(torch.autograd.Function):
    """The identity forward; backward, the gradient times -weight. Source: Ganin & Lempitsky 2015."""

    @staticmethod
    def forward(ctx, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradient, None

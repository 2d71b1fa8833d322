"""Tiny fully connected networks by the thousand, trained side by side as one batch.

Every tensor that belongs to networks has them as its leading dimension n: ``theta`` [n, P] holds all parameters of
each, weights [n, out, in] are views of it. Training is full-batch gradient descent on the mean squared error of a
sigmoid output, the setting in which XOR is known to stagnate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

INPUTS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
TARGETS = torch.tensor([0.0, 1.0, 1.0, 0.0])
ALL_POINTS = torch.full((1, 4), 0.25)
TOLERANCE = 0.4  # of every output (Fahlman 1988): 0.6 is a solution for a target of 1, 0.5 is not
CHECK_EVERY = 10  # steps
ACTIVATIONS = {  # the function, and its derivative in terms of its value
    "tanh": (torch.tanh, lambda a: 1 - a * a),
    "sigmoid": (torch.sigmoid, lambda a: a * (1 - a)),
    "relu": (torch.relu, lambda a: (a > 0).to(a.dtype)),
}


@dataclass(frozen=True)
class TinyNetworks:
    """Any number of networks with fully connected layers of these ``sizes`` and a sigmoid output."""

    sizes: tuple[int, ...]
    activation: str

    @classmethod
    def parse(cls, text: str) -> TinyNetworks:
        """``2-2-1 tanh``, say."""
        sizes, activation = text.split()
        return cls(tuple(map(int, sizes.split("-"))), activation)

    @cached_property
    def tensors(self) -> list[slice]:
        """Where weight and bias of every layer lie in theta."""
        lengths = [length for i, o in pairwise(self.sizes) for length in (o * i, o)]
        return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths, strict=True)]

    def parameter_name(self, index: int) -> str:
        """Of a column of theta, for readers."""
        k = next(k for k, tensor in enumerate(self.tensors) if index < tensor.stop)
        layer = "output" if k // 2 == len(self.sizes) - 2 else f"hidden layer {k // 2 + 1}"
        return f"{('weight', 'bias')[k % 2]} {index - self.tensors[k].start + 1} of {layer}"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Zero points [n, P] by PyTorch's default: uniform within 1 / sqrt(inputs of the layer)."""
        theta = 2 * torch.rand(n, self.tensors[-1].stop, generator=generator) - 1
        for k, inputs in enumerate(self.sizes[:-1]):
            theta[:, self.tensors[2 * k].start : self.tensors[2 * k + 1].stop] /= inputs**0.5
        return adjacent(theta)

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views: weight [n, out, in] and bias [n, out] of every layer."""
        shapes = [(outputs, inputs) for inputs, outputs in pairwise(self.sizes)]
        where = zip(self.tensors[::2], self.tensors[1::2], shapes, strict=True)
        return [(theta[:, weight].unflatten(1, shape), theta[:, bias]) for weight, bias, shape in where]

    def activations(self, theta: Tensor) -> list[Tensor]:
        """Input, hidden layers and output, each [n (1 for the input), 4, units]."""
        function = ACTIVATIONS[self.activation][0]
        layers = self.layers(theta)
        values = [INPUTS[None]]
        for k, (weight, bias) in enumerate(layers):
            z = (weight[:, None] * values[-1][:, :, None]).sum(-1) + bias[:, None]
            values.append(function(z) if k < len(layers) - 1 else z.sigmoid())
        return values

    def gradient(self, theta: Tensor, points: Tensor, activations: list[Tensor]) -> Tensor:
        """Gradient [n, P] of the squared error averaged over the points with the weights ``points`` [n or 1, 4]."""
        *_, output = activations
        delta = 2 * (output - TARGETS[:, None]) * output * (1 - output) * points[..., None]
        gradient = torch.empty_like(theta)
        layers, into = self.layers(theta), self.layers(gradient)
        for k in reversed(range(len(layers))):
            torch.sum(delta[..., None] * activations[k][:, :, None], 1, out=into[k][0])
            torch.sum(delta, 1, out=into[k][1])
            if k:
                derivative = ACTIVATIONS[self.activation][1](activations[k])
                delta = (layers[k][0][:, None] * delta[..., None]).sum(2) * derivative
        return gradient

    def loss(self, theta: Tensor) -> Tensor:
        """Mean squared error [n] over the four points."""
        return (self.activations(theta)[-1][..., 0] - TARGETS).square().mean(1)

    def solves(self, theta: Tensor, points: Tensor = ALL_POINTS) -> Tensor:
        """[n]: whether the output is near the target at every point that has a weight."""
        return (_near(self.activations(theta)) | (points == 0)).all(1)

    def descend(
        self,
        theta: Tensor,
        rates: Tensor,
        guide: Tensor | None,
        steps: int,
        points: Tensor = ALL_POINTS,
        watch: Callable[[Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Guided steps ``lerp(before, after, g)`` of gradient descent with ``rates`` [n] or scalar.

        guide: [n, P], or None for plain steps. watch: called with theta every `CHECK_EVERY` steps. Returns the new
        theta [n, P] and the step [n] (a multiple of `CHECK_EVERY`) from which on XOR was solved.
        """
        rates = rates.reshape(-1, 1)
        since = torch.zeros(len(theta))
        for step in range(steps):
            activations = self.activations(theta)
            if step % CHECK_EVERY == 0:
                since = since.where(_near(activations).all(1), torch.tensor(step + CHECK_EVERY * 1.0))
                if watch:
                    watch(theta)
            after = theta - rates * self.gradient(theta, points, activations)
            theta = after if guide is None else theta.lerp(after, guide)
        return theta, since


def adjacent(t: Tensor) -> Tensor:
    """``t`` [n, ...] with the networks adjacent in memory: elementwise arithmetic over them is then vectorised."""
    return t.T.contiguous().T


def _near(activations: list[Tensor]) -> Tensor:
    return (activations[-1][..., 0] - TARGETS).abs() < TOLERANCE

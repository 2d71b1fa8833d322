"""Displacement by how far scouts have travelled: several guides in place of one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn

from gtl_core.guide import Displacement, Guide
from gtl_core.shaping import combine


class Binned:
    """One `Displacement` for each bin of the distance from the zero point (Euclidean, over all parameters).

    Suggested, not tried, by the paper: points that scouts pass on their way make several guides, those far away weigh
    more. ``edges`` [n - 1], increasing, part the distances into n ``bins``. Only sums are kept: memory is bins times
    parameters, however many points are added. Source: arXiv 2303.16154.
    """

    def __init__(self, zero_point: nn.Module | Mapping[str, Tensor], edges: Sequence[float]) -> None:
        if any(b <= a for a, b in pairwise(edges)):
            raise ValueError(f"edges = {list(edges)}: must increase")
        self.edges = [float(edge) for edge in edges]
        self.bins = [Displacement(zero_point) for _ in range(len(edges) + 1)]

    def add(self, scout: nn.Module) -> bool:
        """Add a point of a scout's way to the bin of its distance. False, and nothing added, if it is not finite."""
        far = distance(scout, self.bins[0].zero_point)
        return self.bins[bisect_left(self.edges, far.item())].add(scout)

    def __add__(self, other: Binned) -> Binned:
        if self.edges != other.edges:
            raise ValueError("displacements in different bins cannot be added")
        total = Binned(self.bins[0].zero_point, self.edges)
        total.bins = [one + another for one, another in zip(self.bins, other.bins, strict=True)]
        return total

    @property
    def whole(self) -> Displacement:
        """Of all points, whatever their distance."""
        return reduce(add, self.bins)

    def guide(self, weights: Sequence[float] | None = None, **settings: str) -> Guide:
        """The weighted mean of the bins' guides (`Displacement.guide` with ``settings``), empty bins left out.

        weights: one per bin; by default 1, 2, 3 ..., growing with the distance.
        """
        weights = range(1, len(self.bins) + 1) if weights is None else weights
        used = [(b, weight) for b, weight in zip(self.bins, weights, strict=True) if b.count and b.moved]
        if not used:
            raise ValueError("no parameter moved: add points of the scouts' ways")
        guide = combine([b.guide(**settings) for b, _ in used], [weight for _, weight in used])
        return Guide(guide, {**guide.metadata, "scouts": sum(b.count for b in self.bins)})


@torch.no_grad()
def distance(model: nn.Module, zero_point: Mapping[str, Tensor]) -> Tensor:
    """Euclidean distance of a network's parameters from ``zero_point``."""
    return (
        torch.stack([(p - zero_point[name]).double().square().sum() for name, p in model.named_parameters()])
        .sum()
        .sqrt()
    )

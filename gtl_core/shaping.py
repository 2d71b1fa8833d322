"""Guides made from guides: pure functions that map every value of a `Guide` from [0, 1] into [0, 1], to be composed.

What the authors' code calls scaling is `linear` with a slope alone; squared or absolute displacement, the scope, and
raw, zero-enforced or normalised values are chosen where a guide is made (`Displacement.guide`). `Binned` makes one
guide from several, by how far the scouts had come.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import pairwise
from operator import add

import torch
from torch import Tensor, nn

from gtl_core.files import check_same
from gtl_core.guide import Displacement, Guide
from gtl_core.normalization import accumulator

LARGEST = torch.finfo(torch.float32).max
# How steeply a guide falls from g = 1, where everything moves as it would without a guide.
TEMPERATURES = {"freezing": 100.0, "icy": 4.0, "chilly": 2.0, "room": 1.0, "warm": 0.5, "evaporating": 0.1}


def mapped(guide: Guide, f: Callable[[Tensor], Tensor], what: str) -> Guide:
    """``f`` of every value, in single precision at least. ``what`` is added to the list ``shaping`` of the metadata."""
    return _like(guide, {name: f(g.to(accumulator(g))).to(g.dtype) for name, g in guide.items()}, what)


def linear(guide: Guide, slope: float = 1.0, intercept: float = 0.0) -> Guide:
    """g -> slope * g + intercept, cut off at 0 and 1. Raises ValueError if the slope is negative, or one of both is
    not finite in single precision."""
    if slope < 0:
        raise ValueError(f"slope = {slope}: must not be negative, or what scouts moved most would move least")
    if not (slope <= LARGEST and abs(intercept) <= LARGEST):  # nor where one is no number
        raise ValueError(f"slope = {slope}, intercept = {intercept}: must be at most {LARGEST:.2g} in size")
    return mapped(guide, lambda g: (slope * g + intercept).clamp(0, 1), f"linear {slope:g} {intercept:g}")


def temperature(guide: Guide, name: str) -> Guide:
    """g -> max(0, 1 - slope * (1 - g)): a line through (1, 1), the steeper the colder.

    name: ``freezing`` (slope 100: only the top hundredth of [0, 1] still moves), ``icy`` (4), ``chilly`` (2), ``room``
    (1: the guide as it is), ``warm`` (1/2: everything moves by half at least), ``evaporating`` (1/10: barely guided).
    """
    if name not in TEMPERATURES:
        raise ValueError(f"temperature = {name!r}: must be one of {', '.join(TEMPERATURES)}")
    slope = TEMPERATURES[name]
    return mapped(guide, lambda g: (slope * g + (1 - slope)).clamp(0, 1), f"temperature {name}")


def power(guide: Guide, exponent: float) -> Guide:
    """g -> g ** exponent: below 1 softer (1/2 turns squared displacements into their roots), above 1 stricter.

    Towards 0 everything moves that moved at all, towards infinity only what moved most. ValueError unless positive.
    """
    if not exponent > 0:
        raise ValueError(f"exponent = {exponent}: must be positive")
    near = min(max(exponent, torch.finfo(torch.float32).tiny), LARGEST)  # what single precision can tell apart
    return mapped(guide, lambda g: g.pow(near), f"power {exponent:g}")


def sparse(guide: Guide, threshold: float) -> Guide:
    """g -> g where g >= threshold, else 0. ``Guide.save(path, sparse=True)`` then stores what is left, 8 bytes a value.

    Raises ValueError unless the threshold is in [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold = {threshold}: must lie in [0, 1]")
    return mapped(guide, lambda g: torch.where(g >= threshold, g, 0), f"sparse {threshold:g}")


def free(guide: Guide, *names: str) -> Guide:
    """1 for the parameters ``names``, each a parameter or a module of which all are meant (``head``). Raises ValueError
    if nothing has such a name."""
    found = guide.named(*names)
    values = {name: torch.ones_like(g) if name in found else g for name, g in guide.items()}
    return _like(guide, values, f"free {' '.join(names)}")


def per_tensor(guide: Guide) -> Guide:
    """Every value becomes its tensor's mean: which layers may move, and nothing finer."""
    return mapped(guide, lambda g: g.mean().expand_as(g), "per tensor")


def uniform(guide: Guide) -> Guide:
    """Every value becomes the mean over all parameters: how much may move, and nothing about where. With it, a guided
    optimizer is the same optimizer at a lower rate for these parameters."""
    values = [g.flatten().to(accumulator(g)) for g in guide.values()]
    mean = torch.cat(values).mean() if values else torch.zeros(())
    return mapped(guide, lambda g: mean.expand_as(g), "uniform")


def shuffled(guide: Guide, generator: torch.Generator) -> Guide:
    """The values of every tensor in random order: a control with the same distribution that knows nothing."""
    return mapped(guide, lambda g: g.flatten()[torch.randperm(g.numel(), generator=generator)].view_as(g), "shuffled")


def combine(guides: Sequence[Guide], weights: Sequence[float]) -> Guide:
    """The weighted mean of several guides. Raises ValueError unless there is a weight for each, none negative, not all
    0 and their sum finite, or if the guides are not for the same parameters."""
    if len(guides) != len(weights):
        raise ValueError(f"weights = {list(weights)}: must be one for each of {len(guides)} guides")
    if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < math.inf:
        raise ValueError(f"weights = {list(weights)}: must not be negative, not all 0, and their sum finite")
    for guide in guides[1:]:
        check_same(guide, guides[0], "one guide", "another")
    total = sum(weights)
    shares = [weight / total for weight in weights]
    values = {}
    for name, first in guides[0].items():
        parts = (share * g[name].to(accumulator(first)) for share, g in zip(shares, guides, strict=True))
        values[name] = reduce(add, parts).clamp(0, 1).to(first.dtype)  # rounding may put the sum of shares above 1
    return _like(guides[0], values, "combine " + " ".join(f"{weight:g}" for weight in weights))


def density(guide: Guide) -> float:
    """Share of the values that are not 0; of none, 0."""
    return sum(g.count_nonzero().item() for g in guide.values()) / max(1, sum(g.numel() for g in guide.values()))


def histogram(guide: Guide, edges: Sequence[float]) -> dict[str, Tensor]:
    """For every parameter, the share of its values between successive ``edges`` [n + 1] -> [n]; of none, 0. Raises
    ValueError unless the edges increase."""
    if len(edges) < 2 or any(not a < b for a, b in pairwise(edges)):
        raise ValueError(f"edges = {list(edges)}: must increase")
    bins = torch.as_tensor(edges, dtype=torch.float32)
    return {name: torch.histogram(g.cpu().to(bins.dtype), bins).hist / max(1, g.numel()) for name, g in guide.items()}


class Binned:
    """One `Displacement` for each bin of the distance from the zero point (Euclidean, over all parameters).

    Suggested, not tried, by the paper: points that scouts pass on their way make several guides, those far away weigh
    more. ``edges`` [n - 1], increasing, part the distances into n ``bins``. Only sums are kept: memory is bins times
    parameters, however many points are added. Source: arXiv 2303.16154.
    """

    def __init__(self, zero_point: nn.Module | Mapping[str, Tensor], edges: Sequence[float]) -> None:
        if any(not a < b for a, b in pairwise(edges)):
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
    """Euclidean distance of a network's parameters from ``zero_point``: a scalar, in double precision."""
    squares = [(p - zero_point[name]).double().square().sum() for name, p in model.named_parameters()]
    return torch.stack(squares).sum().sqrt()


def _like(guide: Guide, values: Mapping[str, Tensor], what: str) -> Guide:
    history = [*guide.metadata.get("shaping", []), what]
    return Guide(values, {**guide.metadata, "shaping": history})

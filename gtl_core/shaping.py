"""Guides made from guides: pure functions that map every value of a `Guide` from [0, 1] into [0, 1], to be composed.

What the authors' code calls scaling is `linear` with a slope alone; squared or absolute displacement, the scope, and
raw, zero-enforced or normalised values are chosen where a guide is made (`Displacement.guide`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gtl_core.guide import Guide, check_same

# How steeply a guide falls from g = 1, where everything moves as it would without a guide.
TEMPERATURES = {"freezing": 100.0, "icy": 4.0, "chilly": 2.0, "room": 1.0, "warm": 0.5, "evaporating": 0.1}


def mapped(guide: Guide, f: Callable[[Tensor], Tensor], what: str) -> Guide:
    """``f`` of every value. ``what`` is added to the list ``shaping`` of the guide's metadata."""
    return _like(guide, {name: f(g) for name, g in guide.items()}, what)


def linear(guide: Guide, slope: float = 1.0, intercept: float = 0.0) -> Guide:
    """g -> slope * g + intercept, cut off at 0 and 1. Raises ValueError if the slope is negative."""
    if slope < 0:
        raise ValueError(f"slope = {slope}: must not be negative, or what scouts moved most would move least")
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
    return mapped(guide, lambda g: g.pow(exponent), f"power {exponent:g}")


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


def shuffled(guide: Guide, generator: torch.Generator) -> Guide:
    """The values of every tensor in random order: a control with the same distribution that knows nothing."""
    return mapped(guide, lambda g: g.flatten()[torch.randperm(g.numel(), generator=generator)].view_as(g), "shuffled")


def combine(guides: Sequence[Guide], weights: Sequence[float]) -> Guide:
    """The weighted mean of several guides. Raises ValueError if a weight is negative or all are 0, or if the guides are
    not for the same parameters."""
    if min(weights) < 0 or sum(weights) == 0:
        raise ValueError(f"weights = {list(weights)}: must not be negative, and not all 0")
    for guide in guides[1:]:
        check_same(guide, guides[0], "one guide", "another")
    total = sum(weights)
    shares = [weight / total for weight in weights]
    values = {
        # Rounding may put the sum of shares a little above 1.
        name: sum(share * g[name] for share, g in zip(shares, guides, strict=True)).clamp(0, 1)
        for name in guides[0]
    }
    return _like(guides[0], values, "combine " + " ".join(f"{weight:g}" for weight in weights))


def density(guide: Guide) -> float:
    """Share of the values that are not 0."""
    return sum(g.count_nonzero().item() for g in guide.values()) / sum(g.numel() for g in guide.values())


def histogram(guide: Guide, edges: Sequence[float]) -> dict[str, Tensor]:
    """For every parameter, the share of its values between successive ``edges`` [n + 1] -> [n]."""
    edges = torch.as_tensor(edges)
    return {name: torch.histogram(g.cpu().to(edges.dtype), edges)[0] / g.numel() for name, g in guide.items()}


def _like(guide: Guide, values: Mapping[str, Tensor], what: str) -> Guide:
    history = [*guide.metadata.get("shaping", []), what]
    return Guide(values, {**guide.metadata, "shaping": history})

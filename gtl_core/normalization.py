"""Values of any statistic brought into [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

SCOPES = ("network", "tensor")
NORMALIZATIONS = ("max", "minmax", "zero", "raw")


def normalize(values: Mapping[str, Tensor], scope: str = "network", normalization: str = "max") -> dict[str, Tensor]:
    """Values >= 0 of any statistic brought into [0, 1], as `Displacement.guide` says."""
    allow("scope", scope, SCOPES)
    allow("normalization", normalization, NORMALIZATIONS)
    normalized = dict(values)  # tensors without elements stay as they are
    names = [name for name, value in values.items() if value.numel()]
    for group in [names] if scope == "network" else [[name] for name in names]:
        low = min((values[name].min() for name in group), default=torch.zeros(()))
        high = max((values[name].max() for name in group), default=torch.zeros(()))
        if normalization in ("max", "raw") or (normalization == "minmax" and low == high):
            low = torch.zeros_like(low)
        width = torch.ones_like(high) if normalization in ("zero", "raw") else high - low
        for name in group:
            normalized[name] = ((values[name] - low) / width).clamp(0, 1) if high > 0 else values[name]
    return normalized


def accumulator(values: Tensor) -> torch.dtype:
    """The type to compute in: single precision for values in half, which sums and powers would leave; else theirs."""
    return torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype


def allow(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError, naming the argument, unless its value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")

"""Times of two ways to do the same, in alternation: what disturbs one disturbs the other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


class Ratio(NamedTuple):
    """Median seconds of each, and quartiles of the ratio plain / other over the rounds."""

    plain: float
    other: float
    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:6.3f}  {self.low:6.3f} .. {self.high:<6.3f}"


def alternate(
    plain: Callable[[], object],
    other: Callable[[], object],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Ratio:
    """Call both ``rounds`` times, each first in half of the rounds, after a round that does not count."""
    took = {plain: [], other: []}
    for i in range(rounds + 1):
        for function in (plain, other) if i % 2 else (other, plain):
            begin = clock()
            function()
            took[function].append(clock() - begin)
    alone, together = took[plain][1:], took[other][1:]
    quartiles = statistics.quantiles([a / b for a, b in zip(alone, together, strict=True)], n=4)
    return Ratio(statistics.median(alone), statistics.median(together), *quartiles)


def peak_flops() -> float:
    """Floating point operations per second of one thread."""
    a, out = torch.rand(512, 512), torch.empty(512, 512)
    times = []
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(4):
            torch.mm(a, a, out=out)
        times.append((time.perf_counter() - begin) / 4)
    return 2 * 512**3 / statistics.median(times)

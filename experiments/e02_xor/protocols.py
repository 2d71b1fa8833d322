"""What was tried on XOR, one row each: how networks [n, P] are trained, from guides [n, P], and what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from experiments.e02_xor.networks import TinyNetworks, adjacent
from experiments.methods import CONTROL, FINE_TUNING, GUIDED, Method, table
from gtl_core.tasks import rng

if TYPE_CHECKING:
    from experiments.e02_xor.run import XorParameters

METHODS = table(
    [
        Method("plain", "plain descent", FINE_TUNING),
        Method("guided", "guided", GUIDED),
        Method("plain_restarts", "plain, with restarts", FINE_TUNING, "#E69F00"),
        Method("guided_restarts", "guided, with restarts", GUIDED, "#56B4E9"),
        Method("control", "control", CONTROL),
    ]
)
HEADLINES = [method.name for method in METHODS.values() if method.family is not CONTROL]  # compared on test inits


@dataclass(frozen=True)
class Protocol:
    """How a network is trained. Everything that it does, scouts included, is paid from the same budget of steps."""

    name: str
    scouts: tuple[int, ...] = ()  # sub-problems: all sets of so many of the four points; none: plain descent
    scout_steps: int = 10
    scope: str = "network"
    normalization: str = "max"
    statistic: str = "square"
    exponents: tuple[float, ...] = (1.0,)  # temperature: g ** exponent, one phase of training for each; 0: plain
    renewed: bool = False  # new scouts leave from where training has come to, at the beginning of each phase
    solved_only: bool = False  # scouts that did not solve their sub-problem are left out
    by_distance: bool = False  # scouts weigh as much as the distance they travelled
    guides: int = 1  # scouts are binned by distance; phases or attempts use the bins in turn, the farthest first
    noise: float = 0.0  # standard deviation around the zero point of where scouts start
    control: str = ""  # uniform: random values for g; shuffled: the values of the guide at random parameters
    attempts: int = 1  # the budget is divided; the next one is made if the one before did not end solved
    redraw: bool = True  # the next attempt has a new zero point; else the same one with the next guide

    @property
    def method(self) -> str:
        """The row of `METHODS` that it belongs to."""
        if self.control:
            return "control"
        return ("guided" if self.scouts else "plain") + ("_restarts" if self.attempts > 1 and self.redraw else "")

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """The points of each scout."""
        return [subset for size in self.scouts for subset in combinations(range(4), size)]

    @property
    def scouting_cost(self) -> int:
        """Of one guide, in full-batch steps of one network: a scout on two of the four points pays half of each."""
        return -(-self.scout_steps * sum(map(len, self.subsets)) // 4)

    def main_steps(self, steps: int) -> int:
        """Steps per phase that are left of an attempt's share of the budget ``steps``."""
        phases = len(self.exponents)
        return (steps // self.attempts - self.scouting_cost * (phases if self.renewed else 1)) // phases

    def scouted(self, networks: TinyNetworks, zero_point: Tensor, p: XorParameters, generator: torch.Generator):
        """Displacements [n, scouts, P] of every zero point's scouts; whether each [n, scouts] solved its points."""
        points = torch.zeros(len(self.subsets), 4)
        for row, subset in zip(points, self.subsets, strict=True):
            row[list(subset)] = 1 / len(subset)
        shape = (len(zero_point), len(points))
        start = zero_point.repeat_interleave(len(points), 0)
        if self.noise:
            start = start + self.noise * torch.randn(start.shape, generator=generator)
        points, start = adjacent(points.repeat(len(zero_point), 1)), adjacent(start)
        end, _ = networks.descend(start, torch.tensor(p.scout_learning_rate), None, self.scout_steps, points)
        return (end - start).unflatten(0, shape), networks.solves(end, points).unflatten(0, shape)

    def guide(self, networks: TinyNetworks, displacements: Tensor, solved: Tensor) -> Tensor:
        """The guide [n, P] of each network by the formulas of `Displacement.guide`, but 0 where no scout moved."""
        moved = displacements.square() if self.statistic == "square" else displacements.abs()
        weights = torch.ones_like(solved, dtype=moved.dtype)
        if self.solved_only:  # if all failed, all count
            weights = (solved | ~solved.any(1, keepdim=True)).to(moved.dtype)
        if self.by_distance:
            weights = weights * displacements.norm(dim=2)
        total = weights.sum(1, keepdim=True)
        mean = (moved * weights[..., None]).sum(1) / total.where(total > 0, torch.ones(()))
        guide = torch.empty_like(mean)
        for scope in networks.tensors if self.scope == "tensor" else [slice(None)]:
            low, high = mean[:, scope].aminmax(dim=1, keepdim=True)
            low = low.where((low < high) & (self.normalization == "minmax"), torch.zeros(()))
            guide[:, scope] = ((mean[:, scope] - low) / (high - low).where(high > 0, torch.ones(()))).clamp(0, 1)
        return adjacent(guide)

    def all_guides(self, networks: TinyNetworks, zero_point: Tensor, p: XorParameters, generator: torch.Generator):
        """As many guides [n, P] as ``guides``, that of the scouts that travelled farthest first."""
        if self.control == "uniform":
            return [adjacent(torch.rand(zero_point.shape, generator=generator))]
        displacements, solved = self.scouted(networks, zero_point, p, generator)
        farthest_first = displacements.norm(dim=2).argsort(1, descending=True).chunk(self.guides, 1)
        bins = [
            (displacements.take_along_dim(of_bin[..., None], 1), solved.gather(1, of_bin)) for of_bin in farthest_first
        ]
        guides = [self.guide(networks, *of_bin) for of_bin in bins]
        if self.control == "shuffled":
            order = torch.rand(zero_point.shape, generator=generator).argsort(1)
            guides = [adjacent(guide.gather(1, order)) for guide in guides]
        return guides

    def solving_times(
        self, name: str, inits: Sequence[Tensor], rates: Tensor, p: XorParameters, watch: Callable | None = None
    ) -> Tensor:
        """When [n] each network ``name`` was solved for good (in full-batch steps, scouting included; NaN: it was not).

        inits: zero points [n, P] for each attempt that starts anew. rates, watch: as for `TinyNetworks.descend`.
        """
        networks, budget, phase = TinyNetworks.parse(name), p.steps // self.attempts, self.main_steps(p.steps)
        times = torch.full(inits[0].shape[:1], torch.nan)
        for attempt in range(self.attempts):
            theta = inits[attempt if self.redraw else 0]
            generator = rng(p.seed, "scouts", self.name, attempt)
            clock, time, guides = attempt * budget, torch.zeros(len(theta)), []
            for i, exponent in enumerate(self.exponents):
                if self.scouts and (not guides or self.renewed):
                    guides = self.all_guides(networks, theta, p, generator)
                    clock += self.scouting_cost
                guide = guides[(attempt + i) % len(guides)] ** exponent if guides else None
                theta, since = networks.descend(theta, rates, guide, phase, watch=watch)
                # Solved all through this phase: then the time is what it was before.
                time = time.where((since == 0) & (time > 0), clock + since)
                clock += phase
            times = times.where(~(times.isnan() & networks.solves(theta)), time)
        return times


WARMING = tuple(1 - i / 9 for i in range(10))
WARMING_FAST = tuple(1 - i / 4 for i in range(5))
VARIATIONS = {
    "": {},
    "tensor scope": {"scope": "tensor"},
    "minmax": {"normalization": "minmax"},
    "minmax, tensor scope": {"scope": "tensor", "normalization": "minmax"},  # the authors'
    "absolute displacement": {"statistic": "abs"},
    "hot (fourth root)": {"exponents": (0.25,)},
    "cold (squared)": {"exponents": (2.0,)},
    "warming up to plain": {"exponents": WARMING},
    "weighted by distance": {"by_distance": True},
    "2 guides by distance in turn": {"guides": 2, "exponents": (1.0,) * 10},
    "solved scouts only": {"solved_only": True},
    "noise in scouts' start": {"noise": 0.3},
}
ONLY_OF_POINTS = (
    "minmax", "absolute displacement", "hot (fourth root)", "weighted by distance", "2 guides by distance in turn",
)  # fmt: skip


def _variations(scouts: str, size: int, steps: int, without: tuple[str, ...] = ()) -> list[Protocol]:
    kept = {name: changes for name, changes in VARIATIONS.items() if name not in without}
    return [Protocol(f"{scouts}, {n}".removesuffix(", "), (size,), steps, **changes) for n, changes in kept.items()]


PROTOCOLS = (
    Protocol("plain"),
    *_variations("points", 1, 10),
    *_variations("triples x 100", 3, 100, without=ONLY_OF_POINTS),
    Protocol("points x 100", (1,), 100),
    Protocol("pairs", (2,), 10),
    Protocol("pairs, warming up to plain", (2,), 10, exponents=WARMING),
    Protocol("pairs x 100", (2,), 100),
    Protocol("triples", (3,), 10),
    Protocol("triples, warming up to plain", (3,), 10, exponents=WARMING),
    Protocol("points, pairs and triples", (1, 2, 3), 10),
    Protocol("points, renewed 10 times", (1,), 10, exponents=(1.0,) * 10, renewed=True),
    Protocol("triples, renewed 10 times", (3,), 10, exponents=(1.0,) * 10, renewed=True),
    Protocol("4 guides by distance, each from the start", (1, 2, 3), 10, guides=4, attempts=4, redraw=False),
    Protocol("random numbers as guide", (1,), 10, control="uniform"),
    Protocol("random numbers, warming up to plain", (1,), 10, exponents=WARMING, control="uniform"),
    Protocol("points, shuffled, warming up to plain", (1,), 10, exponents=WARMING, control="shuffled"),
    Protocol("points, shuffled", (1,), 10, control="shuffled"),
    *(Protocol(f"plain, {k} inits", attempts=k) for k in (2, 4, 8)),
    *(Protocol(f"points, {k} inits", (1,), 10, attempts=k) for k in (2, 4)),
    *(Protocol(f"pairs, {k} inits", (2,), 10, attempts=k) for k in (2, 4)),
    *(Protocol(f"points, warming up, {k} inits", (1,), 10, exponents=WARMING_FAST, attempts=k) for k in (2, 4, 8)),
    *(Protocol(f"triples, warming up, {k} inits", (3,), 10, exponents=WARMING_FAST, attempts=k) for k in (2, 4, 8)),
)

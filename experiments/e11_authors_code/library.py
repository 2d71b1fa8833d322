"""The authors' methods, and the example of their library: (OR, AND), then XOR, with its network, loss and scouts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from experiments.methods import CONTROL, FINE_TUNING, GUIDED, NETWORK, TENSOR, Method, table
from experiments.models import multilayer_perceptron
from experiments.protocol import Row
from experiments.statistics import best_settings
from experiments.workers import parallel
from gtl_core import Displacement, Guide, Guided
from gtl_core._engine import stack
from gtl_core.shaping import shuffled
from gtl_core.tasks import rng
from gtl_core.training import fit

if TYPE_CHECKING:
    from experiments.e11_authors_code.run import AuthorsParameters

SIZES = (2, 1000, 250, 2)
POINTS = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
OR_AND = torch.tensor([[0.0, 0], [1, 0], [1, 0], [1, 1]])
XOR = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])  # and its negation, since the network has two outputs
PAIRS = ([0, 1], [2, 3])  # the points of each scout
TOLERANCE = 0.4  # an output this near to its target is right (Fahlman 1988)
SIDE_BY_SIDE = 10

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class GuidedBy(Method):
    """A method with what its guide multiplies, see `Guided`."""

    on: str = "step"

    def optimizer(self, inner: torch.optim.Optimizer, network: nn.Module, guides: Sequence[Guide]):
        """``inner``, guided if the method is; ``guides``: one per copy in the stacked ``network``."""
        return Guided(inner, network, guides_side_by_side(guides), on=self.on) if self.guide else inner


def nothing_moves(displacement: Displacement) -> Guide:
    """The guide in the authors' published output: 0 everywhere, as their zero point moves along with the scouts."""
    return Guide({name: torch.zeros_like(p) for name, p in displacement.zero_point.items()})


def _shuffled(displacement: Displacement) -> Guide:
    return shuffled(displacement.guide(scope="network"), rng(0, "shuffled"))


_theirs = partial(Displacement.guide, scope="tensor", normalization="minmax")
METHODS: Mapping[str, GuidedBy] = table(
    [
        GuidedBy("plain", "plain", FINE_TUNING),
        GuidedBy(**vars(NETWORK)),
        GuidedBy(**vars(replace(TENSOR, guide=_theirs))),
        GuidedBy("guided_gradient", "guided gradient (authors' code)", GUIDED, "#CC79A7", guide=_theirs, on="gradient"),
        GuidedBy("shuffled", "network scope, values shuffled", CONTROL, "#009E73", guide=_shuffled),
        GuidedBy("dead_guide", "dead guide (authors' output)", CONTROL, guide=nothing_moves, has_rate=False),
    ]
)


def guides_side_by_side(guides: Sequence[Guide]) -> Guide:
    """One guide for a stacked network, from one per copy."""
    return Guide({name: torch.stack([guide[name] for guide in guides]) for name in guides[0]})


def summed(loss: Loss) -> Loss:
    """The loss of a stacked network from that of one: every copy gets the gradient that it would have alone."""
    return lambda outputs, targets: outputs.shape[1] * loss(outputs, targets)


class Practice(NamedTuple):
    """A method at a rate; columns of the table."""

    experiment: str
    method: str
    learning_rate: float


class Learned(NamedTuple):
    """Some networks, stacked, that know (OR, AND), and what each one's scouts found."""

    network: nn.Module
    displacements: list[Displacement]


def repeated(points: Tensor, size: int) -> Tensor:
    """[N, 2] -> [N, size, 2], for a stacked network."""
    return points[:, None].expand(-1, size, -1)


def learn_or_and(p: AuthorsParameters, purpose: str, inits: range) -> Learned:
    """Networks that learn (OR, AND) from random weights and then send two scouts each, each to two points of XOR."""
    generators = [rng(p.seed, "library", purpose, init) for init in inits]
    network = stack([multilayer_perceptron(SIZES, nn.ReLU, generator=generator) for generator in generators])

    def learn(model: nn.Module, points: list[int], targets: Tensor, steps: int) -> None:
        sgd = torch.optim.SGD(model.parameters(), lr=p.xor_scout_rate, fused=True)
        task = repeated(POINTS[points], len(inits)), repeated(targets[points], len(inits))
        fit(model, *task, sgd, epochs=steps, loss=summed(l1_loss))

    learn(network, [0, 1, 2, 3], OR_AND, p.or_and_steps)
    displacements = [Displacement({n: w[s] for n, w in network.named_parameters()}) for s in range(len(inits))]
    for pair in PAIRS:
        scouts = copy.deepcopy(network)
        learn(scouts, pair, XOR, p.xor_scout_steps)
        for s, displacement in enumerate(displacements):
            displacement.add({n: w[s] for n, w in scouts.named_parameters()})
    return Learned(network, displacements)


def solving_times(learned: Learned, method: GuidedBy, rate: float, steps: int, spent: int) -> Tensor:
    """Steps [S] until XOR is solved for good, ``spent`` ones included; NaN for those unsolved at the end."""
    network, size = copy.deepcopy(learned.network), len(learned.displacements)
    inputs, targets = repeated(POINTS, size), repeated(XOR, size)
    sgd = torch.optim.SGD(network.parameters(), lr=rate, fused=True)
    guides = [method.guide(displacement) for displacement in learned.displacements] if method.guide else []
    optimizer, loss = method.optimizer(sgd, network, guides), summed(l1_loss)
    times = torch.full((size,), float(spent))
    for step in range(spent, steps):
        outputs = network(inputs)
        times[_wrong(outputs, targets)] = step + 1
        optimizer.zero_grad()
        loss(outputs, targets).backward()
        optimizer.step()
    with torch.no_grad():
        times[_wrong(network(inputs), targets)] = float("nan")
    return times


def _wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().amax((0, 2)) >= TOLERANCE


def _times(p: AuthorsParameters, job: tuple[str, range, list[Practice]]) -> list[Tensor]:
    """Of some inits under each practice."""
    purpose, inits, practices = job
    learned, found = learn_or_and(p, purpose, inits), []
    for _, name, rate in practices:
        method = METHODS[name]
        found.append(solving_times(learned, method, rate, p.xor_steps, p.xor_scout_cost if method.guide else 0))
    return found


def all_times(p: AuthorsParameters, purpose: str, n: int, practices: list[Practice]) -> dict[Practice, Tensor]:
    """Solving times [n] of every practice on the same ``n`` inits."""
    inits = [range(i, min(i + SIDE_BY_SIDE, n)) for i in range(0, n, SIDE_BY_SIDE)]
    jobs = [(purpose, some, practices) for some in inits]
    found = parallel(partial(_times, p), jobs, p.workers, f"XOR, {purpose}", p.dask_scheduler)
    return {which: torch.cat(times) for which, times in zip(practices, zip(*found, strict=True), strict=True)}


def run_library(p: AuthorsParameters) -> list[Row]:
    """Rows with ``validation`` (mean `budget_left` of tuning inits) at every rate; and ``time``, see `solving_times`,
    of every test init at the best one. An init is a network of its own, so it is a seed of the table."""
    methods = [METHODS[name] for name in ("plain", "guided_network", "guided_tensor", "dead_guide")]
    tried = [Practice("xor", m.name, r) for m in methods for r in (p.xor_rates if m.has_rate else p.xor_rates[:1])]
    tuning = all_times(p, "tuning", p.n_tuning_inits, tried)
    rows: list[Row] = [
        {"seed": p.seed}
        | which._asdict()
        | {"metric": "validation", "value": budget_left(times, p.xor_steps).mean().item()}
        for which, times in tuning.items()
    ]
    best = best_settings(pd.DataFrame(rows), ["experiment", "method"], ["learning_rate"])
    tests = all_times(p, "test", p.n_inits, [Practice(*variant, *setting) for variant, setting in best.items()])
    for which, times in tests.items():
        for init, time in enumerate(times.tolist()):
            rows.append({"seed": init} | which._asdict() | {"task": 0, "metric": "time", "value": time})
    return rows


def budget_left(times: Tensor, steps: int) -> Tensor:
    """Share of the budget that was left when XOR was solved; 0 if it was not."""
    return (1 - times / steps).nan_to_num(0)

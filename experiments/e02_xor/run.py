"""XOR without pretraining (paper: local minima): tiny networks by the thousand, trained side by side as one batch.

Every tensor that belongs to networks has them as its leading dimension n: `theta` [n, P] holds all parameters of each,
weights [n, out, in] are views of it, a guide [n, P] belongs to one zero point each. Training is full-batch gradient
descent on the mean squared error of a sigmoid output, the setting in which XOR is known to stagnate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from typing import Annotated

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from experiments.parameters import Count, NotebookParameters, Rate
from experiments.statistics import auc, wilson
from experiments.workers import parallel
from gtl_core.tasks import rng

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

Architecture = Annotated[str, Field(pattern=r"^2(-[1-9]\d*)+-1 (tanh|sigmoid|relu)$")]


class XorParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    networks: tuple[Architecture, ...] = Field(min_length=1)
    n_inits: Count
    n_tuning_inits: Count
    steps: Annotated[int, Field(ge=400)]  # the most expensive scouting takes 300
    learning_rates: tuple[Rate, ...] = Field(min_length=1)
    scout_learning_rate: Rate


@dataclass(frozen=True)
class Network:
    """Fully connected layers of these ``sizes``, sigmoid output."""

    sizes: tuple[int, ...]
    activation: str

    @classmethod
    def parse(cls, text: str) -> Network:
        """``2-2-1 tanh``, say."""
        sizes, activation = text.split()
        return cls(tuple(map(int, sizes.split("-"))), activation)

    @cached_property
    def tensors(self) -> list[slice]:
        """Where weight and bias of every layer lie in theta."""
        lengths = [length for i, o in zip(self.sizes, self.sizes[1:], strict=False) for length in (o * i, o)]
        ends = torch.tensor(lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]

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
        return _init_fastest(theta)

    def layers(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views: weight [n, out, in] and bias [n, out] of every layer."""
        shapes = zip(self.sizes[1:], self.sizes, strict=False)
        return [
            (theta[:, weight].unflatten(1, shape), theta[:, bias])
            for weight, bias, shape in zip(self.tensors[::2], self.tensors[1::2], shapes, strict=True)
        ]

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
        return ((_errors(self.activations(theta)) < TOLERANCE) | (points == 0)).all(1)


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
        if self.control:
            return "control"
        return ("guided" if self.scouts else "plain") + ("_restarts" if self.attempts > 1 and self.redraw else "")

    @property
    def scouting_cost(self) -> int:
        """Of one guide, in full-batch steps of one network: a scout on two of the four points pays half of each."""
        n_points = sum(len(points) for points in _subsets(self.scouts))
        return -(-self.scout_steps * n_points // 4)

    def main_steps(self, steps: int) -> int:
        """Steps per phase that are left of an attempt's share of the budget ``steps``."""
        phases = len(self.exponents)
        return (steps // self.attempts - self.scouting_cost * (phases if self.renewed else 1)) // phases


WARMING = tuple(1 - i / 9 for i in range(10))
WARMING_FAST = tuple(1 - i / 4 for i in range(5))
POINTS = {"scouts": (1,), "scout_steps": 10}
TRIPLES = {"scouts": (3,), "scout_steps": 100}
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
PROTOCOLS = (
    Protocol("plain"),
    *(Protocol(f"points, {name}".removesuffix(", "), **POINTS | changes) for name, changes in VARIATIONS.items()),
    *(
        Protocol(f"triples x 100, {name}".removesuffix(", "), **TRIPLES | VARIATIONS[name])
        for name in (
            "",
            "tensor scope",
            "minmax, tensor scope",
            "cold (squared)",
            "warming up to plain",
            "solved scouts only",
            "noise in scouts' start",
        )
    ),
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
HEADLINES = ("plain", "guided", "plain_restarts", "guided_restarts")


def scout(network: Network, zero_point: Tensor, protocol: Protocol, rate: float, generator: torch.Generator):
    """Displacements [n, scouts, P] of all scouts of every zero point; whether each [n, scouts] solved its points."""
    subsets = _subsets(protocol.scouts)
    points = torch.zeros(len(subsets), 4)
    for row, subset in zip(points, subsets, strict=True):
        row[list(subset)] = 1 / len(subset)
    start = zero_point.repeat_interleave(len(points), 0)
    if protocol.noise:
        start = start + protocol.noise * torch.randn(start.shape, generator=generator)
    points = _init_fastest(points.repeat(len(zero_point), 1))
    start = _init_fastest(start)
    end, _ = descend(network, start, torch.tensor(rate), None, protocol.scout_steps, points)
    shape = (len(zero_point), len(subsets))
    return (end - start).unflatten(0, shape), network.solves(end, points).unflatten(0, shape)


def make_guide(network: Network, displacements: Tensor, solved: Tensor, protocol: Protocol) -> Tensor:
    """The guide [n, P] of each network by the formulas of `Displacement.guide`, but 0 where no scout moved anything."""
    moved = displacements.square() if protocol.statistic == "square" else displacements.abs()
    weights = torch.ones_like(solved, dtype=moved.dtype)
    if protocol.solved_only:  # if all failed, all count
        weights = (solved | ~solved.any(1, keepdim=True)).to(moved.dtype)
    if protocol.by_distance:
        weights = weights * displacements.norm(dim=2)
    total = weights.sum(1, keepdim=True)
    mean = (moved * weights[..., None]).sum(1) / total.where(total > 0, torch.ones(()))
    guide = torch.empty_like(mean)
    for scope in network.tensors if protocol.scope == "tensor" else [slice(None)]:
        low, high = mean[:, scope].aminmax(dim=1, keepdim=True)
        low = low.where((low < high) & (protocol.normalization == "minmax"), torch.zeros(()))
        guide[:, scope] = ((mean[:, scope] - low) / (high - low).where(high > 0, torch.ones(()))).clamp(0, 1)
    return guide


def guides(network: Network, zero_point: Tensor, protocol: Protocol, rate: float, generator: torch.Generator):
    """A list of guides [n, P], as many as ``protocol.guides``."""
    n_parameters = zero_point.shape[1]
    if protocol.control == "uniform":
        return [_init_fastest(torch.rand(zero_point.shape, generator=generator))]
    displacements, solved = scout(network, zero_point, protocol, rate, generator)
    order = displacements.norm(dim=2).argsort(1, descending=True)
    found = []
    for scouts in order.chunk(protocol.guides, 1):
        of_bin = displacements.gather(1, scouts[..., None].expand(-1, -1, n_parameters))
        found.append(_init_fastest(make_guide(network, of_bin, solved.gather(1, scouts), protocol)))
    if protocol.control == "shuffled":
        order = torch.rand(zero_point.shape, generator=generator).argsort(1)
        found = [_init_fastest(guide.gather(1, order)) for guide in found]
    return found


def descend(
    network: Network,
    theta: Tensor,
    rates: Tensor,
    guide: Tensor | None,
    steps: int,
    points: Tensor = ALL_POINTS,
    watch: Callable[[Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Guided steps ``lerp(before, after, g)`` of gradient descent with ``rates`` [n] or scalar; guide None: plain.

    Returns the new theta [n, P] and the step [n] (a multiple of `CHECK_EVERY`) from which on XOR was solved. ``watch``
    is called with theta whenever that is checked.
    """
    rates = rates.reshape(-1, 1)
    since = torch.zeros(len(theta))
    for step in range(steps):
        activations = network.activations(theta)
        if step % CHECK_EVERY == 0:
            since = since.where((_errors(activations) < TOLERANCE).all(1), torch.tensor(step + CHECK_EVERY * 1.0))
            if watch:
                watch(theta)
        after = theta - rates * network.gradient(theta, points, activations)
        theta = after if guide is None else theta.lerp(after, guide)
    return theta, since


def train(
    network: Network,
    zero_points: Sequence[Tensor],
    rates: Tensor,
    protocol: Protocol,
    p: XorParameters,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """When [n] each network was solved for good (scouting included, in full-batch steps; NaN: it was not).

    zero_points: one tensor [n, P] for each attempt that starts anew.
    """
    budget, phase = p.steps // protocol.attempts, protocol.main_steps(p.steps)
    times = torch.full(zero_points[0].shape[:1], torch.nan)
    for attempt in range(protocol.attempts):
        theta = zero_points[attempt if protocol.redraw else 0]
        generator = rng(p.seed, "scouts", protocol.name, attempt)
        clock, time, found = attempt * budget, torch.zeros(len(theta)), []
        for i, exponent in enumerate(protocol.exponents):
            guide = None
            if protocol.scouts:
                if not found or protocol.renewed:
                    found = guides(network, theta, protocol, p.scout_learning_rate, generator)
                    clock += protocol.scouting_cost
                guide = found[(attempt + i) % len(found)] ** exponent
            theta, since = descend(network, theta, rates, guide, phase, watch=watch)
            # Solved all through this phase: then the time is what it was before.
            time = time.where((since == 0) & (time > 0), clock + since)
            clock += phase
        times = times.where(~(times.isnan() & network.solves(theta)), time)
    return times


def run(parameters: XorParameters) -> pd.DataFrame:
    """Every protocol on every network: tuned on some inits; then the best of each method is tested on others.

    Columns: seed, method, network, protocol, learning_rate, init, step, metric, value; init and step are empty where
    they do not apply. Metrics:

    - ``share``, ``share_low``, ``share_high``: share of tuning inits solved at the end, with its 95 % Wilson interval,
      of every protocol at every rate;
    - ``time``: steps until solved, for each test init, empty where it stagnated; only for the `choose` protocols;
    - ``auc <property>``: how well a property of a zero point tells plain's stuck inits that guidance rescues from those
      that it does not (`stats.auc`, with ``auc_low`` and ``auc_high``);
    - ``w0``, ``w1``, ...: the parameters along one stuck run and its guided twin, on the first network.
    """
    p = parameters
    rows: list[dict] = []

    def record(
        network: str, protocol: Protocol, rate: float, init: int | str = "", step: int | str = "", **values
    ) -> None:
        key = {"seed": p.seed, "method": protocol.method, "network": network, "protocol": protocol.name}
        key |= {"learning_rate": rate, "init": init, "step": step}
        rows.extend(key | {"metric": metric, "value": float(value)} for metric, value in values.items())

    searched = [(p, network, protocol) for network, protocol in product(p.networks, PROTOCOLS)]
    counts = parallel(_tune, searched, p.workers, "search", p.dask_scheduler)
    for (_, network, protocol), found in zip(searched, counts, strict=True):
        for rate, n_solved in zip(p.learning_rates, found, strict=True):
            low, high = wilson(n_solved, p.n_tuning_inits)
            record(network, protocol, rate, share=n_solved / p.n_tuning_inits, share_low=low, share_high=high)
    chosen = choose(pd.DataFrame(rows))
    tested = [(p, network, *chosen[network, method]) for network, method in product(p.networks, HEADLINES)]
    solved_at = parallel(_test, tested, p.workers, "test", p.dask_scheduler)
    times = dict(zip(product(p.networks, HEADLINES), solved_at, strict=True))
    for job, time in zip(tested, times.values(), strict=True):
        for init, value in enumerate(time.tolist()):
            record(*job[1:], init, time=value)
    for network in p.networks:
        guided, rate = chosen[network, "guided"]
        stuck, stuck_guided = (times[network, method].isnan() for method in ("plain", "guided"))
        rescued = stuck & ~stuck_guided
        for name, values in describe(network, guided, p).items():
            estimate = auc(values[rescued].numpy(), values[stuck & stuck_guided].numpy())
            names = (f"auc {name}", f"auc_low {name}", f"auc_high {name}")
            record(network, guided, rate, **dict(zip(names, estimate, strict=True)))
        if network == p.networks[0] and rescued.any():
            init = rescued.nonzero()[0].item()
            for twin in (chosen[network, "plain"], chosen[network, "guided"]):
                for step, theta in enumerate(path(network, *twin, init, p)):
                    values = {f"w{k}": value for k, value in enumerate(theta.tolist())}
                    record(network, *twin, init, CHECK_EVERY * step, **values)
    return pd.DataFrame(rows)


def choose(frame: pd.DataFrame) -> dict[tuple[str, str], tuple[Protocol, float]]:
    """For each network and method the protocol and rate that solve most tuning inits; of equals the first."""
    by_name = {protocol.name: protocol for protocol in PROTOCOLS}
    shares = frame[frame["metric"] == "share"]
    best = shares.loc[shares.groupby(["network", "method"])["value"].idxmax()]
    return {(row.network, row.method): (by_name[row.protocol], row.learning_rate) for row in best.itertuples()}


def describe(name: str, protocol: Protocol, p: XorParameters) -> dict[str, Tensor]:
    """Properties [n] of the test inits' zero points: of the point itself, and of what scouts find there."""
    network = Network.parse(name)
    zero_point = _zero_points(name, p, "test", 1)[0]
    generator = rng(p.seed, "scouts", protocol.name, 0)
    displacements, _ = scout(network, zero_point, protocol, p.scout_learning_rate, generator)
    guide = guides(network, zero_point, protocol, p.scout_learning_rate, rng(p.seed, "scouts", protocol.name, 0))[0]
    activations = network.activations(zero_point)
    hidden = activations[1] - activations[1].mean(1, keepdim=True)
    unit = hidden / hidden.norm(dim=1, keepdim=True).clamp_min(1e-9)
    likeness = torch.einsum("npi,npj->nij", unit, unit).abs().triu(1).amax((1, 2))
    weight, bias = network.layers(guide)[0]
    return {
        "size of the zero point": zero_point.norm(dim=1),
        "loss at the zero point": network.loss(zero_point),
        "slope at the zero point": network.gradient(zero_point, ALL_POINTS, activations).norm(dim=1),
        "hidden units that are not dead": (hidden.norm(dim=1) > 0).sum(1).float(),
        "likeness of hidden units": likeness,
        "distance that scouts travel": displacements.norm(dim=2).mean(1),
        "mean of the guide": guide.mean(1),
        "guide of the least guided unit": torch.maximum(weight.amax(2), bias).amin(1),
    }


def path(name: str, protocol: Protocol, rate: float, init: int, p: XorParameters) -> list[Tensor]:
    """Parameters [P] of one test init (of a single attempt) while it trains, every `CHECK_EVERY` steps."""
    thetas: list[Tensor] = []
    zero_points = _zero_points(name, p, "test", 1)
    train(Network.parse(name), zero_points, torch.tensor(rate), protocol, p, lambda theta: thetas.append(theta[init]))
    return thetas


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per network and headline method: its protocol and rate, the share of test inits that it solves with its
    interval from ``low`` to ``high``, the median time, and how many of plain's stuck inits it ``rescued`` and how many
    it ``lost`` that plain solves (for restarts these are rescued by other inits, too)."""
    times = frame[frame["metric"] == "time"]
    rows = []
    for network, of_network in times.groupby("network", sort=False):
        solved = {m: of.set_index("init")["value"].notna() for m, of in of_network.groupby("method")}
        for method in HEADLINES:
            of = of_network[of_network["method"] == method]
            low, high = wilson(int(solved[method].sum()), len(of))
            rows.append(
                {"network": network, "method": method, "protocol": of["protocol"].iloc[0]}
                | {"rate": of["learning_rate"].iloc[0], "solved": solved[method].mean(), "low": low, "high": high}
                | {"n": len(of), "median_time": of["value"].median()}
                | {
                    "rescued": (solved[method] & ~solved["plain"]).sum(),
                    "lost": (~solved[method] & solved["plain"]).sum(),
                }
            )
    return pd.DataFrame(rows)


def search_table(frame: pd.DataFrame) -> pd.DataFrame:
    """All that was tried: share of tuning inits solved at the best rate; a row per protocol, a column per network."""
    shares = frame[frame["metric"] == "share"]
    table = shares.pivot_table(
        index=["method", "protocol"], columns="network", values="value", aggfunc="max", sort=False
    )
    return table.assign(mean=table.mean(axis=1)).sort_values("mean", ascending=False)


def rescue_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The ``auc`` of every property with its interval, as text: a row per property, a column per network."""
    parts = frame["metric"].str.extract(r"^(?P<kind>auc|auc_low|auc_high) (?P<property>.+)")
    found = parts.join(frame[["network", "value"]])
    table = found.dropna(subset="kind").set_index(["kind", "property", "network"])["value"].map("{:.2f}".format)
    return (table["auc"] + " [" + table["auc_low"] + ", " + table["auc_high"] + "]").unstack()


def _tune(job: tuple[XorParameters, str, Protocol]) -> list[int]:
    """How many tuning inits are solved at every rate."""
    p, name, protocol = job
    n_rates = len(p.learning_rates)
    rates = torch.tensor(p.learning_rates).repeat_interleave(p.n_tuning_inits)
    zero_points = [_init_fastest(z.repeat(n_rates, 1)) for z in _zero_points(name, p, "tuning", protocol.attempts)]
    solved = ~train(Network.parse(name), zero_points, rates, protocol, p).isnan()
    return solved.unflatten(0, (n_rates, -1)).sum(1).tolist()


def _test(job: tuple[XorParameters, str, Protocol, float]) -> Tensor:
    p, name, protocol, rate = job
    zero_points = _zero_points(name, p, "test", protocol.attempts)
    return train(Network.parse(name), zero_points, torch.tensor(rate), protocol, p)


def _zero_points(name: str, p: XorParameters, purpose: str, attempts: int) -> list[Tensor]:
    # The same for every protocol, so that differences between protocols are paired.
    n = p.n_inits if purpose == "test" else p.n_tuning_inits
    return [Network.parse(name).draw(n, rng(p.seed, purpose, name, attempt)) for attempt in range(attempts)]


def _init_fastest(t: Tensor) -> Tensor:
    # [n, ...] with the networks adjacent in memory: elementwise arithmetic over them is then vectorised.
    return t.T.contiguous().T


def _errors(activations: list[Tensor]) -> Tensor:
    return (activations[-1][..., 0] - TARGETS).abs()


def _subsets(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [subset for size in sizes for subset in combinations(range(4), size)]

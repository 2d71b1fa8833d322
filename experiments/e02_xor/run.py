"""XOR without pretraining (paper: local minima): every protocol is tuned on some inits, the best tested on others."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Annotated, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from experiments.e02_xor.networks import ALL_POINTS, CHECK_EVERY, TinyNetworks, adjacent
from experiments.e02_xor.protocols import HEADLINES, PROTOCOLS, Protocol
from experiments.parameters import Count, NotebookParameters, Rate
from experiments.statistics import auc, wilson
from experiments.workers import parallel
from gtl_core.tasks import rng

Architecture = Annotated[str, Field(pattern=r"^2(-[1-9]\d*)+-1 (tanh|sigmoid|relu)$")]


class XorParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    networks: tuple[Architecture, ...] = Field(min_length=1)
    n_inits: Count
    n_tuning_inits: Count
    steps: Annotated[int, Field(ge=400)]  # the most expensive scouting takes 300
    learning_rates: tuple[Rate, ...] = Field(min_length=1)
    scout_learning_rate: Rate

    def inits(self, network: str, purpose: str, attempts: int) -> list[Tensor]:
        """Zero points [n, P] of each attempt, the same for every protocol: differences between them are paired."""
        n = self.n_inits if purpose == "test" else self.n_tuning_inits
        draw = TinyNetworks.parse(network).draw
        return [draw(n, rng(self.seed, purpose, network, attempt)) for attempt in range(attempts)]


class Choice(NamedTuple):
    """What is done with a network."""

    network: str
    protocol: Protocol
    learning_rate: float

    def rows(self, seed: int, init: int | str = "", step: int | str = "", **values: float) -> list[dict]:
        """Of the table, one for each of the ``values``."""
        key = {"seed": seed, "method": self.protocol.method, "network": self.network, "protocol": self.protocol.name}
        key |= {"learning_rate": self.learning_rate, "init": init, "step": step}
        return [key | {"metric": metric, "value": float(value)} for metric, value in values.items()]


def run(p: XorParameters) -> pd.DataFrame:
    """Every protocol on every network: tuned on some inits; then the best of each method is tested on others.

    Columns: seed, method, network, protocol, learning_rate, init, step, metric, value; init and step are empty where
    they do not apply. Metrics:

    - ``share``, ``share_low``, ``share_high``: share of tuning inits solved at the end, with its 95 % Wilson interval,
      of every protocol at every rate;
    - ``time``: steps until solved, for each test init, empty where it stagnated; only for the protocols of `choose`;
    - ``auc <property>``: how well a property of a zero point tells plain's stuck inits that guidance rescues from those
      that it does not (`statistics.auc`, with ``auc_low`` and ``auc_high``);
    - ``w0``, ``w1``, ...: the parameters along one stuck run and its guided twin, on the first network.
    """
    searched = list(product(p.networks, PROTOCOLS))
    counts = parallel(partial(_tuning_inits_solved, p), searched, p.workers, "search", p.dask_scheduler)
    rows = []
    for job, solved in zip(searched, counts, strict=True):
        for rate, n in zip(p.learning_rates, solved, strict=True):
            low, high = wilson(n, p.n_tuning_inits)
            rows += Choice(*job, rate).rows(p.seed, share=n / p.n_tuning_inits, share_low=low, share_high=high)
    chosen = choose(pd.DataFrame(rows))
    tested = list(product(p.networks, HEADLINES))
    found = parallel(partial(_test_times, p), [chosen[key] for key in tested], p.workers, "test", p.dask_scheduler)
    times = dict(zip(tested, found, strict=True))
    for key in tested:
        rows += [row for init, t in enumerate(times[key].tolist()) for row in chosen[key].rows(p.seed, init, time=t)]
    for network in p.networks:
        plain, guided = chosen[network, "plain"], chosen[network, "guided"]
        stuck, guided_stuck = times[network, "plain"].isnan(), times[network, "guided"].isnan()
        for name, values in zero_point_properties(guided, p).items():
            estimate = auc(values[stuck & ~guided_stuck].numpy(), values[stuck & guided_stuck].numpy())
            names = (f"auc {name}", f"auc_low {name}", f"auc_high {name}")
            rows += guided.rows(p.seed, **dict(zip(names, estimate, strict=True)))
        rescued = (stuck & ~guided_stuck).nonzero().flatten().tolist()
        if network == p.networks[0] and rescued:
            rows += [row for twin in (plain, guided) for row in _trajectory(p, twin, rescued[0])]
    return pd.DataFrame(rows)


def choose(frame: pd.DataFrame) -> dict[tuple[str, str], Choice]:
    """For each network and method the protocol and rate that solve most tuning inits; of equals the first."""
    protocols = {protocol.name: protocol for protocol in PROTOCOLS}
    shares = frame[frame["metric"] == "share"]
    best = shares.loc[shares.groupby(["network", "method"])["value"].idxmax()]
    return {(r.network, r.method): Choice(r.network, protocols[r.protocol], r.learning_rate) for r in best.itertuples()}


def zero_point_properties(choice: Choice, p: XorParameters) -> dict[str, Tensor]:
    """Properties [n] of the test inits' zero points: of the point itself, and of what scouts find there."""
    networks, (zero_point,) = TinyNetworks.parse(choice.network), p.inits(choice.network, "test", 1)
    seeds = (p.seed, "scouts", choice.protocol.name, 0)
    displacements, _ = choice.protocol.scouted(networks, zero_point, p, rng(*seeds))
    guide = choice.protocol.all_guides(networks, zero_point, p, rng(*seeds))[0]
    activations = networks.activations(zero_point)
    hidden = activations[1] - activations[1].mean(1, keepdim=True)
    unit = hidden / hidden.norm(dim=1, keepdim=True).clamp_min(1e-9)
    likeness = torch.einsum("npi,npj->nij", unit, unit).abs().triu(1).amax((1, 2))
    weight, bias = networks.layers(guide)[0]
    return {
        "size of the zero point": zero_point.norm(dim=1),
        "loss at the zero point": networks.loss(zero_point),
        "slope at the zero point": networks.gradient(zero_point, ALL_POINTS, activations).norm(dim=1),
        "hidden units that are not dead": (hidden.norm(dim=1) > 0).sum(1).float(),
        "likeness of hidden units": likeness,
        "distance that scouts travel": displacements.norm(dim=2).mean(1),
        "mean of the guide": guide.mean(1),
        "guide of the least guided unit": torch.maximum(weight.amax(2), bias).amin(1),
    }


def headline_table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per network and headline method: its protocol and rate, the share of test inits that it solves with its
    interval from ``low`` to ``high``, the median time, and how many of plain's stuck inits it ``rescued`` and how many
    it ``lost`` that plain solves (for restarts these are rescued by other inits, too)."""
    rows = []
    for network, times in frame[frame["metric"] == "time"].groupby("network", sort=False):
        solved = times.pivot(index="init", columns="method", values="value").notna()
        for method, of_method in times.groupby("method", sort=False):
            mine, plain, first = solved[method], solved["plain"], of_method.iloc[0]
            row = {"network": network, "method": method, "protocol": first["protocol"], "rate": first["learning_rate"]}
            row |= dict(zip(("solved", "low", "high"), (mine.mean(), *wilson(int(mine.sum()), len(mine))), strict=True))
            row |= {"n": len(mine), "median_time": of_method["value"].median()}
            rows.append(row | {"rescued": (mine & ~plain).sum(), "lost": (~mine & plain).sum()})
    return pd.DataFrame(rows)


def search_table(frame: pd.DataFrame) -> pd.DataFrame:
    """All that was tried: share of tuning inits solved at the best rate; a row per protocol, a column per network."""
    shares = frame[frame["metric"] == "share"]
    best = shares.groupby(["method", "protocol", "network"], sort=False)["value"].max().unstack(sort=False)
    return best.assign(mean=best.mean(axis=1)).sort_values("mean", ascending=False)


def rescue_table(frame: pd.DataFrame) -> pd.DataFrame:
    """The ``auc`` of every property with its interval, as text: a row per property, a column per network."""
    parts = frame["metric"].str.extract(r"^(?P<kind>auc|auc_low|auc_high) (?P<property>.+)")
    found = parts.join(frame[["network", "value"]]).dropna(subset="kind")
    table = found.set_index(["kind", "property", "network"])["value"].map("{:.2f}".format)
    return (table["auc"] + " [" + table["auc_low"] + ", " + table["auc_high"] + "]").unstack()


def _tuning_inits_solved(p: XorParameters, job: tuple[str, Protocol]) -> list[int]:
    """How many at every rate; all rates are trained as one batch."""
    network, protocol = job
    n_rates = len(p.learning_rates)
    rates = torch.tensor(p.learning_rates).repeat_interleave(p.n_tuning_inits)
    inits = [adjacent(z.repeat(n_rates, 1)) for z in p.inits(network, "tuning", protocol.attempts)]
    solved = ~protocol.solving_times(network, inits, rates, p).isnan()
    return solved.unflatten(0, (n_rates, -1)).sum(1).tolist()


def _test_times(p: XorParameters, choice: Choice) -> Tensor:
    network, protocol, rate = choice
    return protocol.solving_times(network, p.inits(network, "test", protocol.attempts), torch.tensor(rate), p)


def _trajectory(p: XorParameters, choice: Choice, init: int) -> list[dict]:
    """The parameters of one test init (of a single attempt) while it trains, as rows."""
    thetas: list[Tensor] = []
    inits, rate = p.inits(choice.network, "test", 1), torch.tensor(choice.learning_rate)
    choice.protocol.solving_times(choice.network, inits, rate, p, lambda theta: thetas.append(theta[init]))
    values = [{f"w{k}": value for k, value in enumerate(theta.tolist())} for theta in thetas]
    return [row for i, weights in enumerate(values) for row in choice.rows(p.seed, init, CHECK_EVERY * i, **weights)]

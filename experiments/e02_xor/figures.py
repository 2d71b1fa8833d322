"""Figures of `02_xor`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.e02_xor.networks import TinyNetworks
from experiments.e02_xor.protocols import METHODS
from experiments.e02_xor.run import XorParameters, headline_table
from experiments.experiment import Experiment
from experiments.statistics import wilson
from experiments.style import drawing, headline, of_methods

LEGEND = [row.label for row in METHODS.values() if row.name != "plain"]  # plain, which all are measured by, is last
SHOWN = 8  # protocols of each method, in the picture of them all


def xor(frame: pd.DataFrame) -> Figure:
    """The best protocol of each method: share of tuning inits that it solves by rate; of test inits, by when.

    One column per network; rings mark the rate chosen, bands are 95 % Wilson intervals.
    """
    times = frame[frame["metric"] == "time"]
    networks = list(times["network"].unique())
    with drawing(2, len(networks), 4.4, LEGEND, sharey=True, sharex="row") as (figure, axes):
        for network, tuning, testing in zip(networks, *axes, strict=True):
            for method, tests in of_methods(times[times["network"] == network], METHODS.values()):
                line = {"color": method.colour, "label": method.label}
                band = {"color": method.colour, "alpha": 0.15, "linewidth": 0}
                protocol, rate = tests[["protocol", "learning_rate"]].iloc[0]
                shares = frame[(frame["network"] == network) & (frame["protocol"] == protocol)]
                by_rate = shares.pivot_table(index="learning_rate", columns="metric", values="value") * 100
                tuning.plot(by_rate.index, by_rate["share"], marker="o", markersize=3, **line)
                tuning.fill_between(by_rate.index, by_rate["share_low"], by_rate["share_high"], **band)
                ring = {"facecolor": "none", "edgecolor": method.colour, "linewidth": 1.5}
                tuning.scatter(rate, by_rate.loc[rate, "share"], s=80, **ring)
                moments = np.geomspace(10, max(1000, times["value"].max()), 60)
                solved = [int((tests["value"] <= moment).sum()) for moment in moments]
                low, high = 100 * np.array([wilson(n, len(tests)) for n in solved]).T
                testing.plot(moments, 100 * np.array(solved) / len(tests), linewidth=1.5, **line)
                testing.fill_between(moments, low, high, **band)
            tuning.set(title=network, xscale="log", ylim=(0, 103), xlabel="learning rate")
            testing.set(xscale="log", xlabel="steps, scouting included")
        axes[0, 0].set_ylabel("tuning inits solved (%)")
        axes[1, 0].set_ylabel("test inits solved (%)")
        table = headline_table(frame).set_index(["method", "network"])
        better = {
            m: int((table.loc[m, "low"] > table.loc["plain", "high"]).sum()) for m in ("guided", "plain_restarts")
        }
        message = (
            f"Guided descent clearly solves more inits than plain descent on {better['guided']} of {len(networks)} \
networks, restarts of plain descent on {better['plain_restarts']}"
        )
        headline(
            figure,
            message,
            f"{table['n'].iloc[0]} test inits per network; bands: 95 % Wilson intervals; rings: rates chosen.",
        )
    return figure


def xor_search(frame: pd.DataFrame) -> Figure:
    """All that was tried: share of tuning inits solved, each protocol at its best rate, with its 95 % Wilson interval.

    The vertical line is plain descent. Protocols are in order of the mean over networks, the best of each method.
    """
    shares = frame[frame["metric"].isin(["share", "share_low", "share_high"])]
    networks = list(shares["network"].unique())
    # The interval's ends grow with the share, so the maxima over rates belong to the same rate.
    keys = ["network", "method", "protocol"]
    table = 100 * shares.pivot_table(index=keys, columns="metric", values="value", aggfunc="max")
    means = table["share"].groupby(["method", "protocol"]).mean().sort_values(ascending=False)
    order = means.groupby("method").head(SHOWN).sort_values().reset_index()["protocol"]
    table = table[table.index.get_level_values("protocol").isin(order)]
    with drawing(1, len(networks), 0.18 * len(order) + 1.0, LEGEND, sharey=True) as (figure, axes):
        for network, axis in zip(networks, axes[0], strict=True):
            for method, found in of_methods(table.loc[network].reset_index(), METHODS.values()):
                y = pd.Index(order).get_indexer(found["protocol"])
                axis.hlines(y, found["share_low"], found["share_high"], color=method.colour, linewidth=1.5)
                axis.scatter(found["share"], y, color=method.colour, s=14, label=method.label)
            plain = table.loc[(network, "plain", "plain"), "share"]
            axis.axvline(plain, color=METHODS["plain"].colour, linewidth=0.8)
            axis.set(title=network, xlim=(-3, 103), xlabel="tuning inits\nsolved (%)", ylim=(-1, len(order)))
            axis.grid(axis="y", color="#EEEEEE")
        axes[0, 0].set_yticks(range(len(order)), order, fontsize=8)
        best = {m.label: means[m.name].idxmax() for m in METHODS.values() if m.name in means}
        n = means.groupby("method").size()
        shares = {name: f"{means[name].max():.0f} %" for name in ("guided", "plain", "plain_restarts")}
        message = (
            f"The best of {n['guided']} ways to guide, \u201c{best['guided']}\u201d, solves {shares['guided']}, plain \
descent {shares['plain']}, its restarts {shares['plain_restarts']}"
        )
        note = f"Means over networks. The {SHOWN} best of each kind. Scouts learn points, pairs or triples; warming \
up: from guided to plain descent; inits: restarts within the budget. Bars: Wilson, 95 %."
        headline(figure, message, note)
    return figure


def xor_map(frame: pd.DataFrame) -> Figure:
    """A stuck run and its guided twin: loss over the two weights by which their ends differ most.

    The other weights are those with which the plain run ends (left) and the guided one (right), so each map is exact
    where its own run ends; in between, paths are projections.
    """
    along = frame[frame["metric"].str.fullmatch(r"w\d+")]
    with drawing(1, 2, 3.8, sharex=True, sharey=True) as (figure, axes):
        if along.empty:
            headline(figure, "On no init is plain descent stuck and guided descent not", "")
        else:
            _maps(figure, axes[0], along)
            note = f"{along['network'].iloc[0]}, the first such init; a slice of the loss through each run's end."
            headline(figure, "Where plain descent is stuck, its guided twin goes around", note)
    return figure


def _maps(figure: Figure, axes: np.ndarray, along: pd.DataFrame) -> None:
    names = list(along["metric"].unique())  # in the order of theta
    paths = {  # [steps, P]
        method: rows.pivot(index="step", columns="metric", values="value")[names].to_numpy()
        for method, rows in of_methods(along, (METHODS["guided"], METHODS["plain"]))
    }
    guided_end, plain_end = (path[-1] for path in paths.values())
    pair = np.sort(np.abs(plain_end - guided_end).argsort()[-2:])
    both = np.concatenate(list(paths.values()))[:, pair]
    margin = 0.15 * np.ptp(both, axis=0).max()
    spans = zip(both.min(0) - margin, both.max(0) + margin, strict=True)
    grid = np.stack(np.meshgrid(*(np.linspace(low, high, 120) for low, high in spans)), -1)
    networks = TinyNetworks.parse(along["network"].iloc[0])
    titles = {"Other weights: where plain is stuck": plain_end, "Other weights: where guided ends": guided_end}
    for axis, (title, end) in zip(axes, titles.items(), strict=True):
        theta = np.tile(end, (*grid.shape[:2], 1))
        theta[..., pair] = grid
        loss = networks.loss(torch.from_numpy(theta).float().flatten(0, 1)).reshape(grid.shape[:2])
        levels = np.linspace(0, 1, 41)
        shades = axis.contourf(grid[..., 0], grid[..., 1], loss, levels=levels, cmap="Greys", vmax=1.3, rasterized=True)
        for method, path in paths.items():
            axis.plot(*path[:, pair].T, color=method.colour, linewidth=1.8, label=method.label)
            axis.scatter(*path[-1, pair], color=method.colour, s=30, zorder=3)
        axis.scatter(*both[0], s=60, zorder=3, facecolor="white", edgecolor="black", label="zero point")
        axis.set(title=title, xlabel=networks.parameter_name(pair[0]))
    axes[0].set_ylabel(networks.parameter_name(pair[1]))
    axes[0].legend(fontsize=8)
    figure.colorbar(shades, ax=axes, label="mean squared error", ticks=np.linspace(0, 1, 6))


EXPERIMENT = Experiment("xor", "02_xor", XorParameters, {"xor": xor, "xor_map": xor_map, "xor_search": xor_search})

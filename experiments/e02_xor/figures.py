"""Figures of `02_xor`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from experiments.e02_xor.run import Network, XorParameters
from experiments.experiment import Experiment
from experiments.statistics import wilson
from experiments.style import COLORS, LABELS, STYLE, by_method, legend_below, panels


def xor(frame: pd.DataFrame) -> Figure:
    """The best protocol of each method: share of tuning inits that it solves by rate; of test inits, by when.

    One column per network; rings mark the rate chosen, bands are 95 % Wilson intervals.
    """
    times = frame[frame["metric"] == "time"]
    networks = list(times["network"].unique())
    figure, axes = panels(2, len(networks), (3 * len(networks) + 0.4, 5.6), sharey=True, sharex="row")
    with mpl.rc_context(STYLE):
        for network, tuning, testing in zip(networks, *axes, strict=True):
            for m, of in by_method(times[times["network"] == network]):
                line, band = {"color": COLORS[m], "label": XOR_LABELS[m]}, {"color": COLORS[m], "alpha": 0.15}
                shares = frame[(frame["network"] == network) & (frame["protocol"] == of["protocol"].iloc[0])]
                by_rate = shares.pivot_table(index="learning_rate", columns="metric", values="value") * 100
                tuning.plot(by_rate.index, by_rate["share"], marker="o", markersize=3, **line)
                tuning.fill_between(by_rate.index, by_rate["share_low"], by_rate["share_high"], linewidth=0, **band)
                rate = of["learning_rate"].iloc[0]
                chosen = by_rate.loc[rate, "share"]
                tuning.scatter(rate, chosen, s=80, facecolor="none", edgecolor=COLORS[m], linewidth=1.5)
                moments = np.geomspace(10, max(1000, times["value"].max()), 60)
                solved = [int((of["value"] <= moment).sum()) for moment in moments]
                low, high = 100 * np.array([wilson(n, len(of)) for n in solved]).T
                testing.plot(moments, 100 * np.array(solved) / len(of), linewidth=1.5, **line)
                testing.fill_between(moments, low, high, linewidth=0, **band)
            tuning.set(title=network, xscale="log", ylim=(0, 103), xlabel="learning rate")
            testing.set(xscale="log", xlabel="steps, scouting included")
        axes[0, 0].set_ylabel("tuning inits solved (%)")
        axes[1, 0].set_ylabel("test inits solved so far (%)")
        legend_below(figure)
    return figure


XOR_LABELS = LABELS | {"plain": "plain descent"}


def xor_search(frame: pd.DataFrame) -> Figure:
    """All that was tried: share of tuning inits solved, each protocol at its best rate, with its 95 % Wilson interval.

    The vertical line is plain descent. Protocols are in order of the mean over networks.
    """
    shares = frame[frame["metric"].isin(["share", "share_low", "share_high"])]
    networks = list(shares["network"].unique())
    # The interval's ends grow with the share, so the maxima over rates belong to the same rate.
    keys = ["network", "method", "protocol"]
    table = 100 * shares.pivot_table(index=keys, columns="metric", values="value", aggfunc="max")
    order = table["share"].groupby("protocol").mean().sort_values().index
    figure, axes = panels(1, len(networks), (2.3 * len(networks) + 2.6, 0.16 * len(order) + 1.2), sharey=True)
    with mpl.rc_context(STYLE):
        for network, axis in zip(networks, axes[0], strict=True):
            for m, of in table.loc[network].groupby(level="method"):
                of = of.droplevel("method")
                y = [order.get_loc(protocol) for protocol in of.index]
                axis.hlines(y, of["share_low"], of["share_high"], color=COLORS[m], linewidth=1.5)
                axis.scatter(of["share"], y, color=COLORS[m], s=14, label=XOR_LABELS[m])
            axis.axvline(table.loc[(network, "plain", "plain"), "share"], color=COLORS["plain"], linewidth=0.8)
            axis.set(title=network, xlim=(-3, 103), xlabel="tuning inits solved (%)", ylim=(-1, len(order)))
            axis.grid(axis="y", color="#EEEEEE")
        axes[0, 0].set_yticks(range(len(order)), order, fontsize=7)
        legend_below(figure)
    return figure


def xor_map(frame: pd.DataFrame) -> Figure:
    """A stuck run and its guided twin: loss over the two weights by which their ends differ most.

    The other weights are those with which the plain run ends (left) and the guided one (right), so each map is exact
    where its own run ends; in between, paths are projections.
    """
    along = frame[frame["metric"].str.fullmatch(r"w\d+")]
    paths = {m: of.pivot(index="step", columns="metric", values="value") for m, of in along.groupby("method")}
    figure, axes = panels(1, 2, (8.2, 4), sharex=True, sharey=True)
    if not paths:  # no run was rescued
        return figure
    names = sorted(paths["plain"], key=lambda name: int(name[1:]))
    ends = {m: of[names].to_numpy()[-1] for m, of in paths.items()}
    first, second = np.sort(np.abs(ends["plain"] - ends["guided"]).argsort()[-2:])
    both = np.concatenate([of[names].to_numpy()[:, [first, second]] for of in paths.values()])
    margin = 0.15 * np.ptp(both, axis=0).max()
    spans = zip(both.min(0) - margin, both.max(0) + margin, strict=True)
    grid = np.meshgrid(*(np.linspace(low, high, 120) for low, high in spans))
    network = Network.parse(along["network"].iloc[0])
    with mpl.rc_context(STYLE):
        for axis, (title, m) in zip(axes[0], MAP_TITLES.items(), strict=True):
            theta = np.broadcast_to(ends[m], (*grid[0].shape, len(names))).copy()
            theta[..., first], theta[..., second] = grid
            flat = torch.from_numpy(theta.reshape(-1, len(names))).float()
            loss = network.loss(flat).reshape(grid[0].shape)
            shades = axis.contourf(*grid, loss, levels=np.linspace(0, 1, 41), cmap="Greys", vmax=1.3)
            for other, of in paths.items():
                way = of[names].to_numpy()[:, [first, second]]
                axis.plot(*way.T, color=COLORS[other], linewidth=1.8, label=XOR_LABELS[other])
                axis.scatter(*way[-1], color=COLORS[other], s=30, zorder=3)
            axis.scatter(*way[0], s=60, facecolor="white", edgecolor="black", zorder=3, label="zero point")
            axis.set(title=title, xlabel=network.parameter_name(first))
        axes[0, 0].set_ylabel(network.parameter_name(second))
        axes[0, 0].legend(fontsize=7)
        figure.colorbar(shades, ax=axes[0], label="mean squared error", ticks=np.linspace(0, 1, 6))
    return figure


MAP_TITLES = {"Other weights: where plain is stuck": "plain", "Other weights: where guided ends": "guided"}


EXPERIMENT = Experiment(
    "xor",
    "02_xor",
    XorParameters,
    {"xor": xor, "xor_map": xor_map, "xor_search": xor_search},
)

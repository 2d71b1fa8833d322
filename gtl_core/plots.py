"""Tidy results -> figures. One colour per method in the whole project; `save` is the only writer of figures."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gtl_core.stats import at_chosen_rates, choose_rates, wilson

# Okabe-Ito colours: distinct for colour-blind readers.
COLORS = {
    "scratch": "#999999",
    "frozen": "#009E73",
    "plain": "#D55E00",
    "guided": "#0072B2",
    "guided_network": "#0072B2",
    "guided_tensor": "#56B4E9",
    "plain_restarts": "#E69F00",
    "guided_restarts": "#56B4E9",
    "control": "#999999",
}
LABELS = {
    "scratch": "from scratch",
    "frozen": "frozen (linear probe)",
    "plain": "plain fine-tuning",
    "guided": "guided",
    "guided_network": "guided (network scope)",
    "guided_tensor": "guided (tensor scope)",
    "plain_restarts": "plain, with restarts",
    "guided_restarts": "guided, with restarts",
    "control": "control",
}
HEADS = {"random": "random head", "zero": "zero head"}
TUNED_ON = {
    "same": "one rate for all, tuned for plain at the start",
    "first": "each rate tuned at the start",
    "last": "each rate tuned at the end",
}
VALIDATED = {"first": "after the first examples", "last": "after the last example"}
STYLE = {
    **sns.axes_style("ticks"),
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class _Figure(Figure):
    # Not pyplot's: a figure is a value, closed by nobody, that a notebook shows when it is a cell's last line.
    def _repr_png_(self) -> bytes:
        return _png(self, dpi=80)  # executed notebooks are committed, too


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; equal results give equal bytes. Replaced in one go, like the results that it is drawn from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(_png(figure, dpi=150))
    temporary.replace(path)


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # no version, no date
    return buffer.getvalue()


def _figure(rows: int, columns: int, size: tuple[float, float], **share: bool | str) -> tuple[Figure, np.ndarray]:
    with mpl.rc_context(STYLE):
        figure = _Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **share)


def method(frame: pd.DataFrame) -> Figure:
    """Scouts leaving the zero point; the guide; plain and guided descent in the main task's loss landscape."""
    figure, axes = _figure(1, 4, (12, 3.4), width_ratios=(1, 0.5, 1, 1))
    with mpl.rc_context(STYLE):
        ends = _weights(frame, "scout", "as scouted")
        scouts, guide, *mains = axes[0]
        for w1, w2 in ends:
            scouts.plot([0, w1], [0, w2], color="#CCCCCC", linewidth=0.8, zorder=1)
        scouts.scatter(*ends.T, s=14, color="black", zorder=2, label="scouts")
        scouts.scatter(0, 0, marker="o", s=60, facecolor="white", edgecolor="black", zorder=3, label="zero point")
        scouts.set(title="1. Scouts leave the zero point", ylim=(-2.6, 2.6), xlim=(-2.6, 2.6))
        values = _weights(frame, "guide", "as scouted")[0]
        guide.bar(["$g_1$", "$g_2$"], values, color=COLORS["guided"], width=0.6)
        for x, value in enumerate(values):
            guide.text(x, value + 0.02, f"{value:.2g}", ha="center")
        guide.set(title="2. The guide", ylim=(0, 1.12), ylabel="g (share of every step)")
        for axis, (family, title) in zip(mains, METHOD_TITLES.items(), strict=True):
            _descents(axis, frame[(frame["family"] == family) & (frame["task"] == 0)], family)
            axis.set_title(title)
        for axis in (scouts, *mains):
            axis.set(xlabel="$w_1$", ylabel="$w_2$")
            axis.set_aspect("equal", adjustable="box")
            axis.legend(loc="lower left", fontsize=7, handlelength=1.4, frameon=True, edgecolor="none", framealpha=0.9)
    return figure


METHOD_TITLES = {"as scouted": "3. A task of the scouted family", "foreign": "4. A foreign task"}


def _weights(frame: pd.DataFrame, method: str, family: str) -> np.ndarray:
    of = frame[(frame["method"] == method) & (frame["family"] == family) & frame["metric"].isin(["w1", "w2"])]
    return of["value"].to_numpy().reshape(-1, 2)  # recorded in this order


def _descents(axis: Axes, frame: pd.DataFrame, family: str) -> None:
    examples = frame[frame["method"] == "example"].pivot(index="step", columns="metric", values="value")
    truth = _weights(frame, "truth", family)[0]
    paths = {m: _weights(frame, m, family) for m in ("plain", "guided")}
    reach = 1.25 * max(1.0, abs(truth).max(), *(abs(path).max() for path in paths.values()))
    grid = np.linspace(-reach, reach, 160)
    w1, w2 = np.meshgrid(grid, grid)
    errors = [(x1 * w1 + x2 * w2 - y) ** 2 for x1, x2, y in examples[["x1", "x2", "y"]].to_numpy()]
    loss = np.mean(errors, axis=0)
    axis.contourf(w1, w2, np.sqrt(loss), levels=14, cmap="Greys", alpha=0.55)
    for m, path in paths.items():
        axis.plot(*path.T, color=COLORS[m], linewidth=1.8, label=LABELS[m])
        axis.scatter(*path[-1], color=COLORS[m], s=30, zorder=3)
    axis.scatter(*truth, marker="*", s=140, color="#F0E442", edgecolor="black", zorder=4, label="truth")
    axis.scatter(0, 0, s=60, facecolor="white", edgecolor="black", zorder=3)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach))


def forgetting(frame: pd.DataFrame, stream: str = "single") -> Figure:
    """Accuracy while examples arrive, one line per method; rows by what its rate was tuned on, columns by the head.

    Lines are means after every step, bands their 95 % intervals (`stats.bootstrap`).
    """
    frame = frame[frame["stream"] == stream]
    heads = [h for h in HEADS if h in set(frame["head"])]
    figure, axes = _figure(3, len(heads), (4.4 * len(heads), 8.2), sharey=True, sharex=True)
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, TUNED_ON, strict=True):
            test = at_chosen_rates(frame, tuned_on)
            n_way = test["step"].min()  # one example of each class comes first
            for head, axis in zip(heads, row, strict=True):
                for m, of in _by_method(test[test["head"] == head]):
                    curves = 100 * of[of["metric"] != "accuracy"].pivot(index="step", columns="metric", values="value")
                    seen = curves.index / n_way
                    band = {"color": COLORS[m], "alpha": 0.2, "linewidth": 0}
                    axis.fill_between(seen, curves["accuracy_low"], curves["accuracy_high"], **band)
                    axis.plot(seen, curves["accuracy_mean"], color=COLORS[m], linewidth=1.5, label=LABELS[m])
                axis.set_title(f"{HEADS[head]}: {TUNED_ON[tuned_on]}", fontsize=9)
                axis.set_ylim(0, 100)
                axis.set(xlabel="examples seen per class", ylabel="accuracy on unseen drawers (%)")
                axis.label_outer()
        _legend_below(figure, axes[0, 0])
    return figure


def forgetting_per_class(frame: pd.DataFrame) -> Figure:
    """As `forgetting`, with examples that arrive one of each class at a time."""
    return forgetting(frame, "per_class")


def forgetting_rates(frame: pd.DataFrame) -> Figure:
    """Tuning on the single-example stream: validation accuracy by learning rate; rings mark the chosen rates."""
    frame = frame[frame["stream"] == "single"]
    heads = [h for h in HEADS if h in set(frame["head"])]
    figure, axes = _figure(2, len(heads), (4.4 * len(heads), 6), sharey=True, sharex=True)
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, VALIDATED, strict=True):
            chosen = choose_rates(frame, tuned_on)
            tuning = frame[frame["metric"] == f"validation_{tuned_on}"]
            for head, axis in zip(heads, row, strict=True):
                for m, of in _by_method(tuning[tuning["head"] == head]):
                    mean = 100 * of.groupby("learning_rate")["value"].mean()
                    axis.plot(mean.index, mean, color=COLORS[m], marker="o", markersize=3, label=LABELS[m])
                    rate = chosen[head, "single", m]
                    axis.scatter(rate, mean[rate], s=80, facecolor="none", edgecolor=COLORS[m], linewidth=1.5)
                axis.set(title=f"{HEADS[head]}: {VALIDATED[tuned_on]}", xscale="log", ylim=(0, 100))
                axis.set(xlabel="learning rate", ylabel="validation accuracy (%)")
                axis.label_outer()
        _legend_below(figure, axes[0, 0])
    return figure


def xor(frame: pd.DataFrame) -> Figure:
    """The best protocol of each method: share of tuning inits that it solves by rate; of test inits, by when.

    One column per network; rings mark the rate chosen, bands are 95 % Wilson intervals.
    """
    times = frame[frame["metric"] == "time"]
    networks = list(times["network"].unique())
    figure, axes = _figure(2, len(networks), (3 * len(networks) + 0.4, 5.6), sharey=True, sharex="row")
    with mpl.rc_context(STYLE):
        for network, tuning, testing in zip(networks, *axes, strict=True):
            for m, of in _by_method(times[times["network"] == network]):
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
        _legend_below(figure, axes[0, 0])
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
    figure, axes = _figure(1, len(networks), (2.3 * len(networks) + 2.6, 0.16 * len(order) + 1.2), sharey=True)
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
        _legend_below(figure, axes[0, 0])
    return figure


def xor_map(frame: pd.DataFrame) -> Figure:
    """A stuck run and its guided twin: loss over the two weights by which their ends differ most.

    The other weights are those with which the plain run ends (left) and the guided one (right), so each map is exact
    where its own run ends; in between, paths are projections.
    """
    from gtl_core.experiments.xor import Network  # that package imports this module

    along = frame[frame["metric"].str.fullmatch(r"w\d+")]
    paths = {m: of.pivot(index="step", columns="metric", values="value") for m, of in along.groupby("method")}
    figure, axes = _figure(1, 2, (8.2, 4), sharex=True, sharey=True)
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


def _by_method(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(m, frame[frame["method"] == m]) for m in COLORS if m in set(frame["method"])]


def _legend_below(figure: Figure, axis: Axes) -> None:
    columns = max(1, int(figure.get_figwidth() / 2.5))  # an entry is at most that wide
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)

"""Figures of `04_guides`."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e04_guides.candidates import BAR, CANDIDATES, METHODS, RIVALS
from experiments.e04_guides.parameters import GuidesParameters
from experiments.e04_guides.run import CONDITION, KEY, best_on_validation, differences
from experiments.experiment import Experiment
from experiments.optimizers import LABELS as OPTIMIZERS
from experiments.style import HEADS, drawing, of_methods, rate_axis
from gtl_core.shaping import TEMPERATURES

SHIFTS = {"none": "no shift", "glyphs": "pretrained on glyphs", "rotated": "rotated by 90°", "inverted": "inverted"}
WHEN = {
    "first": "rate tuned at the start",
    "careful": "lowest rate as good at the start",
    "last": "rate tuned at the end",
}
LINES = {"SGD": ("#0072B2", "-"), "momentum": ("#56B4E9", "--"), "Adam": ("#D55E00", "-"), "AdamW": ("#E69F00", "--")}


def _colors(n: int, name: str = "viridis") -> np.ndarray:
    return mpl.colormaps[name](np.linspace(0.05, 0.85, n))


def guides_temperatures(frame: pd.DataFrame) -> Figure:
    """Temperatures as maps from 0 to 1, and what they make of a guide (network scope, square root)."""
    with drawing(1, 2, (8.4, 3.7), legend=()) as (figure, axes):
        maps, below = axes[0]
        for name, color in zip(TEMPERATURES, _colors(len(TEMPERATURES), "plasma"), strict=True):
            for axis, metric in ((maps, "temperature"), (below, "below")):
                curve = frame[(frame["method"] == name) & (frame["metric"] == metric)]
                axis.plot(curve["at"], curve["value"], color=color, linewidth=1.8, label=name)
        maps.set(title="the map", xlabel="g", ylabel="g at this temperature", aspect="equal")
        below.set(title="a real guide at each temperature", xlabel="g", ylabel="share of the parameters below g")
        below.set(xlim=(-0.02, 1.02), ylim=(0, 1.02))
    return figure


def guides_steps(frame: pd.DataFrame) -> Figure:
    """How far parameters move when g is the same for all: the guide on the step, and on the gradient."""
    moved = frame[frame["metric"] == "moved"]
    with drawing(1, 2, (8.4, 3.7), sharey=True) as (figure, axes):
        for axis, part in zip(axes[0], ("step", "gradient"), strict=True):
            axis.plot([1e-3, 1], [1e-3, 1], color="#BBBBBB", linewidth=1, label="proportional to g")
            for name, (color, line) in LINES.items():
                far = moved[(moved["method"] == name) & (moved["part"] == part)].set_index("at")["value"]
                relative = far[far.index > 0] / far[1.0]
                axis.plot(relative.index, relative, line, color=color, marker="o", markersize=4, label=name)
            axis.set(xscale="log", yscale="log", xlabel="g, the same for every parameter", title=f"guided {part}")
            axis.set(ylabel="movement, by that at g = 1")
            axis.label_outer()
        axes[0, 0].legend(loc="upper left", fontsize=8)
    return figure


def guides_anatomy(frame: pd.DataFrame) -> Figure:
    """A guide tensor by tensor; which tensors scouts move early and late; the first filters and their guide."""
    with drawing(1, 4, (12, 5.6), width_ratios=(1.25, 0.9, 0.8, 0.8)) as (figure, axes):
        ridges, times, *maps = axes[0]
        histogram = frame[frame["metric"] == "histogram"]
        parts = list(dict.fromkeys(histogram["part"]))
        for y, part in enumerate(parts):
            edges, shares = histogram.loc[histogram["part"] == part, ["at", "value"]].to_numpy().T
            middles, heights = edges + (edges[-1] - edges[-2]) / 2, 0.9 * shares / shares.max()
            ridges.fill_between(middles, y, y - heights, color=_color(part), alpha=0.75, linewidth=0)
        ridges.set(xlabel="log10 g", title="the guide, tensor by tensor", xlim=(-4, 0), ylim=(len(parts) - 0.5, -1))
        ridges.set(yticks=range(len(parts)), yticklabels=map(_part, parts))
        _movement(times, frame[frame["metric"] == "by_time"], parts, "after step {:.0f}")
        times.set(title="which tensors scouts moved", yticklabels=[])
        first_layer = (("filter", "first filters", "weight"), ("filter_guide", "and their guide", "g"))
        for axis, (metric, title, label) in zip(maps, first_layer, strict=True):
            values = frame[frame["metric"] == metric].sort_values("at")["value"].to_numpy().reshape(-1, 3, 3)
            color = {"cmap": "RdBu_r", "vmin": -abs(values).max(), "vmax": abs(values).max()}
            color = color if metric == "filter" else {"cmap": "viridis", "vmin": 0}
            picture = axis.imshow(_mosaic(values, 4), **color)
            axis.set(xticks=[], yticks=[], title=title)
            axis.spines[:].set_visible(False)
            figure.colorbar(picture, ax=axis, orientation="horizontal", shrink=0.8, label=label)
    return figure


def guides_distance(frame: pd.DataFrame) -> Figure:
    """Scouts' ways in bins of distance from the zero point: what moves near and far, how alike the guides are."""
    with drawing(1, 2, (9, 4.6), width_ratios=(1.3, 1)) as (figure, axes):
        near_and_far, alike = axes[0]
        edges, shares = (frame[frame["metric"] == m].set_index("at")["value"] for m in ("edge", "points"))
        names = [f"from {edges[i]:.2g} ({100 * shares[i]:.0f} % of points)" for i in edges.index]
        by_distance = frame[frame["metric"] == "by_distance"]
        parts = list(dict.fromkeys(by_distance["part"]))
        _movement(near_and_far, by_distance, parts, names)
        near_and_far.set(yticks=range(len(parts)), yticklabels=map(_part, parts), title="what moved, by distance")
        table = frame[frame["metric"] == "likeness"].pivot(index="part", columns="at", values="value")
        picture = alike.imshow(table, vmin=0, vmax=1, cmap="viridis")
        for i, j in np.ndindex(*table.shape):
            value = table.iloc[i, j]
            alike.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        ticks = {"ticks": range(len(table)), "labels": [f"{edge:.2g}+" for edge in edges]}
        alike.set_xticks(**ticks)
        alike.set_yticks(**ticks)
        alike.set(xlabel="distance", ylabel="distance", title="correlation of the bins' guides")
        figure.colorbar(picture, ax=alike, shrink=0.7)
    return figure


def guides_arenas(frame: pd.DataFrame) -> Figure:
    """Every guide minus plain fine-tuning and minus the linear probe, in every arena, with 95 % intervals.

    Each at its own best rate. A star marks the guide of the scouts that was best on validation tasks.
    """
    by_key, best = differences(frame).set_index(KEY), best_on_validation(frame)
    arenas = list(dict.fromkeys(frame["arena"]))
    keys = sorted(dict.fromkeys(by_key.index), key=lambda key: arenas.index(key[1]))
    tried = set(by_key["method"])
    shown = [METHODS[name] for name in (*CANDIDATES, *RIVALS) if name in tried and name not in BAR]
    names = [method.name for method in shown]
    with _grid(keys, 6, (1.6, 2.3, 4.2), legend=(), sharey=True) as (figure, axes):
        for axis, key in zip(axes, keys, strict=True):
            tuned_on, arena, head, optimizer = key
            axis.axvline(0, color="#999999", linewidth=0.8)
            here = by_key.loc[key].set_index(["rival", "method"])
            for rival, shift in zip(map(METHODS.get, BAR), (-0.15, 0.15), strict=True):
                y, against = np.arange(len(shown)) + shift, here.loc[rival.name].loc[names]
                axis.hlines(y, 100 * against["low"], 100 * against["high"], color=rival.colour, linewidth=2)
                dots = {"color": rival.colour, "markersize": 4, "label": f"minus {rival.label}"}
                axis.plot(100 * against["mean"], y, "o", **dots)
            star = names.index(best[key])
            axis.plot(0.02, star, "*", color="black", markersize=8, transform=axis.get_yaxis_transform())
            when = f"\n{WHEN[tuned_on]}" if arena.endswith("stream") else ""
            axis.set_title(f"{_arena(arena)}\n{HEADS[head]}, {OPTIMIZERS[optimizer]}{when}", fontsize=8)
            axis.set(xlabel="accuracy, points", ylim=(len(shown) - 0.5, -0.5))
            axis.set(yticks=range(len(shown)), yticklabels=[method.on_axis or method.label for method in shown])
            axis.tick_params(axis="y", labelsize=8)
    return figure


def guides_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy at the end of the tuning tasks against the learning rate, in every arena."""
    tuning = frame[frame["metric"] == "validation_last"].groupby(CONDITION, sort=False)
    shown = [METHODS[name] for name in ("frozen", "plain", "guided_network", "guided_tensor", "root", "learned")]
    legend = [method.label for method in shown]
    with _grid(tuning, 4, (0.6, 2.8, 2.7), legend=legend, sharex=True, sharey=True) as (figure, axes):
        for axis, ((arena, head, optimizer), of_condition) in zip(axes, tuning, strict=True):
            for method, rows in of_methods(of_condition, shown):
                mean = 100 * rows.groupby("learning_rate")["value"].mean()
                axis.plot(mean.index, mean, color=method.colour, marker="o", markersize=3, label=method.label)
            axis.set_title(f"{_arena(arena)},\n{HEADS[head]}, {OPTIMIZERS[optimizer]}", fontsize=8)
            axis.set(ylim=(0, 102), ylabel="validation accuracy (%)")
            rate_axis(axis)
            axis.label_outer()
    return figure


@contextmanager
def _grid(
    items: Sized, most: int, inches: tuple[float, float, float], **options: object
) -> Iterator[tuple[Figure, np.ndarray]]:
    """`drawing` with a panel for each of the ``items``, at most so many in a row. inches: left of them all, and of one
    of them."""
    columns, (left, width, height) = min(most, len(items)), inches
    rows = -(-len(items) // columns)
    with drawing(rows, columns, (left + width * columns, 0.6 + height * rows), **options) as (figure, axes):
        for axis in axes.flat[len(items) :]:
            axis.set_visible(False)
        yield figure, axes.flat[: len(items)]


def _movement(axis: Axes, frame: pd.DataFrame, parts: list[str], names: str | list[str]) -> None:
    """Dots: movement per parameter of each tensor (row), one colour per value of ``at``."""
    groups = list(frame.groupby("at"))
    labels = [names.format(at) for at, _ in groups] if isinstance(names, str) else names
    for (_, rows), label, color in zip(groups, labels, _colors(len(groups)), strict=True):
        values = rows.set_index("part")["value"].loc[parts]
        values = values.where(values > 0)  # before the first step of a zero head, the gradient of the body is 0
        axis.plot(values, range(len(parts)), "o", color=color, markersize=4, label=label)
    axis.axvline(1, color="#BBBBBB", linewidth=0.8)
    axis.set(xscale="log", xlim=(0.02, None), ylim=(len(parts) - 0.5, -1), yticks=range(len(parts)))
    axis.set(xlabel="mean |displacement|, by the network's mean")
    axis.legend(loc="upper center", bbox_to_anchor=(0.4, -0.12), fontsize=7, ncols=2 + len(groups) % 2)


def _part(name: str) -> str:
    """``body.3.weight`` -> ``conv 2 weight``: the body repeats convolution, normalization, activation."""
    where, *index, kind = name.split(".")
    if where == "head":
        return f"head {kind}"
    return f"{('conv', 'norm')[int(index[0]) % 3]} {int(index[0]) // 3 + 1} {kind}"


def _color(name: str) -> str:
    label = _part(name)
    return "#CC79A7" if label.startswith("head") else "#0072B2" if label.startswith("conv") else "#56B4E9"


def _arena(arena: str) -> str:
    shift, _, task = arena.partition(" ")
    return f"{SHIFTS[shift]}, {task}"


def _mosaic(filters: np.ndarray, columns: int) -> np.ndarray:
    """Filters [n, 3, 3] as one picture, NaN between them."""
    padded = np.pad(filters, ((0, -len(filters) % columns), (0, 1), (0, 1)), constant_values=np.nan)
    rows = [np.concatenate(list(padded[i : i + columns]), 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)


FIGURES = (guides_anatomy, guides_arenas, guides_distance, guides_rates, guides_steps, guides_temperatures)
EXPERIMENT = Experiment("guides", "04_guides", GuidesParameters, {draw.__name__: draw for draw in FIGURES})

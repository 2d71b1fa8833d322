"""Figure of `07_forgetting_neighbours`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e07_forgetting_neighbours.run import ForgettingNeighboursParameters
from experiments.experiment import Experiment
from experiments.methods import BASIC
from experiments.stream_methods import METHODS, ranking
from experiments.style import drawing, of_methods


def forgetting_neighbours(frame: pd.DataFrame) -> Figure:
    """Left: accuracy after each round of examples. Right: at the end, with 95 % intervals, against what is stored."""
    table = ranking(frame)
    heads = list(table["head"].unique())
    size, basic = (10, 3.9 * len(heads) + 0.8), [method.label for method in BASIC.values()]
    with drawing(len(heads), 2, size, basic) as (figure, axes):
        for (left, right), head in zip(axes, heads, strict=True):
            curves = frame[(frame["head"] == head) & (frame["metric"] == "accuracy_mean")]
            for method, curve in of_methods(curves, METHODS.values()):
                curve = curve.sort_values("step")
                # What guidance is added to keeps its colour, and its line is broken.
                line = {"color": method.colour, "linestyle": "--" if method.adds_to else "-", "linewidth": 1.6}
                left.plot(curve["step"] / curve["step"].min(), 100 * curve["value"], label=method.label, **line)
            left.set(xlabel="examples seen per class", ylabel="accuracy on unseen drawers (%)", title=f"{head} head")
            _against_what_is_stored(right, table[table["head"] == head])
    return figure


def _against_what_is_stored(axis: Axes, ranked: pd.DataFrame) -> None:
    floor = ranked.loc[ranked["stored"] > 0, "stored"].min() / 3
    taken = []
    for method, row in of_methods(ranked, METHODS.values()):
        accuracy, low, high = 100 * row[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy()[0]
        x = max(row["stored"].item(), floor)
        taken.append(x)
        x *= 1.04 ** (taken.count(x) - 1)  # side by side where they store the same
        axis.vlines(x, low, high, color=method.colour, linewidth=1.2)
        axis.plot(x, accuracy, "o", color=method.colour, markerfacecolor="white" if method.adds_to else method.colour)
    axis.set(xscale="log", xlabel="numbers stored beside the network", title="at the end of the stream, closer")
    axis.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
    axis.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")


EXPERIMENT = Experiment(
    "forgetting_neighbours",
    "07_forgetting_neighbours",
    ForgettingNeighboursParameters,
    {"forgetting_neighbours": forgetting_neighbours},
    more_tables=("forgetting_neighbours_cost",),
)

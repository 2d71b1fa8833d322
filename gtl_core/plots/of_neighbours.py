"""Figures of the comparisons with neighbours: `06_few_shot_neighbours`."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gtl_core.plots.style import COLORS, STYLE, legend_below, panels

FAMILIES = {
    "guided": ("guided_tensor", "guided_network", "guided_reptile", "guided_hard_sharing"),
    "fine-tuning": ("plain", "freeze_1", "freeze_2", "freeze_3", "lp_ft", "l2_sp", "layerwise"),
    "features as they are": ("frozen", "nearest_mean", "logistic", "svm"),
    "multi-task": ("hard_sharing", "soft_sharing"),
    "meta-learning": ("maml", "fomaml", "anil", "meta_sgd", "reptile", "learned_optimizer"),
    "learning to compare": ("matching", "prototypical", "relation"),
    "from scratch": ("scratch",),
}
FAMILY = {method: family for family, methods in FAMILIES.items() for method in methods}
FAMILY_COLORS = {
    "guided": COLORS["guided"],
    "fine-tuning": COLORS["plain"],
    "features as they are": COLORS["frozen"],
    "multi-task": "#A6761D",
    "meta-learning": "#000000",
    "learning to compare": "#CC79A7",
    "from scratch": COLORS["scratch"],
}
NAMES = {
    "scratch": "from scratch",
    "nearest_mean": "nearest class mean",
    "logistic": "logistic regression",
    "svm": "SVM",
    "plain": "plain fine-tuning",
    "freeze_1": "1 layer frozen",
    "freeze_2": "2 layers frozen",
    "freeze_3": "3 layers frozen",
    "frozen": "frozen (linear probe)",
    "lp_ft": "LP-FT",
    "l2_sp": "L2-SP",
    "layerwise": "layer-wise rates",
    "hard_sharing": "hard sharing",
    "soft_sharing": "soft sharing",
    "maml": "MAML",
    "fomaml": "FOMAML",
    "anil": "ANIL",
    "meta_sgd": "Meta-SGD",
    "reptile": "Reptile",
    "learned_optimizer": "learned optimizer",
    "matching": "Matching",
    "prototypical": "Prototypical",
    "relation": "Relation",
    "guided_tensor": "guided (tensor scope)",
    "guided_network": "guided (network scope)",
    "guided_reptile": "guided, from Reptile",
    "guided_hard_sharing": "guided, from hard sharing",
}


def name(zero_point: str, method: str) -> str:
    """Of a method in figures; the prepared ones that start from a random network say so."""
    return NAMES[method] + (", no pretraining" if zero_point == "random" and method != "scratch" else "")


def few_shot_neighbours(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals, best first: the first kind of task with all methods, then the others."""
    from gtl_core.experiments.few_shot_neighbours import ranking  # that package imports this module

    table = ranking(frame)
    tasks = list(table["task"].unique())
    lengths = [int((table["task"] == task).sum()) for task in tasks]
    with mpl.rc_context(STYLE):
        figure, _ = panels(1, 1, (10, 1.6 + 0.23 * max(lengths[0], sum(lengths[1:]) + 3 * len(lengths[1:]))))
        figure.clear()
        grid = figure.add_gridspec(max(1, len(tasks) - 1), 2 if len(tasks) > 1 else 1, height_ratios=lengths[1:] or [1])
        axes = [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[i, 1]) for i in range(len(tasks) - 1))]
        for axis, task in zip(axes, tasks, strict=True):
            of = table[table["task"] == task]
            for y, row in enumerate(of.itertuples()):
                color = FAMILY_COLORS[FAMILY[row.method]]
                axis.hlines(y, 100 * row.accuracy_low, 100 * row.accuracy_high, color=color, linewidth=2)
                axis.plot(100 * row.accuracy, y, "o", color=color, markersize=4.5, label=FAMILY[row.method])
            axis.set_yticks(range(len(of)), [name(row.zero_point, row.method) for row in of.itertuples()])
            axis.set(title=task, ylim=(len(of) - 0.4, -0.6), xlabel="accuracy (%)")
            axis.grid(axis="y", color="#EEEEEE")
        legend_below(figure)
    return figure


def few_shot_costs(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> Figure:
    """Accuracy in the first kind of task against what a method costs before and during a task.

    In network passes, and below, if given, by the clock. The line is the Pareto front: no method above it costs less.
    """
    from gtl_core.experiments.few_shot_neighbours import ranking  # that package imports this module

    table = ranking(frame, seconds)
    table = table[table["task"] == table["task"].iloc[0]]
    units = {"passes": "network passes"} | ({} if seconds is None else {"seconds": "seconds"})
    figure, axes = panels(len(units), 2, (11, 4.6 * len(units) + 0.6), sharey=True)
    with mpl.rc_context(STYLE):
        for row, (unit, label) in zip(axes, units.items(), strict=True):
            for axis, what, when in zip(row, ("preparation", "adaptation"), ("before", "per task"), strict=True):
                _pareto(axis, table, f"{what}_{unit}")
                axis.set(xlabel=f"{what}, {label} ({when})" if when == "per task" else f"{what}, {label}")
                axis.set(ylabel="accuracy (%)")
                axis.label_outer()
        legend_below(figure)
    return figure


def _pareto(axis: Axes, table: pd.DataFrame, cost: str) -> None:
    """Those on the front have names, and so have the guided ones."""
    floor = table.loc[table[cost] > 0, cost].min() / 4  # where nothing at all was paid: no place on a logarithmic axis
    table = table.assign(cost=table[cost].clip(lower=floor)).sort_values(["cost", "accuracy"], ascending=[True, False])
    front = table[table["accuracy"] > table["accuracy"].cummax().shift(fill_value=-1)]
    axis.step(front["cost"], 100 * front["accuracy"], where="post", color="#BBBBBB", linewidth=1, zorder=0)
    for row in table.itertuples():
        color, at = FAMILY_COLORS[FAMILY[row.method]], (row.cost, 100 * row.accuracy)
        axis.vlines(row.cost, 100 * row.accuracy_low, 100 * row.accuracy_high, color=color, linewidth=1, alpha=0.5)
        axis.plot(*at, "o", color=color, markersize=5, label=FAMILY[row.method])
        if row.Index in front.index or FAMILY[row.method] == "guided":
            text = name(row.zero_point, row.method)
            axis.annotate(text, at, (4, 4), textcoords="offset points", fontsize=7, color=color)
    axis.set_xscale("log")
    if (table[cost] <= 0).any():
        axis.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":")
        axis.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=7, color="#777777")

"""Figures of `06_few_shot_neighbours`."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e06_few_shot_neighbours import run as few_shot
from experiments.e06_few_shot_neighbours.run import FewShotNeighboursParameters
from experiments.experiment import Experiment
from experiments.methods import FROM_SCRATCH, FROZEN, GUIDED, PLAIN, SCRATCH
from experiments.neighbours import NEIGHBOURS
from experiments.ranking import sides
from experiments.style import Ranked, drawing, forest, headline

NAMED = (FROZEN.name, PLAIN.name, SCRATCH.name)  # in the picture of the costs, beside the front and guidance
LEGEND = (FROM_SCRATCH.label, GUIDED.label)  # the others as they come


def name(zero_point: str, method: str) -> str:
    """Of a method in figures; the prepared ones that start from a random network say so."""
    unprepared = zero_point == "random" and method != SCRATCH.name
    return NEIGHBOURS[method].label + (", no pretraining" if unprepared else "")


def few_shot_neighbours(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals, best first: the first kind of task with all methods, then the others."""
    table = few_shot.ranking(frame)
    tasks = list(table["task"].unique())
    lengths = [int((table["task"] == task).sum()) for task in tasks]
    height = 1.2 + 0.2 * max(lengths[0], sum(lengths[1:]) + 3 * len(lengths[1:]))
    with drawing(1, 1, height, LEGEND) as (figure, _):
        figure.clear()
        grid = figure.add_gridspec(max(1, len(tasks) - 1), 2 if len(tasks) > 1 else 1, height_ratios=lengths[1:] or [1])
        axes = [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[i, 1]) for i in range(len(tasks) - 1))]
        for axis, task in zip(axes, tasks, strict=True):
            forest(axis, [_ranked(row) for row in table[table["task"] == task].itertuples()])
            axis.set(title=task, xlabel="accuracy (%)")
        n = f"{table['n'].iloc[0]}; " if "n" in table else ""
        note = f"{n}zero head, each method at its own best setting. Bars: 95 % intervals."
        headline(figure, _said(table[table["task"] == tasks[0]]), note)
    return figure


def _ranked(row: NamedTuple) -> Ranked:
    family, numbers = NEIGHBOURS[row.method].family, (row.accuracy, row.accuracy_low, row.accuracy_high)
    return Ranked(name(row.zero_point, row.method), family.colour, family.label, *(100 * n for n in numbers))


def _said(ranked: pd.DataFrame) -> str:
    """Where guidance stands among the methods of a kind of task; who is best, if it took no part."""
    best, mine = ranked.iloc[0], ranked["method"] == ranked["guided"]
    if not mine.any():
        return f"{best['task']}: {name(best['zero_point'], best['method'])} is best"
    others = ranked[~ranked["method"].isin(few_shot.SCOPES)]
    beside = {side: len(rows) for side, rows in sides(others).items()}
    return (
        f"{best['task']}: guided is number {list(mine).index(True) + 1} of {len(ranked)}; clearly above it are "
        f"{beside['above it']}, clearly below {beside['below it']} of {len(others)} others; "
        f"{name(best['zero_point'], best['method'])} is best"
    )


def few_shot_costs(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> Figure:
    """Accuracy in the first kind of task against what a method costs before and during a task.

    In network passes, and below, if given, by the clock. The line is the Pareto front: nothing above it costs less.
    Named are what is on it, plain fine-tuning, the linear probe, and guidance.
    """
    table = few_shot.ranking(frame, seconds)
    table = table[table["task"] == table["task"].iloc[0]]
    units = {"passes": "network passes"} | ({} if seconds is None else {"seconds": "seconds"})
    with drawing(len(units), 2, 3.6 * len(units), LEGEND, sharey=True) as (figure, axes):
        for row, (unit, label) in zip(axes, units.items(), strict=True):
            for axis, what in zip(row, ("preparation", "adaptation"), strict=True):
                _pareto(axis, table, f"{what}_{unit}")
                axis.set_xlabel(f"{what}, {label}" + (" per task" if what == "adaptation" else ""))
            row[0].set_ylabel("accuracy (%), errors on a log scale")
        ours = table[table["method"] == table["guided"]]
        cheaper = sum(
            (table["accuracy"] >= row.accuracy)
            & (table["preparation_passes"] < row.preparation_passes)
            & (table["adaptation_passes"] <= row.adaptation_passes)
            for row in ours.itertuples()
        )
        n = cheaper.sum() if len(ours) else "No"
        message = f"{n} methods are at least as accurate as guidance and cost less, before a task and in it"
        headline(
            figure, message, f"{table['task'].iloc[0]}; grey line: the Pareto front, above which nothing costs less."
        )
    return figure


def _pareto(axis: Axes, table: pd.DataFrame, cost: str) -> None:
    floor = table.loc[table[cost] > 0, cost].min() / 2  # where nothing at all was paid: no place on a logarithmic axis
    error = 100 * (1 - table["accuracy"]).clip(lower=0.001)
    free = bool((table[cost] < floor).any())
    table = table.assign(cost=table[cost].clip(lower=floor), error=error).sort_values(["cost", "error"])
    front = table[table["error"] < table["error"].cummin().shift(fill_value=float("inf"))]
    axis.step(front["cost"], front["error"], where="post", color="#BBBBBB", linewidth=1, zorder=0)
    for row in table.itertuples():
        family = NEIGHBOURS[row.method].family
        axis.plot(row.cost, row.error, "o", color=family.colour, markersize=5, label=family.label)
    _logarithmic(axis, table["error"].min(), table["error"].max())
    if free:
        axis.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")
    named = table.index.isin(front.index) | table["method"].isin([*NAMED, *table["guided"]])
    _name(axis, table[named].sort_values("error"))


def _logarithmic(axis: Axes, low: float, high: float) -> None:
    """Costs, and accuracies by their errors, from ``low`` to ``high`` per cent."""
    axis.set(xscale="log", yscale="log")
    axis.set_ylim(1.3 * high, low / 1.3)
    axis.margins(x=0.12)
    accuracies = [a for a in (20, 40, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99) if low < 100 - a < high]
    axis.set_yticks([100 - a for a in accuracies], accuracies)
    axis.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    if axis.get_xlim()[1] < 10 * axis.get_xlim()[0]:  # less than a decade: a power of ten would stand alone
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


def _name(axis: Axes, dots: pd.DataFrame) -> None:
    """The names of the dots in a column on the right, each with a line to its dot; from the top."""
    places = axis.transLimits.transform(axis.transScale.transform(dots[["cost", "error"]].to_numpy()))
    level = 1.05
    for (_, dot), (x, y) in zip(dots.iterrows(), places, strict=True):
        level = min(y, level - 0.065)
        text = name(dot["zero_point"], dot["method"])
        line = {"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.7, "shrinkB": 3, "relpos": (0, 0.5)}
        axis.annotate(
            text,
            (x, y),
            (1.02, level),
            xycoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops=line,
            color=NEIGHBOURS[dot["method"]].family.colour,
        )


EXPERIMENT = Experiment(
    "few_shot_neighbours",
    "06_few_shot_neighbours",
    FewShotNeighboursParameters,
    {"few_shot_neighbours": few_shot_neighbours, "few_shot_costs": few_shot_costs},
    more_tables=("few_shot_neighbours_cost",),
)

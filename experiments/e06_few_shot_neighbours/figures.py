"""Figures of `06_few_shot_neighbours`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import fclusterdata

from experiments.e06_few_shot_neighbours import run as few_shot
from experiments.e06_few_shot_neighbours.run import FewShotNeighboursParameters
from experiments.experiment import Experiment
from experiments.methods import FROM_SCRATCH, GUIDED, SCRATCH
from experiments.neighbours import NEIGHBOURS
from experiments.style import drawing

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
    height = 1.6 + 0.23 * max(lengths[0], sum(lengths[1:]) + 3 * len(lengths[1:]))
    with drawing(1, 1, (10, height), LEGEND) as (figure, _):
        figure.clear()
        grid = figure.add_gridspec(max(1, len(tasks) - 1), 2 if len(tasks) > 1 else 1, height_ratios=lengths[1:] or [1])
        axes = [figure.add_subplot(grid[:, 0]), *(figure.add_subplot(grid[i, 1]) for i in range(len(tasks) - 1))]
        for axis, task in zip(axes, tasks, strict=True):
            ranked = table[table["task"] == task]
            for y, row in enumerate(ranked.itertuples()):
                color = NEIGHBOURS[row.method].family.colour
                axis.hlines(y, 100 * row.accuracy_low, 100 * row.accuracy_high, color=color, linewidth=2)
                axis.plot(
                    100 * row.accuracy, y, "o", color=color, markersize=4.5, label=NEIGHBOURS[row.method].family.label
                )
            names = [name(row.zero_point, row.method) for row in ranked.itertuples()]
            numbers = axis is axes[0]  # by which `few_shot_costs` calls them
            axis.set_yticks(range(len(ranked)), [f"{n}  {i + 1}" if numbers else n for i, n in enumerate(names)])
            axis.set(title=task, ylim=(len(ranked) - 0.4, -0.6), xlabel="accuracy (%)")
            axis.grid(axis="y", color="#EEEEEE")
    return figure


def few_shot_costs(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> Figure:
    """Errors in the first kind of task against what a method costs before and during a task.

    In network passes, and below, if given, by the clock. Numbers are those of `few_shot_neighbours`. The line is the
    Pareto front: nothing above it costs less.
    """
    table = few_shot.ranking(frame, seconds)
    table = table[table["task"] == table["task"].iloc[0]]
    units = {"passes": "network passes"} | ({} if seconds is None else {"seconds": "seconds"})
    with drawing(len(units), 2, (10, 4.4 * len(units) + 0.6), LEGEND, sharey=True) as (figure, axes):
        for row, (unit, label) in zip(axes, units.items(), strict=True):
            for axis, what in zip(row, ("preparation", "adaptation"), strict=True):
                _pareto(axis, table, f"{what}_{unit}")
                axis.set_xlabel(f"{what}, {label}" + (" per task" if what == "adaptation" else ""))
            row[0].set_ylabel("accuracy (%)")
    return figure


def _pareto(axis: Axes, table: pd.DataFrame, cost: str) -> None:
    floor = table.loc[table[cost] > 0, cost].min() / 2  # where nothing at all was paid: no place on a logarithmic axis
    error = 100 * (1 - table["accuracy"]).clip(lower=0.001)
    free = bool((table[cost] < floor).any())
    table = table.assign(cost=table[cost].clip(lower=floor), error=error, number=range(1, len(table) + 1))
    table = table.sort_values(["cost", "error"])
    front = table[table["error"] < table["error"].cummin().shift(fill_value=float("inf"))]
    axis.step(front["cost"], front["error"], where="post", color="#BBBBBB", linewidth=1, zorder=0)
    for row in table.itertuples():
        family = NEIGHBOURS[row.method].family
        axis.plot(row.cost, row.error, "o", color=family.colour, markersize=5, label=family.label)
    _logarithmic(axis, table["error"].min(), table["error"].max())
    if free:
        axis.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")
    _number(axis, table)


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


def _number(axis: Axes, table: pd.DataFrame) -> None:
    """Beside every dot its number; dots that touch share a label."""
    places = axis.transLimits.transform(axis.transScale.transform(table[["cost", "error"]].to_numpy()))
    table = table.assign(x=places[:, 0], y=places[:, 1])
    taken = [(x - 0.008, y - 0.012, x + 0.008, y + 0.012) for x, y in places]
    for _, dots in table.groupby(fclusterdata(places, 0.035, "distance", metric="chebyshev")):
        text = _ranges(dots["number"])
        taken.append(_free_place(dots, 0.0115 * len(text) + 0.004, 0.026, taken))
        axis.text(*taken[-1][:2], text, transform=axis.transAxes, fontsize=7)


def _free_place(dots: pd.DataFrame, width: float, height: float, taken: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Left, bottom, right and top of a label beside the dots, in shares of the axes: where it hides least."""
    (left, right), (low, high) = ((dots[c].min(), dots[c].max()) for c in ("x", "y"))
    middle, level, gap = (left + right - width) / 2, dots["y"].median() - height / 2, 0.014
    corners = [(left - gap - width, level), (right + gap, level), (middle, high + gap), (middle, low - gap - height)]
    places = [(x, y, x + width, y + height) for x, y in corners]

    def hidden(place: tuple[float, ...]) -> int:
        outside = min(place) < 0 or max(place) > 1
        return outside + sum(
            place[0] < box[2] and box[0] < place[2] and place[1] < box[3] and box[1] < place[3] for box in taken
        )

    return min(places, key=hidden)


def _ranges(numbers: Iterable[int]) -> str:
    """3, 4, 5, 9 as 3-5, 9."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}\N{EN DASH}{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


EXPERIMENT = Experiment(
    "few_shot_neighbours",
    "06_few_shot_neighbours",
    FewShotNeighboursParameters,
    {"few_shot_neighbours": few_shot_neighbours, "few_shot_costs": few_shot_costs},
    more_tables=("few_shot_neighbours_cost",),
)

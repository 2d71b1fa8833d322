"""Figures of the comparisons with neighbours: `06_few_shot_neighbours` to `08_domain_shift`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import fclusterdata

from gtl_core.experiments import domain_shift as shift
from gtl_core.experiments import few_shot_neighbours as few_shot
from gtl_core.experiments import forgetting_neighbours as stream
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
    table = few_shot.ranking(frame)
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
            names = [name(row.zero_point, row.method) for row in of.itertuples()]
            numbers = axis is axes[0]  # by which `few_shot_costs` calls them
            axis.set_yticks(range(len(of)), [f"{n}  {i + 1}" if numbers else n for i, n in enumerate(names)])
            axis.set(title=task, ylim=(len(of) - 0.4, -0.6), xlabel="accuracy (%)")
            axis.grid(axis="y", color="#EEEEEE")
        legend_below(figure)
    return figure


def few_shot_costs(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> Figure:
    """Errors in the first kind of task against what a method costs before and during a task.

    In network passes, and below, if given, by the clock. Numbers are those of `few_shot_neighbours`. The line is the
    Pareto front: nothing above it costs less.
    """
    table = few_shot.ranking(frame, seconds)
    table = table[table["task"] == table["task"].iloc[0]]
    units = {"passes": "network passes"} | ({} if seconds is None else {"seconds": "seconds"})
    figure, axes = panels(len(units), 2, (10, 4.4 * len(units) + 0.6), sharey=True)
    with mpl.rc_context(STYLE):
        for row, (unit, label) in zip(axes, units.items(), strict=True):
            for axis, what in zip(row, ("preparation", "adaptation"), strict=True):
                _pareto(axis, table, f"{what}_{unit}")
                axis.set_xlabel(f"{what}, {label}" + (" per task" if what == "adaptation" else ""))
            row[0].set_ylabel("accuracy (%)")
        legend_below(figure)
    return figure


def _pareto(axis: Axes, table: pd.DataFrame, cost: str) -> None:
    floor = table.loc[table[cost] > 0, cost].min() / 2  # where nothing at all was paid: no place on a logarithmic axis
    error = 100 * (1 - table["accuracy"]).clip(lower=0.001)
    table = table.assign(cost=table[cost].clip(lower=floor), error=error, number=range(1, len(table) + 1))
    table = table.sort_values(["cost", "error"])
    front = table[table["error"] < table["error"].cummin().shift(fill_value=float("inf"))]
    axis.step(front["cost"], front["error"], where="post", color="#BBBBBB", linewidth=1, zorder=0)
    for row in table.itertuples():
        axis.plot(
            row.cost, row.error, "o", color=FAMILY_COLORS[FAMILY[row.method]], markersize=5, label=FAMILY[row.method]
        )
    axis.set(xscale="log", yscale="log")
    low, high = table["error"].min(), table["error"].max()
    axis.set_ylim(1.3 * high, low / 1.3)
    axis.margins(x=0.12)
    accuracies = [a for a in (20, 40, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99) if low < 100 - a < high]
    axis.set_yticks([100 - a for a in accuracies], accuracies)
    axis.yaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    if axis.get_xlim()[1] < 10 * axis.get_xlim()[0]:  # less than a decade: a power of ten would stand alone
        axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    if (table[cost] < floor).any():
        axis.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
        axis.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")
    places = axis.transLimits.transform(axis.transScale.transform(table[["cost", "error"]].to_numpy()))
    table = table.assign(x=places[:, 0], y=places[:, 1])
    taken = [(x - 0.008, y - 0.012, x + 0.008, y + 0.012) for x, y in places]
    for _, of in table.groupby(fclusterdata(places, 0.035, "distance", metric="chebyshev")):  # dots that touch
        text = _ranges(of["number"])
        taken.append(_free_place(of, 0.0115 * len(text) + 0.004, 0.026, taken))
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


# In a stream, what guidance is added to keeps its colour, and its line is broken.
MEMORIES = {
    "frozen": (COLORS["frozen"], "frozen (linear probe)"),
    "plain": (COLORS["plain"], "plain fine-tuning"),
    "l2_sp": ("#E69F00", "L2-SP"),
    "ewc": ("#CC79A7", "EWC"),
    "synaptic": ("#A6761D", "synaptic intelligence"),
    "replay": ("#000000", "replay"),
    "guided_tensor": (COLORS["guided_tensor"], "guided (tensor scope)"),
    "guided_network": (COLORS["guided_network"], "guided (network scope)"),
    "guided_ewc": ("#CC79A7", "guided + EWC"),
    "guided_replay": ("#000000", "guided + replay"),
}


def forgetting_neighbours(frame: pd.DataFrame) -> Figure:
    """Left: accuracy after each round of examples. Right: at the end, with 95 % intervals, against what is stored."""
    table = stream.ranking(frame)
    heads = list(table["head"].unique())
    figure, axes = panels(len(heads), 2, (10, 3.9 * len(heads) + 0.8))
    with mpl.rc_context(STYLE):
        for (left, right), head in zip(axes, heads, strict=True):
            of = table[table["head"] == head].set_index("method")
            floor = of.loc[of["stored"] > 0, "stored"].min() / 3
            taken = []
            for method, (color, label) in MEMORIES.items():
                if method not in of.index:
                    continue
                both = method in ("guided_ewc", "guided_replay")
                curve = frame[(frame["head"] == head) & (frame["method"] == method)]
                curve = curve[curve["metric"] == "accuracy_mean"].sort_values("step")
                seen = curve["step"] / curve["step"].min()
                left.plot(seen, 100 * curve["value"], "--" if both else "-", color=color, linewidth=1.6, label=label)
                row = of.loc[method]
                x = max(row["stored"], floor)
                taken.append(x)
                x *= 1.04 ** (taken.count(x) - 1)  # side by side where they store the same
                right.vlines(x, 100 * row["accuracy_low"], 100 * row["accuracy_high"], color=color, linewidth=1.2)
                right.plot(x, 100 * row["accuracy"], "o", color=color, markerfacecolor="white" if both else color)
            right.set(
                xscale="log", xlabel="numbers stored beside the network", title="at the end of the stream, closer"
            )
            right.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
            right.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")
            left.set(xlabel="examples seen per class", ylabel="accuracy on unseen drawers (%)", title=f"{head} head")
        legend_below(figure)
    return figure


def domain_shift(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals, best first: rows by target, columns by kind of task."""
    table = shift.ranking(frame)
    targets, tasks = list(table["target"].unique()), list(table["task"].unique())
    n_rows = int(table.groupby(["target", "task"]).size().max())
    size = (5.2 * len(tasks), (0.26 * n_rows + 0.9) * len(targets) + 0.6)
    figure, axes = panels(len(targets), len(tasks), size)
    with mpl.rc_context(STYLE):
        for line, target in zip(axes, targets, strict=True):
            for axis, task in zip(line, tasks, strict=True):
                of = table[(table["target"] == target) & (table["task"] == task)]
                for y, row in enumerate(of.itertuples()):
                    kind = "scratch" if row.method == "scratch" else "guided" if row.scouts != "none" else row.alignment
                    color, label = SHIFTS[kind]
                    axis.hlines(y, 100 * row.accuracy_low, 100 * row.accuracy_high, color=color, linewidth=2)
                    axis.plot(100 * row.accuracy, y, "o", color=color, markersize=4.5, label=label)
                names = [NAMES[r.method] + ("" if r.scouts == "none" else f", {r.scouts}") for r in of.itertuples()]
                axis.set_yticks(range(len(of)), names)
                axis.set(ylim=(len(of) - 0.4, -0.6), xlabel="accuracy (%)", title=f"{TARGETS[target]}, {task}")
                axis.grid(axis="y", color="#EEEEEE")
        legend_below(figure)
    return figure


TARGETS = {"as_is": "other origin", "inverted": "other origin and inverted"}
SHIFTS = {
    "guided": (COLORS["guided"], "guided; scouts from source or target"),
    "none": (COLORS["plain"], "trained on the source alone"),
    "coral": ("#CC79A7", "features aligned by CORAL"),
    "dann": ("#000000", "features aligned by DANN"),
    "scratch": (COLORS["scratch"], "not pretrained"),
}


def decision_guide(table: pd.DataFrame) -> Figure:
    """The decision guide: for each situation the best of each kind, by name."""
    key = ["situation", "choice", "method"]
    table = table.set_index([*key, "metric"])["value"].unstack(sort=False).reset_index()
    situations = list(table["situation"].unique())
    figure, axes = panels(1, 1, (10, 0.75 * len(situations) + 1.4))
    axis = axes[0, 0]
    with mpl.rc_context(STYLE):
        for y, situation in enumerate(situations):
            of = table[table["situation"] == situation].sort_values("accuracy")
            for i, row in enumerate(of.itertuples()):
                color, label = CHOICES[row.choice]
                at = y + 0.24 * (i - (len(of) - 1) / 2)
                axis.hlines(at, 100 * row.accuracy_low, 100 * row.accuracy_high, color=color, linewidth=2)
                axis.plot(100 * row.accuracy, at, "o", color=color, markersize=5, label=label)
                end = 100 * row.accuracy_high
                axis.annotate(_spoken(row.method), (end, at), (5, -3), textcoords="offset points", fontsize=7.5)
        axis.set_yticks(range(len(situations)), situations)
        axis.set(ylim=(len(situations) - 0.4, -0.6), xlabel="accuracy (%)", xlim=(None, 114), xticks=range(0, 101, 10))
        axis.set_xlim(left=100 * table["accuracy_low"].min() - 3)
        for y in range(1, len(situations)):
            axis.axhline(y - 0.5, color="#EEEEEE", linewidth=0.8)
        legend_below(figure)
    return figure


def _spoken(method: str) -> str:
    """``"plain, dann"`` as figures say it."""
    names = NAMES | {m: label for m, (_, label) in MEMORIES.items()} | {"coral": "CORAL", "dann": "DANN"}
    return ", ".join(names.get(part, part) for part in method.split(", "))


CHOICES = {
    "as pretrained": (COLORS["frozen"], "best without a second preparation"),
    "prepared": ("#000000", "best with a second preparation (in a stream: with a memory)"),
    "guided": (COLORS["guided"], "guided"),
}

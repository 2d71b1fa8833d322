"""Figures of `08_domain_shift`."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from experiments.e06_few_shot_neighbours.figures import NAMES
from experiments.e07_forgetting_neighbours.figures import MEMORIES
from experiments.e08_domain_shift import run as shift
from experiments.e08_domain_shift.run import DomainShiftParameters
from experiments.experiment import Experiment
from experiments.style import COLORS, STYLE, legend_below, panels


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


EXPERIMENT = Experiment(
    "domain_shift",
    "08_domain_shift",
    DomainShiftParameters,
    {"domain_shift": domain_shift, "decision_guide": decision_guide},
    more_tables=("decision_guide",),
    drawn_from={"decision_guide": "decision_guide"},
    reads=("few_shot_neighbours", "forgetting_neighbours"),
)

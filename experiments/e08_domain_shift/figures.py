"""Figures of `08_domain_shift`."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from experiments.e08_domain_shift import run as shift
from experiments.e08_domain_shift.decision import LABELS
from experiments.e08_domain_shift.methods import METHODS
from experiments.e08_domain_shift.run import DomainShiftParameters
from experiments.experiment import Experiment
from experiments.methods import FROZEN, GUIDED
from experiments.neighbours import NEIGHBOURS
from experiments.style import drawing

TARGETS = {"as_is": "other origin", "inverted": "other origin and inverted"}
CHOICES = {
    "as pretrained": (FROZEN.colour, "best without a second preparation"),
    "prepared": ("#000000", "best with a second preparation (in a stream: with a memory)"),
    "guided": (GUIDED.colour, "guided"),
}


def domain_shift(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals, best first: rows by target, columns by kind of task."""
    table = shift.ranking(frame)
    targets, tasks = list(table["target"].unique()), list(table["task"].unique())
    n_rows = int(table.groupby(["target", "task"]).size().max())
    size = (5.2 * len(tasks), (0.26 * n_rows + 0.9) * len(targets) + 0.6)
    with drawing(len(targets), len(tasks), size, legend=()) as (figure, axes):
        for line, target in zip(axes, targets, strict=True):
            for axis, task in zip(line, tasks, strict=True):
                ranked = table[(table["target"] == target) & (table["task"] == task)]
                for y, row in enumerate(ranked.itertuples()):
                    kind = METHODS[row.name].family
                    axis.hlines(y, 100 * row.accuracy_low, 100 * row.accuracy_high, color=kind.colour, linewidth=2)
                    axis.plot(100 * row.accuracy, y, "o", color=kind.colour, markersize=4.5, label=kind.label)
                methods = [METHODS[name] for name in ranked["name"]]
                whose = ["" if method.scouts == "none" else f", {method.scouts}" for method in methods]
                names = [NEIGHBOURS[m.neighbour].label + w for m, w in zip(methods, whose, strict=True)]
                axis.set_yticks(range(len(names)), names)
                axis.set(ylim=(len(names) - 0.4, -0.6), xlabel="accuracy (%)", title=f"{TARGETS[target]}, {task}")
                axis.grid(axis="y", color="#EEEEEE")
    return figure


def decision_guide(table: pd.DataFrame) -> Figure:
    """The decision guide: for each situation the best of each kind, by name."""
    key = ["situation", "choice", "method"]
    table = table.set_index([*key, "metric"])["value"].unstack(sort=False).reset_index()
    situations = list(table["situation"].unique())
    with drawing(1, 1, (10, 0.75 * len(situations) + 1.4), [CHOICES["guided"][1]]) as (figure, axes):
        axis = axes[0, 0]
        for y, situation in enumerate(situations):
            choices = table[table["situation"] == situation].sort_values("accuracy")
            for i, row in enumerate(choices.itertuples()):
                color, label = CHOICES[row.choice]
                at, end = y + 0.24 * (i - (len(choices) - 1) / 2), 100 * row.accuracy_high
                axis.hlines(at, 100 * row.accuracy_low, end, color=color, linewidth=2)
                axis.plot(100 * row.accuracy, at, "o", color=color, markersize=5, label=label)
                axis.annotate(LABELS[row.method], (end, at), (5, -3), textcoords="offset points", fontsize=7.5)
        axis.set_yticks(range(len(situations)), situations)
        axis.set(ylim=(len(situations) - 0.4, -0.6), xlabel="accuracy (%)", xlim=(None, 114), xticks=range(0, 101, 10))
        axis.set_xlim(left=100 * table["accuracy_low"].min() - 3)
        for y in range(1, len(situations)):
            axis.axhline(y - 0.5, color="#EEEEEE", linewidth=0.8)
    return figure


EXPERIMENT = Experiment(
    "domain_shift",
    "08_domain_shift",
    DomainShiftParameters,
    {"domain_shift": domain_shift, "decision_guide": decision_guide},
    more_tables=("decision_guide",),
    drawn_from={"decision_guide": "decision_guide"},
    reads=("few_shot_neighbours", "forgetting_neighbours"),
)

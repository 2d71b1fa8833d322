"""Figures of `08_domain_shift`."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from experiments.e08_domain_shift import run as shift
from experiments.e08_domain_shift.decision import LABELS
from experiments.e08_domain_shift.methods import METHODS
from experiments.e08_domain_shift.run import DomainShiftParameters
from experiments.experiment import Experiment
from experiments.methods import FROZEN, GUIDED
from experiments.statistics import NONE, rows_where, tally
from experiments.style import Ranked, drawing, forest, headline

TARGETS = {"as_is": "other origin", "inverted": "inverted, too"}
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
    with drawing(len(targets), len(tasks), (0.2 * n_rows + 0.7) * len(targets) + 0.4, legend=()) as (figure, axes):
        for line, target in zip(axes, targets, strict=True):
            for axis, task in zip(line, tasks, strict=True):
                forest(axis, [_ranked(row) for row in rows_where(table, target=target, task=task).itertuples()])
                axis.set(xlabel="accuracy (%)")
                axis.set_title(f"{TARGETS[target]}, {task}", loc="right")  # beside long names, an axis is narrow
        best = table[table["scouts"] == NONE].groupby(["target", "task"], sort=False).first()
        message = f"Guided minus the best without a guide: {tally(best['side'], 'kinds of tasks')}"
        note = (
            f"{table['n'].iloc[0]}, zero head; bars: 95 % intervals. DANN, CORAL: pretraining that aligns source and \
target; source, target scouts: whose classes they learn."
        )
        headline(figure, message, note)
    return figure


def _ranked(row: NamedTuple) -> Ranked:
    method, numbers = METHODS[row.name], (row.accuracy, row.accuracy_low, row.accuracy_high)
    return Ranked(method.label, method.family.colour, method.family.label, *(100 * n for n in numbers))


def decision_guide(table: pd.DataFrame) -> Figure:
    """The decision guide: for each situation the best of each kind, by name."""
    key = ["situation", "choice", "method"]
    table = table.set_index([*key, "metric"])["value"].unstack(sort=False).reset_index()
    situations = list(table["situation"].unique())
    with drawing(1, 1, 0.6 * len(situations) + 0.9, [CHOICES["guided"][1]]) as (figure, axes):
        axis = axes[0, 0]
        for y, situation in enumerate(situations):
            choices = table[table["situation"] == situation].sort_values("accuracy")
            for i, row in enumerate(choices.itertuples()):
                color, label = CHOICES[row.choice]
                at, end = y + 0.24 * (i - (len(choices) - 1) / 2), 100 * row.accuracy_high
                axis.hlines(at, 100 * row.accuracy_low, end, color=color, linewidth=2)
                axis.plot(100 * row.accuracy, at, "o", color=color, markersize=5, label=label)
                axis.annotate(LABELS[row.method], (end, at), (5, -3), textcoords="offset points", fontsize=8)
        axis.set_yticks(range(len(situations)), situations)
        axis.set(ylim=(len(situations) - 0.4, -0.6), xlabel="accuracy (%)", xlim=(None, 118), xticks=range(0, 101, 10))
        axis.set_xlim(left=100 * table["accuracy_low"].min() - 3)
        for y in range(1, len(situations)):
            axis.axhline(y - 0.5, color="#EEEEEE", linewidth=0.8)
        others = table[table["choice"] != "guided"].sort_values("accuracy").groupby("situation").last()
        better, worse = (others["low"] > 0).sum(), (others["high"] < 0).sum()
        message = f"Guidance is clearly better than the best other choice in {better} of {len(others)} situations, and \
clearly worse in {worse}"
        headline(
            figure, message, "The best of each kind in the tables of 06, 07 and 08, by name; bars: 95 % intervals."
        )
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

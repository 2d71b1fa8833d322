"""Figures of `12_learned_everything`."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e12_learned_everything.methods import (
    AT_EVERY_ZERO_POINT,
    GUIDES,
    METHODS,
    WITH_WRONG_LABELS,
    ZERO_POINTS,
)
from experiments.e12_learned_everything.run import (
    LearnedEverythingParameters,
    at_zero_points,
    ranking,
    with_wrong_labels,
)
from experiments.experiment import Experiment
from experiments.methods import PLAIN
from experiments.panels import minus
from experiments.ranking import accuracy_of, sides
from experiments.statistics import rows_where, tally
from experiments.style import Ranked, drawing, forest, headline

OWN_COLOURS = {"nearest_mean": "#F0E442", "guided_clusters": "#56B4E9"}


def learned_everything(frame: pd.DataFrame) -> Figure:
    """Test accuracy from the pretrained network with 95 % intervals, best first, for each kind of task."""
    table = ranking(frame)
    tasks = list(table["task"].unique())
    with drawing(1, len(tasks), 0.19 * table["method"].nunique() + 1.3, ()) as (figure, axes):
        for axis, task in zip(axes[0], tasks, strict=True):
            forest(axis, [_ranked(row) for row in table[table["task"] == task].itertuples()])
            axis.set(title=task, xlabel="accuracy (%)")
        note = f"{table['n'].iloc[0]}; " if "n" in table else ""
        headline(figure, _said(table), note + "each method at its own best setting. Bars: 95 % intervals.")
    return figure


def _ranked(row) -> Ranked:
    method = METHODS[row.method]
    numbers = (100 * value for value in (row.accuracy, row.accuracy_low, row.accuracy_high))
    return Ranked(method.label, method.family.colour, method.family.label, *numbers)


def _said(table: pd.DataFrame) -> str:
    parts = []
    for task, ranked in table.groupby("task", sort=False):
        best, others = METHODS[ranked.iloc[0]["method"]].label, ranked[~ranked["method"].isin(GUIDES)]
        beside = {word: len(rows) for word, rows in sides(others).items()} if "side" in others else None
        counts = f"; guided: {beside['above it']} above, {beside['below it']} below it" if beside else ""
        parts.append(f"{task}: best is {best}{counts}")
    return ". ".join(parts)


def learned_zero_points(frame: pd.DataFrame) -> Figure:
    """Accuracy minus that of plain fine-tuning from zero points made with labels, and from two that never saw one."""
    there = rows_where(frame[frame["metric"] == "accuracy"], wrong=0.0)
    others = [replace(METHODS[name], own_colour=colour_of(name)) for name in AT_EVERY_ZERO_POINT if name != PLAIN.name]
    with minus(PLAIN, others, there, "zero_point", ZERO_POINTS) as (figure, _):
        table = at_zero_points(frame)
        n = f"{table['n'].iloc[0]}; " if len(table) else ""
        against = {rival: tally(rows["side"], "cases") for rival, rows in table.groupby("rival", sort=False)}
        called = {rival: METHODS[rival].label.split(":")[0].removeprefix("guided, ") for rival in against}
        said = "; ".join(f"minus {called[rival]} {text}" for rival, text in against.items())
        note = f"{n}bars: 95 % intervals of paired differences. On the right: plain fine-tuning's accuracy."
        headline(figure, f"Guided {said}" if said else "Zero points", note)
    return figure


def colour_of(name: str) -> str:
    """Of a method in figures where several of a family stand side by side."""
    return OWN_COLOURS.get(name, METHODS[name].colour)


def learned_wrong_labels(frame: pd.DataFrame) -> Figure:
    """Accuracy with a share of wrong labels among the examples, and among those of the guide's scouts."""
    table, last = with_wrong_labels(frame), frame[frame["wrong"] > 0]
    with drawing(1, 2, 3.2, [METHODS[name].label for name in WITH_WRONG_LABELS]) as (figure, axes):
        if len(table):
            there = frame[(frame["metric"] == "accuracy") & (frame["zero_point"] == last["zero_point"].iloc[0])]
            there = rows_where(there, n_way=last["n_way"].iloc[0], n_shot=last["n_shot"].iloc[0])
            for name in WITH_WRONG_LABELS:
                if len(mine := there[there["method"] == name]):
                    _over_shares(axes[0, 0], name, mine)
            forest(axes[0, 1], [_difference(row) for row in table.itertuples()])
            axes[0, 1].axvline(0, color="#999999", linewidth=0.8)
        axes[0, 0].set(title="accuracy (%)", xlabel="wrong labels (%)")
        axes[0, 1].set(title="guided minus", xlabel="points of accuracy")
        plain = table[table["rival"] == PLAIN.name] if len(table) else table
        said = f"Guided minus plain {tally(plain['side'], 'shares of wrong labels')}" if len(plain) else "Wrong labels"
        n = f"{table['n'].iloc[0]}; " if len(table) else ""
        headline(figure, said, f"{n}the same labels are wrong for every method. Bands and bars: 95 % intervals.")
    return figure


def _over_shares(axis: Axes, name: str, mine: pd.DataFrame) -> None:
    table = 100 * pd.DataFrame({share: accuracy_of(rows) for share, rows in mine.groupby("wrong")}).T
    shares, colour = 100 * table.index, colour_of(name)
    axis.fill_between(shares, table["accuracy_low"], table["accuracy_high"], color=colour, alpha=0.15, linewidth=0)
    axis.plot(shares, table["accuracy"], "o-", color=colour, markersize=4, label=METHODS[name].label)


def _difference(row) -> Ranked:
    label = f"{METHODS[row.rival].label.split(':')[0]}, {row.wrong:.0%}"
    return Ranked(label, colour_of(row.rival), "", *(100 * value for value in (row.mean, row.low, row.high)))


EXPERIMENT = Experiment(
    "learned_everything",
    "12_learned_everything",
    LearnedEverythingParameters,
    {
        "learned_everything": learned_everything,
        "learned_zero_points": learned_zero_points,
        "learned_wrong_labels": learned_wrong_labels,
    },
)

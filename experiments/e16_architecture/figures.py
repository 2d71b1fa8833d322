"""Figures of `16_architecture`."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.e16_architecture.run import CONTROLS, HAND, METHODS, ArchitectureParameters, paired_differences
from experiments.experiment import Experiment
from experiments.methods import PLAIN
from experiments.panels import minus
from experiments.statistics import rows_where, tally
from experiments.style import drawing, headline, n_networks

FOUND_BY = {  # name, colour and marker
    HAND: ("made by hand (conv4)", "#666666", "s"),
    "longer": ("by hand, pretrained for longer", "#000000", "P"),
    "wider": ("by hand, twice as wide", "#E69F00", "X"),
    "random_search": ("random search", "#009E73", "o"),
    "evolution": ("evolution", "#D55E00", "^"),
    "differentiable": ("differentiable", "#0072B2", "D"),
}
LARGER = {"longer": "pretrained for longer", "wider": "twice as wide"}
MINUS_PLAIN = [name for name in METHODS if name != PLAIN.name]
COLOURS = {"nearest_mean": "#E69F00", "uniform": "#000000"}  # of methods that have their family's elsewhere


def architectures(frame: pd.DataFrame) -> Figure:
    """Accuracy against the number of parameters: of all architectures tried, and of those found, on new tasks."""
    with drawing(1, 2, 3.4, [name for name, _, _ in FOUND_BY.values()]) as (figure, axes):
        for by in FOUND_BY:
            _tried(axes[0, 0], by, frame[frame["found_by"] == by])
            _found(axes[0, 1], by, frame[frame["found_by"] == by])
        for axis in axes[0]:
            axis.set(xscale="log", xlabel="parameters")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes[0, 0].set(title="tried: nearest class mean, scouts' classes (%)")
        axes[0, 1].set(title="found: plain fine-tuning, new tasks (%)")
        table = paired_differences(frame)
        plain = table[(table["method"] == PLAIN.name) & (table["against"] == HAND)]
        plain = plain[plain["task"] == plain["task"].iloc[0]].set_index("found_by")
        points = [f"{word} {100 * plain.loc[by, 'mean']:+.1f} points" for by, word in LARGER.items()]
        found = tally(plain.loc[~plain.index.isin(CONTROLS), "side"], "searches")
        note = (
            f"{n_networks(frame)}, each with searches of its own; {table['task'].iloc[0]}. A mark is one architecture."
        )
        headline(figure, f"Minus conv4: what was found is {found}; conv4 {' and '.join(points)}", note)
    return figure


def _tried(axis: Axes, by: str, rows: pd.DataFrame) -> None:
    table = rows[rows["metric"].str.startswith("tried_")]
    if len(table):
        name, colour, marker = FOUND_BY[by]
        table = table.pivot_table(index=["seed", "task"], columns="metric", values="value")
        look = {"color": colour, "markersize": 3, "alpha": 0.6, "label": name}
        axis.plot(table["tried_parameters"], 100 * table["tried_score"], marker, **look)


def _found(axis: Axes, by: str, rows: pd.DataFrame) -> None:
    name, colour, marker = FOUND_BY[by]
    plain = rows[(rows["method"] == PLAIN.name) & (rows["metric"] == "accuracy")]
    if len(plain):
        first = rows_where(plain, **plain[["n_way", "n_shot"]].iloc[0]).groupby("seed")["value"].mean()
        sizes = rows[rows["metric"] == "found_parameters"].set_index("seed")["value"]
        axis.plot(sizes[first.index], 100 * first, marker, color=colour, markersize=6, alpha=0.8, label=name)


def architecture_guides(frame: pd.DataFrame) -> Figure:
    """Guided training and its controls minus plain fine-tuning, with every architecture: does the guide survive?"""
    others = [replace(METHODS[name], own_colour=guide_colour(name)) for name in MINUS_PLAIN]
    rows = {by: name for by, (name, _, _) in FOUND_BY.items()}
    with minus(PLAIN, others, frame[frame["metric"] == "accuracy"], "found_by", rows) as (figure, axes):
        for axis in axes[0]:  # room for the numbers
            left, right = axis.get_xlim()
            axis.set_xlim(right=right + 0.2 * (right - left))
        table = paired_differences(frame)
        against = {
            rival: tally(table.loc[table["against"] == rival, "side"], "cases") for rival in ("plain", "carried")
        }
        said = f"Guided minus plain {against['plain']}; minus a guide carried over from conv4 {against['carried']}"
        note = f"{table['n'].iloc[0]}; bars: 95 % intervals of paired differences. On the right: plain's accuracy."
        headline(figure, said, note)
    return figure


def guide_colour(name: str) -> str:
    """Of a method in the figure of guides."""
    return COLOURS.get(name, METHODS[name].colour)


EXPERIMENT = Experiment(
    "architecture",
    "16_architecture",
    ArchitectureParameters,
    {"architectures": architectures, "architecture_guides": architecture_guides},
)

"""Figures of `03_forgetting`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e03_forgetting.run import BY_CLASS, ForgettingParameters, ForgettingVariant, like_first, verdicts
from experiments.experiment import Experiment
from experiments.images import by_scouts, of_base_optimizers
from experiments.methods import BASIC, NETWORK, PLAIN, SCRATCH
from experiments.optimizers import LABELS as OPTIMIZERS
from experiments.statistics import (
    TOO_FEW,
    alike,
    at_chosen_rates,
    choose_rates,
    paired,
    rows_where,
    scouted_alike,
    tally,
)
from experiments.streams import first_and_last
from experiments.style import HEADS, TUNED_ON, drawing, headline, n_networks, of_methods, rate_axis

METHODS = list(BASIC.values())
LABELS = [method.label for method in METHODS]
VALIDATED = {"first": "after the first examples", "last": "after the last example"}
WAYS = {
    "same": "plain's rate for all,\ntuned at the start",
    "first": "each its rate,\ntuned at the start",
    "careful": "the lowest rate\nas good at the start",
    "last": "each its rate,\ntuned at the end",
}
STREAMS = {
    "single": "classes take turns",
    "shuffled": "random order",
    "class_ordered": "one class after the other",
    "per_class": "all classes at once",
}


def _condition(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows of one condition, with every head; what is not named is as in the first row, the experiment's base."""
    frame = of_base_optimizers(frame)
    return frame[like_first(frame, **values)]


def _of_first_head(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["head"] == frame["head"].iloc[0]]


def forgetting(frame: pd.DataFrame) -> Figure:
    """Accuracy while examples arrive, one line per method; columns by what its rate was tuned on, rows by the head.

    Lines are means after every round, bands their 95 % intervals (`statistics.mean_interval`).
    """
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    with drawing(len(heads), len(TUNED_ON), 2.1 * len(heads) + 0.5, LABELS, sharey="row", sharex=True) as (
        figure,
        axes,
    ):
        for column, tuned_on in zip(axes.T, TUNED_ON, strict=True):
            test = at_chosen_rates(frame, tuned_on)
            for head, axis in zip(heads, column, strict=True):
                _curves(axis, test[test["head"] == head])
                axis.set_title(f"{HEADS[head]}\n{WAYS[tuned_on]}")
        _up_to_100(axes)
        headline(figure, *_said(frame))
    return figure


def _said(frame: pd.DataFrame) -> tuple[str, str]:
    """Of the first head: where guidance ends, and n."""
    table = verdicts(_of_first_head(frame))
    ours = table[table["comparison"] == f"guided - {PLAIN.name}"].set_index("tuned_on")
    same, last = (_points(ours.loc[way]) for way in ("same", "last"))
    message = (
        f"Guided minus plain fine-tuning after the stream ({HEADS[frame['head'].iloc[0]]}): {same} at plain's rate, \
{last} where each method has its own best rate (hindsight)"
    )
    return (
        message,
        f"{_n(frame)}; bands: 95 % intervals. A guide is scaled over the whole network, or over each tensor.",
    )


def _up_to_100(axes: np.ndarray) -> None:
    for axis in axes.flat:
        axis.set_ylim(top=100)


def _points(row: pd.Series) -> str:
    if row["side"] == TOO_FEW:
        return f"{100 * row['mean']:+.1f} points"
    return f"{100 * row['mean']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}] points"


def forgetting_added(frame: pd.DataFrame) -> Figure:
    """The paper's form: accuracy over the number of added examples, plain and guided, with and without pretraining.

    Random head, one rate for all methods: the one that is best for plain fine-tuning on the first examples.
    """
    base, test = frame.iloc[0], at_chosen_rates(_of_first_head(frame), "same")
    points = {"pretrained": "with pretraining", "random": "without pretraining"}
    points = {point: title for point, title in points.items() if point in set(frame["zero_point"])}
    with drawing(1, len(points), 3.0, sharey=True) as (figure, axes):
        for axis, (point, title) in zip(axes[0], points.items(), strict=True):
            there = {"zero_point": point, "stream": base["stream"], "epochs": base["epochs"]}
            _curves(axis, _condition(test, **there), [SCRATCH, PLAIN, NETWORK], added=True)
            axis.set_title(f"{title}, {HEADS[base['head']]}")
            axis.legend(loc="lower right" if point == "pretrained" else "upper right")
        _up_to_100(axes)
        curves = of_methods(rows_where(_condition(test), metric="accuracy_mean"), (PLAIN, NETWORK))
        values = [(method, 100 * rows["value"].to_numpy()) for method, rows in curves]
        ends = "; ".join(f"{method.label} from {v[0]:.0f} to {v[-1]:.0f} %" for method, v in values)
        message = f"The paper's figure, at the rate that is best for plain fine-tuning at first: {ends}"
        headline(figure, message, f"Pretrained on the left. {_n(frame)}; bands: 95 % intervals.")
    return figure


def _n(frame: pd.DataFrame) -> str:
    """Of networks and streams, in words."""
    tests = frame[frame["metric"] == "accuracy"]
    return f"{n_networks(tests[tests['seed'].notna()])} x {tests['task'].nunique()} streams"


def forgetting_conditions(frame: pd.DataFrame) -> Figure:
    """As `forgetting`, under the other conditions, with the first head; rows by what the rate was tuned on."""
    base, frame = frame.iloc[0], _of_first_head(frame)
    frame = frame[frame["zero_point"] == base["zero_point"]]
    conditions = {STREAMS[s]: {"stream": s} for s in frame["stream"].unique() if s != base["stream"]}
    epochs = [int(e) for e in frame["epochs"].unique() if e != base["epochs"]]
    conditions |= {f"{e} epoch{'s' * (e > 1)} per example": {"epochs": e} for e in epochs}
    of_base = {"stream": base["stream"], "epochs": base["epochs"]}
    parts = {title: partial(_condition, **(of_base | c)) for title, c in conditions.items()}
    return _side_by_side(frame, parts, "Guided minus plain fine-tuning where examples arrive otherwise: ")


def forgetting_optimizers(frame: pd.DataFrame) -> Figure:
    """As `forgetting_conditions`, under the base condition: columns by the optimizers of scouts and of the stream."""
    frame = _of_first_head(alike(frame, "zero_point", "stream", "epochs"))
    parts = {
        f"scouts: {OPTIMIZERS[pair['scouts']]},\nthen: {OPTIMIZERS[pair['optimizer']]}": partial(_trained_by, **pair)
        for pair, _ in by_scouts(frame, ["optimizer"])
    }
    return _side_by_side(frame, parts, "Guided minus plain fine-tuning, with each optimizer for scouts and network: ")


def _trained_by(frame: pd.DataFrame, scouts: str, optimizer: str) -> pd.DataFrame:
    return scouted_alike(rows_where(frame, optimizer=optimizer), {"scouts": scouts})


def _side_by_side(frame: pd.DataFrame, parts: Mapping[str, Callable], message: str) -> Figure:
    """Curves of some parts of the frame, a column each under its name; rows by what the rate was tuned on."""
    ways, said = {"same": "at plain's rate", "last": "each at its best"}, []
    with drawing(2, max(1, len(parts)), 4.4, LABELS, sharey=True, sharex=True) as (figure, axes):
        for row, (tuned_on, way) in zip(axes, ways.items(), strict=True):
            test, sides = at_chosen_rates(frame, tuned_on), []
            for axis, (name, part) in zip(row, parts.items(), strict=False):
                _curves(axis, here := part(test))
                axis.set_title(f"{name}\n({way})")
                _, last = first_and_last(here[here["metric"] == "accuracy"])
                sides.append(paired(last[NETWORK.name], last[PLAIN.name]).side)
            if sides:
                said.append(f"{way} {tally(pd.Series(sides), 'panels')}")
        _up_to_100(axes)
        head = HEADS[frame["head"].iloc[0]].capitalize()
        note = f"{head}; {_n(frame)}; bands: 95 % intervals. At its best: with hindsight."
        headline(figure, message + "; ".join(said), note)
    return figure


def forgetting_classes(frame: pd.DataFrame) -> Figure:
    """Accuracy on each class over time: every column of a map is a step, every row a class.

    First head, one rate for all methods; rows of maps by method, columns by the order in which examples arrive.
    """
    frame = _of_first_head(frame)
    methods = [BASIC[name] for name in BY_CLASS if name in set(_condition(frame)["method"])]
    streams = [s for s in STREAMS if s in set(frame["stream"]) and s != "per_class"]
    with drawing(len(methods), len(streams), 4.4, sharex=True, sharey=True) as (figure, axes):
        for stream, column in zip(streams, axes.T, strict=True):
            test = at_chosen_rates(_condition(frame, stream=stream), "same")
            test = test[test["metric"].str.startswith("class_")]
            for axis, (method, values) in zip(column, of_methods(test, methods), strict=True):
                table = 100 * values.pivot(index="metric", columns="step", values="value")
                seen, half = table.columns / len(table), 0.5 / len(table)
                extent = (seen[0] - half, seen[-1] + half, len(table) + 0.5, 0.5)
                picture = axis.imshow(table, aspect="auto", vmin=0, vmax=100, cmap="viridis", extent=extent)
                axis.set_title(f"{method.label}:\n{STREAMS[stream]}")
                axis.set(xlabel="examples per class", ylabel="class", yticks=range(1, len(table) + 1))
                axis.label_outer()
        figure.colorbar(picture, ax=axes, label="accuracy on the class (%)", shrink=0.8)
        n = _n(_condition(frame))
        headline(
            figure, _kept(frame, methods), f"One rate for all, plain's; {HEADS[frame['head'].iloc[0]]}; means over {n}."
        )
    return figure


def _kept(frame: pd.DataFrame, methods: list) -> str:
    """What is left of the class that came first, where one comes after the other."""
    test = at_chosen_rates(_condition(frame, stream="class_ordered"), "same")
    first = test[test["metric"] == "class_0"]
    if first.empty:
        return "Accuracy on each class while examples arrive"
    left = ", ".join(
        f"{m.label} {100 * rows.sort_values('step')['value'].iloc[-1]:.0f} %" for m, rows in of_methods(first, methods)
    )
    return f"Where one class comes after the other, this much of the first is known in the end: {left}"


def _curves(axis: Axes, test: pd.DataFrame, methods: list = METHODS, added: bool = False) -> None:
    n_way = test["step"].min()  # one example of each class comes first
    for method, rows in of_methods(test, methods):
        rows = rows[rows["metric"].isin(["accuracy_mean", "accuracy_low", "accuracy_high"])]
        curves = 100 * rows.pivot(index="step", columns="metric", values="value")
        seen = curves.index - n_way if added else curves.index / n_way
        band = {"color": method.colour, "alpha": 0.2, "linewidth": 0}
        axis.fill_between(seen, curves["accuracy_low"], curves["accuracy_high"], **band)
        axis.plot(seen, curves["accuracy_mean"], color=method.colour, linewidth=1.5, label=method.label)
    axis.set(xlabel="added examples" if added else "examples per class")
    axis.set(ylabel="accuracy (%)")
    axis.label_outer()


def forgetting_rates(frame: pd.DataFrame) -> Figure:
    """Tuning: validation accuracy by learning rate; rings mark the chosen rates."""
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    same = choose_rates(frame, "same")
    with drawing(2, len(heads), 4.6, LABELS, sharey=True, sharex=True) as (figure, axes):
        for row, (tuned_on, when) in zip(axes, VALIDATED.items(), strict=True):
            chosen, tuning = choose_rates(frame, tuned_on), frame[frame["metric"] == f"validation_{tuned_on}"]
            for head, axis in zip(heads, row, strict=True):
                for method, rows in of_methods(tuning[tuning["head"] == head], METHODS):
                    mean = 100 * rows.groupby("learning_rate")["value"].mean()
                    axis.plot(mean, color=method.colour, marker="o", markersize=3, label=method.label)
                    variant = tuple(rows[list(ForgettingVariant._fields)].iloc[0])
                    rate = chosen[variant]
                    axis.scatter(rate, mean[rate], s=80, facecolor="none", edgecolor=method.colour, linewidth=1.5)
                    if method is PLAIN:
                        axis.axvline(same[variant], color=method.colour, linewidth=0.8, linestyle=":")
                axis.set(title=f"{HEADS[head]}: {when}", ylim=(0, 103), ylabel="validation accuracy (%)")
                rate_axis(axis)
                axis.label_outer()
        start, end = (choose_rates(_of_first_head(frame), way) for way in VALIDATED)
        rates = [
            f"{BASIC[ForgettingVariant(*variant).method].label} {start[variant]:g} and {end[variant]:g}"
            for variant in start
        ]
        message = (
            f"Best rates with a {HEADS[heads[0]]} after the first examples, and after the last: {', '.join(rates)}"
        )
        note = "rings: rates chosen; dotted: plain's at the start, which all get under `same`"
        headline(figure, message, f"Validation streams of {n_networks(tuning)}; {note}.")
    return figure


DRAWN = (
    forgetting,
    forgetting_added,
    forgetting_classes,
    forgetting_conditions,
    forgetting_optimizers,
    forgetting_rates,
)
EXPERIMENT = Experiment("forgetting", "03_forgetting", ForgettingParameters, {draw.__name__: draw for draw in DRAWN})

"""Figures of `03_forgetting`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e03_forgetting.run import BY_CLASS, ForgettingParameters, ForgettingVariant
from experiments.experiment import Experiment
from experiments.images import by_scouts, of_base_optimizers
from experiments.methods import BASIC, NETWORK, PLAIN, SCRATCH
from experiments.optimizers import LABELS as OPTIMIZERS
from experiments.statistics import alike, at_chosen_rates, choose_rates, rows_where, scouted_alike
from experiments.style import HEADS, TUNED_ON, drawing, of_methods, rate_axis

METHODS = list(BASIC.values())
LABELS = [method.label for method in METHODS]
VALIDATED = {"first": "after the first examples", "last": "after the last example"}
STREAMS = {
    "single": "classes take turns",
    "shuffled": "random order",
    "class_ordered": "one class after the other",
    "per_class": "all classes at once",
}


def _condition(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows of one condition, with every head; what is not named is as in the first row, the experiment's base."""
    base, frame = frame.iloc[0], of_base_optimizers(frame)
    for column in ("zero_point", "stream", "epochs"):
        frame = frame[frame[column] == values.get(column, base[column])]
    return frame


def _of_first_head(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["head"] == frame["head"].iloc[0]]


def forgetting(frame: pd.DataFrame) -> Figure:
    """Accuracy while examples arrive, one line per method; rows by what its rate was tuned on, columns by the head.

    Lines are means after every round, bands their 95 % intervals (`statistics.mean_interval`).
    """
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    size = (4.4 * len(heads), 10.6)
    with drawing(len(TUNED_ON), len(heads), size, LABELS, sharey=True, sharex=True) as (figure, axes):
        for row, tuned_on in zip(axes, TUNED_ON, strict=True):
            test = at_chosen_rates(frame, tuned_on)
            for head, axis in zip(heads, row, strict=True):
                _curves(axis, test[test["head"] == head])
                axis.set_title(f"{HEADS[head]}: {TUNED_ON[tuned_on]}", fontsize=9)
    return figure


def forgetting_added(frame: pd.DataFrame) -> Figure:
    """The paper's form: accuracy over the number of added examples, plain and guided, with and without pretraining.

    Random head, one rate for all methods: the one that is best for plain fine-tuning on the first examples.
    """
    base, test = frame.iloc[0], at_chosen_rates(_of_first_head(frame), "same")
    points = {"pretrained": "with pretraining", "random": "without pretraining"}
    points = {point: title for point, title in points.items() if point in set(frame["zero_point"])}
    with drawing(1, len(points), (4.4 * len(points), 3.6), sharey=True) as (figure, axes):
        for axis, (point, title) in zip(axes[0], points.items(), strict=True):
            there = {"zero_point": point, "stream": base["stream"], "epochs": base["epochs"]}
            _curves(axis, _condition(test, **there), [SCRATCH, PLAIN, NETWORK], added=True)
            axis.set_title(f"{title}, {HEADS[base['head']]}")
            axis.legend(loc="lower right" if point == "pretrained" else "upper right")
    return figure


def forgetting_conditions(frame: pd.DataFrame) -> Figure:
    """As `forgetting`, under the other conditions, with the first head; rows by what the rate was tuned on."""
    base, frame = frame.iloc[0], _of_first_head(frame)
    frame = frame[frame["zero_point"] == base["zero_point"]]
    conditions = {STREAMS[s]: {"stream": s} for s in frame["stream"].unique() if s != base["stream"]}
    epochs = [int(e) for e in frame["epochs"].unique() if e != base["epochs"]]
    conditions |= {f"{e} epoch{'s' * (e > 1)} per example": {"epochs": e} for e in epochs}
    of_base = {"stream": base["stream"], "epochs": base["epochs"]}
    return _side_by_side(frame, {title: partial(_condition, **(of_base | c)) for title, c in conditions.items()})


def forgetting_optimizers(frame: pd.DataFrame) -> Figure:
    """As `forgetting_conditions`, under the base condition: columns by the optimizers of scouts and of the stream."""
    frame = _of_first_head(alike(frame, "zero_point", "stream", "epochs"))
    parts = {
        f"scouts: {OPTIMIZERS[pair['scouts']]}, then: {OPTIMIZERS[pair['optimizer']]}": partial(_trained_by, **pair)
        for pair, _ in by_scouts(frame, ["optimizer"])
    }
    head = HEADS[frame["head"].iloc[0]]
    return _side_by_side(frame, parts, f"Which optimizer trained the scouts, and which one then the network ({head})")


def _trained_by(frame: pd.DataFrame, scouts: str, optimizer: str) -> pd.DataFrame:
    return scouted_alike(rows_where(frame, optimizer=optimizer), {"scouts": scouts})


def _side_by_side(frame: pd.DataFrame, parts: Mapping[str, Callable], title: str = "") -> Figure:
    """Curves of some parts of the frame, a column each under its name; rows by what the rate was tuned on."""
    ways = {"same": "(plain's rate for all)", "last": "(each its best rate)"}
    size = (2.5 * len(parts) + 0.5, 5.4)
    with drawing(2, max(1, len(parts)), size, LABELS, sharey=True, sharex=True) as (figure, axes):
        for row, (tuned_on, way) in zip(axes, ways.items(), strict=True):
            test = at_chosen_rates(frame, tuned_on)
            for axis, (name, part) in zip(row, parts.items(), strict=False):
                _curves(axis, part(test))
                axis.set_title(f"{name}\n{way}", fontsize=9)
        if title:
            figure.suptitle(title)
    return figure


def forgetting_classes(frame: pd.DataFrame) -> Figure:
    """Accuracy on each class over time: every column of a map is a step, every row a class.

    First head, one rate for all methods; rows of maps by method, columns by the order in which examples arrive.
    """
    frame = _of_first_head(frame)
    methods = [BASIC[name] for name in BY_CLASS if name in set(_condition(frame)["method"])]
    streams = [s for s in STREAMS if s in set(frame["stream"]) and s != "per_class"]
    size = (3.3 * len(streams) + 0.8, 4.6)
    with drawing(len(methods), len(streams), size, sharex=True, sharey=True) as (figure, axes):
        for stream, column in zip(streams, axes.T, strict=True):
            test = at_chosen_rates(_condition(frame, stream=stream), "same")
            test = test[test["metric"].str.startswith("class_")]
            for axis, (method, values) in zip(column, of_methods(test, methods), strict=True):
                table = 100 * values.pivot(index="metric", columns="step", values="value")
                seen, half = table.columns / len(table), 0.5 / len(table)
                extent = (seen[0] - half, seen[-1] + half, len(table) + 0.5, 0.5)
                picture = axis.imshow(table, aspect="auto", vmin=0, vmax=100, cmap="viridis", extent=extent)
                axis.set_title(f"{method.label}: {STREAMS[stream]}", fontsize=8)
                axis.set(xlabel="examples seen per class", ylabel="class", yticks=range(1, len(table) + 1))
                axis.label_outer()
        figure.colorbar(picture, ax=axes, label="accuracy on the class (%)", shrink=0.8)
    return figure


def _curves(axis: Axes, test: pd.DataFrame, methods: list = METHODS, added: bool = False) -> None:
    n_way = test["step"].min()  # one example of each class comes first
    for method, rows in of_methods(test, methods):
        rows = rows[rows["metric"].isin(["accuracy_mean", "accuracy_low", "accuracy_high"])]
        curves = 100 * rows.pivot(index="step", columns="metric", values="value")
        seen = curves.index - n_way if added else curves.index / n_way
        band = {"color": method.colour, "alpha": 0.2, "linewidth": 0}
        axis.fill_between(seen, curves["accuracy_low"], curves["accuracy_high"], **band)
        axis.plot(seen, curves["accuracy_mean"], color=method.colour, linewidth=1.5, label=method.label)
    axis.set(xlabel="added examples" if added else "examples seen per class")
    axis.set(ylabel="accuracy on unseen drawers (%)", ylim=(0, 100))
    axis.label_outer()


def forgetting_rates(frame: pd.DataFrame) -> Figure:
    """Tuning: validation accuracy by learning rate; rings mark the chosen rates."""
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    with drawing(2, len(heads), (4.4 * len(heads), 6), LABELS, sharey=True, sharex=True) as (figure, axes):
        for row, (tuned_on, when) in zip(axes, VALIDATED.items(), strict=True):
            chosen, tuning = choose_rates(frame, tuned_on), frame[frame["metric"] == f"validation_{tuned_on}"]
            for head, axis in zip(heads, row, strict=True):
                for method, rows in of_methods(tuning[tuning["head"] == head], METHODS):
                    mean = 100 * rows.groupby("learning_rate")["value"].mean()
                    axis.plot(mean, color=method.colour, marker="o", markersize=3, label=method.label)
                    rate = chosen[tuple(rows[list(ForgettingVariant._fields)].iloc[0])]
                    axis.scatter(rate, mean[rate], s=80, facecolor="none", edgecolor=method.colour, linewidth=1.5)
                axis.set(title=f"{HEADS[head]}: {when}", ylim=(0, 103), ylabel="validation accuracy (%)")
                rate_axis(axis)
                axis.label_outer()
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

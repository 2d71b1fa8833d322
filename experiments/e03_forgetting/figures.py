"""Figures of `03_forgetting`."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e03_forgetting.run import ForgettingParameters
from experiments.experiment import Experiment
from experiments.statistics import at_chosen_rates, choose_rates
from experiments.style import COLORS, HEADS, LABELS, STYLE, TUNED_ON, by_method, legend_below, panels, rate_axis

VALIDATED = {"first": "after the first examples", "last": "after the last example"}
STREAMS = {
    "single": "classes take turns",
    "shuffled": "random order",
    "class_ordered": "one class after the other",
    "per_class": "all classes at once",
}


def _condition(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows of one condition; what is not named is as in the first row, which is the experiment's base."""
    for column in ("zero_point", "stream", "epochs"):
        frame = frame[frame[column] == values.get(column, frame[column].iloc[0])]
    return frame


def forgetting(frame: pd.DataFrame) -> Figure:
    """Accuracy while examples arrive, one line per method; rows by what its rate was tuned on, columns by the head.

    Lines are means after every round, bands their 95 % intervals (`stats.bootstrap`).
    """
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    figure, axes = panels(len(TUNED_ON), len(heads), (4.4 * len(heads), 10.6), sharey=True, sharex=True)
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, TUNED_ON, strict=True):
            test = at_chosen_rates(frame, tuned_on)
            for head, axis in zip(heads, row, strict=True):
                _curves(axis, test[test["head"] == head])
                axis.set_title(f"{HEADS[head]}: {TUNED_ON[tuned_on]}", fontsize=9)
        legend_below(figure)
    return figure


def forgetting_added(frame: pd.DataFrame) -> Figure:
    """The paper's form: accuracy over the number of added examples, plain and guided, with and without pretraining.

    Random head, one rate for all methods: the one that is best for plain fine-tuning on the first examples.
    """
    base = frame.iloc[0]
    frame = at_chosen_rates(frame[frame["head"] == frame["head"].iloc[0]], "same")
    frame = frame[(frame["stream"] == base["stream"]) & (frame["epochs"] == base["epochs"])]
    points = {"pretrained": "with pretraining", "random": "without pretraining"}
    points = {point: title for point, title in points.items() if point in set(frame["zero_point"])}
    figure, axes = panels(1, len(points), (4.4 * len(points), 3.6), sharey=True)
    with mpl.rc_context(STYLE):
        for axis, (point, title) in zip(axes[0], points.items(), strict=True):
            of = frame[(frame["zero_point"] == point) & frame["method"].isin(["plain", "scratch", "guided_network"])]
            _curves(axis, of, added=True)
            axis.set_title(f"{title}, {HEADS[base['head']]}")
            axis.legend(loc="lower right" if point == "pretrained" else "upper right")
    return figure


def forgetting_conditions(frame: pd.DataFrame) -> Figure:
    """As `forgetting`, under the other conditions, with the first head; rows by what the rate was tuned on."""
    base = frame.iloc[0]
    frame = frame[(frame["head"] == base["head"]) & (frame["zero_point"] == base["zero_point"])]
    conditions = {STREAMS[s]: {"stream": s} for s in frame["stream"].unique() if s != base["stream"]}
    epochs = [int(e) for e in frame["epochs"].unique() if e != base["epochs"]]
    conditions |= {f"{e} epoch{'s' * (e > 1)} per example": {"epochs": e} for e in epochs}
    figure, axes = panels(2, max(1, len(conditions)), (2.5 * len(conditions) + 0.5, 5.4), sharey=True, sharex=True)
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, ("same", "last"), strict=True):
            test = at_chosen_rates(frame, tuned_on)
            for axis, (title, values) in zip(row, conditions.items(), strict=False):
                _curves(axis, _condition(test, **({"stream": base["stream"], "epochs": base["epochs"]} | values)))
                axis.set_title(f"{title}\n{TUNED_ON_SHORT[tuned_on]}", fontsize=9)
        legend_below(figure)
    return figure


TUNED_ON_SHORT = {"same": "(plain's rate for all)", "last": "(each its best rate)"}


def forgetting_classes(frame: pd.DataFrame) -> Figure:
    """Accuracy on each class over time: every column of a map is a step, every row a class.

    First head, one rate for all methods; rows of maps by method, columns by the order in which examples arrive.
    """
    frame = frame[frame["head"] == frame["head"].iloc[0]]
    methods = ("frozen", "plain", "guided_network")
    streams = [s for s in STREAMS if s in set(frame["stream"]) and s != "per_class"]
    figure, axes = panels(len(methods), len(streams), (3.3 * len(streams) + 0.8, 4.6), sharex=True, sharey=True)
    with mpl.rc_context(STYLE):
        for stream, column in zip(streams, axes.T, strict=True):
            of_stream = at_chosen_rates(_condition(frame, stream=stream), "same")
            for m, axis in zip(methods, column, strict=True):
                of = of_stream[(of_stream["method"] == m) & of_stream["metric"].str.startswith("class_")]
                table = 100 * of.pivot(index="metric", columns="step", values="value")
                seen = table.columns / len(table)
                edges = (seen[0] - 0.5 / len(table), seen[-1] + 0.5 / len(table))
                extent = (*edges, len(table) + 0.5, 0.5)
                picture = axis.imshow(table, aspect="auto", vmin=0, vmax=100, cmap="viridis", extent=extent)
                axis.set(title=f"{LABELS[m]}: {STREAMS[stream]}", yticks=range(1, len(table) + 1))
                axis.title.set_fontsize(8)
                axis.set(xlabel="examples seen per class", ylabel="class")
                axis.label_outer()
        figure.colorbar(picture, ax=axes, label="accuracy on the class (%)", shrink=0.8)
    return figure


def _curves(axis: Axes, test: pd.DataFrame, added: bool = False) -> None:
    n_way = test["step"].min()  # one example of each class comes first
    for m, of in by_method(test):
        of = of[of["metric"].isin([f"accuracy_{part}" for part in ("mean", "low", "high")])]
        curves = 100 * of.pivot(index="step", columns="metric", values="value")
        seen = curves.index - n_way if added else curves.index / n_way
        band = {"color": COLORS[m], "alpha": 0.2, "linewidth": 0}
        axis.fill_between(seen, curves["accuracy_low"], curves["accuracy_high"], **band)
        axis.plot(seen, curves["accuracy_mean"], color=COLORS[m], linewidth=1.5, label=LABELS[m])
    axis.set_ylim(0, 100)
    axis.set(xlabel="added examples" if added else "examples seen per class")
    axis.set(ylabel="accuracy on unseen drawers (%)")
    axis.label_outer()


def forgetting_rates(frame: pd.DataFrame) -> Figure:
    """Tuning: validation accuracy by learning rate; rings mark the chosen rates."""
    frame = _condition(frame)
    heads = [h for h in HEADS if h in set(frame["head"])]
    figure, axes = panels(2, len(heads), (4.4 * len(heads), 6), sharey=True, sharex=True)
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, VALIDATED, strict=True):
            chosen = choose_rates(frame, tuned_on)
            tuning = frame[frame["metric"] == f"validation_{tuned_on}"]
            for head, axis in zip(heads, row, strict=True):
                for m, of in by_method(tuning[tuning["head"] == head]):
                    mean = 100 * of.groupby("learning_rate")["value"].mean()
                    axis.plot(mean.index, mean, color=COLORS[m], marker="o", markersize=3, label=LABELS[m])
                    rate = chosen[(of["zero_point"].iloc[0], head, of["stream"].iloc[0], of["epochs"].iloc[0], m)]
                    axis.scatter(rate, mean[rate], s=80, facecolor="none", edgecolor=COLORS[m], linewidth=1.5)
                axis.set(title=f"{HEADS[head]}: {VALIDATED[tuned_on]}", ylim=(0, 103), ylabel="validation accuracy (%)")
                rate_axis(axis)
                axis.label_outer()
        legend_below(figure)
    return figure


EXPERIMENT = Experiment(
    "forgetting",
    "03_forgetting",
    ForgettingParameters,
    {
        "forgetting": forgetting,
        "forgetting_added": forgetting_added,
        "forgetting_classes": forgetting_classes,
        "forgetting_conditions": forgetting_conditions,
        "forgetting_rates": forgetting_rates,
    },
)

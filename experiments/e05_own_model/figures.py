"""Figure of `05_your_own_model`."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e05_own_model.run import OwnModelParameters
from experiments.experiment import Experiment
from experiments.statistics import at_chosen_rates, bootstrap, by_seed_and_task
from experiments.style import COLORS, LABELS, STYLE, legend_below, panels

# Guided is one method and has one colour; the three kinds of scouts differ by marker and line.
LOOKS = {
    "frozen": (LABELS["frozen"], COLORS["frozen"], "o", "-"),
    "plain": (LABELS["plain"], COLORS["plain"], "o", "-"),
    "guided_classes": ("guided, scouts: class subsets", COLORS["guided"], "o", "-"),
    "guided_indices": ("guided, scouts: index lists", COLORS["guided"], "s", "--"),
    "guided_losses": ("guided, scouts: losses without labels", COLORS["guided"], "^", ":"),
}


def own_model(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals; the tuning record; what each kind of scouts found out about the network."""
    figure, axes = panels(1, 3, (12, 3.9), width_ratios=(1, 1.1, 1.1))
    with mpl.rc_context(STYLE):
        _accuracy(axes[0, 0], frame)
        _rates(axes[0, 1], frame)
        _guides(axes[0, 2], frame)
        legend_below(figure)
    return figure


def _accuracy(axis: Axes, frame: pd.DataFrame) -> None:
    test = at_chosen_rates(frame, "first")
    for y, (method, (label, color, marker, _)) in enumerate(LOOKS.items()):
        of = test[(test["method"] == method) & (test["metric"] == "accuracy")]
        estimate = bootstrap(100 * by_seed_and_task(of))
        axis.hlines(y, estimate.low, estimate.high, color=color, linewidth=2)
        axis.plot(estimate.mean, y, marker, color=color, label=label)
    axis.set(
        title="test episodes, each at its best rate", xlabel="accuracy (%)", ylim=(len(LOOKS) - 0.5, -0.5), yticks=[]
    )


def _rates(axis: Axes, frame: pd.DataFrame) -> None:
    tuning = frame[frame["metric"] == "validation_first"]
    for method, (_, color, marker, line) in LOOKS.items():
        means = 100 * tuning[tuning["method"] == method].groupby("learning_rate")["value"].mean()
        axis.plot(means.index, means, marker + line, color=color, markersize=5)
    rates = sorted(tuning["learning_rate"].unique())
    axis.set(title="tuning episodes", xlabel="learning rate", ylabel="accuracy (%)", xscale="log")
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.set_xticks([], minor=True)


def _guides(axis: Axes, frame: pd.DataFrame) -> None:
    guides = frame[frame["metric"].str.startswith("guide_")]
    parts = list(dict.fromkeys(guides["metric"]))
    for method, (_, color, marker, line) in LOOKS.items():
        of = guides[guides["method"] == method]
        if len(of):
            means = of.groupby("metric")["value"].mean()[parts]
            axis.plot([part.removeprefix("guide_") for part in parts], means, marker + line, color=color, markersize=5)
    axis.set(title="the guides", xlabel="part of the network", ylabel="mean g", yscale="log")


EXPERIMENT = Experiment(
    "own_model",
    "05_your_own_model",
    OwnModelParameters,
    {"own_model": own_model},
)

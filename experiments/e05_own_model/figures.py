"""Figure of `05_your_own_model`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e05_own_model.run import BY_SCOUTS, METHODS, OwnModelParameters, verdicts
from experiments.experiment import Experiment
from experiments.methods import FROZEN, PLAIN
from experiments.statistics import at_chosen_rates, by_seed_and_task, mean_interval, tally
from experiments.style import drawing, headline, of_methods

# Guided is one method and has one colour; the kinds of scouts differ by marker and line.
FORMATS = dict.fromkeys(METHODS, "o-") | dict(zip((m.name for m in BY_SCOUTS), ("o-", "s--", "^:"), strict=True))


def own_model(frame: pd.DataFrame) -> Figure:
    """Test accuracy with 95 % intervals; the tuning record; what each kind of scouts found out about the network."""
    labels = [method.label for method in METHODS.values()]
    with drawing(1, 3, 3.2, labels, width_ratios=(1, 1.1, 1.1)) as (figure, axes):
        _accuracy(axes[0, 0], frame)
        _rates(axes[0, 1], frame)
        _guides(axes[0, 2], frame)
        table = verdicts(frame).set_index("comparison").filter(like="guided", axis=0)
        ours = (
            f"minus {m.label} {tally(table.filter(like=f'- {m.name}', axis=0)['side'], 'kinds of scouts')}"
            for m in (PLAIN, FROZEN)
        )
        headline(
            figure,
            f"Guided, {'; '.join(ours)}",
            f"{table['n'].iloc[0]}; bars: 95 % intervals; g: means over a part of the network.",
        )
    return figure


def _accuracy(axis: Axes, frame: pd.DataFrame) -> None:
    test = at_chosen_rates(frame, "first")
    for y, (method, rows) in enumerate(of_methods(test[test["metric"] == "accuracy"], METHODS.values())):
        estimate = mean_interval(100 * by_seed_and_task(rows))
        axis.hlines(y, estimate.low, estimate.high, color=method.colour, linewidth=2)
        axis.plot(estimate.mean, y, FORMATS[method.name][0], color=method.colour, label=method.label)
    axis.set(title="test episodes,\neach at its best rate", xlabel="accuracy (%)", ylim=(y + 0.5, -0.5), yticks=[])


def _rates(axis: Axes, frame: pd.DataFrame) -> None:
    tuning = frame[frame["metric"] == "validation_first"]
    for method, rows in of_methods(tuning, METHODS.values()):
        means = 100 * rows.groupby("learning_rate")["value"].mean()
        axis.plot(means.index, means, FORMATS[method.name], color=method.colour, markersize=5)
    rates = sorted(tuning["learning_rate"].unique())
    axis.set(title="tuning episodes", xlabel="learning rate", ylabel="accuracy (%)", xscale="log")
    axis.set_xticks(rates[::2], [f"{rate:g}" for rate in rates[::2]])
    axis.set_xticks([], minor=True)


def _guides(axis: Axes, frame: pd.DataFrame) -> None:
    guides = frame[frame["metric"].str.startswith("guide_")]
    parts = list(dict.fromkeys(guides["metric"]))
    for method, rows in of_methods(guides, METHODS.values()):
        means = rows.groupby("metric")["value"].mean()[parts]
        names = [part.removeprefix("guide_") for part in parts]
        axis.plot(names, means, FORMATS[method.name], color=method.colour, markersize=5)
    axis.set(title="the guides", xlabel="part of the network", ylabel="mean g", yscale="log")


EXPERIMENT = Experiment("own_model", "05_your_own_model", OwnModelParameters, {"own_model": own_model})

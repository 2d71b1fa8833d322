"""Figures of `10_paper_setting`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e10_paper_setting.methods import METHODS
from experiments.e10_paper_setting.parameters import CORE, SCOUTS, TASK, PaperSettingParameters
from experiments.e10_paper_setting.verdicts import guided_minus_plain
from experiments.experiment import Experiment
from experiments.methods import GUIDED, NETWORK, PLAIN
from experiments.statistics import alike, by_seed_and_task, mean_interval, scouted_alike
from experiments.style import drawing, n_networks, of_methods, rate_axis

RATES = {"one": "one rate for body and head", "apart": "a rate for each"}
LABELS = [method.label for method in METHODS.values()]
AXES = {"n_images": "digits for pretraining", "scout_ways": "digits of a scout", "n_way": "characters"}
OPTIMIZERS = {"sgd": "#0072B2", "momentum": "#56B4E9", "adam": "#D55E00", "adamw": "#E69F00"}
REPORTED = 25  # per cent: where the curve with guidance ends in the paper's figure


def _under_first(frame: pd.DataFrame, *but: str) -> pd.DataFrame:
    """The rows under the first condition, whatever the columns ``but`` say."""
    frame = alike(frame, *(column for column in TASK if column not in but))
    guided = frame[frame["method"] == NETWORK.name].iloc[0]
    return scouted_alike(frame, guided, [column for column in SCOUTS if column not in but])


def paper_curves(frame: pd.DataFrame) -> Figure:
    """The paper's figure: accuracy over steps, with and without the guide; at one rate, and each at its best.

    Means over networks and sets of characters; bands are 95 % intervals.
    """
    curves = _under_first(frame)
    curves = curves[(curves["metric"] == "accuracy_curve") & (curves["rates"] == "one")]
    guided_rate = curves.loc[curves["method"] == NETWORK.name, "learning_rate"].iloc[0]
    plain = curves[curves["method"] == PLAIN.name]
    rates = plain["learning_rate"].unique()
    own = next((rate for rate in rates if rate != guided_rate), guided_rate)
    titles = {f"both at the rate {guided_rate:g}": guided_rate, f"each at its best rate (plain: {own:g})": own}
    with drawing(1, 2, (8.4, 3.8), LABELS, sharey=True) as (figure, axes):
        for axis, (title, rate) in zip(axes[0], titles.items(), strict=True):
            shown = curves[(curves["method"] != PLAIN.name) | (curves["learning_rate"] == rate)]
            for method, rows in of_methods(shown, [METHODS[name] for name in CORE]):
                _curve(axis, rows, "step", method.colour, method.label)
            axis.axhline(REPORTED, color="#999999", linewidth=0.8, linestyle=":", label="reported by the paper, guided")
            axis.set(
                title=title, xlabel="steps", ylabel="accuracy on unseen drawings (%)", xscale="log", ylim=(0, None)
            )
            axis.label_outer()
    return figure


def _curve(axis: Axes, rows: pd.DataFrame, along_column: str, color: str, label: str) -> None:
    """Mean over networks with its 95 % interval; each network has one value at each point."""
    table = 100 * rows.pivot(index="seed", columns=along_column, values="value")
    estimate = mean_interval(table.to_numpy()[:, None])
    axis.fill_between(table.columns, estimate.low, estimate.high, color=color, alpha=0.2, linewidth=0)
    axis.plot(table.columns, estimate.mean, "o-", color=color, markersize=3, label=label)


def paper_methods(frame: pd.DataFrame) -> Figure:
    """Every method under the first condition, best first, with 95 % intervals: with one rate, and with rates apart."""
    accuracy = _under_first(frame[frame["metric"] == "accuracy"])
    n_methods = accuracy["method"].nunique()
    with drawing(1, 2, (10, 0.27 * n_methods + 1.4), (), sharex=True) as (figure, axes):
        for axis, (rates, title) in zip(axes[0], RATES.items(), strict=True):
            both = [m for m, method in METHODS.items() if rates == "one" or method.one_rate]
            here = accuracy[(accuracy["rates"] == rates) | accuracy["method"].isin(both) & (accuracy["rates"] == "one")]
            found = [(m, mean_interval(100 * by_seed_and_task(rows))) for m, rows in of_methods(here, METHODS.values())]
            found.sort(key=lambda pair: pair[1].mean, reverse=True)
            for y, (method, estimate) in enumerate(found):
                axis.hlines(y, estimate.low, estimate.high, color=method.family.colour, linewidth=2)
                dot = {"color": method.family.colour, "markersize": 4.5, "label": method.family.label}
                axis.plot(estimate.mean, y, "o", **dot)
            axis.set_yticks(range(len(found)), [method.label for method, _ in found])
            axis.set(title=title, xlabel=f"accuracy (%), 95 %, {n_networks(accuracy)}", ylim=(len(found) - 0.5, -0.5))
            axis.grid(axis="y", color="#EEEEEE")
    return figure


def paper_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy on the tuning sets over the body's rate, after the steps that suit each rate best; bands: 95 %."""
    tuning = _under_first(frame[frame["metric"] == "validation"])
    shown = [METHODS[name] for name in (PLAIN.name, NETWORK.name, "guided_tensor", "shuffled", "uniform", "binary")]
    with drawing(1, 2, (9, 3.9), LABELS, sharey=True) as (figure, axes):
        probe = 100 * tuning[tuning["method"] == "frozen"].groupby("head_rate")["value"].mean().max()
        for axis, (rates, title) in zip(axes[0], RATES.items(), strict=True):
            for method, rows in of_methods(tuning[tuning["rates"] == rates], shown):
                _curve(axis, rows, "learning_rate", method.colour, method.label)
            line = {"color": METHODS["frozen"].colour, "linestyle": "--", "label": "linear probe at its best"}
            axis.axhline(probe, linewidth=1.2, **line)
            axis.set(title=title, ylabel="accuracy on tuning sets (%)")
            rate_axis(axis)
            axis.label_outer()
    return figure


def paper_guides(frame: pd.DataFrame) -> Figure:
    """Which share of the guide's values is above g, by the optimizer of the scouts."""
    shares = _under_first(frame[frame["metric"] == "share_above"], "scouts", "optimizer")
    shares = shares[shares["method"] == NETWORK.name].drop_duplicates(["scouts", "step"])
    with drawing(1, 1, (5.2, 3.6)) as (figure, axes):
        for name, rows in shares.groupby("scouts", sort=False):
            axes[0, 0].plot(
                10 ** rows["step"], 100 * rows["value"], "o-", color=OPTIMIZERS[name], markersize=3, label=name
            )
        axes[0, 0].set(xscale="log", xlabel="g", ylabel="share of the guide's values above g (%)")
        axes[0, 0].legend(title="scouts trained by")
    return figure


def paper_conditions(frame: pd.DataFrame) -> Figure:
    """Guided minus plain, rates apart, over what the re-run varied; bars: 95 % intervals."""
    varied = [axis for axis in AXES if frame[axis].nunique() > (2 if axis == "scout_ways" else 1)]
    with drawing(1, max(1, len(varied)), (3.4 * max(1, len(varied)), 3.6), (), sharey=True) as (figure, axes):
        for axis, column in zip(axes[0], varied, strict=False):
            table = guided_minus_plain(frame, column).sort_values(column)
            x = np.arange(len(table))
            axis.vlines(x, 100 * table["low"], 100 * table["high"], color=GUIDED.colour, linewidth=2)
            axis.plot(x, 100 * table["mean"], "o", color=GUIDED.colour, markersize=5)
            axis.set_xticks(x, [f"{value:,}" for value in table[column]])
            axis.axhline(0, color="#999999", linewidth=0.8)
            axis.set(xlabel=AXES[column], ylabel="guided minus plain (points)")
            axis.label_outer()
    return figure


FIGURES = (paper_curves, paper_methods, paper_rates, paper_guides, paper_conditions)
EXPERIMENT = Experiment(
    "paper_setting", "10_paper_setting", PaperSettingParameters, {draw.__name__: draw for draw in FIGURES}
)

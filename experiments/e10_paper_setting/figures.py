"""Figures of `10_paper_setting`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e10_paper_setting.methods import METHODS
from experiments.e10_paper_setting.parameters import CORE, SCOUTS, TASK, PaperSettingParameters
from experiments.e10_paper_setting.verdicts import comparisons, over_conditions
from experiments.experiment import Experiment
from experiments.methods import GUIDED, NETWORK, PLAIN
from experiments.optimizers import LABELS as OPTIMIZER_LABELS
from experiments.statistics import alike, by_seed_and_task, mean_interval, rows_where, scouted_alike, tally
from experiments.style import Ranked, drawing, forest, headline, n_networks, of_methods, rate_axis

RATES = {"one": "one rate for body and head", "apart": "a rate for each"}
LABELS = [method.label for method in METHODS.values()]
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
    with drawing(1, 2, 3.5, LABELS, sharey=True) as (figure, axes):
        for axis, (title, rate) in zip(axes[0], titles.items(), strict=True):
            shown = curves[(curves["method"] != PLAIN.name) | (curves["learning_rate"] == rate)]
            for method, rows in of_methods(shown, [METHODS[name] for name in CORE]):
                _curve(axis, rows, "step", method.colour, method.label)
            axis.axhline(REPORTED, color="#999999", linewidth=0.8, linestyle=":", label="reported by the paper, guided")
            axis.set(
                title=title, xlabel="steps", ylabel="accuracy on unseen drawings (%)", xscale="log", ylim=(0, None)
            )
            axis.label_outer()
        last = curves[curves["step"] == curves["step"].max()]
        last = 100 * last.groupby(["method", "learning_rate"])["value"].mean()
        ends = [
            f"{last[method, rate]:.1f} %"
            for method, rate in ((NETWORK.name, guided_rate), (PLAIN.name, guided_rate), (PLAIN.name, own))
        ]
        message = (
            f"Guided ends at {ends[0]} (the paper: about {REPORTED} %), plain fine-tuning at {ends[1]} with the same \
rate and at {ends[2]} with its own"
        )
        headline(
            figure,
            message,
            f"{_n(frame)}, {frame['n_way'].iloc[0]} classes with one example each; bands: 95 % intervals.",
        )
    return figure


def _n(frame: pd.DataFrame) -> str:
    """Of networks and sets of characters, in words."""
    tests = frame[frame["metric"] == "accuracy"]
    return f"{n_networks(tests)} x {tests['task'].nunique()} sets of characters"


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
    with drawing(1, 2, 0.21 * n_methods + 1.0, (), sharex=True) as (figure, axes):
        for axis, (rates, title) in zip(axes[0], RATES.items(), strict=True):
            both = [m for m, method in METHODS.items() if rates == "one" or method.one_rate]
            here = accuracy[(accuracy["rates"] == rates) | accuracy["method"].isin(both) & (accuracy["rates"] == "one")]
            found = [(m, mean_interval(100 * by_seed_and_task(rows))) for m, rows in of_methods(here, METHODS.values())]
            found.sort(key=lambda pair: pair[1].mean, reverse=True)
            forest(axis, [Ranked(m.label, m.family.colour, m.family.label, e.mean, e.low, e.high) for m, e in found])
            axis.set(title=title, xlabel="accuracy (%)")
        table = comparisons(frame)
        table = alike(table, *TASK, *SCOUTS)
        said = (
            f"with {title} {tally(rows_where(table, rates=rates)['side'], 'methods')}" for rates, title in RATES.items()
        )
        headline(figure, f"Guided against the others: {'; '.join(said)}", f"{_n(frame)}; bars: 95 % intervals.")
    return figure


def paper_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy on the tuning sets over the body's rate, after the steps that suit each rate best; bands: 95 %."""
    tuning = _under_first(frame[frame["metric"] == "validation"])
    shown = [METHODS[name] for name in (PLAIN.name, NETWORK.name, "guided_tensor", "shuffled", "uniform", "binary")]
    with drawing(1, 2, 3.6, LABELS, sharey=True) as (figure, axes):
        probe = 100 * tuning[tuning["method"] == "frozen"].groupby("head_rate")["value"].mean().max()
        for axis, (rates, title) in zip(axes[0], RATES.items(), strict=True):
            for method, rows in of_methods(tuning[tuning["rates"] == rates], shown):
                _curve(axis, rows, "learning_rate", method.colour, method.label)
            line = {"color": METHODS["frozen"].colour, "linestyle": "--", "label": "linear probe at its best"}
            axis.axhline(probe, linewidth=1.2, **line)
            axis.set(title=title, ylabel="accuracy on tuning sets (%)")
            rate_axis(axis)
            axis.label_outer()
        ours = tuning[(tuning["method"] == PLAIN.name) & (tuning["rates"] == "apart")]
        plain = 100 * ours.groupby("learning_rate")["value"].mean()
        low = plain.iloc[0]
        message = (
            f"At the body's lowest rate plain fine-tuning has {low:.1f} %, the linear probe {probe:.1f} %: the rates \
reach down {'' if abs(low - probe) < 1 else 'not '}far enough"
        )
        headline(
            figure,
            message,
            f"{n_networks(tuning)}; a rate's accuracy is that after the steps that suit it best; bands: 95 %.",
        )
    return figure


def paper_guides(frame: pd.DataFrame) -> Figure:
    """Which share of the guide's values is above g, by the optimizer of the scouts."""
    shares = _under_first(frame[frame["metric"] == "share_above"], "scouts", "optimizer")
    shares = shares[shares["method"] == NETWORK.name].drop_duplicates(["scouts", "step"])
    with drawing(1, 1, 2.8) as (figure, axes):
        for name, rows in shares.groupby("scouts", sort=False):
            axes[0, 0].plot(
                10 ** rows["step"],
                100 * rows["value"],
                "o-",
                color=OPTIMIZERS[name],
                markersize=3,
                label=OPTIMIZER_LABELS[name],
            )
        axes[0, 0].set(xscale="log", xlabel="g", ylabel="share of the guide's values above g (%)")
        axes[0, 0].legend(title="scouts trained by")
        above = shares[shares["step"] == -2].groupby("scouts")["value"].mean()
        said = ", ".join(f"{OPTIMIZER_LABELS[name]} {100 * share:.0f} %" for name, share in above.items())
        headline(
            figure,
            f"The scouts' optimizer writes the guide: of its values are above 0.01, with {said}",
            "One guide per optimizer, of the first network (network scope).",
        )
    return figure


def paper_conditions(frame: pd.DataFrame) -> Figure:
    """Guided minus plain, rates apart, under every condition; bars: 95 % intervals."""
    table = over_conditions(frame)
    shown = table[["condition", "mean", "low", "high"]].itertuples(index=False)
    rows = [Ranked(name, GUIDED.colour, "", *(100 * share for share in shares)) for name, *shares in shown]
    with drawing(1, 1, 0.21 * len(table) + 0.8, ()) as (figure, axes):
        forest(axes[0, 0], rows)
        axes[0, 0].axvline(0, color="#999999", linewidth=0.8)
        axes[0, 0].set(xlabel="guided minus plain (points)")
        message = f"Guided minus plain fine-tuning, a rate for each: {tally(table['side'], 'conditions')}"
        headline(figure, message, f"{_n(frame)}; bars: 95 % intervals; else as in the first condition.")
    return figure


FIGURES = (paper_curves, paper_methods, paper_rates, paper_guides, paper_conditions)
EXPERIMENT = Experiment(
    "paper_setting", "10_paper_setting", PaperSettingParameters, {draw.__name__: draw for draw in FIGURES}
)

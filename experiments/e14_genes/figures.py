"""Figures of `14_genes`."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from experiments.e14_genes.methods import METHODS
from experiments.e14_genes.run import GenesParameters
from experiments.e14_genes.verdicts import guided_minus_rivals, ranking
from experiments.experiment import Experiment
from experiments.methods import CONTROL, GUIDED, PLAIN
from experiments.optimizers import LABELS
from experiments.statistics import NONE, mean_interval, rows_where, scouted_alike, tally
from experiments.style import Ranked, drawing, forest, headline, of_methods

ZERO_POINTS = {"types": "pretrained on other types", "masked": "pretrained on hidden genes", "random": "from scratch"}
SCOUTS = {"pairs": "scouts on pairs of types", "clusters": "scouts on clusters"}


def genes(frame: pd.DataFrame) -> Figure:
    """Telling two unseen types of cells apart: every method at its best in tuning, for each number of cells."""
    table = ranking(frame)
    shots = sorted(table["n_shot"].unique())
    order = table.groupby("method")["accuracy"].mean().sort_values(ascending=False).index
    with drawing(1, len(shots), 0.22 * len(order) + 1.0, (), sharey=True) as (figure, axes):
        for axis, n_shot in zip(axes[0], shots, strict=True):
            for row in table[table["n_shot"] == n_shot].itertuples():
                y, family = order.get_loc(row.method), METHODS[row.method].family
                mean, low, high = (100 * value for value in (row.accuracy, row.accuracy_low, row.accuracy_high))
                axis.hlines(y, max(low, 0), min(high, 100), color=family.colour, linewidth=2)
                axis.plot(mean, y, "o", color=family.colour, markersize=4.5, label=family.label)
            axis.set(title=f"{_few(n_shot)} of each type", xlabel="balanced accuracy (%)")
            axis.grid(axis="y", color="#EEEEEE")
        axes[0, 0].set_yticks(range(len(order)), [METHODS[name].label for name in order])
        axes[0, 0].set_ylim(len(order) - 0.4, -0.6)
        first = table.groupby("n_shot").first()["method"]
        said = ", ".join(f"{METHODS[name].label} with {n}" for n, name in first.items())
        note = "; bars: 95 % intervals. Zero point, scouts and optimizer of each as in tuning was best."
        headline(figure, f"Best at telling unseen cells apart: {said}", _n(frame) + note)
    return figure


def genes_differences(frame: pd.DataFrame) -> Figure:
    """Guided minus plain fine-tuning, and minus the control that keeps only the guide's mean, under every condition."""
    table = guided_minus_rivals(frame)
    rivals = {PLAIN.name: GUIDED.colour, "uniform": CONTROL.colour}
    n_conditions = len(table[table["rival"] == PLAIN.name])
    with drawing(1, 2, 0.19 * n_conditions + 0.9, sharey=True) as (figure, axes):
        said = []
        for axis, (rival, colour) in zip(axes[0], rivals.items(), strict=True):
            mine, rows = table[table["rival"] == rival], []
            for row in mine.itertuples():
                values = (100 * v for v in (row.mean, row.low, row.high))
                rows.append(Ranked(_in_words(row), colour, "", *values))
            forest(axis, rows)
            axis.axvline(0, color="#999999", linewidth=0.8)
            axis.set(title=f"minus {METHODS[rival].label}", xlabel="points of balanced accuracy")
            said.append(f"minus {METHODS[rival].label.removesuffix(': the mean')} {tally(mine['side'], 'conditions')}")
        headline(figure, f"Guided {'; '.join(said)}", f"{_n(frame)}; bars: 95 % intervals; each at its own best rate.")
    return figure


def genes_rates(frame: pd.DataFrame) -> Figure:
    """Balanced accuracy on the types for tuning, over the body's rate, for each zero point; bands: 95 % intervals."""
    tuning = frame[frame["metric"] == "validation"]
    first = tuning[tuning["scouts"] != NONE].iloc[0]
    tuning = scouted_alike(rows_where(tuning, optimizer=first["optimizer"], n_shot=first["n_shot"]), first)
    shown = [METHODS[name] for name in (PLAIN.name, "l2_sp", "guided_network", "guided_tensor", "uniform")]
    points = [name for name in ZERO_POINTS if name in set(tuning["zero_point"])]
    with drawing(1, len(points), 3.2, [m.label for m in METHODS.values()], sharey=True) as (figure, axes):
        for axis, zero_point in zip(axes[0], points, strict=True):
            here = tuning[tuning["zero_point"] == zero_point]
            for method, rows in of_methods(here, shown):
                values = 100 * rows.pivot(index="seed", columns="learning_rate", values="value")
                e = mean_interval(values.to_numpy()[:, None])
                axis.fill_between(values.columns, e.low, e.high, color=method.colour, alpha=0.15, linewidth=0)
                axis.plot(values.columns, e.mean, "o-", color=method.colour, markersize=3, label=method.label)
            probe = 100 * here[here["method"] == "frozen"].groupby("head_rate")["value"].mean().max()
            axis.axhline(probe, color=METHODS["frozen"].colour, linestyle="--", label=METHODS["frozen"].label)
            axis.set(title=ZERO_POINTS[zero_point], xscale="log", xlabel="learning rate of the body")
        axes[0, 0].set_ylabel("balanced accuracy (%)")
        lowest = tuning[tuning["learning_rate"] > 0]["learning_rate"].min()
        ours = rows_where(tuning, method=PLAIN.name, learning_rate=lowest, zero_point=points[0])
        probes = rows_where(tuning, method="frozen", zero_point=points[0]).groupby("head_rate")["value"].mean()
        message = (
            f"At the body's lowest rate plain fine-tuning has {100 * ours['value'].mean():.1f} %, the linear probe "
            f"{100 * probes.max():.1f} % ({ZERO_POINTS[points[0]]})"
        )
        note = f"{_few(first['n_shot'])} of each type, {LABELS[first['optimizer']]}, the head at the probe's rate. "
        headline(figure, message, f"{note}{_n(frame)}; bands: 95 % intervals.")
    return figure


def _n(frame: pd.DataFrame) -> str:
    tests = frame[frame["metric"] == "accuracy"]
    return f"{tests['seed'].nunique()} splits of the types x {tests['task'].nunique()} draws of the cells"


def _in_words(row) -> str:
    return f"{ZERO_POINTS[row.zero_point]}, {SCOUTS[row.scouts]}, {LABELS[row.optimizer]}, {_few(row.n_shot)}"


def _few(n_shot: int) -> str:
    return "1 cell" if n_shot == 1 else f"{n_shot} cells"


FIGURES = (genes, genes_differences, genes_rates)
EXPERIMENT = Experiment("genes", "14_genes", GenesParameters, {draw.__name__: draw for draw in FIGURES})

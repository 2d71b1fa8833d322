"""Figures of `11_authors_code`."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.e11_authors_code.library import METHODS
from experiments.e11_authors_code.run import AuthorsParameters, claim_table, relearning_table, xor_table
from experiments.experiment import Experiment
from experiments.statistics import by_seed_and_task, mean_interval, wilson
from experiments.style import drawing, headline, of_methods, rate_axis

LEGEND = [method.label for method in METHODS.values()]
MEASURES = {"part": "the part's four classes", "others": "the other six classes"}


def authors_patterns(frame: pd.DataFrame) -> Figure:
    """Accuracy while a part is learned again, on its classes and on the others; and one against the other, by rate."""
    here = frame[frame["experiment"] == "patterns"]
    tests = here[here["tuned_on"] == "fast"]
    n = f"n = {tests['seed'].nunique()} networks x {tests['task'].nunique()} parts; bands: 95 % intervals"
    with drawing(1, 3, 3.5, LEGEND, sharey=True) as (figure, ((*curves, front),)):
        for axis, (metric, title) in zip(curves, MEASURES.items(), strict=True):
            for method, rows in of_methods(tests[tests["metric"] == metric], METHODS.values()):
                e, epochs = mean_interval(by_seed_and_task(rows, "step")), np.sort(rows["step"].unique())
                axis.plot(epochs, 100 * e.mean, color=method.colour, marker="o", markersize=3, label=method.label)
                axis.fill_between(epochs, 100 * e.low, 100 * e.high, color=method.colour, alpha=0.15, linewidth=0)
            axis.set(title=title, xscale="symlog", xlim=(0, None), xlabel="epochs on the part")
        for method, rows in of_methods(here, METHODS.values()):
            rows = rows[rows["metric"].isin(["validation_end", "validation_others"])]
            by_rate = 100 * rows.pivot_table(index="learning_rate", columns="metric", values="value")
            line = {"color": method.colour, "marker": "o", "markersize": 3, "label": method.label}
            front.plot(by_rate["validation_end"], by_rate["validation_others"], **line)
        front.set(title="at the end, every rate", xlabel="the part (%)", ylim=(-2, 102))
        curves[0].set_ylabel("accuracy (%)")
        table = relearning_table(frame).set_index(["method", "measure"])["text"]
        part, others = (table["guided_network", f"{what}, at the end"] for what in ("part", "others"))
        message = f"Guided minus plain on the part that is learned again: {part}; on the other classes: {others}"
        headline(figure, message, f"Four of ten memorised classes; {n}")
    return figure


def authors_xor(frame: pd.DataFrame) -> Figure:
    """What is left of the budget when tuning inits are solved, by rate; the share of test inits solved, by when."""
    here = frame[frame["experiment"] == "xor"]
    times = here[here["metric"] == "time"]
    n, moments = times["seed"].nunique(), np.arange(1, times["value"].fillna(0).max() + 2)
    with drawing(1, 2, 3.4, LEGEND) as (figure, ((tuning, testing),)):
        for method, tests in of_methods(times, METHODS.values()):
            line = {"color": method.colour, "label": method.label}
            mine = here[(here["method"] == method.name) & (here["metric"] == "validation")]
            by_rate = 100 * mine.set_index("learning_rate")["value"]
            if method.has_rate:
                tuning.plot(by_rate.index, by_rate, marker="o", markersize=3, **line)
                chosen, ring = tests["learning_rate"].iloc[0], {"facecolor": "none", "edgecolor": method.colour}
                tuning.scatter(chosen, by_rate[chosen], s=80, **ring)
            solved = [int((tests["value"] <= moment).sum()) for moment in moments]
            low, high = 100 * np.array([wilson(k, n) for k in solved]).T
            testing.plot(moments, 100 * np.array(solved) / n, **line)
            testing.fill_between(moments, low, high, color=method.colour, alpha=0.15, linewidth=0)
        tuning.set(title="tuning inits", ylabel="budget left when solved (%)")
        rate_axis(tuning)
        testing.set(title=f"test inits, n = {n}", xlabel="steps, scouting included", ylabel="solved so far (%)")
        table = xor_table(frame, int(moments[-1])).set_index("method")["solved"]
        said = ", ".join(f"{m.label} {100 * table[m.name]:.0f} %" for m in METHODS.values() if m.name in table)
        headline(
            figure,
            f"XOR after (OR, AND), solved within the budget: {said}",
            f"{n} inits; rings: rates chosen; bands: 95 % Wilson intervals.",
        )
    return figure


def authors_width(frame: pd.DataFrame) -> Figure:
    """Share of the patterns that networks of several widths memorise, a panel per depth, with and without guidance."""
    here = frame[(frame["experiment"] == "width") & (frame["metric"] == "accuracy")]
    depths = list(dict.fromkeys(here["depth"]))
    with drawing(1, len(depths), 3.1, LEGEND, sharey=True, sharex=True) as (figure, axes):
        for axis, depth in zip(axes[0], depths, strict=True):
            for method, curves in of_methods(here[here["depth"] == depth], METHODS.values()):
                e, widths = mean_interval(by_seed_and_task(curves, "width")), np.sort(curves["width"].unique())
                axis.plot(widths, 100 * e.mean, color=method.colour, marker="o", markersize=3, label=method.label)
                axis.fill_between(widths, 100 * e.low, 100 * e.high, color=method.colour, alpha=0.15, linewidth=0)
            axis.set_xscale("log", base=2)
            axis.set_xticks(widths, [f"{width:.0f}" for width in widths])
            layers = "layer" if depth == 1 else "layers"
            axis.set(title=f"{depth:.0f} hidden {layers}", xlabel="width", ylim=(0, 102))
        axes[0, 0].set_ylabel("patterns memorised (%)")
        claim = claim_table(frame).set_index("method").drop("plain")
        said = "; ".join(f"{METHODS[name].label} {row['text']}" for name, row in claim.iterrows())
        message = f"Share of the patterns that a network memorises, minus plain training of the same size: {said}"
        headline(
            figure,
            message,
            f"{claim['n'].iloc[0]}, scouts paid for, where plain does not know nearly all; bands: 95 % intervals.",
        )
    return figure


FIGURES = (authors_patterns, authors_xor, authors_width)
EXPERIMENT = Experiment("authors_code", "11_authors_code", AuthorsParameters, {draw.__name__: draw for draw in FIGURES})

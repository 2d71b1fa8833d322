"""Figure of `07_forgetting_neighbours`."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from experiments.e07_forgetting_neighbours.run import ForgettingNeighboursParameters
from experiments.experiment import Experiment
from experiments.ranking import sides
from experiments.stream_methods import METHODS, guides, ranking
from experiments.style import Ranked, drawing, forest, headline, of_methods

SHOWN = ("frozen", "plain", "guided_network", "ewc", "replay")  # the curves: one method of a kind
NO_LABEL = "_"  # of what the axis names, the legend need not


def forgetting_neighbours(frame: pd.DataFrame) -> Figure:
    """Left: every method minus guided at the end of the stream, with 95 % intervals, and what it stores beside the
    network. Right: accuracy while examples arrive, of some."""
    table = ranking(frame)
    heads = list(table["head"].unique())
    lengths = [int((table["head"] == head).sum()) for head in heads]
    legend = [METHODS[name].label for name in SHOWN]
    ratios = {"height_ratios": lengths, "width_ratios": (1, 1.1)}
    with drawing(len(heads), 2, 0.2 * sum(lengths) + 0.9 * len(heads) + 0.4, legend, **ratios) as (figure, axes):
        for (left, right), head in zip(axes, heads, strict=True):
            forest(left, [_minus_guided(row) for row in table[table["head"] == head].itertuples()])
            left.axvline(0, color="#999999", linewidth=0.8)
            left.set(title=f"{head} head, at the end (stored numbers)", xlabel="points, minus guided")
            curves = frame[(frame["head"] == head) & (frame["metric"] == "accuracy_mean")]
            for method, curve in of_methods(curves, [METHODS[name] for name in SHOWN]):
                curve = curve.sort_values("step")
                line = {"color": method.colour, "linewidth": 1.6, "label": method.label}
                right.plot(curve["step"] / curve["step"].min(), 100 * curve["value"], **line)
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
            right.set(xlabel="examples per class", ylabel="accuracy (%)", title=f"{head} head, on the way")
        others = table[~table["method"].isin(guides(table["method"]))]
        beside = sides(others[others["head"] == heads[0]]) if "side" in others else {}
        said = ", ".join(
            f"{len(rows)} {'are ' if i == 0 else ''}{word}" for i, (word, rows) in enumerate(beside.items())
        )
        n = table["n"].iloc[0] if "n" in table else ""
        message = f"Guidance in a stream, {heads[0]} head: of {sum(map(len, beside.values()))} other methods {said}"
        headline(
            figure,
            message,
            f"{n}; rates and strengths chosen with hindsight; bars: 95 % intervals of paired differences.",
        )
    return figure


def _minus_guided(row: NamedTuple) -> Ranked:
    """Without guidance in the table: the accuracy itself."""
    method = METHODS[row.method]
    stored = f"{method.label} ({EngFormatter(places=0, sep='')(row.stored)})" if row.stored else method.label
    numbers = (
        (-row.difference, -row.high, -row.low)
        if hasattr(row, "low")
        else (row.accuracy, row.accuracy_low, row.accuracy_high)
    )
    return Ranked(stored, method.colour, NO_LABEL, *(100 * n for n in numbers))


EXPERIMENT = Experiment(
    "forgetting_neighbours",
    "07_forgetting_neighbours",
    ForgettingNeighboursParameters,
    {"forgetting_neighbours": forgetting_neighbours},
    more_tables=("forgetting_neighbours_cost",),
)

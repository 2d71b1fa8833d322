"""Figure of `07_forgetting_neighbours`."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from experiments.e07_forgetting_neighbours import run as stream
from experiments.e07_forgetting_neighbours.run import ForgettingNeighboursParameters
from experiments.experiment import Experiment
from experiments.style import COLORS, STYLE, legend_below, panels

# In a stream, what guidance is added to keeps its colour, and its line is broken.
MEMORIES = {
    "frozen": (COLORS["frozen"], "frozen (linear probe)"),
    "plain": (COLORS["plain"], "plain fine-tuning"),
    "l2_sp": ("#E69F00", "L2-SP"),
    "ewc": ("#CC79A7", "EWC"),
    "synaptic": ("#A6761D", "synaptic intelligence"),
    "replay": ("#000000", "replay"),
    "guided_tensor": (COLORS["guided_tensor"], "guided (tensor scope)"),
    "guided_network": (COLORS["guided_network"], "guided (network scope)"),
    "guided_ewc": ("#CC79A7", "guided + EWC"),
    "guided_replay": ("#000000", "guided + replay"),
}


def forgetting_neighbours(frame: pd.DataFrame) -> Figure:
    """Left: accuracy after each round of examples. Right: at the end, with 95 % intervals, against what is stored."""
    table = stream.ranking(frame)
    heads = list(table["head"].unique())
    figure, axes = panels(len(heads), 2, (10, 3.9 * len(heads) + 0.8))
    with mpl.rc_context(STYLE):
        for (left, right), head in zip(axes, heads, strict=True):
            of = table[table["head"] == head].set_index("method")
            floor = of.loc[of["stored"] > 0, "stored"].min() / 3
            taken = []
            for method, (color, label) in MEMORIES.items():
                if method not in of.index:
                    continue
                both = method in ("guided_ewc", "guided_replay")
                curve = frame[(frame["head"] == head) & (frame["method"] == method)]
                curve = curve[curve["metric"] == "accuracy_mean"].sort_values("step")
                seen = curve["step"] / curve["step"].min()
                left.plot(seen, 100 * curve["value"], "--" if both else "-", color=color, linewidth=1.6, label=label)
                row = of.loc[method]
                x = max(row["stored"], floor)
                taken.append(x)
                x *= 1.04 ** (taken.count(x) - 1)  # side by side where they store the same
                right.vlines(x, 100 * row["accuracy_low"], 100 * row["accuracy_high"], color=color, linewidth=1.2)
                right.plot(x, 100 * row["accuracy"], "o", color=color, markerfacecolor="white" if both else color)
            right.set(
                xscale="log", xlabel="numbers stored beside the network", title="at the end of the stream, closer"
            )
            right.axvline(floor, color="#DDDDDD", linewidth=0.8, linestyle=":", zorder=0)
            right.annotate("none", (floor, 0.01), xycoords=("data", "axes fraction"), fontsize=8, color="#777777")
            left.set(xlabel="examples seen per class", ylabel="accuracy on unseen drawers (%)", title=f"{head} head")
        legend_below(figure)
    return figure


EXPERIMENT = Experiment(
    "forgetting_neighbours",
    "07_forgetting_neighbours",
    ForgettingNeighboursParameters,
    {"forgetting_neighbours": forgetting_neighbours},
    more_tables=("forgetting_neighbours_cost",),
)

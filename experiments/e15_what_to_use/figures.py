"""Figure of `15_what_to_use`."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e15_what_to_use.run import METHODS, TABLES, TOO_HIGH, WhatToUseParameters, summary
from experiments.experiment import Experiment
from experiments.style import drawing, headline

PANELS = {"regret": "at the rate chosen in validation", "too_high": f"at {TOO_HIGH} times that rate"}
DARKEST = 20  # points


def what_to_use(frame: pd.DataFrame) -> Figure:
    """Points of accuracy below the best method of each arena, at the chosen rate and at ten times that rate."""
    table = frame.pivot(index=["arena", "experiment"], columns=["metric", "method"], values="value")
    order = frame[["arena", "experiment"]].drop_duplicates()
    table = 100 * table.loc[list(order.itertuples(index=False, name=None))]
    summed, methods = summary(frame), [name for name in METHODS if name in set(frame["method"])]
    summed = summed[summed["everywhere"]]
    said = []
    with drawing(1, 2, 0.25 * len(order) + 2.2, sharey=True) as (figure, axes):
        for axis, (metric, title) in zip(axes[0], PANELS.items(), strict=True):
            here = table.reindex(columns=pd.MultiIndex.from_product([[metric], methods])).droplevel(0, axis=1)
            last = 100 * summed[summed["metric"] == metric].set_index("method")[["mean", "worst"]].T
            last.index = pd.MultiIndex.from_tuples([("mean", ""), ("worst", "")])
            _heat(axis, pd.concat([here, last.reindex(columns=methods)]))
            axis.set_title(title)
            if len(last.columns):
                best = last.iloc[1].idxmin()
                said.append(f"{METHODS[best].label}, {last[best].iloc[1]:.1f} {title}")
        note = (
            "Points of accuracy below the best method of an arena; in brackets: the notebook. White: not run there, or "
            "so high a rate was not tried. Left: test tasks; right: validation tasks."
        )
        message = f"Least far from the best in its worst arena: {'; '.join(said) or 'nobody yet'}"
        headline(figure, message, note)
    return figure


def _heat(axis: Axes, table: pd.DataFrame) -> None:
    from seaborn import heatmap

    text = table.map(lambda points: "" if pd.isna(points) else f"{points:.1f}" if points < 9.95 else f"{points:.0f}")
    names = [f"{arena}  ({int(number):02})" if number else arena for arena, number in table.index]
    labels = [METHODS[name].label.replace(" (", "\n(") for name in table]
    look = {"cmap": "OrRd", "vmin": 0, "vmax": DARKEST, "cbar": False, "linewidths": 1, "annot_kws": {"fontsize": 8}}
    heatmap(table, annot=text, fmt="", ax=axis, xticklabels=labels, yticklabels=names, **look)
    axis.axhline(len(table) - 2, color="#444444", linewidth=1.2)
    axis.tick_params(length=0)
    axis.tick_params(axis="x", rotation=90)
    axis.set(xlabel="", ylabel="")


EXPERIMENT = Experiment(
    "what_to_use",
    "15_what_to_use",
    WhatToUseParameters,
    {"what_to_use": what_to_use},
    reads=tuple(TABLES),
)

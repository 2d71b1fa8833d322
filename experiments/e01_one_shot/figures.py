"""Figures of `01_one_shot`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e01_one_shot.run import OneShotParameters, along, octaves, pictures
from experiments.experiment import Experiment
from experiments.statistics import at_chosen_rates, bootstrap, by_seed_and_task
from experiments.style import COLORS, LABELS, STYLE, by_method, legend_below, panels, rate_axis

CONDITIONS = {
    ("pretrained", "random"): "pretrained,\nrandom head",
    ("pretrained", "zero"): "pretrained,\nzero head",
    ("random", "random"): "not pretrained",
}


def one_shot_examples(frame: pd.DataFrame) -> Figure:
    """The first test episodes: the support above, queries below, and under each query who classified it right."""
    tasks = sorted(frame.loc[frame["metric"] == "support", "task"].unique())
    supports = [pictures(frame, "support", task)[:, 0] for task in tasks]
    queries = [pictures(frame, "query", task) for task in tasks]
    n_way, n_query = queries[0].shape[:2]
    right = frame[frame["metric"] == "right"]
    methods = [m for m, _ in by_method(right)]
    rows, columns = 1 + n_query, len(tasks) * n_way
    figure, axes = panels(rows, columns, (0.86 * columns, 1.12 * rows + 0.5))
    with mpl.rc_context(STYLE):
        for t, task in enumerate(tasks):
            for c in range(n_way):
                column = axes[:, t * n_way + c]
                _picture(column[0], supports[t][c], "#000000")
                for q, axis in enumerate(column[1:]):
                    _picture(axis, queries[t][c, q], "#555555")
                    for i, m in enumerate(methods):
                        of = right[
                            (right["method"] == m) & (right["task"] == task) & (right["step"] == c * n_query + q)
                        ]
                        sign = {1.0: "o", 0.0: "x"}[of["value"].item()]
                        x = (i + 0.5) / len(methods)
                        axis.plot(
                            x, -0.12, sign, color=COLORS[m], markersize=5, transform=axis.transAxes, clip_on=False
                        )
            axes[0, t * n_way + n_way // 2].set_title(f"episode {t + 1}: one example of each class", fontsize=9)
            axes[1, t * n_way + n_way // 2].set_title("queries; dot: right, cross: wrong", fontsize=9)
        for m in methods:
            axes[0, 0].plot([], [], "o", color=COLORS[m], label=LABELS[m])
        legend_below(figure)
    return figure


def _picture(axis: Axes, image: np.ndarray, ink: str) -> None:
    colors = mpl.colors.ListedColormap(["white", ink])
    axis.imshow(image, cmap=colors, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="#CCCCCC")


def one_shot(frame: pd.DataFrame) -> Figure:
    """Test accuracy by method with 95 % intervals: columns by task, rows by how rates were chosen."""
    frame = _methods_only(frame)
    tasks = list(dict.fromkeys(frame[["n_way", "n_shot"]].itertuples(index=False, name=None)))
    conditions = _conditions(frame)
    figure, axes = panels(2, len(tasks), (3.2 * len(tasks) + 0.8, 6.4), sharey=True, sharex="col")
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, ("first", "same"), strict=True):
            test = at_chosen_rates(frame, tuned_on)
            test = test[test["metric"] == "accuracy"]
            for axis, (n_way, n_shot) in zip(row, tasks, strict=True):
                of_task = test[(test["n_way"] == n_way) & (test["n_shot"] == n_shot)]
                for y, (zero_point, head) in enumerate(conditions):
                    of = by_method(of_task[(of_task["zero_point"] == zero_point) & (of_task["head"] == head)])
                    for i, (m, values) in enumerate(of):
                        estimate = bootstrap(100 * by_seed_and_task(values))
                        at = y + 0.18 * (i - (len(of) - 1) / 2)
                        axis.hlines(at, estimate.low, estimate.high, color=COLORS[m], linewidth=2)
                        axis.plot(estimate.mean, at, "o", color=COLORS[m], markersize=5, label=LABELS[m])
                axis.set(title=f"{n_way}-way {n_shot}-shot\n{TITLES[tuned_on]}", ylim=(len(conditions) - 0.5, -0.5))
                axis.set(yticks=range(len(conditions)), yticklabels=conditions.values(), xlabel="accuracy (%)")
                axis.axvline(100 / n_way, color="#BBBBBB", linewidth=0.8, linestyle=":")
                axis.label_outer()
        legend_below(figure)
    return figure


TITLES = {"first": "each its own best rate", "same": "plain's best rate for all"}


def one_shot_saturation(frame: pd.DataFrame) -> Figure:
    """Guided accuracy against the number of scouts, and against the images per class that a scout sees.

    First condition only; rows by how the rate was chosen. Lines across are the methods that need no scouts.
    """
    base = frame.iloc[0]
    condition = ["zero_point", "head", "n_way", "n_shot"]
    others = _methods_only(frame)
    others = others[(others[condition] == base[condition]).all(axis=1)]
    figure, axes = panels(2, 2, (8.2, 5.6), sharey="row", sharex="col")
    with mpl.rc_context(STYLE):
        for row, tuned_on in zip(axes, ("first", "same"), strict=True):
            flat = at_chosen_rates(others, tuned_on)
            flat = flat[flat["metric"] == "accuracy"]
            for axis, (what, label) in zip(row, SATURATION.items(), strict=True):
                test = along(at_chosen_rates(frame, tuned_on), what)
                test = test[test["metric"] == "accuracy"]
                estimates = {n: bootstrap(100 * by_seed_and_task(of)) for n, of in test.groupby(what)}
                low, mean, high = ([getattr(e, part) for e in estimates.values()] for part in ("low", "mean", "high"))
                color = COLORS["guided_network"]
                axis.fill_between(list(estimates), low, high, color=color, alpha=0.2, linewidth=0)
                axis.plot(list(estimates), mean, "o-", color=color, markersize=4, label=LABELS["guided_network"])
                for m in ("frozen", "plain"):
                    value = 100 * flat.loc[flat["method"] == m, "value"].mean()
                    axis.axhline(value, color=COLORS[m], linewidth=1.2, linestyle="--", label=LABELS[m])
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
                axis.set(xlabel=label, ylabel="accuracy (%)", title=f"{TITLES[tuned_on]}")
                axis.label_outer()
        legend_below(figure)
    return figure


SATURATION = {"n_scouts": "number of scouts", "scout_n_shot": "images per class that a scout sees"}


def one_shot_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy on tuning episodes against the learning rate; bars below: the rates within two points of the best."""
    frame = _methods_only(frame)
    tasks = list(dict.fromkeys(frame[["n_way", "n_shot"]].itertuples(index=False, name=None)))
    conditions = _conditions(frame)
    size = (3.2 * len(tasks) + 0.6, 1.0 + 2.4 * len(conditions))
    figure, axes = panels(len(conditions), len(tasks), size, sharex=True, sharey=True)
    tuning, ranges = frame[frame["metric"] == "validation_first"], octaves(frame)
    with mpl.rc_context(STYLE):
        for row, above, (zero_point, head) in zip(axes, [None, *axes[:-1]], conditions, strict=True):
            for column, (axis, (n_way, n_shot)) in enumerate(zip(row, tasks, strict=True)):
                here = {"zero_point": zero_point, "head": head, "n_way": n_way, "n_shot": n_shot}
                for i, (m, of) in enumerate(by_method(_where(tuning, here))):
                    mean = 100 * of.groupby("learning_rate")["value"].mean()
                    axis.plot(mean.index, mean, color=COLORS[m], marker="o", markersize=3, label=LABELS[m])
                    reach = _where(ranges, here | {"method": m}).iloc[0]
                    axis.hlines(-3 - 3.5 * i, reach["low"], reach["high"], color=COLORS[m], linewidth=3)
                title = conditions[zero_point, head].replace("\n", " ")
                axis.set(title=f"{n_way}-way {n_shot}-shot, {title}", ylim=(-17, 100))
                axis.set(yticks=range(0, 101, 20), ylabel="validation accuracy (%)")
                rate_axis(axis)
                axis.title.set_fontsize(9)
                axis.label_outer()
                if not axis.lines:  # not every task is done without pretraining
                    axis.set_visible(False)
                    above[column].set_xlabel("learning rate")
                    above[column].tick_params(labelbottom=True)
        legend_below(figure)
    return figure


def _conditions(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Those of `CONDITIONS` that the frame has."""
    found = set(frame[["zero_point", "head"]].itertuples(index=False, name=None))
    return {condition: title for condition, title in CONDITIONS.items() if condition in found}


def _where(frame: pd.DataFrame, values: dict[str, object]) -> pd.DataFrame:
    return frame[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def _methods_only(frame: pd.DataFrame) -> pd.DataFrame:
    """Without pictures, and without what is there for saturation only."""
    base = frame.iloc[0]
    return frame[(frame["n_scouts"] == base["n_scouts"]) & (frame["scout_n_shot"] == base["scout_n_shot"])].query(
        "method != 'pictures'"
    )


EXPERIMENT = Experiment(
    "one_shot",
    "01_one_shot",
    OneShotParameters,
    {
        "one_shot": one_shot,
        "one_shot_examples": one_shot_examples,
        "one_shot_rates": one_shot_rates,
        "one_shot_saturation": one_shot_saturation,
    },
)

"""Figures of `01_one_shot`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e01_one_shot.run import (
    OneShotParameters,
    accuracies,
    along,
    octaves,
    pictures,
    saturation,
    verdicts,
    with_all_scouts,
)
from experiments.experiment import Experiment
from experiments.images import by_scouts, of_base_optimizers
from experiments.methods import BASIC, FROZEN, NETWORK, PLAIN, SCRATCH, Method
from experiments.optimizers import LABELS as OPTIMIZERS
from experiments.statistics import NONE, Estimate, alike, by_seed_and_task, mean_interval, paired, rows_where, tally
from experiments.style import HEADS, drawing, headline, n_networks, of_methods, rate_axis

METHODS = list(BASIC.values())
LABELS = [method.label for method in METHODS]
TUNED_ON = {"first": "each its own best rate", "same": "plain's best rate for all"}
SATURATION = {"n_scouts": "scouts", "scout_n_shot": "images per class that a scout sees"}


def one_shot_examples(frame: pd.DataFrame) -> Figure:
    """The first test episodes: the support above, queries below, and under each query who classified it right."""
    tasks = sorted(frame.loc[frame["metric"] == "support", "task"].unique())
    right = frame[frame["metric"] == "right"]
    n_way, n_query = pictures(frame, "query", tasks[0]).shape[:2]
    rows, columns = 1 + n_query, len(tasks) * n_way
    with drawing(rows, columns, 1.05 * rows + 0.5, LABELS) as (figure, axes):
        for t, (task, block) in enumerate(zip(tasks, np.split(axes, len(tasks), axis=1), strict=True)):
            block[0, n_way // 2].set_title(f"episode {t + 1}: one example of each class", fontsize=9)
            block[1, n_way // 2].set_title("queries; dot: right, cross: wrong", fontsize=9)
            supports, queries = pictures(frame, "support", task)[:, 0], pictures(frame, "query", task)
            for c, column in enumerate(block.T):
                _picture(column[0], supports[c], "#000000")
                for q, axis in enumerate(column[1:]):
                    _picture(axis, queries[c, q], "#555555")
                    _signs(axis, rows_where(right, task=task, step=c * n_query + q))
        for method, _ in of_methods(right, METHODS):
            axes[0, 0].plot([], [], "o", color=method.colour, label=method.label)
        n = len(right.groupby(["task", "step"]))
        said = ", ".join(f"{m.label} {rows['value'].sum():.0f}" for m, rows in of_methods(right, METHODS))
        headline(
            figure,
            f"Of {n} queries in the first episodes are right: {said}",
            f"The first {len(tasks)} test episodes of the first network, as they came; each method at its best rate.",
        )
    return figure


def _picture(axis: Axes, image: np.ndarray, ink: str) -> None:
    colors = mpl.colors.ListedColormap(["white", ink])
    axis.imshow(image, cmap=colors, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=True, color="#CCCCCC")


def _signs(axis: Axes, right: pd.DataFrame) -> None:
    """Below a query, one sign per method."""
    by_method = of_methods(right, METHODS)
    for i, (method, row) in enumerate(by_method):
        sign, x = "o" if row["value"].item() else "x", (i + 0.5) / len(by_method)
        axis.plot(x, -0.12, sign, color=method.colour, markersize=5, transform=axis.transAxes, clip_on=False)


def one_shot(frame: pd.DataFrame) -> Figure:
    """Accuracy minus that of plain fine-tuning, whose own stands on the right (without pretraining: of training from
    scratch), with 95 % intervals: columns by task, rows by how rates were chosen."""
    table = of_base_optimizers(verdicts(frame))
    frame = of_base_optimizers(with_all_scouts(frame))
    tasks, conditions = _tasks(frame), _conditions(frame)
    with drawing(2, len(tasks), 5.6, LABELS, sharey=True, sharex="row") as (figure, axes):
        for row, (tuned_on, title) in zip(axes, TUNED_ON.items(), strict=True):
            test = accuracies(frame, tuned_on)
            for axis, (n_way, n_shot) in zip(row, tasks, strict=True):
                axis.axvline(0, color="#999999", linewidth=0.8)
                for y, (zero_point, head) in enumerate(conditions):
                    here = rows_where(test, zero_point=zero_point, head=head, n_way=n_way, n_shot=n_shot)
                    _differences(axis, y, here)
                axis.set(title=f"{n_way}-way {n_shot}-shot\n{title}", ylim=(len(conditions) - 0.5, -0.6))
                axis.set(yticks=range(len(conditions)), yticklabels=conditions.values())
                axis.set_xlabel("minus plain fine-tuning, points")
                axis.tick_params(labelleft=axis is row[0])
        ours = rows_where(table, tuned_on="first", zero_point="pretrained")
        against = {m: ours.loc[ours["comparison"] == f"guided - {m.name}", "side"] for m in (PLAIN, FROZEN)}
        said = "; ".join(f"minus {m.label} {tally(sides, 'settings')}" for m, sides in against.items())
        headline(figure, f"Guided (network scope), pretrained, at its own best rate: {said}", _note(table))
    return figure


def _note(table: pd.DataFrame) -> str:
    return f"{table['n'].iloc[0]}; bars: 95 % intervals. A guide is scaled over the whole network, or over each tensor."


def _differences(axis: Axes, y: float, rows: pd.DataFrame) -> None:
    """Every method minus the one that trains everything, one below the other around ``y``."""
    by_method = of_methods(rows, METHODS)
    base = next((values for method, values in by_method if method in (PLAIN, SCRATCH)), None)
    if base is None:
        return
    others = [(method, values) for method, values in by_method if values is not base]
    for i, (method, values) in enumerate(others):
        _dot(
            axis,
            y + 0.2 * (i - (len(others) - 1) / 2),
            paired(*(v.assign(value=100 * v["value"]) for v in (values, base))),
            method,
        )
    text = {"transform": axis.get_yaxis_transform(), "ha": "right", "color": "#777777", "fontsize": 8}
    axis.text(1, y - 0.38, f"{100 * base['value'].mean():.1f} %", **text)


def _dots(axis: Axes, y: float, rows: pd.DataFrame) -> None:
    """The mean accuracy of every method with its 95 % interval, one below the other around ``y``."""
    by_method = of_methods(rows, METHODS)
    for i, (method, values) in enumerate(by_method):
        _dot(axis, y + 0.18 * (i - (len(by_method) - 1) / 2), mean_interval(100 * by_seed_and_task(values)), method)


def _dot(axis: Axes, y: float, estimate: Estimate, method: Method) -> None:
    axis.hlines(y, estimate.low, estimate.high, color=method.colour, linewidth=2)
    axis.plot(estimate.mean, y, "o", color=method.colour, markersize=5, label=method.label)


def one_shot_optimizers(frame: pd.DataFrame) -> Figure:
    """Test accuracy by method, each at its best rate, with 95 % intervals: rows by optimizer, a panel per head.

    First kind of episode, pretrained. Methods without scouts stand in every row of the optimizer that trains them.
    """
    test = accuracies(with_all_scouts(frame), "first")
    test = alike(test, "zero_point", "n_way", "n_shot")
    heads = [head for head in HEADS if head in set(test["head"])]
    n_pairs = len(test.loc[test["scouts"] != NONE, ["scouts", "optimizer"]].drop_duplicates())
    with drawing(1, len(heads), 0.75 * n_pairs + 1.2, LABELS, sharey=True) as (figure, axes):
        for axis, head in zip(axes[0], heads, strict=True):
            names = []
            for y, (pair, found) in enumerate(by_scouts(test[test["head"] == head], ["optimizer"])):
                names.append(f"scouts: {OPTIMIZERS[pair['scouts']]},\nthen: {OPTIMIZERS[pair['optimizer']]}")
                _dots(axis, y, found)
            axis.set(title=HEADS[head], xlabel="accuracy (%)", ylim=(len(names) - 0.5, -0.5))
            axis.set_yticks(range(len(names)), names)
        every = verdicts(frame)
        every = rows_where(every, tuned_on="first", comparison=f"guided - {PLAIN.name}", task=every["task"].iloc[0])
        said = tally(every["side"], "pairs of head and optimizers")
        message = f"Guided minus plain fine-tuning by the same optimizer: {said}"
        headline(figure, message, f"{every['task'].iloc[0]}, pretrained, each at its own best rate. {_note(every)}")
    return figure


def one_shot_saturation(frame: pd.DataFrame) -> Figure:
    """Guided accuracy against the number of scouts, and against the images per class that a scout sees.

    First condition only; rows by how the rate was chosen. Lines across are the methods that need no scouts.
    """
    table = saturation(frame)
    with drawing(2, 2, 4.8, LABELS, sharey="row", sharex="col") as (figure, axes):
        for row, (tuned_on, title) in zip(axes, TUNED_ON.items(), strict=True):
            test = accuracies(frame, tuned_on)
            flat = alike(of_base_optimizers(with_all_scouts(test)), "zero_point", "head", "n_way", "n_shot")
            for axis, (what, label) in zip(row, SATURATION.items(), strict=True):
                scouted = along(test, what)
                estimate, numbers = mean_interval(100 * by_seed_and_task(scouted, what)), sorted(scouted[what].unique())
                axis.fill_between(numbers, estimate.low, estimate.high, color=NETWORK.colour, alpha=0.2, linewidth=0)
                axis.plot(numbers, estimate.mean, "o-", color=NETWORK.colour, markersize=4, label=NETWORK.label)
                for method, values in of_methods(flat, (FROZEN, PLAIN)):
                    value = 100 * values["value"].mean()
                    axis.axhline(value, color=method.colour, linewidth=1.2, linestyle="--", label=method.label)
                axis.set_xscale("log", base=2)
                axis.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%d"))
                axis.set(xlabel=label, ylabel="accuracy (%)", title=title)
                axis.label_outer()
        at_best = table[table["tuned_on"] == "first"].groupby("what", sort=False)
        message = "; ".join(_enough(rows, SATURATION[what]) for what, rows in at_best).capitalize()
        headline(
            figure,
            message,
            f"{table['n'].iloc[0]}; bands: 95 % intervals; a network guide, at its best rate above, at plain's below.",
        )
    return figure


def _enough(rows: pd.DataFrame, label: str) -> str:
    """From which number on none is below the largest."""
    too_few = rows.loc[rows["side"] == "below", "number"].max()
    enough = rows.loc[~(rows["number"] <= too_few), "number"]
    return f"{label}: from {enough.min()} on as good as {enough.max()}"


def one_shot_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy on tuning episodes against the learning rate; bars below: the rates within two points of the best."""
    frame = of_base_optimizers(with_all_scouts(frame))
    tasks, conditions = _tasks(frame), _conditions(frame)
    tuning, ranges = frame[frame["metric"] == "validation_first"], octaves(frame)
    with drawing(len(conditions), len(tasks), 0.6 + 2.0 * len(conditions), LABELS, sharex=True, sharey=True) as (
        figure,
        axes,
    ):
        for row, above, (zero_point, head) in zip(axes, [None, *axes[:-1]], conditions, strict=True):
            for column, (axis, (n_way, n_shot)) in enumerate(zip(row, tasks, strict=True)):
                here = {"zero_point": zero_point, "head": head, "n_way": n_way, "n_shot": n_shot}
                for i, (method, values) in enumerate(of_methods(rows_where(tuning, **here), METHODS)):
                    mean, color = 100 * values.groupby("learning_rate")["value"].mean(), method.colour
                    axis.plot(mean.index, mean, color=color, marker="o", markersize=3, label=method.label)
                    reach = rows_where(ranges, **here, method=method.name).iloc[0]
                    axis.hlines(-3 - 3.5 * i, reach["low"], reach["high"], color=color, linewidth=3)
                title = conditions[zero_point, head].replace("\n", " ")
                axis.set(title=f"{n_way}-way {n_shot}-shot\n{title}", ylim=(-17, 100))
                axis.set(yticks=range(0, 101, 20), ylabel="validation accuracy (%)")
                rate_axis(axis)
                axis.label_outer()
                if not axis.lines:  # not every task is done without pretraining
                    axis.set_visible(False)
                    above[column].set_xlabel("learning rate")
                    above[column].tick_params(labelbottom=True)
        pretrained = ranges[ranges["zero_point"] == "pretrained"]
        wide = pretrained.pivot_table(index="head", columns="method", values="octaves")[[PLAIN.name, NETWORK.name]]
        said = ", ".join(
            f"{plain:.1f} and {guided:.1f} with a {HEADS[head]}" for head, plain, guided in wide.itertuples()
        )
        message = f"Rates within two points of the best span, in octaves, for plain fine-tuning and guided: {said}"
        headline(
            figure,
            message,
            f"Validation episodes of {n_networks(tuning)}; bars below: those rates; an octave is a factor of 2.",
        )
    return figure


def _tasks(frame: pd.DataFrame) -> list[tuple[int, int]]:
    return list(frame[["n_way", "n_shot"]].drop_duplicates().itertuples(index=False, name=None))


def _conditions(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Zero points and heads, with titles."""
    found = frame[["zero_point", "head"]].drop_duplicates().itertuples(index=False, name=None)
    return {(z, head): f"pretrained,\n{HEADS[head]}" if z == "pretrained" else "not pretrained" for z, head in found}


DRAWN = (one_shot, one_shot_examples, one_shot_optimizers, one_shot_rates, one_shot_saturation)
EXPERIMENT = Experiment(
    "one_shot",
    "01_one_shot",
    OneShotParameters,
    {draw.__name__: draw for draw in DRAWN},
)

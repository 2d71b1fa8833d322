"""Figures of `04_guides`."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e04_guides.candidates import BAR, CANDIDATES, METHODS, RIVALS
from experiments.e04_guides.parameters import GuidesParameters
from experiments.e04_guides.run import CONDITION, KEY, above_both, best_on_validation, differences
from experiments.experiment import Experiment
from experiments.optimizers import LABELS as OPTIMIZERS
from experiments.style import HEADS, drawing, headline, n_networks, of_methods, rate_axis
from gtl_core.shaping import TEMPERATURES

SHIFTS = {"none": "no shift", "glyphs": "pretrained on glyphs", "rotated": "rotated by 90°", "inverted": "inverted"}
WHEN = {"first": "tuned at the start", "careful": "lowest rate as good", "last": "tuned at the end"}
LINES = {"SGD": ("#0072B2", "-"), "momentum": ("#56B4E9", "--"), "Adam": ("#D55E00", "-"), "AdamW": ("#E69F00", "--")}


def _colors(n: int, name: str = "viridis") -> np.ndarray:
    return mpl.colormaps[name](np.linspace(0.05, 0.85, n))


def guides_temperatures(frame: pd.DataFrame) -> Figure:
    """Temperatures as maps from 0 to 1, and what they make of a guide (network scope, square root)."""
    with drawing(1, 2, 3.2, legend=()) as (figure, axes):
        maps, below = axes[0]
        for name, color in zip(TEMPERATURES, _colors(len(TEMPERATURES), "plasma"), strict=True):
            for axis, metric in ((maps, "temperature"), (below, "below")):
                curve = frame[(frame["method"] == name) & (frame["metric"] == metric)]
                axis.plot(curve["at"], curve["value"], color=color, linewidth=1.8, label=name)
        maps.set(title="the map", xlabel="g", ylabel="g at this temperature", aspect="equal")
        below.set(title="a real guide at each temperature", xlabel="g", ylabel="share of the parameters below g")
        below.set(xlim=(-0.02, 1.02), ylim=(0, 1.02))
        curves = frame[frame["metric"] == "below"].set_index(["method", "at"])["value"]
        small, frozen = curves["room"][0.1], curves["chilly"][0.0]
        message = f"Of a guide's values {100 * small:.0f} % are below 0.1; a cold temperature (chilly) sets \
{100 * frozen:.0f} % to 0"
        headline(
            figure, message, "One guide, of the first network; warmer ones are nearly the same for all parameters."
        )
    return figure


def guides_steps(frame: pd.DataFrame) -> Figure:
    """How far parameters move when g is the same for all: the guide on the step, and on the gradient."""
    moved = frame[frame["metric"] == "moved"]
    with drawing(1, 2, 3.4, sharey=True) as (figure, axes):
        for axis, part in zip(axes[0], ("step", "gradient"), strict=True):
            axis.plot([1e-3, 1], [1e-3, 1], color="#BBBBBB", linewidth=1, label="proportional to g")
            for name, (color, line) in LINES.items():
                far = moved[(moved["method"] == name) & (moved["part"] == part)].set_index("at")["value"]
                relative = far[far.index > 0] / far[1.0]
                axis.plot(relative.index, relative, line, color=color, marker="o", markersize=4, label=name)
            axis.set(xscale="log", yscale="log", xlabel="g, the same for every parameter", title=f"guided {part}")
            axis.set(ylabel="movement, by that at g = 1")
            axis.label_outer()
        axes[0, 0].legend(loc="upper left", fontsize=8)
        far = moved[moved["method"] == "Adam"].set_index(["part", "at"])["value"]
        share = {part: far[part, 0.01] / far[part, 1.0] for part in ("step", "gradient")}
        message = (
            f"With g = 0.01, by Adam, parameters move {100 * share['gradient']:.0f} % as far as with 1 if the guide is \
on the gradient, and {100 * share['step']:.1f} % if it is on the step"
        )
        headline(
            figure, message, "Mean distance from the zero point after fine-tuning on one episode, by that with g = 1."
        )
    return figure


def guides_anatomy(frame: pd.DataFrame) -> Figure:
    """A guide tensor by tensor; which tensors scouts move early and late; the first filters and their guide."""
    with drawing(1, 4, 4.8, width_ratios=(1.1, 1.1, 0.75, 0.75)) as (figure, axes):
        ridges, times, *maps = axes[0]
        histogram = frame[frame["metric"] == "histogram"]
        parts = list(dict.fromkeys(histogram["part"]))
        for y, part in enumerate(parts):
            edges, shares = histogram.loc[histogram["part"] == part, ["at", "value"]].to_numpy().T
            middles, heights = edges + (edges[-1] - edges[-2]) / 2, 0.9 * shares / shares.max()
            ridges.fill_between(middles, y, y - heights, color=_color(part), alpha=0.75, linewidth=0)
        ridges.set(xlabel="log10 g", title="the guide by tensor", xlim=(-4, 0), ylim=(len(parts) - 0.5, -1))
        ridges.set(yticks=range(len(parts)), yticklabels=map(_part, parts))
        _movement(times, frame[frame["metric"] == "by_time"], parts, "after step {:.0f}")
        times.set(title="what scouts moved", yticklabels=[])
        first_layer = (("filter", "first filters", "weight"), ("filter_guide", "and their guide", "g"))
        for axis, (metric, title, label) in zip(maps, first_layer, strict=True):
            values = frame[frame["metric"] == metric].sort_values("at")["value"].to_numpy().reshape(-1, 3, 3)
            color = {"cmap": "RdBu_r", "vmin": -abs(values).max(), "vmax": abs(values).max()}
            color = color if metric == "filter" else {"cmap": "viridis", "vmin": 0}
            picture = axis.imshow(_mosaic(values, 4), **color)
            axis.set(xticks=[], yticks=[], title=title)
            axis.spines[:].set_visible(False)
            figure.colorbar(picture, ax=axis, orientation="horizontal", shrink=0.8, label=label)
        moves = frame[frame["metric"] == "by_time"]
        moves = moves[moves["at"] == moves["at"].max()].set_index("part")["value"]
        most, least = moves.idxmax(), moves.idxmin()
        message = (
            f"Scouts move the {_part(most)} most, {moves[most] / moves[least]:.0f} times as far as the {_part(least)}"
        )
        headline(
            figure,
            message,
            "One guide, of the first network (network scope, square root); left: how its values are spread.",
        )
    return figure


def guides_distance(frame: pd.DataFrame) -> Figure:
    """Scouts' ways in bins of distance from the zero point: what moves near and far, how alike the guides are."""
    with drawing(1, 2, 4.3, width_ratios=(1.2, 1)) as (figure, axes):
        near_and_far, alike = axes[0]
        edges, shares = (frame[frame["metric"] == m].set_index("at")["value"] for m in ("edge", "points"))
        names = [f"from {edges[i]:.4g} ({100 * shares[i]:.0f} % of points)" for i in edges.index]
        by_distance = frame[frame["metric"] == "by_distance"]
        parts = list(dict.fromkeys(by_distance["part"]))
        _movement(near_and_far, by_distance, parts, names)
        near_and_far.set(yticks=range(len(parts)), yticklabels=map(_part, parts), title="what moved, by distance")
        table = frame[frame["metric"] == "likeness"].pivot(index="part", columns="at", values="value")
        picture = alike.imshow(table, vmin=0, vmax=1, cmap="viridis")
        for i, j in np.ndindex(*table.shape):
            value = table.iloc[i, j]
            alike.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
        ticks = {"ticks": range(len(table)), "labels": [f"{edge:.4g}+" for edge in edges]}
        alike.set_xticks(**ticks)
        alike.set_yticks(**ticks)
        alike.set(xlabel="distance", ylabel="distance", title="correlation of the bins' guides")
        figure.colorbar(picture, ax=alike, shrink=0.7)
        apart = table.to_numpy()[np.triu_indices(len(table), 1)]
        message = (
            f"Guides from near the zero point and from far are correlated by {apart.min():.2f} to {apart.max():.2f}"
        )
        headline(
            figure,
            message,
            "Points on the ways of the first network's scouts, binned by their distance from the zero point.",
        )
    return figure


def guides_arenas(frame: pd.DataFrame) -> Figure:
    """Every method minus the better of plain fine-tuning and the linear probe, in points, in every arena.

    Each at its own best rate. Bold where the 95 % interval excludes 0; framed: the guide of the scouts that was best on
    validation tasks.
    """
    every, best = differences(frame), best_on_validation(frame)
    table, passes = every.set_index([*KEY, "method", "rival"]), above_both(every)
    arenas, tried = list(dict.fromkeys(frame["arena"])), set(frame["method"])
    keys = sorted(best, key=lambda key: arenas.index(key[1]))
    shown = [METHODS[name] for name in (*CANDIDATES, *RIVALS) if name in tried and name not in BAR]
    rows = pd.concat([table.xs(rival, level="rival") for rival in BAR]).sort_values("mean", kind="stable")
    worse = rows.groupby(level=[*KEY, "method"]).first()  # against the better rival
    means, sides = (worse[column].unstack("method").loc[keys, [m.name for m in shown]] for column in ("mean", "side"))
    with drawing(1, 1, 0.33 * len(keys) + 1.7) as (figure, ((axis,),)):
        limit = {"vmin": -10, "vmax": 10, "cmap": "RdBu", "aspect": "auto"}
        points = 100 * means.to_numpy(float)
        axis.imshow(points, **limit)
        for (y, x), mean in np.ndenumerate(points):
            clear = sides.iat[y, x] in ("above", "below")
            look = {"fontweight": "bold" if clear else "normal", "color": "white" if abs(mean) > 7 else "black"}
            axis.text(
                x,
                y,
                f"{mean:+.1f}" if abs(mean) < 9.95 else f"{mean:+.0f}",
                ha="center",
                va="center",
                fontsize=8,
                **look,
            )
        for y, key in enumerate(keys):
            x = means.columns.get_loc(best[key])
            axis.add_patch(
                mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.6)
            )
        names = [method.on_axis or method.label for method in shown]
        axis.set_xticks(range(len(shown)), names, rotation=60, ha="left", rotation_mode="anchor")
        axis.set_yticks(range(len(keys)), map(_named, keys))
        axis.tick_params(length=0, labeltop=True, labelbottom=False, labelsize=8)
        axis.spines[:].set_visible(False)
        found = f"in {passes.sum()} the guide is clearly above both plain fine-tuning and the linear probe"
        note = "Points, minus the better of the two. Bold: the 95 % interval excludes 0. Framed: best in validation."
        headline(figure, f"Of {len(passes)} pairs of guide and setting, {found}", note)
    return figure


def _named(key: tuple[str, str, str, str]) -> str:
    tuned_on, arena, head, optimizer = key
    when = f", {WHEN[tuned_on]}" if arena.endswith("stream") else ""
    return f"{_arena(arena)}\n{HEADS[head]}, {OPTIMIZERS[optimizer]}{when}"


def guides_rates(frame: pd.DataFrame) -> Figure:
    """Accuracy at the end of the tuning tasks against the learning rate, in every arena."""
    tuning = frame[frame["metric"] == "validation_last"].groupby(CONDITION, sort=False)
    shown = [METHODS[name] for name in ("frozen", "plain", "guided_network", "guided_tensor", "root", "learned")]
    legend = [method.label for method in shown]
    columns = min(4, len(tuning))
    rows = -(-len(tuning) // columns)
    with drawing(rows, columns, 0.6 + 1.9 * rows, legend, sharex=True, sharey=True) as (figure, axes):
        for axis in axes.flat[len(tuning) :]:
            axis.set_visible(False)
        moved = []
        for axis, ((arena, head, optimizer), of_condition) in zip(axes.flat, tuning, strict=False):
            best = {}
            for method, found in of_methods(of_condition, shown):
                mean = 100 * found.groupby("learning_rate")["value"].mean()
                best[method.name] = mean.idxmax()
                axis.plot(mean.index, mean, color=method.colour, marker="o", markersize=3, label=method.label)
            moved.append(np.log(best["guided_network"] / best["plain"]))
            where = _arena(arena, between="\n")
            axis.set_title(f"{where}\n{HEADS[head]}, {OPTIMIZERS[optimizer]}", fontsize=8)
            axis.set(ylim=(0, 102), ylabel="validation\naccuracy (%)")
            rate_axis(axis)
            axis.label_outer()
        times = np.exp(np.mean(moved))
        message = f"Guidance's best rate is {times:.1f} times that of plain fine-tuning, in the geometric mean"
        n = n_networks(frame[frame["metric"] == "accuracy"])
        headline(figure, message, f"{n}; network scope; at the end of the tuning tasks.")
    return figure


def _movement(axis: Axes, frame: pd.DataFrame, parts: list[str], names: str | list[str]) -> None:
    """Dots: movement per parameter of each tensor (row), one colour per value of ``at``."""
    groups = list(frame.groupby("at"))
    labels = [names.format(at) for at, _ in groups] if isinstance(names, str) else names
    for (_, rows), label, color in zip(groups, labels, _colors(len(groups)), strict=True):
        values = rows.set_index("part")["value"].loc[parts]
        values = values.where(values > 0)  # before the first step of a zero head, the gradient of the body is 0
        axis.plot(values, range(len(parts)), "o", color=color, markersize=4, label=label)
    axis.axvline(1, color="#BBBBBB", linewidth=0.8)
    axis.set(xscale="log", xlim=(0.02, None), ylim=(len(parts) - 0.5, -1), yticks=range(len(parts)))
    axis.set(xlabel="mean |displacement|, by the network's mean")
    axis.legend(
        loc="upper center",
        bbox_to_anchor=(0.4, -0.13),
        fontsize=8,
        columnspacing=1,
        handletextpad=0,
        ncols=2 + len(groups) % 2,
    )


def _part(name: str) -> str:
    """``body.3.weight`` -> ``conv 2 weight``: the body repeats convolution, normalization, activation."""
    where, *index, kind = name.split(".")
    if where == "head":
        return f"head {kind}"
    return f"{('conv', 'norm')[int(index[0]) % 3]} {int(index[0]) // 3 + 1} {kind}"


def _color(name: str) -> str:
    label = _part(name)
    return "#CC79A7" if label.startswith("head") else "#0072B2" if label.startswith("conv") else "#56B4E9"


def _arena(arena: str, between: str = " ") -> str:
    shift, _, task = arena.partition(" ")
    return f"{SHIFTS[shift]},{between}{task}"


def _mosaic(filters: np.ndarray, columns: int) -> np.ndarray:
    """Filters [n, 3, 3] as one picture, NaN between them."""
    padded = np.pad(filters, ((0, -len(filters) % columns), (0, 1), (0, 1)), constant_values=np.nan)
    rows = [np.concatenate(list(padded[i : i + columns]), 1) for i in range(0, len(padded), columns)]
    return np.concatenate(rows)


FIGURES = (guides_anatomy, guides_arenas, guides_distance, guides_rates, guides_steps, guides_temperatures)
EXPERIMENT = Experiment("guides", "04_guides", GuidesParameters, {draw.__name__: draw for draw in FIGURES})

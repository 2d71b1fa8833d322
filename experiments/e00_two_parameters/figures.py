"""Figures of `00_method`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.e00_two_parameters.run import METHODS, TwoParameters
from experiments.experiment import Experiment
from experiments.methods import GUIDED, Method
from experiments.statistics import paired, rows_where
from experiments.style import drawing, headline

TITLES = {"as scouted": "3. A task like the scouts'", "foreign": "4. A foreign task"}
CALLED = ("tasks like the scouts'", "foreign ones")
ZERO_POINT = {"s": 60, "facecolor": "white", "edgecolor": "black", "zorder": 3}


def method(frame: pd.DataFrame) -> Figure:
    """Scouts leaving the zero point; the guide; plain and guided descent in the main task's loss landscape."""
    ends, (values,) = (_weights(frame, name, "as scouted") for name in ("scout", "guide"))
    with drawing(1, 4, 2.6, legend=(), width_ratios=(1, 0.5, 1, 1)) as (figure, axes):
        scouts, guide, *mains = axes[0]
        for w1, w2 in ends:
            scouts.plot([0, w1], [0, w2], color="#CCCCCC", linewidth=0.8, zorder=1)
        scouts.scatter(*ends.T, s=14, color="black", zorder=2, label="scouts")
        scouts.scatter(0, 0, label="zero point", **ZERO_POINT)
        scouts.set(title="1. Scouts leave\nthe zero point", ylim=(-2.6, 2.6), xlim=(-2.6, 2.6))
        guide.bar(["$g_1$", "$g_2$"], values, color=GUIDED.colour, width=0.6)
        for x, value in enumerate(values):
            guide.text(x, value + 0.02, f"{value:.2g}", ha="center")
        guide.set(title="2. The guide g:\nshare of each step", ylim=(0, 1.12))
        for axis, (family, title) in zip(mains, TITLES.items(), strict=True):
            _descents(axis, frame[(frame["family"] == family) & (frame["task"] == 0)], family)
            axis.set_title(title + "\n")
        for axis in (scouts, *mains):
            axis.set(xlabel="$w_1$", ylabel="$w_2$")
            axis.set_aspect("equal", adjustable="box")
        headline(figure, *_said(frame))
    return figure


def _said(frame: pd.DataFrame) -> tuple[str, str]:
    excess = frame[frame["metric"] == "excess_loss"]
    ours = {family: [rows_where(excess, family=family, method=m) for m in ("guided", "plain")] for family in TITLES}
    change = {family: paired(*both) for family, both in ours.items()}
    by = [f"{estimate.mean:+.2f} on {family}" for estimate, family in zip(change.values(), CALLED, strict=True)]
    note = (
        f"Means of guided minus plain over {change['foreign'].n[1]} tasks of each kind; 3 and 4 show the first of each."
    )
    return f"Guidance changes the squared error of few-shot learning by {by[0]}, and by {by[1]}", note


def _weights(frame: pd.DataFrame, method: str, family: str) -> np.ndarray:
    """Rows [N, 2] of w1 and w2, in the order in which they were recorded."""
    rows = frame[(frame["method"] == method) & (frame["family"] == family) & frame["metric"].isin(["w1", "w2"])]
    return rows["value"].to_numpy().reshape(-1, 2)


def _descents(axis: Axes, frame: pd.DataFrame, family: str) -> None:
    paths = {method: _weights(frame, name, family) for name, method in METHODS.items()}
    _landscape(axis, _examples(frame), _weights(frame, "truth", family)[0], paths)


def _examples(frame: pd.DataFrame) -> np.ndarray:
    """Rows [N, 3] of x1, x2 and y."""
    examples = frame[frame["method"] == "example"].pivot(index="step", columns="metric", values="value")
    return examples[["x1", "x2", "y"]].to_numpy()


def _landscape(axis: Axes, examples: np.ndarray, truth: np.ndarray, paths: Mapping[Method, np.ndarray]) -> None:
    """The examples' loss over both weights, and ways through it."""
    reach = 1.25 * max(1.0, abs(truth).max(), *(abs(path).max() for path in paths.values()))
    grid = np.linspace(-reach, reach, 160)
    w1, w2 = np.meshgrid(grid, grid)
    errors = [(x1 * w1 + x2 * w2 - y) ** 2 for x1, x2, y in examples]
    axis.contourf(w1, w2, np.sqrt(np.mean(errors, axis=0)), levels=14, cmap="Greys", alpha=0.55, rasterized=True)
    for method, path in paths.items():
        axis.plot(*path.T, color=method.colour, linewidth=1.8, label=method.label)
        axis.scatter(*path[-1], color=method.colour, s=30, zorder=3)
    axis.scatter(*truth, marker="*", s=140, color="#F0E442", edgecolor="black", zorder=4, label="truth")
    axis.scatter(0, 0, **ZERO_POINT)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach))


def guided_path(frame: pd.DataFrame, g1: float, g2: float, rate: float) -> Figure:
    """The first task like the scouts', learned by gradient descent at this rate with a guide of one's own."""
    task = frame[(frame["family"] == "as scouted") & (frame["task"] == 0)]
    examples, truth = _examples(task), _weights(task, "truth", "as scouted")[0]
    inputs, targets = examples[:, :2], examples[:, 2]
    n_steps = int(task.loc[task["metric"] == "excess_loss", "step"].max())

    def descend(guide: np.ndarray) -> np.ndarray:
        path = [np.zeros(2)]
        for _ in range(n_steps):
            slope = 2 * inputs.T @ (inputs @ path[-1] - targets) / len(targets)
            path.append(path[-1] - rate * guide * slope)
        return np.array(path)

    paths = {METHODS["plain"]: descend(np.ones(2)), METHODS["guided"]: descend(np.array([g1, g2]))}
    missed = [float(np.square(path[-1] - truth).sum()) for path in paths.values()]
    with drawing(1, 1, 3.2, legend=()) as (figure, ((axis,),)):
        _landscape(axis, examples, truth, paths)
        axis.set(xlabel="$w_1$", ylabel="$w_2$", aspect="equal")
        message = f"g = ({g1:.2f}, {g2:.2f}) misses the truth by {missed[1]:.3f}, plain descent by {missed[0]:.3f}"
        headline(figure, message, f"Squared distances after {n_steps} steps at the rate {rate:g}.")
    return figure


EXPERIMENT = Experiment("method", "00_method", TwoParameters, {"method": method})

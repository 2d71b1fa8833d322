"""A figure that 12 and 16 have in common: methods minus the one that all of them are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.episodes import Task
from experiments.methods import Method
from experiments.statistics import difference, rows_where
from experiments.style import drawing


@contextmanager
def minus(
    reference: Method, methods: Sequence[Method], tests: pd.DataFrame, column: str, rows: Mapping[str, str]
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A panel per kind of task of ``tests``, and in it a row per value of ``column``, labelled as ``rows`` says.

    Each of the ``methods`` minus the ``reference``, in points with 95 % intervals; on the right that one's accuracy.
    """
    tasks = list(tests[["n_way", "n_shot"]].drop_duplicates().itertuples(index=False, name=None))
    found = [value for value in rows if value in set(tests[column])]
    legend = [method.label for method in methods]
    with drawing(1, len(tasks), 0.62 * len(found) + 1.0, legend, sharey=True) as (figure, axes):
        for axis, task in zip(axes[0], tasks, strict=True):
            here = rows_where(tests, n_way=task[0], n_shot=task[1])
            for y, value in enumerate(found):
                of_method = dict(list(here[here[column] == value].groupby("method")))
                if reference.name in of_method:
                    _row(axis, y, of_method, reference, methods)
            axis.axvline(0, color="#999999", linewidth=0.8)
            axis.set(title=str(Task(*task)), xlabel=f"points minus {reference.label}")
            axis.grid(axis="y", color="#EEEEEE")
        axes[0, 0].set_yticks(range(len(found)), [rows[value] for value in found])
        axes[0, 0].set_ylim(len(found) - 0.4, -0.6)
        yield figure, axes


def _row(axis: Axes, y: int, tests: Mapping[str, pd.DataFrame], reference: Method, methods: Sequence[Method]) -> None:
    for i, method in enumerate(methods):
        if method.name in tests:
            found = difference(tests[method.name], tests[reference.name])
            mean, low, high = (100 * found[column] for column in ("mean", "low", "high"))
            at = y + 0.13 * (i - (len(methods) - 1) / 2)
            axis.hlines(at, low, high, color=method.colour, linewidth=1.5)
            axis.plot(mean, at, "o", color=method.colour, markersize=4, label=method.label)
    place = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center", "fontsize": 8, "color": "#555555"}
    axis.annotate(f"{100 * tests[reference.name]['value'].mean():.1f} %", (0.99, y), **place)

"""What all figures share: one colour per method in the whole project, and `save`, the only writer of figures."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.methods import Method
from gtl_core.files import replacing

HEADS = {"random": "random head", "zero": "zero head"}
TUNED_ON = {
    "same": "one rate for all, tuned for plain at the start",
    "first": "each rate tuned at the start",
    "careful": "the lowest rate as good at the start",
    "last": "each rate tuned at the end",
}
STYLE = {
    **sns.axes_style("ticks"),
    "figure.dpi": 100,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


class _Figure(Figure):
    # Not pyplot's: a figure is a value, closed by nobody, that a notebook shows when it is a cell's last line.
    def _repr_png_(self) -> bytes:
        # Small, since executed notebooks are committed, too: 256 colours take a third of the space.
        buffer = io.BytesIO()
        Image.open(io.BytesIO(_png(self, dpi=80))).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a PNG in one go; equal results give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(_png(figure, dpi=150))


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})  # no version, no date
    return buffer.getvalue()


@contextmanager
def drawing(
    rows: int, columns: int, size: tuple[float, float], legend: Iterable[str] | None = None, **share: object
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure of so many inches and its axes [rows, columns], to be drawn upon in the project's style.

    legend: one goes below, with these labels first; None: there is none. share: see `Figure.subplots`.
    """
    with mpl.rc_context(STYLE):
        figure = _Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **share)
        if legend is not None:
            _legend_below(figure, legend)


def of_methods(frame: pd.DataFrame, methods: Iterable[Method]) -> list[tuple[Method, pd.DataFrame]]:
    """Each method that the frame has, with its rows; in the order of ``methods``."""
    there = set(frame["method"])
    return [(method, frame[frame["method"] == method.name]) for method in methods if method.name in there]


def n_networks(rows: pd.DataFrame) -> str:
    """How many networks the rows are of, in words."""
    n = rows["seed"].nunique()
    return f"{n} network{'s' * (n > 1)}"


def rate_axis(axis: Axes) -> None:
    """Learning rates, labelled by decade: matplotlib would label every step of a short range, one over the other."""
    axis.set(xscale="log", xlabel="learning rate")
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())


def _legend_below(figure: Figure, order: Iterable[str]) -> None:
    """One legend for all panels: each label once, those in ``order`` first, then the others as they come."""
    entries = {}
    for axis in figure.axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    known = list(order)
    labels = sorted(entries, key=lambda label: known.index(label) if label in known else len(known))
    columns = min(len(labels), max(1, int(figure.get_figwidth() / 2.2)))  # an entry is at most that wide
    figure.legend([entries[label] for label in labels], labels, loc="outside lower center", ncols=columns)

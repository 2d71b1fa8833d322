"""What all figures share: one width, one colour per method, a headline that says what is seen, and `save`, the only
writer of figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
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
WIDTH = 8.4  # inches of every figure: shown at the width of a page, 830 px, its 8 points are 8 points


@cache
def _style() -> dict[str, object]:
    from seaborn import axes_style  # brings all of scipy along, and whoever draws nothing does not need it

    return {
        **axes_style("ticks"),
        "figure.dpi": 100,
        "font.family": ["DejaVu Sans", "sans-serif"],
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "svg.fonttype": "none",  # text stays text, to be found and read aloud
        "svg.hashsalt": "guided",  # equal figures get equal bytes
    }


class _Figure(Figure):
    # Not pyplot's: a figure is a value, closed by nobody, that a notebook shows when it is a cell's last line.
    def _repr_png_(self) -> tuple[bytes, dict[str, object]]:
        # Sharp on fine screens, and small, since executed notebooks are committed, too: 128 colours.
        picture, buffer = Image.open(io.BytesIO(_drawn(self, "png", dpi=160))).convert("RGB"), io.BytesIO()
        picture.quantize(128).save(buffer, "PNG", optimize=True)
        width, height = (round(100 * inches) for inches in self.get_size_inches())
        return buffer.getvalue(), {"width": width, "height": height, "alt": self.get_label()}


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, and an SVG beside it, each in one go; equal results give equal bytes.

    ValueError if the figure has no `headline`.
    """
    if not figure.get_label():
        raise ValueError(f"{path.stem}: a figure says what it shows, in its `headline`")
    path.parent.mkdir(parents=True, exist_ok=True)
    for place in (path, path.with_suffix(".svg")):
        with replacing(place) as temporary:
            temporary.write_bytes(_drawn(figure, place.suffix[1:], dpi=150))
        figure.set_layout_engine("none")  # laid out once: it takes as long as drawing


def _drawn(figure: Figure, kind: str, dpi: int) -> bytes:
    # Not `savefig`, which draws everything once more to find a layout, which drawing does anyway.
    buffer = io.BytesIO()
    with mpl.rc_context(_style()):
        figure.set_dpi(dpi)
        if kind == "png":
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # no version, no date
        else:
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


@contextmanager
def drawing(
    rows: int, columns: int, height: float, legend: Iterable[str] | None = None, **share: object
) -> Iterator[tuple[Figure, np.ndarray]]:
    """A figure, so many inches high without its `headline`, and its axes [rows, columns], to be drawn upon in the
    project's style.

    legend: one goes below, with these labels first; None: there is none. share: see `Figure.subplots`.
    """
    with mpl.rc_context(_style()):
        figure = _Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **share)
        for axis in figure.axes:
            _powers_in_full(axis.xaxis)
            _powers_in_full(axis.yaxis)
        if legend is not None:
            _legend_below(figure, legend)


def _powers_in_full(axis: Axis) -> None:
    """0.01 and 100k where matplotlib would write powers of ten, whose exponents are too small to read; by decade, where
    it would label every step of a short range, one over the other."""
    if isinstance(axis.get_major_formatter(), ticker.LogFormatterSciNotation):
        thousands = ticker.EngFormatter(sep="")
        axis.set_major_formatter(lambda value, _: thousands(value) if value >= 1e4 else f"{value:g}")
        axis.set_minor_formatter(ticker.NullFormatter())


def headline(figure: Figure, message: str, note: str) -> None:
    """Say on top, in bold, what the figure shows, and below what it is of: n, and what bars and bands are.

    The message is also the text for those who do not see the figure. ValueError if it has one already.
    """
    if figure.get_label():
        raise ValueError(f"the figure has a headline: {figure.get_label()}")
    figure.set_label(message)
    message, note = (text.replace(" %", "\N{NO-BREAK SPACE}%") for text in (message, note))
    title, small = (textwrap.wrap(text, n, break_on_hyphens=False) for text, n in ((message, 96), (note, 125)))
    below = figure.get_figheight()
    first, second = 0.08, 0.14 + 0.19 * len(title)  # inches from the top
    height = below + second + 0.16 * len(small) + 0.1
    figure.set_size_inches(WIDTH, height)
    figure.get_layout_engine().set(rect=(0, 0, 1, below / height))
    place = {"x": 0.06 / WIDTH, "va": "top", "linespacing": 1.25}
    figure.text(y=1 - first / height, s="\n".join(title), fontweight="bold", fontsize=10.5, **place)
    figure.text(y=1 - second / height, s="\n".join(small), color="#555555", fontsize=8.5, **place)


def of_methods(frame: pd.DataFrame, methods: Iterable[Method]) -> list[tuple[Method, pd.DataFrame]]:
    """Each method that the frame has, with its rows; in the order of ``methods``."""
    there = set(frame["method"])
    return [(method, frame[frame["method"] == method.name]) for method in methods if method.name in there]


def n_networks(rows: pd.DataFrame) -> str:
    """How many networks the rows are of, in words."""
    n = rows["seed"].nunique()
    return f"{n} network{'s' * (n > 1)}"


class Ranked(NamedTuple):
    """A row of a `forest`; numbers in points or per cent."""

    name: str
    colour: str
    label: str  # in the legend
    mean: float
    low: float
    high: float


def forest(axis: Axes, rows: Sequence[Ranked]) -> None:
    """Means with their intervals, one below the other. One far below the others stands at the edge as a number."""
    means = np.array([row.mean for row in rows])
    quarter = np.quantile(means, 0.25)
    edge = quarter - 4 * (means.max() - quarter)
    for y, row in enumerate(rows):
        look = {"color": row.colour, "markersize": 4.5, "label": row.label}
        if row.mean < edge:
            axis.plot(edge, y, "<", **look)
            axis.annotate(f"{row.mean:.1f}", (edge, y), (6, 0), textcoords="offset points", va="center", fontsize=8)
        else:
            axis.hlines(y, row.low, row.high, color=row.colour, linewidth=2)
            axis.plot(row.mean, y, "o", **look)
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.grid(axis="y", color="#EEEEEE")


def rate_axis(axis: Axes) -> None:
    axis.set(xscale="log", xlabel="learning rate")


def _legend_below(figure: Figure, order: Iterable[str]) -> None:
    """One legend for all panels: each label once, those in ``order`` first, then the others as they come."""
    entries = {}
    for axis in figure.axes:
        entries |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    known = list(order)
    labels = sorted(entries, key=lambda label: known.index(label) if label in known else len(known))
    if not labels:
        return
    widest = 0.45 + 0.068 * max(map(len, labels))  # inches
    columns = min(len(labels), max(1, int(figure.get_figwidth() / widest)))
    figure.legend([entries[label] for label in labels], labels, loc="outside lower center", ncols=columns)

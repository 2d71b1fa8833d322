"""Guidance against what it must beat, over all experiments at once: plain fine-tuning and the linear probe.

``python -m experiments.overview results/paper`` prints what RESULTS.md says of the optimizers and draws
``figures/finding.png``, the picture of the README.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import records
from experiments.e01_one_shot import run as one_shot
from experiments.e03_forgetting import run as forgetting
from experiments.e04_guides import run as guides
from experiments.e05_own_model import run as own_model
from experiments.e10_paper_setting import verdicts as paper_setting
from experiments.methods import FROZEN, PLAIN
from experiments.statistics import NONE, difference, rows_where
from experiments.style import drawing, save

RIVALS = {"plain": "plain fine-tuning", "frozen": "the linear probe", "scratch": "training from scratch"}
SHOWN = {RIVALS["plain"]: PLAIN, RIVALS["frozen"]: FROZEN}
HOW = {"first": "rates chosen at the start", "same": "plain's rate for all", "last": "rates chosen with hindsight"}
SUFFIXES = {"sgd": "", "adam": "_adam"}  # of the names of methods in 06 to 08
BY = {"sgd": "", "adam": ", all by Adam"}
STREAM = "stream"  # how a condition begins in which examples come one by one


class Comparison(NamedTuple):
    """Guided (network scope) minus a rival under one condition of one experiment, scouts and network trained by one
    optimizer; mean, low, high, side and text as from `difference`."""

    experiment: str
    condition: str
    rival: str
    optimizer: str
    mean: float
    low: float
    high: float
    side: str
    text: str


def against_rivals(folder: Path) -> pd.DataFrame:
    """Every `Comparison` of the tables that are in ``folder``."""
    found = [
        Comparison(
            experiment, condition, rival, optimizer, **{c: row[c] for c in ("mean", "low", "high", "side", "text")}
        )
        for name, (experiment, compare) in COMPARE.items()
        if (folder / f"{name}.csv").exists()
        for condition, rival, optimizer, row in compare(records.read(folder, name))
    ]
    return pd.DataFrame(found, columns=Comparison._fields)


def by_optimizer(table: pd.DataFrame) -> pd.DataFrame:
    """One row per experiment, condition and rival that `against_rivals` has with both optimizers: ``sgd`` and ``adam``
    (text), and ``changed``.

    A verdict is the side of 0 on which the 95 % interval lies, so it changes if one of the two is undecided, too.
    """
    key = ["experiment", "condition", "rival"]
    sgd, adam = (rows_where(table, optimizer=name)[[*key, "text", "side"]] for name in SUFFIXES)
    both = sgd.merge(adam, on=key, suffixes=("_sgd", "_adam"))
    changed = both["side_sgd"] != both["side_adam"]
    return both[key].assign(sgd=both["text_sgd"], adam=both["text_adam"], changed=changed)


def markdown(table: pd.DataFrame) -> str:
    """The comparisons whose verdict changes as a Markdown table, and a line that says how many do. table: of
    `by_optimizer`."""
    changed = table[table["changed"]]
    lines = ["| | condition | guided minus | all by SGD | all by Adam |", "|---|---|---|---|---|"]
    lines += [f"| {r.experiment} | {r.condition} | {r.rival} | {r.sgd} | {r.adam} |" for r in changed.itertuples()]
    counts = table.groupby("experiment")["changed"].agg(["sum", "size"])
    said = ", ".join(f"{row['sum']} of {row['size']} in {e}" for e, row in counts.iterrows())
    return "\n".join([*lines, "", f"Verdicts that change: {said}."])


def finding(table: pd.DataFrame) -> Figure:
    """Guided minus plain fine-tuning and minus the linear probe, in points, at each one's own best rate; a row per
    condition. table: of `against_rivals`."""
    fair = table[table["rival"].isin(SHOWN) & ~table["condition"].str.contains(HOW["same"])]
    fair = fair[(fair["experiment"] != "04") & ~fair["condition"].str.contains("no pretraining")]
    streams = fair["condition"].str.startswith(STREAM)
    panels = {"One-shot learning": fair[~streams], "A stream of single examples": fair[streams]}
    panels = {title: rows for title, rows in panels.items() if len(rows)}
    heights = [len(rows[["experiment", "condition"]].drop_duplicates()) for rows in panels.values()]
    labels = [f"minus {rival}{by}" for by in BY.values() for rival in SHOWN]
    size, share = (8.0, 0.21 * sum(heights) + 2.0), {"gridspec_kw": {"height_ratios": heights}}
    with drawing(len(panels), 1, size, labels, **share) as (figure, axes):
        for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
            _forest(axis, rows)
            axis.set_title(title, loc="left", fontweight="bold")
        axes[-1, 0].set_xlabel("points of accuracy that guidance adds; 95 % intervals")
        better = fair.groupby(["experiment", "condition", "optimizer"])["low"].min() > 0
        whom = "\nboth plain fine-tuning and the linear probe"
        figure.suptitle(f"In {better.sum()} of {len(better)} settings guidance is clearly better than{whom}")
    return figure


def _forest(axis: Axes, rows: pd.DataFrame) -> None:
    names = rows[["experiment", "condition"]].drop_duplicates()
    place = {tuple(name): y for y, name in enumerate(names.itertuples(index=False))}
    for row in rows.itertuples():
        colour, by = SHOWN[row.rival].colour, BY[row.optimizer]
        y = place[row.experiment, row.condition] + (0.2 if SHOWN[row.rival] is FROZEN else -0.2) + 0.15 * bool(by)
        axis.hlines(y, 100 * row.low, 100 * row.high, color=colour, linewidth=1.6)
        style = {"color": colour, "markerfacecolor": "white" if by else colour, "markersize": 4.5}
        axis.plot(100 * row.mean, y, "o", **style, label=f"minus {row.rival}{by}")
    axis.axvline(0, color="#777777", linewidth=0.9)
    axis.set_yticks(range(len(place)), [f"{condition}  ({experiment})" for experiment, condition in place])
    axis.set_ylim(len(place) - 0.4, -0.6)
    axis.grid(axis="x", color="#EEEEEE")
    axis.set_axisbelow(True)


Found = Iterator[tuple[str, str, str, Mapping[str, object]]]  # condition, rival, optimizer, difference


def _one_shot(frame: pd.DataFrame) -> Found:
    for row in one_shot.verdicts(frame).to_dict("records"):
        if row["tuned_on"] == "first":
            yield from _of_guided(row, f"{row['task']}, {_start(row)}")


def _forgetting(frame: pd.DataFrame) -> Found:
    base = frame["epochs"].iloc[0]
    for row in forgetting.verdicts(frame).to_dict("records"):
        if row["tuned_on"] in HOW and row["stream"] == "single" and row["epochs"] == base:
            yield from _of_guided(row, f"{STREAM}, {_start(row)}, {HOW[row['tuned_on']]}")


def _of_guided(row: Mapping, condition: str) -> Found:
    rival = row["comparison"].removeprefix("guided - ")
    if rival in RIVALS and row["scouts"] == row["optimizer"]:
        yield condition, RIVALS[rival], row["optimizer"], row


def _start(row: Mapping) -> str:
    return f"{row['head']} head" + (", no pretraining" if row["zero_point"] == "random" else "")


def _guides(frame: pd.DataFrame) -> Found:
    """The guide that leaves the head free, of scouts by the optimizer of the task; also against one g for the body."""
    ours = {"sgd": ("head_free", "uniform"), "adam": ("adam_scouts", "adam_uniform")}
    for row in guides.differences(frame).to_dict("records"):
        guide, uniform = ours[row["optimizer"]]
        rival = (RIVALS | {uniform: "one g for the body"}).get(row["rival"])
        if rival and row["method"] == guide and row["tuned_on"] in HOW:
            arena = row["arena"].removeprefix("none ")
            rates = f", {HOW[row['tuned_on']]}" if arena.endswith("stream") else ""
            yield f"{arena}, {row['head']} head{rates}", rival, row["optimizer"], row


def _own_model(frame: pd.DataFrame) -> Found:
    for row in own_model.verdicts(frame).to_dict("records"):
        rival = row["comparison"].removeprefix("guided_classes - ")
        if rival in RIVALS:
            yield "5-way 1-shot, a ResNet", RIVALS[rival], "sgd", row


def _paper_setting(frame: pd.DataFrame) -> Found:
    table = paper_setting.comparisons(frame)
    base = table.iloc[0][["network", "n_images", "scout_ways", "scout_head", "head"]]
    rates = {"one": "one rate", "apart": "rates for body and head apart"}
    for row in rows_where(table, **base).to_dict("records"):
        if row["rival"] in RIVALS and row["scouts"] == row["optimizer"]:
            where = f"digits to {row['n_way']} characters, {rates[row['rates']]}"
            yield where, RIVALS[row["rival"]], row["optimizer"], row


def _neighbours(
    columns: Sequence[str],
    called: Callable[..., str],
    guided: Mapping[str, object] | None = None,
    rivals: Mapping[str, object] | None = None,
) -> Callable[[pd.DataFrame], Found]:
    """guided, rivals: what their rows have in other columns than ``columns``, which make a condition."""

    def compare(frame: pd.DataFrame) -> Found:
        tests = frame[frame["metric"] == "accuracy"]
        if "step" in tests:
            tests = tests[tests["step"] == tests["step"].max()]
        for key, here in tests.groupby([*columns], sort=False):
            for optimizer, suffix in SUFFIXES.items():
                mine = rows_where(here, method=f"guided_network{suffix}", **guided or {})
                for rival, label in RIVALS.items():
                    theirs = rows_where(here, method=f"{rival}{suffix}", **rivals or {})
                    if len(mine) and len(theirs):
                        yield called(*key), label, optimizer, difference(mine, theirs)

    return compare


PRETRAINED = {"zero_point": "pretrained"}
COMPARE: dict[str, tuple[str, Callable[[pd.DataFrame], Found]]] = {
    "one_shot": ("01", _one_shot),
    "forgetting": ("03", _forgetting),
    "guides": ("04", _guides),
    "own_model": ("05", _own_model),
    "few_shot_neighbours": (
        "06",
        _neighbours(["n_way", "n_shot"], lambda way, shot: f"{way}-way {shot}-shot, zero head", PRETRAINED, PRETRAINED),
    ),
    "forgetting_neighbours": (
        "07",
        _neighbours(["head"], lambda head: f"{STREAM}, {head} head, {HOW['last']}"),
    ),
    "domain_shift": (
        "08",
        _neighbours(
            ["target", "n_way", "n_shot"],
            lambda target, way, shot: f"glyphs to handwriting, {target.replace('_', ' ')}, {way}-way {shot}-shot",
            {"scouts": "target"},
            {"scouts": NONE, "alignment": NONE},
        ),
    ),
    "paper_setting": ("10", _paper_setting),
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    table = against_rivals(folder)
    save(finding(table), folder / "figures/finding.png")
    print(markdown(by_optimizer(table)))

"""Guidance against what it must beat, over all experiments at once: plain fine-tuning and the linear probe.

``make figures`` draws the picture of the README from it, and ``python -m experiments.overview results/paper`` prints
what RESULTS.md says of the optimizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
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
from experiments.e11_authors_code import run as authors
from experiments.e14_genes import verdicts as genes
from experiments.episodes import Task
from experiments.methods import FROZEN, PLAIN
from experiments.statistics import NONE, difference, rows_where
from experiments.streams import first_and_last
from experiments.style import drawing, headline

RIVALS = {"plain": "plain fine-tuning", "frozen": "the linear probe", "scratch": "training from scratch"}
SHOWN = {RIVALS["plain"]: PLAIN, RIVALS["frozen"]: FROZEN}
HOW = {"first": "rates chosen at the start", "same": "plain's rate for all", "last": "rates chosen with hindsight"}
SUFFIXES = {"sgd": "", "adam": "_adam"}  # of the names of methods in 06 to 08
BY = {"sgd": "", "adam": ", all by Adam"}
UNLABELLED = {"simclr": "SimCLR, no labels", "masked": "masked images, no labels"}  # zero points of 12
ONE_SHOT, STREAM = "One-shot learning", "A stream of single examples"  # the panels of the picture


class Comparison(NamedTuple):
    """Guided (network scope) minus a rival under one condition of one experiment, scouts and network trained by one
    optimizer; mean, low, high, side and text as from `difference`.

    panel: where the picture shows it; empty where it does not.
    """

    experiment: str
    panel: str
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
    found = []
    for name, (experiment, compare) in COMPARE.items():
        if (folder / f"{name}.csv").exists():
            for panel, condition, rival, optimizer, row in compare(records.read(folder, name)):
                estimate = {column: row[column] for column in ("mean", "low", "high", "side", "text")}
                found.append(Comparison(experiment, panel, condition, rival, optimizer, **estimate))
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
    """Guided minus plain fine-tuning and minus the linear probe, at each one's own best rate, with 95 % intervals.

    A row per condition. table: of `against_rivals`.
    """
    fair = table[table["rival"].isin(SHOWN) & (table["panel"] != "")]
    panels = {title: fair[fair["panel"] == title] for title in (ONE_SHOT, STREAM) if title in set(fair["panel"])}
    heights = [len(rows[["experiment", "condition"]].drop_duplicates()) for rows in panels.values()]
    labels = [f"minus {rival}{by}" for by in BY.values() for rival in SHOWN]
    with drawing(len(panels), 1, 0.19 * sum(heights) + 1.4, labels, height_ratios=heights) as (figure, axes):
        for axis, (title, rows) in zip(axes[:, 0], panels.items(), strict=True):
            _forest(axis, rows)
            axis.set_title(title, loc="left", fontweight="bold")
        axes[-1, 0].set_xlabel("points of accuracy that guidance adds")
        better = fair.groupby(["experiment", "condition", "optimizer"])["low"].min() > 0
        message = (
            f"In {better.sum()} of {len(better)} settings guidance is clearly better than both plain fine-tuning and \
the linear probe"
        )
        note = "Each method at its own best rate; bars: 95 % intervals over networks; in brackets: the notebook."
        headline(figure, message, note)
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


Found = Iterator[tuple[str, str, str, str, Mapping[str, object]]]  # panel, condition, rival, optimizer, difference


def _one_shot(frame: pd.DataFrame) -> Found:
    for row in one_shot.verdicts(frame).to_dict("records"):
        if row["tuned_on"] == "first":
            yield from _of_guided(row, ONE_SHOT, f"{row['task']}, {_start(row)}")


def _forgetting(frame: pd.DataFrame) -> Found:
    base = frame["epochs"].iloc[0]
    for row in forgetting.verdicts(frame).to_dict("records"):
        tuned_on = row["tuned_on"]
        if tuned_on in HOW and row["stream"] == "single" and row["epochs"] == base:
            panel = "" if tuned_on == "same" else STREAM  # the picture has each method at its own best rate
            yield from _of_guided(row, panel, f"stream, {_start(row)}, {HOW[tuned_on]}")


def _of_guided(row: Mapping, panel: str, condition: str) -> Found:
    rival = row["comparison"].removeprefix("guided - ")
    if rival in RIVALS and row["scouts"] == row["optimizer"]:
        yield "" if row["zero_point"] == "random" else panel, condition, RIVALS[rival], row["optimizer"], row


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
            yield "", f"{arena}, {row['head']} head{rates}", rival, row["optimizer"], row


def _own_model(frame: pd.DataFrame) -> Found:
    for row in own_model.verdicts(frame).to_dict("records"):
        rival = row["comparison"].removeprefix("guided_classes - ")
        if rival in RIVALS:
            yield ONE_SHOT, "5-way 1-shot, a ResNet", RIVALS[rival], "sgd", row


def _few_shot(frame: pd.DataFrame) -> Found:
    tests = rows_where(frame, metric="accuracy", zero_point="pretrained")
    for task, rows in tests.groupby(["n_way", "n_shot"], sort=False):
        methods = dict(list(rows.groupby("method")))
        yield from _of_methods(ONE_SHOT, f"{Task(*task)}, zero head", methods, methods)


def _streams(frame: pd.DataFrame) -> Found:
    for head, rows in rows_where(frame, metric="accuracy").groupby("head", sort=False):
        _, last = first_and_last(rows)
        yield from _of_methods(STREAM, f"stream, {head} head, {HOW['last']}", last, last)


def _domain_shift(frame: pd.DataFrame) -> Found:
    tests = rows_where(frame, metric="accuracy", alignment=NONE)
    for (target, *task), rows in tests.groupby(["target", "n_way", "n_shot"], sort=False):
        guided, rivals = (dict(list(rows_where(rows, scouts=s).groupby("method"))) for s in ("target", NONE))
        where = f"glyphs to handwriting, {target.replace('_', ' ')}, {Task(*task)}"
        yield from _of_methods(ONE_SHOT, where, guided, rivals)


def _of_methods(
    panel: str, condition: str, guided: Mapping[str, pd.DataFrame], rivals: Mapping[str, pd.DataFrame]
) -> Found:
    """By the names that methods have in 06 to 08: their test rows, at each one's best setting."""
    for optimizer, suffix in SUFFIXES.items():
        for rival, label in RIVALS.items():
            mine, theirs = f"guided_network{suffix}", f"{rival}{suffix}"
            if mine in guided and theirs in rivals:
                yield panel, condition, label, optimizer, difference(guided[mine], rivals[theirs])


def _paper_setting(frame: pd.DataFrame) -> Found:
    table = paper_setting.comparisons(frame)
    base = table.iloc[0][["network", "n_images", "scout_ways", "scout_head", "head"]]
    rates = {"one": "one rate", "apart": "rates for body and head apart"}
    for row in rows_where(table, **base).to_dict("records"):
        if row["rival"] in RIVALS and row["scouts"] == row["optimizer"] and row["optimizer"] in BY:
            where = f"digits to {row['n_way']} characters, {rates[row['rates']]}"
            yield ONE_SHOT, where, RIVALS[row["rival"]], row["optimizer"], row


def _two_parameters(frame: pd.DataFrame) -> Found:
    """Minus the excess loss, so that more is better here, too."""
    excess = frame[frame["metric"] == "excess_loss"]
    for family, rows in excess.assign(value=-excess["value"]).groupby("family", sort=False):
        methods = dict(list(rows.groupby("method")))
        yield "", f"tasks {family}", RIVALS["plain"], "sgd", difference(methods["guided"], methods["plain"])


def _xor(frame: pd.DataFrame) -> Found:
    times = frame[frame["metric"] == "time"]
    times = times.assign(task=times["init"], value=times["value"].notna().astype(float))
    for network, rows in times.groupby("network", sort=False):
        methods = dict(list(rows.groupby("method")))
        for rival, label in (("plain", "plain descent"), ("plain_restarts", "plain descent with restarts")):
            yield "", f"XOR solved by {network}", label, "sgd", difference(methods["guided"], methods[rival], "inits")


def _authors_code(frame: pd.DataFrame) -> Found:
    tables = {"patterns memorised": authors.claim_table(frame)}
    tables |= {f"a part again: {name}": rows for name, rows in authors.relearning_table(frame).groupby("measure")}
    for condition, table in tables.items():
        for row in (
            rows_where(table, method="guided_network").rename(columns={"minus_plain": "mean"}).to_dict("records")
        ):
            yield "", condition, RIVALS["plain"], "adam", row


def _genes(frame: pd.DataFrame) -> Found:
    for row in genes.guided_minus_rivals(frame).to_dict("records"):
        if row["rival"] in RIVALS and row["optimizer"] in BY:
            zero_point, cells = row["zero_point"], "1 cell" if row["n_shot"] == 1 else f"{row['n_shot']} cells"
            shown = ONE_SHOT if (zero_point, row["scouts"], row["n_shot"]) == ("types", "pairs", 1) else ""
            condition = f"two types of cells, {zero_point}, {row['scouts']}, {cells}"
            yield shown, condition, RIVALS[row["rival"]], row["optimizer"], row


def _learned(frame: pd.DataFrame) -> Found:
    """From the zero points that 06 does not have, and with wrong labels."""
    tests = frame[(frame["metric"] == "accuracy") & ((frame["zero_point"] != "supervised") | (frame["wrong"] > 0))]
    for (point, wrong, *task), rows in tests.groupby(["zero_point", "wrong", "n_way", "n_shot"], sort=False):
        methods = dict(list(rows.groupby("method")))
        where = f"from {UNLABELLED.get(point, point)}" + (f", {wrong:.0%} wrong labels" if wrong else "")
        shown = ONE_SHOT if point in UNLABELLED and task[1] == 1 else ""
        yield from _of_methods(shown, f"{where}, {Task(*task)}", methods, methods)


def _architecture(frame: pd.DataFrame) -> Found:
    """With networks that were found; conv4 is in 06."""
    tests = frame[(frame["metric"] == "accuracy") & (frame["found_by"] != "by_hand")]
    for (by, *task), rows in tests.groupby(["found_by", "n_way", "n_shot"], sort=False):
        methods = dict(list(rows.groupby("method")))
        yield from _of_methods("", f"network found by {by.replace('_', ' ')}, {Task(*task)}", methods, methods)


COMPARE: dict[str, tuple[str, Callable[[pd.DataFrame], Found]]] = {
    "method": ("00", _two_parameters),
    "one_shot": ("01", _one_shot),
    "xor": ("02", _xor),
    "forgetting": ("03", _forgetting),
    "guides": ("04", _guides),
    "own_model": ("05", _own_model),
    "few_shot_neighbours": ("06", _few_shot),
    "forgetting_neighbours": ("07", _streams),
    "domain_shift": ("08", _domain_shift),
    "paper_setting": ("10", _paper_setting),
    "authors_code": ("11", _authors_code),
    "learned_everything": ("12", _learned),
    "genes": ("14", _genes),
    "architecture": ("16", _architecture),
}


if __name__ == "__main__":
    print(markdown(by_optimizer(against_rivals(Path(sys.argv[1])))))

"""What to use: how far each method stays behind the best one, wherever this companion has compared them.

Nothing is trained. From the tables of the other experiments: regret, points of accuracy below the best method of an
arena, for each method at the rate that validation chose for it; and at ten times that rate, since a practitioner has
no validation tasks to choose it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.episodes import Task
from experiments.methods import CONTROL, FINE_TUNING, FROZEN, NETWORK, PLAIN, TENSOR, Method, table
from experiments.parameters import NotebookParameters, ParameterError
from experiments.records import read, resolve
from experiments.statistics import NONE, difference, rows_where, scouted_alike
from experiments.streams import first_and_last

METHODS = table(
    [
        FROZEN,
        Method("lp_ft", "LP-FT", FINE_TUNING),
        Method("l2_sp", "L2-SP", FINE_TUNING),
        PLAIN,
        NETWORK,
        TENSOR,
        Method("uniform", "one g: the mean", CONTROL),
    ]
)
EVERYWHERE = (FROZEN.name, PLAIN.name, NETWORK.name)  # the other methods do not run in every arena
SETTING = ("factor", "strength", "head_rate", "learning_rate")  # what is chosen, as far as a table has it
TOO_HIGH = 10


class WhatToUseParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""


class Contest(NamedTuple):
    """Some tasks on which several methods were compared, paired.

    tests: seed, task, method and value, an accuracy, of each at its best setting. tuning: the same of validation tasks,
    for every setting.
    """

    name: str
    experiment: str  # the number of the notebook
    tests: pd.DataFrame
    tuning: pd.DataFrame


def run(p: WhatToUseParameters) -> pd.DataFrame:
    """Regret in every arena of the tables that are in ``p.results``, as a tidy frame.

    Columns: seed (empty), arena, experiment, method (of `METHODS`), metric, value. Metrics, in shares of 1:

    - ``regret``: how far the mean test accuracy is below that of the arena's best method, which is 0 for itself; with
      ``low`` and ``high``, the 95 % interval of the paired difference (none for the best, or with too few tasks);
    - ``too_high``: the same on validation tasks at ten times the rate, below the best method at its best rate.

    The best was picked on the test tasks themselves, which flatters it a little, and regrets are as much too large.
    ParameterError if there is no table that has an arena.
    """
    found = arenas(resolve(p.results))
    if not found:
        raise ParameterError(f"results = {p.results!r}: has no table of {', '.join(TABLES)}; run one of them first")
    rows = []
    for arena in found:
        where = {"seed": "", "arena": arena.name, "experiment": arena.experiment}
        for name, values in (*regrets(arena.tests).items(), *regrets_too_high(arena.tuning).items()):
            rows += [where | {"method": name, "metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["seed", "arena", "experiment", "method", "metric", "value"])


def regrets(tests: pd.DataFrame) -> dict[str, dict[str, float]]:
    """``regret``, ``low`` and ``high`` of every method."""
    values = dict(list(tests.groupby("method", sort=False)))
    best = max(values, key=lambda name: values[name]["value"].mean())
    found = {best: {"regret": 0.0}}
    for name in [name for name in values if name != best]:
        estimate = difference(values[best], values[name])
        numbers = {"regret": max(estimate["mean"], 0.0), "low": estimate["low"], "high": estimate["high"]}
        found[name] = {metric: value for metric, value in numbers.items() if not np.isnan(value)}
    return found


def regrets_too_high(tuning: pd.DataFrame) -> dict[str, dict[str, float]]:
    """``too_high`` of every method that was tried at ten times its best rate, whatever else it chose staying the same.

    Where body and head have rates of their own, the head's stays, too.
    """
    setting = [column for column in SETTING if column in tuning]
    means = tuning.groupby(["method", *setting], sort=False)["value"].mean().reset_index()
    chosen = {name: rows.loc[rows["value"].idxmax()] for name, rows in means.groupby("method", sort=False)}
    best, found = max(row["value"] for row in chosen.values()), {}
    for name, row in chosen.items():
        rate = "learning_rate" if row["learning_rate"] > 0 else "head_rate"
        others = [column for column in setting if column != rate]
        same = rows_where(means, method=name, **row[others])
        higher = same[np.isclose(same[rate], TOO_HIGH * row[rate], rtol=0.25)]  # lists of rates are rounded
        if len(higher):
            found[name] = {"too_high": best - higher["value"].iloc[0]}
    return found


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method and metric (``regret``, ``too_high``): its ``mean`` and ``worst`` over so many ``arenas``.

    An arena counts if all methods of `EVERYWHERE`, which come first, have a value there; the smallest worst is on top.
    """
    found = []
    for metric in ("regret", "too_high"):
        values = frame[frame["metric"] == metric].pivot(index="arena", columns="method", values="value")
        values = values.reindex(columns=values.columns.union(EVERYWHERE)).dropna(subset=EVERYWHERE)
        for name, mine in values.dropna(axis=1, how="all").items():
            numbers = {"arenas": int(mine.count()), "mean": mine.mean(), "worst": mine.max()}
            found.append({"metric": metric, "method": name, "everywhere": name in EVERYWHERE} | numbers)
    columns = ["metric", "method", "everywhere", "arenas", "mean", "worst"]
    order = {"by": ["metric", "everywhere", "worst"], "ascending": [True, False, True]}
    return pd.DataFrame(found, columns=columns).sort_values(**order, ignore_index=True)


def never_far(frame: pd.DataFrame) -> str:
    """In words: who is never far from the best, of those that run everywhere; and with a rate that is too high."""
    whens = {"regret": "at the rate that validation chose", "too_high": f"at {TOO_HIGH} times that rate"}
    lines = []
    for metric, there in summary(frame).groupby("metric", sort=False):
        first, *others = there[there["everywhere"]].itertuples()
        said = ", ".join(f"{METHODS[row.method].label} {100 * row.worst:.1f}" for row in others)
        lines += [
            f"Never far from the best {whens[metric]}, in {first.arenas} arenas: {METHODS[first.method].label},",
            f"  at most {100 * first.worst:.1f} points below it (mean {100 * first.mean:.1f}); others at most: {said}.",
        ]
    return "\n".join(lines)


def arenas(folder: Path) -> list[Contest]:
    """Those that the tables in ``folder`` know, in the order of the experiments."""
    found = []
    for name, (experiment, of_table) in TABLES.items():
        if (folder / f"{name}.csv").exists():
            found += [_arena(where, experiment, rows) for where, rows in of_table(read(folder, name))]
    return [arena for arena in found if set(EVERYWHERE) <= set(arena.tests["method"])]


def _arena(name: str, experiment: str, rows: pd.DataFrame) -> Contest:
    rows = rows[rows["method"].isin(list(METHODS))]
    tests, tuning = (rows[rows["metric"] == metric] for metric in ("accuracy", "validation"))
    setting = [column for column in SETTING if column in rows]
    return Contest(
        name, experiment, tests[["seed", "task", "method", "value"]], tuning[["seed", "method", *setting, "value"]]
    )


Found = Iterator[tuple[str, pd.DataFrame]]  # the name of an arena, and its rows


def _few_shot(frame: pd.DataFrame) -> Found:
    there = rows_where(frame, zero_point="pretrained")
    for task, rows in there.groupby(["n_way", "n_shot"], sort=False):
        yield f"other characters, {Task(*task)}", rows


def _domain_shift(frame: pd.DataFrame) -> Found:
    """With scouts that see the target, as far as a method has any."""
    guided = frame["method"].isin([NETWORK.name, TENSOR.name])
    there = frame[(frame["alignment"] == NONE) & (frame["scouts"] == guided.map({True: "target", False: NONE}))]
    targets = {"as_is": "print to handwriting", "inverted": "print to inverted handwriting"}
    for (target, *task), rows in there.groupby(["target", "n_way", "n_shot"], sort=False):
        yield f"{targets[target]}, {Task(*task)}", rows


def _own_model(frame: pd.DataFrame) -> Found:
    ours = {"guided_classes": NETWORK.name}
    yield "a ResNet on characters", frame.replace({"method": ours, "metric": {"validation_first": "validation"}})


def _streams(frame: pd.DataFrame) -> Found:
    for head, rows in frame.groupby("head", sort=False):
        _, last = first_and_last(rows_where(rows, metric="accuracy"))
        yield f"a stream of characters, {head} head", pd.concat([*last.values(), rows_where(rows, metric="validation")])


def _paper_setting(frame: pd.DataFrame) -> Found:
    """The first condition; the head with a rate of its own where a method allows it."""
    first = frame[frame["method"] == NETWORK.name].iloc[0]
    there = rows_where(frame, **first[["network", "n_images", "n_way", "head", "optimizer"]])
    there = scouted_alike(there, first, ["scouts", "scout_ways", "scout_head"])
    apart = there[there["rates"] == "apart"]
    single = there[there["method"].isin([FROZEN.name, "uniform"]) & (there["rates"] == "one")]
    yield f"digits to {first['n_way']} characters, 1 shot", pd.concat([apart, single])


def _learned(frame: pd.DataFrame) -> Found:
    """From zero points that never saw a label, and with wrong labels."""
    for point, label in (("simclr", "SimCLR"), ("masked", "masked images")):
        for task, rows in rows_where(frame, zero_point=point).groupby(["n_way", "n_shot"], sort=False):
            yield f"from {label}, no labels, {Task(*task)}", rows
    for wrong, rows in frame[frame["wrong"] > 0].groupby("wrong"):
        yield f"{wrong:.0%} wrong labels, {Task(*rows[['n_way', 'n_shot']].iloc[0])}", rows


def _genes(frame: pd.DataFrame) -> Found:
    first = frame[frame["method"] == NETWORK.name].iloc[0]
    there = scouted_alike(rows_where(frame, **first[["zero_point", "optimizer"]]), first)
    for n_shot, rows in there.groupby("n_shot"):
        yield f"two types of cells, {n_shot} shot{'s' * (int(n_shot) > 1)}", rows


TABLES: dict[str, tuple[str, Callable[[pd.DataFrame], Found]]] = {
    "own_model": ("05", _own_model),
    "few_shot_neighbours": ("06", _few_shot),
    "forgetting_neighbours": ("07", _streams),
    "domain_shift": ("08", _domain_shift),
    "paper_setting": ("10", _paper_setting),
    "learned_everything": ("12", _learned),
    "genes": ("14", _genes),
}

"""What the table of `14_genes` says."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from experiments.e14_genes.methods import METHODS
from experiments.e14_genes.run import GeneVariant
from experiments.methods import NETWORK
from experiments.ranking import accuracy_of, best_first
from experiments.statistics import NONE, difference

KEY = list(GeneVariant._fields)
CONDITION = KEY[:-1]


def ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method with its balanced accuracy, best first for each number of cells.

    Of the conditions that a method has (zero points, scouts, optimizers) the one that was best in tuning, which
    ``zero_point``, ``scouts`` and ``optimizer`` name.
    """
    tuning = frame[frame["metric"] == "validation"]
    best = tuning.groupby([*KEY, "learning_rate", "head_rate"], sort=False)["value"].mean()
    best = best.groupby(level=KEY, sort=False).max()
    chosen = best.loc[best.groupby(level=["n_shot", "method"], sort=False).idxmax()].index
    accuracy = dict(list(frame[frame["metric"] == "accuracy"].groupby(KEY, sort=False)))
    rows = [dict(zip(KEY, key, strict=True)) | accuracy_of(accuracy[key]) for key in chosen]
    return best_first(rows, ["n_shot"])


def guided_minus_rivals(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided training (network scope) minus every other method under the same condition, each at its own best rate.

    One row per condition and rival, with the paired `difference` in balanced accuracy over splits of the types and
    draws of the cells.
    """
    accuracy = frame[frame["metric"] == "accuracy"]
    rows = []
    for key, guided in accuracy[accuracy["method"] == NETWORK.name].groupby(KEY, sort=False):
        condition = dict(zip(CONDITION, key, strict=False))
        for rival in [name for name in METHODS if name != NETWORK.name]:
            if len(values := _beside(accuracy, condition, rival)):
                rows.append(condition | {"rival": rival} | difference(guided, values, "draws", "splits"))
    return pd.DataFrame(rows)


def _beside(accuracy: pd.DataFrame, condition: Mapping[str, object], rival: str) -> pd.DataFrame:
    """The rival's rows under a condition, of which those columns count that concern it."""
    there = accuracy[accuracy["method"] == rival]
    for column, value in condition.items():
        there = there[there[column].isin([value, NONE])]
    return there


def settings(frame: pd.DataFrame) -> pd.DataFrame:
    """Every variant with the setting that was chosen; ``edge``: the lowest or highest of those that it tried."""
    columns = [*KEY, "learning_rate", "head_rate"]
    table = frame.loc[frame["metric"] == "accuracy", columns].drop_duplicates().set_index(KEY)
    tried = frame[frame["metric"] == "validation"].groupby(KEY, sort=False)["learning_rate"].agg(["min", "max"])
    heads = frame[frame["metric"] == "validation"].groupby(KEY, sort=False)["head_rate"].agg(["min", "max"])
    edge = pd.Series(False, table.index)
    for name, ends in (("learning_rate", tried), ("head_rate", heads)):
        ends = ends.loc[table.index]
        edge |= (ends["min"] < ends["max"]) & ((table[name] == ends["min"]) | (table[name] == ends["max"]))
    return table.assign(edge=edge).reset_index()

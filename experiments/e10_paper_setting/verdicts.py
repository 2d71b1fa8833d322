"""What the table of the experiment in the paper's setting says."""

from __future__ import annotations

import pandas as pd

from experiments.e10_paper_setting.methods import METHODS
from experiments.e10_paper_setting.parameters import SCOUTS, TASK
from experiments.e10_paper_setting.run import KEY
from experiments.methods import NETWORK, PLAIN
from experiments.statistics import alike, difference, rows_where, scouted_alike

CONDITION = [*TASK, *SCOUTS]


def comparisons(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided training (network scope) minus every other method under the same condition, each at its own best.

    With one rate for body and head, or with rates apart, where methods that have only one take part, too. One row per
    condition, rates and rival, with the paired `difference` in accuracy over networks and sets of characters.
    """
    accuracy = frame[frame["metric"] == "accuracy"]
    rows = []
    for key, guided in accuracy[accuracy["method"] == NETWORK.name].groupby(KEY, sort=False):
        condition = dict(zip(KEY, key, strict=True))
        for rival, values in _beside(accuracy, condition).items():
            rows.append(condition | {"rival": rival} | difference(guided, values, "sets"))
    return pd.DataFrame(rows).drop(columns="method")


def _beside(accuracy: pd.DataFrame, condition: dict[str, object]) -> dict[str, pd.DataFrame]:
    """The rows of every rival of guided training under a condition."""
    there = scouted_alike(rows_where(accuracy, **{column: condition[column] for column in TASK}), condition, SCOUTS)
    found = {}
    for method, rows in there[there["method"] != NETWORK.name].groupby("method", sort=False):
        mine = rows[rows["rates"] == ("one" if METHODS[method].one_rate else condition["rates"])]
        if len(mine):
            found[method] = mine
    return found


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy of every variant with its setting and steps, best first.

    ``edge``: whether the rate is the lowest or highest that was tried, so that it may have wanted another.
    """
    test = frame[frame["metric"] == "accuracy"]
    table = test.groupby(KEY, sort=False).agg(
        accuracy=("value", "mean"),
        learning_rate=("learning_rate", "first"),
        head_rate=("head_rate", "first"),
        step=("step", "first"),
    )
    rate = table["learning_rate"].where(table["learning_rate"] > 0, table["head_rate"])
    tried = frame[(frame["metric"] == "validation") & (frame["head_rate"] > 0)]
    ends = tried.groupby("optimizer")["head_rate"].agg(["min", "max"])
    ends = ends.loc[table.index.get_level_values("optimizer")]
    edge = (rate.to_numpy() == ends["min"].to_numpy()) | (rate.to_numpy() == ends["max"].to_numpy())
    return table.assign(edge=edge).sort_values("accuracy", ascending=False).reset_index()


def guided_minus_plain(frame: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Plain and guided accuracy for each value of a column, rates apart, all else as under the first condition.

    One row per value: both means, and guided minus plain as a paired difference.
    """
    accuracy = frame[(frame["metric"] == "accuracy") & (frame["rates"] == "apart")]
    guided = accuracy[accuracy["method"] == NETWORK.name]
    guided = alike(guided, *(column for column in KEY if column != axis))
    rows = []
    for value, mine in guided.groupby(axis, sort=False):
        condition = dict(mine.iloc[0][KEY])
        plain = _beside(accuracy, condition)[PLAIN.name]
        means = {"plain": plain["value"].mean(), "guided": mine["value"].mean()}
        rows.append({axis: value} | means | difference(mine, plain, "sets"))
    return pd.DataFrame(rows)


def turning(frame: pd.DataFrame) -> pd.DataFrame:
    """When the loss on unseen drawings is lowest, and how far it rises from there to the last step.

    Plain and guided training with one and the same rate, the one that is best for guided training, under the first
    condition: one row per method, means over networks.
    """
    loss = frame[(frame["metric"] == "loss_curve") & (frame["rates"] == "one")]
    first = loss[loss["method"] == NETWORK.name].iloc[0]
    there = scouted_alike(rows_where(loss, **first[[*TASK, "learning_rate"]]), first, SCOUTS)
    rows = []
    for name in (PLAIN.name, NETWORK.name):
        table = there[there["method"] == name].pivot(index="step", columns="seed", values="value")
        rise = (table.iloc[-1] - table.min()).mean()
        rows.append({"method": name, "lowest after": table.idxmin().mean(), "rise to the last step": rise})
    return pd.DataFrame(rows)

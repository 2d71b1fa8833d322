"""What the table of the experiment in the paper's setting says."""

from __future__ import annotations

import pandas as pd

from experiments.e10_paper_setting.methods import METHODS
from experiments.e10_paper_setting.parameters import SCOUTS, TASK
from experiments.e10_paper_setting.run import KEY
from experiments.methods import NETWORK, PLAIN
from experiments.optimizers import LABELS
from experiments.statistics import difference, rows_where, scouted_alike

CONDITION = [*TASK, *SCOUTS]
WORDS = {
    "network": "the network is {}",
    "n_images": "{} digits to pretrain on",
    "n_way": "{} characters",
    "head": "the new head starts at {}",
    "optimizer": "tuned by {}",
    "scouts": "scouts by {}",
    "scout_ways": "{} digits per scout",
    "scout_head": "scouts keep the {} head",
}


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


def over_conditions(frame: pd.DataFrame) -> pd.DataFrame:
    """Guided minus plain under every condition, each with a rate for body and head and at its own best.

    One row per condition, the first one first: ``condition`` in words, what differs from the first; both means, and
    guided minus plain as a paired `difference` over networks and sets of characters.
    """
    accuracy = frame[(frame["metric"] == "accuracy") & (frame["rates"] == "apart")]
    rows, first = [], None
    for key, guided in accuracy[accuracy["method"] == NETWORK.name].groupby(CONDITION, sort=False):
        condition = dict(zip(CONDITION, key, strict=True))
        first = first or condition
        plain = _beside(accuracy, condition | {"rates": "apart"})[PLAIN.name]
        means = {"plain": plain["value"].mean(), "guided": guided["value"].mean()}
        changed = [
            WORDS[column].format(_in_words(value)) for column, value in condition.items() if value != first[column]
        ]
        named = {"condition": ", ".join(changed) or "the first condition"}
        rows.append(condition | named | means | difference(guided, plain, "sets"))
    return pd.DataFrame(rows)


def _in_words(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else LABELS.get(value, value)


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

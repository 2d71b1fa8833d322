"""The decision guide: what to use in each situation that the tables of 06, 07 and 08 know."""

from __future__ import annotations

import pandas as pd

from experiments import stream_methods
from experiments.e08_domain_shift.methods import METHODS
from experiments.e08_domain_shift.run import ranking
from experiments.few_shot import rank_episodes
from experiments.methods import GUIDED
from experiments.neighbours import NEIGHBOURS
from experiments.records import read, resolve

LABELS = {row.name: row.label for rows in (METHODS, stream_methods.METHODS, NEIGHBOURS) for row in rows.values()}
ANSWERS = {
    "above": "wins against",
    "below": "loses to",
    "undecided": "is level with",
    "too few to tell": "cannot be placed against",
}
NUMBERS = ["accuracy", "accuracy_low", "accuracy_high", "difference", "low", "high"]


def choices(results: str) -> pd.DataFrame:
    """What to use in each situation that the tables of 06 to 08 in the folder ``results`` know.

    One row per (situation, choice): ``as pretrained``, the best without a second preparation; ``prepared``, the best
    with one (or, in a stream, with a memory); ``guided``, the guide that validation prefers. With accuracy and its
    interval, and guided minus the choice, paired, as the rankings have them. What a table does not hold is left out.
    The best of many is a little too good, since it was picked on the test tasks themselves.
    """
    rows = []
    for name, ranked_in_situations in RANKINGS.items():
        if not (resolve(results) / f"{name}.csv").exists():
            continue
        for situation, ranked in ranked_in_situations(read(results, name)).groupby("situation", sort=False):
            others = ranked[~ranked["is_guided"]]
            groups = {
                "as pretrained": others[~others["prepared"]],
                "prepared": others[others["prepared"]],
                "guided": ranked[ranked["name"] == ranked["guided"]],
            }
            for choice, group in groups.items():
                if len(group):
                    best = group.loc[group["accuracy"].idxmax()]
                    numbers = best.index.intersection([*NUMBERS, "side", "text"])
                    rows.append({"situation": situation, "choice": choice, "name": best["name"]} | dict(best[numbers]))
    return pd.DataFrame(rows)


def tidy_choices(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `choices` as a tidy table: one row per situation, choice and metric."""
    long = table.rename(columns={"name": "method"})
    long = long.melt(["situation", "choice", "method"], NUMBERS, var_name="metric")
    return long.assign(seed="").dropna(subset="value")


def advice(table: pd.DataFrame) -> str:
    """The rows of `choices` in words."""
    lines = []
    for situation, there in table.groupby("situation", sort=False):
        by_choice = there.set_index("choice")
        best = there.loc[there["accuracy"].idxmax()]
        lines.append(f"{situation}: {best['name']} ({best['accuracy']:.3f}).")
        if "as pretrained" in by_choice.index and best["choice"] != "as pretrained":
            cheap = by_choice.loc["as pretrained"]
            lines.append(f"  Without a second preparation: {cheap['name']} ({cheap['accuracy']:.3f}).")
        if "guided" in by_choice.index:
            for choice, row in by_choice.drop("guided").iterrows():
                lines.append(f"  Guidance {ANSWERS[row['side']]} the best {choice}, {row['name']}: {row['text']}.")
    return "\n".join(lines)


def _few_shot(frame: pd.DataFrame) -> pd.DataFrame:
    table = rank_episodes(frame, [], ["zero_point"])
    table = table[table["zero_point"] == "pretrained"]
    rows = table["method"].map(NEIGHBOURS)
    return table.assign(
        situation="similar data, " + table["task"],
        name=table["method"],
        guided=table["guided"].str[-1],
        is_guided=[row.family == GUIDED for row in rows],
        prepared=[row.prepare is not None for row in rows],
    )


def _domain_shift(frame: pd.DataFrame) -> pd.DataFrame:
    table = ranking(frame)
    return table.assign(
        situation=table["target"].map({"as_is": "other origin, ", "inverted": "inverted, "}) + table["task"],
        is_guided=table["scouts"] != "none",
        prepared=table["alignment"] != "none",
    )


def _forgetting(frame: pd.DataFrame) -> pd.DataFrame:
    table = stream_methods.ranking(frame)
    return table.assign(
        situation="one by one, " + table["head"] + " head",
        name=table["method"],
        is_guided=table["method"].str.startswith("guided"),
        prepared=table["stored"] > 0,
    )


RANKINGS = {"few_shot_neighbours": _few_shot, "domain_shift": _domain_shift, "forgetting_neighbours": _forgetting}

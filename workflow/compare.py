"""Say which verdicts and numbers differ between two folders of results: ``compare.py results/paper results/mine``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import common
import pandas as pd

from experiments.overview import against_rivals
from experiments.statistics import TOO_FEW

KEY = ["experiment", "condition", "rival", "optimizer"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", help="a folder with tables, such as results/paper")
    parser.add_argument("other")
    args = parser.parse_args()
    tables = [against_rivals(folder(name)) for name in (args.one, args.other)]
    if empty := [name for name, table in zip((args.one, args.other), tables, strict=True) if table.empty]:
        sys.exit(f"no tables in {' and '.join(empty)}")
    print(report(*tables))


def folder(name: str) -> Path:
    path = common.ROOT / name
    if not path.is_dir():
        sys.exit(f"{name}: no such folder")
    return path


def differences(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """The comparisons (`experiments.overview.Comparison`) that both tables have, with ``_one`` and ``_other``;
    ``verdict``: whether both have an interval, on another side of 0; ``moved``: whether the other's mean is outside
    one's interval."""
    both = one.merge(other, on=KEY, suffixes=("_one", "_other"))
    moved = (both["mean_other"] < both["low_one"]) | (both["mean_other"] > both["high_one"])
    told = (both[["side_one", "side_other"]] != TOO_FEW).all(axis=1)
    return both.assign(verdict=told & (both["side_one"] != both["side_other"]), moved=moved)


def report(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """What differs, a line each; then how many of how many."""
    both = differences(one, other)
    lines = []
    for row in both[both["verdict"] | both["moved"]].itertuples():
        what = ["another verdict"] * row.verdict + ["outside the interval"] * row.moved
        lines += [f"{row.experiment}  {row.condition}: guided - {row.rival} ({row.optimizer}): {', '.join(what)}"]
        lines += [f"      {row.text_one}  ->  {row.text_other}"]
    counts = (
        f"{both['verdict'].sum()} have another verdict, {both['moved'].sum()} a mean outside the first one's interval"
    )
    lines += [f"{len(both)} comparisons are in both: {counts}."]
    for name, mine, theirs in (("first", one, other), ("second", other, one)):
        if only := sorted({*mine["experiment"]} - {*theirs["experiment"]}):
            lines += [f"Only the {name} has {', '.join(only)}."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

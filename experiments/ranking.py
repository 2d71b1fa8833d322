"""Rankings: every method with its accuracy, best first, and what guidance is above and below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from experiments.statistics import by_seed_and_task, difference, mean_interval


def rank(
    accuracies: pd.DataFrame,
    tuning: pd.DataFrame,
    conditions: Sequence[str],
    variants: Sequence[str],
    is_guide: Callable[[Mapping[str, object]], bool],
    tasks: str = "episodes",
) -> pd.DataFrame:
    """Every variant of each condition with its accuracy, as the columns of `accuracy_of`, best first.

    accuracies, tuning: the test rows and the ``validation`` rows of a table. conditions, variants: its columns that
    tell them apart. is_guide: whether a variant (its columns) is guidance and nothing else. ``guided`` is the variant,
    a tuple, that does best of those in validation, or None; the columns of `statistics.difference` (the mean
    as ``difference``) compare it with each.
    """
    settings = tuning.columns.intersection(["factor", "strength", "learning_rate"])
    best = tuning.groupby([*conditions, *variants, *settings])["value"].mean()  # over seeds
    best = best.groupby(level=[*conditions, *variants]).max()
    rows = []
    for condition, there in accuracies.groupby(list(conditions), sort=False):
        values = dict(list(there.groupby(list(variants), sort=False)))
        names = {key: dict(zip(variants, key, strict=True)) for key in values}
        guides = [key for key in values if is_guide(names[key])]
        guided = max(guides, key=lambda key: best[*condition, *key], default=None)
        for key, mine in values.items():
            row = dict(zip(conditions, condition, strict=True)) | names[key] | accuracy_of(mine) | {"guided": guided}
            rows.append(row | (difference(values[guided], mine, tasks) if guided else {}))
    return best_first(rows, conditions).rename(columns={"mean": "difference"})


def accuracy_of(values: pd.DataFrame) -> dict[str, float]:
    """Mean accuracy and its 95 % interval, as columns of a ranking."""
    e = mean_interval(by_seed_and_task(values))
    return {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high}


def best_first(rows: list[dict[str, object]], groups: Sequence[str]) -> pd.DataFrame:
    """The rows of a ranking by accuracy within each group; groups keep their order."""
    table = pd.DataFrame(rows)
    order = table.groupby(list(groups), sort=False).ngroup()
    table = table.assign(_order=order).sort_values(["_order", "accuracy"], ascending=[True, False])
    return table.drop(columns="_order").reset_index(drop=True)


def sides(others: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of a ranking, who is above and below guidance (the interval of the difference excludes 0), and who neither."""
    words = others["side"].map({"below": "above it", "above": "below it"}).fillna("undecided")  # `side` is guidance's
    return {word: others[words == word] for word in ("above it", "below it", "undecided")}

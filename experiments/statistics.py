"""Means with confidence intervals that respect how the results were drawn: networks first, then tasks for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

FEW = 5  # values; with fewer there is no interval
NONE = "none"  # in the column ``scouts``, of methods without any, in the place of their optimizer
TOO_FEW = "too few to tell"
TIE = 1e-9  # networks whose means differ by less are equal


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval, NaN where there are too few values; ``n`` is (seeds, tasks per seed). Arrays
    where the values were curves."""

    mean: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float
    n: tuple[int, int]

    @property
    def side(self) -> str:
        """Where the interval lies: above 0, below, or undecided; or that there is none."""
        if np.isnan(self.low):
            return TOO_FEW
        return "above" if self.low > 0 else "below" if self.high < 0 else "undecided"

    @property
    def text(self) -> str:
        interval = TOO_FEW if np.isnan(self.low) else f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f} {interval}"

    def __str__(self) -> str:
        return f"{self.text} (n = {self.n[0]} seeds x {self.n[1]} tasks)"


def mean_interval(values: np.ndarray, level: float = 0.95) -> Estimate:
    """The mean of ``values`` [seeds, tasks, ...] with the t interval over the means of the seeds.

    The tasks of one seed share a pretrained network, so the networks are what was drawn independently: mean +- t *
    standard error of their means, with one degree of freedom less than there are (Student 1908). A single network has
    the interval over its tasks, which speaks of that network alone. Accuracies are counts, so the means of a few
    networks can be equal by chance; that is no certainty, and then the interval is over all tasks, too. With fewer than
    `FEW` values there is none. What this covers, and what a bootstrap would: ``python -m benchmarks.coverage``.
    """
    n_seeds, n_tasks = values.shape[:2]
    networks, tasks = values.mean(1), values.reshape(-1, *values.shape[2:])
    mean = networks.mean(0)
    if len(tasks) < FEW:
        half = np.full_like(mean, np.nan)
    else:
        half = _half_width(tasks, level)
        if n_seeds > 1:
            half = np.where(np.ptp(networks, axis=0) < TIE, half, _half_width(networks, level))
    return Estimate(mean, mean - half, mean + half, (n_seeds, n_tasks))


def _half_width(drawn: np.ndarray, level: float) -> np.ndarray:
    """Half of the t interval for the mean of what ``drawn`` [n, ...] are draws of."""
    n = len(drawn)
    return stdtrit(n - 1, (1 + level) / 2) * drawn.std(0, ddof=1) / n**0.5


def rows_where(frame: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows that have these values in these columns."""
    return frame[(frame[list(values)] == pd.Series(values)).all(axis=1)]


def alike(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that have what the first one has in these columns."""
    return rows_where(frame, **frame.iloc[0][[*columns]])


def scouted_alike(
    frame: pd.DataFrame, like: Mapping[str, object] | pd.Series, columns: Sequence[str] = ("scouts",)
) -> pd.DataFrame:
    """The rows in which scouts were the same in these columns as in the row ``like``, or had no part."""
    same = (frame[[*columns]] == pd.Series({column: like[column] for column in columns})).all(axis=1)
    return frame[same | (frame["scouts"] == NONE)]


def by_seed_and_task(frame: pd.DataFrame, *along: str) -> np.ndarray:
    """Values of a tidy frame as an array [seeds, tasks, *along], in sorted order. ValueError if one is missing."""
    keys = ["seed", "task", *along]
    found = [np.unique(frame[key].to_numpy(), return_inverse=True) for key in keys]
    shape = [len(values) for values, _ in found]
    places = np.ravel_multi_index([place for _, place in found], shape)
    if len(places) != np.prod(shape) or len(np.unique(places)) < len(places):
        raise ValueError(f"expected exactly one value per {', '.join(keys)}")
    table = np.empty(len(places))
    table[places] = frame["value"]
    return table.reshape(shape)


def paired(one: pd.DataFrame, other: pd.DataFrame) -> Estimate:
    """Mean difference ``one - other`` on the same seeds and tasks (two methods, say), with its interval."""
    return mean_interval(by_seed_and_task(one) - by_seed_and_task(other))


def difference(
    one: pd.DataFrame, other: pd.DataFrame, tasks: str = "tasks", networks: str = "networks"
) -> dict[str, object]:
    """`paired` as columns of a table; see `columns_of`."""
    return columns_of(paired(one, other), one["task"], tasks, networks)


def columns_of(e: Estimate, numbers: pd.Series, tasks: str = "tasks", networks: str = "networks") -> dict[str, object]:
    """``mean``, its 95 % interval from ``low`` to ``high``, the ``side`` of 0 on which this lies, ``n`` and all as
    ``text``.

    numbers: of the tasks. Where a row is the mean of several, its number is that of the first of them, so ``n`` counts
    them all. tasks, networks: what tasks and seeds are called there.
    """
    drawn = np.unique(numbers)
    in_a_row = int(np.diff(drawn).min()) if len(drawn) > 1 else 1
    n = f"{e.n[0]} {networks} x {e.n[1] * in_a_row} {tasks}"
    return {"mean": e.mean, "low": e.low, "high": e.high, "side": e.side, "n": n, "text": e.text}


def tally(sides: pd.Series, what: str) -> str:
    """In words, in how many of the ``what`` (conditions, say) the interval lies above 0, and in how many below."""
    if (sides == TOO_FEW).all():
        return "too few networks to tell"
    return f"above in {(sides == 'above').sum()} and below in {(sides == 'below').sum()} of {len(sides)} {what}"


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927): all p from which ``successes`` of ``n`` are within ``z`` standard
    errors; 1.96 for 95 %. Unlike mean +- z standard errors it has a width at 0 and 1, and stays between them."""
    centre, spread = successes + z**2 / 2, z * (successes * (n - successes) / n + z**2 / 4) ** 0.5
    return max(0.0, (centre - spread) / (n + z**2)), min(1.0, (centre + spread) / (n + z**2))


def auc(ones: np.ndarray, others: np.ndarray, z: float = 1.96) -> tuple[float, float, float]:
    """How well a number tells two groups apart: the share of pairs in which the ``ones``' is larger (ties count half),
    0.5 for not at all, with the interval of Hanley & McNeil (1982). NaN if a group is empty."""
    n, m = len(ones), len(others)
    if not n or not m:
        return (float("nan"),) * 3
    a = float((np.sign(ones[:, None] - others[None]) / 2 + 0.5).mean())
    variance = a * (1 - a) + (n - 1) * (a / (2 - a) - a**2) + (m - 1) * (2 * a**2 / (1 + a) - a**2)
    half = z * (max(variance, 0.0) / (n * m)) ** 0.5
    return a, max(0.0, a - half), min(1.0, a + half)


# The columns along which a variant has several results; all others tell variants apart: the method, and its condition.
ALONG = ("seed", "learning_rate", "task", "step", "metric", "value")
METHOD = ("method", "scouts", "n_scouts", "scout_n_shot")


def variant_columns(frame: pd.DataFrame) -> list[str]:
    return [column for column in frame.columns if column not in ALONG]


def choose_rates(frame: pd.DataFrame, tuned_on: str) -> dict[tuple, float]:
    """The learning rate of each variant by mean accuracy on validation classes; of equals the lowest.

    Variants are tuples of the values in `variant_columns`. tuned_on: ``first``, after the first examples, all that can
    be known before a stream arrives; ``careful``, of those as good as the best after the first examples the lowest;
    ``last``, at its end, with hindsight; ``same``, what ``first`` chose for plain fine-tuning (of a random network: for
    training from scratch), for all methods: the guide is switched on and nothing else about the training changes.
    """
    columns = variant_columns(frame)
    tuning = frame[frame["metric"] == ("validation_last" if tuned_on == "last" else "validation_first")]
    means = tuning.groupby([*columns, "learning_rate"])["value"].mean()
    chosen = {variant: of_variant.idxmax()[-1] for variant, of_variant in means.groupby(level=columns)}
    if tuned_on == "careful":
        by_seed = tuning.pivot(index=[*columns, "seed"], columns="learning_rate", values="value")
        return {variant: _lowest_as_good(by_seed.xs(variant, level=columns), best) for variant, best in chosen.items()}
    if tuned_on == "same":
        where = [i for i, column in enumerate(columns) if column not in METHOD]
        conditions = {variant: tuple(variant[i] for i in where) for variant in chosen}
        method = columns.index("method")
        plain = {conditions[v]: rate for v, rate in chosen.items() if v[method] in ("plain", "scratch")}
        return {variant: plain[condition] for variant, condition in conditions.items()}
    return chosen


def _lowest_as_good(scores: pd.DataFrame, best: float) -> float:
    """The lowest rate that falls short of the ``best`` by at most one standard error of the difference between seeds.

    scores: [seeds, rates]. Where many rates do equally well, which is best is chance (the rule of one standard error,
    Breiman et al. 1984, Classification and Regression Trees). A single seed has no standard error: only equals count.
    """
    short = scores.rsub(scores[best], axis=0)
    rounding = 1e-4  # in files, which must not decide
    return (short.mean() <= short.sem().fillna(0) + rounding).idxmax()


def at_chosen_rates(frame: pd.DataFrame, tuned_on: str) -> pd.DataFrame:
    """The test rows (all that are not validation) of every variant at its rate from `choose_rates`.

    Chosen again among the rates that were tested: of two that were equal in tuning, rounding in a file may prefer the
    other one.
    """
    columns = variant_columns(frame)
    tuning = frame["metric"].str.startswith("validation_")
    tested = frame.loc[~tuning, [*columns, "learning_rate"]].drop_duplicates()
    chosen = choose_rates(frame[tuning].merge(tested), tuned_on)
    rates = pd.DataFrame([(*variant, rate) for variant, rate in chosen.items()], columns=[*columns, "rate"])
    at = frame[columns].merge(rates, how="left")["rate"].to_numpy()
    return frame[(frame["learning_rate"] == at) & ~tuning]


def best_settings(frame: pd.DataFrame, variant: Sequence[str], setting: Sequence[str]) -> dict[tuple, tuple]:
    """The setting of each variant with the highest mean ``validation``; of equals the lowest.

    variant, setting: the columns that tell them apart. Variants keep the frame's order.
    """
    tuning = frame[frame["metric"] == "validation"]
    means = tuning.groupby([*variant, *setting])["value"].mean()
    best = {key: scores.idxmax()[-len(setting) :] for key, scores in means.groupby(level=list(variant))}
    order = tuning[list(variant)].drop_duplicates().itertuples(index=False, name=None)
    return {key: best[key] for key in order}

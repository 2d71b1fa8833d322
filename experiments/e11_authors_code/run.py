"""What the authors' published programs do, done right; and the claim on small networks that nobody has shown."""

from __future__ import annotations

import math
from typing import Annotated, Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from experiments.e11_authors_code.library import PAIRS, run_library
from experiments.e11_authors_code.patterns import N_CLASSES, N_IN_PART, run_relearning, run_widths
from experiments.parameters import Count, Rate, Some, TunedParameters
from experiments.statistics import difference, wilson

SIDES = {"above": "more than plain", "below": "less than plain", "undecided": "undecided"}
FACTOR = {"": "mean", "_low": "low", "_high": "high"}
ENOUGH = 5  # networks for an interval
SATURATED = 0.99  # of networks that know more, accuracy tells nothing


class AuthorsParameters(TunedParameters):
    """See the notebook's parameter cell for what each one means."""

    patterns_per_class: Count
    known_at_first: Annotated[float, Field(gt=0, lt=1)]
    scout_learning_rate: Rate
    n_scouts: Count
    scout_epochs: Count
    n_parts: Count
    n_tuning_parts: Count
    relearning_epochs: Count
    n_inits: Count
    n_tuning_inits: Count
    or_and_steps: Count
    xor_scout_steps: Count
    xor_scout_rate: Rate
    xor_steps: Count
    xor_rates: Some[Rate]
    widths: Annotated[Some[Count], Field(min_length=2)]
    depths: Some[Count]
    n_networks: Count
    n_tuning_networks: Count
    memorising_rates: Some[Rate]
    memorising_epochs: Count
    n_memorising_scouts: Count
    memorising_scout_epochs: Count

    @model_validator(mode="after")
    def _affordable(self) -> Self:
        if self.n_parts > self.n_scouts:
            raise ValueError(f"n_parts = {self.n_parts}: at most {self.n_scouts}, the number of scouts")
        if self.xor_scout_cost >= self.xor_steps:
            raise ValueError(f"xor_steps = {self.xor_steps}: more than the {self.xor_scout_cost} that scouting costs")
        if self.memorising_scout_cost >= self.memorising_epochs:
            cost = self.memorising_scout_cost
            raise ValueError(f"memorising_epochs = {self.memorising_epochs}: more than the {cost} that scouting costs")
        if list(self.widths) != sorted(self.widths):
            raise ValueError(f"widths = {list(self.widths)}: must grow")
        return self

    @property
    def xor_scout_cost(self) -> int:
        """In steps on all four points: a scout on two of them pays half of each."""
        return -(-self.xor_scout_steps * sum(map(len, PAIRS)) // 4)

    @property
    def memorising_scout_cost(self) -> int:
        """In epochs over all patterns: a scout on 4 of 10 classes pays four tenths of each."""
        return math.ceil(self.n_memorising_scouts * self.memorising_scout_epochs * N_IN_PART / N_CLASSES)

    def measured_epochs(self) -> list[int]:
        """0, the powers of two, and the last epoch of relearning."""
        powers = [2**i for i in range(self.relearning_epochs.bit_length()) if 2**i < self.relearning_epochs]
        return [0, *powers, self.relearning_epochs]


def run(p: AuthorsParameters) -> pd.DataFrame:
    """All three: ``experiment`` is ``patterns``, ``xor`` or ``width``.

    Columns: seed, experiment, method, width, depth, learning_rate, tuned_on, task, step, metric, value, empty where
    they do not apply. Metrics: see `run_relearning`, `run_library` and `run_widths`.
    """
    columns = ["seed", "experiment", "method", "width", "depth", "learning_rate", "tuned_on", "task", "step"]
    rows = [*run_relearning(p), *run_library(p), *run_widths(p)]
    return pd.DataFrame(rows, columns=[*columns, "metric", "value"])


def relearning_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every method: accuracy on the part (mean of the epochs measured, and at the end) and on the other classes (at
    the end, and when 90 % of the part is known); and each minus plain's."""
    here = frame[frame["experiment"] == "patterns"]
    last = here["step"] == here["step"].max()
    measures = {
        "part, on the way": here[(here["metric"] == "part") & (here["step"] > 0)],
        "part, at the end": here[(here["metric"] == "part") & last],
        "others, at the end": here[(here["metric"] == "others") & last],
        "others, when 90 % of the part is known": here[here["metric"] == "kept"],
    }
    rows = []
    for measure, values in measures.items():
        values = values.groupby(["method", "seed", "task"], as_index=False, sort=False)["value"].mean()
        by = dict(list(values.groupby("method", sort=False)))
        for method, mine in by.items():
            row = {"measure": measure, "method": method, "accuracy": mine["value"].mean()}
            rows.append(row | difference(mine, by["plain"], "parts"))
    return pd.DataFrame(rows).rename(columns={"mean": "minus_plain"})


def xor_table(frame: pd.DataFrame, xor_steps: int) -> pd.DataFrame:
    """Of every method: its rate, the share of test inits solved from ``low`` to ``high`` (Wilson), and the steps until
    solved (unsolved: the whole budget of ``xor_steps``), as a mean and minus plain's (``minus_plain``, as ``text``)."""
    times = frame[(frame["experiment"] == "xor") & (frame["metric"] == "time")]
    steps = times.assign(value=times["value"].fillna(xor_steps))
    by = dict(list(steps.groupby("method", sort=False)))
    rows = []
    for name, of_method in times.groupby("method", sort=False):
        solved, n = int(of_method["value"].notna().sum()), len(of_method)
        row = {"method": name, "rate": of_method["learning_rate"].iloc[0], "solved": solved / n}
        row |= dict(zip(("solved_low", "solved_high"), wilson(solved, n), strict=True))
        row["steps"] = by[name]["value"].mean()
        rows.append(row | difference(by[name], by["plain"], "task", networks="inits"))
    return pd.DataFrame(rows).rename(columns={"mean": "minus_plain"})


def width_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every size and method: accuracy, minus plain's of the same size, and the ``factor`` by which plain's network
    must be wider to be as accurate (`matched`: by its own match, so that plain's is 1), with 95 % intervals."""
    rows = []
    by = dict(list(matched(frame).groupby(["depth", "width", "method"], sort=False)))
    for (depth, width, method), mine in by.items():
        row = {"depth": int(depth), "width": int(width), "method": method, "accuracy": mine["value"].mean()}
        rows.append(row | _against(by[depth, width, "plain"], mine, "task"))
    return pd.DataFrame(rows).rename(columns={"mean": "minus_plain"})


def claim_table(frame: pd.DataFrame) -> pd.DataFrame:
    """As `width_table`, of every method over all sizes of which plain does not know 99 %."""
    rows = matched(frame)
    plain = rows[rows["method"] == "plain"].groupby(["depth", "width"])["value"].mean()
    rows = rows.assign(task=rows.groupby(["depth", "width"]).ngroup())
    unsaturated = rows.set_index(["depth", "width"]).index.isin(plain.index[plain < SATURATED])
    by = dict(list(rows[unsaturated].groupby("method", sort=False)))
    table = [{"method": method} | _against(by["plain"], mine, "sizes") for method, mine in by.items()]
    return pd.DataFrame(table).rename(columns={"mean": "minus_plain"})


def matched(frame: pd.DataFrame) -> pd.DataFrame:
    """The accuracies by width, each with the width at which plain training of that seed and depth is as accurate.

    This ``match`` is interpolated over the width's logarithm where plain's accuracy grows; never beyond its widths.
    """
    accuracy = frame[(frame["experiment"] == "width") & (frame["metric"] == "accuracy")]
    groups = []
    for _, rows in accuracy.groupby(["depth", "seed"], sort=False):
        curve = rows[rows["method"] == "plain"].set_index("width")["value"].sort_index()
        curve = curve[curve > curve.cummax().shift(fill_value=-1)]
        doublings = np.interp(rows["value"], curve, np.log2(curve.index.astype(float)))
        groups.append(rows.assign(match=2**doublings))
    return pd.concat(groups)


def verdicts(table: pd.DataFrame, subject: str) -> list[str]:
    """One line per row of one of the tables, but plain's: what it has of the ``subject``, more or less than plain."""
    lines = []
    for row in table[table["method"] != "plain"].to_dict("records"):
        what = ", ".join([subject, *([row["measure"]] if "measure" in row else []), row["method"]])
        enough = int(row["n"].split()[0]) >= ENOUGH
        number = f"{row['text']}, {SIDES[row['side']]}" if enough else f"{row['minus_plain']:+.3f}, too few to tell"
        lines.append(f"{what}: {number} (n = {row['n']})")
        if "factor" in row and enough:
            lines[-1] += (
                f"; as good as {row['factor']:.2f} [{row['factor_low']:.2f}, {row['factor_high']:.2f}] x the width"
            )
    return lines


def _against(plain: pd.DataFrame, mine: pd.DataFrame, tasks: str) -> dict[str, object]:
    """Accuracy minus plain's; geometric mean of the matching widths by that of plain's own."""
    doublings = difference(*(rows.assign(value=np.log2(rows["match"])) for rows in (mine, plain)))
    factor = {f"factor{end}": 2 ** float(doublings[part]) for end, part in FACTOR.items()}
    return difference(mine, plain, tasks) | factor

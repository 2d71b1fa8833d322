"""How often a 95 % interval contains the truth, simulated: writes ``benchmarks/coverage.csv``.

    python -m benchmarks.coverage

Networks differ, and so do tasks of one network; both are normal. The ratio says how much: the variance between networks
by that of the mean over one network's tasks. Every cell counts the same draws for both kinds of interval.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.statistics import mean_interval

N_NETWORKS = (3, 5, 10)
RATIOS = (0.0, 0.1, 0.3, 1.0, 3.0, 11.0)
N_TASKS = 20
TABLE = Path(__file__).with_suffix(".csv")


def bootstrap(values: np.ndarray, n_resamples: int = 1000) -> tuple[float, float]:
    """The percentile interval by the two-stage bootstrap, networks first, then tasks of each (Davison & Hinkley 1997,
    section 3.8): what this project used before."""
    random = np.random.default_rng(0)
    n_networks, n_tasks = values.shape
    networks = random.integers(n_networks, size=(n_resamples, n_networks, 1))
    tasks = random.integers(n_tasks, size=(n_resamples, n_networks, n_tasks))
    low, high = np.quantile(values[networks, tasks].mean((1, 2)), [0.025, 0.975])
    return low, high


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """What this project uses."""
    estimate = mean_interval(values)
    return estimate.low, estimate.high


INTERVALS = {"t over networks": t_interval, "two-stage bootstrap": bootstrap}


def coverage(interval: str, n_networks: int, ratio: float, n_draws: int) -> dict[str, float]:
    """The share of ``n_draws`` results whose interval contains the true mean, 0, and the intervals' mean width by that
    of the interval for known variances."""
    random = np.random.default_rng([n_networks, round(10 * ratio)])
    hits, widths = [], []
    for _ in range(n_draws):
        networks = ratio**0.5 * random.normal(size=(n_networks, 1))
        low, high = INTERVALS[interval](networks + N_TASKS**0.5 * random.normal(size=(n_networks, N_TASKS)))
        hits.append(low <= 0 <= high)
        widths.append(high - low)
    exact = 2 * 1.96 * ((ratio + 1) / n_networks) ** 0.5
    return {"coverage": float(np.mean(hits)), "width": float(np.mean(widths) / exact)}


def main(n_draws: int = 4000) -> None:
    rows = []
    for interval, n_networks, ratio in product(INTERVALS, N_NETWORKS, RATIOS):
        key = {"interval": interval, "networks": n_networks, "ratio": ratio}
        rows.append(key | coverage(interval, n_networks, ratio, n_draws))
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False, float_format="%.3f", lineterminator="\n")
    print(
        table.pivot(index=["networks", "ratio"], columns="interval", values=["coverage", "width"]).round(3).to_string()
    )


if __name__ == "__main__":
    main()

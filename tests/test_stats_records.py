import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import records
from experiments.statistics import at_chosen_rates, bootstrap, by_seed_and_task, choose_rates, paired


def tidy(values: np.ndarray, method: str = "plain") -> pd.DataFrame:
    index = [(s, t, v) for s, row in enumerate(values) for t, v in enumerate(row)]
    return pd.DataFrame(index, columns=["seed", "task", "value"]).assign(method=method, metric="accuracy")


def test_constant_values_have_no_interval():
    estimate = bootstrap(np.full((3, 4), 0.5))
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, (3, 4))


def test_interval_matches_the_normal_one_for_many_independent_seeds():
    values = np.random.default_rng(1).normal(size=(400, 1))
    estimate = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert estimate.high - estimate.mean == pytest.approx(half, rel=0.1)
    assert estimate.mean - estimate.low == pytest.approx(half, rel=0.1)


def test_seeds_that_disagree_widen_the_interval_more_than_tasks_do():
    noise = np.random.default_rng(2).normal(size=(5, 40))
    between = bootstrap(noise * 0.01 + np.arange(5)[:, None])
    within = bootstrap(noise * 0.01 + np.arange(40)[None, :] / 8)
    assert between.high - between.low > within.high - within.low


def test_intervals_cover():
    """A 95 % interval of 20 seeds x 10 tasks contains the true mean in about 95 of 100 experiments."""
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(100):
        values = random.normal(size=(20, 1)) + random.normal(size=(20, 10))
        estimate = bootstrap(values, n_resamples=300)
        hits += estimate.low <= 0 <= estimate.high
    assert 86 <= hits <= 100


def test_pairing_removes_what_tasks_share():
    tasks = np.random.default_rng(4).normal(size=(3, 50))
    estimate = paired(tidy(tasks + 0.1), tidy(tasks))
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_curves_keep_their_axis():
    frame = pd.concat([tidy(np.full((2, 3), 10 * step)).assign(step=step) for step in (1, 2)])
    values = by_seed_and_task(frame.sample(frac=1, random_state=0), "step")
    assert values.shape == (2, 3, 2) and bootstrap(values).mean.tolist() == [10, 20]


def test_missing_or_doubled_results_are_refused():
    frame = tidy(np.ones((2, 3)))
    for broken in (frame.iloc[1:], pd.concat([frame, frame])):
        with pytest.raises(ValueError, match="exactly one value per seed, task"):
            by_seed_and_task(broken)


def test_rates_are_chosen_on_validation_rows_only():
    rows = [
        ("validation_last", 0.1, 0, 0.5), ("validation_last", 0.1, 1, 0.7),  # mean 0.6
        ("validation_last", 0.3, 0, 0.9), ("validation_last", 0.3, 1, 0.2),  # mean 0.55
        ("validation_first", 0.3, 0, 0.8), ("validation_first", 0.1, 0, 0.8),  # equal: the lower rate
        ("accuracy", 0.1, 0, 0.4), ("accuracy", 0.3, 0, 1.0),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["metric", "learning_rate", "seed", "value"])
    frame = frame.assign(head="zero", method="plain")
    assert choose_rates(frame, "last") == {("zero", "plain"): 0.1}
    assert choose_rates(frame, "first") == {("zero", "plain"): 0.1}
    assert at_chosen_rates(frame, "last")["value"].tolist() == [0.4]


def test_the_careful_rate_is_the_lowest_that_is_within_one_standard_error_of_the_best():
    # Short of the best by 0.033 +- 0.033 and by 0.133 +- 0.033.
    scores = {0.3: (0.8, 0.9, 0.7), 0.1: (0.7, 0.9, 0.7), 0.03: (0.6, 0.8, 0.6)}
    rows = [(r, seed, "validation_first", v) for r, of_seeds in scores.items() for seed, v in enumerate(of_seeds)]
    frame = pd.DataFrame(rows, columns=["learning_rate", "seed", "metric", "value"]).assign(head="zero", method="plain")
    assert choose_rates(frame, "first") == {("zero", "plain"): 0.3}
    assert choose_rates(frame, "careful") == {("zero", "plain"): 0.1}
    assert choose_rates(frame[frame["seed"] == 0], "careful") == {("zero", "plain"): 0.3}  # no standard error: the best


def test_the_same_rate_is_that_of_plain_fine_tuning_or_of_training_from_scratch_under_the_same_condition():
    best = {("zero", "plain"): 0.1, ("zero", "guided"): 0.3, ("none", "scratch"): 0.3, ("none", "guided"): 0.1}
    rows = [(*v, r, "validation_first", 0, float(r == best[v])) for v in best for r in (0.1, 0.3)]
    frame = pd.DataFrame(rows, columns=["head", "method", "learning_rate", "metric", "seed", "value"])
    assert choose_rates(frame, "first") == best
    same = choose_rates(frame, "same")
    assert (same["zero", "guided"], same["none", "guided"]) == (0.1, 0.3)
    more_scouts = frame[frame["method"] == "guided"].assign(n_scouts=9)
    same = choose_rates(pd.concat([frame.assign(n_scouts=1), more_scouts]), "same")
    assert same["zero", "guided", 9] == 0.1


def test_records_round_trip_and_are_tidy(tmp_path):
    frame = tidy(np.array([[0.25, 1 / 3]]))
    records.write(str(tmp_path), "toy", frame, records.provenance({"seed": 0}, {"name": "toy", "digest": "x"}))
    back = records.read(tmp_path, "toy")
    assert back["value"].tolist() == [0.25, 0.333333] and list(back.columns) == list(frame.columns)
    provenance = json.loads((tmp_path / "toy.json").read_text())
    assert provenance["parameters"] == {"seed": 0} and provenance["packages"]["torch"].startswith("2.13")
    assert {"commit", "dirty"} == set(provenance["git"]) and provenance["wall_seconds"] > 0
    with pytest.raises(ValueError, match="lack the columns metric"):
        records.write(str(tmp_path), "toy", frame.drop(columns="metric"), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.csv", "toy.json"]


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    """The process is killed in the middle of writing the second version."""
    records.write(str(tmp_path), "toy", tidy(np.zeros((1, 1))), {})
    before = (tmp_path / "toy.csv").read_bytes()
    kill = (
        "import os, signal, sys, numpy as np, pathlib\n"
        "sys.path.insert(0, 'tests')\n"
        "from experiments import records\n"
        "from test_stats_records import tidy\n"
        "def half(self, text): open(self, 'w').write(text[:5]); os.kill(os.getpid(), signal.SIGKILL)\n"
        "pathlib.Path.write_text = half\n"
        f"records.write({str(tmp_path)!r}, 'toy', tidy(np.ones((1, 1))), {{}})\n"
    )
    done = subprocess.run([sys.executable, "-c", kill], cwd=records.ROOT, env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == -9
    assert (tmp_path / "toy.csv").read_bytes() == before

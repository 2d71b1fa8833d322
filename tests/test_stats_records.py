import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks.coverage import TABLE, coverage
from experiments import records
from experiments.ranking import sides
from experiments.statistics import at_chosen_rates, by_seed_and_task, choose_rates, difference, mean_interval, paired


def tidy(values: np.ndarray, method: str = "plain") -> pd.DataFrame:
    index = [(s, t, v) for s, row in enumerate(values) for t, v in enumerate(row)]
    return pd.DataFrame(index, columns=["seed", "task", "value"]).assign(method=method, metric="accuracy")


def test_networks_whose_means_are_equal_by_chance_have_the_interval_over_their_tasks():
    """Three networks, two tasks each, 0 and 1: means of 0.5. Six values with a sum of squares of 6 / 4 around it."""
    tied = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    half = 2.5706 * (6 / 4 / 5 / 6) ** 0.5  # t for five degrees of freedom
    estimate = mean_interval(tied)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    curves = mean_interval(np.stack([tied, tied + np.array([[0.0], [0.1], [0.2]])], -1))  # tied at the first step only
    apart = 4.3027 * 0.1 / 3**0.5  # means of 0.5, 0.6 and 0.7; two degrees of freedom
    assert curves.high - curves.mean == pytest.approx([half, apart], abs=1e-4)


def test_the_side_of_an_interval():
    wide = np.random.default_rng(0).normal(size=(5, 4))
    sides = [mean_interval(values).side for values in (wide + 9, wide - 9, wide, wide[:1, :2])]
    assert sides == ["above", "below", "undecided", "too few to tell"]


def test_constant_values_have_no_width():
    estimate = mean_interval(np.full((3, 4), 0.5))
    assert (estimate.mean, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, (3, 4))


def test_the_interval_by_hand():
    """Three networks with means 1, 2 and 6: their mean is 3, their variance 7, t is 4.303 with 2 degrees of freedom, so
    the interval is 3 +- 4.303 * sqrt(7 / 3). How tasks are spread within a network plays no part."""
    values = np.array([[1.0, 1.0], [0.0, 4.0], [5.0, 7.0]])
    estimate = mean_interval(values)
    half = 4.303 * (7 / 3) ** 0.5
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((3 - half, 3, 3 + half), abs=1e-3)


def test_a_single_network_has_the_interval_over_its_tasks():
    """Of 0, 1, 2, 3, 4 the mean is 2 and the variance 2.5; t is 2.776 with 4 degrees of freedom."""
    estimate = mean_interval(np.arange(5.0)[None])
    assert estimate.high - estimate.mean == pytest.approx(2.776 * (2.5 / 5) ** 0.5, abs=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_too_few_values_have_no_interval_and_say_so(shape):
    estimate = mean_interval(np.random.default_rng(0).normal(size=shape))
    assert np.isnan([estimate.low, estimate.high]).all()
    assert estimate.text == f"{estimate.mean:+.3f} too few to tell" and str(estimate).startswith(estimate.text)
    found = sides(pd.DataFrame({"side": [estimate.side]}))
    assert [len(group) for group in found.values()] == [0, 0, 1]  # neither above nor below


@pytest.mark.parametrize("ratio", [0.0, 1.0, 11.0])
@pytest.mark.parametrize("n_networks", [3, 5])
def test_the_interval_covers(n_networks, ratio):
    """Within four standard errors of a share of 0.95 in so many draws; the bootstrap misses where networks differ."""
    n_draws = 4000
    found = coverage("t over networks", n_networks, ratio, n_draws)["coverage"]
    assert abs(found - 0.95) < 4 * (0.95 * 0.05 / n_draws) ** 0.5


def test_the_committed_simulation_covers_and_the_bootstrap_does_not():
    table = pd.read_csv(TABLE).set_index("interval")
    ours, before = table.loc["t over networks"], table.loc["two-stage bootstrap"]
    assert set(ours["networks"]) >= {3, 5} and ours["ratio"].max() >= 11
    assert ours["coverage"].between(0.93, 0.97).all()
    differ = (before["ratio"] >= 3) & (before["networks"] <= 5)  # as far as networks do, and as few
    assert before.loc[differ, "coverage"].max() < 0.93


def test_pairing_removes_what_tasks_share():
    tasks = np.random.default_rng(4).normal(size=(3, 50))
    estimate = paired(tidy(tasks + 0.1), tidy(tasks))
    assert (estimate.low, estimate.mean, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


@pytest.mark.parametrize(("numbers", "n"), [([0, 1, 2], 3), ([0, 10, 20], 30), ([0], 1)])
def test_a_row_that_is_the_mean_of_several_tasks_counts_them_all(numbers, n):
    one = tidy(np.arange(2.0 * len(numbers)).reshape(2, -1))
    one["task"] = one["task"].map(dict(enumerate(numbers)))
    compared = difference(one, one.assign(value=0.0), "episodes")
    assert compared["n"] == f"2 networks x {n} episodes" and compared["mean"] == one["value"].mean()


def test_curves_keep_their_axis():
    frame = pd.concat([tidy(np.full((2, 3), 10 * step)).assign(step=step) for step in (1, 2)])
    values = by_seed_and_task(frame.sample(frac=1, random_state=0), "step")
    assert values.shape == (2, 3, 2) and mean_interval(values).mean.tolist() == [10, 20]


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


@pytest.mark.parametrize(
    "damage", [lambda table: table[:-9], lambda table: table.replace(b"0.25", b"0.75"), lambda _: b""]
)
def test_a_table_that_is_not_what_was_written_is_refused(tmp_path, damage):
    records.write(str(tmp_path), "toy", tidy(np.array([[0.25, 0.5]])), {})
    path = tmp_path / "toy.csv"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{path} is not the table that toy\.json tells of"):
        records.read(tmp_path, "toy")


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

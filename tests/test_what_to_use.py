"""Regret by hand, and the arenas of the tables that other experiments leave."""

import pandas as pd
import pytest

from experiments import records
from experiments.e15_what_to_use import figures
from experiments.e15_what_to_use.run import (
    EVERYWHERE,
    METHODS,
    TABLES,
    WhatToUseParameters,
    arenas,
    never_far,
    regrets,
    regrets_too_high,
    run,
    summary,
)
from experiments.parameters import ParameterError

PAPER = records.ROOT / "results/paper"


def rows(**values: list[float]) -> pd.DataFrame:
    """Test rows of methods: two networks, each with as many tasks as half of a method's values."""
    return pd.DataFrame(
        {"seed": i // (len(of) // 2), "task": i % (len(of) // 2), "method": name, "value": value}
        for name, of in values.items()
        for i, value in enumerate(of)
    )


def test_regret_by_hand():
    found = regrets(rows(frozen=[0.8, 0.6, 0.9, 0.7], plain=[0.5, 0.5, 0.7, 0.7], guided_network=[0.7] * 4))
    assert found["frozen"] == {"regret": 0}  # 0.75 is the best mean
    assert found["plain"]["regret"] == pytest.approx(0.75 - 0.6)
    assert found["guided_network"]["regret"] == pytest.approx(0.05)


def test_an_interval_is_that_of_the_paired_difference():
    """Networks by 0.1 and 0.3 apart: t = 12.706 with one degree of freedom, standard error 0.1."""
    found = regrets(rows(frozen=[0.9] * 3 + [0.9] * 3, plain=[0.8] * 3 + [0.6] * 3))["plain"]
    assert found["low"] == pytest.approx(0.2 - 1.2706, abs=1e-4)
    assert found["high"] == pytest.approx(0.2 + 1.2706, abs=1e-4)


def tuning(**values: dict[float, float]) -> pd.DataFrame:
    lines = [(0, m, rate, value) for m, of in values.items() for rate, value in of.items()]
    return pd.DataFrame(lines, columns=["seed", "method", "learning_rate", "value"])


def test_ten_times_the_rate_by_hand():
    found = regrets_too_high(tuning(frozen={0.01: 0.8, 0.1: 0.7}, plain={0.01: 0.5, 0.03: 0.9, 0.3: 0.2}))
    assert found["plain"]["too_high"] == pytest.approx(0.9 - 0.2)
    assert found["frozen"]["too_high"] == pytest.approx(0.9 - 0.7)  # below the best of all at its best rate
    assert regrets_too_high(tuning(frozen={0.01: 0.7, 0.1: 0.8})) == {}  # 1.0 was not tried


def test_whatever_else_was_chosen_stays():
    table = tuning(plain={0.01: 0.9, 0.1: 0.6}).assign(factor=1.0)
    other = tuning(plain={0.01: 0.5, 0.1: 0.8}).assign(factor=10.0)
    assert regrets_too_high(pd.concat([table, other]))["plain"]["too_high"] == pytest.approx(0.3)


def test_the_rate_of_a_method_that_trains_a_head_alone_is_the_heads():
    table = tuning(frozen={0.0: 0.9}).assign(head_rate=0.01)
    higher = tuning(frozen={0.0: 0.4}).assign(head_rate=0.1)
    assert regrets_too_high(pd.concat([table, higher]))["frozen"]["too_high"] == pytest.approx(0.5)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return run(WhatToUseParameters.parse({"seed": 0, "results": "results/paper", "prepared": "", "workers": 1}))


def test_every_table_has_its_arenas(frame):
    there = {name for name in TABLES if (PAPER / f"{name}.csv").exists()}
    assert len(there) > 4 and set(frame["experiment"]) == {TABLES[name][0] for name in there}
    regret = frame[frame["metric"] == "regret"]
    assert not regret.duplicated(["arena", "method"]).any()
    for _, rows in regret.groupby("arena"):
        assert set(EVERYWHERE) <= set(rows["method"]) <= set(METHODS)
        assert rows["value"].min() == 0 and (rows["value"] >= 0).all()


def test_results_md_says_what_the_table_says(frame):
    text = " ".join((records.ROOT / "RESULTS.md").read_text().replace("\n>", "").split())
    assert " ".join(never_far(frame).split()) in text


def test_arenas_compare_the_same_tasks(frame):
    for arena in arenas(PAPER):
        assert not arena.tests.duplicated(["seed", "task", "method"]).any(), arena.name
        tasks = [set(map(tuple, rows[["seed", "task"]].to_numpy())) for _, rows in arena.tests.groupby("method")]
        assert all(some == tasks[0] for some in tasks), arena.name


def test_who_is_never_far_from_the_best():
    values = {"a": {"frozen": 0.0, "plain": 0.1, "guided_network": 0.04}, "b": {"frozen": 0.2, "plain": 0.0}}
    lines = [
        {"arena": arena, "method": method, "metric": "regret", "value": value}
        for arena, of in values.items()
        for method, value in of.items()
    ]
    table = summary(pd.DataFrame(lines)).set_index("method")
    assert set(table["arenas"]) == {1} and table.loc["plain", "worst"] == 0.1  # in b, guidance did not run
    assert table.index[0] == "frozen" and never_far(pd.DataFrame(lines)).startswith("Never far from the best")


def test_who_was_not_tried_everywhere_is_not_passed_over():
    """Without the probe at ten times its rate, nothing is said of that rate."""
    values = {"frozen": {"regret": 0.1}, "plain": {"regret": 0.0, "too_high": 0.2}}
    values["guided_network"] = {"regret": 0.2, "too_high": 0.1}
    lines = [
        {"arena": "a", "experiment": "05", "method": name, "metric": metric, "value": value}
        for name, of in values.items()
        for metric, value in of.items()
    ]
    table = pd.DataFrame(lines)
    assert set(summary(table)["metric"]) == {"regret"} and "10 times" not in never_far(table)
    assert figures.what_to_use(table).get_label().count("linear probe") == 0  # plain is the least far, once


def test_the_figure_shows_every_arena(frame):
    left, right = figures.what_to_use(frame).axes
    assert len(left.get_yticklabels()) == frame["arena"].nunique() + 2
    shown = {label.get_text().replace("\n", " ") for label in right.get_xticklabels()}
    assert shown == {METHODS[name].label for name in frame["method"].unique()}


def test_a_folder_without_tables_is_named(tmp_path):
    with pytest.raises(ParameterError, match=r"has no table of own_model, .*; run one of them first$"):
        run(WhatToUseParameters.parse({"seed": 0, "results": str(tmp_path), "prepared": "", "workers": 1}))

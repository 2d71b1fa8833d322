"""Which verdicts are others with Adam: by hand on a small table, and RESULTS.md against the committed ones."""

import sys
from itertools import product

import pandas as pd
import pytest

from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.overview import COMPARE, against_rivals, by_optimizer, finding, markdown

sys.path.insert(0, str(records.ROOT / "workflow"))
import compare


def shifted(accuracies: dict[str, float]) -> pd.DataFrame:
    """A table of 08: two networks, three tasks; guided rows have scouts."""
    rows = []
    for (method, accuracy), seed, task in product(accuracies.items(), range(2), range(3)):
        scouts = "target" if method.startswith("guided") else "none"
        key = {"seed": seed, "target": "as_is", "n_way": 5, "n_shot": 1, "alignment": "none", "scouts": scouts}
        rows.append(key | {"method": method, "task": task, "metric": "accuracy", "value": accuracy + 0.01 * task})
    return pd.DataFrame(rows)


def test_a_verdict_changes_if_the_interval_lies_elsewhere(tmp_path):
    """Every task has the same difference, so an interval is as narrow as its mean: +0.1 by SGD, -0.2 by Adam; against
    the probe +0.3 by both."""
    by_hand = {"guided_network": 0.6, "plain": 0.5, "frozen": 0.3}
    by_hand |= {"guided_network_adam": 0.5, "plain_adam": 0.7, "frozen_adam": 0.2}
    records.write(str(tmp_path), "domain_shift", shifted(by_hand), {})
    found = by_optimizer(against_rivals(tmp_path))
    table = found.set_index("rival")
    assert set(table["experiment"]) == {"08"} and set(table["condition"]) == {
        "glyphs to handwriting, as is, 5-way 1-shot"
    }
    assert table.loc["plain fine-tuning", ["sgd", "adam"]].tolist() == [
        "+0.100 [+0.100, +0.100]",
        "-0.200 [-0.200, -0.200]",
    ]
    assert table["changed"].to_dict() == {"plain fine-tuning": True, "the linear probe": False}
    assert "| 08 | glyphs to handwriting, as is, 5-way 1-shot | plain fine-tuning | +0.100" in markdown(found)
    assert markdown(found).endswith("1 of 2 in 08.")


def test_the_picture_counts_where_both_rivals_are_beaten(tmp_path):
    """By SGD both are, by Adam only the probe."""
    by_hand = {"guided_network": 0.6, "plain": 0.5, "frozen": 0.3}
    by_hand |= {"guided_network_adam": 0.5, "plain_adam": 0.7, "frozen_adam": 0.2}
    records.write(str(tmp_path), "domain_shift", shifted(by_hand), {})
    figure = finding(against_rivals(tmp_path))
    assert figure.get_label().startswith("In 1 of 2 settings")
    shown = sorted(round(float(line.get_xdata()[0])) for line in figure.axes[0].lines if line.get_marker() == "o")
    assert shown == [-20, 10, 30, 30]


def test_two_folders_are_compared(tmp_path):
    """With the same differences nothing is told; then plain is better, and its verdict another."""
    for name, plain in (("mine", 0.5), ("same", 0.5), ("other", 0.7)):
        records.write(str(tmp_path / name), "domain_shift", shifted({"guided_network": 0.6, "plain": plain}), {})
    tables = {name: against_rivals(tmp_path / name) for name in ("mine", "same", "other")}
    assert compare.report(tables["mine"], tables["same"]).startswith("1 comparisons are in both: 0 have another")
    said = compare.report(tables["mine"], tables["other"])
    assert "guided - plain fine-tuning (sgd): another verdict, outside the interval" in said
    assert "+0.100 [+0.100, +0.100]  ->  -0.100 [-0.100, -0.100]" in said


@pytest.fixture(scope="module")
def committed():
    return against_rivals(records.ROOT / "results/paper")


def test_a_table_that_one_folder_lacks_is_named(committed):
    assert set(committed["experiment"]) == {experiment for experiment, _ in COMPARE.values()}
    said = compare.report(committed, committed[committed["experiment"] != "02"])
    assert said.endswith("Only the first has 02.") and " 0 have another verdict, 0 a mean" in said


def test_a_table_of_one_optimizer_says_nothing(tmp_path):
    records.write(str(tmp_path), "domain_shift", shifted({"guided_network": 0.6, "plain": 0.5}), {})
    assert by_optimizer(against_rivals(tmp_path)).empty


def test_results_md_has_the_table_of_the_committed_results(committed):
    table = by_optimizer(committed)
    assert len(table) and markdown(table) in (records.ROOT / "RESULTS.md").read_text()


def test_every_experiment_with_a_verdict_takes_part():
    without = {"scaling", "what_to_use"}  # seconds and bytes of this machine; no training of its own
    assert set(COMPARE) == {experiment.name for experiment in EXPERIMENTS.values()} - without

"""Domain shift in small: the whole experiment, its ranking, the decision guide and the figures."""

import pandas as pd
import pytest
import torch

from experiments import records
from experiments.data import load
from experiments.e08_domain_shift import decision, figures
from experiments.e08_domain_shift.methods import METHODS
from experiments.e08_domain_shift.run import DomainShiftParameters, ranking, run, verdict
from experiments.parameters import ParameterError
from experiments.preparations.domain_training import shifted

SMALL = dict(
    dataset="glyphs", source="glyphs", targets=["inverted"], seed=0, n_seeds=1, tasks=["3-way 1-shot"], n_episodes=20,
    n_tuning_episodes=1, n_query=4, epochs=2, learning_rates=[0.01, 0.1], preparation_factors=[1.0], heads=["zero"],
    channels=8, pretraining_epochs=1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1, results="x",
    prepared="", workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return run(DomainShiftParameters.parse(SMALL))


def test_the_source_must_be_another_domain():
    with pytest.raises(ParameterError, match="glyphs as it is does not differ from the source"):
        DomainShiftParameters.parse(SMALL | {"targets": ["as_is"]})


def test_a_negative_is_one():
    dataset, negative = load("glyphs"), shifted("glyphs", True)
    assert torch.equal(dataset.examples + negative.examples, torch.full_like(dataset.examples, 255))
    assert shifted("glyphs", False) is dataset


def test_every_method_is_tuned_alike_tested_and_ranked(small):
    variants = small.groupby(["alignment", "scouts", "method"], sort=False)
    assert list(variants.groups) == [row.key for row in METHODS.values()]
    for key, rows in variants:
        n_rates = 1 if key[-1] == "nearest_mean" else 2
        assert rows["metric"].value_counts().to_dict() == {
            "validation": n_rates,
            "accuracy": 20,
            "preparation_passes": 1,
        }
    table = ranking(small)
    assert table["accuracy"].is_monotonic_decreasing and set(table["name"]) == set(METHODS)
    (guided,) = set(table["guided"])
    at = table.set_index("name")
    assert METHODS[guided].scouts != "none"
    differences = at.loc[guided, "accuracy"] - at["accuracy"]
    assert at["difference"].to_dict() == pytest.approx(differences.to_dict(), abs=1e-6)
    assert at["accuracy"].idxmax() in verdict(small).splitlines()[0]


def test_the_guide_advises_from_the_tables_that_are_there(small, tmp_path):
    assert decision.choices(str(tmp_path)).empty
    records.write(str(tmp_path), "domain_shift", small, {})
    choices = decision.choices(str(tmp_path))
    assert list(choices["choice"]) == ["as pretrained", "prepared", "guided"]
    table, best = ranking(small), choices.set_index("choice")
    plain = table[(table["alignment"] == "none") & (table["scouts"] == "none")]
    assert best.loc["as pretrained", "accuracy"] == pytest.approx(plain["accuracy"].max(), abs=1e-6)
    assert best.loc["guided", "difference"] == 0
    answers = {"wins against", "loses to", "is level with"}
    assert sum(decision.advice(choices).count(answer) for answer in answers) == 2
    assert set(decision.tidy_choices(choices)["metric"]) == set(decision.NUMBERS)


def test_the_guide_knows_which_neighbours_were_prepared(tmp_path):
    """Two networks, one group of ten episodes each, with accuracies by hand."""

    def rows(methods, **columns):
        keys = [{"seed": seed, "method": m, **columns} for m in methods for seed in (0, 1)]
        tuning = [key | {"task": "", "metric": "validation", "value": methods[key["method"]]} for key in keys]
        return tuning + [key | {"task": 0, "metric": "accuracy", "value": methods[key["method"]]} for key in keys]

    accuracies = {"plain": 0.5, "nearest_mean": 0.6, "maml": 0.7, "guided_tensor": 0.4, "guided_network": 0.65}
    setting = {"zero_point": "pretrained", "n_way": 5, "n_shot": 1, "factor": 1.0, "learning_rate": 0.1}
    records.write(str(tmp_path), "few_shot_neighbours", pd.DataFrame(rows(accuracies, **setting)), {})
    choices = decision.choices(str(tmp_path)).set_index("choice")
    assert set(choices["situation"]) == {"similar data, 5-way 1-shot"}
    assert choices["name"].to_dict() == {
        "as pretrained": "nearest_mean", "prepared": "maml", "guided": "guided_network",
    }  # fmt: skip
    assert choices["difference"].tolist() == pytest.approx([0.05, -0.05, 0])


def test_both_figures_draw_what_the_tables_say(small, tmp_path):
    (axis,) = figures.domain_shift(small).axes
    assert axis.get_title("right") == "inverted, too, 3-way 1-shot"
    assert len(axis.get_yticks()) == len(METHODS) == len(axis.lines)
    records.write(str(tmp_path), "domain_shift", small, {})
    choices = decision.choices(str(tmp_path))
    (axis,) = figures.decision_guide(decision.tidy_choices(choices)).axes
    assert {text.get_text() for text in axis.texts} == {METHODS[name].label for name in choices["name"]}


def test_the_committed_guide_is_what_the_committed_tables_say(tmp_path):
    found = decision.tidy_choices(decision.choices("results/paper"))
    records.write(str(tmp_path), "decision_guide", found, {})
    committed = records.ROOT / "results/paper/decision_guide.csv"
    assert (tmp_path / "decision_guide.csv").read_text() == committed.read_text()

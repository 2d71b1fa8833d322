"""The one-shot experiment's parts by hand, and the whole of it in small."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import plots
from experiments.e01_one_shot.run import (
    GROUP,
    OneShotParameters,
    Task,
    Variant,
    _packed,
    octaves,
    pictures,
    run,
    saturation,
    verdicts,
)
from experiments.parameters import ParameterError

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=2, n_episodes=10, n_tuning_episodes=2, tasks=["3-way 1-shot", "4-way 2-shot"],
    n_query=4, epochs=3, learning_rates=[0.01, 0.1], heads=["random", "zero"],
    channels=8, pretraining_epochs=1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1,
    saturation_scouts=[1, 4], saturation_n_shots=[1], results="", prepared="", workers=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ["5 shots"]}, "'5 shots': must be like '5-way 1-shot', with at least 2 ways and 1 shot"),
        ({"tasks": ["1-way 1-shot"]}, "must be like '5-way 1-shot'"),
        ({"tasks": ["5-way 17-shot"]}, "n_query = 4: at most 3 in a 5-way 17-shot task"),
        ({"n_episodes": 15}, "n_episodes = 15: should be a multiple of 10"),
        ({"saturation_scouts": [4, 2]}, "saturation_scouts = [4, 2]: must increase"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        OneShotParameters.parse(SMALL | wrong)


def test_more_scouts_are_the_fewer_and_some_more():
    p = OneShotParameters.parse(SMALL | {"saturation_scouts": [1, 2, 4, 8], "n_scouts": 3})
    base = Variant("pretrained", "random", 3, 1, "guided_network", 3, 3)
    parts = p.scoutings(0, base._replace(n_scouts=8))
    assert [(s.first_scout, s.n_scouts) for s in parts] == [(0, 1), (1, 1), (2, 2), (4, 4)]
    assert p.scoutings(0, base._replace(n_scouts=4)) == parts[:3]
    assert [(s.first_scout, s.n_scouts) for s in p.scoutings(0, base)] == [(0, 3)]


def test_scouts_sent_later_are_the_ones_that_would_have_come_next():
    (scouting,) = OneShotParameters.parse(SMALL).scoutings(0, Variant("random", "zero", 3, 1, "plain", 2, 3))
    body = dict(scouting.pretraining.train()[0].body.named_parameters())
    together = scouting.model_copy(update={"n_scouts": 3}).scout(body)
    parts = [scouting.model_copy(update={"first_scout": a, "n_scouts": n}).scout(body) for a, n in ((0, 2), (2, 1))]
    added = parts[0] + parts[1]
    assert added.count == together.count == 3
    for name, value in together.mean_square.items():
        torch.testing.assert_close(added.mean_square[name], value)


def test_pictures_survive_the_table():
    images = torch.rand(3, 2, 1, 28, 28) > 0.5
    rows = pd.DataFrame({"metric": "query", "task": 0, "n_way": 3, "value": _packed(images.float())})
    rows["step"] = range(len(rows))
    assert np.array_equal(pictures(rows.sample(frac=1, random_state=0), "query", 0), images[:, :, 0].numpy())


def test_octaves_by_hand():
    """Best at rate 4; two points below lies half way between 1 and 2, and a fifth of the way from 8 to 16."""
    accuracy = {1: 0.88, 2: 0.90, 4: 0.91, 8: 0.90, 16: 0.85}
    variant = Variant("pretrained", "zero", 5, 1, "plain", 2, 3)
    rows = [
        variant._asdict() | {"learning_rate": r, "metric": "validation_first", "value": a} for r, a in accuracy.items()
    ]
    frame = pd.DataFrame(rows)
    (row,) = octaves(frame).itertuples()
    assert (row.low, row.high) == pytest.approx((2**0.5, 2**3.2)) and row.octaves == pytest.approx(2.7)
    assert not row.open
    (cut,) = octaves(frame[frame["learning_rate"] > 1]).itertuples()
    assert cut.low == 2 and cut.open


@pytest.fixture(scope="module")
def small():
    return run(OneShotParameters.parse(SMALL))


def test_the_experiment_is_complete_and_paired(small):
    methods = {"pretrained": {"frozen", "plain"}, "random": {"frozen", "scratch"}}
    for zero_point, of in small[small["metric"] == "accuracy"].groupby("zero_point"):
        assert set(of["method"]) == methods[zero_point] | {"guided_tensor", "guided_network"}
    tuning = small[small["metric"] == "validation_first"]
    assert set(tuning.groupby(list(Variant._fields)).size()) == {4}  # each rate on each seed, for every method
    table = verdicts(small)
    assert set(table["task"]) == {str(Task(3, 1)), str(Task(4, 2))}
    assert set(table["n"]) == {f"2 seeds x {GROUP} episodes"}
    assert len(table) == 2 * (2 * 2 + 1) * 5  # ways to tune, heads and tasks and without pretraining, rivals
    numbers = saturation(small).groupby(["tuned_on", "what"])["number"].apply(list)
    assert numbers["first", "n_scouts"] == [1, 2, 4] and numbers["same", "scout_n_shot"] == [1, 3]
    assert pictures(small, "support", 0).shape == (3, 1, 28, 28) and pictures(small, "query", 1).any()
    assert set(small.loc[small["metric"] == "right", "value"]) <= {0, 1}


def test_the_experiment_does_not_depend_on_the_number_of_workers(small):
    only = {"tasks": SMALL["tasks"][:1], "heads": ["random"]}
    alone = run(OneShotParameters.parse(SMALL | only | {"workers": 1}))
    same = small.merge(alone[list(Variant._fields)].drop_duplicates())
    assert (
        same.sort_values(list(same)).reset_index(drop=True).equals(alone.sort_values(list(same)).reset_index(drop=True))
    )


def test_figures_are_drawn_for_one_head_only():
    only = {"tasks": SMALL["tasks"][:1], "heads": ["zero"]}
    frame = run(OneShotParameters.parse(SMALL | only))
    for name in ("", "_examples", "_rates", "_saturation"):
        assert getattr(plots, f"one_shot{name}")(frame).axes

"""The one-shot experiment's parts by hand, and the whole of it in small."""

import copy
import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.e01_one_shot.figures import EXPERIMENT
from experiments.e01_one_shot.run import (
    N_SHOWN,
    N_SHOWN_QUERIES,
    OneShotParameters,
    OneShotVariant,
    _packed,
    answers,
    episode,
    octaves,
    pictures,
    run,
    saturation,
    verdicts,
)
from experiments.episodes import Task
from experiments.images import zero_point_of
from experiments.methods import BASIC
from experiments.optimizers import OPTIMIZERS
from experiments.parameters import ParameterError
from experiments.protocol import Job, LearningRate
from experiments.statistics import choose_rates
from experiments.style import save
from gtl_core import Guided
from gtl_core.tasks import labelled
from gtl_core.training import correct, fit

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=2, n_episodes=10, n_tuning_episodes=2, tasks=["3-way 1-shot", "4-way 2-shot"],
    n_query=4, epochs=3, optimizers=["sgd", "adam"], learning_rates=[0.01, 0.1], adam_rates=[0.001, 0.01],
    heads=["random", "zero"], scout_adam_rate=0.001,
    channels=8, pretraining_epochs=1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1,
    saturation_scouts=[1, 4], saturation_n_shots=[1], results="x", prepared="", workers=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tasks": ["5 shots"]}, "'5 shots': must be like '5-way 1-shot', with at least 2 ways and 1 shot"),
        ({"tasks": ["1-way 1-shot"]}, "must be like '5-way 1-shot'"),
        ({"tasks": ["5-way 17-shot"]}, "n_query = 4: at most 3 in a 5-way 17-shot task"),
        ({"n_episodes": 105}, "n_episodes = 105: must be a multiple of 10, or less than 100"),
        ({"saturation_scouts": [4, 2]}, "saturation_scouts = [4, 2]: must increase"),
        ({"saturation_n_shots": [4, 4]}, "saturation_n_shots = [4, 4]: must not name the same value twice"),
        ({"optimizers": ["lion"]}, "optimizers.0 = 'lion': should be 'sgd', 'momentum', 'adam' or 'adamw'"),
        ({"adam_rates": [0.001]}, "adam_rates: must be as many as learning_rates, which are 2"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        OneShotParameters.parse(SMALL | wrong)


def test_more_scouts_are_the_fewer_and_some_more():
    p = OneShotParameters.parse(SMALL | {"saturation_scouts": [1, 2, 4, 8], "n_scouts": 3})
    base = OneShotVariant("pretrained", "random", 3, 1, "sgd", "sgd", "guided_network", 3, 3)
    parts = p.scoutings(0, base._replace(n_scouts=8))
    assert [(s.first_scout, s.n_scouts) for s in parts] == [(0, 1), (1, 1), (2, 2), (4, 4)]
    assert p.scoutings(0, base._replace(n_scouts=4)) == parts[:3]
    assert [(s.first_scout, s.n_scouts) for s in p.scoutings(0, base)] == [(0, 3)]


def test_every_optimizer_writes_its_guide_and_trains_with_every_guide():
    variants = OneShotParameters.parse(SMALL).variants()
    here = [v for v in variants if v[:4] == ("pretrained", "zero", 3, 1)]
    of_plain = [(v.scouts, v.optimizer) for v in here if v.method == "plain"]
    of_guided = [(v.scouts, v.optimizer) for v in here if v.method == "guided_network"]
    assert of_plain == [("none", "sgd"), ("none", "adam")]  # no scout has a part in it
    assert of_guided == [("sgd", "sgd"), ("sgd", "adam"), ("adam", "sgd"), ("adam", "adam")]
    assert {v.optimizer for v in variants if v[:4] != ("pretrained", "zero", 3, 1) and v.head != "random"} == {"sgd"}
    by_adam = next(v for v in here if v.scouts == "adam")
    (scouting,) = OneShotParameters.parse(SMALL).scoutings(0, by_adam)
    assert scouting.recipe().optimizer is torch.optim.Adam and scouting.learning_rate == 0.001


def test_the_same_rate_is_that_of_plain_fine_tuning_by_the_same_optimizer():
    """``same``: guided training has the rate of plain fine-tuning by its own optimizer, whoever trained its scouts."""
    rows = [
        {"scouts": scouts, "optimizer": optimizer, "method": method, "learning_rate": rate, "seed": 0}
        | {"metric": "validation_first", "value": value}
        for scouts, optimizer, method, best in (
            ("none", "sgd", "plain", 0.1), ("none", "adam", "plain", 0.001), ("sgd", "adam", "guided_network", 0.1),
            ("adam", "sgd", "guided_network", 0.001),
        )
        for rate in (0.001, 0.1)
        for value in [float(rate == best)]
    ]  # fmt: skip
    chosen = choose_rates(pd.DataFrame(rows), "same")
    assert chosen["sgd", "adam", "guided_network"] == 0.001 and chosen["adam", "sgd", "guided_network"] == 0.1


def test_scouts_sent_later_are_the_ones_that_would_have_come_next():
    (scouting,) = OneShotParameters.parse(SMALL).scoutings(
        0, OneShotVariant("random", "zero", 3, 1, "none", "sgd", "plain", 2, 3)
    )
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
    variant = OneShotVariant("pretrained", "zero", 5, 1, "none", "sgd", "plain", 2, 3)
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


@pytest.fixture(scope="module")
def alone():
    """One task, one head, two processes."""
    return run(OneShotParameters.parse(SMALL | {"tasks": SMALL["tasks"][:1], "heads": ["random"], "workers": 2}))


def test_the_experiment_is_complete_and_paired(small):
    methods = {"pretrained": {"frozen", "plain"}, "random": {"frozen", "scratch"}}
    for zero_point, rows in small[small["metric"] == "accuracy"].groupby("zero_point"):
        assert set(rows["method"]) == methods[zero_point] | {"guided_tensor", "guided_network"}
    tuning = small[small["metric"] == "validation_first"]
    assert set(tuning.groupby(list(OneShotVariant._fields)).size()) == {4}  # each rate on each seed, for every method
    differences = verdicts(small)
    assert set(differences["task"]) == {str(Task(3, 1)), str(Task(4, 2))}
    assert set(differences["n"]) == {f"2 networks x {SMALL['n_episodes']} episodes"}
    # Ways to tune; heads and tasks, three more pairs of optimizers with each head, and without pretraining; rivals.
    assert len(differences) == 2 * (2 * 2 + 2 * 3 + 1) * 5
    numbers = saturation(small).groupby(["tuned_on", "what"])["number"].apply(list)
    assert numbers["first", "n_scouts"] == [1, 2, 4] and numbers["same", "scout_n_shot"] == [1, 3]


@pytest.fixture(scope="module")
def displacement():
    """Of the first variant's scouts in the first network."""
    (scouting,) = OneShotParameters.parse(SMALL).scoutings(0, FIRST)
    return scouting.scout(dict(scouting.pretraining.train()[0].body.named_parameters()))


FIRST = OneShotVariant("pretrained", "random", 3, 1, "none", "sgd", "frozen", 2, 3)


def test_the_episodes_that_are_shown_are_those_that_were_answered(small, displacement):
    """Every method's signs under the pictures, and the pictures themselves, are what the first test episodes gave."""
    right = small[small["metric"] == "right"]
    assert list(right["method"].unique()) == ["frozen", "plain", "guided_tensor", "guided_network"]
    p = OneShotParameters.parse(SMALL)
    for (method, rate), rows in right.groupby(["method", "learning_rate"]):
        job = Job(p, 0, FIRST._replace(method=method), LearningRate(rate), "test")
        by_class = answers(job, displacement).reshape(-1, 3, p.n_query)
        shown = rows.sort_values(["task", "step"])["value"].to_numpy(float)
        assert np.array_equal(shown, by_class[:N_SHOWN, :, :N_SHOWN_QUERIES].flatten())
    for task in range(N_SHOWN):
        images = episode(job, task)
        assert np.array_equal(pictures(small, "support", task), images.support[:, :1, 0] > 0.4)
        assert np.array_equal(pictures(small, "query", task), images.query[:, :N_SHOWN_QUERIES, 0] > 0.4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["frozen", "plain", "guided_tensor", "guided_network"])
def test_episodes_side_by_side_are_episodes_one_by_one(method, optimizer, displacement):
    """In groups of six and four: of the 40 places for support images, six episodes take 36."""
    p = OneShotParameters.parse(SMALL)
    job = Job(p, 0, FIRST._replace(n_shot=2, method=method, optimizer=optimizer), LearningRate(0.03), "test")
    method = BASIC[method]
    for i, right in enumerate(answers(job, displacement)):
        model = copy.deepcopy(zero_point_of(displacement))
        if method.head_only:
            model.body.requires_grad_(False)
        steps = OPTIMIZERS[optimizer][0](model.parameters(), lr=0.03)
        steps = Guided(steps, model, method.guide(displacement)) if method.guide else steps
        fit(model, *labelled(episode(job, i).support), steps, epochs=p.epochs)
        assert np.array_equal(right, correct(model, *labelled(episode(job, i).query)).numpy())


def test_the_experiment_does_not_depend_on_the_number_of_workers(small, alone):
    same = small.merge(alone[list(OneShotVariant._fields)].drop_duplicates())
    columns = list(same)
    assert same.sort_values(columns).reset_index(drop=True).equals(alone.sort_values(columns).reset_index(drop=True))


@pytest.mark.parametrize("frame", ["small", "alone"])
def test_every_figure_names_every_method_it_is_about(frame, request, tmp_path):
    frame, drawn = request.getfixturevalue(frame), {}
    for name, draw in EXPERIMENT.figures.items():
        figure = draw(frame)
        save(figure, tmp_path / f"{name}.png")
        drawn[name] = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    everything = [method.label for method in BASIC.values()]
    assert drawn["one_shot_rates"] == everything
    assert drawn["one_shot"] == [
        BASIC[name].label for name in ("frozen", "guided_network", "guided_tensor")
    ]  # minus plain
    assert drawn["one_shot_examples"] == drawn["one_shot_optimizers"] == everything[1:]  # from a pretrained network
    assert drawn["one_shot_saturation"] == [BASIC[name].label for name in ("frozen", "plain", "guided_network")]


def test_figures_show_the_table_s_numbers(alone):
    """The dot of a method is the mean of its test rows at the rate that is best for it, minus that of scratch."""
    figure = EXPERIMENT.figures["one_shot"](alone)
    dots = {line.get_label(): line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "o"}
    means = {}
    for method, rows in alone[(alone["zero_point"] == "random") & (alone["optimizer"] == "sgd")].groupby("method"):
        best = rows[rows["metric"] == "validation_first"].groupby("learning_rate")["value"].mean().idxmax()
        means[method] = rows.loc[(rows["metric"] == "accuracy") & (rows["learning_rate"] == best), "value"].mean()
    assert dots[BASIC["frozen"].label] == pytest.approx(100 * (means["frozen"] - means["scratch"]))
    assert f"{100 * means['scratch']:.1f} %" in [text.get_text() for text in figure.axes[0].texts]

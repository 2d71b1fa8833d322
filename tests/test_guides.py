"""The guide laboratory's parts by hand, and the whole of it in small."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import records
from experiments.baselines.learned_guide import learned_guide
from experiments.baselines.meta import meta_loss
from experiments.e04_guides import candidates, figures
from experiments.e04_guides.anatomy import GS, OPTIMIZERS, moves
from experiments.e04_guides.candidates import (
    BAR,
    BY_SCOUTS,
    CANDIDATES,
    METHODS,
    RIVALS,
    consistent,
    for_ways,
    head_free,
    one_for_the_body,
    relative,
    scout_from,
)
from experiments.e04_guides.parameters import GuidesParameters, ShiftedTask
from experiments.e04_guides.run import (
    CONDITION,
    KEY,
    accuracies,
    best_on_validation,
    conclusions,
    differences,
    run,
    verdict,
)
from experiments.models import conv4, new_head
from experiments.optimizers import usual_rate
from experiments.parameters import ParameterError
from experiments.style import save
from gtl_core import Displacement, Guide, Recipe, scout
from gtl_core._engine.stacked import stack
from gtl_core.shaping import linear
from gtl_core.tasks import Episode, labelled, rng

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=2, arenas=["none 3-way 1-shot", "inverted 4-way stream"], heads=["zero"],
    optimizers=["sgd", "adam"],
    n_episodes=10, n_tuning_episodes=2, n_streams=3, n_tuning_streams=1, n_rounds=2, n_query=4, epochs=3,
    first_epochs=3, stream_epochs=1, learning_rates=[0.03, 0.3], channels=8, pretraining_epochs=1, n_scouts=3,
    scout_n_way=3, scout_n_shot=3, scout_n_query=3, scout_epochs=6, scout_learning_rate=0.1, learned_tasks=4,
    results="x", prepared="", workers=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"arenas": ["5-way 1-shot"]}, "'5-way 1-shot': must begin with one of none, glyphs, rotated, inverted"),
        ({"arenas": ["none 5 shots"]}, "'5 shots': must be like '5-way 1-shot'"),
        ({"arenas": ["glyphs 5-way stream"]}, "'glyphs 5-way stream' is no shift where dataset = 'glyphs'"),
        ({"arenas": ["none 5-way 17-shot"]}, "n_query = 4: too many for 'none 5-way 17-shot'"),
        ({"n_rounds": 16}, "n_query = 4: too many for 'inverted 4-way stream'"),
        ({"scout_n_shot": 18}, "scout_n_query = 3: at most 2"),
        ({"n_episodes": 105}, "n_episodes = 105: must be a multiple of 10, or less than 100"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        GuidesParameters.parse(SMALL | wrong)


def test_arenas_are_what_they_say():
    assert ShiftedTask.parse("rotated 5-way 1-shot") == ("rotated", 5, 1)
    assert ShiftedTask.parse("none 4-way stream") == ("none", 4, 0)
    p = GuidesParameters.parse(SMALL | {"heads": ["zero", "random"]})
    assert [(str(task), head, optimizer) for task, head, optimizer in p.conditions()] == [
        ("none 3-way 1-shot", "zero", "sgd"),
        ("none 3-way 1-shot", "zero", "adam"),
        ("none 3-way 1-shot", "random", "sgd"),
        ("none 3-way 1-shot", "random", "adam"),
        ("inverted 4-way stream", "zero", "sgd"),
    ]
    assert p.rates("sgd") == [(0.03,), (0.3,)] and [*sum(p.rates("adam"), ())] == pytest.approx([0.0003, 0.003])
    assert len(p.starting_points()) == 6 and len(p.preparations()) == 2  # shifts and heads share a pretrained network


def test_names_follow_from_the_rows():
    assert BAR == ["frozen", "plain"] and [*BAR, "further_frozen", "further_plain"] == RIVALS
    assert {*CANDIDATES} - {*BY_SCOUTS} == {"shuffled", "uniform", "adam_uniform", "learned"}  # none is the scouts' map
    assert [name for name, method in METHODS.items() if method.head_only] == ["frozen", "further_frozen"]


def moved(*scouts):
    displacement = Displacement({"body.w": torch.tensor([1.0, -2.0, 0.0]), "head.w": torch.zeros(2)})
    for body, head in scouts:
        zero = displacement.zero_point
        displacement.add({"body.w": zero["body.w"] + torch.tensor(body), "head.w": zero["head.w"] + torch.tensor(head)})
    return displacement


def test_consistency_by_hand():
    """The first parameter moves 1 and 3, the second 1 and -1, the third not at all; the head is free."""
    guide = consistent(moved(([1.0, 1, 0], [1.0, 1]), ([3.0, -1, 0], [1.0, -1])))
    assert guide["body.w"].tolist() == [1, 0, 0] and guide["head.w"].tolist() == [1, 1]


def test_relative_displacement_by_hand():
    """|w| = 1, 2, 0 with mean 1; all move by 1: 1/2, 1/3 and 1, and what was all 0 is free."""
    guide = relative(moved(([1.0, -1, 1], [5.0, 0])))
    assert guide["body.w"].tolist() == pytest.approx([1 / 2, 1 / 3, 1]) and guide["head.w"].tolist() == [1, 1]


def test_one_g_for_the_body_is_the_mean_of_its_map():
    """Root mean squares 1, 2 and 3 by the largest, 4, of the head: a mean of 1/2; the head is free in both."""
    displacement = moved(([1.0, 2, 3], [4.0, 4]))
    assert head_free(displacement)["body.w"].tolist() == pytest.approx([1 / 4, 1 / 2, 3 / 4])
    assert one_for_the_body(displacement)["body.w"].tolist() == pytest.approx([1 / 2] * 3)
    assert head_free(displacement)["head.w"].tolist() == one_for_the_body(displacement)["head.w"].tolist() == [1, 1]


def test_heads_of_other_sizes_get_the_mean_over_classes():
    guide = Guide({"body.w": torch.tensor([0.3]), "head.weight": torch.tensor([[0.0, 1], [1, 1]])})
    more = for_ways(guide, 3)
    assert more["head.weight"].tolist() == [[0.5, 1]] * 3 and torch.equal(more["body.w"], guide["body.w"])


def task(seed):
    """Tell two noisy pictures apart."""
    generator = rng(seed)
    pictures = torch.rand(2, 1, 1, 28, 28, generator=generator)
    support, query = (pictures + 0.3 * torch.randn(2, n, 1, 28, 28, generator=generator) for n in (1, 4))
    return Episode(torch.arange(2), support, query)


def test_a_learned_guide_improves_its_own_loss_and_leaves_the_zero_point_alone():
    model = conv4(2, 4, generator=rng(0))
    new_head(model, 2, "zero", generator=rng(1))
    tasks = [task(i) for i in range(4)]
    zero_point = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    guide = learned_guide(model, tasks * 10, n_steps=3)
    losses = [
        meta_loss(stack([model] * 4), zero_point, g, tasks, 3, first_order=True).item()
        for g in (linear(guide, 0, 0.1), guide)  # where it started, and where it went
    ]
    assert losses[1] < losses[0]
    assert all(torch.equal(p, zero_point[name]) and p.grad is None for name, p in model.named_parameters())
    assert guide.metadata["learned_on"] == 40 and len({round(g.mean().item(), 3) for g in guide.values()}) > 1


def test_under_adam_a_guided_gradient_goes_its_whole_way_and_a_guided_step_its_share():
    model = conv4(2, 4, generator=rng(0))
    inputs, labels = task(0).query.flatten(0, 1), torch.arange(2).repeat_interleave(4)
    rows = pd.DataFrame(moves(model, inputs, labels))
    assert len(rows) == 2 * len(OPTIMIZERS) * len(GS)
    far = rows.set_index(["method", "part", "at"])["value"]
    for optimizer in OPTIMIZERS:
        assert far[optimizer, "step", 0.0] == 0
        assert far[optimizer, "step", 0.01] < 0.05 * far[optimizer, "step", 1.0]
        assert far[optimizer, "gradient", 1.0] == far[optimizer, "step", 1.0]
    for optimizer in ("Adam", "AdamW"):
        assert far[optimizer, "gradient", 0.01] > 0.9 * far[optimizer, "gradient", 1.0]
    assert far["AdamW", "gradient", 0.0] > 0  # weight decay asks no gradient
    torch.testing.assert_close(far["SGD", "gradient", 0.1], far["SGD", "step", 0.1], rtol=1e-3, atol=0)


def test_scouts_watched_step_by_step_end_where_scouts_end():
    """By the public `scout`, each has taken the same steps; of the last look, the guide is the whole one's."""
    p = GuidesParameters.parse(SMALL)
    point = p.starting_points()[0]
    model = conv4(p.scout_n_way, p.channels, generator=rng(0))
    left = scout_from(p, (point, dict(model.body.named_parameters())))
    tasks = p.episodes(point, "scouting", "scout", p.n_scouts, p.scout_n_way, p.scout_n_shot, p.scout_n_query)
    zero_point = p.zero_point(point, p.scout_n_way, left.body)
    recipe = Recipe(p.scout_learning_rate, p.scout_epochs)
    whole = scout(zero_point, [labelled(task.support) for task in tasks], recipe)
    assert left.displacement.count == p.n_scouts and left.binned.bins[0].count > 0
    assert sum(b.count for b in left.binned.bins) == p.n_scouts * p.scout_epochs
    by_adam = scout(zero_point, [labelled(task.support) for task in tasks], p.recipe("adam"))
    for name, square in whole.mean_square.items():
        torch.testing.assert_close(left.displacement.mean_square[name], square)
        assert torch.equal(left.by_adam.mean_square[name], by_adam.mean_square[name])
        assert not torch.equal(left.by_adam.mean_square[name], square)


def test_where_no_scout_improves_none_weighs_more_than_another(monkeypatch):
    monkeypatch.setattr(candidates, "_loss", lambda model, task: 1.0)
    p = GuidesParameters.parse(SMALL | {"learned_tasks": 1, "scout_epochs": 2})
    model = conv4(p.scout_n_way, p.channels, generator=rng(0))
    left = scout_from(p, (p.starting_points()[0], dict(model.body.named_parameters())))
    assert left.improved.count == left.displacement.count == p.n_scouts
    assert all(torch.equal(s, left.displacement.mean_square[name]) for name, s in left.improved.mean_square.items())


@pytest.fixture(scope="module")
def small():
    return run(GuidesParameters.parse(SMALL))


@pytest.fixture(scope="module")
def few(small):
    """Some methods of it: every pair takes its time."""
    return small[small["method"].isin([*RIVALS, "root", "learned"]) | small["arena"].isna()]


def test_the_experiment_is_complete_and_paired(small):
    test = small[small["metric"] == "accuracy"]
    assert set(test["method"]) == {*RIVALS, *CANDIDATES}
    tuning = small[small["metric"].isin(["validation_first", "validation_last"])]
    # The same budget for every method: each rate on each seed.
    assert set(tuning.groupby([*CONDITION, "method", "metric"]).size()) == {4}
    table = differences(small)
    means = accuracies(small).set_index([*KEY, "method"])["accuracy"]
    for row in table.itertuples():
        key = tuple(getattr(row, column) for column in KEY)
        assert row.mean == pytest.approx(means[*key, row.method] - means[*key, row.rival])
    # 5 ways and conditions; 14 guides and 4 rivals against 9, none against itself.
    assert len(table) == 5 * (18 * 9 - 9)
    assert dict(table.groupby("arena")["n"].unique().str.join("")) == {
        "none 3-way 1-shot": "2 networks x 10 episodes",
        "inverted 4-way stream": "2 networks x 3 streams",
    }
    assert set(table["tuned_on"]) == {"first", "careful", "last"}
    assert set(table.loc[table["tuned_on"] == "last", "arena"]) == {"inverted 4-way stream"}


def test_the_best_guide_is_chosen_on_validation_tasks(small):
    """Of the scouts' guides the one that is best there at one of its rates; the learned and the shuffled one do not
    count, nor does what happens on test tasks."""
    frame = small.copy()
    tuning, best = frame["metric"].str.startswith("validation_"), frame["method"] == "relative"
    frame.loc[tuning, "value"] = np.where(frame.loc[tuning, "method"].isin(["learned", "shuffled"]), 0.9, 0.2)
    highest = frame["learning_rate"].isin([0.3, usual_rate("adam", 0.3)])
    frame.loc[tuning & best & highest, "value"] = 0.5
    test = frame["metric"] == "accuracy"
    frame.loc[test, "value"] = (frame.loc[test, "method"] == "layers").astype(float)
    chosen = best_on_validation(frame)
    assert len(chosen) == 5 and set(chosen.values()) == {"relative"}


def test_conclusions_follow_from_the_numbers(few):
    """Where guides are right everywhere and rivals nowhere, they pass; the other way round, they do not, and where both
    are equal, nothing is said."""
    for guided, rivals, answer in (
        (1.0, 0.0, "above frozen and plain"),
        (0.0, 1.0, "below frozen and plain"),
        (0.5, 0.5, "undecided"),
    ):
        frame = few.copy()
        accuracy = frame["metric"] == "accuracy"
        frame.loc[accuracy, "value"] = np.where(frame.loc[accuracy, "method"].isin(CANDIDATES), guided, rivals)
        table = differences(frame)
        found = conclusions(frame, table)
        assert len(found) == 10 and set(found["answer"]) == {answer}
        assert set(found["passes"]) == {guided > rivals} and set(found["beaten"]) == {guided < rivals}
        assert verdict(frame, table).count(f"passes the bar in {5 if guided > rivals else 0} of 5 arenas") == 2


def test_a_guide_that_beats_only_one_of_the_bar_does_not_pass(few):
    frame = few.copy()
    accuracy = frame["metric"] == "accuracy"
    value = frame.loc[accuracy, "method"].map(lambda name: {"plain": 0.2, "frozen": 0.8}.get(name, 0.5))
    frame.loc[accuracy, "value"] = value
    found = conclusions(frame, differences(frame))
    assert set(found["answer"]) == {"above plain, below frozen"}
    assert not found["passes"].any() and not found["beaten"].any()


def test_what_is_told_about_guides_adds_up(small):
    def of(metric):
        return small[small["metric"] == metric]

    assert set(of("histogram").groupby("part")["value"].sum().round(4)) == {1}
    assert of("points")["value"].sum() == pytest.approx(1)
    assert of("below").groupby("method")["value"].last().tolist() == [1] * 6
    assert of("density").sort_values("at")["value"].is_monotonic_decreasing


def test_accuracies_say_whether_the_best_rate_is_at_the_edge_of_those_tried():
    """Of three rates, plain does best in validation at the middle one, the linear probe at the highest; by
    Adam, plain at the highest of its own."""
    key = {"seed": 0, "arena": "none 5-way 1-shot", "head": "zero", "part": None, "at": None}
    rows = []
    cases = (("sgd", "plain", 0.1, 0.7), ("sgd", "frozen", 0.3, 0.6), ("adam", "plain", 0.03, 0.8))
    for optimizer, method, best, right in cases:
        key |= {"optimizer": optimizer}
        for rate in (0.003, 0.01, 0.03) if optimizer == "adam" else (0.03, 0.1, 0.3):
            row = key | {"method": method, "learning_rate": rate}
            rows.append(row | {"task": "", "metric": "validation_first", "value": 0.9 if rate == best else 0.8})
        rows.append(key | {"method": method, "learning_rate": best, "task": 0, "metric": "accuracy", "value": right})
    table = accuracies(pd.DataFrame(rows)).set_index(["optimizer", "method"])
    assert table[["learning_rate", "accuracy", "edge"]].to_dict("index") == {
        ("sgd", "plain"): {"learning_rate": 0.1, "accuracy": 0.7, "edge": False},
        ("sgd", "frozen"): {"learning_rate": 0.3, "accuracy": 0.6, "edge": True},
        ("adam", "plain"): {"learning_rate": 0.03, "accuracy": 0.8, "edge": True},
    }


@pytest.mark.parametrize("name", figures.EXPERIMENT.figures)
def test_figures_are_drawn_from_the_table_alone(small, name, tmp_path):
    records.write(str(tmp_path), "guides", small, {})
    figure = figures.EXPERIMENT.figures[name](records.read(str(tmp_path), "guides"))
    save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert figure.get_label() and figure.axes


def test_the_experiment_does_not_depend_on_the_number_of_workers(small):
    only = {"arenas": SMALL["arenas"][:1], "optimizers": SMALL["optimizers"][:1], "workers": 2}
    other = run(GuidesParameters.parse(SMALL | only))
    same = (small["arena"] == SMALL["arenas"][0]) & (small["optimizer"] == "sgd")
    same = small[same].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, other[other["arena"].notna()].reset_index(drop=True))

"""Laws of the experiment in the paper's setting, and a tiny run of it."""

import copy
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.e10_paper_setting import figures, verdicts
from experiments.e10_paper_setting.learning import learn
from experiments.e10_paper_setting.methods import METHODS, binary, mean_gradient, of_body
from experiments.e10_paper_setting.parameters import CORE, PaperSettingParameters
from experiments.e10_paper_setting.preparations import DigitPretraining, DigitScouting
from experiments.e10_paper_setting.run import KEY, CharacterSetting, best, run
from experiments.models import cnn
from experiments.parameters import ParameterError
from gtl_core import Displacement, Guide, Recipe, scout
from gtl_core.tasks import Episode, rng

TINY = {
    "seed": 0, "results": "x", "prepared": "", "workers": 1, "digits": "digits", "characters": "glyphs",
    "n_seeds": 2, "n_sets": 3, "n_tuning_sets": 1, "n_query": 2, "networks": ["cnn"], "n_images": [1500, 100],
    "scout_optimizers": ["adam", "sgd"], "scout_ways": [3], "scout_heads": ["new"], "n_ways": [4],
    "heads": ["random"], "optimizers": ["adam", "sgd"], "methods": list(METHODS), "channels": 4,
    "pretraining_steps": 2, "n_scouts": 2, "scout_n_shot": 4, "scout_steps": 2, "scout_batch_size": 6,
    "adam_rates": [0.001, 0.01], "sgd_rates": [0.01, 0.1], "steps": [1, 3],
}  # fmt: skip


def tiny(**changes) -> PaperSettingParameters:
    return PaperSettingParameters.parse(TINY | changes)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return run(tiny())


@pytest.fixture
def model() -> torch.nn.Sequential:
    return cnn(3, 4, generator=rng(0))


@pytest.fixture
def episode() -> Episode:
    images = torch.rand(3, 5, 1, 28, 28, generator=rng(1))
    return Episode(torch.arange(3), images[:, :1], images[:, 1:])


def ends(model, name, episode, rates, guide=None, optimizer="sgd", steps=(1, 4)):
    trained = copy.deepcopy(model)
    curve = learn(trained, METHODS[name], guide, optimizer, rates, episode, steps)
    return curve, {n: p.detach() for n, p in trained.named_parameters()}


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_one_g_for_the_body_is_a_rate_of_its_own(model, episode, optimizer):
    """Why plain fine-tuning with rates apart is what a uniform guide stands for."""
    guide = Guide({n: torch.full_like(p, 0.25) for n, p in model.named_parameters() if n.startswith("body.")})
    _, guided = ends(model, "guided_network", episode, (0.04, 0.02), guide, optimizer)
    _, plain = ends(model, "plain", episode, (0.01, 0.02), None, optimizer)
    assert all(torch.allclose(guided[n], plain[n], atol=1e-6) for n in plain)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_body_without_a_rate_is_a_linear_probe(model, episode, optimizer):
    probe, probed = ends(model, "frozen", episode, (0.0, 0.05), None, optimizer)
    plain, tuned = ends(model, "plain", episode, (0.0, 0.05), None, optimizer)
    assert torch.allclose(probe, plain, atol=1e-5)
    assert all(torch.equal(probed[n], p) for n, p in model.named_parameters() if n.startswith("body."))
    assert torch.allclose(probed["head.weight"], tuned["head.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "moving"),
    [
        ("bitfit", {"body.0.bias", "body.3.bias", "body.7.bias", "head.weight", "head.bias"}),
        ("top", {"body.7.weight", "body.7.bias", "head.weight", "head.bias"}),
        ("frozen", {"head.weight", "head.bias"}),
        ("centroid", set()),
    ],
)
def test_what_is_not_trained_stays(model, episode, name, moving):
    _, after = ends(model, name, episode, (0.1, 0.1))
    assert {n for n, p in model.named_parameters() if not torch.equal(p, after[n])} == moving


def test_a_spring_holds_the_body(model, episode):
    _, plain = ends(model, "plain", episode, (0.1, 0.1), steps=(20,))
    _, held = ends(model, "l2_sp", episode, (0.1, 0.1), steps=(20,))
    far = [
        sum(((after[n] - p) ** 2).sum() for n, p in model.named_parameters() if "body" in n) for after in (plain, held)
    ]
    assert far[1] < far[0]


def test_the_nearest_centroid_by_hand(model, episode):
    curve, _ = ends(model, "centroid", episode, (0.0, 0.0))
    with torch.no_grad():
        (support,), queries = model.body(episode.support.flatten(0, 1))[None], model.body(episode.query.flatten(0, 1))
    cosine = [[q @ s / (q.norm() * s.norm()) for s in support] for q in queries]
    right = [int(np.argmax(row)) == i // 4 for i, row in enumerate(cosine)]
    assert curve[:, 0].tolist() == pytest.approx([sum(right) / 12] * 2)


def test_the_curve_s_end_is_the_network_s_accuracy_and_loss(model, episode):
    curve, after = ends(model, "plain", episode, (0.05, 0.05))
    model.load_state_dict(after)
    logits, answers = model(episode.query.flatten(0, 1)), torch.arange(3).repeat_interleave(4)
    assert curve[-1, 0] == (logits.argmax(1) == answers).float().mean()
    assert curve[-1, 1].item() == pytest.approx(torch.nn.functional.cross_entropy(logits, answers).item(), rel=1e-5)


# --- guides and controls --------------------------------------------------------------------------


def displaced(*scouts: dict[str, list[float]]) -> Displacement:
    displacement = Displacement({name: torch.zeros(len(values)) for name, values in scouts[0].items()})
    for scouted in scouts:
        displacement.add({name: torch.tensor(values) for name, values in scouted.items()})
    return displacement


def test_guides_and_controls_by_hand():
    """Mean squares 4, 0.01, 1 in the body and 16 in the head, the largest, by which all are divided."""
    displacement = displaced({"body": [2.0, 0.1, 1.0], "head": [4.0]})
    assert of_body(displacement)["body"].tolist() == pytest.approx([1 / 4, 1 / 1600, 1 / 16])
    assert list(of_body(displacement)) == ["body"]
    one_g = METHODS["uniform"].guide(displacement)["body"]
    assert one_g.tolist() == pytest.approx([(1 / 4 + 1 / 1600 + 1 / 16) / 3] * 3)
    assert binary(displacement)["body"].tolist() == [1, 0, 1]
    assert mean_gradient(displacement)["body"].tolist() == pytest.approx([1 / 2, 1 / 40, 1 / 4])


def test_one_step_of_descent_moves_by_the_gradient(model):
    inputs, labels = torch.rand(6, 1, 28, 28, generator=rng(2)), torch.arange(3).repeat(2)
    displacement = scout(model, [(inputs, labels)], Recipe(0.1, 1))
    torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    size = {name: 0.1 * p.grad.abs() for name, p in model.named_parameters()}
    assert all(torch.allclose(displacement.mean_abs[name], size[name], atol=1e-6) for name in size)


# --- scouts ---------------------------------------------------------------------------------------


def scouting(**changes) -> DigitScouting:
    pretraining = DigitPretraining(dataset="digits", seed=0, network="cnn", channels=4, n_images=500, n_steps=1)
    settings = {
        "n_way": 3,
        "n_scouts": 120,
        "head": "new",
        "optimizer": "sgd",
        "n_shot": 4,
        "n_steps": 2,
        "batch_size": 6,
    }
    return DigitScouting(pretraining=pretraining, **(settings | changes))


def test_every_triple_of_digits_has_a_scout():
    assert scouting().digits() == list(combinations(range(10), 3)) and len(scouting().digits()) == 120
    some = scouting(n_scouts=7).digits()
    assert len(set(some)) == 7 and set(some) <= set(combinations(range(10), 3))


def test_a_scout_sees_its_digits_with_their_labels():
    images = scouting().pretraining.images()
    for head in ("new", "pretrained"):
        task = scouting(n_scouts=1, head=head)
        (digits,), ((inputs, labels),) = task.digits(), list(task.tasks())
        assert len(inputs) == 12
        for i, label in enumerate(labels.tolist()):
            digit = digits[label] if head == "new" else label
            assert (images[digit] == (255 * inputs[i, 0]).round().to(torch.uint8)).flatten(1).all(1).any()


@pytest.mark.parametrize(("n_images", "per_digit"), [(500, 50), (100, 10)])
def test_pretraining_takes_equally_many_images_of_every_digit(n_images, per_digit):
    pretraining = scouting().pretraining.model_copy(update={"n_images": n_images})
    assert [len(images) for images in pretraining.images().values()] == [per_digit] * 10


def test_a_scout_takes_as_many_steps_as_it_is_told():
    recipe = scouting(n_steps=6, batch_size=6).recipe(12)  # two batches in each epoch
    assert recipe.epochs * 12 // recipe.batch_size == 6


# --- the experiment -------------------------------------------------------------------------------


def test_one_thing_changes_at_a_time():
    variants = tiny().variants()
    conditions = {v[:8] for v in variants if v.method == "guided_network"}
    first = ("cnn", 1500, "adam", 3, "new", 4, "random", "adam")
    changed = {tuple(i for i in range(8) if c[i] != first[i]) for c in conditions}
    assert changed == {(), (1,), (2,), (7,), (2, 7)}  # images, scouts' optimizer, optimizer, both
    others = {v.method for v in variants if v[:2] != first[:2]}
    assert others == set(CORE)
    assert {v.rates for v in variants if v.n_images != 1500 and v.method == "plain"} == {"apart"}
    assert {v.rates for v in variants if v.optimizer != "adam" and v.method == "plain"} == {"one", "apart"}
    assert len(variants) == len(set(variants))


def test_the_best_setting_is_that_of_the_highest_mean():
    key = dict.fromkeys(KEY, "x")
    values = [(0.1, 5, [0.2, 0.4]), (0.1, 9, [0.5, 0.3]), (0.3, 5, [0.9, 0.0])]  # means 0.3, 0.4, 0.45
    rows = [
        key | {"learning_rate": rate, "head_rate": 1.0, "step": step, "metric": "validation", "value": value}
        for rate, step, of_seeds in values
        for value in of_seeds
    ]
    assert list(best(pd.DataFrame(rows)).values()) == [(CharacterSetting(0.3, 1.0), 5)]


def test_every_variant_is_tuned_and_tested_alike(frame):
    p = tiny()
    tests = frame[frame["metric"] == "accuracy"].groupby(KEY, sort=False)
    assert set(tests.groups) == {tuple(v) for v in p.variants()}
    assert (tests.size() == p.n_seeds * p.n_sets).all()
    tried = frame[frame["metric"] == "validation"].groupby(KEY)[["learning_rate", "head_rate"]]
    n_settings = tried.apply(lambda rows: len(rows.drop_duplicates()))
    assert (n_settings[n_settings.index.get_level_values("method") != "centroid"] == 2).all()


def test_guided_minus_its_rivals_by_hand(frame):
    table = verdicts.comparisons(frame)
    row = table[(table["rates"] == "apart") & (table["rival"] == "shuffled")].iloc[0]
    accuracy = frame[frame["metric"] == "accuracy"].set_index(KEY)["value"]
    key = [row[column] for column in KEY[:-1]]
    mine, other = (accuracy.loc[(*key, method)].to_numpy() for method in ("guided_network", "shuffled"))
    assert row["mean"] == pytest.approx((mine - other).mean())
    # Rivals without scouts take part in every comparison, and those with other scouts in none.
    first = table[(table[verdicts.CONDITION] == table.iloc[0][verdicts.CONDITION]).all(axis=1)]
    assert set(first["rival"]) == set(METHODS) - {"guided_network"}


def test_guided_minus_plain_under_every_condition_by_hand(frame):
    table = verdicts.over_conditions(frame).set_index("condition")
    changes = ["100 digits to pretrain on", "scouts by SGD", "tuned by SGD", "tuned by SGD, scouts by SGD"]
    assert list(table.index) == ["the first condition", *changes]
    apart = frame[(frame["metric"] == "accuracy") & (frame["rates"] == "apart") & (frame["optimizer"] == "sgd")]
    means = apart.groupby(["method", "scouts"])["value"].mean()
    for scouts, condition in {"adam": "tuned by SGD", "sgd": "tuned by SGD, scouts by SGD"}.items():
        gap = means["guided_network", scouts] - means["plain", "none"]
        assert table.loc[condition, "mean"] == pytest.approx(gap)


def test_when_the_loss_turns_by_hand():
    first = {"network": "cnn", "n_images": 1, "n_way": 4, "head": "zero", "optimizer": "adam", "rates": "one"}
    losses = {"plain": [3, 1, 2], "guided_network": [3, 2, 1]}
    rows = [
        first
        | {"method": m, "scouts": "none" if m == "plain" else "adam", "scout_ways": 3, "scout_head": "new", "seed": 0}
        | {"learning_rate": 0.1, "metric": "loss_curve", "step": step, "value": value}
        for m, curve in losses.items()
        for step, value in zip((5, 10, 20), curve, strict=True)
    ]
    table = verdicts.turning(pd.DataFrame(rows)).set_index("method")
    assert table.loc["plain"].tolist() == [10, 1] and table.loc["guided_network"].tolist() == [20, 0]


def test_a_rate_at_the_edge_is_told(frame):
    table = verdicts.accuracies(frame)
    tried = {"adam": {0.001, 0.01}, "sgd": {0.01, 0.1}}  # with two rates both are at the edge
    tuned = table[table["method"] != "centroid"]
    assert tuned["edge"].all() and not table.loc[table["method"] == "centroid", "edge"].any()
    assert all({r} <= tried[o] for r, o in zip(tuned["head_rate"], tuned["optimizer"], strict=True))


@pytest.mark.parametrize("draw", figures.FIGURES, ids=lambda draw: draw.__name__)
def test_every_figure_is_drawn(frame, draw):
    figure = draw(frame)
    assert all(axis.has_data() for axis in figure.axes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_ways": [9999]}, r"n_ways = 9999: at most \d+ characters of glyphs"),
        ({"steps": [3, 1]}, r"steps = \(3, 1\): must increase"),
    ],
)
def test_impossible_parameters_are_named(changes, message):
    with pytest.raises(ParameterError, match=message):
        tiny(**changes).check()

"""The authors' programs: what is learned, what scouting costs, and the width that plain training needs."""

import math

import pandas as pd
import pytest
import torch
from torch.nn.functional import l1_loss, mse_loss

from experiments import records
from experiments.e11_authors_code import figures, library, patterns
from experiments.e11_authors_code import run as authors
from experiments.e11_authors_code.library import METHODS, SIZES, XOR
from experiments.e11_authors_code.run import AuthorsParameters
from experiments.models import multilayer_perceptron
from experiments.parameters import ParameterError
from experiments.protocol import Job, LearningRate
from gtl_core import Displacement, Guided, Recipe, scout
from gtl_core._engine import stack
from gtl_core.tasks import rng

SMALL = dict(
    seed=0, n_seeds=2, learning_rates=[0.003, 0.03], patterns_per_class=4, known_at_first=0.3,
    scout_learning_rate=0.01, n_scouts=3, scout_epochs=2, n_parts=2, n_tuning_parts=1, relearning_epochs=3, n_inits=3,
    n_tuning_inits=2, or_and_steps=4, xor_scout_steps=2, xor_scout_rate=0.03, xor_steps=6, xor_rates=[0.02, 0.04],
    widths=[3, 6], depths=[1], n_networks=2, n_tuning_networks=1, memorising_epochs=4, n_memorising_scouts=2,
    memorising_rates=[0.003, 0.03], memorising_scout_epochs=1, results="x", prepared="", workers=1,
)  # fmt: skip
P = AuthorsParameters.parse(SMALL)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    records.write(str(folder), "authors_code", authors.run(P), {})
    return records.read(folder, "authors_code")


def test_patterns_are_ten_classes_of_bits_and_a_part_has_four_of_them():
    inputs, targets = patterns.random_patterns(7, rng(0))
    assert set(inputs.unique().tolist()) == {0, 1} and inputs.shape == (70, 25)
    assert targets.sum(0).tolist() == [7] * 10 and targets.sum(1).eq(1).all()
    (part,) = patterns.random_parts(1, rng(0))
    assert part.unique().numel() == 4 and patterns.in_part(targets, part).sum() == 28


def test_scouts_are_paid():
    assert P.xor_scout_cost == 2  # two scouts, two steps each, on half of the points
    assert P.memorising_scout_cost == 1  # two scouts, one epoch each, on four of ten classes: 0.8
    assert P.measured_epochs() == [0, 1, 2, 3]
    for cost in ({"xor_steps": 2}, {"memorising_epochs": 1}):
        with pytest.raises(ParameterError, match="that scouting costs"):
            AuthorsParameters.parse(SMALL | cost)
    with pytest.raises(ParameterError, match="n_parts = 4: at most 3, the number of scouts"):
        AuthorsParameters.parse(SMALL | {"n_parts": 4})
    with pytest.raises(ParameterError, match="must grow"):
        AuthorsParameters.parse(SMALL | {"widths": [6, 3]})


def test_adam_divides_a_guide_on_the_gradient_out_again_and_a_dead_guide_moves_nothing():
    """Uniform g = 0.1: on the step a tenth of the way, on the gradient all of it."""
    inputs, targets = patterns.random_patterns(2, rng(0))
    model = multilayer_perceptron((25, 4, 10), torch.nn.Sigmoid, generator=rng(1))
    tenth = Displacement(model).zero_point
    tenth = library.Guide({name: torch.full_like(p, 0.1) for name, p in tenth.items()})
    moved = {}
    for name in ("plain", "guided_tensor", "guided_gradient", "dead_guide"):
        network = stack([model, model])
        adam = torch.optim.Adam(network.parameters(), lr=0.01, eps=0)
        method = METHODS[name]
        guide = method.guide(Displacement(model)) if name == "dead_guide" else tenth
        optimizer = method.optimizer(adam, network, [guide, guide])
        library.summed(mse_loss)(
            network(inputs[:, None].expand(-1, 2, -1)), targets[:, None].expand(-1, 2, -1)
        ).backward()
        before = network.get_submodule("0").weight.detach().clone()
        optimizer.step()
        moved[name] = (network.get_submodule("0").weight.detach() - before).abs().mean().item()
    assert moved["guided_tensor"] == pytest.approx(moved["plain"] / 10, rel=1e-4)
    assert moved["guided_gradient"] == pytest.approx(moved["plain"], rel=1e-4)
    assert moved["plain"] > 0 and moved["dead_guide"] == 0


@pytest.mark.parametrize("name", ["plain", "guided_network", "guided_tensor"])
def test_networks_side_by_side_learn_xor_as_one_does_alone(name):
    method, rate = METHODS[name], 0.04
    learned = library.learn_or_and(P, "test", range(2))
    alone = multilayer_perceptron(SIZES, torch.nn.ReLU, generator=rng(0, "library", "test", 1))
    Recipe(0.03, 4, loss=l1_loss)(alone, (library.POINTS, library.OR_AND))
    tasks = [(library.POINTS[pair], XOR[pair]) for pair in library.PAIRS]
    displacement = scout(alone, tasks, Recipe(0.03, 2, loss=l1_loss))
    for key, value in displacement.mean_square.items():
        torch.testing.assert_close(learned.displacements[1].mean_square[key], value, rtol=1e-3, atol=1e-9)
    time = library.solving_times(learned, method, rate, 60, spent=2)[1].item()
    optimizer = torch.optim.SGD(alone.parameters(), lr=rate)
    optimizer = Guided(optimizer, alone, method.guide(displacement)) if method.guide else optimizer
    wrong = []
    for _ in range(2, 60):
        wrong.append((alone(library.POINTS) - XOR).abs().max() >= 0.4)
        optimizer.zero_grad()
        l1_loss(alone(library.POINTS), XOR).backward()
        optimizer.step()
    last = max((step for step, is_wrong in enumerate(wrong) if is_wrong), default=-1)
    solved = (alone(library.POINTS) - XOR).abs().max() < 0.4
    assert time == 2 + last + 1 if solved else math.isnan(time)


def test_budget_left_by_hand():
    assert library.budget_left(torch.tensor([0, 15, 60, float("nan")]), 60).tolist() == [1, 0.75, 0, 0]


def test_relearning_begins_where_the_zero_point_is():
    start = patterns.begin(P, 0)
    inputs, targets = patterns.random_patterns(4, rng(0, "patterns"))
    known = patterns.right(start.zero_point, inputs, targets)
    assert known.mean() >= 0.3
    measured = patterns.relearn(Job(P, 0, patterns.Relearning("patterns", "plain"), LearningRate(0.01), "test"), start)
    assert measured.shape == (4, 2, 2)  # epochs 0 to 3, part and others, two parts
    for i, part in enumerate(start.parts[:2]):
        mine = patterns.in_part(targets, part)
        expected = [known[mine].mean(), known[~mine].mean()]
        assert measured[0, :, i].tolist() == pytest.approx([share.item() for share in expected])


def test_rates_are_chosen_by_hand():
    """Fast: the best on the way. Careful: with which the others keep most; if all lose everything, the lowest."""
    record = {0.01: (0.5, 0.0), 0.1: (0.7, 0.4), 1.0: (0.8, 0.3)}
    rows = [
        {"experiment": "patterns", "method": method, "learning_rate": rate, "seed": 0, "metric": metric, "value": value}
        for method, rates in {"plain": record, "guided_network": {0.01: (0.5, 0.0), 0.1: (0.6, 0.0)}}.items()
        for rate, values in rates.items()
        for metric, value in zip(("validation", "validation_kept"), values, strict=True)
    ]
    fast, careful = (patterns.chosen(pd.DataFrame(rows), way) for way in patterns.TUNED_ON)
    assert [rate for (rate,) in fast.values()] == [1.0, 0.1]
    assert [rate for (rate,) in careful.values()] == [0.1, 0.01]


def test_what_the_others_keep_when_the_part_is_known_by_hand():
    """0.9 is half way from 0.8 to 1; three quarters of the way from 0.6 to 1; never known; known at first."""
    part = [[0.8, 0.6, 0.8, 0.92, 0.92, 0.9], [0.8, 1.0, 0.8, 1.0, 0.8, 0.9], [1.0, 0.8, 0.88, 1.0, 1.0, 1.0]]
    others = [[0.8, 0.8, 0.8, 0.7, 0.7, 0.7], [0.6, 0.4, 0.8, 0.1, 0.1, 0.1], [0.2, 0.0, 0.8, 0.0, 0.0, 0.0]]
    accuracies = torch.stack([torch.tensor(part), torch.tensor(others)], 1)
    assert patterns.kept(accuracies).tolist() == pytest.approx([0.4, 0.5, 0.0, 0.7, 0.7, 0.7])


def test_the_experiment_is_complete(small):
    part = small[(small["experiment"] == "patterns") & (small["metric"] == "part")]
    assert set(part.groupby("method").size()) == {2 * 2 * 4}  # networks, parts, epochs measured
    kept = small[small["metric"] == "kept"]
    assert kept["tuned_on"].eq("careful").all() and set(kept.groupby("method").size()) == {2 * 2}
    assert set(small[small["metric"] == "time"].groupby("method").size()) == {3}
    assert set(small[small["metric"] == "accuracy"].groupby(["width", "method"]).size()) == {2}
    dead = small[(small["metric"] == "time") & (small["method"] == "dead_guide")]
    assert dead["value"].isna().all()
    relearned, xor = authors.relearning_table(small), authors.xor_table(small, P.xor_steps)
    assert len(relearned) == 4 * 5
    assert set(xor["method"]) == {"plain", "guided_network", "guided_tensor", "dead_guide"}
    assert all("too few to tell" in line for line in authors.verdicts(relearned, "accuracy"))


def widths_of(guided: dict[int, float], plain: tuple[float, ...] = (0.2, 0.4, 0.8)) -> pd.DataFrame:
    """Five networks: what guided knows, and what plain knows at widths of 10, 20, 40."""
    curves = {"plain": dict(zip((10, 20, 40), plain, strict=True)), "guided_network": guided}
    rows = [
        {"experiment": "width", "metric": "accuracy", "method": method, "depth": 1, "width": width, "seed": seed}
        | {"task": 0, "value": value}
        for method, curve in curves.items()
        for width, value in curve.items()
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


def test_the_width_that_plain_needs_by_hand():
    """0.4 is what plain knows at 20; 0.6 is half a doubling above 20; more than it knows at 40 cannot be matched."""
    frame = widths_of({10: 0.4, 20: 0.6, 40: 0.9})
    table = authors.width_table(frame).set_index(["method", "width"])
    assert table.loc["plain", "factor"].tolist() == pytest.approx([1, 1, 1])
    assert table.loc["guided_network", "factor"].tolist() == pytest.approx([2, 2**0.5, 1])
    assert table.loc["guided_network", "minus_plain"].tolist() == pytest.approx([0.2, 0.2, 0.1])
    claim = authors.claim_table(frame).set_index("method").loc["guided_network"]
    assert claim["factor"] == pytest.approx((2 * 2**0.5) ** (1 / 3)) and claim["minus_plain"] == pytest.approx(0.5 / 3)


def test_a_width_at_which_plain_does_worse_than_at_a_smaller_one_does_not_count_against_it():
    """Plain knows no more at 20 than at 10: the same method would match itself there at 10, which is no factor."""
    table = authors.width_table(widths_of({10: 0.2, 20: 0.8, 40: 0.8}, plain=(0.2, 0.2, 0.8)))
    table = table.set_index(["method", "width"])["factor"]
    assert table["plain"].tolist() == pytest.approx([1, 1, 1])
    assert table["guided_network"].tolist() == pytest.approx([1, 4, 1])


def test_where_plain_saturates_nothing_is_claimed():
    frame = widths_of({10: 0.2, 20: 0.4, 40: 1.0}, plain=(0.2, 0.4, 1.0))
    assert authors.claim_table(frame).set_index("method").loc["guided_network", "factor"] == pytest.approx(1)
    (line,) = authors.verdicts(authors.claim_table(widths_of({10: 0.4, 20: 0.6, 40: 0.9})), "share")
    assert "more than plain" in line and "n = 5 networks x 3 sizes" in line


def test_figures_show_every_method_that_the_table_has(small):
    for draw, names in {
        figures.authors_patterns: ("plain", "guided_network", "guided_tensor", "guided_gradient", "shuffled"),
        figures.authors_xor: ("plain", "guided_network", "guided_tensor", "dead_guide"),
        figures.authors_width: ("plain", "guided_network", "guided_tensor"),
    }.items():
        axis = draw(small).axes[-1]
        labels = [line.get_label() for line in axis.lines if not line.get_label().startswith("_")]
        assert labels == [METHODS[name].label for name in names]


def test_the_front_has_every_rate_that_was_tried(small):
    front = figures.authors_patterns(small).axes[2]
    assert [len(line.get_xdata()) for line in front.lines] == [len(P.learning_rates)] * 5

"""The method on two parameters, small enough to be followed by hand."""

import pytest
import torch
from torch.nn.functional import mse_loss

from experiments.e00_two_parameters import figures
from experiments.e00_two_parameters.run import FAMILIES, METHODS, TwoParameters, draw_task, run, two_weights
from gtl_core import Recipe, scout
from gtl_core.tasks import rng

SMALL = dict(
    seed=0, n_scouts=3, scout_examples=20, n_examples=1, n_repeats=2, noise=0.1, learning_rate=0.05, steps=8,
    results="x", prepared="", workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return run(TwoParameters.parse(SMALL))


def test_a_task_depends_on_one_input_only():
    inputs, targets, truth = draw_task(1, 4, 0.0, rng(0))
    assert truth[0] == 0 and truth[1] != 0
    torch.testing.assert_close(targets[:, 0], truth[1] * inputs[:, 1])


def test_the_guide_is_that_of_scout(small):
    tasks = [draw_task(0, 20, 0.1, rng(0, "scout", i))[:2] for i in range(3)]
    guide = scout(two_weights(), tasks, Recipe(0.05, 8, loss=mse_loss)).guide()
    row = small[small["method"] == "guide"].set_index("metric")["value"]
    assert guide["weight"][0].tolist() == pytest.approx([row["w1"], row["w2"]], abs=1e-6)
    ends = small[small["method"] == "scout"].pivot(index="task", columns="metric", values="value")
    squares = ends.pow(2).mean()
    assert row.to_dict() == pytest.approx((squares / squares.max()).to_dict(), rel=1e-4)


def test_one_step_by_hand_and_the_excess_loss(small):
    """On one example the gradient of (w · x - y)² at w = 0 is -2 y x; guided, each part of it counts g."""
    g = small[small["method"] == "guide"].set_index("metric")["value"]
    for family in FAMILIES:
        of_family = small[(small["family"] == family) & (small["task"] == 0)]
        example = of_family[of_family["method"] == "example"].set_index("metric")["value"]
        truth = of_family[of_family["method"] == "truth"].set_index("metric")["value"]
        for name, share in (("plain", g * 0 + 1), ("guided", g)):
            path = of_family[of_family["method"] == name].pivot(index="step", columns="metric", values="value")
            step = [2 * 0.05 * example["y"] * example[x] * share[w] for x, w in (("x1", "w1"), ("x2", "w2"))]
            assert path.loc[1, ["w1", "w2"]].tolist() == pytest.approx(step, rel=1e-4)
            missed = sum((path.loc[8, w] - truth[w]) ** 2 for w in ("w1", "w2"))
            assert path.loc[8, "excess_loss"] == pytest.approx(missed, rel=1e-4)


def test_the_figure_shows_both_methods_in_both_families(small):
    scouts, guide, *mains = figures.method(small).axes
    assert len(scouts.lines) == 3 and len(guide.patches) == 2
    for axis in mains:
        assert [line.get_label() for line in axis.lines] == [method.label for method in METHODS.values()]


def test_a_guide_of_one_s_own_goes_the_recorded_ways(small):
    """With the scouts' guide and rate the paths are those of the table; with g = 1 both are plain descent."""
    guide = small[small["method"] == "guide"]["value"].tolist()
    task = small[(small["family"] == "as scouted") & (small["task"] == 0)]
    (axis,) = figures.guided_path(small, *guide, rate=0.05).axes
    for name, line in zip(("plain", "guided"), axis.lines, strict=True):
        recorded = task[task["method"] == name].pivot(index="step", columns="metric", values="value")
        assert line.get_xydata() == pytest.approx(recorded[["w1", "w2"]].to_numpy(), abs=1e-5)
    (axis,) = figures.guided_path(small, 1.0, 1.0, rate=0.05).axes
    plain, guided = (line.get_xydata() for line in axis.lines)
    assert (plain == guided).all()

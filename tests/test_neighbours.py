"""The comparisons with neighbours: parts by hand, and each experiment as a whole in small."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import records
from experiments.costs import FORWARD, TRAINING, shares
from experiments.e06_few_shot_neighbours import figures as few_shot_figures
from experiments.e06_few_shot_neighbours import run as few_shot_neighbours
from experiments.e06_few_shot_neighbours.run import FewShotNeighboursParameters, FewShotVariant
from experiments.e07_forgetting_neighbours import figures as stream_figures
from experiments.e07_forgetting_neighbours import run as forgetting_neighbours
from experiments.e07_forgetting_neighbours.run import ForgettingNeighboursParameters
from experiments.models import conv4
from experiments.neighbours import LEARNING, NEIGHBOURS, OPTIMIZER_SHARE
from experiments.parameters import ParameterError
from experiments.preparations.meta_training import MetaTraining
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.steps import from_command
from experiments.statistics import best_settings
from experiments.stream_methods import METHODS, ranking
from experiments.style import save
from gtl_core.tasks import rng

SHARED = dict(
    dataset="glyphs", seed=0, n_seeds=2, n_query=4, heads=["zero"], learning_rates=[0.01, 0.1], channels=8,
    pretraining_epochs=1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1,
    results="x", prepared="", workers=1,
)  # fmt: skip
FEW_SHOT = SHARED | dict(
    tasks=["3-way 1-shot", "4-way 2-shot"], methods=list(NEIGHBOURS),
    other_methods=["plain", "guided_network"], random_starts=["maml"], n_episodes=10, n_other_episodes=10,
    n_tuning_episodes=2, n_other_tuning_episodes=1, epochs=2, backbone="conv4", passes=3000,
    preparation_factors=[1.0], preparation_rate=1e-3, inner_rate=0.1, inner_steps=1, test_steps=2, n_seeds=1,
)  # fmt: skip
FORGETTING = SHARED | dict(
    methods=list(METHODS), strengths=[0.3, 3.0], capacity=3, n_streams=2,
    n_tuning_streams=1, n_way=3, n_rounds=2, first_epochs=3, epochs=2, stream="single",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "values", "wrong", "message"),
    [
        (FewShotNeighboursParameters, FEW_SHOT, {"methods": ["protonet"]}, "'protonet': must be among scratch, "),
        (FewShotNeighboursParameters, FEW_SHOT, {"methods": None}, "methods = None: should be a valid tuple"),
        (FewShotNeighboursParameters, FEW_SHOT, {"random_starts": ["plain"]}, "'plain': must be among simple_shot, "),
        (FewShotNeighboursParameters, FEW_SHOT, {"tasks": ["5-way 18-shot"]}, "at most 2 in a 5-way 18-shot task"),
        (FewShotNeighboursParameters, FEW_SHOT, {"backbone": "strided_conv4"}, "starts from a pretrained conv4"),
        (FewShotNeighboursParameters, FEW_SHOT, {"heads": ["zero", "random"]}, "heads"),
        (ForgettingNeighboursParameters, FORGETTING, {"n_rounds": 17}, "n_rounds = 17: at most 15"),
        (ForgettingNeighboursParameters, FORGETTING, {"strengths": [1, 2, 3]}, "a multiple of the 3 strengths"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(kind, values, wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        kind.parse(values | wrong)


def training(method: str, **changes) -> MetaTraining:
    values = dict(
        pretraining=Pretraining(dataset="glyphs", seed=0, channels=8, epochs=0), method=method, n_way=3, head="zero",
        n_shot=1, n_query=2, n_tasks=2, task_n_shot=3, passes=3000, learning_rate=1e-3, inner_rate=0.1, inner_steps=1,
    )  # fmt: skip
    return MetaTraining(**(values | changes))


@pytest.mark.parametrize("method", LEARNING)
def test_a_preparation_spends_its_budget_and_no_more(method, tmp_path):
    step = training(method)
    prepared = step.train(None)
    # The budget charges the learned optimizer for its own work, which the network does not see.
    share = OPTIMIZER_SHARE if method == "learned_optimizer" else 1
    assert prepared.passes * share == step.cost()
    assert step.passes - step.passes_per_episode() < prepared.passes * share <= step.passes
    step.make(tmp_path)
    model, extra, metadata = step.read(tmp_path)
    assert metadata["passes"] == prepared.passes and metadata["seconds"] > 0
    for one, other in zip(model.parameters(), prepared.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert extra.keys() == prepared.extra.keys() and all(extra[key].equal(prepared.extra[key]) for key in extra)
    with pytest.raises(ParameterError, match=f"passes = 1: {method} takes"):
        training(method, passes=1).train(None)


def test_passes_by_hand():
    assert training("maml").passes_per_episode() == 9 * 3 + 3 * 6  # support through a second derivative, queries
    assert training("fomaml").passes_per_episode() == 3 * 3 + 3 * 6
    assert training("reptile").passes_per_episode() == 3 * 3 * 10
    assert training("prototypical").passes_per_episode() == 3 * 20 * (1 + 2)
    assert training("relation").passes_per_episode() == 3 * 3 * (1 + 2)
    assert training("hard_sharing").passes_per_episode() == 3 * 2 * 3 * 3  # an epoch: tasks, ways, shots
    images = 178 * 16  # pretraining classes of the glyphs, drawers; once forward, whatever the budget
    assert training("simple_shot").cost() == training("simple_shot", passes=9000).cost() == images
    trained = training("maml", pretraining=Pretraining(dataset="glyphs", seed=0, channels=8, epochs=2))
    assert trained.total_cost() == trained.cost() + trained.pretraining.cost()


def test_shares_and_adaptation_by_hand():
    """8 channels: outputs of 14², 7², 4², 2² pixels, 9 or 72 multiplications each and channel; the head 32 for 3."""
    counts = np.array([14**2 * 9 * 8, 7**2 * 72 * 8, 4**2 * 72 * 8, 2**2 * 72 * 8, 32 * 3])
    found = shares(conv4(3, 8, generator=rng(0)))
    assert found == pytest.approx(counts / counts.sum())
    p = FewShotNeighboursParameters.parse(FEW_SHOT)

    def cost(method):
        return few_shot_neighbours.adaptation_passes(p, FewShotVariant("pretrained", 3, 1, method))

    assert cost("plain") == 3 * 2 * TRAINING and cost("nearest_mean") == 3 * FORWARD
    assert cost("frozen") == pytest.approx(3 * (sum(found[:4]) + 2 * TRAINING * found[4]))
    assert cost("frozen") < cost("freeze_3") < cost("freeze_1") < cost("plain")


def test_best_settings_by_hand():
    rows = [("a", 0.1, 0.5), ("a", 0.1, 0.7), ("a", 0.2, 0.6), ("a", 0.2, 0.6), ("b", 0.2, 0.9), ("b", 0.1, 0.2)]
    frame = pd.DataFrame(rows, columns=["method", "rate", "value"]).assign(metric="validation")
    assert best_settings(frame, ["method"], ["rate"]) == {("a",): (0.1,), ("b",): (0.2,)}


def test_preparations_are_read_back_from_their_json():
    p = FewShotNeighboursParameters.parse(FEW_SHOT)
    for step in p.preparations():
        assert from_command(step.command()) == step


@pytest.fixture(scope="module")
def few_shot():
    return records.split(few_shot_neighbours.run(FewShotNeighboursParameters.parse(FEW_SHOT)))


def test_few_shot_is_complete_and_paired(few_shot):
    frame, cost = few_shot
    assert set(cost["metric"]) == {"preparation_seconds", "adaptation_seconds"}
    table = few_shot_neighbours.ranking(frame, cost)
    first = table[table["task"] == "3-way 1-shot"]
    assert set(first.loc[first["zero_point"] == "pretrained", "method"]) == {*NEIGHBOURS} - {"scratch"}
    assert set(first.loc[first["zero_point"] == "random", "method"]) == {"scratch", "maml"}
    assert first["accuracy"].is_monotonic_decreasing and first["rank"].iloc[0] == 1
    assert table.loc[table["method"] == table["guided"], "difference"].eq(0).all()
    costs = first.set_index(["zero_point", "method"])["preparation_passes"]
    assert costs["random", "scratch"] == 0
    scouts = TRAINING * 2 * 2 * 3 * 3  # scouts, epochs, ways, shots
    assert costs["pretrained", "guided_network"] == costs["pretrained", "plain"] + scouts
    words = few_shot_neighbours.verdict(frame)
    assert words.count("best is") == 2 and all(method in words for method in ("maml (no pretraining)", "ranks"))


def test_few_shot_comes_out_the_same_again(few_shot):
    fewer = {"methods": ["plain", "prototypical", "guided_tensor"], "random_starts": [], "tasks": FEW_SHOT["tasks"][:1]}
    again, _ = records.split(
        few_shot_neighbours.run(FewShotNeighboursParameters.parse(FEW_SHOT | fewer | {"workers": 2}))
    )
    frame, _ = few_shot
    mine = frame.merge(again[list(FewShotVariant._fields)].drop_duplicates())
    order = [*FewShotVariant._fields, "factor", "learning_rate", "task", "metric"]
    one, other = (f.astype({"task": str}).sort_values(order).reset_index(drop=True) for f in (mine, again))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


def test_what_is_stored_by_hand():
    stored = {name: method.stored(100, 5) for name, method in METHODS.items()}
    assert stored["plain"] == stored["frozen"] == 0
    assert stored["ewc"] == 200 and stored["guided_ewc"] == 300
    assert stored["replay"] == 5 * 784 and stored["guided_replay"] == 5 * 784 + 100
    assert stored["synaptic"] == 300 and stored["l2_sp"] == stored["guided_tensor"] == 100


def test_every_method_of_forgetting_tries_as_many_settings():
    p = ForgettingNeighboursParameters.parse(FORGETTING | {"learning_rates": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]})
    assert {len(p.settings(method)) for method in p.methods} == {6}
    assert p.settings("ewc")[:3] == [(0.3, 0.1), (0.3, 0.3), (0.3, 0.5)]


@pytest.fixture(scope="module")
def streams():
    return records.split(forgetting_neighbours.run(ForgettingNeighboursParameters.parse(FORGETTING)))


def test_forgetting_is_complete_and_paired(streams):
    frame, cost = streams
    assert set(cost["metric"]) == {"step_seconds"}
    table = ranking(frame, cost)
    assert set(table["method"]) == set(FORGETTING["methods"]) and set(table["n"]) == {"2 networks x 2 streams"}
    curve = frame[(frame["method"] == "ewc") & (frame["metric"] == "accuracy_mean")]
    assert list(curve["step"]) == [3, 6, 9]
    last = frame[(frame["method"] == "ewc") & (frame["metric"] == "accuracy") & (frame["step"] == 9)]
    assert last["value"].mean() == pytest.approx(curve["value"].iloc[-1])
    assert table["accuracy"].is_monotonic_decreasing
    assert table.loc[table["method"] == table["guided"], "difference"].eq(0).all()
    seconds = cost[cost["method"] == "ewc"]["value"].mean()
    ewc = table.set_index("method").loc["ewc"]
    assert ewc["step_seconds"] == pytest.approx(seconds)
    assert ewc["accuracy"] == pytest.approx(last["value"].mean())
    assert "what the guide adds to ewc" in forgetting_neighbours.verdict(frame)


def test_a_verdict_of_07_without_guidance_names_the_best_and_compares_nothing(streams):
    frame = streams[0]
    guided = frame["method"].map(lambda name: bool(METHODS[name].guide))
    words = forgetting_neighbours.verdict(frame[~guided])
    assert "best at the end of the stream is" in words and words.count("\n") == 0


def drawn(figure, folder):
    """What a figure says: its legends' labels and its axes' tick labels."""
    save(figure, folder / "figure.png")
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    return {t.get_text() for legend in legends for t in legend.get_texts()} | {
        t.get_text() for axis in figure.axes for t in axis.get_yticklabels()
    }


def as_read(frame, folder):
    records.write(str(folder), "table", frame, {})
    return records.read(folder, "table")


def test_the_figures_of_06_name_every_method(few_shot, tmp_path):
    frame, cost = (as_read(part, tmp_path) for part in few_shot)
    said = " ".join(drawn(few_shot_figures.few_shot_neighbours(frame), tmp_path))
    assert all(row.label in said for row in NEIGHBOURS.values())
    for seconds in (None, cost):
        said = drawn(few_shot_figures.few_shot_costs(frame, seconds), tmp_path)
        assert {row.family.label for row in NEIGHBOURS.values()} <= said


def test_the_figure_of_07_names_every_method(streams, tmp_path):
    frame = as_read(streams[0], tmp_path)
    figure = stream_figures.forgetting_neighbours(frame)
    said = drawn(figure, tmp_path)
    assert all(any(text.startswith(method.label) for text in said) for method in METHODS.values())
    differences, curves = figure.axes
    row = ranking(frame).set_index("method").loc["ewc"]
    (ewc,) = (line for line in curves.lines if line.get_label() == METHODS["ewc"].label)
    assert ewc.get_xdata().tolist() == [1, 2, 3] and ewc.get_ydata()[-1] == pytest.approx(100 * row["accuracy"])
    dots = [line.get_xdata()[0] for line in differences.lines if line.get_marker() == "o"]
    assert dots == sorted(dots, reverse=True) and pytest.approx(-100 * row["difference"]) in dots


def test_a_verdict_without_guidance_names_the_best_and_compares_nothing(few_shot):
    frame = few_shot[0]
    guided = frame["method"].map(lambda name: bool(NEIGHBOURS[name].guide))
    words = few_shot_neighbours.verdict(frame[~guided])
    assert words.count("best is") == 2 and "above it" not in words

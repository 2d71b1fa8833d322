"""Parameters refused in one line, and the forgetting experiment's parts by hand."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from experiments import records
from experiments.baselines.continual import follow
from experiments.catalogue import EXPERIMENTS
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e03_forgetting.figures import EXPERIMENT
from experiments.e03_forgetting.run import (
    ForgettingParameters,
    ForgettingVariant,
    end_measures,
    measures,
    run,
    verdicts,
)
from experiments.images import of_base_optimizers, start, zero_point_of
from experiments.methods import BASIC, FROZEN
from experiments.models import conv4, new_head
from experiments.parameters import ParameterError
from experiments.preparations.pretraining import HELD_OUT_DRAWERS, Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.steps import from_command
from experiments.statistics import at_chosen_rates, difference
from experiments.streams import Course, first_and_last
from experiments.style import save
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.guide import Displacement
from gtl_core.tasks import arrivals_of, labelled, rng, to_float
from gtl_core.training import accuracy, fit

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=2, n_streams=3, n_tuning_streams=1, n_way=3, n_rounds=3, n_query=4,
    first_epochs=3, epochs=[2, 1], optimizers=["sgd", "adam"], learning_rates=[0.01, 0.1], adam_rates=[0.001, 0.01],
    scout_adam_rate=0.001, heads=["zero", "random"],
    streams=["single", "shuffled", "per_class"], zero_points=["pretrained", "random"], channels=8,
    pretraining_epochs=1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1, results="x",
    prepared="", workers=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_scout": 5}, "unknown parameter n_scout = 5: did you mean n_scouts?"),
        ({"dataset": "mnist"}, "dataset = 'mnist': should be 'glyphs' or 'omniglot'"),
        ({"n_scouts": 0}, "n_scouts = 0: should be greater than or equal to 1"),
        ({"scout_learning_rate": -0.1}, "scout_learning_rate = -0.1: should be greater than 0"),
        ({"learning_rates": [0.1, -1]}, "learning_rates.1 = -1: should be greater than 0"),
        ({"learning_rates": []}, "learning_rates = []: "),
        ({"learning_rates": [float("nan")]}, "learning_rates.0 = nan: should be a finite number"),
        ({"heads": ["zero", "zero"]}, "heads = ['zero', 'zero']: must not name the same value twice"),
        ({"n_rounds": 16}, "n_rounds = 16: at most 15, since 1 + n_rounds + n_query drawers of 20 are needed"),
        ({"scout_n_shot": 21}, "scout_n_shot = 21: should be less than or equal to 20"),
        ({"n_way": True}, "n_way = True: must not be a boolean"),
        ({"n_way": "many"}, "n_way = 'many': should be a valid integer"),
    ],
)
def test_wrong_parameters_are_refused_in_one_line(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)) as error:
        ForgettingParameters.parse(SMALL | wrong)
    assert "\n" not in str(error.value)


def test_missing_parameters_are_named():
    with pytest.raises(ParameterError, match=r"^parameter n_way is missing$"):
        ForgettingParameters.parse({k: v for k, v in SMALL.items() if k != "n_way"})


def test_more_classes_than_there_are():
    parameters = ForgettingParameters.parse(SMALL | {"n_way": 5000})
    with pytest.raises(ParameterError, match=r"n_way = 5000: at most \d+, the number of \w+ classes of glyphs"):
        run(parameters)


def test_text_from_yaml_becomes_a_number():
    assert ForgettingParameters.parse(SMALL | {"scout_learning_rate": "1e-3"}).scout_learning_rate == 1e-3


def test_parameters_of_a_notebook_include_what_papermill_injected():
    namespace = SMALL | {"n_way": 4, "unrelated": object(), "In": ["", "n_way: int = 3", "# Parameters\nn_way = 4\n"]}
    assert ForgettingParameters.from_notebook(namespace).n_way == 4
    namespace["In"].append("# Parameters\nn_waay = 4\n")
    with pytest.raises(ParameterError, match=r"unknown parameter n_waay = 4: did you mean n_way\?"):
        ForgettingParameters.from_notebook(namespace | {"n_waay": 4})


def test_equal_parameters_share_a_key_and_others_do_not():
    one = Pretraining(dataset="glyphs", seed=0)
    assert one.key == Pretraining(seed=0, dataset="glyphs", epochs=15).key
    assert (
        len({p.key for p in (one, Pretraining(dataset="glyphs", seed=1), Pretraining(dataset="omniglot", seed=0))}) == 3
    )
    scouting = ForgettingParameters.parse(SMALL).preparations()[0]
    assert from_command(scouting.command()) == scouting and from_command(one.command()) == one


def test_notebooks_with_the_same_network_share_its_preparation():
    of_sgd = SMALL | {"optimizers": ["sgd"]}
    parameters = ForgettingParameters.parse(of_sgd)
    more_streams = ForgettingParameters.parse(of_sgd | {"n_streams": 7, "epochs": [9]})
    assert [p.key for p in parameters.preparations()] == [p.key for p in more_streams.preparations()]
    one, other, unlike = parameters.preparations()[:3]  # of one seed: two heads, and a random network
    assert one.key != other.key and one.needs() == other.needs()
    assert one.pretraining.epochs == 1 and unlike.pretraining.epochs == 0
    assert not set(parameters.seeds()) & set(ForgettingParameters.parse(SMALL | {"seed": 1}).seeds())


def in_order(stream):
    support = torch.tensor([[0, 1, 2], [10, 11, 12]])[..., None]  # 2 classes, 3 drawers each, one stream
    return [(x[:, 0].tolist(), y[:, 0].tolist()) for x, y in arrivals_of(support, stream, rng(0))]


def test_streams_by_hand():
    assert in_order("single") == [([0, 10], [0, 1]), ([1], [0]), ([11], [1]), ([2], [0]), ([12], [1])]
    assert in_order("class_ordered") == [([0, 10], [0, 1]), ([1], [0]), ([2], [0]), ([11], [1]), ([12], [1])]
    assert in_order("per_class") == [([0, 10], [0, 1]), ([1, 11], [0, 1]), ([2, 12], [0, 1])]
    first, *others = in_order("shuffled")
    assert first == ([0, 10], [0, 1]) and sorted(others) == [([1], [0]), ([2], [0]), ([11], [1]), ([12], [1])]


def test_shuffled_streams_have_orders_of_their_own_and_labels_that_fit():
    support = (torch.arange(4)[:, None, None] * 100 + torch.arange(6)[None, :, None]).expand(-1, -1, 3)
    arrivals = list(arrivals_of(support, "shuffled", rng(0)))[1:]
    inputs, labels = (torch.cat(parts) for parts in zip(*arrivals, strict=True))  # each [20, 3]
    assert torch.equal(inputs // 100, labels)
    assert all(sorted(inputs[:, s].tolist()) == sorted(support[:, 1:, s].flatten().tolist()) for s in range(3))
    assert not torch.equal(inputs[:, 0], inputs[:, 1])


def test_measures_of_forgetting_by_hand():
    """Two classes, four steps. Class 0 had its last example at step 1, where it was at 0.9; class 1 at step 3."""
    by_class = np.array([[[0.5, 0.5], [0.9, 0.2], [0.7, 0.4], [0.3, 0.8]]])
    course = Course(by_class, seen=np.array([2, 3, 4, 5]), taught=np.array([[1, 3]]), seconds=0.0)
    assert end_measures(course)["backward_transfer"] == pytest.approx((0.3 - 0.9 + 0.0) / 2)
    assert end_measures(course)["forgetting"] == pytest.approx((0.9 - 0.3 + 0.0) / 2)


def test_following_a_stream_takes_the_epochs_it_says():
    model = stack([nn.Sequential(nn.Linear(2, 2))] * 3)
    taken = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: taken.append(1))
    arrivals = [(torch.ones(1, 3, 2), torch.tensor([[0]]))] * 3
    after = [len(taken) for _ in follow(model, optimizer, arrivals, first_epochs=7, epochs=2)]
    assert after == [7, 9, 11]


def test_heads():
    model = conv4(5, 8, generator=rng(0))
    new_head(model, 7, "zero", generator=rng(0))
    assert model(torch.rand(3, 1, 28, 28)).tolist() == [[0.0] * 7] * 3
    new_head(model, 7, "random", generator=rng(0))
    assert model.head.weight.abs().max() <= 1 / 32**0.5 and model.head.weight.std() > 0
    with pytest.raises(ValueError, match="head = 'warm': must be one of zero, random"):
        new_head(model, 7, "warm", generator=rng(0))


@pytest.fixture(scope="module")
def small():
    return run(ForgettingParameters.parse(SMALL))


def rows_of(frame, condition):
    """Under a condition, with the optimizers of the base."""
    return of_base_optimizers(frame[(frame[["zero_point", "head", "stream", "epochs"]] == condition).all(axis=1)])


def test_the_experiment_is_complete_and_paired(small):
    test = small[small["metric"] == "accuracy"]
    assert set(test["method"]) == {"scratch", "frozen", "plain", "guided_tensor", "guided_network"}
    assert set(test["step"]) == {3, 12}  # the first example of 3 classes, and the end
    conditions = small[["zero_point", "head", "stream", "epochs"]].drop_duplicates().values.tolist()
    base = ["pretrained", "zero", "single", 2]
    assert conditions[:2] == [base, ["pretrained", "random", "single", 2]] and len(conditions) == 6
    assert all(sum(a != b for a, b in zip(other, base, strict=True)) == 1 for other in conditions[1:])
    means = small[(small["metric"] == "accuracy_mean") & (small["stream"] == "single")]
    assert sorted(set(means["step"])) == [3, 6, 9, 12]
    classes = small[(small["metric"] == "class_2") & (small["stream"] == "shuffled")]
    assert sorted(set(classes["step"])) == list(range(3, 13))
    by_class = small[small["metric"].str.startswith("class_")]
    assert set(by_class["method"]) == {"frozen", "plain", "guided_network"} and "per_class" not in set(
        by_class["stream"]
    )
    assert (by_class[["zero_point", "head", "epochs", "optimizer"]] == ["pretrained", "zero", 2, "sgd"]).all(axis=None)
    tuning = small[small["metric"].str.startswith("validation")]
    # The same budget for every method: each rate on each seed.
    assert set(tuning.groupby(["metric", *ForgettingVariant._fields]).size()) == {4}
    table = verdicts(small)
    first, last = first_and_last(at_chosen_rates(rows_of(small, conditions[0]), "same").query("metric == 'accuracy'"))
    row = table[(table["tuned_on"] == "same") & (table["comparison"] == "guided - plain")].iloc[0]  # by SGD, of SGD
    expected = difference(last["guided_network"], last["plain"])
    assert {name: row[name] for name in expected} == expected
    gained = table[(table["tuned_on"] == "same") & (table["comparison"] == "plain: last - first")].iloc[0]
    assert gained["mean"] == pytest.approx(last["plain"]["value"].mean() - first["plain"]["value"].mean())
    assert set(table["n"]) == {"2 networks x 3 tasks"}
    nothing_to_forget = measures(small, "same").set_index("stream").loc["per_class", "backward_transfer"]
    assert set(nothing_to_forget) == {"0.000 [0.000, 0.000]"}


def test_frozen_features_computed_once_are_those_of_a_frozen_body():
    displacement = Displacement(conv4(3, 8, generator=rng(0)))
    images, labels = torch.rand(6, 2, 1, 28, 28, generator=rng(1)), torch.arange(6)[:, None] % 3
    view, model, optimizer = start(displacement, FROZEN, 0.1, 2)
    fit(model, view(images), labels, optimizer, epochs=5, loss=stacked_cross_entropy)
    whole = zero_point_of(displacement)
    whole.body.requires_grad_(False)
    fit(whole, images[:, 1], labels[:, 0], torch.optim.SGD(whole.parameters(), lr=0.1), epochs=5)
    torch.testing.assert_close(model(view(images))[:, 1], whole(images[:, 1]), rtol=1e-4, atol=1e-5)


def test_the_experiment_does_not_depend_on_the_number_of_workers(small):
    only = {"streams": ["single"], "heads": ["zero"], "epochs": [2], "zero_points": ["pretrained"]}
    alone = run(ForgettingParameters.parse(SMALL | only | {"workers": 2}))
    same = small.merge(alone[list(ForgettingVariant._fields)].drop_duplicates())
    assert (
        same.sort_values(list(same)).reset_index(drop=True).equals(alone.sort_values(list(same)).reset_index(drop=True))
    )


def test_another_seed_changes_the_numbers(small):
    only = {"streams": ["single"], "heads": ["zero"], "epochs": [2], "zero_points": ["pretrained"]}
    only |= {"optimizers": ["sgd"]}
    other = run(ForgettingParameters.parse(SMALL | only | {"seed": 1}))
    base = (small["stream"] == "single") & (small["epochs"] == 2) & (small["zero_point"] == "pretrained")
    ours = small[base & (small["head"] == "zero") & (small["metric"] == "accuracy")]
    theirs = other[other["metric"] == "accuracy"]
    assert set(ours["seed"]) == {0, 1} and set(theirs["seed"]) == {1000, 1001}
    assert ours["value"].mean() != theirs["value"].mean()


def test_prepared_files_are_used_and_missing_ones_are_named(tmp_path):
    one = {"n_seeds": 1, "heads": ["zero"], "zero_points": ["pretrained"], "optimizers": ["sgd"]}
    parameters = ForgettingParameters.parse(SMALL | one)
    scoutings = parameters.preparations()
    with pytest.raises(ParameterError, match="1 of 1 preparations for these parameters are not there"):
        parameters.model_copy(update={"prepared": str(tmp_path)}).displacements()
    for step in (scoutings[0].pretraining, scoutings[0]):
        step.make(tmp_path)
    (read,) = parameters.model_copy(update={"prepared": str(tmp_path)}).displacements().values()
    (made_now,) = parameters.displacements().values()
    assert all(torch.equal(read.mean_square[n], made_now.mean_square[n]) for n in made_now.zero_point)
    guide = made_now.guide()
    assert all(guide[n].any() for n in guide if n.startswith("body"))  # scouts moved every layer


def test_scouts_start_from_the_pretrained_body_and_the_named_head():
    pretraining = Pretraining(dataset="glyphs", seed=0, channels=8, epochs=1)
    model, held_out = pretraining.train()
    classes = split_classes(load("glyphs"), 0)["pretraining"]
    queries = to_float(load("glyphs").examples[classes, :HELD_OUT_DRAWERS])
    assert held_out == accuracy(model, *labelled(queries)).item()
    scouting = Scouting(
        pretraining=pretraining, n_way=5, head="zero", n_scouts=1, n_shot=1, epochs=1, learning_rate=0.1
    )
    point = scouting.zero_point(dict(model.body.named_parameters()))
    assert all(torch.equal(p, q) for p, q in zip(point.body.parameters(), model.body.parameters(), strict=True))
    assert not point.head.weight.any() and point.head.out_features == 5


def test_every_notebook_has_its_experiment():
    assert {path.stem for path in (records.ROOT / "notebooks").glob("*.ipynb")} == set(EXPERIMENTS)


def said(figure) -> list[str]:
    """The methods that the figure names, in legends or titles."""
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    texts = [text.get_text() for legend in legends for text in legend.get_texts()]
    texts += [axis.get_title() for axis in figure.axes]
    return [method.name for method in BASIC.values() if any(method.label in text for text in texts)]


@pytest.mark.parametrize("stem", EXPERIMENT.figures)
def test_every_figure_of_03_names_its_methods(small, stem, tmp_path):
    records.write(str(tmp_path), "forgetting", small, {})
    figure = EXPERIMENT.figures[stem](records.read(tmp_path, "forgetting"))
    save(figure, tmp_path / f"{stem}.png")
    pretrained = ["frozen", "plain", "guided_network", "guided_tensor"]
    few = {"forgetting_added": ["scratch", "plain", "guided_network"]}
    few |= {"forgetting_classes": ["frozen", "plain", "guided_network"]}
    assert said(figure) == few.get(stem, pretrained)


def test_the_figure_of_03_shows_the_tables_numbers(small, tmp_path):
    """Below, each method at the rate that is best at the end: its curve is the mean after each of the four rounds."""
    records.write(str(tmp_path), "forgetting", small, {})
    small = records.read(tmp_path, "forgetting")
    axis = EXPERIMENT.figures["forgetting"](small).axes[-1]
    curves = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert "zero" in axis.get_title()
    base = rows_of(small, ["pretrained", "zero", "single", 2])
    plain = base[base["method"] == "plain"]
    best = plain[plain["metric"] == "validation_last"].groupby("learning_rate")["value"].mean().idxmax()
    expected = plain[(plain["metric"] == "accuracy_mean") & (plain["learning_rate"] == best)]["value"]
    assert curves[BASIC["plain"].label] == pytest.approx(100 * expected.to_numpy()) and len(expected) == 4

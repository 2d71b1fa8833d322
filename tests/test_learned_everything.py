"""What else can be learned before a task: every part by arithmetic or by a law, and the experiment in small."""

import copy
import math
import re
from collections import OrderedDict
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import pytest
import torch
from reference import fine_tune
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, one_hot

from experiments import records
from experiments.baselines import augmenting
from experiments.baselines.augmenting import OPERATIONS, USUAL, learn_augmentation, normal_amounts, rand_augment, warp
from experiments.baselines.conditional import HyperHead, InContext
from experiments.baselines.few_shot import Start, side_by_side
from experiments.baselines.meta import descend
from experiments.baselines.multitask import hard_sharing, hierarchical_sharing, overlap, shared_private
from experiments.baselines.reweighting import WeightNet, learn_weights, mislabelled, weighted
from experiments.baselines.self_supervised import HIDDEN, PATCH, hidden_patches, masked_autoencoder, nt_xent, simclr
from experiments.baselines.transfer import GradualUnfreezing, LowRank, LowRankAdaptation, bitfit, two_parts
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e12_learned_everything import figures
from experiments.e12_learned_everything import run as learned
from experiments.e12_learned_everything.methods import GUIDES, LEARNINGS, METHODS, SEARCHED, ZERO_POINTS
from experiments.e12_learned_everything.preparations import (
    LearnedScouting,
    LearnedTraining,
    image_clusters,
    sample_clusters,
)
from experiments.e12_learned_everything.run import LearnedEverythingParameters, LearnedVariant
from experiments.models import conv4
from experiments.parameters import ParameterError
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.steps import from_command
from experiments.style import save
from gtl_core import Recipe, scout
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import Episode, labelled, rng

SMALL = dict(
    dataset="glyphs", seed=0, n_seeds=1, tasks=["3-way 1-shot", "3-way 2-shot"], zero_points=list(ZERO_POINTS),
    methods=["all"], wrong=[0.4], n_episodes=6, n_tuning_episodes=2, n_query=3, epochs=2, learning_rates=[0.03, 0.1],
    heads=["zero"], channels=8, pretraining_epochs=1, passes=2500, preparation_factors=[1.0], preparation_rate=1e-3,
    inner_rate=0.1, n_scouts=2, scout_n_shot=3, scout_epochs=2, scout_learning_rate=0.1, results="x", prepared="",
    workers=1,
)  # fmt: skip
P = LearnedEverythingParameters.parse(SMALL)


def network(n_way=3, channels=8) -> nn.Sequential:
    return conv4(n_way, channels, generator=rng(0))


def episodes(n=2, n_way=3, n_shot=2, n_query=3) -> list[Episode]:
    images = torch.rand(n, n_way, n_shot + n_query, 1, 28, 28, generator=rng(1))
    return [Episode(torch.arange(n_way), task[:, :n_shot], task[:, n_shot:]) for task in images]


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def close(one: nn.Module, other: nn.Module) -> None:
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


# --- without labels -------------------------------------------------------------------------------------------------


def test_views_are_found_by_hand():
    """Two images, each with two equal views, at right angles: one other view at similarity 1, two at 0."""
    views = torch.tensor([[2.0, 0], [0, 3], [1, 0], [0, 1]])
    assert nt_xent(views, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-2)), rel=1e-6)


def test_half_of_an_image_is_hidden_in_squares():
    hidden = hidden_patches(5, 28, rng(0))
    assert hidden.flatten(1).float().mean(1).tolist() == [HIDDEN] * 5
    squares = hidden.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(-2)
    assert (squares.all(-1) | ~squares.any(-1)).all()
    assert not torch.equal(hidden[0], hidden[1])


def kinds(n=40) -> torch.Tensor:
    """Images of two kinds, an upper and a lower half, with noise."""
    images = 0.1 * torch.rand(n, 1, 28, 28, generator=rng(2))
    images[::2, :, :14] += 0.8
    images[1::2, :, 14:] += 0.8
    return images


@pytest.mark.parametrize("name", ["simclr", "masked"])
def test_self_supervision_sets_two_kinds_of_images_apart_and_leaves_the_head_alone(name):
    model, images = network(), kinds()
    options = {"n_steps": 25, "batch_size": 16, "learning_rate": 3e-3, "generator": rng(4)}
    if name == "simclr":
        noise = rng(5)  # of its own: what other tests have drawn decided once in twenty runs
        augment = lambda some: some + 0.05 * torch.randn(some.shape, generator=noise)  # noqa: E731
        prepared = simclr(model, images, augment=augment, **options)
    else:
        prepared = masked_autoencoder(model, images, **options)
    assert prepared.passes == 3 * 25 * 16 * (2 if name == "simclr" else 1)

    def margin(network):
        """By how much images of the same kind are more alike than others."""
        unit = normalize(network.body(images).detach() - network.body(images).detach().mean(0))
        alike = unit @ unit.T
        return (alike[::2, ::2].mean() + alike[1::2, 1::2].mean() - 2 * alike[::2, 1::2].mean()).item()

    assert margin(prepared.model) > margin(model)
    assert torch.equal(prepared.model.head.weight, model.head.weight) and same(model, network())


# --- written by a network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HyperHead, InContext])
def test_the_order_of_examples_and_the_other_queries_do_not_matter(kind):
    reader, draw = kind(6, 3), rng(3)
    support, queries = (torch.rand(n, 6, generator=draw) for n in (6, 4))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    order = torch.tensor([5, 2, 0, 4, 1, 3])
    scores = reader(support, labels, queries)
    assert scores.shape == (4, 3)
    torch.testing.assert_close(reader(support[order], labels[order], queries), scores)
    torch.testing.assert_close(reader(support, labels, queries[1:2]), scores[1:2])


def test_a_written_head_follows_its_classes():
    """Whoever is called the first class: the row is that of the examples."""
    reader, support = HyperHead(6, 3), torch.rand(3, 6, generator=rng(3))
    scores = reader(support, torch.tensor([0, 1, 2]), support)
    torch.testing.assert_close(reader(support, torch.tensor([2, 0, 1]), support), scores[:, [1, 2, 0]])


# --- multi-task -----------------------------------------------------------------------------------------------------


def test_a_single_alphabet_teaches_nothing():
    """The easier task has one answer: what is left is training on the characters."""
    model, images = network(3, 8), torch.rand(4, 5, 1, 28, 28, generator=rng(1))
    options = {"n_steps": 3, "batch_size": 6, "learning_rate": 1e-2, "augment": lambda some: some}
    prepared = hierarchical_sharing(model, images, torch.zeros(4, dtype=torch.long), generator=rng(5), **options)
    alone, draw = copy.deepcopy(model), rng(5)
    alone.head = nn.Linear(alone.head.in_features, 4)
    nn.init.zeros_(alone.head.weight), nn.init.zeros_(alone.head.bias)
    optimizer = torch.optim.Adam(alone.parameters(), lr=1e-2)
    for _ in range(3):
        batch = torch.randint(20, (6,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(alone(images.flatten(0, 1)[batch]), batch // 5).backward()
        optimizer.step()
    close(prepared.model.body, alone.body)
    two = hierarchical_sharing(model, images, torch.tensor([0, 0, 1, 1]), generator=rng(5), **options)
    assert not same(two.model.body, prepared.model.body)


def test_overlap_by_hand():
    same_way = torch.tensor([[[2.0, 0]], [[3, 0]]])  # two examples of one task, both along the first axis
    assert overlap(same_way, same_way) == pytest.approx(1)
    crossed = torch.tensor([[[1.0, 0]], [[0, 1]]])  # each product 1 / 2 of what it was: 2 entries of 1, by 2 squared
    assert overlap(crossed, crossed) == pytest.approx(2 / 4)


def test_a_private_body_that_says_nothing_leaves_hard_sharing():
    silent = nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
    nn.init.zeros_(silent[1].weight), nn.init.zeros_(silent[1].bias)
    model, tasks = network(), episodes(2)
    prepared = shared_private(model, tasks, silent, epochs=3, difference=0.0)
    close(prepared.model.body, hard_sharing(model, tasks, epochs=3, generator=rng(0)).model.body)
    assert prepared.passes == 3 * 3 * 2 * 3 * 2
    speaking = conv4(3, 4, generator=rng(7)).body
    assert not same(shared_private(model, tasks, speaking, epochs=3, difference=0.1).model.body, prepared.model.body)


# --- what a practitioner would try ----------------------------------------------------------------------------------


class Settings(NamedTuple):
    epochs: int = 5
    seed: int = 0


def sgd(model, rate=0.1):
    return torch.optim.SGD(model.parameters(), lr=rate)


def test_unfreezing_goes_down_layer_by_layer():
    model, task = network(), labelled(episodes(1)[0].support)
    assert GradualUnfreezing.phases(12) == [(4, 2), (3, 2), (2, 2), (1, 2), (0, 4)]
    predict = GradualUnfreezing()(Start(model), task[0][:, None], task[1][:, None], 0.1, Settings())
    alone = model
    for n_frozen in (4, 3, 2, 1, 0):
        alone = fine_tune(alone.requires_grad_(), *task, optimizer=sgd, epochs=1, n_frozen=n_frozen)
    queries = torch.rand(4, 1, 28, 28, generator=rng(8))
    torch.testing.assert_close(predict(queries[:, None])[:, 0], alone(queries), rtol=1e-4, atol=1e-5)
    assert GradualUnfreezing().passes(model, 10, Settings()) < 10 * 3 * 5


def test_bitfit_moves_biases_and_the_head():
    _, model = two_parts(network(), 0, 2)
    before, (inputs, labels) = copy.deepcopy(model), side_by_side([task.support for task in episodes()])
    optimizer = bitfit(model, Start(network()), 0.1, Settings())
    stacked_cross_entropy(model(inputs), labels).backward()
    optimizer.step()
    moved = {name for (name, p), q in zip(model.named_parameters(), before.parameters(), strict=True) if (p != q).any()}
    assert moved and all(name.startswith("head") or name.endswith("bias") for name in moved)
    assert {"body.0.bias", "body.1.bias", "head.weight"} <= moved


def test_a_low_rank_change_begins_at_nothing_and_keeps_its_rank():
    _, model = two_parts(network(), 0, 2)
    inputs, labels = side_by_side([task.support for task in episodes()])
    expected = model(inputs).detach()
    low = LowRank(model, 2, rng(0))
    torch.testing.assert_close(low(inputs), expected)
    before, optimizer = copy.deepcopy(model), torch.optim.SGD(low.trained(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        stacked_cross_entropy(low(inputs), labels).backward()
        optimizer.step()
    close(model.body, before.body)  # the weights themselves stay
    for after, thin in zip(low.after, low.before, strict=True):
        assert after.abs().max() > 0
        assert torch.linalg.matrix_rank((after @ thin).detach()).max() <= 2
    assert not torch.allclose(low(inputs), expected)


def test_low_rank_adaptation_is_the_same_for_a_task_alone():
    tasks = episodes()
    inputs, labels = side_by_side([task.support for task in tasks])
    both = LowRankAdaptation()(Start(network()), inputs, labels, 0.1, Settings())(inputs)
    alone = LowRankAdaptation()(Start(network()), inputs[:, 1:], labels, 0.1, Settings())(inputs[:, 1:])
    torch.testing.assert_close(both[:, 1:], alone, rtol=1e-3, atol=1e-4)


# --- augmentation ---------------------------------------------------------------------------------------------------


def amounts(**named: float) -> torch.Tensor:
    return torch.tensor([[named.get(name, 0.0) for name in OPERATIONS]])


def test_changes_of_an_image_by_hand():
    image = torch.rand(1, 1, 28, 28, generator=rng(0))
    torch.testing.assert_close(warp(image, amounts()), image, rtol=1e-4, atol=1e-5)
    turned = warp(image, amounts(turn=math.pi / 2))
    torch.testing.assert_close(turned, image.rot90(1, (2, 3)), rtol=1e-3, atol=1e-3)
    shifted = warp(image, amounts(shift_x=1.0))  # by half of the width: 14 pixels
    torch.testing.assert_close(shifted[..., :14], image[..., 14:], rtol=1e-3, atol=1e-3)
    assert shifted[..., 14:].abs().max() < 1e-4
    smaller = warp(image, amounts(scale=math.log(2)))  # seen from twice as far
    assert smaller[..., :6, :].abs().max() == 0 and smaller[..., 10:18, 10:18].min() > 0


def test_rand_augment_makes_so_many_changes_of_its_magnitude(monkeypatch):
    seen = []
    monkeypatch.setattr(augmenting, "warp", lambda images, found: seen.append(found) or images)
    for n in (1, 2):
        rand_augment(torch.zeros(50, 3, 1, 28, 28), n, 0.5, rng(0))
        assert seen[-1].shape == (50, 3, 6) and (seen[-1] != 0).sum(-1).eq(n).all()
        torch.testing.assert_close(seen[-1].abs().amax((0, 1)), 0.5 * torch.tensor(USUAL))
        assert (seen[-1] > 0).any() and (seen[-1] < 0).any()


def test_deviations_scale_normal_amounts():
    found = normal_amounts(torch.zeros(20000, 1, 28, 28), torch.tensor([0.0, 1, 2, 3, 4, 5]), rng(0))
    torch.testing.assert_close(found.std(0), torch.arange(6.0), rtol=0.05, atol=0)


def pixels(n_way=3) -> nn.Sequential:
    """A linear classifier of pixels."""
    model = nn.Sequential(OrderedDict(body=nn.Sequential(nn.Flatten()), head=nn.Linear(784, n_way)))
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    return model


def test_a_change_that_queries_have_is_learned():
    """Spots side by side, and queries in which they have moved a little to the left or right: so should examples."""
    draw, tasks = rng(6), []
    for _ in range(60):
        support = torch.zeros(3, 1, 1, 28, 28)
        for c in range(3):
            support[c, ..., 12:16, 4 + 8 * c : 8 + 8 * c] = 1.0
        moves = torch.zeros(3, 8, 6)
        moves[..., OPERATIONS.index("shift_x")] = 0.3 * torch.rand(3, 8, generator=draw) - 0.15
        tasks.append(Episode(torch.arange(3), support, warp(support.expand(-1, 8, -1, -1, -1), moves)))
    options = {"inner_rate": 0.1, "n_steps": 4, "learning_rate": 0.2, "generator": rng(7), "tasks_per_step": 4}
    prepared = learn_augmentation(pixels(), tasks, **options)
    grown = dict(zip(OPERATIONS, prepared.extra["deviations"] / (0.1 * torch.tensor(USUAL)), strict=True))
    assert grown["shift_x"] > 1.5 * grown["shift_y"]
    assert same(prepared.model, pixels())


# --- weights of examples --------------------------------------------------------------------------------------------


def test_so_many_labels_are_wrong_and_no_other():
    labels = torch.arange(5).repeat_interleave(5)
    for share, n in ((0.0, 0), (0.2, 5), (0.4, 10)):
        found = mislabelled(labels, 5, share, rng(0))
        assert (found != labels).sum() == n and found.min() >= 0 and found.max() < 5


def test_equal_weights_are_the_usual_loss():
    logits, labels = torch.randn(6, 2, 3, generator=rng(0)), torch.tensor([0, 1, 2, 0, 1, 2])[:, None]
    for weight in (0.3, 1.0):
        found = weighted(lambda losses, w=weight: torch.full_like(losses, w))(logits, labels)
        torch.testing.assert_close(found, stacked_cross_entropy(logits, labels))
    first = weighted(lambda losses: one_hot(torch.zeros(2, dtype=torch.long), 6).T.float())  # only the first counts
    torch.testing.assert_close(first(logits, labels), cross_entropy(logits[0], labels[0].expand(2), reduction="sum"))


def striped_tasks(n: int, draw: torch.Generator) -> list[Episode]:
    """Three classes, each with a stripe of its own in noise."""
    tasks = []
    for _ in range(n):
        images = 0.5 * torch.rand(3, 11, 1, 28, 28, generator=draw)
        for c in range(3):
            images[c, :, :, 9 * c : 9 * c + 9] += 0.2
        tasks.append(Episode(torch.arange(3), images[:, :8], images[:, 8:]))
    return tasks


def loss_on_queries(net, tasks: list[Episode], rate: float, n_steps: int) -> float:
    """After weighted descent on supports of which 40 % of the labels are wrong."""
    stacked, (inputs, labels) = stack([pixels()] * len(tasks)), side_by_side([task.support for task in tasks])
    taught = torch.stack([mislabelled(labels[:, 0], 3, 0.4, rng(i)) for i in range(len(tasks))], 1)
    start = {n: p.detach().expand(len(tasks), *p.shape).requires_grad_() for n, p in pixels().named_parameters()}
    adapted = descend(stacked, start, inputs, taught, dict.fromkeys(start, rate), n_steps, loss=weighted(net))
    queries, answers = side_by_side([task.query for task in tasks])
    return stacked_cross_entropy(functional_call(stacked, adapted, (queries,)), answers).item() / len(tasks)


def test_learned_weights_are_better_than_equal_ones_on_new_tasks():
    options = {"inner_rate": 0.05, "n_steps": 8, "learning_rate": 0.03, "generator": rng(4), "tasks_per_step": 6}
    prepared = learn_weights(pixels(), striped_tasks(300, rng(3)), **options)
    net, new = WeightNet(), striped_tasks(30, rng(5))
    net.load_state_dict(prepared.extra)
    assert loss_on_queries(net, new, 0.05, 8) < loss_on_queries(torch.ones_like, new, 0.05, 8) - 0.005
    assert same(prepared.model, pixels())


# --- scouts without labels, or with wrong ones ----------------------------------------------------------------------


def scouting(**changes) -> LearnedScouting:
    pretraining = Pretraining(dataset="glyphs", seed=0, channels=4, epochs=0)
    settings = dict(n_way=3, head="zero", n_scouts=3, n_shot=5, epochs=1, learning_rate=0.1)
    own = {"zero_point": pretraining, "scouting": Scouting(pretraining=pretraining, **settings)}
    return LearnedScouting(**(own | {"labels": "classes", "wrong": 0.0} | changes))


def test_clusters_are_of_images_that_are_alike():
    images = (255 * kinds()[:, 0]).to(torch.uint8)
    groups = image_clusters(network(), images, seed=0, n_clusters=2)
    assert sorted(map(len, groups)) == [20, 20]
    assert all(len({bool(image[:14].float().mean() > 100) for image in group}) == 1 for group in groups)
    drawn = sample_clusters(groups, 2, 4, rng(0))
    assert drawn.shape == (2, 4, 1, 28, 28) and drawn.max() <= 1
    with pytest.raises(ValueError, match="0 clusters have 21 images or more: scouts need 2"):
        sample_clusters(groups, 2, 21, rng(0))


def test_scouts_see_the_scouting_classes_alone_with_or_without_labels():
    dataset = load("glyphs")
    mine = {image.numpy().tobytes() for image in dataset.examples[split_classes(dataset, 0)["scouting"]].flatten(0, 1)}
    for labels in ("classes", "clusters"):
        for inputs, targets in scouting(labels=labels).tasks(network(3, 4)):
            assert {(255 * image[0]).round().to(torch.uint8).numpy().tobytes() for image in inputs} <= mine
            assert targets.bincount().tolist() == [5, 5, 5]


def test_so_many_of_a_scouts_labels_are_wrong():
    right = scouting().tasks(network(3, 4))
    for (inputs, labels), (same_inputs, targets) in zip(scouting(wrong=0.4).tasks(None), right, strict=True):
        assert torch.equal(inputs, same_inputs) and (labels != targets).sum() == 6


# --- the rows, and the experiment -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNINGS)
def test_a_preparation_spends_its_budget_and_no_more(name):
    step = P.training(0, LearnedVariant("supervised", 0.0, 3, 1, "plain"), name)
    step = step.model_copy(update={"pretraining": Pretraining(dataset="glyphs", seed=0, channels=8, epochs=0)})
    step = step.model_copy(update={"passes": max(2500, step.passes_per_episode())})
    prepared = step.train(None)
    assert prepared.passes == step.cost()
    assert step.passes - step.passes_per_episode() < prepared.passes <= step.passes


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].adapt])
def test_every_row_learns_tasks_side_by_side(name):
    row, model, tasks = METHODS[name], network(3, 8), episodes(3)
    start = Start(model, {"magnitude": torch.tensor(1.0)} if name in SEARCHED else {})
    if row.prepare:
        step = P.training(0, LearnedVariant("supervised", 0.0, 3, 2, name), row.prepare.name)
        prepared = row.prepare.train(model, tasks, step)
        start = Start(prepared.model, prepared.extra)
    if row.guide:
        displacement = scout(start.model, [labelled(e.support) for e in tasks], Recipe(0.1, 2))
        start = replace(start, displacement=displacement)
    support, labels = side_by_side([task.support for task in tasks])
    queries, _ = side_by_side([task.query for task in tasks])
    scores = row.adapt(start, support, labels, 0.1 if row.has_rate else 0.0, P)(queries).detach()
    assert scores.shape == (9, 3, 3) and scores.isfinite().all() and row.passes(model, 6, P) >= 6
    if not getattr(row.adapt, "augment", None):  # what is drawn for a task depends on those beside it
        alone = row.adapt(start, support[:, 1:], labels, 0.1, P)(queries[:, 1:]).detach()
        torch.testing.assert_close(scores[:, 1:], alone, rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return learned.run(P)


def test_the_experiment_is_complete_and_paired(frame):
    variants = [*LearnedVariant._fields]
    found = frame.groupby(variants, sort=False).ngroups
    assert found == len(P.variants()) == len(set(P.variants()))
    tested = frame[frame["metric"] == "accuracy"]
    assert (tested.groupby(variants).size() == 6).all() and tested["value"].between(0, 1).all()
    tuned = frame[frame["metric"] == "validation"].groupby("method").size()
    assert tuned["plain"] == 2 * (5 * 2 + 1) and tuned["nearest_mean"] == 5 * 2 and tuned["lora"] == 2 * 2
    costs = frame[frame["metric"] == "preparation_passes"].set_index(variants)["value"]
    pretrained = costs["supervised", 0.0, 3, 1, "plain"]
    for point in ("simclr", "masked"):  # as much as pretraining and a second preparation together
        assert 0.9 * (pretrained + P.passes) < costs[point, 0.0, 3, 1, "plain"] <= pretrained + P.passes
    learned.verdict(frame)
    assert set(learned.at_zero_points(frame)["zero_point"]) == set(ZERO_POINTS)
    assert sorted(learned.with_wrong_labels(frame)["wrong"].unique()) == [0.0, 0.4]


def test_steps_are_read_back_from_their_json():
    for step in P.preparations():
        assert from_command(step.command()) == step
    assert any(isinstance(step, LearnedTraining) for step in P.preparations())


def test_the_figures_name_every_method_and_zero_point(frame, tmp_path):
    records.write(str(tmp_path), "table", frame, {})
    table = records.read(tmp_path, "table")
    for name, draw in figures.EXPERIMENT.figures.items():
        figure = draw(table)
        save(figure, tmp_path / f"{name}.png")
        said = " ".join(t.get_text() for axis in figure.axes for t in axis.get_yticklabels())
        if name == "learned_everything":
            assert all(row.label in said for row in METHODS.values())
        if name == "learned_zero_points":
            assert all(label in said for label in ZERO_POINTS.values())


def test_without_guidance_the_best_is_named_and_nothing_is_compared(frame):
    alone = frame[~frame["method"].isin([*GUIDES, "guided_clusters", "uniform"])]
    words = learned.verdict(alone)
    assert words.count("best is") == 2 and "above it" not in words and "Guided" not in words


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zero_points": ["sim_clr"]}, "zero_points.0 = 'sim_clr'"),
        ({"methods": ["dart"]}, "methods.0 = 'dart'"),
        ({"wrong": [1.0]}, "wrong.0 = 1.0"),
        ({"tasks": ["5-way 18-shot"]}, "at most 2 in a 5-way 18-shot task"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        LearnedEverythingParameters.parse(SMALL | wrong)

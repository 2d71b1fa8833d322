import copy
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from experiments.baselines.compare import Relation, attention, prototypes
from experiments.baselines.domain import DANN, Reversal, coral, no_alignment, pretrain_across
from experiments.baselines.few_shot import Episodes, Start, side_by_side
from experiments.baselines.learned_optimizer import (
    LearnedOptimizer,
    StepRule,
    learn_optimizer,
    preprocess,
    unrolled_loss,
)
from experiments.baselines.meta import adapt_by_descent, anil, descend, fomaml, maml, meta_loss, meta_sgd, reptile
from experiments.baselines.multitask import hard_sharing, soft_sharing, spread
from experiments.costs import TRAINING, TWICE
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.models import conv4, new_head, strided_conv4
from experiments.neighbours import NEIGHBOURS
from experiments.preparations.meta_training import MetaTraining
from experiments.preparations.pretraining import Pretraining
from gtl_core import Guide, Guided, Recipe, scout
from gtl_core._engine.stacked import stack
from gtl_core.tasks import Episode, labelled, rng
from tests.reference import fine_tune


# Adam turns rounding errors into whole steps where gradients vanish, as those of biases do in front of a GroupNorm with
# one channel per group: comparisons after Adam take 8 channels.
def network(make=conv4, n_way=3, channels=4) -> nn.Sequential:
    return make(n_way, channels, generator=rng(0)).double()


def episodes(n=2, n_way=3, n_shot=2, n_query=3, dtype=torch.float64) -> list[Episode]:
    images = torch.rand(n, n_way, n_shot + n_query, 1, 28, 28, generator=rng(1), dtype=dtype)
    return [Episode(torch.arange(n_way), of[:, :n_shot], of[:, n_shot:]) for of in images]


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# --- MAML and its kin -----------------------------------------------------------------------------


def unrolled_gradient(model, tasks, rate, n_steps, first_order=False):
    """One task at a time, written out."""
    zero_point = dict(model.named_parameters())
    loss = 0.0
    for task in tasks:
        parameters = dict(zero_point)
        inputs, labels = labelled(task.support)
        for _ in range(n_steps):
            inner = cross_entropy(functional_call(model, parameters, (inputs,)), labels)
            gradients = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
            if first_order:
                gradients = [g.detach() for g in gradients]
            parameters = {n: p - rate * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
        inputs, labels = labelled(task.query)
        loss = loss + cross_entropy(functional_call(model, parameters, (inputs,)), labels) / len(tasks)
    return loss, torch.autograd.grad(loss, list(zero_point.values()))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("make", [conv4, strided_conv4])
def test_meta_gradients_of_all_tasks_at_once_equal_those_of_one_after_the_other(make, first_order):
    model, tasks = network(make), episodes()
    zero_point = dict(model.named_parameters())
    loss = meta_loss(stack([model] * 2), zero_point, dict.fromkeys(zero_point, 0.1), tasks, 2, first_order)
    expected, gradients = unrolled_gradient(model, tasks, 0.1, 2, first_order)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(zero_point.values()))
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("wrt", ["zero point", "rates"])
def test_second_order_gradients_against_finite_differences(wrt):
    """Of MAML for the zero point, and of Meta-SGD for the rates."""
    model, tasks = network(), episodes(1)
    stacked = stack([model])
    zero_point = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    rates = {name: torch.full_like(p, 0.1).requires_grad_() for name, p in zero_point.items()}
    moved = zero_point if wrt == "zero point" else rates
    direction = {name: torch.randn(p.shape, generator=rng(2), dtype=p.dtype) for name, p in moved.items()}

    def loss(h: float):
        there = {name: p + h * direction[name] for name, p in moved.items()}
        start, speed = (there, rates) if wrt == "zero point" else (zero_point, there)
        return meta_loss(stacked, start, speed, tasks, 2, first_order=False)

    gradients = torch.autograd.grad(loss(0.0), list(moved.values()))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True))
    torch.testing.assert_close((loss(1e-6) - loss(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=0)


def test_one_step_of_descent_by_hand():
    """Half the squared distance from w to 3 at rate 0.5: from 1 to 2, then to 2.5."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    x, y = torch.ones(1, 1), torch.full((1, 1), 3.0)
    options = {"loss": lambda out, target: ((out - target) ** 2 / 2).sum()}
    assert descend(model, dict(model.named_parameters()), x, y, {"weight": 0.5}, 1, **options)["weight"] == 2
    assert descend(model, dict(model.named_parameters()), x, y, {"weight": 0.5}, 2, **options)["weight"] == 2.5


@pytest.mark.parametrize(
    "make, second_order, head_only", [(fomaml, 0, 0), (maml, 1, 0), (anil, 0, 1), (meta_sgd, 1, 0)]
)
def test_network_passes_are_what_the_operations_counted_say(make, second_order, head_only):
    """Up to the first layer, whose inputs need no gradient. In double precision, since only torch's work is counted."""
    model, (task,) = conv4(5, 16, generator=rng(0)).double(), episodes(1, 5, 2, 3)
    with FlopCounterMode(display=False) as one_example:
        model(task.support[:1, 0])
    with FlopCounterMode(display=False) as preparation:
        prepared = make(model, [task], n_steps=2)
    assert prepared.passes == (TWICE if second_order else TRAINING) * 2 * 10 + TRAINING * 15
    counted = preparation.get_total_flops() / one_example.get_total_flops()
    assert 0.85 * prepared.passes < counted <= prepared.passes


def test_anil_adapts_the_head_alone():
    model, (task,) = network(), episodes(1)
    prepared = anil(model, [task])
    rates = {"head.weight": 0.4, "head.bias": 0.4}
    adapted = adapt_by_descent(prepared.model, *labelled(task.support), rates=rates, n_steps=1)
    features = prepared.model.body(task.query.flatten(0, 1))
    inputs, labels = labelled(task.support)
    loss = cross_entropy(prepared.model(inputs), labels)
    w, b = prepared.model.head.weight, prepared.model.head.bias
    dw, db = torch.autograd.grad(loss, (w, b))
    torch.testing.assert_close(adapted(task.query.flatten(0, 1)), features @ (w - 0.4 * dw).T + b - 0.4 * db)


def test_meta_sgd_with_rates_that_are_one_number_is_maml():
    model, tasks = network(channels=8), episodes()
    prepared = meta_sgd(model, tasks, inner_rate=0.1, outer_rate=1e-2)
    uniform = maml(model, tasks, inner_rate=0.1, outer_rate=1e-2).model  # after one step: then rates differ
    for p, q in zip(prepared.model.parameters(), uniform.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert set(prepared.extra) == {name for name, _ in model.named_parameters()}
    assert all((rate != 0.1).any() for rate in prepared.extra.values())  # by now every one has its own


def test_reptile_is_its_formula():
    model, tasks = network(), episodes(3, n_query=0)
    prepared = reptile(model, tasks, optimizer=sgd, epochs=2, meta_rate=0.6, tasks_per_step=2)
    expected = copy.deepcopy(model)
    for rate, group in ((0.6, tasks[:2]), (0.3, tasks[2:])):  # falling linearly: 0 would come third
        ends = [fine_tune(expected, *labelled(task.support), optimizer=sgd, epochs=2) for task in group]
        with torch.no_grad():
            for p, *trained in zip(expected.parameters(), *(end.parameters() for end in ends), strict=True):
                p += rate * (sum(trained) / len(trained) - p)
    for p, q in zip(prepared.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert prepared.passes == TRAINING * 2 * 3 * 6


def test_batched_training_does_what_it_is_for():
    """Trained over and over on two tasks, each zero point gets better at them than it was."""
    model = conv4(3, 8, generator=rng(0))
    tasks = episodes(2, n_shot=1, n_query=1, dtype=torch.float32)
    tasks = [replace(task, query=task.support + 0.01) for task in tasks]
    for make in (maml, fomaml, meta_sgd):
        untrained = make(model, tasks[:0], inner_rate=0.05)
        trained = make(model, 15 * tasks, inner_rate=0.05, outer_rate=3e-3, tasks_per_step=2)
        losses = []
        for prepared in (untrained, trained):
            rates = prepared.extra or dict.fromkeys(dict(model.named_parameters()), 0.05)
            adapt = partial(adapt_by_descent, prepared.model, rates=rates, n_steps=1)
            queries = [(adapt(*labelled(t.support)), labelled(t.query)) for t in tasks]
            losses.append(sum(cross_entropy(predict(x), y).item() for predict, (x, y) in queries))
        assert losses[1] < 0.7 * losses[0]


# --- learning to compare --------------------------------------------------------------------------


def test_prototypes_by_hand():
    support, labels = torch.tensor([[0.0, 0], [2, 0], [5, 4]]), torch.tensor([0, 0, 1])
    queries = torch.tensor([[1.0, 0], [5, 1]])  # the prototypes are (1, 0) and (5, 4)
    assert prototypes(support, labels, queries).tolist() == [[0, -32], [-17, -9]]


def test_attention_by_hand():
    """Cosines 1, 0 and -1 make attention e : 1 : 1/e."""
    support, labels = torch.tensor([[2.0, 0], [0, 3], [-1, 0]]), torch.tensor([0, 1, 0])
    share = torch.tensor([1.0, 0, -1]).exp() / torch.tensor([1.0, 0, -1]).exp().sum()
    found = attention(support, labels, torch.tensor([[7.0, 0]])).exp()
    torch.testing.assert_close(found, torch.stack([share[0] + share[2], share[1]])[None])


def test_relations_follow_classes_and_ignore_the_order_of_examples():
    relate = Relation(4)
    support, labels = torch.rand(4, 4, generator=rng(0)), torch.tensor([0, 0, 1, 1])
    queries = torch.rand(3, 4, generator=rng(1))
    scores = relate(support, labels, queries)
    assert scores.shape == (3, 2) and ((scores > 0) & (scores < 1)).all()
    torch.testing.assert_close(relate(support, 1 - labels, queries), scores.flip(1))
    torch.testing.assert_close(relate(support[[1, 0, 3, 2]], labels, queries), scores)


# --- learned optimizer ----------------------------------------------------------------------------


def test_gradients_are_preprocessed_as_published():
    gradient = torch.tensor([torch.e**-5, -(torch.e**-5), 0.0, 0.5 * torch.e**-10])
    torch.testing.assert_close(preprocess(gradient), torch.tensor([[-0.5, 1], [-0.5, -1], [-1, 0], [-1, 0.5]]))


def test_an_untrained_rule_is_plain_descent():
    model, (task,) = conv4(3, 4, generator=rng(0)), episodes(1, dtype=torch.float32)
    rule = StepRule(scale=0.1, generator=rng(0))
    learned, plain = (
        fine_tune(model, *labelled(task.support), optimizer=make, epochs=3)
        for make in (lambda m: LearnedOptimizer(m.parameters(), rule), sgd)
    )
    for p, q in zip(learned.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_the_rule_is_trained_on_what_the_optimizer_does_and_gets_better_at_it():
    model, tasks = conv4(3, 4, generator=rng(0)), episodes(2, dtype=torch.float32)
    rule = StepRule(generator=rng(0))
    support, query = (side_by_side([getattr(task, part) for task in tasks]) for part in ("support", "query"))
    prepared = learn_optimizer(model, 20 * tasks, rule, n_steps=3, learning_rate=1e-2, tasks_per_step=2)
    trained = StepRule(generator=rng(0))
    trained.load_state_dict(prepared.extra)
    losses = [unrolled_loss(stack([model] * 2), support, query, each, 3).item() for each in (rule, trained)]
    assert losses[1] < losses[0]
    total = 0.0
    for task in tasks:
        for n_steps in (1, 2, 3):
            by_rule = lambda m: LearnedOptimizer(m.parameters(), trained)  # noqa: E731
            learned = fine_tune(model, *labelled(task.support), optimizer=by_rule, epochs=n_steps)
            inputs, labels = labelled(task.query)
            total += cross_entropy(learned(inputs), labels).item()
    assert total == pytest.approx(losses[1], rel=1e-4)


# --- multi-task -----------------------------------------------------------------------------------


def test_hard_sharing_of_a_single_task_is_training_on_it():
    model, tasks = conv4(3, 8, generator=rng(0)), episodes(1, dtype=torch.float32)
    prepared = hard_sharing(model, tasks, epochs=3, generator=rng(0))
    alone = copy.deepcopy(model)
    new_head(alone, 3, "zero", generator=rng(0))
    alone = fine_tune(
        alone, *labelled(tasks[0].support), optimizer=lambda m: torch.optim.Adam(m.parameters()), epochs=3
    )
    for p, q in zip(prepared.model.body.parameters(), alone.body.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    assert torch.equal(prepared.model.head.weight, model.head.weight)


def test_hard_sharing_gives_every_task_its_own_head():
    """Two tasks with the same images and opposite labels: one head would stay at zero, and so the body where it is."""
    model, (task,) = conv4(2, 8, generator=rng(0)), episodes(1, 2, dtype=torch.float32)
    opposite = replace(task, support=task.support.flip(0))
    prepared = hard_sharing(model, [task, opposite], epochs=2, generator=rng(0))
    moved = [
        (p - q).abs().max() for p, q in zip(prepared.model.body.parameters(), model.body.parameters(), strict=True)
    ]
    assert min(moved) > 1e-4


def test_soft_sharing_pulls_the_tasks_networks_together():
    layer = stack([nn.Linear(1, 1, bias=False) for _ in range(2)])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, 3.0]).view_as(layer.weight))
    assert spread(layer) == 1 + 1
    model, tasks = conv4(3, 8, generator=rng(0)), episodes(2, n_query=0, dtype=torch.float32)
    options = {"epochs": 3, "learning_rate": 1e-2}
    free = soft_sharing(model, tasks, strength=0.0, **options)
    adam = lambda m: torch.optim.Adam(m.parameters(), lr=1e-2)  # noqa: E731
    alone = [fine_tune(model, *labelled(task.support), optimizer=adam, epochs=3) for task in tasks]
    for p, *own in zip(free.model.body.parameters(), *(m.body.parameters() for m in alone), strict=True):
        torch.testing.assert_close(p, sum(own) / 2, rtol=1e-3, atol=1e-4)
    assert not same(free.model, soft_sharing(model, tasks, strength=10.0, **options).model)


# --- domain adaptation ----------------------------------------------------------------------------


def test_the_reversal_turns_the_gradient_around():
    features = torch.tensor([1.0, -2.0], requires_grad=True)
    reversed_features = Reversal.apply(features, 0.5)
    assert torch.equal(reversed_features, features)
    (reversed_features * torch.tensor([3.0, 4.0])).sum().backward()
    assert features.grad.tolist() == [-1.5, -2]


def test_dann_improves_its_classifier_and_confuses_it():
    """One step along minus the gradient: the classifier's lowers the domain loss, the features' raises it."""
    dann = DANN(3, generator=rng(0))
    source, target = (torch.randn(8, 3, generator=rng(i)) + i for i in range(2))
    features = [f.requires_grad_() for f in (source, target)]
    before = dann(*features, 0.5)
    before.backward()
    with torch.no_grad():
        assert dann(*(f - 0.01 * f.grad for f in features), 0.5) > before
        for p in dann.parameters():
            p -= 0.01 * p.grad
        assert dann(*features, 0.5) < before
    at_start = torch.autograd.grad(dann(*features, 0.0), features)
    assert not any(g.any() for g in at_start)  # the reversal grows from zero


def test_coral_by_hand():
    """Covariances diag(2, 0) and diag(0, 8): (4 + 64) / 16."""
    source = torch.tensor([[1.0, 5], [-1, 5]])
    target = torch.tensor([[7.0, 2], [7, -2]])
    assert coral(source, target, 0.0) == 68 / 16
    assert coral(source, source + 3, 0.0) == 0


def test_alignment_without_strength_is_no_alignment():
    model = conv4(3, 4, generator=rng(0))
    source = torch.rand(9, 1, 28, 28, generator=rng(1)), torch.arange(9) % 3
    target = torch.rand(9, 1, 28, 28, generator=rng(2))

    def prepare(alignment):
        options = {"n_steps": 3, "batch_size": 4, "generator": rng(3)}
        return pretrain_across(model, source, target, alignment, **options)

    plain = prepare(no_alignment)
    assert plain.passes == TRAINING * 3 * 8
    assert same(plain.model, prepare(DANN(16, strength=0.0, generator=rng(4))).model)
    for alignment in (DANN(16, generator=rng(4)), coral):
        assert not same(plain.model, prepare(alignment).model)


# --- all of them ----------------------------------------------------------------------------------


class Settings(NamedTuple):
    """What a row needs of an experiment's parameters, and of a preparation."""

    epochs: int = 2
    test_steps: int = 2
    inner_rate: float = 0.1
    backbone: str = "conv4"


def step(method) -> MetaTraining:
    """What a preparation reads its settings from; the budget is two epochs of multi-task learning."""
    return MetaTraining(
        pretraining=Pretraining(dataset="glyphs", seed=0, channels=4, epochs=0), method=method, n_way=5, head="zero",
        n_shot=1, n_query=3, n_tasks=4, task_n_shot=1, passes=120, learning_rate=1e-3, inner_rate=0.1, inner_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_every_row_learns_tasks_side_by_side(name):
    """From its own preparation, which costs something and leaves the model as it was; scores are [M, S, n_way]."""
    dataset, row = load("glyphs"), NEIGHBOURS[name]
    split = split_classes(dataset, 0)
    train = Episodes(dataset, split["scouting"], 5, 1, 3, n=4, seed=0, purpose="training")
    test = Episodes(dataset, split["test"], 5, 1, 3, n=2, seed=0, purpose="test")
    model = conv4(5, 4, generator=rng(0))
    before, start = copy.deepcopy(model), Start(model)
    if row.prepare:
        prepared = row.prepare.train(model, train, step(row.prepare.name))
        assert prepared.passes > 0 and prepared.seconds > 0
        assert prepared.extra or not same(prepared.model, model)  # it leaves something to start from
        start = Start(prepared.model, prepared.extra)
    if row.guide:
        displacement = scout(start.model, [labelled(e.support) for e in train], Recipe(0.1, 2))
        start = replace(start, displacement=displacement)
    support, labels = side_by_side([episode.support for episode in test])
    queries, _ = side_by_side([episode.query for episode in test])
    rate = 0.1 if row.has_rate else 0.0
    scores = row.adapt(start, support, labels, rate, Settings())(queries).detach()
    assert scores.shape == (15, 2, 5) and scores.isfinite().all()
    assert same(model, before)
    assert row.passes(model, 5, Settings()) >= 5
    alone = row.adapt(start, support[:, 1:], labels, rate, Settings())(queries[:, 1:]).detach()
    torch.testing.assert_close(scores[:, 1:], alone, rtol=1e-3, atol=1e-4)


def test_rows_are_told_apart_by_name_and_by_label():
    labels = [row.label for row in NEIGHBOURS.values()]
    assert len(set(labels)) == len(labels) and all(name == row.name for name, row in NEIGHBOURS.items())


def test_a_guide_goes_around_any_optimizer():
    """Frozen by its guide, a network stays where it is, even under a learned optimizer."""
    model, (task,) = conv4(3, 4, generator=rng(0)), episodes(1, dtype=torch.float32)
    frozen = Guide({name: torch.zeros_like(p) for name, p in model.named_parameters()})
    rule = StepRule(generator=rng(0))
    for make in (sgd, lambda m: LearnedOptimizer(m.parameters(), rule)):
        guided = lambda m, make=make: Guided(make(m), m, frozen)  # noqa: E731
        assert same(fine_tune(model, *labelled(task.support), optimizer=guided, epochs=2), model)
        assert not same(fine_tune(model, *labelled(task.support), optimizer=make, epochs=2), model)

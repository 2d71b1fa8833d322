import copy
from typing import NamedTuple

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.baselines.continual import EWC, L2SP, Anchor, Replay, SynapticIntelligence, fisher, follow
from experiments.baselines.few_shot import Episodes, Prepared, Start, measured
from experiments.baselines.transfer import (
    FineTuning,
    ProbeThenFineTuning,
    base_mean,
    classify_features,
    layerwise,
    layerwise_rates,
    nearest_mean,
    simple_shot,
)
from experiments.costs import FORWARD
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.models import conv4, strided_conv4
from experiments.stream_methods import METHODS, Learner
from gtl_core import Guide, Guided
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.tasks import arrivals_of, labelled, rng
from gtl_core.training import fit
from tests.reference import fine_tune


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def task(n_way=5, n_shot=2, seed=1):
    return labelled(torch.rand(n_way, n_shot, 1, 28, 28, generator=rng(seed)))


def points() -> nn.Sequential:
    """Features are the inputs themselves: two numbers each."""
    model = nn.Sequential()
    model.body, model.head = nn.Identity(), nn.Linear(2, 2)
    return model


# --- transfer -------------------------------------------------------------------------------------


class Settings(NamedTuple):
    epochs: int


def learned(adapt, model, tasks, epochs=2, rate=0.1, displacement=None):
    """The predictions of ``adapt`` for two tasks side by side, on queries of their own."""
    support, labels = torch.stack([inputs for inputs, _ in tasks], 1), tasks[0][1][:, None]
    queries = torch.rand(7, len(tasks), 1, 28, 28, generator=rng(3))
    predict = adapt(Start(model, displacement=displacement), support, labels, rate, Settings(epochs))
    return queries, predict(queries)


TUNED = {
    **{f"the first {k} layers frozen": (FineTuning(n_frozen=k), {"optimizer": sgd, "n_frozen": k}) for k in range(5)},
    "L2-SP": (FineTuning(memory=lambda m, o: L2SP(m, 0.5, o)), {"memory": lambda m, o: L2SP(m, 0.5, o)}),
    "layer-wise": (FineTuning(layerwise), {"optimizer": lambda m: torch.optim.SGD(layerwise_rates(m, 0.1))}),
}


@pytest.mark.parametrize("name", TUNED)
def test_side_by_side_is_one_by_one(name):
    adapt, alone = TUNED[name]
    model, tasks = conv4(5, 8, generator=rng(0)), [task(seed=i) for i in (1, 2)]
    before = copy.deepcopy(model)
    queries, together = learned(adapt, model, tasks)
    for s, one in enumerate(tasks):
        expected = fine_tune(model, *one, **{"optimizer": sgd, "epochs": 2} | alone)(queries[:, s])
        torch.testing.assert_close(together[:, s], expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))


def test_probe_then_fine_tune_is_its_two_halves():
    model, tasks = conv4(5, 8, generator=rng(0)), [task(seed=i) for i in (1, 2)]
    queries, together = learned(ProbeThenFineTuning(), model, tasks, epochs=5)
    for s, one in enumerate(tasks):
        half = fine_tune(model, *one, optimizer=sgd, epochs=2, n_frozen=4)
        whole = fine_tune(half.requires_grad_(), *one, optimizer=sgd, epochs=3)
        torch.testing.assert_close(together[:, s], whole(queries[:, s]), rtol=1e-4, atol=1e-5)


def test_a_guided_adaptation_steps_by_its_guide():
    model, tasks = conv4(5, 8, generator=rng(0)), [task(seed=i) for i in (1, 2)]
    guide = Guide({n: torch.rand(p.shape, generator=rng(9)) for n, p in model.named_parameters()})
    queries, together = learned(FineTuning(guide=lambda displacement: displacement), model, tasks, displacement=guide)
    guided = lambda m: Guided(sgd(m), m, guide)  # noqa: E731
    for s, one in enumerate(tasks):
        expected = fine_tune(model, *one, optimizer=guided, epochs=2)(queries[:, s])
        torch.testing.assert_close(together[:, s], expected, rtol=1e-4, atol=1e-5)


def test_nearest_mean_by_hand():
    inputs, labels = torch.tensor([[0.0, 0], [0, 2], [4, 0], [4, 2]]), torch.tensor([0, 0, 1, 1])
    predict = nearest_mean(points(), inputs, labels)  # the means are (0, 1) and (4, 1)
    torch.testing.assert_close(predict(torch.tensor([[1.0, 1], [4, 4]])), torch.tensor([[-1.0, -3], [-5, -3]]))


def test_simple_shot_by_hand():
    """Less the mean and at length 1, the support is (1, 0), (0, 1) and (-1, 0), the query (0, 1)."""
    model = points()
    base = base_mean(model, torch.tensor([[0.0, 0], [2, 2]]))
    assert base.model is model and base.passes == 2 * FORWARD and base.extra["mean"].tolist() == [1, 1]
    inputs, labels = torch.tensor([[4.0, 1], [1, 3], [0, 1]]), torch.tensor([0, 0, 1])
    predict = simple_shot(model, inputs, labels, base.extra["mean"])  # the class means are (1/2, 1/2) and (-1, 0)
    torch.testing.assert_close(predict(torch.tensor([[1.0, 5]])), -torch.tensor([[0.5, 2]]).sqrt())


@pytest.mark.parametrize("classifier", [LogisticRegression(C=10), LinearSVC()])
def test_separable_features_are_separated(classifier):
    inputs, labels = torch.tensor([[1.0, 0.1], [3, 0.2], [0.1, 1], [0.2, 2]]), torch.tensor([0, 0, 1, 1])
    predict = classify_features(points(), inputs, labels, classifier=classifier)
    assert torch.equal(predict(inputs).argmax(1), labels)
    assert torch.equal(predict(100 * inputs), predict(inputs))  # of length 1
    assert not hasattr(classifier, "coef_")  # the caller's is left unfitted


def test_rates_decay_layer_by_layer_towards_the_input():
    model = conv4(5, 8, generator=rng(0))
    groups = layerwise_rates(model, 1.0, decay=2.0)
    assert [group["lr"] for group in groups] == [1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert groups[0]["params"] == [model.head.weight, model.head.bias]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_episodes_are_the_same_for_all_who_ask():
    dataset = load("glyphs")
    episodes = Episodes(dataset, split_classes(dataset, 0)["test"], 5, 1, 5, n=2, seed=0, purpose="test")
    assert len(list(episodes)) == 2 and torch.equal(episodes[1].support, episodes[1].support)
    assert not torch.equal(episodes[0].support, episodes[1].support)
    with pytest.raises(IndexError):
        episodes[2]


def test_a_preparation_is_timed():
    assert measured(lambda model: Prepared(model))(points()).seconds > 0


def test_the_network_of_the_literature_stacks():
    models = [strided_conv4(5, 8, generator=rng(i)) for i in range(3)]
    inputs = torch.rand(6, 3, 1, 28, 28, generator=rng(7))
    outputs = stack(models)(inputs)
    assert models[0].body(inputs[:, 0]).shape == (6, 4 * 8)  # two by two pixels are left
    for s, model in enumerate(models):
        torch.testing.assert_close(outputs[:, s], model(inputs[:, s]), rtol=1e-4, atol=1e-5)


# --- continual ------------------------------------------------------------------------------------


def arrivals(n_way=3, n_rounds=2, size=None):
    support = torch.rand(n_way, 1 + n_rounds, size or 1, 1, 28, 28, generator=rng(5))
    for inputs, labels in arrivals_of(support, "single", rng(0)):
        yield (inputs, labels) if size else (inputs[:, 0], labels[:, 0])


def test_without_a_memory_each_arrival_is_trained_on_and_forgotten():
    followed, expected = (conv4(3, 8, generator=rng(0)) for _ in range(2))
    optimizer = sgd(expected)
    options = {"first_epochs": 3, "epochs": 2, "loss": cross_entropy}
    for i in follow(followed, sgd(followed), arrivals(), **options):
        fit(expected, *list(arrivals())[i], optimizer, epochs=2 if i else 3)
        assert all(torch.equal(p, q) for p, q in zip(followed.parameters(), expected.parameters(), strict=True))
    assert i == 6  # three classes at once, then two rounds of three


def test_fisher_information_of_logistic_regression():
    """Of p = sigmoid(z), z = w·x + b: the mean of p (1 - p) x²."""
    model = nn.Linear(3, 2).double()
    nn.init.normal_(model.weight, generator=rng(0))
    x = torch.randn(7, 3, dtype=torch.float64, generator=rng(1))
    found = fisher(model, dict(model.named_parameters()), x)
    p = model(x).softmax(-1)
    variance = (p * (1 - p)).detach()  # the same for both labels
    torch.testing.assert_close(found["weight"], torch.einsum("nk,nd->kd", variance, x**2) / 7)
    torch.testing.assert_close(found["bias"], variance.mean(0))


def test_fisher_information_of_stacked_networks_is_each_ones_own():
    models = [conv4(3, 4, generator=rng(i)) for i in range(2)]
    inputs = torch.rand(2, 2, 1, 28, 28, generator=rng(5))
    stacked = stack(models)
    together = fisher(stacked, dict(stacked.named_parameters()), inputs)
    for s, model in enumerate(models):
        for name, alone in fisher(model, dict(model.named_parameters()), inputs[:, s]).items():
            torch.testing.assert_close(together[name][s], alone, rtol=1e-3, atol=1e-6)


def pulled(model, spring, moved):
    """The head's weights after a step of descent with rate 1/6 that goes by ``moved``, and the springs' pull."""
    optimizer = sgd(model, lr=1 / 6)
    spring(model, optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    model.head.weight.grad = -6 * torch.tensor(moved)
    optimizer.step()
    return model.head.weight.detach()


def test_a_spring_by_hand():
    """From 1 to 2 and 3; k = 1/6 * 3 * 2 = 1, so the springs pull half of the way back."""
    model = points()
    with torch.no_grad():
        model.head.weight.fill_(1.0)

    def spring(model, optimizer):
        anchor = Anchor(model, 3.0, optimizer)
        anchor.importance["head.weight"].fill_(2.0)

    weight = pulled(model, spring, [[1.0, 0], [0, 2]])
    torch.testing.assert_close(weight, torch.tensor([[1.5, 1], [1, 2]]))


def test_heads_decay_to_zero_with_l2_sp():
    model = points()
    with torch.no_grad():
        model.head.weight.fill_(1.0)
    weight = pulled(model, lambda m, o: L2SP(m, 1.0, o, head_strength=6.0), [[1.0, 0], [0, 0]])
    torch.testing.assert_close(weight, torch.tensor([[1.0, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize("strength", [1.0, 1e2, 1e4])
def test_springs_are_stable_however_strong_and_end_where_their_gradient_does(strength):
    """Loss (w - 1)^2 / 2 and a spring to 0 with importance 1: the minimum of both is 1 / (1 + strength). With rate 1/2
    the springs' gradient alone would throw w ever farther from strength 4 on."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = sgd(model, lr=0.5)
    spring = Anchor(model, strength, optimizer)
    spring.importance["weight"].fill_(1.0)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    fit(model, x, y, optimizer, epochs=200, loss=lambda out, target: ((out - target) ** 2).sum() / 2)
    assert model.weight.item() == pytest.approx(1 / (1 + strength), rel=1e-6)


def test_a_guide_scales_the_springs_step_too():
    model = points()
    twin = copy.deepcopy(model)
    guide = Guide({n: torch.full_like(p, 0.25) for n, p in model.named_parameters()})
    for network in (model, twin):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for network, optimizer in ((model, Guided(sgd(model), model, guide)), (twin, sgd(twin))):
        spring = Anchor(network, 5.0, optimizer)
        for importance in spring.importance.values():
            importance.fill_(1.0)
        optimizer.step()
    for name, p in model.named_parameters():
        after = dict(twin.named_parameters())[name]
        torch.testing.assert_close(p, before[name] + 0.25 * (after - before[name]))


def test_the_stronger_l2_sp_the_nearer_the_body_stays():
    model = conv4(3, 8, generator=rng(0))

    def distance(strength: float) -> float:
        tuned = fine_tune(model, *task(3), optimizer=sgd, epochs=10, memory=lambda m, o: L2SP(m, strength, o))
        pairs = zip(tuned.body.parameters(), model.body.parameters(), strict=True)
        return sum(((p - q) ** 2).sum().item() for p, q in pairs)

    assert distance(0.0) > distance(1.0) > distance(5.0) > 0


def test_ewc_adds_up_with_decay_and_moves_its_anchor():
    model, (x, y) = points(), (torch.rand(4, 2, generator=rng(0)), torch.tensor([0, 1, 0, 1]))
    memory = EWC(model, 1.0, sgd(model), decay=0.5)
    information = fisher(model, dict(model.named_parameters()), x)
    memory.learned(x, y)
    memory.learned(x, y)
    for name, expected in information.items():
        torch.testing.assert_close(memory.importance[name], 1.5 * expected)
    with torch.no_grad():
        model.head.bias += 1
    memory.learned(x, y)
    assert torch.equal(memory.anchor["head.bias"], model.head.bias)


def test_synaptic_intelligence_by_hand():
    """One parameter on loss 2 w²: from 1 with rate 1/8 the steps go to 1/2 and 1/4."""
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    optimizer = sgd(model, lr=1 / 8)
    memory = SynapticIntelligence(model, 1.0, optimizer, damping=0.0)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1)

    def learn():
        fit(model, x, y, optimizer, epochs=2, loss=lambda out, _: 2 * (out**2).sum())
        memory.learned(x, y)

    learn()
    first = (4 * 1 * 0.5 + 4 * 0.5 * 0.25) / 0.75**2  # gradient 4 w, times the movement
    assert memory.importance["weight"].item() == pytest.approx(first)
    # Then the springs hold back, but the gradient that counts is the loss's own.
    w = [0.25]
    for _ in range(2):
        w.append((w[-1] - 4 * w[-1] / 8 + first / 8 * 0.25) / (1 + first / 8))
    learn()
    path = 4 * w[0] * (w[0] - w[1]) + 4 * w[1] * (w[1] - w[2])
    assert memory.importance["weight"].item() == pytest.approx(first + path / (w[0] - w[2]) ** 2)


def test_the_reservoir_gives_every_example_the_same_chance():
    kept = torch.zeros(6)
    for i in range(600):
        memory = Replay(2, rng(0, i))
        for k in range(6):
            memory.learned(torch.tensor([[float(k)]]), torch.tensor([k]))
        labels = memory.rehearse(torch.tensor([[9.0]]), torch.tensor([9]))[1].tolist()
        assert len(labels) == 3 and labels[-1] == 9
        kept[labels[:2]] += 1
    assert ((kept - 200).abs() < 4 * (600 * 1 / 3 * 2 / 3) ** 0.5).all()  # four standard deviations


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("row", [row for row in METHODS.values() if not row.guide], ids=lambda row: row.name)
def test_streams_side_by_side_equal_streams_one_by_one(row, guided):
    # In float32 an activation that is nearly 0 may be on either side of it, and then everything differs.
    models = [conv4(3, 4, generator=rng(i)).double() for i in range(2)]
    guide = Guide({n: torch.rand(p.shape, generator=rng(9)).double() for n, p in models[0].named_parameters()})
    streams = [(inputs.double(), labels) for inputs, labels in arrivals(size=2)]

    def learn(model, guide, examples, loss):
        optimizer = Guided(sgd(model), model, guide) if guided else sgd(model)
        remembered = row.memory(Learner(model, optimizer, row.strength, 4, rng(0)))
        list(follow(model, optimizer, examples, remembered, first_epochs=2, epochs=2, loss=loss))

    stacked = stack(models)
    learn(stacked, stack_guide(guide, 2), streams, stacked_cross_entropy)
    together = dict(stacked.named_parameters())
    for s, model in enumerate(models):
        own = [(inputs[:, s], labels[:, 0]) for inputs, labels in streams]
        learn(model, guide, own, cross_entropy)
        for name, p in model.named_parameters():
            torch.testing.assert_close(together[name][s], p, rtol=1e-9, atol=1e-12)

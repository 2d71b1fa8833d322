"""Many networks as one batch: each must be trained as it would be alone, by the core's own displacement and guide."""

import math

import pytest
import torch
from torch import nn

from experiments.e02_xor import figures
from experiments.e02_xor import run as xor
from experiments.e02_xor.networks import ALL_POINTS, CHECK_EVERY, INPUTS, TARGETS, TinyNetworks
from experiments.e02_xor.protocols import HEADLINES, METHODS, PROTOCOLS, Protocol
from experiments.e02_xor.run import XorParameters
from experiments.parameters import ParameterError
from experiments.statistics import auc, wilson
from gtl_core import Displacement, Guided
from gtl_core.tasks import rng

SMALL = dict(
    seed=0, networks=["2-2-1 tanh", "2-3-3-1 relu"], n_inits=60, n_tuning_inits=6, steps=400, learning_rates=[1, 10],
    scout_learning_rate=1, results="x", prepared="", workers=1,
)  # fmt: skip
ACTIVATIONS = {"tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "relu": nn.ReLU}
every_network = pytest.mark.parametrize("text", ["2-2-1 tanh", "2-2-1 sigmoid", "2-4-1 relu", "2-5-5-1 relu"])


def alone(networks, theta):
    """One network of the batch as an ordinary module."""
    layers = []
    for weight, bias in networks.layers(theta[None]):
        linear = nn.Linear(weight.shape[2], weight.shape[1])
        linear.load_state_dict({"weight": weight[0], "bias": bias[0]})
        layers += [linear, ACTIVATIONS[networks.activation]()]
    return nn.Sequential(*layers[:-1], nn.Sigmoid())


def flat(values):
    return torch.cat([value.detach().flatten() for value in values])


def squared_error(model, points):
    return (points[0] * (model(INPUTS)[:, 0] - TARGETS).square()).sum()


def train_alone(model, steps, optimizer, points=ALL_POINTS):
    for _ in range(steps):
        optimizer.zero_grad()
        squared_error(model, points).backward()
        optimizer.step()


@every_network
def test_gradients_of_the_batch_are_those_of_each_network(text):
    networks = TinyNetworks.parse(text)
    theta = networks.draw(5, rng(0))
    points = torch.tensor([[0.5, 0, 0.5, 0]])
    gradients = networks.gradient(theta, points, networks.activations(theta))
    for one, gradient in zip(theta, gradients, strict=True):
        model = alone(networks, one)
        squared_error(model, points).backward()
        torch.testing.assert_close(gradient, flat(p.grad for p in model.parameters()))


@every_network
@pytest.mark.parametrize("scope", ["network", "tensor"])
@pytest.mark.parametrize("normalization", ["max", "minmax"])
@pytest.mark.parametrize("statistic", ["square", "abs"])
def test_guide_and_guided_descent_of_the_batch_are_the_cores(text, scope, normalization, statistic):
    networks = TinyNetworks.parse(text)
    zero_points = networks.draw(4, rng(0))
    protocol = Protocol("", (2,), 5, scope=scope, normalization=normalization, statistic=statistic)
    displacements, solved = protocol.scouted(networks, zero_points, XorParameters.parse(SMALL), rng(1))
    guides = protocol.guide(networks, displacements, solved)
    ends, _ = networks.descend(zero_points, torch.tensor(2.0), guides, 7)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for i, zero_point in enumerate(zero_points):
        displacement = Displacement(alone(networks, zero_point))
        for pair in pairs:
            model = alone(networks, zero_point)
            points = torch.zeros(1, 4)
            points[0, list(pair)] = 0.5
            train_alone(model, 5, torch.optim.SGD(model.parameters(), lr=1.0), points)
            displacement.add(model)
        guide = displacement.guide(scope, normalization, statistic)
        torch.testing.assert_close(guides[i], flat(guide.values()), rtol=1e-3, atol=1e-4)
        model = alone(networks, zero_point)
        train_alone(model, 7, Guided(torch.optim.SGD(model.parameters(), lr=2.0), model, guide))
        torch.testing.assert_close(ends[i], flat(model.parameters()), rtol=1e-3, atol=1e-4)


def test_a_guide_of_one_is_plain_and_of_zero_is_frozen():
    networks = TinyNetworks.parse("2-2-1 tanh")
    theta = networks.draw(9, rng(0))
    rates = torch.linspace(0.1, 30, 9)
    plain, since = networks.descend(theta, rates, None, 50)
    guided, guided_since = networks.descend(theta, rates, torch.ones_like(theta), 50)
    assert torch.equal(plain, guided) and torch.equal(since, guided_since)
    assert torch.equal(networks.descend(theta, rates, torch.zeros_like(theta), 50)[0], theta)


def test_each_network_has_its_own_rate():
    networks = TinyNetworks.parse("2-2-1 tanh")
    theta = networks.draw(2, rng(0))
    together, _ = networks.descend(theta, torch.tensor([0.1, 5.0]), None, 20)
    for i, rate in enumerate((0.1, 5.0)):
        torch.testing.assert_close(
            together[i : i + 1], networks.descend(theta[i : i + 1], torch.tensor(rate), None, 20)[0]
        )


def test_a_solution_by_hand():
    """Hidden units: relu(x1 + x2) and relu(x1 + x2 - 1); output: sigmoid(10 a - 20 b - 5): -5, 5, 5, -5 before it."""
    networks = TinyNetworks.parse("2-2-1 relu")
    solution = torch.tensor([[1.0, 1, 1, 1, 0, -1, 10, -20, -5]])
    one = 1 / (1 + math.exp(5))
    assert networks.activations(solution)[-1].flatten().tolist() == pytest.approx(
        [one, 1 - one, 1 - one, one], rel=1e-4
    )
    assert networks.loss(solution).item() == pytest.approx(one**2, rel=1e-4)
    assert networks.solves(solution).all()
    assert networks.descend(solution, torch.tensor(0.1), None, 20)[1].item() == 0
    undecided = torch.zeros(1, 9)  # 0.5 everywhere
    assert not networks.solves(undecided).any() and networks.loss(undecided).item() == 0.25
    only_zeros = torch.tensor([[0.5, 0, 0, 0.5]])
    undecided[0, -1] = -5  # 0 everywhere
    assert networks.solves(undecided, only_zeros).all() and not networks.solves(undecided).any()


def test_zero_points_are_drawn_as_pytorch_draws_them():
    theta = TinyNetworks.parse("2-4-1 relu").draw(5000, rng(0))
    hidden, output = theta[:, :12], theta[:, 12:]
    assert 0.70 < hidden.abs().max() <= 2**-0.5 and 0.49 < output.abs().max() <= 0.5
    assert hidden.mean().abs() < 0.01 and hidden.std().item() == pytest.approx(2**-0.5 / 3**0.5, rel=0.02)


def test_no_protocol_spends_more_than_the_budget():
    for steps in (400, 1000):
        for protocol in PROTOCOLS:
            phases = len(protocol.exponents)
            main = protocol.main_steps(steps)
            scouting = protocol.scouting_cost * (phases if protocol.renewed else 1)
            assert main >= 1 and protocol.attempts * (main * phases + scouting) <= steps
    assert Protocol("", (1,), 10).scouting_cost == 10  # 4 scouts on a quarter of the points
    assert Protocol("", (1, 2, 3), 10).scouting_cost == 70  # (4 + 12 + 12) / 4 times 10


def test_time_counts_scouts_and_failed_attempts():
    p = XorParameters.parse(SMALL)
    solution = torch.tensor([[1.0, 1, 1, 1, 0, -1, 10, -20, -5]])
    stuck = torch.zeros(1, 9)
    twice = Protocol("", (1,), 10, attempts=2)
    assert twice.solving_times("2-2-1 relu", [solution, stuck], torch.tensor(0.1), p).item() == 10
    assert twice.solving_times("2-2-1 relu", [stuck, solution], torch.tensor(0.1), p).item() == 210
    assert twice.solving_times("2-2-1 relu", [stuck, stuck], torch.tensor(0.1), p).isnan()


def test_wilson_by_hand():
    assert wilson(5, 10, z=2) == pytest.approx(((5 + 2 - 2 * 3.5**0.5) / 14, (5 + 2 + 2 * 3.5**0.5) / 14))
    assert wilson(0, 10, z=2) == pytest.approx((0, 4 / 14)) and wilson(10, 10, z=2) == pytest.approx((10 / 14, 1))


def test_auc_by_hand():
    groups = torch.tensor([2.0, 3.0]).numpy(), torch.tensor([1.0, 2.0]).numpy()
    area, low, high = auc(*groups)
    assert area == 3.5 / 4 and low < area < high <= 1
    assert all(math.isnan(value) for value in auc(groups[0], groups[1][:0]))


def test_parameters_are_refused():
    with pytest.raises(ParameterError, match=r"networks.0 = '3-2-1 tanh'"):
        XorParameters.parse(SMALL | {"networks": ["3-2-1 tanh"]})
    with pytest.raises(ParameterError, match="steps = 100: should be greater than or equal to 400"):
        XorParameters.parse(SMALL | {"steps": 100})


@pytest.fixture(scope="module")
def small():
    several = [p for p in PROTOCOLS if p.name in ("plain", "points", "plain, 2 inits", "pairs, 2 inits")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xor, "PROTOCOLS", several)
        yield xor.run(XorParameters.parse(SMALL))


def test_the_experiment_is_complete_and_every_method_has_the_same_budget(small):
    tuning = small[small["metric"] == "share"]
    assert set(tuning.groupby(["network", "protocol"]).size()) == {2}
    times = small[small["metric"] == "time"]
    assert set(times.groupby(["network", "method"]).size()) == {60}
    assert times["value"].max() <= 400 + CHECK_EVERY
    table = xor.headline_table(small)
    assert ((table["low"] <= table["solved"]) & (table["solved"] <= table["high"])).all()
    assert list(xor.search_table(small).columns) == [*SMALL["networks"], "mean"]


def test_tuning_and_test_inits_differ():
    p = XorParameters.parse(SMALL)
    one, other = (p.inits("2-2-1 tanh", purpose, 1)[0] for purpose in ("tuning", "test"))
    assert not torch.isin(one, other).any()


def test_every_method_is_a_row_and_every_figure_draws_the_experiment(small):
    assert {protocol.method for protocol in PROTOCOLS} == set(METHODS)
    assert set(small["method"]) == set(HEADLINES)
    for draw in figures.EXPERIMENT.figures.values():
        assert all(axis.has_data() for axis in draw(small).axes)
    curves = figures.xor(small).axes
    assert len(curves) == 4 and [axis.get_title() for axis in curves[:2]] == SMALL["networks"]
    assert [line.get_label() for line in curves[0].lines] == [METHODS[name].label for name in HEADLINES]

import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import weight_norm as old_weight_norm

from gtl_core import Guided, scout
from gtl_core.training import fit


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=0.3, generator=generator)
    return model


def tasks(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(12, 4, generator=generator), torch.arange(12) % 3) for _ in range(n)]


def train_one(model, task, lr=0.1):
    fit(model, *task, torch.optim.SGD(model.parameters(), lr=lr), epochs=3)


def add_task(model, task):
    """Moves every parameter by the task, a number."""
    with torch.no_grad():
        for p in model.parameters():
            p += task


def test_scouting_by_hand():
    d = scout(nn.Linear(2, 1), [1.0, -3.0], add_task)
    assert d.count == 2
    assert d.mean_square["weight"].tolist() == [[pytest.approx(5), pytest.approx(5)]]


def test_real_scouting_moves_something_and_leaves_the_zero_point_alone():
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}  # buffers too
    d = scout(model, tasks(4), train_one)
    assert d.moved and all(d.mean_square[name].any() for name in ("0.weight", "3.weight", "3.bias"))
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_every_scout_starts_from_the_zero_point():
    one_by_one = [scout(network(), [task], train_one) for task in tasks(3)]
    together = scout(network(), tasks(3), train_one)
    merged = one_by_one[0] + one_by_one[1] + one_by_one[2]
    assert all(torch.equal(merged.mean_square[n], together.mean_square[n]) for n in together.zero_point)


def test_the_executor_does_not_change_the_result():
    here = scout(network(), tasks(5), train_one)
    with ProcessPoolExecutor(
        2, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        there = scout(network(), tasks(5), train_one, executor=pool)
    assert here.count == there.count == 5
    for statistic in ("mean", "mean_abs", "mean_square"):
        one, other = getattr(here, statistic), getattr(there, statistic)
        assert all(torch.equal(one[n], other[n]) for n in one)


def test_diverged_scouts_are_reported_and_left_out():
    with pytest.warns(RuntimeWarning, match="1 of 3 scouts diverged"):
        d = scout(nn.Linear(2, 1), [1.0, math.nan, 1.0], add_task)
    assert (d.count, d.diverged) == (2, 1)


def test_refusals():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="at least one task"):
        scout(model, [], add_task)
    with pytest.raises(ValueError, match="all 2 scouts diverged"):
        scout(model, [math.inf, math.nan], add_task)
    with pytest.raises(ValueError, match="no parameter moved"):
        scout(model, [0.0], add_task)
    with pytest.raises(ValueError, match=r"the scout has shape .* for 'weight'"):
        scout(model, [1.0], lambda copy, task: setattr(copy, "weight", nn.Parameter(torch.ones(5, 2))))


def test_a_task_without_examples_is_refused():
    empty = torch.empty(0, 4), torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match="without examples"):
        scout(network(), [empty], partial(train_one, lr=0.1))


def adapted() -> nn.Sequential:
    """A base that stays as it is, and a small adapter that is trained."""
    model = nn.Sequential(nn.Linear(50, 50, bias=False), nn.Linear(50, 2))
    model[0].requires_grad_(False)
    return model


def test_scouts_share_what_is_frozen_and_only_the_rest_is_kept():
    model, copies = adapted(), []

    def train_adapter(copy, task):
        copies.append(copy)
        with torch.no_grad():
            copy[1].weight += task

    displacement = scout(model, [1.0, 3.0], train_adapter)
    assert all(copy[0].weight is model[0].weight and copy[1].weight is not model[1].weight for copy in copies)
    kept = [displacement.zero_point, displacement.mean, displacement.mean_abs, displacement.mean_square]
    assert [set(tensors) for tensors in kept] == [{"1.weight", "1.bias"}] * 4
    guide = displacement.guide()
    assert set(guide) == {"1.weight", "1.bias"} and displacement.mean["1.weight"].unique().tolist() == [2]
    Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide)  # what is frozen needs no guide


@pytest.mark.parametrize("n", [1, 2])
def test_a_scout_must_not_train_what_all_share(n):
    def train_everything(copy, task):
        with torch.no_grad():
            for p in copy.parameters():
                p += task

    with pytest.raises(ValueError, match=r"train_one trained '0.weight', which requires no gradient in the model"):
        scout(adapted(), [1.0] * n, train_everything)
    with pytest.raises(ValueError, match=r"train_one trained '0.weight'"):
        scout(adapted(), [1.0] * n, lambda copy, task: copy.requires_grad_())


def test_nothing_to_scout_is_said_before_any_training():
    for model in (nn.Identity(), adapted().requires_grad_(False)):
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            scout(model, [1.0], add_task)
    with pytest.raises(TypeError, match="model: must be an instance of Module, not of list"):
        scout([1.0], nn.Linear(2, 1), add_task)


class WithParameter(nn.Module):
    """A layer and one more parameter, of any kind."""

    def __init__(self, p: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.p = nn.Linear(4, 3), nn.Parameter(p, requires_grad=p.is_floating_point() or p.is_complex())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("p", [torch.zeros(0, 2), torch.ones(2, dtype=torch.bool), torch.arange(3)], ids=str)
def test_parameters_without_elements_or_that_cannot_be_trained_are_no_obstacle(p):
    model = WithParameter(p)
    for scope in ("network", "tensor"):
        guide = scout(model, tasks(2), train_one).guide(scope)
        Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide).step()
        assert guide["layer.weight"].max() == 1


def test_complex_parameters_are_refused_before_any_training():
    with pytest.raises(ValueError, match=r"'p' is torch.complex64: only parameters of real numbers can be guided"):
        scout(WithParameter(torch.ones(2, dtype=torch.complex64)), tasks(2), lambda copy, task: pytest.fail())


def pruned(model):
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    return "0.weight_orig"


def weight_normed(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        old_weight_norm(model[0])
    return "0.weight_v"


def parametrized(model):
    parametrizations.weight_norm(model[0])
    return "0.parametrizations.weight.original1"


def keeps_activations(model):
    model[0].register_forward_hook(lambda layer, inputs, output: setattr(layer, "activation", output))
    return "0.weight"


@pytest.mark.parametrize("change", [pruned, weight_normed, parametrized, keeps_activations])
def test_networks_that_keep_what_they_compute_are_scouted(change):
    model = network()
    name = change(model)
    model(tasks(1)[0][0])  # something to keep
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    displacement = scout(model, tasks(2), train_one)
    assert displacement.mean_square[name].any()
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


def test_a_network_that_cannot_be_copied_is_refused_in_one_line():
    model = network()
    model.kept = [model(tasks(1)[0][0])]  # in a list, where nobody finds it
    with pytest.raises(ValueError, match="the model cannot be copied, which every scout needs: Only Tensors created"):
        scout(model, tasks(1), train_one)

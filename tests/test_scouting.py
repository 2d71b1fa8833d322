import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from gtl_core import scout
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

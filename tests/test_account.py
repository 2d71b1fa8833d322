"""What a profile asks for and takes (`benchmarks.account`): operations by hand, and a table of a day one can redo."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from benchmarks import account
from benchmarks.account import Sample, Watched, common, counted, idle
from experiments.costs import multiplications
from experiments.models import cnn, conv4
from experiments.preparations.pretraining import Pretraining
from gtl_core import Recipe
from gtl_core._engine.blocks import compiled
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import rng
from gtl_core.training import fit


def test_a_product_and_a_sum_are_two_operations() -> None:
    layer, inputs = nn.Linear(3, 2), torch.rand(4, 3)
    with counted() as operations:
        layer(inputs)
    assert operations.total == 2 * 3 * 2 * 4
    with counted() as operations:
        layer(inputs).sum().backward()
    assert operations.total == 2 * (2 * 3 * 2 * 4)  # there, and the weights' gradient; nobody needs the inputs'


def test_way_back_of_a_convolution_in_groups() -> None:
    images, weight = torch.rand(2, 6, 5, 5, requires_grad=True), torch.rand(4, 3, 3, 3, requires_grad=True)
    with counted() as operations:
        conv2d(images, weight, groups=2).sum().backward()
    windows, products = 2 * 4 * 3 * 3, 3 * 3 * 3  # images x maps x places; a group has half of the six channels
    assert operations.total == 3 * 2 * windows * products


def _of_one_network(network: nn.Module) -> int:
    labels = torch.arange(7) % 5
    with counted() as operations:
        Recipe(0.01, 3)(network, (torch.rand(7, 1, 28, 28), labels))
    return operations.total


def _of_stacked(steps: int) -> int:
    network = stack([conv4(5, generator=rng(0))] * 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    labels = (torch.arange(7) % 5)[:, None].expand(-1, 3)
    with counted() as operations:
        fit(network, torch.rand(7, 3, 1, 28, 28), labels, optimizer, epochs=steps, loss=stacked_cross_entropy)
    return operations.total


@pytest.mark.parametrize(
    "work", [lambda: _of_one_network(conv4(5, generator=rng(0))), lambda: _of_one_network(cnn(5, generator=rng(0))),
             lambda: _of_stacked(1), lambda: _of_stacked(4)], ids=["conv4", "cnn", "stacked", "stacked, 4 steps"]
)  # fmt: skip
@pytest.mark.skipif(compiled() is None, reason="there is no C code here")
def test_c_code_is_counted_as_torchs_layers_are(work, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = work()
    compiled.cache_clear()
    monkeypatch.setenv("GTL_ENGINE", "torch")
    try:
        assert ours == work() > 0
    finally:
        compiled.cache_clear()


def test_table_of_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook of two minutes, two preparations of one each side by side, and a figure; at 10^9 a second."""
    monkeypatch.setattr(account, "CORES", 2)
    watched = {
        "prepare_a": Watched(60.0, 0.0),
        "prepare_b": Watched(60.0, 0.5),
        "notebook_n": Watched(120.0, 0.25),
        "figures_n": Watched(6.0, 0.5),
        "whole": Watched(186.0, 0.25),
    }
    done = {"prepare_a": 12 * 10**9, "prepare_b": 18 * 10**9, "notebook_n": 60 * 10**9}
    kinds = {"prepare_a": "training", "prepare_b": "training", "notebook_n": "n", "whole": "whole"}
    found = account.table(watched, done, kinds, peak=1e9).set_index("part")
    assert list(found["rules"]) == [2, 1, 1, 1]
    assert list(found["minutes"]) == [1.0, 2.0, 0.05, 3.1]
    assert list(found["bound"]) == [0.5, 1.0, 0.0, 1.5]
    assert list(found["share_of_peak"]) == [0.5, 0.5, 0.0, round(1.5 / 3.1, 3)]
    assert list(found["idle"]) == [0.25, 0.25, 0.5, 0.25]
    assert list(found["tflop"]) == [0.03, 0.06, 0.0, 0.09]
    of_one_image = 2 * 9 * 32 * (14**2 + 32 * (7**2 + 4**2 + 2**2)) + 2 * 128 * 5  # four blocks, and the head
    assert found.loc["n", "passes"] == round(60e9 / of_one_image / 1e6, 3)


def test_idle_time_between_samples() -> None:
    """Two cores: in the first ten seconds one of them is idle, in the next ten none."""
    samples = [Sample(0.0, 100.0, 500.0), Sample(10.0, 110.0, 520.0), Sample(20.0, 110.0, 540.0)]
    assert idle(samples, 0.0, 10.0) == 0.5
    assert idle(samples, 10.0, 20.0) == 0.0
    assert idle(samples, -5.0, 25.0) == idle(samples, 3.0, 12.0) == 0.25


def test_every_preparation_is_counted_in_the_rule_that_makes_it() -> None:
    steps = common.users(common.plan("quick"))
    groups = common.together(steps)
    assert sum(map(len, groups)) == len(steps) == len({step for group in groups for step in group})
    assert len({common.rule(group) for group in groups}) == len(groups) < len(steps)
    assert all({*map(frozenset, map(steps.get, group))} == {frozenset(steps[group[0]])} for group in groups)


def test_operations_of_a_preparation_by_hand(tmp_path) -> None:
    """Of its training steps: forward, weights' and inputs' derivatives, but for the images'; and of scoring."""
    step = Pretraining(dataset="glyphs", seed=0, channels=8, epochs=1)
    (tmp_path / "results/quick/prepared").mkdir(parents=True)
    n, held_out = (step.images(held).shape[:2].numel() for held in (False, True))
    first, *others = multiplications(conv4(len(step.images()), 8, generator=rng(0)))
    expected = 2 * (n * (2 * first + 3 * sum(others)) + held_out * (first + sum(others)))
    assert account.count("quick", tmp_path, [step]) == expected

"""Training in one call of the C code ends where torch's own steps end, or is left to torch."""

from functools import partial

import pytest
import torch
from torch import optim

from experiments.models import conv4
from gtl_core import Guide, Guided
from gtl_core._engine import engine, stack, stack_guide, stacked_cross_entropy
from gtl_core._engine.at_once import all_steps
from gtl_core.tasks import rng
from gtl_core.training import fit

needs_c = pytest.mark.skipif(engine() == "torch", reason="no compiler was there at installation")
RULES = {
    "descent": partial(optim.SGD, lr=0.05),
    "momentum": partial(optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": partial(optim.Adam, lr=1e-3, weight_decay=0.01),
    "adamw": partial(optim.AdamW, lr=1e-3, weight_decay=0.1),
}


def start(size: int, channels: int = 32):
    """A stacked network, and a guide with every kind of share: none, small, large, whole."""
    models = [conv4(5, channels, generator=rng(0, i)) for i in range(size)]
    shares = {n: torch.rand(p.shape, generator=rng(1, n)) ** 4 for n, p in models[0].named_parameters()}
    for g in shares.values():
        g.flatten()[0], g.flatten()[-1] = 0, 1
    return stack(models), stack_guide(Guide(shares), size)


def examples(n: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, size, 1, 28, 28, generator=rng(2)), torch.arange(n * size).reshape(n, size) % 5


def by_torch(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same loss, which the C code does not recognise."""
    return stacked_cross_entropy(outputs, labels)


@needs_c
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("n, size", [(1, 3), (5, 2), (9, 1)])
def test_the_steps_are_the_optimizer_s(name, guided, n, size):
    """Twice three steps, so that what the optimizer keeps has to be taken over and handed back."""
    ends = []
    for loss in (stacked_cross_entropy, by_torch):
        network, guide = start(size)
        optimizer = RULES[name](network.parameters())
        around = Guided(optimizer, network, guide) if guided else optimizer
        for seed in range(2):
            images, labels = examples(n, size)
            fit(network, images.roll(seed, 0), labels, around, epochs=3, loss=loss)
        kept = [t for state in optimizer.state.values() for t in state.values() if t is not None]
        ends.append(([p.detach() for p in network.parameters()], kept))
    first = [p.detach() for p in start(size)[0].parameters()]
    assert len(ends[0][1]) == len(ends[1][1])
    for found, expected in zip(ends[0][1], ends[1][1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    for found, expected, begin in zip(ends[0][0], ends[1][0], first, strict=True):
        way = (expected - begin).abs().max().item()
        assert way > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * way)


@needs_c
def test_what_has_no_share_stays_and_what_has_all_of_it_goes_as_alone():
    network, guide = start(2)
    alone, _ = start(2)
    begin = {name: p.detach().clone() for name, p in network.named_parameters()}
    images, labels = examples(4, 2)
    fit(
        network,
        images,
        labels,
        Guided(RULES["descent"](network.parameters()), network, guide),
        epochs=1,
        loss=stacked_cross_entropy,
    )
    fit(alone, images, labels, RULES["descent"](alone.parameters()), epochs=1, loss=stacked_cross_entropy)
    for (name, p), free in zip(network.named_parameters(), alone.parameters(), strict=True):
        g = guide[name]
        assert torch.equal(p[g == 0], begin[name][g == 0])
        assert torch.equal(p[g == 1], free[g == 1])


@needs_c
def test_it_is_the_c_code_that_did_it():
    network, _ = start(2)
    images, labels = examples(4, 2)
    optimizer = RULES["descent"](network.parameters())
    version = network.head.weight._version
    assert all_steps(network, images, labels, optimizer, 2)
    assert network.head.weight._version > version and network.head.weight.grad is None
    adam = RULES["adam"](network.parameters())
    assert not all_steps(network, images, labels, adam, 2), "torch makes the first step, and what Adam keeps"
    fit(network, images, labels, adam, epochs=1, loss=stacked_cross_entropy)
    assert all_steps(network, images, labels, adam, 2)
    assert {int(state["step"]) for state in adam.state.values()} == {3}


def other_layers(network, optimizer):
    network.append(torch.nn.ReLU())


def frozen(network, optimizer):
    network.head.bias.requires_grad_(False)


def hook_on_a_step(network, optimizer):
    optimizer.register_step_post_hook(lambda *_: None)


def hook_on_a_module(network, optimizer):
    network.body.register_forward_hook(lambda *_: None)


def hook_on_a_gradient(network, optimizer):
    network.head.bias.register_hook(lambda gradient: gradient)


def other_order(network, optimizer):
    network.body[3].weight.data = network.body[3].weight.data.contiguous()


def other_rule(network, optimizer):
    optimizer.param_groups[0]["nesterov"] = True


def rate_that_is_a_tensor(network, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)


def a_schedule(network, optimizer):
    optim.lr_scheduler.StepLR(optimizer, 1)


CHANGES = [
    *(other_layers, frozen, hook_on_a_step, hook_on_a_module, hook_on_a_gradient),
    *(other_order, other_rule, rate_that_is_a_tensor, a_schedule),
]


@needs_c
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_else_there_is_to_a_training_is_left_to_torch(change):
    network, _ = start(2)
    optimizer = RULES["descent"](network.parameters())
    images, labels = examples(3, 2)
    begin = [p.detach().clone() for p in network.parameters()]
    change(network, optimizer)
    assert not all_steps(network, images, labels, optimizer, 1)
    assert all(map(torch.equal, begin, network.parameters()))


@needs_c
def test_guides_that_stop_a_whole_tensor_or_scale_gradients_are_left_to_torch():
    network, guide = start(2)
    images, labels = examples(3, 2)
    stopped = Guide({**guide, "head.bias": torch.zeros_like(guide["head.bias"])})
    for it, on in ((stopped, "step"), (guide, "gradient")):
        guided = Guided(RULES["descent"](network.parameters()), network, it, on=on)
        assert guided.shares() is None and not all_steps(network, images, labels, guided, 1)
    guided = Guided(RULES["descent"](network.parameters()), network, guide)
    assert {*guided.shares()} == {*network.parameters()} and all_steps(network, images, labels, guided, 1)


@needs_c
def test_wrong_labels_are_left_to_torch_which_complains():
    network, _ = start(2)
    images, labels = examples(3, 2)
    for wrong in (labels + 5, labels - 1):
        with pytest.raises((IndexError, RuntimeError)):
            fit(network, images, wrong, RULES["descent"](network.parameters()), epochs=1, loss=stacked_cross_entropy)


@needs_c
def test_only_a_part_of_the_parameters_in_the_optimizer_is_left_to_torch():
    network, _ = start(2)
    images, labels = examples(3, 2)
    assert not all_steps(network, images, labels, RULES["descent"](network.head.parameters()), 1)

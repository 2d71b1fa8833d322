import pytest
import torch
from torch import nn

from experiments.models import conv4
from gtl_core import Displacement, Guided
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.tasks import rng
from gtl_core.training import accuracy, fit


def networks(n: int) -> list[nn.Sequential]:
    return [conv4(5, 8, generator=rng(0, i)) for i in range(n)]


def data(n_copies: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, n_copies, 1, 28, 28, generator=rng(1)), torch.arange(n * n_copies).reshape(n, n_copies) % 5


def test_every_copy_computes_what_it_would_alone():
    models = networks(3)
    inputs, labels = data(3)
    stacked = stack(models)
    outputs = stacked(inputs)
    for s, model in enumerate(models):
        torch.testing.assert_close(outputs[:, s], model(inputs[:, s]))
        assert accuracy(stacked, inputs, labels)[s] == accuracy(model, inputs[:, s], labels[:, s])
    assert [name for name, _ in stacked.named_parameters()] == [name for name, _ in models[0].named_parameters()]


@pytest.mark.parametrize(
    "make", [lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9), lambda ps: torch.optim.RMSprop(ps, lr=1e-3)]
)
@pytest.mark.parametrize("guided", [False, True])
def test_training_side_by_side_equals_training_one_by_one(make, guided):
    models = networks(3)
    displacement = Displacement(models[0])
    displacement.add(models[1])
    guide = displacement.guide(scope="tensor")
    inputs, labels = data(3)
    stacked = stack(models)
    optimizer = make(stacked.parameters())
    if guided:
        optimizer = Guided(optimizer, stacked, stack_guide(guide, 3))
    fit(stacked, inputs, labels, optimizer, epochs=4, loss=stacked_cross_entropy)
    together = dict(stacked.named_parameters())
    for s, model in enumerate(models):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = make(model.parameters())
        fit(model, inputs[:, s], labels[:, s], Guided(optimizer, model, guide) if guided else optimizer, epochs=4)
        for name, p in model.named_parameters():
            assert not torch.equal(p, before[name]) or not guide[name].any()
            torch.testing.assert_close(together[name][s], p, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_layers", [1, 2, 3], ids=["convolution", "normalisation", "ReLU"])
def test_a_network_may_end_in_images(n_layers):
    models = [model.body[:n_layers] for model in networks(2)]
    inputs, _ = data(2)
    stacked = stack(models)
    outputs = stacked(inputs)
    weights = torch.rand(outputs.shape, generator=rng(2))
    (outputs * weights).sum().backward()
    for s, model in enumerate(models):
        alone = model(inputs[:, s])
        torch.testing.assert_close(outputs[:, s], alone)
        (alone * weights[:, s]).sum().backward()
        for together, p in zip(stacked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(together.grad[s], p.grad, rtol=1e-4, atol=1e-4)


def test_stacking_copies_and_leaves_the_originals_alone():
    model = networks(1)[0]
    stacked = stack([model, model])
    with torch.no_grad():
        for p in stacked.parameters():
            p[0] += 1
    torch.testing.assert_close(dict(stacked.named_parameters())["head.weight"][1], model.head.weight)


def test_unknown_layers_are_refused_by_name():
    with pytest.raises(TypeError, match="cannot stack a BatchNorm2d"):
        stack([nn.Sequential(nn.BatchNorm2d(3))])

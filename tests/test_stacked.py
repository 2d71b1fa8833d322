from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from experiments.models import conv4, strided_conv4
from gtl_core import Displacement, Guided
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.tasks import rng
from gtl_core.training import accuracy, fit


def networks(n: int) -> list[nn.Sequential]:
    return [conv4(5, 8, generator=rng(0, i)) for i in range(n)]


def data(n_copies: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(n, n_copies, 1, 28, 28, generator=rng(1)), torch.arange(n * n_copies).reshape(n, n_copies) % 5


def mlp(activation: type[nn.Module], i: int) -> nn.Sequential:
    torch.manual_seed(i)
    return nn.Sequential(nn.Linear(784, 16), activation(), nn.Linear(16, 5))


def pooled(i: int) -> nn.Sequential:
    torch.manual_seed(i)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.MaxPool2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 169, 5))


ARCHITECTURES = {
    "conv4": lambda i: conv4(5, 8, generator=rng(0, i)),
    "strided_conv4": lambda i: strided_conv4(5, 8, generator=rng(0, i)),
    "pooled": pooled,
    "head": lambda i: nn.Linear(784, 5),
    **{kind.__name__: partial(mlp, kind) for kind in (nn.ReLU, nn.Tanh, nn.Sigmoid)},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("n_copies", [1, 4, 8, 20])
@pytest.mark.parametrize("n", [1, 5, 25, 75])
def test_every_copy_has_the_gradient_that_it_would_have_alone(name, n_copies, n):
    models = [ARCHITECTURES[name](i).double() for i in range(n_copies)]  # in floats, an activation may round across 0
    inputs, labels = data(n_copies, n)
    inputs = inputs.double() if "conv4" in name or name == "pooled" else inputs.double().flatten(2)
    stacked = stack(models)
    stacked_cross_entropy(stacked(inputs), labels).backward()
    for s, model in enumerate(models):
        cross_entropy(model(inputs[:, s]), labels[:, s]).backward()
        largest = max(p.grad.abs().max().item() for p in model.parameters())
        for together, p in zip(stacked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(together.grad[s], p.grad, rtol=1e-5, atol=1e-5 * largest)
            assert together.grad.stride() == together.stride()  # so that optimizers need not rearrange it


def test_gradients_of_gradients_and_of_parameters_from_elsewhere():
    """One step of descent, and the derivative of the loss after it with respect to where it began."""
    models = [mlp(nn.Tanh, i).double() for i in range(3)]
    inputs, labels = data(3)
    inputs = inputs.double().flatten(2)

    def after_a_step(model, parameters, x, loss) -> list[torch.Tensor]:
        gradients = torch.autograd.grad(
            loss(functional_call(model, parameters, (x,))), parameters.values(), create_graph=True
        )
        moved = {name: p - 0.1 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
        return list(torch.autograd.grad(loss(functional_call(model, moved, (x,))), parameters.values()))

    stacked = stack(models)
    found = after_a_step(
        stacked, dict(stacked.named_parameters()), inputs, lambda outputs: stacked_cross_entropy(outputs, labels)
    )
    for s, model in enumerate(models):
        alone = after_a_step(
            model,
            dict(model.named_parameters()),
            inputs[:, s],
            lambda outputs, s=s: cross_entropy(outputs, labels[:, s]),
        )
        for together, one in zip(found, alone, strict=True):
            torch.testing.assert_close(together[s], one)


def test_two_calls_before_one_backward_and_a_penalty():
    models = networks(2)
    inputs, labels = data(2)
    stacked = stack(models)
    first, second = stacked(inputs), stacked(inputs.flip(0))
    loss = stacked_cross_entropy(first, labels) + stacked_cross_entropy(second, labels)
    (loss + sum((p**2).sum() for p in stacked.parameters())).backward()
    for s, model in enumerate(models):
        loss = cross_entropy(model(inputs[:, s]), labels[:, s]) + cross_entropy(
            model(inputs[:, s].flip(0)), labels[:, s]
        )
        (loss + sum((p**2).sum() for p in model.parameters())).backward()
        for together, p in zip(stacked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(together.grad[s], p.grad, rtol=1e-4, atol=1e-4)


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

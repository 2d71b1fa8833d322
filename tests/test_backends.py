import logging
from functools import partial

import pytest
import torch
from torch import nn

from gtl_core import scout
from gtl_core.backends import groups
from gtl_core.models import conv4
from gtl_core.tasks import rng
from gtl_core.training import Recipe, fit

RECIPES = {
    "SGD": Recipe(0.05, epochs=4),
    "momentum": Recipe(0.05, epochs=2, batch_size=4, options={"momentum": 0.9, "weight_decay": 0.01}),
    "Adam": Recipe(0.001, epochs=2, batch_size=4, optimizer=torch.optim.Adam),
    "RMSprop": Recipe(0.001, epochs=2, optimizer=torch.optim.RMSprop),
    "mse": Recipe(0.05, epochs=3, loss=nn.MSELoss()),
}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()), nn.Linear(8, 3)
    )


def pooled() -> nn.Sequential:
    """Has a layer, max-pooling, that is left to autograd."""
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
    ]
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 3))


NETWORKS = {
    "MLP": (mlp, (6,)),
    "conv4": (lambda: conv4(3, 8, generator=rng(0)), (1, 28, 28)),
    "pooled": (pooled, (1, 28, 28)),
}


def tasks(n: int, shape: tuple[int, ...], examples: int = 9, recipe: Recipe = RECIPES["SGD"]) -> list:
    labels = [torch.randint(3, (examples,), generator=rng(2, i)) for i in range(n)]
    if isinstance(recipe.loss, nn.MSELoss):
        labels = [nn.functional.one_hot(y, 3).float() for y in labels]
    return [(torch.randn(examples, *shape, generator=rng(1, i)), y) for i, y in enumerate(labels)]


@pytest.mark.parametrize("backend", ["stacked", "vmap"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_every_backend_finds_what_the_loop_finds(network, recipe, backend):
    make, shape = NETWORKS[network]
    some = tasks(6, shape, recipe=recipe)  # a full group and a smaller one
    model = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    one_by_one = scout(model, some, recipe, backend="loop")
    side_by_side = scout(model, some, recipe, backend=backend)
    assert side_by_side.count == one_by_one.count == 6
    for name, expected in one_by_one.mean.items():
        assert expected.any()
        scale = expected.abs().max().item()
        torch.testing.assert_close(side_by_side.mean[name], expected, rtol=1e-3, atol=1e-3 * scale)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_a_recipe_is_a_function_that_trains_and_shuffles_as_fit_does():
    model, ((inputs, labels),) = mlp(), tasks(1, (6,))
    recipe = Recipe(0.1, epochs=2, batch_size=4, seed=5)
    displacement = scout(model, [(inputs, labels)], recipe, backend="loop")
    options = {"epochs": 2, "batch_size": 4, "generator": torch.Generator().manual_seed(5)}
    fit(model, inputs, labels, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    for name, p in model.named_parameters():
        assert torch.equal(displacement.mean[name], p.detach() - displacement.zero_point[name])


def test_tasks_of_other_sizes_begin_another_group():
    some = [(torch.zeros(n, 6), torch.zeros(n)) for n in (2, 2, 2, 3, 2)]
    assert [[len(x) for x, _ in group] for group in groups(some, 2)] == [[2, 2], [2], [3], [2]]


def test_a_diverging_scout_leaves_its_neighbours_alone():
    good = tasks(3, (6,))
    bad = (torch.full((9, 6), torch.inf), good[0][1])
    with pytest.warns(RuntimeWarning, match="1 of 4 scouts diverged"):
        together = scout(mlp(), [good[0], bad, *good[1:]], RECIPES["SGD"], backend="stacked")
    alone = scout(mlp(), good, RECIPES["SGD"], backend="stacked")
    for name, expected in alone.mean.items():
        torch.testing.assert_close(together.mean[name], expected)


def test_auto_says_what_it_chose(caplog):
    with caplog.at_level(logging.INFO, "gtl_core.backends"):
        scout(mlp(), tasks(3, (6,)), RECIPES["SGD"])
        unknown = nn.Sequential(nn.Linear(6, 3), nn.Softplus())
        scout(unknown, tasks(2, (6,)), RECIPES["SGD"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("backend ") and "'stacked'" in messages[0]
    assert "backend stacked cannot train this network: cannot stack a Softplus" in messages[1]
    assert "'stacked'" not in messages[2] and "'vmap'" in messages[2]


def test_refusals():
    some, recipe = tasks(2, (6,)), RECIPES["SGD"]
    refused = partial(scout, mlp(), some)
    with pytest.raises(ValueError, match="backend = 'stack': must be one of auto, loop, stacked, vmap"):
        refused(recipe, backend="stack")
    with pytest.raises(TypeError, match="backend = 'stacked' needs a Recipe"):
        refused(lambda model, task: recipe(model, task), backend="stacked")
    with pytest.raises(TypeError, match="cannot stack a Softplus"):
        scout(nn.Sequential(nn.Linear(6, 3), nn.Softplus()), some, recipe, backend="stacked")
    frozen = mlp()
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(TypeError, match="shared or frozen"):
        scout(frozen, some, recipe, backend="stacked")
    left = scout(frozen, some, recipe, backend="vmap")
    assert not left.mean["0.weight"].any() and left.mean["0.bias"].any()
    adafactor = Recipe(0.1, epochs=1, optimizer=torch.optim.Adafactor)
    with pytest.raises(TypeError, match="Adafactor looks at whole tensors"):
        refused(adafactor, backend="stacked")

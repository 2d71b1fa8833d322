from functools import partial

import pytest
import torch
from torch import nn

from experiments.models import conv4
from gtl_core import scout
from gtl_core._engine.scouts import in_groups
from gtl_core.tasks import rng
from gtl_core.training import Recipe, fit

RECIPES = {
    "SGD": Recipe(0.05, epochs=4),
    "momentum": Recipe(0.05, epochs=2, batch_size=4, options={"momentum": 0.9, "weight_decay": 0.01}),
    "Adam": Recipe(0.001, epochs=2, batch_size=4, optimizer=torch.optim.Adam),
    "RMSprop": Recipe(0.001, epochs=2, optimizer=torch.optim.RMSprop),
    "mse": Recipe(0.05, epochs=3, loss=nn.MSELoss()),
    "weighted": Recipe(0.05, epochs=3, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]))),
    "ignoring": Recipe(0.05, epochs=3),  # some labels are -100
}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh()), nn.Linear(8, 3)
    )


def pooled() -> nn.Sequential:
    torch.manual_seed(0)
    body = [
        nn.Conv2d(1, 4, 3),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
    ]
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 3))


def twice() -> nn.Sequential:
    """Has one ReLU in two places, and a normalisation and a flattening of vectors."""
    torch.manual_seed(0)
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Linear(6, 8), relu, nn.GroupNorm(2, 8), nn.Linear(8, 8), relu, nn.Flatten(), nn.Linear(8, 3)
    )


NETWORKS = {
    "twice": (twice, (6,)),
    "MLP": (mlp, (6,)),
    "conv4": (lambda: conv4(3, 8, generator=rng(0)), (1, 28, 28)),
    "pooled": (pooled, (1, 28, 28)),
}


def tasks(n: int, shape: tuple[int, ...], examples: int = 9, recipe: Recipe = RECIPES["SGD"]) -> list:
    labels = [torch.randint(3, (examples,), generator=rng(2, i)) for i in range(n)]
    if isinstance(recipe.loss, nn.MSELoss):
        labels = [nn.functional.one_hot(y, 3).float() for y in labels]
    if recipe is RECIPES["ignoring"]:
        labels[0][:7] = -100
    return [(torch.randn(examples, *shape, generator=rng(1, i)), y) for i, y in enumerate(labels)]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_side_by_side_finds_what_one_by_one_finds(network, recipe):
    make, shape = NETWORKS[network]
    some = tasks(5, shape, recipe=recipe)  # a full group and a smaller one
    model = make()
    before = {name: p.clone() for name, p in model.named_parameters()}
    one_by_one = scout(model, some, recipe)
    side_by_side = scout(model, some, recipe, side_by_side=4)
    assert side_by_side.count == one_by_one.count == 5
    for name, expected in one_by_one.mean.items():
        assert expected.any()
        scale = expected.abs().max().item()
        torch.testing.assert_close(side_by_side.mean[name], expected, rtol=1e-3, atol=1e-3 * scale)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_a_recipe_is_a_function_that_trains_and_shuffles_as_fit_does():
    model, ((inputs, labels),) = mlp(), tasks(1, (6,))
    recipe = Recipe(0.1, epochs=2, batch_size=4, seed=5)
    displacement = scout(model, [(inputs, labels)], recipe)
    options = {"epochs": 2, "batch_size": 4, "generator": torch.Generator().manual_seed(5)}
    fit(model, inputs, labels, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    for name, p in model.named_parameters():
        assert torch.equal(displacement.mean[name], p.detach() - displacement.zero_point[name])


def test_tasks_of_other_sizes_begin_another_group():
    some = [(torch.zeros(n, 6), torch.zeros(n)) for n in (2, 2, 2, 3, 2)]
    assert [[len(x) for x, _ in group] for group in in_groups(some, 2)] == [[2, 2], [2], [3], [2]]


def test_a_diverging_scout_leaves_its_neighbours_alone():
    good = tasks(3, (6,))
    bad = (torch.full((9, 6), torch.inf), good[0][1])
    with pytest.warns(RuntimeWarning, match="1 of 4 scouts diverged"):
        together = scout(mlp(), [good[0], bad, *good[1:]], RECIPES["SGD"], side_by_side=4)
    alone = scout(mlp(), good, RECIPES["SGD"], side_by_side=4)
    for name, expected in alone.mean.items():
        torch.testing.assert_close(together.mean[name], expected)


def test_what_cannot_be_stacked_trains_one_by_one_only():
    """Each would train side by side, but not as it does alone."""
    some, recipe = tasks(3, (1, 9, 9)), RECIPES["SGD"]
    hooked = nn.Conv2d(1, 2, 3)
    hooked.register_forward_hook(lambda layer, inputs, output: 0.1 * output)
    tied = nn.Conv2d(1, 1, 3, padding=1)
    bodies = {
        "hooks": [hooked, nn.Flatten(), nn.Linear(98, 3)],
        "hook": [torch.nn.utils.spectral_norm(nn.Conv2d(1, 2, 3)), nn.Flatten(), nn.Linear(98, 3)],
        "dilation": [nn.Conv2d(1, 2, 1), nn.MaxPool2d(2, 2, dilation=2), nn.Flatten(), nn.Linear(32, 3)],
        "padding": [nn.Conv2d(1, 2, 3, padding="same"), nn.Flatten(), nn.Linear(162, 3)],
        "shared": [tied, nn.ReLU(), tied, nn.Flatten(), nn.Linear(81, 3)],
    }
    for reason, layers in bodies.items():
        model = nn.Sequential(*layers)
        with pytest.raises(TypeError, match=f"cannot stack .*{reason}"):
            scout(model, some, recipe, side_by_side=3)
        scout(model, some, recipe)


def test_a_recipe_says_what_a_task_must_be():
    dataset = torch.utils.data.TensorDataset(*tasks(1, (6,))[0])
    with pytest.raises(TypeError, match=r"two tensors \(inputs, labels\), and this task is a TensorDataset"):
        scout(mlp(), [dataset], RECIPES["SGD"])


def test_a_recipe_takes_numpy_arrays_and_partially_applied_optimizers():
    some = tasks(3, (6,))
    plain = scout(mlp(), some, Recipe(0.1, 3, options={"momentum": 0.9}))
    recipe = Recipe(0.1, 3, optimizer=partial(torch.optim.SGD, momentum=0.9))
    arrays = [(inputs.double().numpy(), labels.numpy()) for inputs, labels in some]
    for n in (1, 3):
        found = scout(mlp(), arrays, recipe, side_by_side=n)
        for name, square in plain.mean_square.items():
            torch.testing.assert_close(found.mean_square[name], square)
    with pytest.raises(TypeError, match="LBFGS looks at whole tensors"):
        scout(mlp(), some, Recipe(0.1, 1, optimizer=partial(torch.optim.LBFGS, max_iter=2)), side_by_side=3)


def test_what_is_frozen_stays_so():
    frozen, some = mlp(), tasks(3, (6,))
    frozen[0].weight.requires_grad_(False)
    alone, together = (scout(frozen, some, RECIPES["momentum"], side_by_side=n) for n in (1, 3))
    assert "0.weight" not in together.mean and together.mean["0.bias"].any()
    torch.testing.assert_close(together.mean["0.bias"], alone.mean["0.bias"])


def test_refusals():
    model, some, recipe = mlp(), tasks(2, (6,)), RECIPES["SGD"]
    with pytest.raises(ValueError, match="side_by_side = 0: must be at least 1"):
        scout(model, some, recipe, side_by_side=0)
    with pytest.raises(TypeError, match="side by side need a Recipe"):
        scout(model, some, lambda model, task: recipe(model, task), side_by_side=2)
    with pytest.raises(TypeError, match="cannot stack a Softplus"):
        scout(nn.Sequential(nn.Linear(6, 3), nn.Softplus()), some, recipe, side_by_side=2)
    with pytest.raises(TypeError, match="cannot stack a GroupNorm that is not in a Sequential"):
        scout(nn.GroupNorm(2, 6), some, recipe, side_by_side=2)
    with pytest.raises(TypeError, match="Adafactor looks at whole tensors"):
        scout(model, some, Recipe(0.1, epochs=1, optimizer=torch.optim.Adafactor), side_by_side=2)

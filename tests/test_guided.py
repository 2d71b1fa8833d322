import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from gtl_core import Guide, Guided

OPTIMIZERS = {
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda ps: torch.optim.Adam(ps, lr=0.01, weight_decay=0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.1),
    "adamw_fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, momentum=0.9, weight_decay=0.01),
    "adagrad": lambda ps: torch.optim.Adagrad(ps, lr=0.1, weight_decay=0.01),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
    for p in model.parameters():
        nn.init.normal_(p, std=0.5, generator=generator)
    return model


def uniform(model: nn.Module, g: float) -> Guide:
    return Guide({name: torch.full_like(p, g) for name, p in model.named_parameters()})


def mixed(model: nn.Module) -> Guide:
    """0, 1/2 and 1 side by side in every tensor; the last tensor all zeros, the first all ones."""
    guide = {n: (torch.arange(p.numel()) % 3 / 2).reshape(p.shape) for n, p in model.named_parameters()}
    names = list(guide)
    guide[names[0]] = torch.ones_like(guide[names[0]])
    guide[names[-1]] = torch.zeros_like(guide[names[-1]])
    return Guide(guide)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, generator=generator), torch.randn(8, 2, generator=generator)


def backward(model: nn.Module, step: int) -> torch.Tensor:
    inputs, targets = batch(step)
    loss = mse_loss(model(inputs), targets)
    loss.backward()
    return loss


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> dict[str, torch.Tensor]:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
    return parameters(model)


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@every_optimizer
def test_all_ones_is_the_plain_optimizer_to_the_last_bit(make):
    plain, guided = network(), network()
    expected = train(plain, make(plain.parameters()), range(10))
    assert same(expected, train(guided, Guided(make(guided.parameters()), guided, uniform(guided, 1)), range(10)))


@every_optimizer
def test_all_zeros_freezes_to_the_last_bit(make):
    model = network()
    before = parameters(model)
    assert same(before, train(model, Guided(make(model.parameters()), model, uniform(model, 0)), range(10)))


@every_optimizer
def test_zeros_and_ones_inside_one_tensor_are_exact(make):
    """One step, because afterwards the gradients of the two runs differ."""
    plain, guided = network(), network()
    before = parameters(plain)
    after = train(plain, make(plain.parameters()), range(1))
    guide = mixed(guided)
    result = train(guided, Guided(make(guided.parameters()), guided, guide), range(1))
    for name, g in guide.items():
        assert torch.equal(result[name][g == 0], before[name][g == 0])
        assert torch.equal(result[name][g == 1], after[name][g == 1])


@every_optimizer
def test_a_half_makes_half_the_step(make):
    plain, guided = network(), network()
    before = parameters(plain)
    optimizer = make(plain.parameters())
    guided_optimizer = Guided(make(guided.parameters()), guided, uniform(guided, 0.5))
    for step in range(5):
        for p, q in zip(plain.parameters(), guided.parameters(), strict=True):
            p.data.copy_(q)  # both step from the same point, with the momentum of the same past
        before = parameters(guided)
        after = train(plain, optimizer, range(step, step + 1))
        result = train(guided, guided_optimizer, range(step, step + 1))
        for name in before:
            torch.testing.assert_close(result[name], (before[name] + after[name]) / 2, rtol=1e-6, atol=1e-7)


@every_optimizer
def test_small_values_are_not_rounded_away(make):
    plain, guided = network(), network()
    before = parameters(plain)
    after = train(plain, make(plain.parameters()), range(1))
    result = train(guided, Guided(make(guided.parameters()), guided, uniform(guided, 1e-3)), range(1))
    for name in before:
        expected = before[name].double() + 1e-3 * (after[name].double() - before[name].double())
        torch.testing.assert_close(result[name].double(), expected, rtol=1e-6, atol=1e-8)


def test_one_step_by_hand():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data = torch.tensor([[1.0, 1.0]])
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.5), model, Guide({"weight": torch.tensor([[1, 0.25]])}))
    model.weight.grad = torch.tensor([[2.0, 2.0]])
    optimizer.step()  # a plain step would be -0.5 * 2 = -1 for both
    assert model.weight.tolist() == [[0.0, 0.75]]


def test_guiding_the_gradient_does_nothing_under_adam_and_guiding_the_step_does():
    """The authors' variant, measured: Adam divides a constant factor out again."""
    moved = {}
    for on in ("gradient", "step"):
        for g in (1.0, 0.01):
            model = network()
            before = parameters(model)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01, eps=1e-12)
            after = train(model, Guided(optimizer, model, uniform(model, g), on=on), range(5))
            moved[on, g] = sum((after[n] - before[n]).abs().sum().item() for n in before)
    assert moved["gradient", 0.01] == pytest.approx(moved["gradient", 1.0], rel=0.2)
    assert moved["step", 0.01] == pytest.approx(0.01 * moved["step", 1.0], rel=0.2)


def test_guiding_the_gradient_scales_plain_sgd_exactly_as_documented():
    model = network()
    guide = mixed(model)
    before = parameters(model)
    backward(model, 0)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide, on="gradient").step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - 0.1 * guide[name] * gradients[name])


def test_gradients_survive_the_step():
    """Frozen tensors lose theirs only while the wrapped optimizer looks."""
    model = network()
    optimizer = Guided(torch.optim.AdamW(model.parameters()), model, mixed(model))
    backward(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert all(torch.equal(before[name], p.grad) for name, p in model.named_parameters())
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("on", ["step", "gradient"])
def test_closures(on):
    with_closure, without = network(), network()
    one = Guided(torch.optim.AdamW(with_closure.parameters(), lr=0.01), with_closure, mixed(with_closure), on=on)
    other = Guided(torch.optim.AdamW(without.parameters(), lr=0.01), without, mixed(without), on=on)
    for step in range(3):

        def closure(step=step):
            one.zero_grad()
            return backward(with_closure, step)

        loss = one.step(closure)
        assert loss.item() > 0
    assert same(train(without, other, range(3)), parameters(with_closure))


def test_lbfgs_is_refused_by_name():
    model = network()
    with pytest.raises(ValueError, match="cannot wrap LBFGS"):
        Guided(torch.optim.LBFGS(model.parameters()), model, uniform(model, 1))


def test_parameter_groups_keep_their_own_settings():
    def groups(model):
        return torch.optim.SGD(
            [{"params": model[0].parameters()}, {"params": model[3].parameters(), "lr": 0.5}], lr=0.1
        )

    plain, guided = network(), network()
    expected = train(plain, groups(plain), range(3))
    optimizer = Guided(groups(guided), guided, uniform(guided, 1))
    assert same(expected, train(guided, optimizer, range(3)))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


def test_an_added_group_is_guided_too():
    model = network()
    optimizer = Guided(torch.optim.SGD(model[0].parameters(), lr=0.1), model, uniform(model, 0))
    optimizer.add_param_group({"params": model[3].parameters()})
    before = parameters(model)
    assert same(before, train(model, optimizer, range(2)))


def test_parameters_without_gradient_are_left_alone():
    model = network()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    after = train(model, Guided(torch.optim.AdamW(model.parameters()), model, uniform(model, 0.5)), range(3))
    assert torch.equal(before, after["0.weight"])


def test_tied_weights_step_once():
    def tied():
        model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 2))
        for p in model.parameters():
            nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
        model[2].weight = model[0].weight
        return model

    plain, guided = tied(), tied()
    before = parameters(plain)
    after = train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), range(1))
    result = train(guided, Guided(torch.optim.SGD(guided.parameters(), lr=0.1), guided, uniform(guided, 0.5)), range(1))
    assert guided[2].weight is guided[0].weight and "2.weight" not in result
    torch.testing.assert_close(result["0.weight"], (before["0.weight"] + after["0.weight"]) / 2)


@every_optimizer
def test_resuming_from_a_checkpoint_continues_to_the_last_bit(make):
    model = network()
    optimizer = Guided(make(model.parameters()), model, mixed(model))
    train(model, optimizer, range(3))
    checkpoint = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train(model, optimizer, range(3, 6))

    resumed = network()
    again = Guided(make(resumed.parameters()), resumed, mixed(resumed))
    resumed.load_state_dict(checkpoint[0])
    again.load_state_dict(checkpoint[1])
    assert same(expected, train(resumed, again, range(3, 6)))


def test_deepcopy_trains_on_as_the_original():
    model = network()
    optimizer = Guided(torch.optim.AdamW(model.parameters()), model, mixed(model))
    train(model, optimizer, range(2))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    assert same(train(model, optimizer, range(2, 5)), train(twin, twin_optimizer, range(2, 5)))
    assert twin_optimizer.param_groups[0]["params"][0] is twin[0].weight


def test_schedulers_set_the_rate_of_the_wrapped_optimizer():
    plain, guided = network(), network()
    one = torch.optim.SGD(plain.parameters(), lr=0.1)
    other = Guided(torch.optim.SGD(guided.parameters(), lr=0.1), guided, uniform(guided, 1))
    schedules = [torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=6) for o in (one, other)]
    for step in range(5):
        train(plain, one, range(step, step + 1))
        train(guided, other, range(step, step + 1))
        for schedule in schedules:
            schedule.step()
    assert other.optimizer.param_groups[0]["lr"] == one.param_groups[0]["lr"] != 0.1
    assert same(parameters(plain), parameters(guided))


def test_grad_scaler_unscales_and_skips_overflows():
    plain, guided = network(), network()
    expected = train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), range(1))
    optimizer = Guided(torch.optim.SGD(guided.parameters(), lr=0.1), guided, uniform(guided, 1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer.zero_grad()
    inputs, targets = batch(0)
    scaler.scale(mse_loss(guided(inputs), targets)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.allclose(expected[n], p) for n, p in parameters(guided).items())

    before = parameters(guided)
    backward(guided, 1)
    guided[0].weight.grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()
    assert same(before, parameters(guided)) and scaler.get_scale() < 1024


def test_hooks_run_around_the_guided_step():
    model = network()
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, uniform(model, 0.5))
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model[0].weight.clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append(model[0].weight.clone()))
    after = train(model, optimizer, range(1))
    assert not torch.equal(seen[0], after["0.weight"]) and torch.equal(seen[1], after["0.weight"])


def test_batchnorm_statistics_are_not_guided():
    plain, guided = network(), network()
    train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), range(1))
    train(guided, Guided(torch.optim.SGD(guided.parameters(), lr=0.1), guided, uniform(guided, 0)), range(1))
    assert torch.equal(plain[1].running_mean, guided[1].running_mean)


def test_double_precision_models_take_single_precision_guides():
    model = network().double()
    guide = Guide({n: torch.full(p.shape, 0.5) for n, p in model.named_parameters()})
    before = parameters(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide).step()
    for name, p in parameters(model).items():
        torch.testing.assert_close(p, before[name] - 0.05)


def test_the_guide_is_not_modified():
    model = network()
    guide = mixed(model)
    before = {name: g.clone() for name, g in guide.items()}
    train(model, Guided(torch.optim.AdamW(model.parameters()), model, guide), range(3))
    assert same(before, dict(guide))


def test_misfits_are_named():
    model = network()
    fits = dict(uniform(model, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"guide has no entry for '3.bias'"):
        Guided(optimizer, model, Guide({n: g for n, g in fits.items() if n != "3.bias"}))
    with pytest.raises(ValueError, match=r"guide has an entry for 'head', which the model does not have"):
        Guided(optimizer, model, Guide(fits | {"head": torch.ones(1)}))
    with pytest.raises(ValueError, match=r"guide has shape \(6, 1\) for '0.weight', the model \(6, 3\)"):
        Guided(optimizer, model, Guide(fits | {"0.weight": torch.ones(6, 1)}))  # would broadcast silently
    with pytest.raises(ValueError, match="not in the model"):
        Guided(torch.optim.SGD(network().parameters(), lr=0.1), model, Guide(fits))
    with pytest.raises(ValueError, match="on = 'weights': must be"):
        Guided(optimizer, model, Guide(fits), on="weights")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_law_holds_on_cuda():
    for make in OPTIMIZERS.values():
        plain, guided = network().cuda(), network().cuda()
        guide = mixed(guided.cpu()).to("cuda")
        guided.cuda()
        before = parameters(plain)
        inputs, targets = (t.cuda() for t in batch(0))
        optimizers = [make(plain.parameters()), Guided(make(guided.parameters()), guided, guide)]
        for model, optimizer in zip((plain, guided), optimizers, strict=True):
            mse_loss(model(inputs), targets).backward()
            optimizer.step()
        after, result = parameters(plain), parameters(guided)
        for name, g in guide.items():
            assert torch.equal(result[name][g == 0], before[name][g == 0])
            torch.testing.assert_close(result[name][g == 1], after[name][g == 1])


def test_a_copy_made_after_a_scheduler_steps_itself():
    """Schedulers wrap the step of the optimizer that they were given; the copy must not inherit the wrapper."""
    model = network()
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, uniform(model, 0.5))
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    before = parameters(model)
    train(twin, twin_optimizer, range(1))
    assert same(before, parameters(model)) and not same(before, parameters(twin))
    pickle.dumps(optimizer)


def test_a_refused_group_is_not_added():
    model = network()
    optimizer = Guided(torch.optim.SGD(model[0].parameters(), lr=0.1), model, uniform(model, 0.5))
    with pytest.raises(ValueError, match="not in the model"):
        optimizer.add_param_group({"params": nn.Linear(2, 2).parameters()})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, range(1))

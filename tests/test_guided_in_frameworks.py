"""What frameworks and other people's optimizers do to an optimizer after it was made, and what `Guided` makes of it."""

import copy
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn.functional import mse_loss
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gtl_core import Displacement, Guide, Guided
from gtl_core.wrapping import keeps_own_weights


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def guide_of(model: nn.Module, g: float, **others: float) -> Guide:
    """g everywhere, but for the parameters named in ``others`` (``body_weight=0`` for body.weight)."""
    values = {name: others.get(name.replace(".", "_"), g) for name, _ in model.named_parameters()}
    return Guide({name: torch.full(p.shape, values[name]) for name, p in model.named_parameters()})


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    dtype = next(model.parameters()).dtype
    inputs = torch.arange(15.0, dtype=dtype).view(5, 3) / 15
    optimizer.zero_grad()
    mse_loss(model(inputs), torch.ones(5, 2, dtype=dtype)).backward()
    optimizer.step()


def parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_half_a_step(model, guided, plain, optimizer) -> None:
    """Guided by 1/2, a network goes half as far as its twin without a guide."""
    before = parameters(model)
    step(model, guided)
    step(plain, optimizer)
    for name, p in plain.named_parameters():
        torch.testing.assert_close(model.get_parameter(name), (before[name] + p) / 2)


# 1. Parameters that are replaced, moved, extended or made anew after `Guided` was.


def test_parameters_put_into_a_group_by_hand_are_guided():
    model = network()
    optimizer = Guided(torch.optim.SGD(model[0].parameters(), lr=0.1), model, guide_of(model, 0.0))
    optimizer.param_groups[0]["params"].extend(model[2].parameters())
    before = parameters(model)
    step(model, optimizer)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_parameters_made_anew_are_guided_by_their_names():
    """As accelerate does where it shards: other tensors in the module, and these in the groups."""
    model, plain = network(), network()
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide_of(model, 0.5))
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(layer.weight.detach().clone())
    optimizer.param_groups[0]["params"][:] = model.parameters()
    assert_half_a_step(model, optimizer, plain, torch.optim.SGD(plain.parameters(), lr=0.1))


def test_a_new_head_needs_a_guide_or_none():
    for unguided in ("error", "free"):
        model = network()
        values = guide_of(model, 0.5) if unguided == "error" else guide_of(model, 0.5).without("2")
        optimizer = Guided(torch.optim.SGD(model[0].parameters(), lr=0.1), model, values, unguided=unguided)
        model[2] = nn.Linear(4, 7)
        if unguided == "error":
            with pytest.raises(ValueError, match=r"guide has shape \(2, 4\) for '2.weight', the model \(7, 4\)"):
                optimizer.add_param_group({"params": model[2].parameters()})
        else:
            optimizer.add_param_group({"params": model[2].parameters()})
            assert len(optimizer.param_groups) == 2


def test_strangers_in_a_group_are_refused_at_the_next_step():
    model = network()
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide_of(model, 0.5))
    optimizer.param_groups[0]["params"].append(nn.Parameter(torch.ones(9)))
    with pytest.raises(ValueError, match=r"holds a parameter of shape \(9,\) that is not in the model"):
        step(model, optimizer)


def test_what_is_unfrozen_later_needs_a_guide():
    model = network()
    model[0].requires_grad_(False)
    head = guide_of(model, 0.5).only("2")
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, head)
    step(model, optimizer)
    model[0].requires_grad_()
    with pytest.raises(ValueError, match=r"guide has no entry for '0.weight'"):
        step(model, optimizer)


# 2. Optimizers with weights of their own.


class Lookahead(torch.optim.SGD):
    """Every k steps, slow weights go half of the way to the parameters, which go on from there (Zhang et al. 2019)."""

    def __init__(self, params, lr, k=5):
        super().__init__(params, lr)
        self.k, self.n_steps = k, 0

    @torch.no_grad()
    def step(self, closure=None):
        everything = [p for group in self.param_groups for p in group["params"]]
        for p in everything:
            self.state[p].setdefault("slow", p.detach().clone())
        super().step(closure)
        self.n_steps += 1
        if self.n_steps % self.k == 0:
            for p in everything:
                p.copy_(self.state[p]["slow"].lerp_(p, 0.5))


class ScheduleFree(torch.optim.SGD):
    """Steps from z, and shows the mean of all z in evaluation (Defazio et al. 2024, without interpolation)."""

    def train(self):
        """Show z."""

    def eval(self):
        """Show the mean."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for group in self.param_groups for p in group["params"]):
            z = self.state[p].setdefault("z", p.detach().clone())
            p.copy_(z.sub_(p.grad, alpha=0.1))


class Averaged(torch.optim.SGD):
    """Steps from the parameters, but evaluates a mean of where they have been."""

    def train(self):
        """The parameters are as they are left."""

    @torch.no_grad()
    def eval(self):
        for p, state in self.state.items():
            p.copy_(state["mean"])

    def step(self, closure=None):
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p].setdefault("mean", p.detach().clone()).lerp_(p.detach(), 0.5 / (1 + len(self.state)))


class Noisy(torch.optim.SGD):
    """Steps from the parameters, with noise and with decay."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            p.add_(torch.randn_like(p))


class Brittle(torch.optim.SGD):
    """Remembers the very parameters that it was made for."""

    def __init__(self, params, lr):
        params = list(params)
        super().__init__(params, lr)
        self.known = [id(p) for p in params]

    def step(self, closure=None):
        if any(id(p) not in self.known for group in self.param_groups for p in group["params"]):
            raise KeyError("who is this")
        super().step(closure)


@pytest.mark.parametrize("kind", [Lookahead, ScheduleFree, Averaged])
def test_an_optimizer_with_weights_of_its_own_is_refused_by_what_it_does(kind):
    model = network()
    with pytest.raises(ValueError, match=f"cannot wrap {kind.__name__}: it goes on from weights of its own"):
        Guided(kind(model.parameters(), lr=0.1), model, guide_of(model, 0.5))


def test_trying_an_optimizer_leaves_it_and_the_parameters_as_they_were():
    model, drawn = network(), torch.random.get_rng_state()
    optimizer = Noisy(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.5)
    step(model, optimizer)
    before, state = parameters(model), copy.deepcopy(optimizer.state_dict())
    drawn = torch.random.get_rng_state()
    assert not keeps_own_weights(optimizer)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert torch.equal(drawn, torch.random.get_rng_state())
    for key, values in optimizer.state_dict()["state"].items():
        assert torch.equal(values["momentum_buffer"], state["state"][key]["momentum_buffer"])


def test_an_optimizer_that_cannot_be_tried_is_doubted_aloud():
    model = network()
    with pytest.warns(RuntimeWarning, match=r"a copy of Brittle cannot be tried \('who is this'\)"):
        Guided(Brittle(model.parameters(), lr=0.1), model, guide_of(model, 0.5))


# 3. Gradients from before a closure.


class SharpnessAware(torch.optim.SGD):
    """Looks at the gradient a little uphill (SAM; Foret et al. 2021), and starts from the gradients that it finds."""

    @torch.no_grad()
    def step(self, closure):
        everything = [p for group in self.param_groups for p in group["params"]]
        uphill = [(p, p.grad.clone()) for p in everything if p.grad is not None]
        self.perturbed = {id(p) for p, _ in uphill}
        for p, d in uphill:
            p.add_(d)
        with torch.enable_grad():
            loss = closure()
        for p, d in uphill:
            if p.grad is not None:
                p.sub_(d)
        super().step()
        return loss


def test_two_step_optimizers_do_not_touch_what_is_frozen():
    model = network()
    frozen = {name.replace(".", "_"): 0.0 for name, _ in model[0].named_parameters(prefix="0")}
    sam = SharpnessAware(model.parameters(), lr=0.1)
    optimizer = Guided(sam, model, guide_of(model, 0.5, **frozen))

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    before = parameters(model)
    for n in range(5):
        closure()
        assert optimizer.step(closure).item() > 0
        assert n == 0 or sam.perturbed == {id(p) for p in model[2].parameters()}
    for name, p in model.named_parameters():
        assert torch.equal(before[name], p) == name.startswith("0.")
        assert p.grad is not None


# 5. Hooks.


def test_state_dict_hooks_are_called_and_may_change_what_is_saved_and_loaded():
    model = network()
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide_of(model, 0.5))
    seen = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, saved: saved | {"mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, saved: {k: v for k, v in saved.items() if k != "mine"})
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o))
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(saved)
    assert seen == ["pre", optimizer]


def test_hooks_on_all_optimizers_see_one_guided_step():
    model, seen = network(), []
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1), model, guide_of(model, 0.5))
    inner = optimizer.optimizer.register_step_post_hook(lambda *_: seen.append("wrapped"))
    handles = [
        register_optimizer_step_pre_hook(lambda o, *_: seen.append((o, model[0].weight.detach().clone()))),
        register_optimizer_step_post_hook(lambda o, *_: seen.append((o, model[0].weight.detach().clone()))),
    ]
    before = parameters(model)["0.weight"]
    try:
        step(model, optimizer)
    finally:
        for handle in (*handles, inner):
            handle.remove()
    (first, start), wrapped, (last, end) = seen
    assert first is last is optimizer and wrapped == "wrapped"
    assert torch.equal(start, before) and torch.equal(end, model[0].weight)


# 6. Attributes that frameworks assign.


def test_groups_state_and_defaults_can_be_assigned():
    """As Lightning does when it resumes: the groups of a checkpoint, other lists of the same parameters."""
    model = network()
    optimizer = Guided(torch.optim.SGD(model[0].parameters(), lr=0.1), model, guide_of(model, 0.0))
    optimizer.param_groups = [{**optimizer.param_groups[0], "params": list(model.parameters()), "lr": 0.3}]
    optimizer.state, optimizer.defaults = defaultdict(dict), dict(optimizer.defaults)
    before = parameters(model)
    step(model, optimizer)
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.3
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


# 7. Networks that are converted or moved.


def test_a_network_converted_later_is_guided_as_it_is():
    model, plain = network(), network().double()
    optimizer = Guided(torch.optim.AdamW(model.parameters(), lr=0.01), model, guide_of(model, 0.5))
    model.double()
    assert_half_a_step(model, optimizer, plain, torch.optim.AdamW(plain.parameters(), lr=0.01))


def test_a_guide_follows_a_network_onto_another_device():
    on_meta = network().to("meta")
    optimizer = Guided(torch.optim.SGD(on_meta.parameters(), lr=0.1), on_meta, guide_of(network(), 0.5))
    assert {g.device.type for g in optimizer._weights} == {"meta"}


# 8. Checkpoints where a whole tensor has g = 0.

MAKE = {
    "fused": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("flatten", [None, False, True])
def test_checkpoints_move_freely_though_a_tensor_is_frozen(make, flatten):
    """flatten None: by `state_dict`; else by torch's distributed checkpoints."""
    model = network()
    trained = Guided(make(model), model, guide_of(model, 0.5, **{"0_bias": 0.0}))
    before = parameters(model)
    for _ in range(3):
        step(model, trained)
    assert torch.equal(before["0.bias"], model[0].bias)
    for to_guided in (True, False):
        other = network()
        other.load_state_dict(model.state_dict())
        target = make(other)
        if to_guided:
            target = Guided(target, other, trained.guide)
        if flatten is None:
            target.load_state_dict(copy.deepcopy(trained.state_dict()))
        else:
            options = StateDictOptions(flatten_optimizer_state_dict=flatten)
            trained.zero_grad()  # torch makes the states of a new optimizer by a step of its own
            saved = copy.deepcopy(get_optimizer_state_dict(model, trained, options=options))
            set_optimizer_state_dict(other, target, saved, options=options)
        twin, twin_optimizer = copy.deepcopy((model, trained if to_guided else trained.optimizer))
        step(other, target)
        step(twin, twin_optimizer)
        assert all(torch.equal(p, twin.get_parameter(name)) for name, p in other.named_parameters())


def test_what_is_frozen_costs_its_gradient_only_in_the_first_step():
    model, seen = network(), []
    optimizer = Guided(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, guide_of(model, 0.0))
    optimizer.optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad is None for p in model.parameters()]))
    for _ in range(3):
        step(model, optimizer)
    assert [all(nothing) for nothing in seen] == [False, True, True] and not any(seen[0])
    assert not any(state["momentum_buffer"].any() for state in optimizer.state.values())  # the gradient was hidden


# What belongs where.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda m, o, g: (m, o, g), "optimizer: must be an instance of Optimizer, not of Sequential"),
        (lambda m, o, g: (o, g, m), "model: must be an instance of Module, not of Guide"),
        (lambda m, o, g: (o, m, Displacement(m)), "guide: must be an instance of Guide, not of Displacement"),
        (lambda m, o, g: (o, m, dict(g)), "guide: must be an instance of Guide, not of dict"),
        (lambda m, o, g: (o, m, "guide.safetensors"), "guide: must be an instance of Guide, not of str"),
    ],
)
def test_what_belongs_elsewhere_is_named(arguments, message):
    model = network()
    with pytest.raises(TypeError, match=message):
        Guided(*arguments(model, torch.optim.SGD(model.parameters(), lr=0.1), guide_of(model, 0.5)))


def test_a_wrapper_s_names_are_recognised():
    model = network()
    plain, inner = guide_of(model, 0.5), nn.ModuleDict({"module": model})
    with pytest.raises(ValueError, match=r"'0.weight' is 'module.0.weight' in the model: give the plain module"):
        plain.check(inner)
    plain.renamed(lambda name: f"module.{name}").check(inner)
    with pytest.raises(ValueError, match="two parameters one name"):
        plain.renamed(lambda name: name.split(".")[1])

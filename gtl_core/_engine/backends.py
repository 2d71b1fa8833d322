"""How scouts are trained: one after the other, or many side by side with the same result up to rounding.

A backend is a function (model, recipe, tasks) -> for each task, the parameters of its copy of ``model`` after training.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy

from gtl_core._engine.stacked import stack
from gtl_core._engine.tape import Taped
from gtl_core.training import Recipe

Task = tuple[Tensor, Tensor]
Scouts = list[Mapping[str, Tensor]]

# Scouts in a group. On a CPU more of them leave the cache; a GPU is idle with fewer.
SIDE_BY_SIDE = {"cpu": 4, "cuda": 64}
REPLAYED = 8  # the same where steps are replayed: those are for fewer examples
MOST_IMAGES = 100  # in a replayed step of all scouts: with more, patches of images would take the memory and the time
PROBED_STEPS = 8

# Those that treat every number by itself, and so do not notice that a tensor holds several scouts.
_optim = torch.optim
ELEMENTWISE = {_optim.SGD, _optim.ASGD, _optim.Rprop, _optim.RMSprop, _optim.Adagrad, _optim.Adadelta}
ELEMENTWISE |= {_optim.Adam, _optim.AdamW, _optim.Adamax, _optim.NAdam, _optim.RAdam}

log = logging.getLogger(__name__)


def loop(model: nn.Module, recipe: Callable[[nn.Module, object], object], tasks: Sequence) -> Scouts:
    """One copy after the other: the reference. Any module, and any function in place of the recipe."""
    scouts = []
    for task in tasks:
        scout = copy.deepcopy(model)
        recipe(scout, task)
        scouts.append({name: p.detach() for name, p in scout.named_parameters()})
    return scouts


def stacked(model: nn.Module, recipe: Recipe, tasks: Sequence[Task]) -> Scouts:
    """All copies as one network with batched products, see `tape.Taped`: for networks of the layers that it knows.

    Raises TypeError for others, and for parameters that are shared or frozen.
    """
    _check_all_trained(model)
    network = Taped([model] * len(tasks))
    return _side_by_side(network, recipe, tasks, dict(network.network.named_parameters()))


def replayed(model: nn.Module, recipe: Recipe, tasks: Sequence[Task]) -> Scouts:
    """The same, with a step that is prepared once and replayed, see `program.Program`: for a few images, or vectors.

    Raises TypeError as `stacked` does, for other devices than a CPU, and for more than ``MOST_IMAGES`` in a step.
    """
    _check_all_trained(model)
    inputs = tasks[0][0]
    n_images = len(tasks) * min(len(inputs), recipe.batch_size or len(inputs))
    if inputs.dim() > 2 and n_images > MOST_IMAGES:
        raise TypeError(f"a step of {n_images} images is not replayed, at most one of {MOST_IMAGES}")
    if inputs.device.type != "cpu":
        raise TypeError("steps are replayed on a CPU only")
    network = stack([model] * len(tasks))
    return _side_by_side(network, recipe, tasks, dict(network.named_parameters()))


def _check_all_trained(model: nn.Module) -> None:
    if not all(p.requires_grad for p in model.parameters()):
        raise TypeError("cannot stack a network with frozen parameters")


def vmapped(model: nn.Module, recipe: Recipe, tasks: Sequence[Task]) -> Scouts:
    """All copies through `torch.func.vmap`: any module that changes no buffer and draws no random numbers.

    Raises RuntimeError, as vmap does, for others.
    """
    copies = {name: p.detach().expand(len(tasks), *p.shape).clone() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        copies[name].requires_grad_(p.requires_grad)
    return _side_by_side(_Vmapped(copy.deepcopy(model), copies), recipe, tasks, copies)


class _Vmapped(nn.Module):
    def __init__(self, model: nn.Module, copies: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.copies = model, copies

    def forward(self, x: Tensor) -> Tensor:
        return vmap(lambda p, x: functional_call(self.model, p, (x,)), (0, 1), 1)(self.copies, x)


def _side_by_side(network: nn.Module, recipe: Recipe, tasks: Sequence[Task], copies: Mapping[str, Tensor]) -> Scouts:
    """Train ``network`` [N, S, ...] -> [N, S, ...], whose parameters [S, ...] are ``copies``, on S tasks at once."""
    if recipe.optimizer not in ELEMENTWISE:
        raise TypeError(f"{recipe.optimizer.__name__} looks at whole tensors, which several scouts cannot share")
    inputs, labels = (torch.stack(tensors, 1) for tensors in zip(*tasks, strict=True))
    counts_all = recipe.loss is cross_entropy and not labels.is_floating_point() and (labels >= 0).all()

    def summed_loss(outputs: Tensor, labels: Tensor) -> Tensor:  # every copy gets the gradient that it would have alone
        if not isinstance(outputs, Tensor):
            raise TypeError(f"side by side, a network must return one tensor, not a {type(outputs).__name__}")
        if counts_all:  # a mean over examples that weigh the same: at once
            return len(tasks) * cross_entropy(outputs.flatten(0, 1), labels.flatten(0, 1))
        return reduce(add, (recipe.loss(outputs[:, s], labels[:, s]) for s in range(len(tasks))))

    optimizer = recipe.make([p for p in copies.values() if p.requires_grad], fused=True)
    recipe.fit(network, inputs, labels, optimizer, summed_loss)
    return [{name: p.detach()[s] for name, p in copies.items()} for s in range(len(tasks))]


BACKENDS = {"loop": loop, "stacked": stacked, "replayed": replayed, "vmap": vmapped}


def choose(backend: str, model: nn.Module, train_one: Recipe | Callable, tasks: Sequence[Task]) -> str:
    """Name of the backend: ``backend`` itself, or for ``auto`` the fastest in a trial of a few steps on ``tasks``.

    tasks: the first ones, of which as many are tried side by side; of one or none, nothing can be.

    Raises ValueError for an unknown name and TypeError if anything but the loop is asked to run a plain function.
    """
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"backend = {backend!r}: must be one of auto, {', '.join(BACKENDS)}")
    if not isinstance(train_one, Recipe):
        if backend not in ("auto", "loop"):
            raise TypeError(f"backend = {backend!r} needs a Recipe: a function can only be called in the loop")
        return "loop"
    if backend != "auto":
        return backend
    if len(tasks) < 2:
        return "loop"
    seconds = {}
    for name in BACKENDS:
        try:
            seconds[name] = _trial(name, model, train_one, tasks)
        except Exception as error:  # anyone's layers and loss
            if name == "loop":
                raise
            log.info("backend %s cannot train this network: %s", name, error)
    fastest = min(seconds, key=lambda name: seconds[name])
    log.info("backend %s, of ms per scout-step %s", fastest, {name: round(1e3 * s, 3) for name, s in seconds.items()})
    return fastest


def _trial(backend: str, model: nn.Module, recipe: Recipe, tasks: Sequence[Task]) -> float:
    """Seconds per scout and step. Random numbers go on afterwards as if there had been no trial."""
    examples = len(tasks[0][0])
    steps = max(1, min(PROBED_STEPS, recipe.epochs * math.ceil(examples / (recipe.batch_size or examples or 1))))
    few = replace(recipe, epochs=steps)
    piece = tuple(tensor[: recipe.batch_size] for tensor in tasks[0])
    pieces = [piece] * min(len(tasks), group_size(backend, model))
    device = next(model.parameters()).device
    took = []
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for trial in (replace(few, epochs=1), few, few):  # the first warms up
            _wait(device)
            begin = time.perf_counter()
            BACKENDS[backend](model, trial, pieces)
            _wait(device)
            took.append(time.perf_counter() - begin)
    return min(took[1:]) / steps / len(pieces)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def group_size(backend: str, model: nn.Module) -> int:
    """How many scouts ``backend`` trains at once."""
    others = SIDE_BY_SIDE.get(next(model.parameters()).device.type, 1)
    return {"loop": 1, "replayed": REPLAYED}.get(backend, others)


def groups(tasks: Iterable, size: int) -> Iterator[list]:
    """``tasks`` in order, at most ``size`` at once, all of a group of the same shapes."""
    group, shapes = [], None
    for task in tasks:
        its = None if size == 1 else [tensor.shape for tensor in task]
        if group and (len(group) == size or its != shapes):
            yield group
            group = []
        group.append(task)
        shapes = its
    if group:
        yield group

"""Scouting: send copies of a network into small tasks and measure how far they move."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from itertools import chain, islice
from typing import TypeVar

from torch import Tensor, nn

from gtl_core._engine import BACKENDS, choose, group_size, groups
from gtl_core.guide import Displacement
from gtl_core.training import Recipe, inputs_and_labels

Task = TypeVar("Task")


def scout(
    model: nn.Module,
    tasks: Iterable[Task],
    train_one: Recipe | Callable[[nn.Module, Task], object],
    *,
    executor: Executor | None = None,
    backend: str = "auto",
) -> Displacement:
    """Train one fresh copy of ``model`` per task and return how far the copies moved.

    model: the zero point; it is left untouched.
    tasks: anything that ``train_one`` understands, usually small and easy sub-problems with many examples each.
    train_one: ``train_one(copy, task)`` trains the copy in place; its return value is ignored. Or a `Recipe`, for tasks
        (inputs, labels): small scouts are then trained side by side, which is faster.
    executor: where the scouts run, any `concurrent.futures.Executor`; none runs them here, one after the other. Model,
        tasks and ``train_one`` must then be picklable (no local functions). The result does not depend on it, since
        displacements are added in the order of the tasks, as long as ``train_one`` draws random numbers from a
        generator of its own, seeded by the task, and every process has the same number of threads.
    backend: how a recipe is carried out. ``loop`` trains one scout after the other; ``stacked``, and ``replayed`` where
        a step has a few images, or vectors, and a CPU, train several at once for networks of common layers; ``vmap``
        does for any network that `torch.func.vmap` can take. They agree up to rounding. ``auto`` takes the one that is
        fastest in a short trial, and logs it (``gtl_core._engine.backends``, level info): name one where the last bit
        matters. A function always runs in the loop.

    A scout that ends non-finite is left out, with a RuntimeWarning. Raises ValueError if there are no tasks, if every
    scout diverged, if no parameter moved, or if there is no such backend; TypeError, if the backend cannot train this
    network or needs a recipe. Source: arXiv 2303.16154.
    """
    displacement = Displacement(model)
    n_tasks = 0
    for scouted in _send(model, tasks, train_one, executor, backend):
        n_tasks += 1
        displacement.add(scouted)
    if n_tasks == 0:
        raise ValueError("tasks is empty: scouting needs at least one task")
    if displacement.count == 0:
        raise ValueError(f"all {n_tasks} scouts diverged: lower their learning rate, or check the model itself")
    if displacement.diverged:
        warnings.warn(f"{displacement.diverged} of {n_tasks} scouts diverged and were left out", RuntimeWarning, 2)
    if not displacement.moved:
        raise ValueError("no parameter moved: train_one must train the copy that it is given, in place")
    return displacement


def _send(
    model: nn.Module, tasks: Iterable, train_one: Recipe | Callable, executor: Executor | None, backend: str
) -> Iterator[Mapping[str, Tensor]]:
    """Yield the trained parameters of one copy per task, in the order of the tasks."""
    first = []
    if isinstance(train_one, Recipe):
        tasks = map(inputs_and_labels, tasks)
        if backend == "auto":
            first = list(islice(tasks, max(group_size(name, model) for name in BACKENDS)))
    backend = choose(backend, model, train_one, first)
    parties = groups(chain(first, tasks), group_size(backend, model))
    if executor is None:
        for party in parties:
            yield from BACKENDS[backend](model, train_one, party)
    else:
        # Bytes travel the same way through every executor; tensors would go through shared memory in some.
        send = partial(_scout_remotely, pickle.dumps((backend, model, train_one)))
        for scouts in executor.map(send, [pickle.dumps(party) for party in parties]):  # Dask refuses iterators
            yield from pickle.loads(scouts)


def _scout_remotely(how: bytes, party: bytes) -> bytes:
    backend, model, train_one = pickle.loads(how)
    scouts = BACKENDS[backend](model, train_one, pickle.loads(party))
    return pickle.dumps([{name: p.cpu() for name, p in scout.items()} for scout in scouts])

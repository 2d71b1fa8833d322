"""Scouting: send copies of a network into small tasks and measure how far they move."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from gtl_core.guide import Displacement

Task = TypeVar("Task")


def scout(
    model: nn.Module,
    tasks: Iterable[Task],
    train_one: Callable[[nn.Module, Task], object],
    *,
    executor: Executor | None = None,
) -> Displacement:
    """Train one fresh copy of ``model`` per task and return how far the copies moved.

    model: the zero point; it is left untouched.
    tasks: anything that ``train_one`` understands, usually small and easy sub-problems with many examples each.
    train_one: ``train_one(copy, task)`` trains the copy in place; its return value is ignored.
    executor: where the scouts run, any `concurrent.futures.Executor`; none runs them here, one after the other. Model,
        tasks and ``train_one`` must then be picklable (no local functions). The result does not depend on it, since
        displacements are added in the order of the tasks, as long as ``train_one`` draws random numbers from a
        generator of its own, seeded by the task, and every process has the same number of threads.

    A scout that ends non-finite is left out, with a RuntimeWarning. Raises ValueError if there are no tasks, if every
    scout diverged, or if no parameter moved. Source: arXiv 2303.16154.
    """
    displacement = Displacement(model)
    n_tasks = 0
    for scouted in _send(model, tasks, train_one, executor):
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


def _send(model, tasks, train_one, executor) -> Iterable[nn.Module | dict[str, Tensor]]:
    if executor is None:
        for task in tasks:
            scouted = copy.deepcopy(model)
            train_one(scouted, task)
            yield scouted
    else:
        # Bytes travel the same way through every executor; tensors would go through shared memory in some.
        send = partial(_scout_remotely, pickle.dumps((model, train_one)))
        for parameters in executor.map(send, [pickle.dumps(task) for task in tasks]):  # Dask refuses iterators
            yield pickle.loads(parameters)


def _scout_remotely(model_and_trainer: bytes, task: bytes) -> bytes:
    scouted, train_one = pickle.loads(model_and_trainer)
    train_one(scouted, pickle.loads(task))
    return pickle.dumps({name: p.detach().cpu() for name, p in scouted.named_parameters()})

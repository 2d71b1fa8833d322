"""Scouting: send copies of a network into small tasks and measure how far they move."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from gtl_core._engine import in_groups, one_by_one, together
from gtl_core.guide import Displacement
from gtl_core.training import Recipe, inputs_and_labels

Task = TypeVar("Task")


def scout(
    model: nn.Module,
    tasks: Iterable[Task],
    train_one: Recipe | Callable[[nn.Module, Task], object],
    *,
    executor: Executor | None = None,
    side_by_side: int = 1,
) -> Displacement:
    """Train one fresh copy of ``model`` per task and return how far the copies moved.

    model: the zero point; it is left untouched. What requires no gradient is not scouted, and shared by all copies.
    tasks: anything that ``train_one`` understands, usually small and easy sub-problems with many examples each.
    train_one: ``train_one(copy, task)`` trains the copy in place; its return value is ignored. Or a `Recipe`, for tasks
        (inputs, labels): several can then be trained side by side, which is faster.
    executor: where the scouts run, any `concurrent.futures.Executor`; none runs them here, one after the other. Model,
        tasks and ``train_one`` must then be picklable (no local functions). The result does not depend on it, since
        displacements are added in the order of the tasks, as long as ``train_one`` draws random numbers from a
        generator of its own, seeded by the task, and every process has the same number of threads.
    side_by_side: how many scouts are trained at once, at least 1: more need a recipe, and a network of the layers that
        `gtl_core._engine.stacked` knows. On a core of a CPU, 4 to 8 are fastest; a GPU is idle with fewer than 64. Each
        scout is trained as it would be alone, up to rounding.

    A scout that ends non-finite is left out, with a RuntimeWarning. Raises ValueError if there are no tasks, if every
    scout diverged, if no parameter moved, or if the model cannot be copied; TypeError, if scouts of this kind cannot be
    trained side by side.
    Source: arXiv 2303.16154.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be an instance of Module, not of {type(model).__name__}")
    displacement = Displacement(model)
    if not displacement.zero_point:
        raise ValueError("the model has no parameter that requires a gradient: there is nothing to scout")
    n_tasks = 0
    for scouted in _send(model, tasks, train_one, executor, side_by_side):
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


def _send(model, tasks, train_one, executor, side_by_side: int) -> Iterator[Mapping[str, Tensor]]:
    if side_by_side < 1:
        raise ValueError(f"side_by_side = {side_by_side}: must be at least 1")
    if isinstance(train_one, Recipe):
        tasks = map(inputs_and_labels, tasks)
    elif side_by_side > 1:
        raise TypeError("scouts side by side need a Recipe: a function can only train one after the other")
    train = one_by_one if side_by_side == 1 else together
    parties = in_groups(tasks, side_by_side)
    if executor is None:
        for party in parties:
            yield from train(model, train_one, party)
    else:
        # Bytes travel the same way through every executor; tensors would go through shared memory in some.
        send = partial(_scout_remotely, pickle.dumps((train, model, train_one)))
        for scouts in executor.map(send, [pickle.dumps(party) for party in parties]):  # Dask refuses iterators
            yield from pickle.loads(scouts)


def _scout_remotely(how: bytes, party: bytes) -> bytes:
    train, model, train_one = pickle.loads(how)
    scouts = train(model, train_one, pickle.loads(party))
    return pickle.dumps([{name: p.cpu() for name, p in scout.items()} for scout in scouts])

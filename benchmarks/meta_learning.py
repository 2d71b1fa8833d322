"""What batching tasks saves in meta-learning: MAML and FOMAML against one task at a time, measured in alternation.

    python -m benchmarks.meta_learning [--rounds 15] [--network conv4|strided_conv4]

5-way 1-shot, 64 filters, one inner step. The plain loops are what one would write: for FOMAML a copy of the network and
an optimizer for every task, for MAML a functional call with the task's fast weights. Prints tasks per second of one
core's time, and the median over rounds of the ratio batched / plain with its quartiles. Time is this process's CPU
time, which other people's work on the same machine hardly changes.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from benchmarks.measure import Ratio, alternate
from experiments.baselines.meta import meta_loss
from experiments.models import conv4, strided_conv4
from experiments.workers import single_thread
from gtl_core._engine.stacked import stack
from gtl_core.tasks import Episode, labelled, rng

RATE = 0.4


def maml_one_by_one(model: nn.Module, episodes: Sequence[Episode]) -> list[Tensor]:
    """The meta-gradient: sum over tasks, each differentiated through its inner step."""
    zero_point = dict(model.named_parameters())
    total = [torch.zeros_like(p) for p in zero_point.values()]
    for episode in episodes:
        inputs, labels = labelled(episode.support)
        inner = cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(inner, list(zero_point.values()), create_graph=True)
        fast = {name: p - RATE * g for (name, p), g in zip(zero_point.items(), gradients, strict=True)}
        inputs, labels = labelled(episode.query)
        outer = cross_entropy(functional_call(model, fast, (inputs,)), labels)
        torch._foreach_add_(total, torch.autograd.grad(outer, list(zero_point.values())))
    return total


def fomaml_one_by_one(model: nn.Module, episodes: Sequence[Episode]) -> list[Tensor]:
    """The meta-gradient: sum over tasks of the gradient where the inner step ends."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for episode in episodes:
        task = copy.deepcopy(model)
        optimizer = torch.optim.SGD(task.parameters(), lr=RATE)
        inputs, labels = labelled(episode.support)
        cross_entropy(task(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        inputs, labels = labelled(episode.query)
        cross_entropy(task(inputs), labels).backward()
        torch._foreach_add_(total, [p.grad for p in task.parameters()])
    return total


def batched(model: nn.Module, episodes: Sequence[Episode], first_order: bool, stacked: nn.Module) -> list[Tensor]:
    zero_point = dict(model.named_parameters())
    loss = meta_loss(stacked, zero_point, dict.fromkeys(zero_point, RATE), episodes, 1, first_order)
    return list(torch.autograd.grad(loss * len(episodes), list(zero_point.values())))


def compare(
    rounds: int, n_tasks: int = 8, queries: int = 1, make: Callable[..., nn.Sequential] = conv4
) -> Iterator[tuple[str, Ratio, float]]:
    """For each method: its name, plain / batched, and batched tasks per second."""
    model = make(5, 64, generator=rng(0, "network"))
    stacked = stack([model] * n_tasks)

    def images(n: int, i: int) -> Tensor:
        return torch.rand(5, n, 1, 28, 28, generator=rng(0, "images", n, i))

    episodes = [Episode(torch.arange(5), images(1, i), images(queries, -i)) for i in range(n_tasks)]
    for method, plain, first_order in (("MAML", maml_one_by_one, False), ("FOMAML", fomaml_one_by_one, True)):
        alone = partial(plain, model, episodes)
        together = partial(batched, model, episodes, first_order, stacked)
        for one, other in zip(alone(), together(), strict=True):  # the same work: only then are times comparable
            torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2 * one.abs().max().item())
        ratio = alternate(alone, together, rounds, time.process_time)
        yield method, ratio, n_tasks / ratio.other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=8, help="tasks side by side")
    parser.add_argument("--queries", type=int, default=1, help="per class; as many as shots in the MAML paper")
    parser.add_argument("--network", choices=("conv4", "strided_conv4"), default="conv4")
    arguments = parser.parse_args()
    single_thread()
    make = {"conv4": conv4, "strided_conv4": strided_conv4}[arguments.network]
    print(f"torch {torch.__version__}, {arguments.network}, 64 filters, one thread, {arguments.tasks} tasks at a time")
    print("method   plain tasks/s  batched tasks/s  plain / batched seconds, quartiles")
    for method, ratio, rate in compare(arguments.rounds, arguments.tasks, arguments.queries, make):
        print(f"{method:<7}  {arguments.tasks / ratio.plain:>13.0f}  {rate:>15.0f}  {ratio}")


if __name__ == "__main__":
    main()

"""What batching tasks saves in meta-learning: MAML and FOMAML against one task at a time, measured in alternation.

    python -m benchmarks.meta_learning [--rounds 15] [--network conv4|pooled_conv4]

5-way 1-shot, 64 filters, one inner step. The plain loops are what one would write: for FOMAML a copy of the network and
an optimizer for every task, for MAML a functional call with the task's fast weights. Prints tasks per second of one
core's time, and the median over rounds of the ratio batched / plain with its quartiles. Time is this process's CPU
time, which other people's work on the same machine hardly changes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from gtl_core.baselines.backbones import pooled_conv4
from gtl_core.baselines.meta import meta_loss
from gtl_core.models import conv4
from gtl_core.stacked import stack
from gtl_core.tasks import Episode, labelled, rng
from gtl_core.workers import single_thread

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


def seconds(function: Callable[[], object]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=8, help="tasks side by side")
    parser.add_argument("--queries", type=int, default=1, help="per class; as many as shots in the MAML paper")
    parser.add_argument("--network", choices=("conv4", "pooled_conv4"), default="conv4")
    arguments = parser.parse_args()
    single_thread()
    make = {"conv4": conv4, "pooled_conv4": pooled_conv4}[arguments.network]
    model = make(5, 64, generator=rng(0, "network"))
    stacked = stack([model] * arguments.tasks, graph=True)

    def images(n: int, i: int) -> Tensor:
        return torch.rand(5, n, 1, 28, 28, generator=rng(0, "images", n, i))

    episodes = [Episode(torch.arange(5), images(1, i), images(arguments.queries, -i)) for i in range(arguments.tasks)]
    print(f"torch {torch.__version__}, {arguments.network}, 64 filters, one thread, {arguments.tasks} tasks at a time")
    print("method   plain tasks/s  batched tasks/s  batched / plain       quartiles")
    for method, plain, first_order in (("MAML", maml_one_by_one, False), ("FOMAML", fomaml_one_by_one, True)):
        expected, found = plain(model, episodes), batched(model, episodes, first_order, stacked)
        for one, other in zip(expected, found, strict=True):  # the same work: only then are times comparable
            torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-2 * one.abs().max().item())
        alone, together = [], []
        for i in range(arguments.rounds):
            runs = [
                (alone, lambda plain=plain: plain(model, episodes)),
                (together, lambda first_order=first_order: batched(model, episodes, first_order, stacked)),
            ]
            for took, run in runs if i % 2 else reversed(runs):
                took.append(seconds(run))
        low, ratio, high = statistics.quantiles([a / b for a, b in zip(alone, together, strict=True)], n=4)
        rates = [arguments.tasks / statistics.median(took) for took in (alone, together)]
        print(f"{method:<7}  {rates[0]:>13.0f}  {rates[1]:>15.0f}  {ratio:>15.2f}  {low:>6.2f} .. {high:.2f}")


if __name__ == "__main__":
    main()

"""What guidance costs: a guided training step against a plain one of the same network, measured in alternation.

    python -m benchmarks.guided_step [--rounds 30]

Prints, per case, the median time of a whole plain training step, the median ratio guided / plain over rounds, its
quartiles. The 150k-parameter network is the target of the design: at most 5 % on a training step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.measure import Ratio, alternate
from experiments.models import conv4
from experiments.workers import single_thread
from gtl_core import Guide, Guided
from gtl_core.tasks import rng

OPTIMIZERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=1e-4),
    "SGD momentum": lambda ps: torch.optim.SGD(ps, lr=1e-4, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=1e-5),
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, lr=1e-5, fused=True),
}


def random_guide(model: nn.Module) -> Guide:
    """Every value strictly between 0 and 1: no tensor can be skipped, so this is the most that a guide can cost."""
    generator = rng(0, "guide")
    values = {n: 0.01 + 0.98 * torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()}
    device = next(model.parameters()).device
    return Guide(values).to(device)


def training_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor, repeats: int
) -> None:
    for _ in range(repeats):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    if inputs.is_cuda:
        torch.cuda.synchronize()


def compare(channels: int, batch: int, make: Callable, rounds: int, device: str = "cpu") -> Ratio:
    """Seconds of one guided and of one plain training step, and the ratio of the two."""
    train = {}
    inputs = torch.rand(batch, 1, 28, 28, generator=rng(0, "inputs")).to(device)
    labels = (torch.arange(batch) % 20).to(device)
    for method in ("plain", "guided"):
        model = conv4(20, channels, generator=rng(0, "network")).to(device)
        optimizer = make(model.parameters())
        if method == "guided":
            optimizer = Guided(optimizer, model, random_guide(model))
        train[method] = partial(training_steps, model, optimizer, inputs, labels)
    train["plain"](1)
    begin = time.perf_counter()
    train["plain"](3)
    repeats = max(1, int(0.15 / (time.perf_counter() - begin)))
    guided, plain = (partial(train[method], repeats) for method in ("guided", "plain"))
    ratio = alternate(guided, plain, rounds)
    return ratio._replace(plain=ratio.plain / repeats, other=ratio.other / repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    single_thread()
    print(f"torch {torch.__version__} on {arguments.device}, one intra-op thread, guide strictly between 0 and 1")
    print("parameters  batch  optimizer      plain ms  guided / plain       quartiles")
    for (channels, batch), (name, make) in product(((72, 25), (72, 100)), OPTIMIZERS.items()):
        n = sum(p.numel() for p in conv4(20, channels, generator=rng(0)).parameters())
        r = compare(channels, batch, make, arguments.rounds, arguments.device)
        quartiles = f"{r.low:>6.3f} .. {r.high:.3f}"
        print(f"{n:>10,}  {batch:>5}  {name:<13}  {1e3 * r.other:>8.2f}  {r.median:>14.3f}  {quartiles}")


if __name__ == "__main__":
    main()

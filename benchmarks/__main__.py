"""Every speed and memory figure of this project in one table: ratios to plain PyTorch, measured in alternation.

    python -m benchmarks [--rounds 9]

About three minutes. Ratios above 1 are in our favour, but for the guided step, whose ratio is its cost. `peak` is a
single-threaded product of 512 x 512 matrices in the same run; shares of it count multiplications and additions of the
forward and the backward pass, nothing else.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import loky
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from benchmarks import guided_step, meta_learning
from benchmarks.measure import Ratio, alternate, peak_flops
from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.models import cnn, conv4
from experiments.style import save
from experiments.workers import single_thread
from gtl_core import Recipe, scout
from gtl_core._engine.stacked import stack, stacked_cross_entropy
from gtl_core.tasks import rng
from gtl_core.training import fit

CORES, SIDE_BY_SIDE = 2, 4
MLP = (25, 80, 80, 80, 80, 10)
Task = tuple[Tensor, Tensor]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for sizes in pairwise(MLP) for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def random_tasks(n: int, shape: tuple[int, ...], examples: int, n_way: int) -> list[Task]:
    labels = torch.arange(examples) % n_way
    return [(torch.rand(examples, *shape, generator=rng(0, "task", i)), labels) for i in range(n)]


def plain_scouts(model: nn.Module, tasks: Sequence[Task], recipe: Recipe, threads: int) -> None:
    """What one would write."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    for inputs, labels in tasks:
        scouted = copy.deepcopy(model)
        optimizer = recipe.optimizer(scouted.parameters(), lr=recipe.learning_rate)
        for _ in range(recipe.epochs):
            size = recipe.batch_size or len(inputs)
            for batch in torch.randperm(len(inputs), generator=generator).split(size):
                optimizer.zero_grad()
                cross_entropy(scouted(inputs[batch]), labels[batch]).backward()
                optimizer.step()
    torch.set_num_threads(1)


def operations(model: nn.Module, example: Tensor) -> int:
    """Of a training pass on one example: products of the forward pass, of weights' and of inputs' gradients."""
    total, x = 0, example[None]
    for layer in (m for m in model.modules() if not isinstance(m, nn.Sequential)):
        y = layer(x)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            forward = 2 * layer.weight[0].numel() * y.numel()
            total += forward * (3 if total else 2)  # nobody needs the gradient of the network's input
        x = y
    return total


def line(what: str, against: str, ratio: Ratio | None, target: str, note: str = "") -> None:
    print(f"{what:<44}  {against:<28}  {ratio or ''!s:<22}  {target:<8}  {note}", flush=True)


def cases() -> list[tuple[str, nn.Module, tuple[int, ...], int, int, Recipe, int, str]]:
    """Kinds of scouts: name, network, an example's shape, examples, classes, recipe, threads of the loop, target."""
    image = (1, 28, 28)
    return [
        ("MLP, Adam, 800 examples", mlp(), (25,), 800, 10, Recipe(1e-3, 20, 200, torch.optim.Adam), 1, ">= 4"),
        ("conv4, SGD, 5 images", conv4(5, generator=rng(0)), image, 5, 5, Recipe(0.03, 40), 2, ">= 12"),
        ("conv4, SGD, 25 images", conv4(5, generator=rng(0)), image, 25, 5, Recipe(0.03, 20), 2, ">= 6"),
        ("conv4, SGD, 75 images", conv4(5, generator=rng(0)), image, 75, 5, Recipe(0.03, 10), 2, ">= 3"),
    ]


def scouting(rounds: int, pool: Executor) -> None:
    for name, model, shape, examples, n_way, recipe, threads, target in cases():
        tasks = random_tasks(16, shape, examples, n_way)
        plain = partial(plain_scouts, model, tasks, recipe, threads)
        ours = partial(scout, model, tasks, recipe, executor=pool, side_by_side=SIDE_BY_SIDE)
        ratio = alternate(plain, ours, rounds)
        peak = peak_flops()
        work = operations(model, tasks[0][0][0]) * examples * recipe.epochs * len(tasks)
        steps = len(tasks) * recipe.epochs
        note = (
            f"{1e3 * ratio.plain / steps:.2f} -> {1e3 * ratio.other / steps:.2f} ms per scout-epoch, "
            f"{work / ratio.other / CORES / peak:.0%} of peak ({peak / 1e9:.0f} GFLOP/s) on each of {CORES} cores"
        )
        line(f"scouting, {name}", f"plain loop, {threads} thread{'s' * (threads > 1)}", ratio, target, note)


def bounds() -> None:
    """What limits scouts side by side: the share of the time that products take, how near to the peak, what is next."""
    for name, model, shape, examples, n_way, recipe, _, _ in cases():
        tasks = random_tasks(SIDE_BY_SIDE, shape, examples, n_way)
        together = partial(scout, model, tasks, recipe, side_by_side=SIDE_BY_SIDE)
        together()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            together()
        spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profiled.key_averages()}
        total = sum(spent.values())
        products = sum(spent.pop(key) for key in list(spent) if re.search("mm$|convolution", key))
        work = operations(model, tasks[0][0][0]) * examples * recipe.epochs * len(tasks)
        most = sorted(spent, key=spent.get, reverse=True)[:5]
        note = f"products {products / total:.0%} of the time, at {1e6 * work / products / peak_flops():.0%} of peak; "
        shares = ", ".join(f"{key} {spent[key] / total:.0%}" for key in most)
        line(f"bounds, {name}", f"{SIDE_BY_SIDE} side by side", None, "", note + shares)


def guided(rounds: int) -> None:
    for name, channels, batch, some in (("150k", 72, 25, rounds), ("10M", 608, 25, 3)):
        for optimizer in ("SGD", "AdamW", "AdamW fused"):
            ratio = guided_step.compare(channels, batch, guided_step.OPTIMIZERS[optimizer], some)
            target = "<= 1.05" if name == "150k" else "<= 1.03"
            note = f"{1e3 * ratio.other:.1f} ms plain, batch of {batch}"
            line(f"guided step, {name} parameters", optimizer, ratio, target, note)


def one_pass(rounds: int) -> None:
    """Training one network whose body the C code passes through, beside the same layers of torch's."""
    for name, network, n in (("conv4", conv4, 25), ("cnn", cnn, 100)):
        ours = network(5, generator=rng(0))
        layers = copy.deepcopy(ours)
        layers.body = nn.Sequential(*layers.body)
        examples = random_tasks(1, (1, 28, 28), n, 5)[0]
        runs = (partial(Recipe(0.001, 10), model, examples) for model in (layers, ours))
        line(f"{name}, {n} images, one copy", "torch's layers, 1 thread", alternate(*runs, rounds), ">= 1.5")


def episodes(rounds: int) -> None:
    """Fine-tuning of 5-way 1-shot episodes, eight side by side."""
    model, tasks = conv4(5, generator=rng(0)), random_tasks(8, (1, 28, 28), 5, 5)
    inputs, labels = (torch.stack(tensors, 1) for tensors in zip(*tasks, strict=True))

    def side_by_side() -> None:
        network = stack([model] * 8)
        fit(network, inputs, labels, torch.optim.SGD(network.parameters(), 0.03), epochs=20, loss=stacked_cross_entropy)

    plain = partial(plain_scouts, model, tasks, Recipe(0.03, 20), 1)
    line("fine-tuning of episodes, 8 side by side", "plain loop, 1 thread", alternate(plain, side_by_side, rounds), "")


def meta(rounds: int) -> None:
    for method, ratio, rate in meta_learning.compare(rounds):
        target = {"MAML": ">= 1.6", "FOMAML": ">= 2.7"}[method]
        note = f"{rate:.0f} tasks/s of one core"
        line(f"{method}, 8 tasks side by side", "plain loop, 1 thread", ratio, target, note)


def in_a_fresh_process(code: str) -> dict[str, float]:
    """What ``code`` puts into ``result``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json\nprint(json.dumps(result))"],
        cwd=records.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


SCOUTS = """
import torch
from gtl_core import Recipe, scout
from experiments.models import conv4
from gtl_core.tasks import rng
from experiments.workers import peak_memory, single_thread
single_thread()
imported = peak_memory()
model = conv4(5, generator=rng(0))
model(torch.rand(5, 1, 28, 28)).sum().backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()
before = peak_memory()
tasks = ((torch.rand(25, 1, 28, 28, generator=rng(0, i)), torch.arange(25) % 5) for i in range(60))
scout(model, tasks, Recipe(0.03, 20), side_by_side={n})
result = (peak_memory() - before) / 2**20, (before - imported) / 2**20
"""
ACCUMULATION = """
import torch
from gtl_core import Displacement
from experiments.workers import peak_memory
one = {name: torch.rand(1000, 1000) for name in "abcdefghij"}
torch.add(one["a"], 1)
before = peak_memory()
displacement = Displacement(one)
displacement.add(one)
result = (peak_memory() - before) / 10e6 / 4
"""
ADAPTERS = """
import torch
from torch import nn
from gtl_core import Recipe, scout
from experiments.workers import peak_memory, single_thread
single_thread()

class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(896, 14, 3584, batch_first=True).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(896, 8, bias=False), nn.Linear(8, 896, bias=False))

    def forward(self, x):
        return self.layer(x) + self.adapter(x)

model = nn.Sequential(*(Adapted() for _ in range(10)), nn.Flatten(), nn.Linear(8 * 896, 5))
tasks = [(torch.rand(5, 8, 896), torch.arange(5))] * 4
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.SGD(trained, lr=0.1)
nn.functional.cross_entropy(model(tasks[0][0]), tasks[0][1]).backward()
optimizer.step()
before = peak_memory()
displacement = scout(model, tasks, Recipe(0.1, 1))
held = [displacement.zero_point, *displacement._sums.values()]
result = (
    sum(p.numel() for p in model.parameters()),
    sum(p.numel() for p in trained),
    sum(t.nbytes for tensors in held for t in tensors.values()),
    peak_memory() - before,
)
"""
IMPORT = """
import sys, time
begin = time.perf_counter()
import {module}
heavy = ("matplotlib", "pandas", "pydantic", "dask", "sklearn", "scipy")
result = [time.perf_counter() - begin, [name for name in heavy if name in sys.modules]]
"""


def memory() -> None:
    for n in (1, SIDE_BY_SIDE):
        used, torchs = in_a_fresh_process(SCOUTS.format(n=n))
        note = f"{used:.0f} MB; torch itself loads {torchs:.0f} MB at that step"
        line(f"60 conv4 scouts, 25 images, {n} side by side", "peak after one plain step", None, "<= 60 MB", note)
    whole, trained, held, peak = in_a_fresh_process(ADAPTERS)
    note = (
        f"{held / 1e6:.1f} MB held, {peak / 1e6:.0f} MB at the peak; for the whole network {16 * whole / 1e6:.0f} held"
    )
    line(f"4 scouts, {trained / 1e3:.0f}k trained of {whole / 1e6:.0f}M", "peak after one plain step", None, "", note)
    used = in_a_fresh_process(ACCUMULATION)
    line("guide accumulation, 10M parameters", "bytes of the parameters", None, "", f"{used:.1f} times, at the peak")


def imports() -> None:
    times: dict[str, list[float]] = {"torch": [], "gtl_core": []}
    for _ in range(5):
        for module, took in times.items():
            seconds, heavy = in_a_fresh_process(IMPORT.format(module=module))
            took.append(seconds)
            if module == "gtl_core" and heavy:
                raise AssertionError(f"import gtl_core imports {', '.join(heavy)}")
    alone, ours = (statistics.median(took) for took in times.values())
    line("import gtl_core", "import torch", None, "<= 0.2 s", f"{alone:.2f} s + {ours - alone:.2f} s")


def figures() -> None:
    began, n, read = time.perf_counter(), 0, cache(partial(records.read, "results/paper"))
    with tempfile.TemporaryDirectory() as folder:
        for experiment in EXPERIMENTS.values():
            if (records.ROOT / f"results/paper/{experiment.name}.csv").exists():
                for stem, draw in experiment.figures.items():
                    frame = read(experiment.drawn_from.get(stem, experiment.name))
                    save(draw(frame), Path(folder) / f"{stem}.png")
                    n += 1
    line(f"{n} figures from the saved tables", "", None, "", f"{time.perf_counter() - began:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--only", nargs="*", default=[], help="of: scouting bounds guided passes episodes meta memory imports figures"
    )
    rounds, only = vars(parser.parse_args()).values()
    single_thread()
    pool = loky.get_reusable_executor(CORES, timeout=600, initializer=single_thread)
    sections: dict[str, Callable[[], None]] = {
        "scouting": partial(scouting, rounds, pool),
        "bounds": bounds,
        "guided": partial(guided, rounds),
        "passes": partial(one_pass, rounds),
        "episodes": partial(episodes, rounds),
        "meta": partial(meta, rounds),
        "memory": memory,
        "imports": imports,
        "figures": figures,
    }
    print(f"torch {torch.__version__}, {CORES} processes of one thread where not said otherwise")
    print(f"{'what':<44}  {'against':<28}  {'ratio':>6}  {'quartiles':<14}  {'target':<8}")
    for name, section in sections.items():
        if not only or name in only:
            section()


if __name__ == "__main__":
    main()

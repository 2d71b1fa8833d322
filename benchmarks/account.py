"""What a profile asks for and what it takes: ``python -m benchmarks.account paper`` writes ``benchmarks/paper.csv``.

The batch of the last commit runs from nothing, in a clone, while the cores' idle time is watched. Then the same work
is done once more, and the operations of its convolutions and matrix products are counted, as torch's own counter does.
A row is a notebook or all preparations of one kind; for its columns see `COLUMNS`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import loky
import pandas as pd
import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.measure import peak_flops
from experiments.models import conv4
from experiments.preparations.steps import Step
from experiments.records import ROOT
from experiments.workers import LOKY, single_thread
from gtl_core._engine.blocks import compiled
from gtl_core.tasks import rng

sys.path.insert(0, str(ROOT / "workflow"))
import common

COLUMNS = {
    "rules": "of the batch",
    "passes": "millions of images that, sent forward through conv4, ask for as many operations",
    "tflop": "operations, in 10^12: a product and a sum are two",
    "bound": "minutes in which all cores could do them, at the peak of matrix products measured in the same run",
    "minutes": "of all cores: a notebook has them all for as long as it runs, preparations run on one each",
    "share_of_peak": "bound / minutes",
    "idle": "share of the cores' time in which they had nothing to do",
}


CORES, WHOLE = os.cpu_count() or 1, "whole"


class Operations(TorchDispatchMode):
    """Counts, inside of it, what torch's operators compute; `counted` adds what the C code does."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet is torch.ops.aten.convolution_backward:  # torch's own formula overlooks groups
            gradient, _, weight, *_, (of_input, of_weight, _) = args
            self.total += (of_input + of_weight) * 2 * gradient.numel() * weight[0].numel()
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        return out


@contextmanager
def counted() -> Iterator[Operations]:
    """Operations of what is computed inside, by torch or by the C code."""
    code = compiled()
    with Operations() as operations, ExitStack() as patches:
        for name, amount in OF_C_CODE.items() if code else ():
            patches.enter_context(patch.object(code, name, _counting(operations, amount, getattr(code, name))))
        yield operations


def _counting(operations: Operations, amount: Callable[..., int], function: Callable) -> Callable:
    def call(*arguments: Any) -> Any:
        operations.total += amount(*arguments)
        return function(*arguments)

    return call


def strided(n_blocks: int, shapes: Sequence[int], *_: Any) -> list[int]:
    """Operations of every block on one image, where 3x3 windows are two pixels apart."""
    blocks = [shapes[4 * i : 4 * i + 4] for i in range(n_blocks)]
    return [2 * 9 * n_in * out * ((side + 1) // 2) ** 2 for n_in, out, _, side in blocks]


def pooled(n_blocks: int, shapes: Sequence[int], *_: Any) -> list[int]:
    """Operations of every block on one image, where 3x3 windows stand everywhere inside of it."""
    blocks = [shapes[3 * i : 3 * i + 3] for i in range(n_blocks)]
    return [2 * 9 * n_in * out * (side - 2) ** 2 for n_in, out, side in blocks]


def back(of_blocks: Sequence[int]) -> int:
    """Two derivatives, by weights and by inputs; nobody needs that by the images."""
    return 2 * sum(of_blocks) - of_blocks[0]


def whole_fit(n_blocks: int, shapes: Sequence[int], *rest: Any) -> int:
    """Of all steps of `Call.fit`, with a head on the features of the last block."""
    size, n, n_way, steps = rest[2], rest[3], rest[10], rest[11]
    of_blocks, (_, out, _, side) = strided(n_blocks, shapes), shapes[-4:]
    head = 2 * out * ((side + 1) // 2) ** 2 * n_way
    return steps * size * n * (sum(of_blocks) + back(of_blocks) + 3 * head)


# By name of the function, what it computes when it is called with these arguments; see `Call` and `PooledBlocks`.
OF_C_CODE: dict[str, Callable[..., int]] = {
    "forward": lambda *a: a[4] * a[5] * sum(strided(*a)),
    "backward": lambda *a: a[4] * a[5] * back(strided(*a)),
    "fit": whole_fit,
    "pooled_forward": lambda *a: a[3] * sum(pooled(*a)),
    "pooled_backward": lambda *a: a[3] * back(pooled(*a)),
}


class Watched(NamedTuple):
    """A rule of the batch: seconds that it took, and the share of the cores' time left idle meanwhile."""

    seconds: float
    idle: float


class Sample(NamedTuple):
    """Seconds on the clock, and those of all cores since the machine was started: with nothing to do, and all."""

    clock: float
    idle: float
    every: float


def run_and_watch(profile: str, notebooks: Sequence[str], clone: Path) -> dict[str, Watched]:
    """Run the batch in the clone; every rule that was done by its name, and, under the name ``whole``, all of it."""
    targets = [f"results/{profile}/notebooks/{notebook}.ipynb" for notebook in notebooks]
    command = [sys.executable, "workflow/launch.py", profile, *targets]
    environment = os.environ | {"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    file, samples, ended = clone / f"results/{profile}/logs/seconds.json", [_sample()], {}
    batch = subprocess.Popen(command, cwd=clone, env=environment)
    while batch.poll() is None:
        time.sleep(1)
        samples.append(_sample())
        for name, seconds in _read(file).items():
            ended.setdefault(name, (samples[-1].clock, seconds))
    if batch.returncode:
        print("Not everything succeeded: the account is about what did.")
    begin, end = samples[0].clock, samples[-1].clock
    spans = ended | {WHOLE: (end, end - begin)}
    return {name: Watched(seconds, idle(samples, end - seconds, end)) for name, (end, seconds) in spans.items()}


def _read(file: Path) -> dict[str, float]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):  # not there yet, or being written
        return {}


def _sample() -> Sample:
    times = psutil.cpu_times()._asdict()
    every = sum(value for name, value in times.items() if not name.startswith("guest"))  # those are in user already
    return Sample(time.monotonic(), times["idle"] + times.get("iowait", 0.0), every)


def idle(samples: Sequence[Sample], begin: float, end: float) -> float:
    """The share of the cores' time without anything to do, between the samples around ``begin`` and ``end``."""
    clocks = [sample.clock for sample in samples]
    before = samples[max(0, bisect_right(clocks, begin) - 1)]
    after = samples[min(bisect_left(clocks, end), len(samples) - 1)]
    return (after.idle - before.idle) / (after.every - before.every) if after.every > before.every else 0.0


def count(profile: str, clone: Path, parts: Sequence[Any]) -> int:
    """Operations of preparations (each a `Step`), or of an experiment (its parameters); what they need is in the clone.

    Not those of what a notebook does beside its experiment: one task by hand, and figures.
    """
    single_thread()
    with counted() as operations:
        for part in parts:
            if isinstance(part, Step):
                part.make(clone / f"results/{profile}/prepared")
            else:
                here = {"results": str(clone / part.results), "prepared": str(clone / part.prepared), "workers": 1}
                import_module(f"{type(part).__module__.rpartition('.')[0]}.run").run(part.model_copy(update=here))
    return operations.total


def account(profile: str, notebooks: Sequence[str]) -> pd.DataFrame:
    """One row per notebook and kind of preparation, and one of all; in the order in which they ended."""
    plan = {name: p for name, p in common.plan(profile).items() if not notebooks or name in notebooks}
    parts = {common.rule(steps): steps for steps in common.together(common.users(plan))}
    rows = {name: f"{steps[0].kind.replace('_', ' ')} (preparations)" for name, steps in parts.items()}
    parts |= {f"notebook_{name}": [p] for name, p in plan.items()}
    rows |= {f"notebook_{name}": name for name in plan} | {WHOLE: WHOLE}
    with (
        tempfile.TemporaryDirectory() as folder,
        loky.ProcessPoolExecutor(CORES, env=LOKY | {"TQDM_DISABLE": "1"}) as pool,
    ):
        clone = Path(folder, "clone")
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        shutil.rmtree(clone / "results")
        for library in (ROOT / "gtl_core/_engine").glob("*.so"):
            shutil.copy(library, clone / "gtl_core/_engine")
        peaks = [peak(pool)]
        watched = run_and_watch(profile, notebooks, clone)
        peaks.append(peak(pool))
        done = [name for name in parts if name in watched]
        found = pool.map(partial(count, profile, clone), [parts[name] for name in done])
        operations = dict(zip(done, found, strict=True))
    return table(watched, operations, rows, sum(peaks) / len(peaks))


def peak(pool: Executor) -> float:
    """Operations per second of all cores at once, in products of matrices."""
    return sum(pool.map(_peak, range(CORES)))


def _peak(_: int) -> float:
    single_thread()
    return peak_flops()


def table(
    watched: Mapping[str, Watched], operations: Mapping[str, int], rows: Mapping[str, str], peak: float
) -> pd.DataFrame:
    """The account. ``rows``: in which one each rule is counted; all others, which compute little, have their own."""
    with counted() as one, torch.no_grad():
        conv4(5, generator=rng(0))(torch.zeros(1, 1, 28, 28))
    parts: dict[str, list[tuple[int, float, float]]] = {}
    for name, rule in watched.items():
        # A notebook has all cores, and everything else one.
        minutes = rule.seconds / 60 / (1 if name == WHOLE or name.startswith("notebook_") else CORES)
        done = sum(operations.values()) if name == WHOLE else operations.get(name, 0)
        parts.setdefault(rows.get(name, "data, figures, report"), []).append((done, minutes, rule.idle))
    found = []
    for part, rules in parts.items():
        done, minutes = sum(o for o, _, _ in rules), sum(m for _, m, _ in rules)
        bound, unused = done / peak / 60, sum(m * i for _, m, i in rules) / minutes
        values = (len(rules), done / one.total / 1e6, done / 1e12, bound, minutes, bound / minutes, unused)
        found.append({"part": part} | dict(zip(COLUMNS, values, strict=True)))
    return pd.DataFrame(found).round(dict.fromkeys(COLUMNS, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("notebooks", nargs="*", help="default: all of the profile")
    args = parser.parse_args()
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT).returncode:
        sys.exit("The account is of the last commit: commit your changes first.")
    found = account(args.profile, args.notebooks)
    found.to_csv(ROOT / f"benchmarks/{args.profile}.csv", index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    import_module("benchmarks.account").main()  # whose functions other processes can import

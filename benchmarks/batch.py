"""What training side by side saves the notebooks: their own jobs, as they are and one task at a time.

    python -m benchmarks.batch [--jobs 12]

Each notebook of the paper profile draws up its jobs as in a run, but on untrained networks of the same shapes. Some of
them, evenly spread over the list, are done, both ways in turn, and the whole is estimated from these. One at a time
means an ordinary network, autograd, one episode or stream after the other; in both cases each process has one thread.
Minutes are CPU time, of all processes together. The scouts of the profile are treated alike; pretraining is the same
both ways, and so is what is trained one task at a time in any case (00, 05, 09, parts of 04, 06 and 08). 02 was never
written that way.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from gtl_core import Displacement
from experiments import records
from experiments.baselines.learned_optimizer import StepRule
from gtl_core.experiments import (
    domain_shift,
    few_shot_neighbours,
    forgetting,
    forgetting_neighbours,
    guides,
    methods,
    neighbours,
    one_shot,
    preparation,
)
from experiments.catalogue import EXPERIMENTS
from experiments.preparations.pretraining import Pretraining, Scouting
from experiments.models import conv4
from experiments.statistics import choose_rates
from gtl_core.tasks import rng
from experiments.workers import single_thread
from workflow import common

STREAMS = (forgetting, forgetting_neighbours)  # whose jobs train all their streams at once
EPISODES = (one_shot, guides, few_shot_neighbours)  # whose jobs train ``SIDE_BY_SIDE`` examples at once
NOTEBOOKS = {
    "01_one_shot": one_shot,
    "03_forgetting": forgetting,
    "04_guides": guides,
    "06_few_shot_neighbours": few_shot_neighbours,
    "07_forgetting_neighbours": forgetting_neighbours,
    "08_domain_shift": domain_shift,
}


class Enough(Exception):
    """The jobs of a notebook have been sampled."""


def alone(models: Sequence[nn.Module]) -> nn.Module:
    """An ordinary network in the place of `stack` with one copy: [N, 1, ...] -> [N, 1, ...]."""
    model = copy.deepcopy(models[0])
    model.register_forward_pre_hook(lambda model, inputs: (inputs[0][:, 0],))
    model.register_forward_hook(lambda model, inputs, output: output[:, None])
    return model


@contextmanager
def one_at_a_time() -> Iterator[None]:
    with ExitStack() as patches:
        for module in (methods, few_shot_neighbours):
            patches.enter_context(patch.object(module, "stack", alone))
            patches.enter_context(patch.object(module, "stack_guide", lambda guide, size: guide))
        for module in EPISODES:
            patches.enter_context(patch.object(module, "SIDE_BY_SIDE", 1))
        patches.enter_context(patch.object(preparation, "BACKEND", "loop"))
        yield


def in_turn(function: Callable, job_and_start: tuple) -> None:
    """A job's streams, or what else it does, one after the other."""
    job, *start = job_and_start
    n_times = 1
    if function in [module._run_job for module in STREAMS]:
        n_times = job.parameters.n_streams if job.purpose == "test" else job.parameters.n_tuning_streams
        single = job.parameters.model_copy(update={"n_streams": 1, "n_tuning_streams": 1})
        job = replace(job, parameters=single)
    for _ in range(n_times):
        function((job, *start))


class Clock:
    """Seconds of CPU that a notebook's jobs take one at a time and as they are, estimated from ``n`` of each list."""

    def __init__(self, n: int) -> None:
        self.n, self.before, self.after = n, 0.0, 0.0

    def sample(self, before: Callable, after: Callable, jobs: Sequence) -> list:
        """The results, each job's from the one that was done in its place."""
        n = min(self.n, len(jobs))
        results = []
        for i in range(n):
            job = jobs[(2 * i + 1) * len(jobs) // (2 * n)]
            for plain in (True, False) if i % 2 else (False, True):
                begin = time.process_time()
                with one_at_a_time() if plain else nullcontext():
                    result = (before if plain else after)(job)
                took = (time.process_time() - begin) * len(jobs) / n
                if plain:
                    self.before += took
                else:
                    self.after += took
                    results.append(result)
        return [results[i * n // len(jobs)] for i in range(len(jobs))]

    def parallel(self, function: Callable, jobs: Sequence, workers: int, description: str, *where: str) -> list:
        """In the place of `workers.parallel`."""
        if description == "scouting":  # with rules of their own, scout by scout
            return [function(jobs[0])] * len(jobs)
        results = self.sample(partial(in_turn, function), function, jobs)
        if description.startswith("test"):
            raise Enough
        return results


def displaced(model: nn.Module) -> Displacement:
    """What scouts might bring back to this network, without scouting."""
    displacement, generator = Displacement(model), rng(0)
    displacement.add({n: p + 0.01 * torch.rand(p.shape, generator=generator) for n, p in model.named_parameters()})
    return displacement


def all_displaced(p: methods.ImageParameters) -> dict[Scouting, Displacement]:
    return {scouting: displaced(scouting.zero_point(None)) for scouting in p.preparations()}


def untrained(p, seed: int, variant, factor: float) -> few_shot_neighbours.Start:
    """In the place of a start that is read from the preparations."""
    pretraining = Pretraining(dataset=p.dataset, seed=seed, channels=p.channels, epochs=0)
    model = neighbours.network(pretraining, getattr(p, "backbone", "conv4"), variant.n_way, p.heads[0])
    return few_shot_neighbours.Start(model, StepRule(generator=rng(0)).state_dict(), displaced(model))


def bodies(p: guides.GuidesParameters) -> dict[Pretraining, dict[str, Tensor]]:
    body = conv4(2, p.channels, generator=rng(0)).body.state_dict()
    return {step: body for step in p.preparations()}


def clock_of(notebook: str, p, n: int) -> Clock:
    """Of the jobs of a notebook with these parameters; rates for the test are those of the committed table."""
    module, clock = NOTEBOOKS[notebook], Clock(n)
    table = records.read("results/paper", EXPERIMENTS[notebook].name)
    saved = cache(partial(choose_rates, guides.arenas(table) if module is guides else table))

    def results(jobs: Sequence, start_of: Callable, description: str) -> list:
        pairs = [(job, untrained(p, job.seed, job.variant, job.factor)) for job in jobs]
        pairs = [pair for pair in pairs if pair[0].variant.method not in few_shot_neighbours.ONE_BY_ONE]
        clock.parallel(few_shot_neighbours.run_job, pairs, 1, description)
        return [(torch.zeros(1).numpy(), 0.0)] * len(jobs)

    stand_ins = {
        "parallel": clock.parallel,
        "results": results,
        "choose_rates": lambda frame, tuned_on: saved(tuned_on),
        "_bodies": bodies,
    }
    with ExitStack() as patches, suppress(Enough):
        patches.enter_context(patch.object(neighbours, "made", lambda *_: nullcontext(Path())))
        patches.enter_context(patch.object(methods.ImageParameters, "displacements", all_displaced))
        for name in set(stand_ins) & set(vars(module)):
            patches.enter_context(patch.object(module, name, stand_ins[name]))
        module.run(p)
    return clock


def clock_of_scouts(steps: Sequence[Scouting], n: int) -> Clock:
    def send(step: Scouting) -> Displacement:
        return step.scout(None)

    clock = Clock(n)
    clock.sample(send, send, steps)
    return clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=12, help="of each list that are done")
    n = parser.parse_args().jobs
    single_thread()
    plan = common.plan("paper")
    steps = dict.fromkeys(step for p in plan.values() for step in p.preparations() if isinstance(step, Scouting))
    print(f"torch {torch.__version__}, paper profile: minutes of CPU, one at a time -> as it is")
    clocks = {"scouts": partial(clock_of_scouts, list(steps), n)}
    clocks |= {name: partial(clock_of, name, plan[name], n) for name in NOTEBOOKS}
    for name, clock_of_it in clocks.items():
        clock = clock_of_it()
        ratio = clock.before / clock.after
        print(f"{name:<26} {clock.before / 60:7.1f} -> {clock.after / 60:6.1f}  {ratio:5.2f} times", flush=True)


if __name__ == "__main__":
    main()

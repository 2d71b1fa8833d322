"""What scouting costs: measured, put into a cost model, and carried over to a large language model."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Annotated, NamedTuple

import loky
import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy.optimize import nnls
from torch import nn

from experiments.methods import GUIDED, TENSOR
from experiments.parameters import Count, NotebookParameters, Rate
from experiments.workers import peak_memory, single_thread
from gtl_core.scouting import scout
from gtl_core.tasks import rng
from gtl_core.training import Recipe

LAYERS = 4
VISIBLE = 500_000  # parameters; smaller networks find their memory among what Python keeps free
COPIES = 8  # of the parameters while a scout is added: model, scout, zero point, sums, its displacement and its square
LONG = 1.0  # seconds of repeating one timing; more would not make it more precise
SUMS = 3  # of a `Displacement`: signed, absolute and squared
FLOAT32 = 4  # bytes


class ScalingParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    sizes: tuple[Count, ...] = Field(min_length=3)
    batch_sizes: tuple[Count, ...] = Field(min_length=1)
    steps: tuple[Count, ...] = Field(min_length=1)
    n_scouts: tuple[Count, ...] = Field(min_length=1)
    n_workers: tuple[Count, ...] = Field(min_length=1)
    repeats: Count
    target_size: Rate
    target_scouts: Count
    tokens_per_scout: Rate
    pretraining_tokens: Rate
    lora_share: Annotated[float, Field(gt=0, le=1)]
    gpus: Count
    gpus_per_scout: Count
    gpu_flops: Rate
    utilisation: Annotated[float, Field(gt=0, le=1)]
    gpu_memory: Rate
    bandwidth: Rate
    weight_bytes: Rate
    gradient_bytes: Rate
    optimizer_bytes: Rate


class Workload(NamedTuple):
    """One scouting that is measured; the columns of the results that tell one from another."""

    n_parameters: int
    batch_size: int
    steps: int
    n_scouts: int
    n_workers: int


class Training(NamedTuple):
    """What of the target network is trained and guided: its label and colour, the share of the parameters, and the
    operations per parameter and token: 2 forward, 2 for gradients of activations, 2 for those of trained weights."""

    label: str
    colour: str
    share: Callable[[ScalingParameters], float]
    operations: int


TRAININGS = {
    "full": Training("all parameters", GUIDED.colour, lambda p: 1, 6),
    "lora": Training("LoRA", TENSOR.colour, lambda p: p.lora_share, 4),
}


def perceptron(size: int) -> nn.Sequential:
    """``LAYERS`` square layers with about ``size`` parameters together."""
    width = max(2, round(math.sqrt(size / LAYERS)))
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def workloads(p: ScalingParameters) -> list[Workload]:
    """All that is timed."""
    sizes = [sum(w.numel() for w in perceptron(size).parameters()) for size in p.sizes]
    return [Workload(*values) for values in product(sizes, p.batch_sizes, p.steps, p.n_scouts, p.n_workers)]


def run(p: ScalingParameters) -> pd.DataFrame:
    """Measurements, the cost model's predictions, and the needs of a large network, as a tidy frame.

    Columns: seed, method, those of `Workload`, metric, value. Methods and their metrics:

    - ``measured``: ``seconds``, ``sent_bytes`` of a scouting, ``peak_bytes`` (with one worker) above what is imported;
    - ``fitted`` and ``held_out``: ``seconds`` by a model that knew this size of network, and by one that did not;
    - ``model``: the coefficients, by the names of `terms`;
    - ``assumed``: the parameters about the target network and the GPUs, and ``COPIES``;
    - ``full`` and ``lora``: needs of the target network, see `needs`.
    """
    single_thread()
    every = workloads(p)
    took, sent = zip(*(timed(workload, p) for workload in every), strict=True)
    model = fit_model(every, took)
    assumed = list(ScalingParameters.model_fields)
    assumed = assumed[assumed.index("target_size") :]
    nowhere = Workload(*[""] * 5)
    target = nowhere._replace(n_parameters=p.target_size, n_scouts=p.target_scouts)
    lines = [
        *(("measured", w, {"seconds": s, "sent_bytes": n}) for w, s, n in zip(every, took, sent, strict=True)),
        *(("measured", w, {"peak_bytes": peak}) for w, peak in peaks_of(every, p)),
        ("model", nowhere, model),
        *predictions(every, took, model),
        ("assumed", nowhere, {"copies": COPIES} | {name: getattr(p, name) for name in assumed}),
        *((method, target, needs(p, method)) for method in TRAININGS),
    ]
    return pd.DataFrame(
        {"seed": p.seed, "method": method} | where._asdict() | {"metric": metric, "value": float(value)}
        for method, where, values in lines
        for metric, value in values.items()
    )


def timed(workload: Workload, p: ScalingParameters) -> tuple[float, int]:
    """Seconds of a scouting, the shortest of up to ``repeats`` after a short one that is not timed, and bytes sent to
    the workers and back."""
    executor = None
    if workload.n_workers > 1:
        executor = _Counting(loky.get_reusable_executor(workload.n_workers, timeout=600, initializer=single_thread))
    carry_out(workload._replace(steps=1, n_scouts=2 * workload.n_workers), p, executor)
    took = []
    while len(took) < p.repeats and sum(took) < LONG:
        if executor:
            executor.sent = 0
        begin = time.perf_counter()
        carry_out(workload, p, executor)
        took.append(time.perf_counter() - begin)
    return min(took), executor.sent if executor else 0


def carry_out(workload: Workload, p: ScalingParameters, executor: Executor | None = None) -> None:
    model = perceptron(workload.n_parameters)
    width = model[0].in_features
    labels = torch.arange(workload.batch_size) % width
    inputs = (torch.randn(workload.batch_size, width, generator=rng(p.seed, i)) for i in range(workload.n_scouts))
    scout(model, ((x, labels) for x in inputs), Recipe(0.01, workload.steps), executor=executor)


def peaks_of(every: Sequence[Workload], p: ScalingParameters) -> list[tuple[Workload, int]]:
    """Peak memory of the shortest scoutings in one process: of every visible network with the most scouts, of the
    largest with each number of scouts."""
    alone = [w._replace(n_workers=1) for w in every if (w.batch_size, w.steps) == (p.batch_sizes[0], p.steps[0])]
    alone = list(dict.fromkeys(alone))
    many, largest = max(p.n_scouts), max(w.n_parameters for w in every)
    alone = [w for w in alone if (w.n_scouts == many and w.n_parameters >= VISIBLE) or w.n_parameters == largest]
    context = get_context("forkserver")  # it imports torch once; what starts from it has done nothing else
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1) as fresh:
        return list(zip(alone, fresh.map(partial(peak_bytes, p=p), alone), strict=True))


def peak_bytes(workload: Workload, p: ScalingParameters) -> int:
    """By how much a scouting raises this process's peak of memory; it must be a fresh one."""
    single_thread()
    carry_out(workload._replace(n_parameters=1), p)  # loads what torch loads late
    before = peak_memory()
    carry_out(workload, p)
    return peak_memory() - before


class _Counting(Executor):
    """Counts the bytes of arguments and results."""

    def __init__(self, executor: Executor) -> None:
        self.executor, self.sent = executor, 0

    def map(self, function, jobs: Iterable[bytes]) -> Iterator[bytes]:
        function_bytes = len(pickle.dumps(function))
        self.sent += sum(function_bytes + len(job) for job in jobs)
        for result in self.executor.map(function, jobs):
            self.sent += len(result)
            yield result


def terms(workload: Workload) -> dict[str, float]:
    """What a scouting has to do, in the units of the model's coefficients (seconds per unit)."""
    n_parameters, batch_size, steps, n_scouts, n_workers = workload
    in_a_row, sent = math.ceil(n_scouts / n_workers) * steps, n_scouts * (n_workers > 1)
    return {
        "per step": in_a_row,
        "per step, parameter and example": in_a_row * n_parameters * batch_size,
        "per step and parameter": in_a_row * n_parameters,
        "per step, parameter and each other worker": in_a_row * n_parameters * (n_workers - 1),
        "per scout": n_scouts,
        "per scout and parameter, to copy and add": n_scouts * n_parameters,
        "per scout sent": sent,
        "per scout and parameter, to send": sent * n_parameters,
    }


def fit_model(every: Sequence[Workload], seconds: Sequence[float]) -> dict[str, float]:
    """No coefficient below zero; the smallest sum of ratio + 1 / ratio of predicted to measured seconds.

    Ratios of 2 and 1/2 are equally wrong, which relative errors would not see. By reweighting with the last prediction;
    each fit is that of Lawson & Hanson (1974).
    """
    work = pd.DataFrame([terms(workload) for workload in every])
    work = work.loc[:, work.any()]
    took = np.array(seconds)
    predicted = took
    for _ in range(30):
        weights = np.sqrt(1 / (predicted * took) + 1 / predicted**2)  # where this settles, the sum has no slope
        columns = work.mul(weights, axis=0)
        found = nnls((columns / columns.max()).to_numpy(), took * weights)[0] / columns.max().to_numpy()
        predicted = work.to_numpy() @ found
    return dict(zip(work, found, strict=True))


def predict(model: Mapping[str, float], workload: Workload) -> float:
    """Seconds."""
    return sum(model.get(name, 0.0) * amount for name, amount in terms(workload).items())


def predictions(every: Sequence[Workload], took: Sequence[float], model: Mapping[str, float]) -> Iterator[tuple]:
    """Lines of the table: the seconds of each workload by ``model``, and by one that has not seen its size."""
    for size in dict.fromkeys(w.n_parameters for w in every):
        known = [(w, seconds) for w, seconds in zip(every, took, strict=True) if w.n_parameters != size]
        without = fit_model(*zip(*known, strict=True))
        for workload in (w for w in every if w.n_parameters == size):
            yield "fitted", workload, {"seconds": predict(model, workload)}
            yield "held_out", workload, {"seconds": predict(without, workload)}


def needs(p: ScalingParameters, method: str) -> dict[str, float]:
    """What scouting with the target network needs on the GPUs that are assumed.

    method: ``full`` trains and guides all parameters, ``lora`` a share of them and keeps the others frozen. In bytes
    per scout, spread over ``gpus_per_scout``: ``weights``, ``gradients``, ``optimizer`` and ``displacement`` (the zero
    point and the sums). In seconds: ``compute``; ``send_all``, if one machine collects the parameters of every scout;
    ``merge_sums``, if every group of GPUs adds up its own scouts and only sums travel (an all-reduce).
    """
    trained = p.target_size * TRAININGS[method].share(p)
    tokens = p.target_scouts * p.tokens_per_scout
    throughput = p.gpus * p.gpu_flops * p.utilisation
    return {
        "weights": p.weight_bytes * p.target_size,
        "gradients": p.gradient_bytes * trained,
        "optimizer": p.optimizer_bytes * trained,
        "displacement": (p.weight_bytes + SUMS * FLOAT32) * trained,
        "compute": TRAININGS[method].operations * p.target_size * tokens / throughput,
        "send_all": p.target_scouts * FLOAT32 * trained / p.bandwidth,
        "merge_sums": 2 * SUMS * FLOAT32 * trained / p.bandwidth,
    }


MEMORY = ("weights", "gradients", "optimizer", "displacement")


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """By which factor, at least 1, predicted seconds are off either way: per size, median and largest, ``fitted`` and
    ``held_out``."""
    seconds = frame[frame["metric"] == "seconds"].pivot(index=list(Workload._fields), columns="method", values="value")
    ratio = seconds[["fitted", "held_out"]].div(seconds["measured"], axis=0)
    factor = ratio.where(ratio > 1, 1 / ratio)
    return factor.groupby("n_parameters").agg(["median", "max"])


def peaks(frame: pd.DataFrame) -> pd.DataFrame:
    """Peak memory by network and number of scouts, as multiples of the memory of the parameters (see `COPIES`)."""
    peak = frame[frame["metric"] == "peak_bytes"].astype({"n_parameters": int, "n_scouts": int})
    copies = peak.assign(copies=peak["value"] / (FLOAT32 * peak["n_parameters"]))
    return copies.pivot(index="n_parameters", columns="n_scouts", values="copies")


def limits(frame: pd.DataFrame, p: ScalingParameters) -> pd.DataFrame:
    """Each need of the target network as a share of what there is: above 1, scouting breaks there.

    Memory is compared with that of ``gpus_per_scout`` GPUs; ``memory`` is all of it together. Sending is compared with
    computing.
    """
    need = frame[frame["method"].isin(list(TRAININGS))].pivot(index="metric", columns="method", values="value")
    memory = need.loc[list(MEMORY)] / (p.gpus_per_scout * p.gpu_memory)
    sending = need.loc[["send_all", "merge_sums"]] / need.loc["compute"]
    return pd.concat([memory, memory.sum().to_frame("memory").T, sending])

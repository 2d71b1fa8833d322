"""What scouting costs: measured, put into a cost model of five terms, and carried over to a large language model."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from torch import nn

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

# Operations per parameter and token: 2 forward, 2 for gradients of activations, 2 for those of trained weights.
OPERATIONS = {"full": 6, "lora": 4}


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


class Setting(NamedTuple):
    """One measurement; the columns of the results that tell one from another."""

    n_parameters: int
    batch_size: int
    steps: int
    n_scouts: int
    n_workers: int


def network(size: int) -> nn.Sequential:
    """``LAYERS`` square layers with about ``size`` parameters together."""
    width = max(2, round(math.sqrt(size / LAYERS)))
    layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def settings(p: ScalingParameters) -> list[Setting]:
    """All that is timed."""
    sizes = [sum(w.numel() for w in network(size).parameters()) for size in p.sizes]
    return [Setting(*values) for values in product(sizes, p.batch_sizes, p.steps, p.n_scouts, p.n_workers)]


def run(p: ScalingParameters) -> pd.DataFrame:
    """Measurements, the cost model's predictions, and the needs of a large network, as a tidy frame.

    Columns: seed, method, those of `Setting`, metric, value. Methods and their metrics:

    - ``measured``: ``seconds``, ``sent_bytes`` of a scouting, ``peak_bytes`` (with one worker) above what is imported;
    - ``fitted`` and ``held_out``: ``seconds`` by a model that knew this size of network, and by one that did not;
    - ``model``: the coefficients, by the names of `terms`;
    - ``assumed``: the parameters about the target network and the GPUs, and ``COPIES``;
    - ``full`` and ``lora``: needs of the target network, see `needs`.
    """
    single_thread()
    every = settings(p)
    rows = []

    def record(method: str, setting: Setting | dict, **values: float) -> None:
        key = setting._asdict() if isinstance(setting, Setting) else setting
        key = {"seed": p.seed, "method": method} | dict.fromkeys(Setting._fields, "") | key
        rows.extend(key | {"metric": metric, "value": float(value)} for metric, value in values.items())

    seconds = []
    for setting in every:
        took, sent = measured(setting, p)
        seconds.append(took)
        record("measured", setting, seconds=took, sent_bytes=sent)
    alone = [s for s in every if (s.n_workers, s.batch_size, s.steps) == (p.n_workers[0], p.batch_sizes[0], p.steps[0])]
    many, largest = max(p.n_scouts), max(s.n_parameters for s in every)
    alone = [s for s in alone if (s.n_scouts == many and s.n_parameters >= VISIBLE) or s.n_parameters == largest]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), max_tasks_per_child=1) as fresh:
        for setting, peak in zip(alone, fresh.map(partial(peak_bytes, p=p), alone), strict=True):
            record("measured", setting, peak_bytes=peak)
    model = fit_model(every, seconds)
    record("model", {}, **model)
    for size in dict.fromkeys(s.n_parameters for s in every):
        known = [(s, t) for s, t in zip(every, seconds, strict=True) if s.n_parameters != size]
        without = fit_model(*zip(*known, strict=True))
        for setting in (s for s in every if s.n_parameters == size):
            record("fitted", setting, seconds=predict(model, setting))
            record("held_out", setting, seconds=predict(without, setting))
    assumed = list(ScalingParameters.model_fields)
    assumed = assumed[assumed.index("target_size") :]
    record("assumed", {}, copies=COPIES, **{name: getattr(p, name) for name in assumed})
    for method in OPERATIONS:
        record(method, {"n_parameters": p.target_size, "n_scouts": p.target_scouts}, **needs(p, method))
    return pd.DataFrame(rows)


def measured(setting: Setting, p: ScalingParameters) -> tuple[float, int]:
    """Seconds of a scouting, the shortest of up to ``repeats``, and bytes sent to the workers and back."""
    executor = None
    if setting.n_workers > 1:
        executor = _Counting(loky.get_reusable_executor(setting.n_workers, timeout=600, initializer=single_thread))
    send_scouts(Setting(1, 1, 1, 4 * setting.n_workers, setting.n_workers), p, executor)  # to start
    took = []
    while len(took) < p.repeats and sum(took) < LONG:
        if executor:
            executor.sent = 0
        begin = time.perf_counter()
        send_scouts(setting, p, executor)
        took.append(time.perf_counter() - begin)
    return min(took), executor.sent if executor else 0


def send_scouts(setting: Setting, p: ScalingParameters, executor: Executor | None = None) -> None:
    model = network(setting.n_parameters)
    width = model[0].in_features
    labels = torch.arange(setting.batch_size) % width
    inputs = (torch.randn(setting.batch_size, width, generator=rng(p.seed, i)) for i in range(setting.n_scouts))
    scout(model, ((x, labels) for x in inputs), Recipe(0.01, setting.steps), executor=executor, backend="loop")


def peak_bytes(setting: Setting, p: ScalingParameters) -> int:
    """By how much a scouting raises this process's peak of memory; it must be a fresh one."""
    single_thread()
    send_scouts(setting._replace(n_parameters=1), p)  # loads what torch loads late
    before = peak_memory()
    send_scouts(setting, p)
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


def terms(setting: Setting) -> dict[str, float]:
    """What a scouting has to do, in the units of the model's coefficients (seconds per unit)."""
    n_parameters, batch_size, steps, n_scouts, n_workers = setting
    in_a_row = math.ceil(n_scouts / n_workers) * steps
    return {
        "per step": in_a_row,
        "per step, parameter and example": in_a_row * n_parameters * batch_size,
        "per step and parameter": in_a_row * n_parameters,
        "per scout and parameter, to copy and add": n_scouts * n_parameters,
        "per scout and parameter, to send": n_scouts * n_parameters * (n_workers > 1),
    }


def fit_model(every: Sequence[Setting], seconds: Sequence[float]) -> dict[str, float]:
    """No coefficient below zero; least squares on (ratio + 1 / ratio) of predicted to measured seconds.

    Ratios of 2 and 1/2 are equally wrong, which relative errors would not see. By reweighting with the last prediction.
    """
    work = pd.DataFrame([terms(setting) for setting in every])
    work = work.loc[:, work.any()]
    measured = np.array(seconds)
    predicted = measured
    for _ in range(30):
        weights = 1 / np.sqrt(predicted * measured)
        found = _least_squares(work.mul(weights, axis=0), measured * weights)
        predicted = work.to_numpy() @ found
    return dict(zip(work, found, strict=True))


def _least_squares(columns: pd.DataFrame, target: np.ndarray) -> np.ndarray:
    """Coefficients of which none is negative: the most negative one becomes 0 until there is none."""
    scale, kept = columns.max(), list(columns)
    while True:
        found = np.linalg.lstsq((columns[kept] / scale[kept]).to_numpy(), target, rcond=None)[0] / scale[kept]
        if found.min() >= 0:
            return found.reindex(columns.columns, fill_value=0.0).to_numpy()
        kept.remove(found.mul(scale[kept]).idxmin())


def predict(model: Mapping[str, float], setting: Setting) -> float:
    """Seconds."""
    return sum(model.get(name, 0.0) * amount for name, amount in terms(setting).items())


def needs(p: ScalingParameters, method: str) -> dict[str, float]:
    """What scouting with the target network needs on the GPUs that are assumed.

    method: ``full`` trains and guides all parameters, ``lora`` a share of them and keeps the others frozen. In bytes
    per scout, spread over ``gpus_per_scout``: ``weights``, ``gradients``, ``optimizer`` and ``displacement`` (the zero
    point and the sums). In seconds: ``compute``; ``send_all``, if one machine collects the parameters of every scout;
    ``merge_sums``, if every group of GPUs adds up its own scouts and only sums travel (an all-reduce).
    """
    trained = p.target_size * (p.lora_share if method == "lora" else 1)
    tokens = p.target_scouts * p.tokens_per_scout
    throughput = p.gpus * p.gpu_flops * p.utilisation
    return {
        "weights": p.weight_bytes * p.target_size,
        "gradients": p.gradient_bytes * trained,
        "optimizer": p.optimizer_bytes * trained,
        "displacement": (p.weight_bytes + SUMS * FLOAT32) * trained,
        "compute": OPERATIONS[method] * p.target_size * tokens / throughput,
        "send_all": p.target_scouts * FLOAT32 * trained / p.bandwidth,
        "merge_sums": 2 * SUMS * FLOAT32 * trained / p.bandwidth,
    }


MEMORY = ("weights", "gradients", "optimizer", "displacement")
TIMES = ("compute", "send_all", "merge_sums")


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Relative error of the predicted seconds: per size, median and largest, ``fitted`` and ``held_out``."""
    seconds = frame[frame["metric"] == "seconds"].pivot(index=list(Setting._fields), columns="method", values="value")
    relative = seconds[["fitted", "held_out"]].div(seconds["measured"], axis=0).sub(1).abs()
    return relative.groupby("n_parameters").agg(["median", "max"])


def peaks(frame: pd.DataFrame) -> pd.DataFrame:
    """Peak memory by network and number of scouts, as multiples of the memory of the parameters (see `COPIES`)."""
    of = frame[frame["metric"] == "peak_bytes"].astype({"n_parameters": int, "n_scouts": int})
    copies = of.assign(copies=of["value"] / (FLOAT32 * of["n_parameters"]))
    return copies.pivot(index="n_parameters", columns="n_scouts", values="copies")


def limits(frame: pd.DataFrame, p: ScalingParameters) -> pd.DataFrame:
    """Each need of the target network as a share of what there is: above 1, scouting breaks there.

    Memory is compared with that of ``gpus_per_scout`` GPUs; ``memory`` is all of it together. Sending is compared with
    computing.
    """
    of = frame[frame["method"].isin(list(OPERATIONS))].pivot(index="metric", columns="method", values="value")
    memory = of.loc[list(MEMORY)] / (p.gpus_per_scout * p.gpu_memory)
    sending = of.loc[["send_all", "merge_sums"]] / of.loc["compute"]
    return pd.concat([memory, memory.sum().to_frame("memory").T, sending])

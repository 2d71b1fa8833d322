"""Few cells, many genes: does a guide help to tell two types of cells apart that nobody has seen?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import field_validator
from torch import Tensor, nn

from experiments.baselines.continual import L2SP
from experiments.data.genes import Cells
from experiments.e14_genes.methods import METHODS, GeneMethod
from experiments.e14_genes.preparations import (
    N_WAY,
    CellName,
    GenePretraining,
    GeneScouting,
    Scouts,
    Split,
    ZeroPoint,
)
from experiments.methods import FROZEN
from experiments.optimizers import ADAMS, OptimizerName, make
from experiments.parameters import Count, Rate, SeededParameters, Some
from experiments.preparations.steps import Step, made
from experiments.protocol import Job, Row, best_to_test, tune_and_test
from experiments.statistics import NONE, best_settings
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.guide import Guide
from gtl_core.guided import Guided
from gtl_core.tasks import rng
from gtl_core.training import correct, fit


class GeneVariant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    zero_point: str  # none where no network has a part
    scouts: str  # what they tell apart; none where they have no part
    optimizer: str  # of scouts, and of what follows
    n_shot: int  # cells of each type
    method: str


class GeneSetting(NamedTuple):
    learning_rate: float  # of the body, or what stands for a rate; 0 where nothing is trained but a head
    head_rate: float


class GeneStart(NamedTuple):
    """What a job begins with: the zero point, the guide, if there is one, and the rate of the linear probe."""

    pretraining: GenePretraining
    model: nn.Sequential
    guide: Guide | None
    probe: float


class Draws(NamedTuple):
    """Some draws of a few cells of two types, side by side."""

    support: Tensor  # [N_WAY * n_shot, draws, n_genes]
    labels: Tensor  # [N_WAY * n_shot, 1]
    query: Tensor  # all the other cells of both types, [n_query, draws, n_genes]
    answers: Tensor  # [n_query, 1]


class GenesParameters(SeededParameters):
    """See the notebook's parameter cell for what each one means."""

    cells: CellName
    n_draws: Count
    n_tuning_draws: Count
    n_query: Count
    zero_points: Some[ZeroPoint]
    scouts: Some[Scouts]
    optimizers: Some[OptimizerName]
    n_shots: Some[Count]
    pretraining_steps: Count
    n_scouts: Count
    scout_n_shot: Count
    scout_epochs: Count
    epochs: Count
    adam_rates: Some[Rate]
    sgd_rates: Some[Rate]

    @field_validator("scout_n_shot")
    @classmethod
    def _two_cells(cls, n: int) -> int:
        if n < 2:
            raise ValueError("a scout needs at least 2 cells of each side")
        return n

    def variants(self) -> list[GeneVariant]:
        """Every method with every zero point, kind of scouts and number of cells that concern it, by the first
        optimizer; by the others with the first zero point and kind of scouts."""
        conditions = [
            (zero_point, kind, self.optimizers[0]) for zero_point, kind in product(self.zero_points, self.scouts)
        ]
        conditions += [(self.zero_points[0], self.scouts[0], name) for name in self.optimizers[1:]]
        found = []
        for (zero_point, kind, name), n_shot, method in product(conditions, self.n_shots, METHODS.values()):
            condition = (zero_point, kind if method.guide else NONE, name)
            if n_shot >= method.least:
                found.append(GeneVariant(*(NONE,) * 3 if method.classifier else condition, n_shot, method.name))
        return list(dict.fromkeys(found))

    def rates(self, variant: GeneVariant) -> tuple[float, ...]:
        """Those that it may try."""
        return self.adam_rates if variant.optimizer in ADAMS else self.sgd_rates

    def pretraining(self, seed: int, variant: GeneVariant) -> GenePretraining:
        """What the variant's zero point is made by; it also says which types are for what."""
        return GenePretraining(
            cells=self.cells,
            seed=seed,
            n_enough=max(self.n_shots) + self.n_query,
            zero_point="random" if variant.zero_point == NONE else variant.zero_point,
            n_steps=self.pretraining_steps,
        )

    def scouting(self, seed: int, variant: GeneVariant) -> GeneScouting | None:
        """What the variant's guide is made by, if it has one."""
        if variant.scouts == NONE:
            return None
        return GeneScouting(
            pretraining=self.pretraining(seed, variant),
            by=variant.scouts,
            n_scouts=self.n_scouts,
            n_shot=self.scout_n_shot,
            epochs=self.scout_epochs,
            optimizer=variant.optimizer,
        )

    def preparations(self) -> list[Step]:
        pairs = list(product(self.seeds(), self.variants()))
        return list(dict.fromkeys(self.scouting(*pair) or self.pretraining(*pair) for pair in pairs))


task_of = attrgetter("zero_point", "optimizer", "n_shot")  # of a variant: for which the linear probe is tuned


def run(p: GenesParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `GeneVariant`, those of `GeneSetting`, task (a draw of the few cells), metric, value; task
    is empty where it is averaged over. Metrics:

    - ``validation``: mean balanced accuracy on the types for tuning, of each seed, for every setting;
    - ``accuracy``: balanced accuracy on the test types, of each draw, with the setting that is best in tuning.
    """
    probes = [v for v in p.variants() if v.method == FROZEN.name]
    others = [v for v in p.variants() if v not in probes]
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = _tune_and_test(p, folder, probes, {})
        best = best_settings(pd.DataFrame(rows), GeneVariant._fields, GeneSetting._fields)
        rates = {task_of(GeneVariant(*v)): setting[1] for v, setting in best.items()}
        more, others_tested = _tune_and_test(p, folder, others, rates)
    for job, accuracies in [*tested, *others_tested]:
        more += [job.row("accuracy", value, task=i) for i, value in enumerate(accuracies)]
    return pd.DataFrame([*rows, *more])


def _tune_and_test(
    p: GenesParameters, folder: Path, variants: Sequence[GeneVariant], probes: Mapping[tuple, float]
) -> tuple[list[Row], list[tuple[Job, np.ndarray]]]:
    """As `tune_and_test`; without ``probes``, the rates of the linear probes by `task_of`, these are the probes."""
    return tune_and_test(
        p,
        variants,
        settings=partial(_settings, p, probes),
        start=_starts(p, folder, probes),
        measure=tell_apart,
        record=lambda job, accuracies: [job.row("validation", accuracies.mean(), task="")],
        choose=partial(best_to_test, variant=GeneVariant, setting=GeneSetting),
    )


def _settings(p: GenesParameters, probes: Mapping[tuple, float], v: GeneVariant) -> list[GeneSetting]:
    """The body's rate; the head's is that of the linear probe, which every method then contains."""
    method = METHODS[v.method]
    if not method.has_rate:
        return [GeneSetting(0.0, 0.0)]
    if method.classifier:
        return [GeneSetting(value, 0.0) for value in method.tries]
    if method.trained == "head":
        return [GeneSetting(0.0, rate) for rate in p.rates(v)]
    return [GeneSetting(rate, probes[task_of(v)]) for rate in p.rates(v)]


def _starts(p: GenesParameters, folder: Path, probes: Mapping[tuple, float]) -> Callable[[Job], GeneStart]:
    @cache  # read once for all settings
    def start(seed: int, v: GeneVariant) -> GeneStart:
        pretraining, scouting = p.pretraining(seed, v), p.scouting(seed, v)
        guide = METHODS[v.method].guide(scouting.displacement(folder)) if scouting else None
        return GeneStart(pretraining, pretraining.model(folder), guide, probes.get(task_of(v), 0.0))

    return lambda job: start(job.seed, job.variant)


@cache
def _cells(pretraining: GenePretraining) -> tuple[Cells, Split]:
    return pretraining.scaled()


def draws_of(job: Job, pretraining: GenePretraining) -> Draws:
    """The same for every method and setting: differences are paired."""
    cells, split = _cells(pretraining)
    n = job.parameters.n_draws if job.purpose == "test" else job.parameters.n_tuning_draws
    types = [cells.of_type(number) for number in getattr(split, job.purpose)]
    supports, queries = [], []
    for i in range(n):
        generator = rng(job.seed, job.purpose, i)
        shuffled = [some[torch.randperm(len(some), generator=generator)] for some in types]
        supports.append(torch.cat([some[: job.variant.n_shot] for some in shuffled]))
        queries.append(torch.cat([some[job.variant.n_shot :] for some in shuffled]))
    n_query = torch.tensor([len(some) - job.variant.n_shot for some in types])
    labels, answers = torch.arange(N_WAY).repeat_interleave(job.variant.n_shot), torch.arange(N_WAY)
    return Draws(
        torch.stack(supports, 1), labels[:, None], torch.stack(queries, 1), answers.repeat_interleave(n_query)[:, None]
    )


def tell_apart(job: Job, start: GeneStart) -> np.ndarray:
    """Balanced accuracy on each draw: the mean of the shares of either type that are recognised."""
    draws, method = draws_of(job, start.pretraining), METHODS[job.variant.method]
    if method.classifier:
        right = _fit_classifiers(method, job.setting.learning_rate, draws)
    elif method.trained == "nothing":
        right = _nearest(start.model.body, draws)
    else:
        right = _learn(job, start, method, draws)
    return torch.stack([right[draws.answers[:, 0] == label].float().mean(0) for label in range(N_WAY)]).mean(0).numpy()


def _fit_classifiers(method: GeneMethod, value: float, draws: Draws) -> Tensor:
    found = []
    for support, query in zip(draws.support.unbind(1), draws.query.unbind(1), strict=True):
        with warnings.catch_warnings():  # of a gene that is the same in all these cells: that is to be expected
            warnings.filterwarnings("ignore", "self.within_class_std_dev_ has at least 1 zero", UserWarning)
            fitted = method.classifier(value).fit(support.double().numpy(), draws.labels[:, 0].numpy())
        found.append(torch.from_numpy(fitted.predict(query.double().numpy())))
    return torch.stack(found, 1) == draws.answers


@torch.no_grad()
def _nearest(body: nn.Module, draws: Draws) -> Tensor:
    features, queries = body(draws.support), body(draws.query)
    means = torch.stack([features[draws.labels[:, 0] == label].mean(0) for label in range(N_WAY)])
    distances = torch.stack([(queries - mean).norm(dim=-1) for mean in means], -1)
    return distances.argmin(-1) == draws.answers


def _learn(job: Job, start: GeneStart, method: GeneMethod, draws: Draws) -> Tensor:
    """Train one copy of the network for each draw, side by side, on all its cells in every step."""
    size, epochs, name = draws.support.shape[1], job.parameters.epochs, job.variant.optimizer
    if method.trained == "head":
        heads = _probe(start.model, name, job.setting.head_rate, draws, epochs)
        return correct(nn.Sequential(start.model.body, heads), draws.query, draws.answers)
    model = stack([start.model] * size)
    if method.from_probe:
        model.head.load_state_dict(_probe(start.model, name, start.probe, draws, epochs).state_dict())
    parts = zip((model.body, model.head), job.setting, strict=True)
    groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in parts]
    training = make(name, groups, job.setting.learning_rate, fused=True)
    if start.guide is not None:
        training = Guided(training, model, stack_guide(start.guide, size), unguided="free")
    if method.anchor:
        L2SP(model, method.anchor, training)
    fit(model, draws.support, draws.labels, training, epochs=epochs, loss=stacked_cross_entropy)
    return correct(model, draws.query, draws.answers)


def _probe(model: nn.Sequential, optimizer: OptimizerName, rate: float, draws: Draws, epochs: int) -> nn.Module:
    """A head for each draw, trained on the features of the body as it is."""
    heads = stack([model.head] * draws.support.shape[1])
    with torch.no_grad():
        features = model.body(draws.support)
    training = make(optimizer, heads.parameters(), rate, fused=True)
    fit(heads, features, draws.labels, training, epochs=epochs, loss=stacked_cross_entropy)
    return heads

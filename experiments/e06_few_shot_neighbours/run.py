"""Few-shot learning with everything one could have used instead: accuracy, and what it costs to get there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from experiments import costs
from experiments.baselines import compare, meta, transfer
from experiments.baselines.continual import L2SP
from experiments.baselines.few_shot import Predictor
from experiments.baselines.learned_optimizer import LearnedOptimizer, StepRule
from experiments.costs import FORWARD, TRAINING, shares
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.episodes import GROUP, EpisodeParameters, Episodes, Task
from experiments.images import N_DRAWERS, ZeroPoint
from experiments.models import conv4, new_head
from experiments.parameters import Count, Head, Rate, distinct
from experiments.preparations import meta_training
from experiments.preparations.domain_training import DomainTraining
from experiments.preparations.meta_training import (
    COMPARE,
    DESCENT,
    OPTIMIZER_STEPS,
    SHARING,
    Backbone,
    MetaTraining,
    reptile_adam,
)
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.ranking import accuracy_of, best_first, guided_minus, sides
from experiments.statistics import best_settings
from experiments.workers import parallel
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.files import read_safetensors
from gtl_core.guide import Displacement
from gtl_core.guided import Guided
from gtl_core.tasks import Episode, labelled, rng, sample_episode
from gtl_core.training import correct, fit

# How many layers, from the input, stay as they are; all others are trained.
FROZEN = {"freeze_1": 1, "freeze_2": 2, "freeze_3": 3, "frozen": 4, "anil": 4}
CLASSIFIERS = ("logistic", "svm")
SETTLED = ("nearest_mean", *COMPARE, "meta_sgd", "learned_optimizer")  # adaptations without a rate to choose
ONE_BY_ONE = (*CLASSIFIERS, "nearest_mean", *COMPARE, "meta_sgd")  # what is not trained side by side
GUIDED = ("guided_tensor", "guided_network", "guided_reptile", "guided_hard_sharing")
META = meta_training.META_METHODS
METHODS = (
    "scratch", "nearest_mean", "logistic", "svm", "plain", "freeze_1", "freeze_2", "freeze_3", "frozen",
    "lp_ft", "l2_sp", "layerwise", *META, *GUIDED,
)  # fmt: skip
L2_STRENGTH = 0.1
# What stands for a learning rate of gradient descent, so that these try as many values as the others:
C_PER_RATE = 100  # the classifiers' C
ADAM_PER_RATE = 0.01  # the rate of Adam, with which Reptile adapts the network of the literature
SIDE_BY_SIDE = 40  # support images trained together, see `stack`

# With the standard backbone, on Omniglot, for 5-way 1-shot: Finn et al. 2017, Nichol et al. 2018, Snell et al. 2017.
PUBLISHED = {"maml": 0.987, "reptile": 0.977, "prototypical": 0.988}


class Variant(NamedTuple):
    """A method for one kind of task; ``zero_point`` is what its preparation starts from."""

    zero_point: ZeroPoint
    n_way: int
    n_shot: int
    method: str


class FewShotNeighboursParameters(EpisodeParameters):
    """See the notebook's parameter cell for what each one means."""

    heads: tuple[Head, ...] = Field(min_length=1, max_length=1)
    methods: tuple[str, ...] = Field(min_length=1)
    other_methods: tuple[str, ...]
    random_starts: tuple[str, ...]
    n_other_episodes: Episodes
    n_other_tuning_episodes: Count
    backbone: Backbone
    passes: Count
    preparation_factors: tuple[Rate, ...] = Field(min_length=1)
    preparation_rate: Rate
    inner_rate: Rate
    inner_steps: Count
    test_steps: Count

    @field_validator("methods", "other_methods", "random_starts", "preparation_factors")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @field_validator("methods", "other_methods")
    @classmethod
    def _methods(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return METHODS if values == ("all",) else _known(values, METHODS)

    @field_validator("random_starts")
    @classmethod
    def _random_starts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return _known(values, META)

    @model_validator(mode="after")
    def _one_start(self) -> FewShotNeighboursParameters:
        if self.backbone != "conv4":
            for method in (*self.methods, *self.other_methods):
                if method != "scratch":
                    raise ValueError(f"methods: {method} starts from a pretrained conv4, backbone = {self.backbone!r}")
        return self

    def variants(self) -> list[Variant]:
        """All methods for the first kind of task, some for the others; some also prepared from a random network."""
        first, *others = (Task.parse(task) for task in self.tasks)
        chosen = [(first, method) for method in self.methods]
        chosen += [(task, method) for task in others for method in self.other_methods]
        variants = [Variant("random" if m == "scratch" else "pretrained", *task, m) for task, m in chosen]
        return variants + [Variant("random", *first, method) for method in self.random_starts]

    def pretraining(self, seed: int, zero_point: ZeroPoint = "pretrained") -> Pretraining:
        return self.scouting(seed, zero_point, self.heads[0], 2).pretraining

    def step(self, seed: int, variant: Variant, factor: float) -> Step:
        """The last step of a variant's preparation, with its learning rate times ``factor``."""
        pretraining, method = self.pretraining(seed, variant.zero_point), variant.method
        scouting = self.scouting(seed, variant.zero_point, self.heads[0], variant.n_way)
        scouting = scouting.model_copy(update={"learning_rate": factor * self.scout_learning_rate})
        if method in ("guided_tensor", "guided_network"):
            return scouting
        if method not in (*META, *GUIDED):
            return pretraining
        extra = 0 if pretraining.epochs else self.pretraining(seed).cost()
        training = MetaTraining(
            pretraining=pretraining,
            backbone=self.backbone,
            method=method.removeprefix("guided_"),
            n_way=variant.n_way,
            head=self.heads[0],
            n_shot=variant.n_shot,
            n_query=min(5, N_DRAWERS - variant.n_shot),
            n_tasks=self.n_scouts,
            task_n_shot=self.scout_n_shot,
            passes=self.passes + extra,
            learning_rate=factor * self.preparation_rate,
            inner_rate=self.inner_rate,
            inner_steps=self.inner_steps,
        )
        if method in GUIDED:
            return ScoutingFrom(zero_point=training, scouting=scouting)
        return training

    def factors(self, variant: Variant) -> tuple[float, ...]:
        return self.preparation_factors if variant.method in (*META, *GUIDED) else (1.0,)

    def rates(self, variant: Variant) -> tuple[float, ...]:
        """0: there is none to choose."""
        return (0.0,) if variant.method in SETTLED else self.learning_rates

    def preparations(self) -> list[Step]:
        steps = [
            self.step(seed, variant, factor)
            for variant, seed in product(self.variants(), self.seeds())
            for factor in self.factors(variant)
        ]
        return list(dict.fromkeys(step for step in steps if not _random(step)))


@dataclass(frozen=True)
class Start:
    """What a method brings to a new task: its network, what else adapting needs, and its guide's displacement."""

    model: nn.Sequential
    extra: dict[str, Tensor]
    displacement: Displacement | None


@dataclass(frozen=True)
class Job:
    """Some episodes of one variant under one setting; small enough to send to a worker."""

    parameters: FewShotNeighboursParameters
    seed: int
    variant: Variant
    factor: float
    learning_rate: float
    purpose: Literal["validation", "test"]
    n_episodes: int

    def episodes(self) -> list[Episode]:
        """The same for every method and setting: differences between methods are paired."""
        dataset, v = load(self.parameters.dataset), self.variant
        classes = split_classes(dataset, self.seed)[self.purpose]
        return [
            sample_episode(
                dataset.examples, classes, v.n_way, v.n_shot, self.parameters.n_query, rng(self.seed, self.purpose, i)
            )
            for i in range(self.n_episodes)
        ]


def run(parameters: FewShotNeighboursParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `Variant`, factor (of the preparation's learning rate), learning_rate, task, metric, value.
    Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: over each group of ``GROUP`` test episodes (task);
    - ``preparation_passes``, ``adaptation_passes``: what the method cost before any task, and costs per task, in
      network passes (`baselines.few_shot`);
    - ``preparation_seconds``, ``adaptation_seconds``: the same by the clock, with answering the queries; see `split`.
    """
    p = parameters
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    rows = []
    with made(p.preparations(), p.prepared, p.workers) as folder:
        first, start_of = Task.parse(p.tasks[0]), partial(_start, folder)
        tuning = [
            Job(p, s, v, f, r, "validation", p.n_tuning_episodes if v[1:3] == first else p.n_other_tuning_episodes)
            for v in p.variants()
            for f, r in product(p.factors(v), p.rates(v))
            for s in p.seeds()
        ]
        for job, (scores, _) in zip(tuning, results(tuning, start_of, "tuning"), strict=True):
            rows.append(row(job, "validation", scores.mean()))
        tests = [
            Job(p, s, v, *setting, "test", p.n_episodes if v[1:3] == first else p.n_other_episodes)
            for v, setting in _chosen(pd.DataFrame(rows)).items()
            for s in p.seeds()
        ]
        per_pass = costs.seconds_per_pass(conv4(5, p.channels, generator=rng(0)), 64)
        for job, (scores, seconds) in zip(tests, results(tests, start_of, "test episodes"), strict=True):
            for task, of_group in enumerate(scores.reshape(-1, GROUP)):
                rows.append(row(job, "accuracy", of_group.mean(), task))
            step = p.step(job.seed, job.variant, job.factor)
            rows.append(row(job, "preparation_passes", 0 if _random(step) else step.total_cost()))
            rows.append(row(job, "adaptation_passes", adaptation_passes(p, job.variant)))
            rows.append(row(job, "preparation_seconds", 0.0 if _random(step) else _seconds(step, folder, per_pass)))
            rows.append(row(job, "adaptation_seconds", seconds))
    return pd.DataFrame(rows)


def ranking(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every variant with its accuracy and costs, best first in each kind of task.

    ``guided`` is the better of the two scopes on the validation episodes, ``difference`` that one minus the variant,
    paired over the same episodes, with its 95 % interval from ``low`` to ``high``.
    """
    test = frame[frame["metric"] == "accuracy"]
    settings = [*Variant._fields, "factor", "learning_rate"]
    best = frame[frame["metric"] == "validation"].groupby(settings)["value"].mean()
    rows = []
    for (n_way, n_shot), of_task in test.groupby(["n_way", "n_shot"], sort=False):
        of = dict(list(of_task.groupby(["zero_point", "method"], sort=False)))
        scopes = [m for z, m in of if m in ("guided_tensor", "guided_network")]
        guided = max(scopes, key=lambda m: best["pretrained", n_way, n_shot, m].max()) if scopes else None
        for (zero_point, method), values in of.items():
            row = {"task": str(Task(n_way, n_shot)), "zero_point": zero_point, "method": method}
            row |= accuracy_of(values)
            key = {"zero_point": zero_point, "n_way": n_way, "n_shot": n_shot, "method": method}
            for table in (frame, seconds):
                if table is not None:
                    mine = table[(table[list(key)] == pd.Series(key)).all(axis=1)]
                    costs = mine[mine["metric"].str.contains("preparation_|adaptation_")].groupby("metric")["value"]
                    row |= costs.mean().to_dict()
            if guided:
                row["guided"] = guided
                row |= guided_minus(of["pretrained", guided], values, "episodes", GROUP)
            rows.append(row)
    table = best_first(rows, ["task"])
    table.insert(0, "rank", table.groupby("task")["accuracy"].rank(ascending=False, method="min").astype(int))
    return table


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each kind of task who is best, and who is above and below guidance, if it took part."""
    lines = []
    for task, of in ranking(frame).groupby("task", sort=False):
        first = of.iloc[0]
        lines.append(f"{task}: best is {_called(first)} with {first['accuracy']:.3f}.")
        if "guided" not in of:
            continue
        mine = of[of["method"] == first["guided"]].iloc[0]
        lines.append(f"  {mine['method']} ranks {mine['rank']} of {len(of)} with {mine['accuracy']:.3f}.")
        others = of[~of["method"].isin(["guided_tensor", "guided_network"])]
        groups = sides(others)
        for what, group in groups.items():
            lines.append(f"  {what}: {', '.join(map(_called, group.to_dict('records'))) or 'none'}.")
        above = groups["above it"]
        cheaper = above[above["preparation_passes"] <= mine["preparation_passes"]]
        names = ", ".join(map(_called, cheaper.to_dict("records"))) or "none"
        lines.append(f"  above it with no more passes to prepare: {names}.")
    return "\n".join(lines)


def against_published(frame: pd.DataFrame) -> pd.DataFrame:
    """What was found for the methods in `PUBLISHED`, from a random network, beside the published accuracy."""
    table = ranking(frame)
    table = table[(table["task"] == "5-way 1-shot") & (table["zero_point"] == "random")]
    table = table[table["method"].isin(PUBLISHED)]
    columns = ["method", "accuracy", "accuracy_low", "accuracy_high", "preparation_passes"]
    return table[columns].assign(published=table["method"].map(PUBLISHED)).reset_index(drop=True)


def _called(row) -> str:
    plain = row["zero_point"] == "pretrained" or row["method"] == "scratch"
    return row["method"] if plain else f"{row['method']} (no pretraining)"


def adaptation_passes(p: FewShotNeighboursParameters, variant: Variant) -> float:
    """Of one task, in network passes. Frozen layers are passed once; the others are charged by their share of the
    network's multiplications, see `shares`."""
    n, method, epochs = variant.n_way * variant.n_shot, variant.method, p.epochs
    if method in ("nearest_mean", *CLASSIFIERS, *COMPARE):
        return FORWARD * n
    if method in DESCENT:
        epochs = p.test_steps
    if method == "learned_optimizer":
        epochs = OPTIMIZER_STEPS
    below = sum(shares(_network(p, variant))[: FROZEN.get(method, 0)])
    if method == "lp_ft":  # half of the epochs for the head alone, on features of its own pass
        head = shares(_network(p, variant))[-1]
        probe = epochs // 2
        return n * (FORWARD * (1 - head) + TRAINING * (probe * head + epochs - probe))
    return n * (FORWARD * below + TRAINING * epochs * (1 - below))


def _network(p: FewShotNeighboursParameters, variant: Variant) -> nn.Sequential:
    return meta_training.network(p.pretraining(0), p.backbone, variant.n_way, p.heads[0])


def _chosen(frame: pd.DataFrame) -> dict[Variant, tuple[float, float]]:
    best = best_settings(frame, Variant._fields, ("factor", "learning_rate"))
    return {Variant(*variant): setting for variant, setting in best.items()}


def _known(values: tuple[str, ...], known: Sequence[str]) -> tuple[str, ...]:
    for value in values:
        if value not in known:
            raise ValueError(f"{value!r}: must be among {', '.join(known)}")
    return values


def _random(step: Step) -> bool:
    return isinstance(step, Pretraining) and not step.epochs


def _seconds(step: Step, folder, per_pass: float) -> float:
    """Of a preparation and all that it needs: measured where it is recorded, else the passes' price on this machine."""
    recorded = isinstance(step, (MetaTraining, DomainTraining))
    own = read_safetensors(step.path(folder))[1]["seconds"] if recorded else per_pass * step.cost()
    return own + sum(_seconds(need, folder, per_pass) for need in step.needs())


def row(job, metric: str, value: float, task: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed} | job.variant._asdict() | {"factor": job.factor, "learning_rate": job.learning_rate}
    return key | {"task": task, "metric": metric, "value": value}


def results(jobs: Sequence[Job], start_of: Callable[..., Start], description: str) -> list[tuple[np.ndarray, float]]:
    """`run_job` for each; ``start_of`` (parameters, seed, variant, factor) is asked once for what it is the same."""
    p, start_of = jobs[0].parameters, cache(start_of)
    with_start = [(job, start_of(p, job.seed, job.variant, job.factor)) for job in jobs]
    return parallel(run_job, with_start, p.workers, description, p.dask_scheduler)


def _start(folder: Path, p: FewShotNeighboursParameters, seed: int, variant: Variant, factor: float) -> Start:
    step = p.step(seed, variant, factor)
    if isinstance(step, MetaTraining):
        model, extra, _ = step.read(folder)
        if variant.method in SHARING:  # whose own heads are gone
            new_head(model, variant.n_way, p.heads[0], generator=rng(seed, "head", variant.n_way))
        return Start(model, extra, None)
    if isinstance(step, Pretraining):
        model = meta_training.network(step, p.backbone, variant.n_way, p.heads[0])
        if step.epochs:
            model.body.load_state_dict(step.body(folder))
        return Start(model, {}, None)
    displacement = Displacement.load(folder / f"{step.key}.safetensors")
    model = meta_training.network(p.pretraining(seed), p.backbone, variant.n_way, p.heads[0])
    model.load_state_dict(displacement.zero_point)
    return Start(model, {}, displacement)


def run_job(job_and_start: tuple[Job, Start]) -> tuple[np.ndarray, float]:
    """Accuracy on every episode, and the seconds that adapting to one and answering its queries took, on average."""
    job, start = job_and_start
    episodes = job.episodes()
    accuracies, seconds = zip(*_accuracies(job, start, episodes), strict=True)
    return np.concatenate(accuracies), sum(seconds) / len(episodes)


def _accuracies(job: Job, start: Start, episodes: Sequence[Episode]) -> Iterator[tuple[np.ndarray, float]]:
    p, v = job.parameters, job.variant
    if v.method in ONE_BY_ONE:
        for episode in episodes:
            begin = time.perf_counter()
            predict = _one_by_one(job, start, *labelled(episode.support))
            inputs, labels = labelled(episode.query)
            with torch.no_grad():
                right = predict(inputs).argmax(-1) == labels
            yield right.float().mean()[None].numpy(), time.perf_counter() - begin
        return
    size = max(1, SIDE_BY_SIDE // (v.n_way * v.n_shot))
    for i in range(0, len(episodes), size):
        some = episodes[i : i + size]
        support, labels = labelled(torch.stack([episode.support for episode in some], 2))
        begin = time.perf_counter()
        below, model = adapt(p, v.method, start, job.learning_rate, support, labels[:, None])
        queries, labels = labelled(torch.stack([episode.query for episode in some], 2))
        with torch.no_grad():
            queries = below(queries)
        right = correct(model, queries, labels[:, None])
        yield right.mean(0).numpy(), time.perf_counter() - begin


def _one_by_one(job: Job, start: Start, inputs: Tensor, labels: Tensor) -> Predictor:
    p, method, model = job.parameters, job.variant.method, start.model
    if method == "nearest_mean":
        return transfer.nearest_mean(model, inputs, labels)
    if method in CLASSIFIERS:
        from sklearn.linear_model import LogisticRegression  # slow to import, and figures import this module
        from sklearn.svm import LinearSVC

        c = C_PER_RATE * job.learning_rate
        kind = {"logistic": LogisticRegression(C=c, max_iter=1000), "svm": LinearSVC(C=c, random_state=0)}[method]
        return transfer.classify_features(model, inputs, labels, classifier=kind)
    if method == "meta_sgd":
        return meta.adapt_by_descent(model, inputs, labels, rates=start.extra, n_steps=p.test_steps)
    by = {"prototypical": compare.prototypes, "matching": compare.attention}.get(method)
    if method == "relation":
        by = compare.Relation(model.head.in_features)
        by.load_state_dict(start.extra)
    return compare.compare_all(model, inputs, labels, compare=by)


def adapt(
    p: FewShotNeighboursParameters, method: str, start: Start, rate: float, inputs: Tensor, labels: Tensor
) -> tuple[nn.Module, nn.Module]:
    """Train a network for each of S tasks side by side on inputs [N, S, 1, 28, 28].

    Returns (below, model): the layers that stayed as they are, whose output is what the trained ones take.
    """
    if method == "lp_ft":
        probe_below, probe = _two_parts(start.model, 4, inputs.shape[1])
        _descend(probe, rate, probe_below, inputs, labels, p.epochs // 2)
        below, model = _two_parts(start.model, 0, inputs.shape[1])
        model.head.load_state_dict(probe.head.state_dict())
        _descend(model, rate, below, inputs, labels, p.epochs - p.epochs // 2)
        return below, model
    below, model = _two_parts(start.model, FROZEN.get(method, 0), inputs.shape[1])
    epochs, penalty = p.epochs, lambda: 0.0
    optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    if method in DESCENT:
        epochs = p.test_steps
    elif method == "l2_sp":
        penalty = L2SP(model, L2_STRENGTH).penalty
    elif method == "layerwise":
        optimizer = torch.optim.SGD(_layerwise(start.model, model, rate))
    elif method == "reptile" and p.backbone == "pooled_conv4":  # as published; from conv4 descent does better
        optimizer = reptile_adam(model, ADAM_PER_RATE * rate)
    elif method == "learned_optimizer":
        rule = StepRule(scale=p.inner_rate, generator=rng(0))
        rule.load_state_dict(start.extra)
        optimizer, epochs = LearnedOptimizer(model.parameters(), rule), OPTIMIZER_STEPS
    elif method in GUIDED:
        guide = start.displacement.guide(scope="tensor" if method == "guided_tensor" else "network")
        optimizer = Guided(optimizer, model, stack_guide(guide, inputs.shape[1]))
    _descend(model, rate, below, inputs, labels, epochs, optimizer, penalty)
    return below, model


def _descend(model, rate, below, inputs, labels, epochs, optimizer=None, penalty=lambda: 0.0) -> None:
    with torch.no_grad():
        inputs = below(inputs)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=rate)
    fit(model, inputs, labels, optimizer, epochs=epochs, loss=lambda o, t: stacked_cross_entropy(o, t) + penalty())


def _two_parts(model: nn.Sequential, n_frozen: int, n_copies: int) -> tuple[nn.Module, nn.Module]:
    """``n_copies`` of the first ``n_frozen`` layers of the body, and of the rest, side by side."""
    at = n_frozen * ((len(model.body) - 1) // 4)
    rest = nn.Sequential()
    rest.add_module("body", model.body[at:])
    rest.add_module("head", model.head)
    below = stack([model.body[:at]] * n_copies) if at else nn.Identity()
    return below, stack([rest] * n_copies)


def _layerwise(model: nn.Sequential, stacked: nn.Module, rate: float) -> list[dict]:
    """`transfer.layerwise_rates` for stacked networks, whose parameters have the same names."""
    names = {p: name for name, p in model.named_parameters()}
    copies = dict(stacked.named_parameters())
    groups = transfer.layerwise_rates(model, rate)
    return [group | {"params": [copies[names[p]] for p in group["params"]]} for group in groups]

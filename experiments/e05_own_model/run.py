"""Any network can be guided: here a small ResNet with BatchNorm, in plain torch, as a reader might bring one, and three
ways to say what its scouts should do."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Annotated, Literal, NamedTuple

import pandas as pd
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.optim import SGD
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.images import N_DRAWERS
from experiments.parameters import Count, NotebookParameters, ParameterError, Rate, distinct
from experiments.parameters import Dataset as DatasetName
from experiments.statistics import at_chosen_rates, choose_rates, paired
from experiments.workers import parallel
from gtl_core.guide import Guide
from gtl_core.guided import Guided
from gtl_core.scouting import scout
from gtl_core.tasks import class_subsets, indices, labelled, rng, sample_episode, to_float
from gtl_core.training import accuracy, fit

SCOUTS = ("classes", "indices", "losses")
METHODS = ("frozen", "plain", *(f"guided_{scouts}" for scouts in SCOUTS))


class Block(nn.Module):
    """The basic block of He et al. (2016): two 3x3 convolutions and a way around them; halves the image."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + self.downsample(x))


class ResNet(nn.Module):
    """torchvision's names and layout, with one block per layer: [N, 1, 28, 28] -> [N, n_classes] logits.

    All parameters are drawn from ``generator``.
    """

    def __init__(
        self, n_classes: int, widths: tuple[int, int, int] = (16, 32, 64), *, generator: torch.Generator
    ) -> None:
        super().__init__()
        a, b, c = widths
        self.conv1 = nn.Conv2d(1, a, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(a)
        self.layer1, self.layer2, self.layer3 = Block(a, a), Block(a, b), Block(b, c)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        self.fc = nn.Linear(c, n_classes)
        new_head(self, n_classes, generator)

    def features(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def new_head(model: ResNet, n_classes: int, generator: torch.Generator) -> None:
    """Replace ``model.fc``, in place, by one that starts as PyTorch starts every linear layer."""
    model.fc = nn.Linear(model.fc.in_features, n_classes)
    bound = 1 / math.sqrt(model.fc.in_features)
    for p in model.fc.parameters():
        nn.init.uniform_(p, -bound, bound, generator=generator)


class OwnModelParameters(NotebookParameters):
    """See the notebook's parameter cell for what each one means."""

    dataset: DatasetName
    n_seeds: Count
    n_episodes: Annotated[int, Field(ge=2)]
    n_tuning_episodes: Count
    n_way: Annotated[int, Field(ge=2)]
    n_shot: Count
    n_query: Count
    epochs: Count
    learning_rates: tuple[Rate, ...] = Field(min_length=1)
    pretraining_epochs: Annotated[int, Field(ge=0)]
    n_scouts: Count
    scout_n_shot: Annotated[int, Field(ge=1, le=N_DRAWERS)]
    scout_epochs: Count
    scout_learning_rate: Rate

    @field_validator("learning_rates")
    @classmethod
    def _distinct(cls, values: tuple) -> tuple:
        return distinct(values)

    def seeds(self) -> list[int]:
        """One pretrained network each. Far apart for different ``seed``, so that two runs share none."""
        return [1000 * self.seed + i for i in range(self.n_seeds)]

    def check(self) -> None:
        """Raise ParameterError if the dataset has not enough classes or drawers."""
        if self.n_shot + self.n_query > N_DRAWERS:
            raise ParameterError(f"n_shot + n_query = {self.n_shot + self.n_query}: at most {N_DRAWERS}")
        for seed in self.seeds():
            sizes = {purpose: len(classes) for purpose, classes in split_classes(load(self.dataset), seed).items()}
            if self.n_way > min(sizes.values()):
                raise ParameterError(f"n_way = {self.n_way}: at most {min(sizes.values())} (seed {seed})")
            if self.n_way * self.n_scouts > sizes["scouting"]:
                most = sizes["scouting"] // self.n_way
                raise ParameterError(f"n_scouts = {self.n_scouts}: at most {most}, one index list each (seed {seed})")


class Start(NamedTuple):
    """A pretrained network with a new head, and what scouts of each kind found out about it."""

    zero_point: ResNet
    guides: dict[str, Guide]


class Job(NamedTuple):
    """Some episodes of one method under one learning rate."""

    parameters: OwnModelParameters
    seed: int
    method: str
    learning_rate: float
    purpose: Literal["validation", "test"]
    n_episodes: int


def example(p: OwnModelParameters) -> tuple[ResNet, TensorDataset, Tensor, Tensor]:
    """What a reader would bring: a network (not pretrained, to keep it short), a labelled dataset, and a new task's few
    examples, ``inputs`` [5, 1, 28, 28] and ``labels`` [5]."""
    characters = load(p.dataset)
    split = split_classes(characters, p.seed)
    images, labels = labelled(to_float(characters.examples[split["scouting"]]))
    episode = sample_episode(characters.examples, split["test"], 5, 1, 0, rng(p.seed, "example"))
    return ResNet(5, generator=rng(p.seed, "network")), TensorDataset(images, labels), *labelled(episode.support)


def run(parameters: OwnModelParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, method (`METHODS`), learning_rate, task (episode), metric, value. Metrics:

    - ``validation_first``: mean accuracy over the tuning episodes, for every learning rate;
    - ``accuracy``: on each test episode, at the rate that those choose;
    - ``guide_conv1`` ... ``guide_fc``, for methods with a guide: its mean over all parameters of that part.
    """
    p = parameters
    p.check()
    starts = parallel(partial(prepare, p), p.seeds(), p.workers, "pretraining and scouting", p.dask_scheduler)
    by_seed = dict(zip(p.seeds(), starts, strict=True))
    tuning = [
        Job(p, seed, method, rate, "validation", p.n_tuning_episodes)
        for method, rate, seed in product(METHODS, p.learning_rates, p.seeds())
    ]
    rows = [
        _row(job, "validation_first", sum(scores) / len(scores)) for job, scores in _scores(tuning, by_seed, "tuning")
    ]
    chosen = {method: rate for (method,), rate in choose_rates(pd.DataFrame(rows), "first").items()}
    tests = [Job(p, seed, m, chosen[m], "test", p.n_episodes) for m, seed in product(METHODS, p.seeds())]
    for job, scores in _scores(tests, by_seed, "test episodes"):
        rows += [_row(job, "accuracy", score, task) for task, score in enumerate(scores)]
    for job in tests:
        guide = by_seed[job.seed].guides.get(job.method.removeprefix("guided_"), {})
        for module in dict.fromkeys(name.split(".")[0] for name in guide):
            values = torch.cat([g.flatten() for name, g in guide.items() if name.split(".")[0] == module])
            rows.append(_row(job, f"guide_{module}", values.mean().item()))
    return pd.DataFrame(rows)


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in test accuracy, each method at its own best rate: one row per comparison, with ``mean``,
    its 95 % interval from ``low`` to ``high``, ``n``, all of it as ``text``, and ``at_the_edge``, the methods whose
    best rate is the lowest or highest that was tried, so that another might be better still."""
    test = at_chosen_rates(frame, "first")
    by_method = dict(list(test[test["metric"] == "accuracy"].groupby("method")))
    tried = set(frame["learning_rate"])
    edge = [m for m, of in by_method.items() if of["learning_rate"].iloc[0] in (min(tried), max(tried))]
    rows = []
    for one, other in [(m, rival) for m in METHODS[2:] for rival in METHODS[:2]] + [("plain", "frozen")]:
        e = paired(by_method[one], by_method[other])
        row = {"comparison": f"{one} - {other}", "mean": e.mean, "low": e.low, "high": e.high}
        row |= {"n": f"{e.n[0]} seeds x {e.n[1]} episodes", "text": e.text}
        rows.append(row | {"at_the_edge": ", ".join(m for m in (one, other) if m in edge)})
    return pd.DataFrame(rows)


def prepare(p: OwnModelParameters, seed: int) -> Start:
    """Pretrain a network, give it a new head, and send scouts of each kind from there."""
    dataset = load(p.dataset)
    split = split_classes(dataset, seed)
    model = ResNet(len(split["pretraining"]), generator=rng(seed, "network"))
    fit(
        model,
        *labelled(to_float(dataset.examples[split["pretraining"]])),
        torch.optim.Adam(model.parameters(), lr=2e-3),
        epochs=p.pretraining_epochs,
        batch_size=64,
        generator=rng(seed, "batches"),
        augment=partial(random_affine, strength=0.1, generator=rng(seed, "augmentation")),
    )
    new_head(model, p.n_way, rng(seed, "head"))
    images, labels = labelled(to_float(dataset.examples[split["scouting"]]))
    tasks = {
        "classes": _class_subsets(p, images, labels, seed),
        "indices": _index_lists(p, images, labels),
        "losses": _losses(p, images, seed),
    }
    return Start(model, {kind: scout(model, tasks[kind], partial(train_one, p=p)).guide() for kind in SCOUTS})


def _class_subsets(p: OwnModelParameters, images: Tensor, labels: Tensor, seed: int) -> Sequence[Dataset]:
    """Classes drawn at random from all alphabets."""
    dataset, generator = TensorDataset(images, labels), rng(seed, "class subsets")
    return class_subsets(dataset, p.n_way, p.n_scouts, generator, n_shot=p.scout_n_shot, labels=labels)


def _index_lists(p: OwnModelParameters, images: Tensor, labels: Tensor) -> Sequence[Dataset]:
    """Neighbours in the dataset, mostly of one alphabet: ``0-9,20-29,40-49,...``, the first drawers of each class."""
    dataset = TensorDataset(images, labels % p.n_way)  # n_way neighbours have different labels
    starts = [[N_DRAWERS * (p.n_way * i + c) for c in range(p.n_way)] for i in range(p.n_scouts)]
    lists = [",".join(f"{first}-{first + p.scout_n_shot - 1}" for first in of_scout) for of_scout in starts]
    return [Subset(dataset, indices(text)) for text in lists]


def _losses(p: OwnModelParameters, images: Tensor, seed: int) -> Sequence[Callable[[nn.Module], Tensor]]:
    """No labels: by how many quarters was each image turned? As many examples as the other scouts have."""
    turns = min(4, p.n_way)  # the head has n_way outputs
    n = max(1, p.n_way * p.scout_n_shot // turns)
    draws = [torch.randperm(len(images), generator=rng(seed, "losses", i))[:n] for i in range(p.n_scouts)]
    return [partial(turning_loss, images=images[draw], turns=turns) for draw in draws]


def turning_loss(model: nn.Module, images: Tensor, turns: int) -> Tensor:
    """Gidaris et al. (2018): which way up is an image?"""
    turned = torch.cat([images.rot90(k, (-2, -1)) for k in range(turns)])
    return cross_entropy(model(turned), torch.arange(turns).repeat_interleave(len(images)))


def train_one(model: nn.Module, task: Dataset | Callable[[nn.Module], Tensor], p: OwnModelParameters) -> None:
    """What a scout does, whether its task is a dataset or a loss function."""
    optimizer = SGD(model.parameters(), lr=p.scout_learning_rate)
    if isinstance(task, Dataset):
        fit(model, *default_collate(list(task)), optimizer, epochs=p.scout_epochs)
        return
    model.train()
    for _ in range(p.scout_epochs):
        optimizer.zero_grad()
        task(model).backward()
        optimizer.step()


def _row(job: Job, metric: str, value: float, task: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed, "method": job.method, "learning_rate": job.learning_rate}
    return key | {"task": task, "metric": metric, "value": value}


def _scores(jobs: Sequence[Job], starts: dict[int, Start], description: str) -> list[tuple[Job, list[float]]]:
    p = jobs[0].parameters
    with_start = [(job, starts[job.seed]) for job in jobs]
    return list(zip(jobs, parallel(_run_job, with_start, p.workers, description, p.dask_scheduler), strict=True))


def _run_job(job_and_start: tuple[Job, Start]) -> list[float]:
    """Accuracy on each episode. Episodes are the same for every method and rate: differences are paired."""
    job, start = job_and_start
    p, dataset = job.parameters, load(job.parameters.dataset)
    classes = split_classes(dataset, job.seed)[job.purpose]
    scores = []
    for i in range(job.n_episodes):
        episode = sample_episode(dataset.examples, classes, p.n_way, p.n_shot, p.n_query, rng(job.seed, job.purpose, i))
        support, query = labelled(episode.support), labelled(episode.query)
        scores.append(fine_tune(start, job.method, job.learning_rate, support, query, p.epochs))
    return scores


def fine_tune(start: Start, method: str, learning_rate: float, support: tuple, query: tuple, epochs: int) -> float:
    """Accuracy on the query after training on the support."""
    model = copy.deepcopy(start.zero_point)
    if method == "frozen":  # the head alone, on features with the statistics of pretraining
        model.eval()
        with torch.no_grad():
            support, query = ((model.features(inputs), labels) for inputs, labels in (support, query))
        model = model.fc
    optimizer = SGD(model.parameters(), lr=learning_rate)
    if method.startswith("guided_"):
        optimizer = Guided(optimizer, model, start.guides[method.removeprefix("guided_")])
    fit(model, *support, optimizer, epochs=epochs)
    return accuracy(model, *query).item()

"""Any network can be guided: here a small ResNet with BatchNorm, in plain torch, as a reader might bring one, and three
ways to say what its scouts should do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, NamedTuple

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from experiments.data import N_DRAWERS, load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.e05_own_model.resnet import ResNet
from experiments.methods import FROZEN, GUIDED, PLAIN, Method, table
from experiments.parameters import Count, ParameterError, Rate, TunedParameters
from experiments.parameters import Dataset as DatasetName
from experiments.protocol import Job, LearningRate, tune_and_test
from experiments.statistics import at_chosen_rates, choose_rates, difference
from experiments.workers import parallel
from gtl_core import Guide, Guided, Recipe, scout
from gtl_core.tasks import class_subsets, indices, labelled, rng, sample_episode, to_float
from gtl_core.training import accuracy, fit

Loss = Callable[[nn.Module], Tensor]


class OwnModelParameters(TunedParameters):
    """See the notebook's parameter cell for what each one means."""

    dataset: DatasetName
    n_episodes: Annotated[int, Field(ge=2)]
    n_tuning_episodes: Count
    n_way: Annotated[int, Field(ge=2)]
    n_shot: Count
    n_query: Count
    epochs: Count
    pretraining_epochs: Annotated[int, Field(ge=0)]
    n_scouts: Count
    scout_n_shot: Annotated[int, Field(ge=1, le=N_DRAWERS)]
    scout_epochs: Count
    scout_learning_rate: Rate

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


def scouts_on_classes(p: OwnModelParameters, images: Tensor, labels: Tensor, seed: int) -> Sequence[Dataset]:
    """Classes drawn at random from all alphabets."""
    dataset, generator = TensorDataset(images, labels), rng(seed, "class subsets")
    return class_subsets(dataset, p.n_way, p.n_scouts, generator, n_shot=p.scout_n_shot, labels=labels)


def scouts_on_indices(p: OwnModelParameters, images: Tensor, labels: Tensor, seed: int) -> Sequence[Dataset]:
    """Neighbours in the dataset, mostly of one alphabet: ``0-9,20-29,40-49,...``, the first drawers of each class."""
    dataset = TensorDataset(images, labels % p.n_way)  # n_way neighbours have different labels
    starts = [[N_DRAWERS * (p.n_way * i + c) for c in range(p.n_way)] for i in range(p.n_scouts)]
    lists = [",".join(f"{first}-{first + p.scout_n_shot - 1}" for first in of_scout) for of_scout in starts]
    return [Subset(dataset, indices(text)) for text in lists]


def scouts_on_losses(p: OwnModelParameters, images: Tensor, labels: Tensor, seed: int) -> Sequence[Loss]:
    """No labels: by how many quarters was each image turned? As many examples as the other scouts have."""
    turns = min(4, p.n_way)  # the head has n_way outputs
    n = max(1, p.n_way * p.scout_n_shot // turns)
    draws = [torch.randperm(len(images), generator=rng(seed, "losses", i))[:n] for i in range(p.n_scouts)]
    return [partial(turning_loss, images=images[draw], turns=turns) for draw in draws]


def turning_loss(model: nn.Module, images: Tensor, turns: int) -> Tensor:
    """Which way up is an image (Gidaris et al. 2018)?"""
    turned = torch.cat([images.rot90(k, (-2, -1)) for k in range(turns)])
    return cross_entropy(model(turned), torch.arange(turns).repeat_interleave(len(images)))


def train_one(model: nn.Module, task: Dataset | Loss, p: OwnModelParameters) -> None:
    """What a scout does, whether its task is a dataset or a loss function."""
    if isinstance(task, Dataset):
        Recipe(p.scout_learning_rate, p.scout_epochs)(model, default_collate(list(task)))
        return
    optimizer = SGD(model.parameters(), lr=p.scout_learning_rate)
    model.train()
    for _ in range(p.scout_epochs):
        optimizer.zero_grad()
        task(model).backward()
        optimizer.step()


METHODS = table(
    [
        FROZEN,
        PLAIN,
        Method("guided_classes", "guided, scouts: class subsets", GUIDED, prepare=scouts_on_classes),
        Method("guided_indices", "guided, scouts: index lists", GUIDED, prepare=scouts_on_indices),
        Method("guided_losses", "guided, scouts: losses without labels", GUIDED, prepare=scouts_on_losses),
    ]
)
BY_SCOUTS = [method for method in METHODS.values() if method.prepare]


class OwnModelVariant(NamedTuple):
    method: str


class ScoutedResNet(NamedTuple):
    """A pretrained network with a new head, and for each method that has scouts what they found out about it."""

    zero_point: ResNet
    guides: Mapping[str, Guide]


def run(p: OwnModelParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, method (`METHODS`), learning_rate, task (episode), metric, value. Metrics:

    - ``validation_first``: mean accuracy over the tuning episodes, for every learning rate;
    - ``accuracy``: on each test episode, at the rate that those choose;
    - ``guide_conv1`` ... ``guide_fc``, for methods with a guide: its mean over all parameters of that part.
    """
    p.check()
    made = parallel(partial(pretrain_and_scout, p), p.seeds(), p.workers, "pretraining and scouting", p.dask_scheduler)
    scouted = dict(zip(p.seeds(), made, strict=True))
    rows, tests = tune_and_test(
        p,
        variants=[OwnModelVariant(method) for method in METHODS],
        settings=lambda variant: [LearningRate(rate) for rate in p.learning_rates],
        start=lambda job: scouted[job.seed],
        measure=accuracies,
        record=lambda job, scores: [job.row("validation_first", sum(scores) / len(scores), task="")],
        choose=lambda tuning: {v: [LearningRate(rate)] for v, rate in choose_rates(tuning, "first").items()},
    )
    rows += [job.row("accuracy", score, task=i) for job, scores in tests for i, score in enumerate(scores)]
    for job, _ in tests:
        guide = scouted[job.seed].guides.get(job.variant.method, {})
        for part in dict.fromkeys(name.split(".")[0] for name in guide):
            values = torch.cat([g.flatten() for name, g in guide.items() if name.split(".")[0] == part])
            rows.append(job.row(f"guide_{part}", values.mean().item(), task=""))
    return pd.DataFrame(rows)


def pretrain_and_scout(p: OwnModelParameters, seed: int) -> ScoutedResNet:
    """Pretrain a network, give it a new head, and send scouts of each kind from there."""
    dataset = load(p.dataset)
    split = split_classes(dataset, seed)
    model = ResNet(len(split["pretraining"]), generator=rng(seed, "network"))
    fit(
        model,
        *labelled(to_float(dataset.examples[split["pretraining"]])),
        Adam(model.parameters(), lr=2e-3),
        epochs=p.pretraining_epochs,
        batch_size=64,
        generator=rng(seed, "batches"),
        augment=partial(random_affine, strength=0.1, generator=rng(seed, "augmentation")),
    )
    model.replace_head(p.n_way, rng(seed, "head"))
    images, labels = labelled(to_float(dataset.examples[split["scouting"]]))
    tasks = {method.name: method.prepare(p, images, labels, seed) for method in BY_SCOUTS}
    return ScoutedResNet(model, {name: scout(model, t, partial(train_one, p=p)).guide() for name, t in tasks.items()})


def accuracies(job: Job, scouted: ScoutedResNet) -> list[float]:
    """On each episode. Episodes are the same for every method and rate: differences are paired."""
    p, dataset = job.parameters, load(job.parameters.dataset)
    classes = split_classes(dataset, job.seed)[job.purpose]
    scores = []
    for i in range(p.n_tuning_episodes if job.purpose == "validation" else p.n_episodes):
        episode = sample_episode(dataset.examples, classes, p.n_way, p.n_shot, p.n_query, rng(job.seed, job.purpose, i))
        support, query = labelled(episode.support), labelled(episode.query)
        scores.append(fine_tune(scouted, job.variant.method, job.setting.learning_rate, support, query, p.epochs))
    return scores


def fine_tune(scouted: ScoutedResNet, method: str, rate: float, support: tuple, query: tuple, epochs: int) -> float:
    """Accuracy on the query after training on the support."""
    model = copy.deepcopy(scouted.zero_point)
    if METHODS[method] is FROZEN:  # the head alone, on features with the statistics of pretraining
        model.eval()
        with torch.no_grad():
            support, query = ((model.features(inputs), labels) for inputs, labels in (support, query))
        model = model.fc
    optimizer = SGD(model.parameters(), lr=rate)
    if METHODS[method] in BY_SCOUTS:
        optimizer = Guided(optimizer, model, scouted.guides[method])
    fit(model, *support, optimizer, epochs=epochs)
    return accuracy(model, *query).item()


def verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """Paired differences in test accuracy, each method at its own best rate: one row per comparison, with ``mean``,
    its 95 % interval from ``low`` to ``high``, ``n``, all of it as ``text``, and ``at_the_edge``, the methods whose
    best rate is the lowest or highest that was tried, so that another might be better still."""
    test = at_chosen_rates(frame, "first")
    by_method = dict(list(test[test["metric"] == "accuracy"].groupby("method")))
    tried = set(frame["learning_rate"])
    edge = [m for m, rows in by_method.items() if rows["learning_rate"].iloc[0] in (min(tried), max(tried))]
    pairs = [(method.name, rival.name) for method in BY_SCOUTS for rival in (FROZEN, PLAIN)]
    return pd.DataFrame(
        {"comparison": f"{one} - {other}"}
        | difference(by_method[one], by_method[other], "episodes")
        | {"at_the_edge": ", ".join(m for m in (one, other) if m in edge)}
        for one, other in [*pairs, (PLAIN.name, FROZEN.name)]
    )

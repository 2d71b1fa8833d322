"""What the neighbours are prepared by: meta-training, multi-task learning, learning to compare, aligned pretraining.

Like `preparation`, whose steps they follow on: pure functions of their parameters, in files named after their digest.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import pandas as pd
import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from gtl_core.baselines import compare, domain, learned_optimizer, meta, multitask
from gtl_core.baselines.backbones import pooled_conv4
from gtl_core.baselines.few_shot import TRAINING, TWICE, Episodes, Prepared
from gtl_core.data import Dataset as Images
from gtl_core.data import load
from gtl_core.experiments import preparation
from gtl_core.experiments.parameters import Count, Dataset, Head, ParameterError, Parameters, Rate, Seed
from gtl_core.experiments.preparation import BACKEND, HELD_OUT_DRAWERS, Pretraining, Scouting
from gtl_core.guide import Displacement, read_safetensors, write_safetensors
from gtl_core.models import conv4
from gtl_core.scouting import scout
from gtl_core.stats import bootstrap, by_seed_and_task, paired
from gtl_core.tasks import Episode, labelled, random_affine, rng, split_classes, to_float
from gtl_core.training import fit
from gtl_core.workers import parallel

Backbone = Literal["conv4", "pooled_conv4"]
MetaMethod = Literal[
    "hard_sharing", "soft_sharing", "maml", "fomaml", "anil", "meta_sgd", "reptile", "learned_optimizer",
    "matching", "prototypical", "relation",
]  # fmt: skip
META_METHODS = get_args(MetaMethod)
DESCENT = ("maml", "fomaml", "anil", "meta_sgd")
COMPARE = ("matching", "prototypical", "relation")
SHARING = ("hard_sharing", "soft_sharing")

COMPARE_WAYS = 20
REPTILE_SHOTS, REPTILE_STEPS = 10, 5  # of the published 5-way runs
OPTIMIZER_STEPS = 5
OPTIMIZER_SHARE = 8  # its rule runs for every parameter in every step, which takes the time of so many passes


def network(pretraining: Pretraining, backbone: Backbone, n_way: int, head: Head) -> nn.Sequential:
    """A random network with the new head that training from this pretraining's body begins with."""
    make = {"conv4": conv4, "pooled_conv4": pooled_conv4}[backbone]
    return preparation.network(pretraining, n_way, head, make=make)


@dataclass(frozen=True)
class Augmented(Episodes):
    """Episodes with every image turned, sheared, scaled and shifted a little, see `tasks.random_affine`."""

    strength: float = 0.0

    def __getitem__(self, i: int) -> Episode:
        episode, generator = super().__getitem__(i), rng(self.seed, self.purpose, "augmentation", i)
        changed = [
            random_affine(images.flatten(0, 1), self.strength, generator).view_as(images) if images.numel() else images
            for images in (episode.support, episode.query)
        ]
        return Episode(episode.classes, *changed)


class MetaTraining(Parameters):
    """A zero point for small tasks, made with a budget of network passes from a pretrained or a random network.

    It learns from the pretraining and the scouting classes, from which guidance comes, too, and from images augmented
    as in pretraining: without that it knows its drawers by heart, and undoes what pretraining was good for.
    """

    kind: Literal["meta_training"] = "meta_training"
    pretraining: Pretraining  # epochs = 0: from a random network
    backbone: Backbone = "conv4"
    method: MetaMethod
    n_way: Annotated[int, Field(ge=2)]
    head: Head
    n_shot: Count
    n_query: Count
    n_tasks: Count  # of multi-task learning, which goes through the same tasks again and again
    task_n_shot: Count  # examples per class of such a task, as a scout has them
    passes: Count  # the budget, see `baselines.few_shot`
    learning_rate: Rate
    inner_rate: Rate
    inner_steps: Count

    def needs(self) -> list[Parameters]:
        return [self.pretraining] if self.pretraining.epochs else []

    def episodes(self) -> Episodes:
        """As many as the budget pays for; the same tasks over and over for `SHARING`."""
        dataset, seed = load(self.pretraining.dataset), self.pretraining.seed
        split = split_classes(dataset, seed)
        classes = torch.cat([split["pretraining"], split["scouting"]])
        n_way, n_shot, n_query, n = self.n_way, self.n_shot, self.n_query, self.passes // self.passes_per_episode()
        if self.method in COMPARE:
            n_way = self.compare_ways()
        elif self.method == "reptile":
            n_shot, n_query = REPTILE_SHOTS, 0
        elif self.method in SHARING:
            n_shot, n_query, n = self.task_n_shot, 0, self.n_tasks
        settings = (dataset, classes, n_way, n_shot, n_query, n, seed, "meta-training")
        return Augmented(*settings, strength=self.pretraining.augmentation)

    def compare_ways(self) -> int:
        """More classes than a task will have help (Snell et al. 2017), but not the squared error of relation networks:
        with 19 wrong pairs for a right one, it learns to say no."""
        return self.n_way if self.method == "relation" else max(COMPARE_WAYS, self.n_way)

    def passes_per_episode(self) -> int:
        """What a step for one episode costs; of `SHARING`, one epoch of all tasks."""
        support, query = self.n_way * self.n_shot, self.n_way * self.n_query
        if self.method in DESCENT:
            inner = TWICE if self.method in ("maml", "meta_sgd") else TRAINING
            return inner * self.inner_steps * support + TRAINING * query
        if self.method in COMPARE:
            return TRAINING * self.compare_ways() * (self.n_shot + self.n_query)
        if self.method == "reptile":
            return TRAINING * self.n_way * REPTILE_SHOTS
        if self.method == "learned_optimizer":
            return OPTIMIZER_SHARE * TRAINING * OPTIMIZER_STEPS * (support + query)
        return TRAINING * self.n_tasks * self.n_way * self.task_n_shot

    def train(self, body: dict[str, Tensor] | None) -> Prepared:
        """From a pretrained ``body``, or from a random network. Raises ParameterError if the budget is too small."""
        model = network(self.pretraining, self.backbone, self.n_way, self.head)
        if body is not None:
            model.body.load_state_dict(body)
        if (n := self.passes // self.passes_per_episode()) < 1:
            raise ParameterError(
                f"passes = {self.passes}: {self.method} takes {self.passes_per_episode()} for a single episode"
            )
        episodes, rate = self.episodes(), self.learning_rate
        if self.method in DESCENT:
            settings = {"inner_rate": self.inner_rate, "n_steps": self.inner_steps, "outer_rate": rate}
            return getattr(meta, self.method)(model, episodes, **settings)
        if self.method in COMPARE:
            extra = {"generator": rng(self.pretraining.seed, "relation")} if self.method == "relation" else {}
            return getattr(compare, self.method)(model, episodes, learning_rate=rate, **extra)
        if self.method == "reptile":
            adam = partial(reptile_adam, learning_rate=rate)
            size, generator = REPTILE_SHOTS * self.n_way // REPTILE_STEPS, rng(self.pretraining.seed, "reptile")
            return meta.reptile(model, episodes, optimizer=adam, batch_size=size, generator=generator)
        if self.method == "learned_optimizer":
            rule = learned_optimizer.StepRule(scale=self.inner_rate, generator=rng(self.pretraining.seed, "rule"))
            options = {"n_steps": OPTIMIZER_STEPS, "learning_rate": rate}
            return learned_optimizer.learn_optimizer(model, episodes, rule, **options)
        options = {"epochs": n, "learning_rate": rate}
        if self.method == "hard_sharing":
            generator = rng(self.pretraining.seed, "sharing")
            return multitask.hard_sharing(model, episodes, _unused, generator=generator, **options)
        return multitask.soft_sharing(model, episodes, _unused, strength=0.1, **options)

    def make(self, folder: Path) -> None:
        """Train and write ``<folder>/<key>.safetensors``: the network and what else adapting it needs."""
        body = read_body(folder, self.pretraining) if self.pretraining.epochs else None
        prepared = self.train(body)
        tensors = {f"model:{name}": p for name, p in prepared.model.named_parameters()}
        tensors |= {f"extra:{name}": p for name, p in _extra(self.method, prepared).items()}
        metadata = {"parameters": self.model_dump(), "passes": prepared.passes, "seconds": prepared.seconds}
        write_safetensors(folder / f"{self.key}.safetensors", tensors, metadata)

    def read(self, folder: Path) -> tuple[nn.Sequential, dict[str, Tensor], dict]:
        """The network, what else adapting it needs (`read_extra`), and the file's metadata."""
        tensors, metadata = read_safetensors(folder / f"{self.key}.safetensors")
        model = network(self.pretraining, self.backbone, self.n_way, self.head)
        model.load_state_dict({n.removeprefix("model:"): t for n, t in tensors.items() if n.startswith("model:")})
        return model, {n.removeprefix("extra:"): t for n, t in tensors.items() if n.startswith("extra:")}, metadata


class DomainTraining(Parameters):
    """Pretraining on labelled source classes while features are made to suit the target's unlabelled images.

    These come from the target's pretraining and scouting classes, on which nothing is tested.
    """

    kind: Literal["domain_training"] = "domain_training"
    source: Dataset
    target: Dataset
    inverted: bool  # whether the target's images are white on black
    seed: Seed
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    alignment: Literal["none", "coral", "dann"]
    strength: Annotated[float, Field(ge=0)]  # of the alignment
    n_steps: Count
    batch_size: Count = 64
    learning_rate: Rate = 2e-3
    augmentation: Annotated[float, Field(ge=0)] = 0.1

    def needs(self) -> list[Parameters]:
        return []

    def train(self) -> Prepared:
        source, target = load(self.source), shifted(self.target, self.inverted)
        classes = split_classes(source, self.seed)["pretraining"]
        there = split_classes(target, self.seed)
        unlabelled = to_float(target.examples[torch.cat([there["pretraining"], there["scouting"]])]).flatten(0, 1)
        model = conv4(len(classes), self.channels, generator=rng(self.seed, "network"))
        alignment = {"none": domain.no_alignment, "coral": partial(_coral, strength=self.strength)}.get(self.alignment)
        if self.alignment == "dann":
            features = model.head.in_features
            alignment = domain.DANN(features, strength=self.strength, generator=rng(self.seed, "dann"))
        return domain.pretrain_across(
            model,
            labelled(to_float(source.examples[classes])[:, HELD_OUT_DRAWERS:]),
            unlabelled,
            alignment,
            _unused,
            n_steps=self.n_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            augment=partial(random_affine, strength=self.augmentation, generator=rng(self.seed, "augmentation")),
            generator=rng(self.seed, "batches"),
        )

    def make(self, folder: Path) -> None:
        """Train and write the body to ``<folder>/<key>.safetensors``, as `Pretraining` does."""
        prepared = self.train()
        metadata = {"parameters": self.model_dump(), "passes": prepared.passes, "seconds": prepared.seconds}
        body = dict(prepared.model.body.named_parameters())
        write_safetensors(folder / f"{self.key}.safetensors", body, metadata)


class ScoutingFrom(Parameters):
    """Scouts sent from another zero point than `Scouting`'s own, with tasks of the same kind."""

    kind: Literal["scouting_from"] = "scouting_from"
    zero_point: Annotated[MetaTraining | DomainTraining, Field(discriminator="kind")]
    scouting: Scouting  # all but where it starts
    inverted: bool = False  # whether the scouts' images are white on black

    def needs(self) -> list[Parameters]:
        return [self.zero_point]

    def make(self, folder: Path) -> None:
        """Scout and write the `Displacement` to ``<folder>/<key>.safetensors``."""
        self.scout(read_body(folder, self.zero_point)).save(folder / f"{self.key}.safetensors")

    def scout(self, body: dict[str, Tensor]) -> Displacement:
        s = self.scouting
        dataset = shifted(s.pretraining.dataset, self.inverted)
        classes = split_classes(dataset, s.pretraining.seed)["scouting"]
        drawn = Episodes(dataset, classes, s.n_way, s.n_shot, 0, s.n_scouts, s.pretraining.seed, "scout")
        tasks = (labelled(episode.support) for episode in drawn)
        return scout(s.zero_point(body), tasks, s.recipe(), backend=BACKEND)


Step = Pretraining | Scouting | MetaTraining | DomainTraining | ScoutingFrom


def from_json(text: str) -> MetaTraining | DomainTraining | ScoutingFrom:
    """The preparation of this module whose `canonical` JSON this is."""
    kinds = Annotated[MetaTraining | DomainTraining | ScoutingFrom, Field(discriminator="kind")]
    return TypeAdapter(kinds).validate_json(text)


def read_body(folder: Path, step: Pretraining | MetaTraining | DomainTraining) -> dict[str, Tensor]:
    """The body of a prepared zero point."""
    tensors, _ = read_safetensors(folder / f"{step.key}.safetensors")
    if isinstance(step, MetaTraining):
        prefix = "model:body."
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return tensors


def seconds_of(folder: Path, step: MetaTraining | DomainTraining) -> float:
    """How long it took, on the machine and under the load that it was made with."""
    return read_safetensors(folder / f"{step.key}.safetensors")[1]["seconds"]


def passes_of(step: Step) -> int:
    """Network passes of a preparation, without those of what it starts from."""
    match step:
        case Pretraining():
            dataset = load(step.dataset)
            n_drawers = dataset.examples.shape[1] - HELD_OUT_DRAWERS
            n_images = len(split_classes(dataset, step.seed)["pretraining"]) * n_drawers
            return TRAINING * step.epochs * n_images
        case Scouting():
            return TRAINING * step.n_scouts * step.epochs * step.n_way * step.n_shot
        case ScoutingFrom():
            return passes_of(step.scouting)
        case DomainTraining():
            return TRAINING * step.n_steps * 2 * step.batch_size
        case MetaTraining():
            # The rule's own work counts in full here, as in the budget.
            return step.passes // step.passes_per_episode() * step.passes_per_episode()


def all_passes(step: Step) -> int:
    """Network passes of a preparation and all that it needs."""
    return passes_of(step) + sum(map(all_passes, step.needs()))


@contextmanager
def made(steps: Sequence[Step], prepared: str, workers: int) -> Iterator[Path]:
    """The folder that holds all ``steps``: ``prepared``, or, if that is empty, a temporary one, made now.

    Raises ParameterError, naming the folder, if it does not hold them all.
    """
    levels = [list(dict.fromkeys(steps))]
    while needed := list(dict.fromkeys(need for step in levels[-1] for need in step.needs())):
        levels.append(needed)
    # A step may be needed on several levels; the deepest is where it must be made.
    depth = {step: i for i, level in enumerate(levels) for step in level}
    if prepared:
        yield preparation.holding(prepared, depth, "preparations")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for level in sorted(set(depth.values()), reverse=True):
            parallel(partial(_make, folder), [s for s, at in depth.items() if at == level], workers, "preparation")
        yield folder


def seconds_per_pass(pretraining: Pretraining, n_images: int, n_steps: int = 10) -> float:
    """On this machine, in plain training on batches of ``n_images``: for what was made elsewhere or by others."""
    model = conv4(5, pretraining.channels, generator=rng(0))
    images, labels = torch.rand(n_images, 1, 28, 28, generator=rng(0)), torch.arange(n_images) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    fit(model, images, labels, optimizer, epochs=2)
    begin = time.perf_counter()
    fit(model, images, labels, optimizer, epochs=n_steps)
    return (time.perf_counter() - begin) / (TRAINING * n_steps * n_images)


def best_settings(frame: pd.DataFrame, variant: Sequence[str], setting: Sequence[str]) -> dict[tuple, tuple]:
    """The setting of each variant with the highest mean ``validation``; of equals the lowest.

    variant, setting: the columns that tell them apart. Variants keep the frame's order.
    """
    tuning = frame[frame["metric"] == "validation"]
    means = tuning.groupby([*variant, *setting])["value"].mean()
    best = {key: of.idxmax()[-len(setting) :] for key, of in means.groupby(level=list(variant))}
    order = tuning[list(variant)].drop_duplicates().itertuples(index=False, name=None)
    return {key: best[key] for key in order}


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table that the same parameters give again, and the seconds, which differ from run to run."""
    seconds = frame["metric"].str.endswith("_seconds")
    return frame[~seconds], frame[seconds]


def accuracy_of(values: pd.DataFrame) -> dict[str, float]:
    """Mean accuracy and its 95 % interval, as columns of a ranking."""
    e = bootstrap(by_seed_and_task(values))
    return {"accuracy": e.mean, "accuracy_low": e.low, "accuracy_high": e.high}


def guided_minus(guided: pd.DataFrame, values: pd.DataFrame, tasks: str, per_row: int = 1) -> dict[str, object]:
    """The paired difference, as columns of a ranking. ``tasks``: what they are, ``per_row`` in a row of the table."""
    e = paired(guided, values)
    n = f"{e.n[0]} networks x {e.n[1] * per_row} {tasks}"
    return {"difference": e.mean, "low": e.low, "high": e.high, "text": e.text, "n": n}


def best_first(rows: list[dict[str, object]], groups: Sequence[str]) -> pd.DataFrame:
    """The rows of a ranking by accuracy within each group; groups keep their order."""
    table = pd.DataFrame(rows)
    order = table.groupby(list(groups), sort=False).ngroup()
    table = table.assign(_order=order).sort_values(["_order", "accuracy"], ascending=[True, False])
    return table.drop(columns="_order").reset_index(drop=True)


def sides(others: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of a ranking, who is above and below guidance (the interval of the difference excludes 0), and who neither."""
    above, below = others[others["high"] < 0], others[others["low"] > 0]
    return {"above it": above, "below it": below, "undecided": others.drop([*above.index, *below.index])}


@cache
def shifted(name: Dataset, inverted: bool) -> Images:
    """The dataset, or its negative."""
    dataset = load(name)
    return replace(dataset, examples=255 - dataset.examples) if inverted else dataset


def _extra(method: str, prepared: Prepared) -> dict[str, Tensor]:
    options = prepared.adapt.keywords if isinstance(prepared.adapt, partial) else {}
    if method == "meta_sgd":
        return dict(options["rates"])
    if method == "relation":
        return dict(options["compare"].named_parameters())
    if method == "learned_optimizer":
        return dict(options["optimizer"].keywords["rule"].named_parameters())
    return {}


def reptile_adam(model: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """What Reptile trains tasks with, while it is prepared and on new ones. Source: Nichol et al. 2018, appendix A."""
    return torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.0, 0.999))


def _coral(source: Tensor, target: Tensor, progress: float, *, strength: float) -> Tensor:
    return strength * domain.coral(source, target, progress)


def _unused(model: nn.Module, inputs: Tensor, labels: Tensor):
    raise NotImplementedError("the experiments adapt zero points side by side, see `few_shot_neighbours`")


def _make(folder: Path, step: Step) -> None:
    step.make(folder)

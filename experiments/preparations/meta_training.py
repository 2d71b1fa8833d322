"""Zero points made for small tasks: meta-training, multi-task learning, learning to compare."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines import compare, learned_optimizer, meta, multitask
from experiments.baselines.backbones import pooled_conv4
from experiments.baselines.few_shot import Episodes, Prepared
from experiments.costs import TRAINING, TWICE
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import conv4
from experiments.parameters import Count, Head, ParameterError, Rate
from experiments.preparations.pretraining import Body, Pretraining, zero_point
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.tasks import Episode, rng

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
    return zero_point(pretraining, n_way, head, make=make)


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


class MetaTraining(Step):
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

    def needs(self) -> list[Step]:
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

    def cost(self) -> int:
        # The learned optimizer's own work counts in full, as in the budget.
        return self.passes // self.passes_per_episode() * self.passes_per_episode()

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
            return multitask.hard_sharing(model, episodes, generator=generator, **options)
        return multitask.soft_sharing(model, episodes, strength=0.1, **options)

    def make(self, folder: Path) -> None:
        """Train, and write the network and what else adapting it needs."""
        body = self.pretraining.body(folder) if self.pretraining.epochs else None
        prepared = self.train(body)
        tensors = {f"model:{name}": p for name, p in prepared.model.named_parameters()}
        tensors |= {f"extra:{name}": p for name, p in _extra(self.method, prepared).items()}
        metadata = {"parameters": self.model_dump(), "passes": prepared.passes, "seconds": prepared.seconds}
        write_safetensors(self.path(folder), tensors, metadata)

    def read(self, folder: Path) -> tuple[nn.Sequential, dict[str, Tensor], dict]:
        """The network, what else adapting it needs (`read_extra`), and the file's metadata."""
        tensors, metadata = read_safetensors(self.path(folder))
        model = network(self.pretraining, self.backbone, self.n_way, self.head)
        model.load_state_dict({n.removeprefix("model:"): t for n, t in tensors.items() if n.startswith("model:")})
        return model, {n.removeprefix("extra:"): t for n, t in tensors.items() if n.startswith("extra:")}, metadata

    def body(self, folder: Path) -> Body:
        """Of the network that `make` wrote."""
        return dict(self.read(folder)[0].body.state_dict())


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

"""Zero points made for small tasks: meta-training, multi-task learning, learning to compare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines.few_shot import Episodes, Learning, Prepared, Start
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import BACKBONES, new_head
from experiments.neighbours import LEARNING
from experiments.parameters import Count, Head, ParameterError, Rate
from experiments.preparations.pretraining import Body, Pretraining, zero_point
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.tasks import Episode, rng

Backbone = Literal[*BACKBONES]


def network(pretraining: Pretraining, backbone: Backbone, n_way: int, head: Head) -> nn.Sequential:
    """A random network with the new head that training from this pretraining's body begins with."""
    return zero_point(pretraining, n_way, head, make=BACKBONES[backbone])


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
    method: Literal[*LEARNING]
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

    def learning(self) -> Learning:
        """The row of what it does."""
        return LEARNING[self.method]

    def needs(self) -> list[Step]:
        return [self.pretraining] if self.pretraining.epochs else []

    def episodes(self) -> Episodes:
        """As many as the budget pays for; the same tasks over and over for methods with a head for each."""
        dataset, seed = load(self.pretraining.dataset), self.pretraining.seed
        split = split_classes(dataset, seed)
        classes = torch.cat([split["pretraining"], split["scouting"]])
        learning = self.learning()
        n = self.n_tasks if learning.own_heads else self._repeats()
        settings = (dataset, classes, *learning.shape(self), n, seed, "meta-training")
        return Augmented(*settings, strength=self.pretraining.augmentation)

    def passes_per_episode(self) -> int:
        """What a step for one episode costs; with a head for each task, one epoch of all tasks."""
        return self.learning().passes(self)

    def cost(self) -> int:
        # The learned optimizer's own work counts in full, as in the budget.
        return self._repeats() * self.passes_per_episode()

    def _repeats(self) -> int:
        return 1 if self.learning().once else self.passes // self.passes_per_episode()

    def train(self, body: Body | None) -> Prepared:
        """From a pretrained ``body``, or from a random network. Raises ParameterError if the budget is too small."""
        model = network(self.pretraining, self.backbone, self.n_way, self.head)
        if body is not None:
            model.body.load_state_dict(body)
        if self.passes < (least := self.passes_per_episode()):
            raise ParameterError(f"passes = {self.passes}: {self.method} takes {least} for a single episode")
        return self.learning().train(model, self.episodes(), self)

    def make(self, folder: Path) -> None:
        """Train, and write the network and what else adapting it needs."""
        body = self.pretraining.body(folder) if self.pretraining.epochs else None
        prepared = self.train(body)
        tensors = {f"model:{name}": p for name, p in prepared.model.named_parameters()}
        tensors |= {f"extra:{name}": p for name, p in prepared.extra.items()}
        metadata = {"parameters": self.model_dump(), "passes": prepared.passes, "seconds": prepared.seconds}
        write_safetensors(self.path(folder), tensors, metadata)

    def read(self, folder: Path) -> tuple[nn.Sequential, dict[str, Tensor], dict]:
        """The network, what else adapting it needs (`Prepared.extra`), and the file's metadata."""
        tensors, metadata = read_safetensors(self.path(folder))
        model = network(self.pretraining, self.backbone, self.n_way, self.head)
        model.load_state_dict({n.removeprefix("model:"): t for n, t in tensors.items() if n.startswith("model:")})
        return model, {n.removeprefix("extra:"): t for n, t in tensors.items() if n.startswith("extra:")}, metadata

    def start(self, folder: Path, n_way: int, head: Head) -> Start:
        """What learning a task of ``n_way`` classes starts from; with a new head where tasks had heads of their own."""
        model, extra, _ = self.read(folder)
        if self.learning().own_heads:
            new_head(model, n_way, head, generator=rng(self.pretraining.seed, "head", n_way))
        return Start(model, extra)

    def body(self, folder: Path) -> Body:
        """Of the network that `make` wrote."""
        return dict(self.read(folder)[0].body.state_dict())

"""What 16 makes before any task: a search for an architecture, the network that was found, and its scouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines import architecture as search
from experiments.baselines.architecture import Architecture, Tried, made_by_hand
from experiments.baselines.transfer import nearest_mean
from experiments.costs import TRAINING
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import new_head
from experiments.parameters import Count, Rate
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import SIDE_BY_SIDE, Scouting, ScoutingStep
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.scouting import scout
from gtl_core.tasks import Episode, labelled, rng, sample_episode, to_float

ONE_BY_ONE: dict[str, Callable[..., list[Tried]]] = {
    "random_search": search.random_search,
    "evolution": search.evolution,
}


def pretrained(pretraining: Pretraining, architecture: Architecture) -> nn.Sequential:
    """Pretrained as `conv4` is, but for the width, which is the architecture's own."""

    def make(n_way: int, channels: int, *, generator: torch.Generator) -> nn.Sequential:
        return search.build(architecture, n_way, generator=generator)

    return pretraining.train(make)[0]


class Search(Step):
    """A search on the scouting classes, with networks that learn the pretraining classes; by one of three methods."""

    kind: Literal["architecture_search"] = "architecture_search"
    method: Literal[*ONE_BY_ONE, "differentiable"]
    pretraining: Pretraining
    n_way: Annotated[int, Field(ge=2)]
    n_shot: Count
    n_query: Count
    n_tasks: Count  # on which a network's nearest class means are scored
    epochs: Count  # of pretraining, before they are
    budget: Rate  # in times what pretraining of the network made by hand costs

    def cost(self) -> int:
        return round(self.budget * self.pretraining.cost())

    def make(self, folder: Path) -> None:
        drawn = rng(self.pretraining.seed, "architecture", self.method)
        if self.method == "differentiable":
            tried = [Tried(found := self._differentiable(drawn), self.score(found)[0])]
        else:
            tried = ONE_BY_ONE[self.method](self.score, self.cost(), self.by_hand(), drawn)
        best = max(tried, key=lambda one: one.score)
        metadata = {
            "parameters": self.model_dump(),
            "found": best.architecture,
            "tried": [t.architecture for t in tried],
        }
        write_safetensors(self.path(folder), {"scores": torch.tensor([one.score for one in tried])}, metadata)

    def by_hand(self) -> Architecture:
        return made_by_hand(self.pretraining.channels)

    def found(self, folder: Path) -> Architecture:
        return _architecture(read_safetensors(self.path(folder))[1]["found"])

    def tried(self, folder: Path) -> list[Tried]:
        """Every architecture with its score, in their order; of the differentiable search, what came out of it."""
        tensors, metadata = read_safetensors(self.path(folder))
        pairs = zip(metadata["tried"], tensors["scores"].tolist(), strict=True)
        return [Tried(_architecture(a), score) for a, score in pairs]

    def score(self, architecture: Architecture) -> tuple[float, float]:
        """The share of queries in scouting tasks that are nearest to their own class's mean, after a short pretraining;
        and network passes that this takes, as many as it would of the network made by hand."""
        short = self.pretraining.model_copy(update={"epochs": self.epochs})
        model, right = pretrained(short, architecture), 0.0
        for episode in (self._episode(i) for i in range(self.n_tasks)):
            queries, answers = labelled(episode.query)
            with torch.no_grad():
                found = nearest_mean(model, *labelled(episode.support))(queries).argmax(-1)
            right += (found == answers).float().mean().item() / self.n_tasks
        return right, short.cost() * search.size(architecture, self.by_hand())[0]

    def _episode(self, i: int) -> Episode:
        dataset, seed = load(self.pretraining.dataset), self.pretraining.seed
        shape = (self.n_way, self.n_shot, self.n_query)
        return sample_episode(
            dataset.examples, split_classes(dataset, seed)["scouting"], *shape, rng(seed, "architecture", "episode", i)
        )

    def _differentiable(self, generator: torch.Generator) -> Architecture:
        p, by_hand = self.pretraining, self.by_hand()
        model = search.mixture(len(p.images()), by_hand, generator)
        # Every operation is done for each image of a batch and of an episode.
        alone = (by_hand._replace(blocks=(operation,) * len(by_hand.blocks)) for operation in search.OPERATIONS)
        images = p.batch_size + self.n_way * (self.n_shot + self.n_query)
        per_step = TRAINING * images * sum(search.size(one, by_hand)[0] for one in alone)
        return search.differentiable(
            model,
            _batches(p, generator),
            map(self._episode, count()),
            by_hand,
            n_steps=max(1, round(self.cost() / per_step)),
            learning_rate=p.learning_rate,
        )


def _batches(pretraining: Pretraining, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Of the pretraining images, augmented, without end."""
    images, labels = labelled(to_float(pretraining.images()))
    augment = partial(random_affine, strength=pretraining.augmentation, generator=generator)
    while True:
        for batch in torch.randperm(len(images), generator=generator).split(pretraining.batch_size):
            yield augment(images[batch]), labels[batch]


def _architecture(stored: Sequence) -> Architecture:
    blocks, channels, norm = stored
    return Architecture(tuple(blocks), channels, norm)


class Trained(Step):
    """The zero point with the architecture that was found, or with the one made by hand."""

    kind: Literal["architecture"] = "architecture"
    search: Search | None
    pretraining: Pretraining

    def needs(self) -> list[Step]:
        return [self.search] if self.search else []

    def architecture(self, folder: Path) -> Architecture:
        return self.search.found(folder) if self.search else made_by_hand(self.pretraining.channels)

    def make(self, folder: Path) -> None:
        model = pretrained(self.pretraining, self.architecture(folder))
        write_safetensors(self.path(folder), dict(model.body.named_parameters()), {"parameters": self.model_dump()})

    def zero_point(self, folder: Path, scouting: Scouting) -> nn.Sequential:
        """With the new head that scouts and later training start from."""
        p = self.pretraining
        model = search.build(self.architecture(folder), scouting.n_way, generator=rng(p.seed, "network"))
        new_head(model, scouting.n_way, scouting.head, generator=rng(p.seed, "head", scouting.n_way))
        model.body.load_state_dict(read_safetensors(self.path(folder))[0])
        return model


class TrainedScouting(ScoutingStep):
    """Scouts from the zero point."""

    kind: Literal["architecture_scouting"] = "architecture_scouting"
    training: Trained
    scouting: Scouting  # all but where it starts

    def needs(self) -> list[Step]:
        return [self.training]

    def make(self, folder: Path) -> None:
        s = self.scouting
        model = self.training.zero_point(folder, s)
        scout(model, s.tasks(), s.recipe(), side_by_side=SIDE_BY_SIDE).save(self.path(folder))

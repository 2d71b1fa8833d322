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
from experiments.baselines.architecture import LARGEST, Architecture, Space, Tried, made_by_hand
from experiments.baselines.transfer import nearest_mean
from experiments.costs import FORWARD, TRAINING
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import new_head
from experiments.parameters import Count, ParameterError, Rate
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

    return pretraining.fitted(make)


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
        """In passes of the network made by hand."""
        return round(self.budget * self.pretraining.cost())

    def space(self) -> Space:
        return Space(made_by_hand(self.pretraining.channels), len(self._classes("pretraining")))

    def make(self, folder: Path) -> None:
        """Raises ParameterError if the budget is too small for one network of the largest."""
        drawn, space = rng(self.pretraining.seed, "architecture", self.method), self.space()
        if self.cost() < (least := LARGEST * self._cost_of(space.by_hand)):
            costs = self.pretraining.cost()
            raise ParameterError(f"search_budget = {self.budget}: at least {least / costs:.1f}, for one large network")
        if self.method == "differentiable":
            found = self._differentiable(drawn)
            tried = [Tried(found, self.score(found))]  # to be seen beside others; the choice is made
        else:
            tried = ONE_BY_ONE[self.method](self.score, self._cost_of, self.cost(), space, drawn)
        best = max(tried, key=lambda one: one.score).architecture
        metadata = {"parameters": self.model_dump(), "found": best, "tried": [t.architecture for t in tried]}
        write_safetensors(self.path(folder), {"scores": torch.tensor([one.score for one in tried])}, metadata)

    def found(self, folder: Path) -> Architecture:
        return _architecture(read_safetensors(self.path(folder))[1]["found"])

    def tried(self, folder: Path) -> list[Tried]:
        """Every architecture with its score, in their order; of the differentiable search, what came out of it."""
        tensors, metadata = read_safetensors(self.path(folder))
        pairs = zip(metadata["tried"], tensors["scores"].tolist(), strict=True)
        return [Tried(_architecture(a), score) for a, score in pairs]

    def score(self, architecture: Architecture) -> float:
        """After a short pretraining, the share of queries, in tasks of the scouting classes, that are nearest to their
        own class's mean."""
        model, right = pretrained(self._short(), architecture), 0.0
        for episode in (self._episode("score", i) for i in range(self.n_tasks)):
            queries, answers = labelled(episode.query)
            with torch.no_grad():
                found = nearest_mean(model, *labelled(episode.support))(queries).argmax(-1)
            right += (found == answers).float().mean().item() / self.n_tasks
        return right

    def _cost_of(self, architecture: Architecture) -> float:
        """Of `score`, in passes of the network made by hand."""
        images = self.n_tasks * self.n_way * (self.n_shot + self.n_query)
        return (self._short().cost() + FORWARD * images) * search.size(architecture, *self.space())[0]

    def _short(self) -> Pretraining:
        return self.pretraining.model_copy(update={"epochs": self.epochs})

    def _episode(self, purpose: str, i: int) -> Episode:
        images, draw = load(self.pretraining.dataset).examples, rng(self.pretraining.seed, "architecture", purpose, i)
        return sample_episode(images, self._classes("scouting"), self.n_way, self.n_shot, self.n_query, draw)

    def _classes(self, purpose: str) -> Tensor:
        return split_classes(load(self.pretraining.dataset), self.pretraining.seed)[purpose]

    def _differentiable(self, generator: torch.Generator) -> Architecture:
        p, space = self.pretraining, self.space()
        n_blocks = len(space.by_hand.blocks)
        # Every operation is done for each image of a batch and of an episode; strengths need no derivative by weights.
        alone = (space.by_hand._replace(blocks=(operation,) * n_blocks) for operation in search.OPERATIONS)
        images = TRAINING * p.batch_size + (TRAINING - 1) * self.n_way * (self.n_shot + self.n_query)
        per_step = images * sum(search.size(one, *space)[0] for one in alone)
        return search.differentiable(
            search.mixture(space.n_classes, space.by_hand, generator),
            _batches(p, generator),
            (self._episode("strengths", i) for i in count()),
            space.by_hand,
            n_steps=round(self.cost() / per_step),
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

    def cost(self) -> int:
        return self.pretraining.cost()

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

    def cost(self) -> int:
        return self.scouting.cost()

    def make(self, folder: Path) -> None:
        s = self.scouting
        model = self.training.zero_point(folder, s)
        scout(model, s.tasks(), s.recipe(), side_by_side=SIDE_BY_SIDE).save(self.path(folder))

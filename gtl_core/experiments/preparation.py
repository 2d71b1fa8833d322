"""What experiments share: pretrained zero points, and the displacement of scouts sent from them.

Each is a pure function of its parameters, so a file named after their digest can serve every notebook that needs it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor, nn

from gtl_core.data import load
from gtl_core.experiments.parameters import Count, Dataset, Head, ParameterError, Parameters, Rate, Seed
from gtl_core.guide import Displacement, read_safetensors, write_safetensors
from gtl_core.models import conv4, new_head
from gtl_core.records import resolve
from gtl_core.scouting import scout
from gtl_core.tasks import labelled, random_affine, rng, sample_episode, split_classes, to_float
from gtl_core.training import Recipe, accuracy, fit
from gtl_core.workers import parallel

HELD_OUT_DRAWERS = 4
BACKEND = "stacked"  # of all scouts; named, since another one changes the last digits of every result


class Pretraining(Parameters):
    """Supervised training on all pretraining classes at once. ``epochs = 0`` leaves the network as drawn.

    Without augmentation the network knows its drawers by heart, and one-shot accuracy on new characters is ten points
    lower.
    """

    kind: Literal["pretraining"] = "pretraining"
    dataset: Dataset
    seed: Seed
    channels: Annotated[int, Field(ge=4, multiple_of=4)] = 32
    epochs: Annotated[int, Field(ge=0)] = 15
    batch_size: Count = 64
    learning_rate: Rate = 2e-3
    augmentation: Annotated[float, Field(ge=0)] = 0.1  # see `tasks.random_affine`

    def needs(self) -> list[Parameters]:
        return []

    def train(self) -> tuple[nn.Sequential, float]:
        """The network with a head for the pretraining classes, and its accuracy there on held-out drawers."""
        dataset = load(self.dataset)
        classes = split_classes(dataset, self.seed)["pretraining"]
        model = conv4(len(classes), self.channels, generator=rng(self.seed, "network"))
        images = to_float(dataset.examples[classes])
        train = labelled(images[:, HELD_OUT_DRAWERS:])
        fit(
            model,
            *train,
            torch.optim.Adam(model.parameters(), lr=self.learning_rate),
            epochs=self.epochs,
            batch_size=self.batch_size,
            generator=rng(self.seed, "batches"),
            augment=partial(random_affine, strength=self.augmentation, generator=rng(self.seed, "augmentation")),
        )
        return model, accuracy(model, *labelled(images[:, :HELD_OUT_DRAWERS])).item()

    def make(self, folder: Path) -> None:
        """Train and write ``<folder>/<key>.safetensors``."""
        model, held_out = self.train()
        metadata = {"parameters": self.model_dump(), "held_out_accuracy": held_out}
        write_safetensors(folder / f"{self.key}.safetensors", dict(model.body.named_parameters()), metadata)


class Scouting(Parameters):
    """Scouts sent from a pretrained body with a new head into small tasks of the scouting classes."""

    kind: Literal["scouting"] = "scouting"
    pretraining: Pretraining
    n_way: Annotated[int, Field(ge=2)]
    head: Head
    n_scouts: Count
    first_scout: Annotated[int, Field(ge=0)] = 0  # more scouts can be sent later, and their displacements added
    n_shot: Count
    epochs: Count
    learning_rate: Rate

    def needs(self) -> list[Parameters]:
        return [self.pretraining]

    def make(self, folder: Path) -> None:
        """Scout and write the `Displacement` to ``<folder>/<key>.safetensors``."""
        body, _ = read_safetensors(folder / f"{self.pretraining.key}.safetensors")
        self.scout(body).save(folder / f"{self.key}.safetensors")

    def zero_point(self, body: dict[str, Tensor]) -> nn.Sequential:
        """The network that scouts and later training start from."""
        return network(self.pretraining, self.n_way, self.head, body)

    def recipe(self) -> Recipe:
        """What each scout does."""
        return Recipe(self.learning_rate, self.epochs)

    def scout(self, body: dict[str, Tensor]) -> Displacement:
        dataset, seed = load(self.pretraining.dataset), self.pretraining.seed
        classes = split_classes(dataset, seed)["scouting"]
        episodes = (
            sample_episode(dataset, classes, self.n_way, self.n_shot, 0, rng(seed, "scout", i))
            for i in range(self.first_scout, self.first_scout + self.n_scouts)
        )
        tasks = (labelled(episode.support) for episode in episodes)
        return scout(self.zero_point(body), tasks, self.recipe(), backend=BACKEND)


def network(
    pretraining: Pretraining,
    n_way: int,
    head: Head,
    body: dict[str, Tensor] | None = None,
    make: Callable[..., nn.Sequential] = conv4,
) -> nn.Sequential:
    """A network with a new head and this ``body``; without it, as it is drawn."""
    model = make(n_way, pretraining.channels, generator=rng(pretraining.seed, "network"))
    if body is not None:
        model.body.load_state_dict(body)
    new_head(model, n_way, head, generator=rng(pretraining.seed, "head", n_way))
    return model


Preparation = Annotated[Pretraining | Scouting, Field(discriminator="kind")]


# Kinds of other modules. Their names are text, so that an edit there reruns their steps and not these.
ELSEWHERE = dict.fromkeys(("meta_training", "domain_training", "scouting_from"), "gtl_core.experiments.neighbours")


def from_json(text: str) -> Parameters:
    """The preparation whose `canonical` JSON this is."""
    if module := ELSEWHERE.get(json.loads(text)["kind"]):
        return import_module(module).from_json(text)
    return TypeAdapter(Preparation).validate_json(text)


def displacements(scoutings: Sequence[Scouting], prepared: str, workers: int) -> list[Displacement]:
    """The displacement of each scouting, read from the folder ``prepared`` or, if that is empty, made now.

    Raises ParameterError, naming the folder, if it does not hold them all.
    """
    if not prepared:
        with tempfile.TemporaryDirectory() as folder:
            pretrainings = list(dict.fromkeys(s.pretraining for s in scoutings))
            for steps, what in ((pretrainings, "pretraining"), (scoutings, "scouting")):
                parallel(partial(_make, Path(folder)), steps, workers, what)
            return _read(scoutings, Path(folder))
    return _read(scoutings, holding(prepared, scoutings, "displacements"))


def holding(prepared: str, steps: Collection[Parameters], what: str) -> Path:
    """The folder ``prepared``; ParameterError, naming it, if it does not hold all ``steps``."""
    folder = resolve(prepared)
    missing = sum(not (folder / f"{step.key}.safetensors").exists() for step in steps)
    if missing:
        raise ParameterError(
            f"prepared = {prepared!r}: {missing} of {len(steps)} {what} for these parameters are not there; leave it "
            "empty to make them now, or run the batch"
        )
    return folder


def _make(folder: Path, step: Pretraining | Scouting) -> None:
    step.make(folder)


def _read(scoutings: Sequence[Scouting], folder: Path) -> list[Displacement]:
    return [Displacement.load(folder / f"{s.key}.safetensors") for s in scoutings]

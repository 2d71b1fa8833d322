"""What 12 makes before any task: with its own learnings, and scouts that know no labels, or wrong ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from experiments.baselines.few_shot import Learning
from experiments.baselines.reweighting import mislabelled
from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e12_learned_everything.methods import LEARNINGS
from experiments.preparations.meta_training import MetaTraining
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.scouting import SIDE_BY_SIDE, Scouting, ScoutingStep
from experiments.preparations.steps import Step
from gtl_core.scouting import scout
from gtl_core.tasks import labelled, rng, sample_episode, to_float

N_CLUSTERS = 30  # as in the published re-run with scouts that knew no labels

ScoutLabels = Literal["classes", "clusters"]


class LearnedTraining(MetaTraining):
    """As `MetaTraining`, by what 12 adds to it."""

    kind: Literal["learned_training"] = "learned_training"
    method: Literal[*LEARNINGS]

    def learning(self) -> Learning:
        return LEARNINGS[self.method]


class LearnedScouting(ScoutingStep):
    """Scouts from any zero point, that tell classes apart, some with wrong labels, or clusters, without any label."""

    kind: Literal["learned_scouting"] = "learned_scouting"
    zero_point: Annotated[Pretraining | LearnedTraining, Field(discriminator="kind")]
    scouting: Scouting  # all but where it starts
    labels: ScoutLabels
    wrong: Annotated[float, Field(ge=0, lt=1)]  # share of each scout's labels

    def needs(self) -> list[Step]:
        return [self.zero_point]

    def cost(self) -> int:
        return self.scouting.cost()

    def make(self, folder: Path) -> None:
        model = self.scouting.zero_point(self.zero_point.body(folder))
        scout(model, self.tasks(model), self.scouting.recipe(), side_by_side=SIDE_BY_SIDE).save(self.path(folder))

    def tasks(self, model: nn.Sequential) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [N, 1, 28, 28] and labels [N] of each scout; ``model`` says which images are alike."""
        s, seed = self.scouting, self.scouting.pretraining.seed
        dataset = load(s.pretraining.dataset)
        classes = split_classes(dataset, seed)["scouting"]
        images = dataset.examples[classes].flatten(0, 1)
        clusters = image_clusters(model, images, seed) if self.labels == "clusters" else []
        for i in range(s.first_scout, s.first_scout + s.n_scouts):
            draw = rng(seed, "scout", i)
            if self.labels == "clusters":
                inputs, labels = labelled(sample_clusters(clusters, s.n_way, s.n_shot, draw))
            else:
                inputs, labels = labelled(sample_episode(dataset.examples, classes, s.n_way, s.n_shot, 0, draw).support)
            yield inputs, mislabelled(labels, s.n_way, self.wrong, draw) if self.wrong else labels


@torch.no_grad()
def image_clusters(model: nn.Sequential, images: Tensor, seed: int, n_clusters: int = N_CLUSTERS) -> list[Tensor]:
    """The images [N, 28, 28] in clusters, by k-means on the features that ``model`` has for them, at length 1.

    Source: Hsu, Levine, Finn 2019 (CACTUs), and the re-run of the paper on gene expression.
    """
    from sklearn.cluster import KMeans  # slow to import, and only this needs it

    features = nn.functional.normalize(torch.cat([model.body(some) for some in to_float(images).split(500)]))
    found = torch.from_numpy(KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(features.numpy()))
    return [images[found == number] for number in range(n_clusters)]


def sample_clusters(clusters: list[Tensor], n_way: int, n_shot: int, generator: torch.Generator) -> Tensor:
    """Different images from ``n_way`` clusters, of those that have enough: [n_way, n_shot, 1, 28, 28] in [0, 1].

    ValueError if too few have.
    """
    enough = [images for images in clusters if len(images) >= n_shot]
    if len(enough) < n_way:
        raise ValueError(f"{len(enough)} clusters have {n_shot} images or more: scouts need {n_way}")
    chosen = [enough[i] for i in torch.randperm(len(enough), generator=generator)[:n_way].tolist()]
    return to_float(torch.stack([some[torch.randperm(len(some), generator=generator)[:n_shot]] for some in chosen]))

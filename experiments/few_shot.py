"""Episodes learned side by side: what 06 and 08 measure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from experiments.baselines.few_shot import Start, groups, side_by_side
from experiments.data import Dataset
from experiments.data.splits import split_classes
from experiments.episodes import SIDE_BY_SIDE
from experiments.methods import Method
from experiments.protocol import Job
from gtl_core.tasks import Episode, rng, sample_episode


class PreparationSetting(NamedTuple):
    """factor: of the preparation's learning rate, or of the scouts', or of an alignment's strength."""

    factor: float
    learning_rate: float


def episodes_of(job: Job, dataset: Dataset, n: int) -> list[Episode]:
    """The first ``n`` for the job's variant (its n_way and n_shot), the same for every method and setting: differences
    between methods are paired."""
    v, classes = job.variant, split_classes(dataset, job.seed)[job.purpose]
    shape = (v.n_way, v.n_shot, job.parameters.n_query)
    return [sample_episode(dataset.examples, classes, *shape, rng(job.seed, job.purpose, i)) for i in range(n)]


def learn_episodes(
    method: Method, start: Start, episodes: Sequence[Episode], rate: float, parameters: Any
) -> tuple[np.ndarray, float]:
    """Accuracy on every episode, and the seconds that adapting to one and answering its queries took, on average."""
    n_way, n_shot = episodes[0].support.shape[:2]
    accuracies, seconds = [], 0.0
    for some in groups(episodes, max(1, SIDE_BY_SIDE // (n_way * n_shot))):
        support, targets = side_by_side([episode.support for episode in some])
        queries, answers = side_by_side([episode.query for episode in some])
        begin = time.perf_counter()
        predict = method.adapt(start, support, targets, rate, parameters)
        with torch.no_grad():
            right = (predict(queries).argmax(-1) == answers).float()
        seconds += time.perf_counter() - begin
        accuracies.append(right.mean(0))
    return torch.cat(accuracies).numpy(), seconds / len(episodes)

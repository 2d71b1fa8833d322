"""What the experiments on few-shot episodes share: the kinds of episodes, and how many of them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from experiments.images import N_DRAWERS, ImageParameters
from experiments.parameters import Count, distinct
from experiments.protocol import Job, Row

GROUP = 10  # episodes of which the mean is one row of the results,
MANY = 100  # if there are so many of them; fewer have a row each
SIDE_BY_SIDE = 200  # support images trained together: copies save overhead, not arithmetic, see `stack`


def _in_whole_groups(n: int) -> int:
    if n >= MANY and n % GROUP:
        raise ValueError(f"must be a multiple of {GROUP}, or less than {MANY}")
    return n


EpisodeCount = Annotated[int, Field(ge=1), AfterValidator(_in_whole_groups)]


class Task(NamedTuple):
    n_way: int
    n_shot: int

    @classmethod
    def parse(cls, text: str) -> Task:
        """``"5-way 1-shot"``; ValueError if it is not of this form."""
        match text.replace("-", " ").split():
            case [n_way, "way", n_shot, "shot"] if n_way.isdigit() and n_shot.isdigit():
                task = cls(int(n_way), int(n_shot))
                if task.n_way >= 2 and task.n_shot >= 1:
                    return task
        raise ValueError(f"{text!r}: must be like '5-way 1-shot', with at least 2 ways and 1 shot")

    def __str__(self) -> str:
        return f"{self.n_way}-way {self.n_shot}-shot"


class EpisodeParameters(ImageParameters):
    """See a notebook's parameter cell for what each one means."""

    tasks: tuple[str, ...] = Field(min_length=1)
    n_episodes: EpisodeCount
    n_tuning_episodes: Count
    n_query: Count
    epochs: Count

    @field_validator("tasks")
    @classmethod
    def _tasks(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(tuple(str(Task.parse(value)) for value in values))

    @model_validator(mode="after")
    def _enough_drawers(self) -> EpisodeParameters:
        for task in map(Task.parse, self.tasks):
            if task.n_shot + self.n_query > N_DRAWERS:
                raise ValueError(f"n_query = {self.n_query}: at most {N_DRAWERS - task.n_shot} in a {task} task")
        return self


def accuracy_rows(job: Job, accuracies: np.ndarray) -> list[Row]:
    """``accuracy`` of every episode; if there are many, of each group of `GROUP`, under the number of its first one."""
    size = GROUP if len(accuracies) >= MANY else 1
    means = accuracies.reshape(-1, size).mean(1)
    return [job.row("accuracy", mean, task=size * i) for i, mean in enumerate(means)]

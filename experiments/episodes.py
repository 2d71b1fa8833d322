"""What the experiments on few-shot episodes share: the kinds of episodes, and how many of them."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field, field_validator, model_validator

from experiments.images import N_DRAWERS, ImageParameters
from experiments.parameters import Count, distinct

GROUP = 10  # episodes of which the mean is one row of the results
SIDE_BY_SIDE = 200  # support images trained together: copies save overhead, not arithmetic, see `stack`
EpisodeCount = Annotated[int, Field(ge=GROUP, multiple_of=GROUP)]


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

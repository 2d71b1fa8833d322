"""What 04 varies: domain shifts, the tasks after them, and the parameters of its notebook."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from experiments.data import N_DRAWERS, load
from experiments.data.splits import split_classes
from experiments.episodes import EpisodeCount, Task
from experiments.images import ImageParameters
from experiments.optimizers import OptimizerName, recipe, usual_rate
from experiments.parameters import Count, Distinct, Head, distinct
from experiments.preparations.pretraining import Body, Pretraining, zero_point
from experiments.protocol import LearningRate
from gtl_core.tasks import Episode, rng, sample_episode
from gtl_core.training import Recipe

SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "glyphs": lambda images: images,  # the network is pretrained on printed glyphs instead
    "rotated": lambda images: images.rot90(1, (-2, -1)),
    "inverted": lambda images: 1 - images,
}
TUNED_ON = ("first", "careful", "last")  # how rates are chosen, see `choose_rates`


class ShiftedTask(NamedTuple):
    """A domain shift between pretraining and everything after it, and the kind of task: an *arena* of the tables."""

    shift: str
    n_way: int
    n_shot: int  # 0: a stream of single examples

    @classmethod
    def parse(cls, text: str) -> ShiftedTask:
        """``"rotated 5-way 1-shot"`` or ``"none 5-way stream"``; ValueError if it is not of this form."""
        shift, _, task = text.partition(" ")
        if shift not in SHIFTS:
            raise ValueError(f"{text!r}: must begin with one of {', '.join(SHIFTS)}")
        n_way, n_shot = Task.parse(task.replace("stream", "1-shot"))
        return cls(shift, n_way, 0 if task.endswith("stream") else n_shot)

    def __str__(self) -> str:
        return f"{self.shift} {self.n_way}-way {f'{self.n_shot}-shot' if self.n_shot else 'stream'}"

    @property
    def tuned_on(self) -> tuple[str, ...]:
        """Ways to choose a learning rate; an episode's first examples are all that it has."""
        return ("first",) if self.n_shot else TUNED_ON


class StartingPoint(NamedTuple):
    """Where scouts start from, and every task with this shift and head."""

    seed: int
    shift: str
    head: Head


class Condition(NamedTuple):
    """What is alike for all methods that are compared."""

    task: ShiftedTask
    head: Head
    optimizer: OptimizerName  # that trains on the task


def _written_alike(values: tuple[str, ...]) -> tuple[str, ...]:
    return distinct(tuple(str(ShiftedTask.parse(value)) for value in values))


class GuidesParameters(ImageParameters):
    """See the notebook's parameter cell for what each one means."""

    arenas: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_written_alike)]
    n_episodes: EpisodeCount
    n_tuning_episodes: Count
    n_streams: Count
    n_tuning_streams: Count
    n_rounds: Count
    n_query: Count
    epochs: Count
    first_epochs: Count
    stream_epochs: Count
    optimizers: Distinct[OptimizerName]
    scout_n_way: Annotated[int, Field(ge=2)]
    scout_n_query: Count
    learned_tasks: Count

    @model_validator(mode="after")
    def _possible(self) -> GuidesParameters:
        for task in map(ShiftedTask.parse, self.arenas):
            if task.shift == self.dataset:
                raise ValueError(f"arenas: '{task}' is no shift where dataset = {self.dataset!r}")
            if (task.n_shot or 1 + self.n_rounds) + self.n_query > N_DRAWERS:
                raise ValueError(f"n_query = {self.n_query}: too many for '{task}' with {N_DRAWERS} drawers")
        if self.scout_n_shot + self.scout_n_query > N_DRAWERS:
            raise ValueError(f"scout_n_query = {self.scout_n_query}: at most {N_DRAWERS - self.scout_n_shot}")
        return self

    def conditions(self) -> list[Condition]:
        """The first shifted task with every head and every optimizer, the others with the first of both."""
        first, *others = map(ShiftedTask.parse, self.arenas)
        every = [Condition(first, *pair) for pair in product(self.heads, self.optimizers)]
        return every + [Condition(task, self.heads[0], self.optimizers[0]) for task in others]

    def rates(self, optimizer: OptimizerName) -> list[LearningRate]:
        """Those that every method tries with it."""
        return [LearningRate(usual_rate(optimizer, rate)) for rate in self.learning_rates]

    def recipe(self, optimizer: OptimizerName) -> Recipe:
        """What a scout does when this optimizer trains it."""
        return recipe(optimizer, usual_rate(optimizer, self.scout_learning_rate), self.scout_epochs)

    def starting_points(self) -> list[StartingPoint]:
        of_conditions = ((task.shift, head) for task, head, _ in self.conditions())
        return list(dict.fromkeys(StartingPoint(seed, *c) for c, seed in product(of_conditions, self.seeds())))

    def pretraining(self, point: StartingPoint) -> Pretraining:
        dataset = "glyphs" if point.shift == "glyphs" else self.dataset
        return Pretraining(dataset=dataset, seed=point.seed, channels=self.channels, epochs=self.pretraining_epochs)

    def preparations(self) -> list[Pretraining]:
        return list(dict.fromkeys(map(self.pretraining, self.starting_points())))

    def zero_point(self, point: StartingPoint, n_way: int, body: Body) -> nn.Sequential:
        return zero_point(self.pretraining(point), n_way, point.head, body)

    def episodes(
        self, point: StartingPoint, classes: str, purpose: str, n: int, n_way: int, n_shot: int, n_query: int
    ) -> list[Episode]:
        """``n`` tasks of the ``classes`` for a purpose, shifted. The same for every method: differences are paired."""
        dataset, shift = load(self.dataset), SHIFTS[point.shift]
        chosen = split_classes(dataset, point.seed)[classes]
        draws = (rng(point.seed, purpose, i) for i in range(n))
        drawn = [sample_episode(dataset.examples, chosen, n_way, n_shot, n_query, draw) for draw in draws]
        return [Episode(e.classes, shift(e.support), shift(e.query)) for e in drawn]

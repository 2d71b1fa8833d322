"""What the experiment in the paper's setting varies, and the parameters of its notebook."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from experiments.data import N_DRAWERS, load
from experiments.e10_paper_setting.methods import METHODS, CharacterMethod
from experiments.e10_paper_setting.preparations import (
    DigitPretraining,
    Digits,
    DigitScouting,
    NetworkName,
    ScoutHead,
)
from experiments.optimizers import ADAMS, OptimizerName
from experiments.parameters import Count, Dataset, Head, ParameterError, Rate, SeededParameters, Some
from experiments.preparations.steps import Step
from experiments.statistics import NONE

TASK = ("network", "n_images", "n_way", "head", "optimizer")  # what is learned, and how, whatever the method
SCOUTS = ("scouts", "scout_ways", "scout_head")
CORE = ("frozen", "plain", "guided_network")  # compared under every condition; the other methods under the first
AS_IN_THE_PAPER = ("plain", "guided_network", "shuffled")  # with one rate for body and head, too


class CharacterVariant(NamedTuple):
    """A method under one condition; the columns of the results that tell one from another."""

    network: NetworkName
    n_images: int  # of digits, for pretraining and for scouts
    scouts: str  # their optimizer; none where no scout had a part, as in the next two
    scout_ways: int  # digits of each scout
    scout_head: str
    n_way: int
    head: Head
    optimizer: OptimizerName
    rates: Literal["one", "apart"]  # a learning rate for body and head, or one for each
    method: str


class PaperSettingParameters(SeededParameters):
    """See the notebook's parameter cell for what each one means. Of each tuple the first value is the paper's, or
    nearest to it; every other one takes its place in turn."""

    digits: Digits
    characters: Dataset
    n_sets: Count
    n_tuning_sets: Count
    n_query: Annotated[int, Field(ge=1, lt=N_DRAWERS)]
    networks: Some[NetworkName]
    n_images: Some[Annotated[int, Field(ge=100)]]
    scout_optimizers: Some[OptimizerName]
    scout_ways: Some[Annotated[int, Field(ge=2, le=9)]]
    scout_heads: Some[ScoutHead]
    n_ways: Some[Annotated[int, Field(ge=2)]]
    heads: Some[Head]
    optimizers: Some[OptimizerName]
    methods: Some[Literal[*METHODS]]
    channels: Annotated[int, Field(ge=4, multiple_of=4)]
    pretraining_steps: Count
    n_scouts: Count
    scout_n_shot: Count
    scout_steps: Count
    scout_batch_size: Count
    adam_rates: Some[Rate]
    sgd_rates: Some[Rate]
    steps: Some[Count]

    def check(self) -> None:
        """Raise ParameterError if there are not enough characters, or if steps do not increase."""
        evaluation = load(self.characters).evaluation
        most = int(min(evaluation.sum(), (~evaluation).sum()))
        if max(self.n_ways) > most:
            raise ParameterError(f"n_ways = {max(self.n_ways)}: at most {most} characters of {self.characters}")
        if list(self.steps) != sorted(self.steps):
            raise ParameterError(f"steps = {self.steps}: must increase")

    def variants(self) -> list[CharacterVariant]:
        """All methods under the first condition; those of `CORE` with every other value in its place. Optimizers
        change for scouts, for what follows, and for both; where anything else changes, rates are always apart."""
        axes = (self.networks, self.n_images, self.scout_optimizers, self.scout_ways, self.scout_heads)
        axes += (self.n_ways, self.heads, self.optimizers)
        first = tuple(values[0] for values in axes)
        conditions = [(*first[:i], v, *first[i + 1 :]) for i, values in enumerate(axes) for v in values[1:]]
        both = [name for name in self.scout_optimizers[1:] if name in self.optimizers]
        conditions += [(*first[:2], name, *first[3:7], name) for name in both]
        variants = [v for name in self.methods for v in _with_rates(first, METHODS[name])]
        for condition, name in product(conditions, CORE):
            if name in self.methods:
                found = _with_rates(condition, METHODS[name])
                same_optimizers = (condition[2], condition[7]) == (first[2], first[7])
                variants += found[-1:] if same_optimizers else found
        return list(dict.fromkeys(variants))

    def rates(self, variant: CharacterVariant) -> tuple[float, ...]:
        """Those that it may try."""
        return self.adam_rates if variant.optimizer in ADAMS else self.sgd_rates

    def pretraining(self, seed: int, variant: CharacterVariant) -> DigitPretraining:
        """What the variant's zero point is made by."""
        scouted = self.n_scouts * self.scout_steps * self.scout_batch_size // 64  # batches, for as many images
        n_steps = {"random": 0, "further": self.pretraining_steps + scouted}
        return DigitPretraining(
            dataset=self.digits,
            seed=seed,
            network=variant.network,
            channels=self.channels,
            n_images=variant.n_images,
            n_steps=n_steps.get(METHODS[variant.method].start, self.pretraining_steps),
        )

    def scouting(self, seed: int, variant: CharacterVariant) -> DigitScouting | None:
        """What the variant's guide is made by, if it has one."""
        method = METHODS[variant.method]
        if not method.guide:
            return None
        first_gradients = {"n_steps": 1, "optimizer": "sgd", "batch_size": variant.scout_ways * self.scout_n_shot}
        training = {"n_steps": self.scout_steps, "optimizer": variant.scouts, "batch_size": self.scout_batch_size}
        return DigitScouting(
            pretraining=self.pretraining(seed, variant),
            n_way=variant.scout_ways,
            n_scouts=self.n_scouts,
            head=variant.scout_head,
            n_shot=self.scout_n_shot,
            **(first_gradients if method.gradients else training),
        )

    def preparations(self) -> list[Step]:
        pairs = list(product(self.seeds(), self.variants()))
        steps = [self.scouting(*pair) or self.pretraining(*pair) for pair in pairs]
        return list(dict.fromkeys(steps))


def _with_rates(condition: tuple, method: CharacterMethod) -> list[CharacterVariant]:
    """The method with a rate for the body and one for the head, where that makes sense; some also, and the others
    only, with one rate for both."""
    if not method.guide:
        condition = (*condition[:2], NONE, 0, NONE, *condition[5:])
    rates = ["one"] * (method.one_rate or method.name in AS_IN_THE_PAPER) + ["apart"] * (not method.one_rate)
    return [CharacterVariant(*condition, r, method.name) for r in rates]

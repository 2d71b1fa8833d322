"""Scouts sent from a zero point that was not made by supervised pretraining alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from experiments.baselines.few_shot import Episodes
from experiments.data.splits import split_classes
from experiments.preparations.domain_training import DomainTraining, shifted
from experiments.preparations.meta_training import MetaTraining
from experiments.preparations.pretraining import Body
from experiments.preparations.scouting import SIDE_BY_SIDE, Scouting, ScoutingStep
from experiments.preparations.steps import Step
from gtl_core.guide import Displacement
from gtl_core.scouting import scout
from gtl_core.tasks import labelled


class ScoutingFrom(ScoutingStep):
    """Scouts sent from another zero point than `Scouting`'s own, with tasks of the same kind."""

    kind: Literal["scouting_from"] = "scouting_from"
    zero_point: Annotated[MetaTraining | DomainTraining, Field(discriminator="kind")]
    scouting: Scouting  # all but where it starts
    inverted: bool = False  # whether the scouts' images are white on black

    def needs(self) -> list[Step]:
        return [self.zero_point]

    def make(self, folder: Path) -> None:
        self.scout(self.zero_point.body(folder)).save(self.path(folder))

    def cost(self) -> int:
        return self.scouting.cost()

    def scout(self, body: Body) -> Displacement:
        s = self.scouting
        dataset = shifted(s.pretraining.dataset, self.inverted)
        classes = split_classes(dataset, s.pretraining.seed)["scouting"]
        drawn = Episodes(dataset, classes, s.n_way, s.n_shot, 0, s.n_scouts, s.pretraining.seed, "scout")
        tasks = (labelled(episode.support) for episode in drawn)
        return scout(s.zero_point(body), tasks, s.recipe(), side_by_side=SIDE_BY_SIDE)

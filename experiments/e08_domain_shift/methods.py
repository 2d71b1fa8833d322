"""What is compared in 08, one row each: a way to learn new tasks, and what was made to suit the new domain before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.methods import FINE_TUNING, FROM_SCRATCH, GUIDED, Family, Method, table
from experiments.neighbours import NEIGHBOURS

Alignment = Literal["none", "coral", "dann"]
Scouts = Literal["none", "source", "target"]
STRENGTH = {"none": 0.0, "coral": 10.0, "dann": 1.0}  # of an alignment, before the factors

NOT_PRETRAINED = Family("not pretrained", FROM_SCRATCH.colour)
SOURCE_ALONE = Family("trained on the source alone", FINE_TUNING.colour)
ALIGNED = {
    "none": SOURCE_ALONE,
    "coral": Family("features aligned by CORAL", "#CC79A7"),
    "dann": Family("features aligned by DANN", "#000000"),
}
SCOUTED = Family("guided; scouts from source or target", GUIDED.colour)


@dataclass(frozen=True)
class ShiftMethod(Method):
    """A few-shot method, the row ``neighbour``, after pretraining that knew of the target, or with scouts.

    alignment: what pretraining did for the target, with its unlabelled images. scouts: whose classes they learn
    (labelled examples of the target's are more than any alignment is given).
    """

    alignment: Alignment = "none"
    scouts: Scouts = "none"
    neighbour: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """The columns of the table that name it."""
        return self.alignment, self.scouts, self.neighbour


def _row(neighbour: str, family: Family, alignment: Alignment = "none", scouts: Scouts = "none") -> ShiftMethod:
    suffix = f", {scouts} scouts" if scouts != "none" else ""
    name = neighbour + (f", {alignment}" if alignment != "none" else "") + suffix
    label = NEIGHBOURS[neighbour].label + (f", {alignment.upper()}" if alignment != "none" else "") + suffix
    has_rate = NEIGHBOURS[neighbour].has_rate
    return ShiftMethod(name, label, family, has_rate=has_rate, alignment=alignment, scouts=scouts, neighbour=neighbour)


METHODS = table(
    [
        _row("scratch", NOT_PRETRAINED),
        *(_row(m, family, kind) for kind, family in ALIGNED.items() for m in ("nearest_mean", "frozen", "plain")),
        *(
            _row(m, SCOUTED, scouts=whose)
            for whose in ("source", "target")
            for m in ("guided_tensor", "guided_network")
        ),
        *(_row(m, SOURCE_ALONE) for m in ("frozen_adam", "plain_adam")),
        *(_row(m, SCOUTED, scouts="target") for m in ("guided_network_adam", "guided_adam_scouts")),
    ]
)
BY_KEY = {row.key: row for row in METHODS.values()}

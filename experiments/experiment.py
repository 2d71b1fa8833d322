"""What an experiment is to the batch: its notebook, its validated parameters, its tables and its figures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from experiments.parameters import Parameters


@dataclass(frozen=True)
class Experiment:
    """A notebook ``notebooks/<notebook>.ipynb`` that writes ``results/<profile>/<table>.csv``, and its figures.

    name: of its first table, from which every figure is drawn that ``drawn_from`` does not name.
    reads: experiments whose tables it takes up, if they are in the same profile.
    """

    name: str
    notebook: str
    parameters: type[Parameters]
    figures: Mapping[str, Callable[[DataFrame], Figure]]
    more_tables: tuple[str, ...] = ()
    drawn_from: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.name, *self.more_tables)


def caption(draw: Callable[[DataFrame], Figure]) -> str:
    """What a figure is a picture of, in one line: the first paragraph of the docstring of what draws it."""
    return " ".join((inspect.getdoc(draw) or "").split("\n\n")[0].split())

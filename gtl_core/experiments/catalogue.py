"""All experiments: for each notebook its validated parameters and the figures drawn from its results.

A module of its own, since it imports the drawing libraries, which no training step should wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gtl_core import plots
from gtl_core.experiments.domain_shift import DomainShiftParameters
from gtl_core.experiments.few_shot_neighbours import FewShotNeighboursParameters
from gtl_core.experiments.forgetting import ForgettingParameters
from gtl_core.experiments.forgetting_neighbours import ForgettingNeighboursParameters
from gtl_core.experiments.guides import GuidesParameters
from gtl_core.experiments.method import MethodParameters
from gtl_core.experiments.one_shot import OneShotParameters
from gtl_core.experiments.own_model import OwnModelParameters
from gtl_core.experiments.parameters import Parameters
from gtl_core.experiments.scaling import ScalingParameters
from gtl_core.experiments.xor import XorParameters

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Experiment:
    """A notebook ``notebooks/<notebook>.ipynb`` that writes ``results/<profile>/<table>.csv``, and its figures.

    Its first table has the experiment's name.
    """

    name: str
    notebook: str
    parameters: type[Parameters]
    figures: Mapping[str, Callable[[DataFrame], Figure]]
    more_tables: tuple[str, ...] = ()
    drawn_from: Mapping[str, str] = field(default_factory=dict)  # the table of each figure not drawn from <name>.csv
    reads: tuple[str, ...] = ()  # experiments whose tables it takes up, if they are in the same profile

    @property
    def tables(self) -> tuple[str, ...]:
        return (self.name, *self.more_tables)


_ALL = (
    Experiment("method", "00_method", MethodParameters, {"method": plots.method}),
    Experiment(
        "one_shot",
        "01_one_shot",
        OneShotParameters,
        {
            "one_shot": plots.one_shot,
            "one_shot_examples": plots.one_shot_examples,
            "one_shot_rates": plots.one_shot_rates,
            "one_shot_saturation": plots.one_shot_saturation,
        },
    ),
    Experiment(
        "xor",
        "02_xor",
        XorParameters,
        {"xor": plots.xor, "xor_map": plots.xor_map, "xor_search": plots.xor_search},
    ),
    Experiment(
        "forgetting",
        "03_forgetting",
        ForgettingParameters,
        {
            "forgetting": plots.forgetting,
            "forgetting_added": plots.forgetting_added,
            "forgetting_classes": plots.forgetting_classes,
            "forgetting_conditions": plots.forgetting_conditions,
            "forgetting_rates": plots.forgetting_rates,
        },
    ),
    Experiment(
        "guides",
        "04_guides",
        GuidesParameters,
        {
            "guides_anatomy": plots.guides_anatomy,
            "guides_arenas": plots.guides_arenas,
            "guides_distance": plots.guides_distance,
            "guides_rates": plots.guides_rates,
            "guides_steps": plots.guides_steps,
            "guides_temperatures": plots.guides_temperatures,
        },
    ),
    Experiment("own_model", "05_your_own_model", OwnModelParameters, {"own_model": plots.own_model}),
    Experiment(
        "few_shot_neighbours",
        "06_few_shot_neighbours",
        FewShotNeighboursParameters,
        {"few_shot_neighbours": plots.few_shot_neighbours, "few_shot_costs": plots.few_shot_costs},
        more_tables=("few_shot_neighbours_cost",),
    ),
    Experiment(
        "forgetting_neighbours",
        "07_forgetting_neighbours",
        ForgettingNeighboursParameters,
        {"forgetting_neighbours": plots.forgetting_neighbours},
        more_tables=("forgetting_neighbours_cost",),
    ),
    Experiment(
        "domain_shift",
        "08_domain_shift",
        DomainShiftParameters,
        {"domain_shift": plots.domain_shift, "decision_guide": plots.decision_guide},
        more_tables=("decision_guide",),
        drawn_from={"decision_guide": "decision_guide"},
        reads=("few_shot_neighbours", "forgetting_neighbours"),
    ),
    Experiment(
        "scaling",
        "09_scaling",
        ScalingParameters,
        {"scaling": plots.scaling, "scaling_cluster": plots.scaling_cluster},
    ),
)
EXPERIMENTS = {experiment.notebook: experiment for experiment in _ALL}

"""Tidy results -> figures."""

from gtl_core.plots.of_forgetting import (
    forgetting,
    forgetting_added,
    forgetting_classes,
    forgetting_conditions,
    forgetting_rates,
)
from gtl_core.plots.of_guides import (
    guides_anatomy,
    guides_arenas,
    guides_distance,
    guides_rates,
    guides_steps,
    guides_temperatures,
)
from gtl_core.plots.of_method import method
from gtl_core.plots.of_neighbours import (
    decision_guide,
    domain_shift,
    few_shot_costs,
    few_shot_neighbours,
    forgetting_neighbours,
)
from gtl_core.plots.of_one_shot import one_shot, one_shot_examples, one_shot_rates, one_shot_saturation
from gtl_core.plots.of_own_model import own_model
from gtl_core.plots.of_scaling import scaling, scaling_cluster
from gtl_core.plots.of_xor import xor, xor_map, xor_search
from gtl_core.plots.style import save

__all__ = [
    "decision_guide",
    "domain_shift",
    "few_shot_costs",
    "few_shot_neighbours",
    "forgetting",
    "forgetting_added",
    "forgetting_classes",
    "forgetting_conditions",
    "forgetting_neighbours",
    "forgetting_rates",
    "guides_anatomy",
    "guides_arenas",
    "guides_distance",
    "guides_rates",
    "guides_steps",
    "guides_temperatures",
    "method",
    "one_shot",
    "one_shot_examples",
    "one_shot_rates",
    "one_shot_saturation",
    "own_model",
    "save",
    "scaling",
    "scaling_cluster",
    "xor",
    "xor_map",
    "xor_search",
]

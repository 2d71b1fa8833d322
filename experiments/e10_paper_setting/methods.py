"""What learns new characters, one row each: guides, controls that keep a part of a guide, and rivals without one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from experiments.methods import (
    CONTROL,
    FEATURES,
    FINE_TUNING,
    FROZEN,
    GUIDED,
    NETWORK,
    PLAIN,
    SCRATCH,
    TENSOR,
    Method,
    of_body,
    table,
)
from gtl_core.guide import Displacement, Guide
from gtl_core.shaping import mapped, per_tensor, power, shuffled, uniform
from gtl_core.tasks import rng

THRESHOLD = 0.01  # of the binary guide: parameters that scouts used at all


@dataclass(frozen=True)
class CharacterMethod(Method):
    """A method with what it trains and from where.

    trained: which parameters, the ``biases`` and the ``top`` hidden layer along with the head. start: from which
    network; ``further``: it was trained on the digits for as many images more as the scouts saw. from_probe: with the
    head that the linear probe ended with. anchor: strength of a spring from the body to the zero point. on: what the
    guide scales. gradients: the guide is made from the scouts' first gradients, not from where they ended. one_rate:
    only one learning rate makes sense for it, where the others may have one for the body and one for the head.
    """

    trained: Literal["all", "head", "biases", "top", "nothing"] = "all"
    start: Literal["pretrained", "further", "random"] = "pretrained"
    from_probe: bool = False
    anchor: float = 0.0
    on: Literal["step", "gradient"] = "step"
    gradients: bool = False
    one_rate: bool = False


def binary(displacement: Displacement) -> Guide:
    """1 where g > `THRESHOLD`, else 0."""
    return mapped(of_body(displacement), lambda g: (g > THRESHOLD).float(), "binary")


def mean_gradient(displacement: Displacement) -> Guide:
    """By the mean size of the displacement, which after one step of descent is that of the gradient."""
    return of_body(displacement, statistic="abs")


def _row(row: Method, **more: Any) -> CharacterMethod:
    return CharacterMethod(**(vars(row) | more))


_tuned = partial(CharacterMethod, family=FINE_TUNING)
_control = partial(CharacterMethod, family=CONTROL)
GUIDES = [
    _row(NETWORK, guide=of_body),
    _row(TENSOR, guide=partial(of_body, scope="tensor")),
    CharacterMethod("root", "guided (square root)", GUIDED, "#000000", guide=lambda d: power(of_body(d), 0.5)),
    CharacterMethod("gradient", "guided gradient", GUIDED, "#E69F00", guide=of_body, on="gradient", one_rate=True),
]
CONTROLS = [
    _control("shuffled", "values shuffled", guide=lambda d: shuffled(of_body(d), rng(0, "shuffled"))),
    _control("uniform", "one g: the mean", own_colour="#E69F00", guide=lambda d: uniform(of_body(d)), one_rate=True),
    _control("per_tensor", "one g per tensor", own_colour="#F0E442", guide=lambda d: per_tensor(of_body(d))),
    _control("binary", f"g > {THRESHOLD} or not", own_colour="#5C3A12", guide=binary),
    _control("fisher", "mean |gradient|", own_colour="#CC79A7", guide=mean_gradient, gradients=True),
]
RIVALS = [
    _row(SCRATCH, start="random", one_rate=True),
    CharacterMethod("centroid", "nearest centroid", FEATURES, has_rate=False, trained="nothing", one_rate=True),
    _row(FROZEN, trained="head", one_rate=True),
    _row(PLAIN),
    _tuned("lp_ft", "LP-FT", own_colour="#CC79A7", from_probe=True),
    _tuned("l2_sp", "L2-SP", own_colour="#E69F00", anchor=0.1),
    _tuned("bitfit", "BitFit", own_colour="#5C3A12", trained="biases"),
    _tuned("top", "top layers only", own_colour="#000000", trained="top"),
    _tuned("further", "trained further, then plain", own_colour="#F0E442", start="further"),
]
METHODS = table([*RIVALS, *GUIDES, *CONTROLS])

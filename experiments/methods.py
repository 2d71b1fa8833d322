"""A method is one row: its name, how it is drawn, what it does, and what that costs. Everything else is derived."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from experiments.optimizers import OptimizerName
from gtl_core.guide import Displacement, Guide

Predictor = Callable[[Tensor], Tensor]  # queries [M, S, ...] of S tasks -> scores [M, S, n_way], the largest one wins


@dataclass(frozen=True)
class Family:
    """Methods that a legend counts as one kind."""

    label: str
    colour: str  # Okabe-Ito and two more: distinct for colour-blind readers


FROM_SCRATCH = Family("from scratch", "#666666")
FEATURES = Family("features as they are", "#009E73")
FINE_TUNING = Family("fine-tuning", "#D55E00")
GUIDED = Family("guided", "#0072B2")
CONTROL = Family("control", "#BBBBBB")


@dataclass(frozen=True)
class Method:
    """One row of a table of methods.

    name: in tables and profiles. label: in figures. own_colour: where the family's would be that of two lines.
    prepare: how its zero point is made (`experiments.preparations`), beyond pretraining; None: it starts from there.
    adapt: learns tasks from their support, ``adapt(start, inputs [N, S, ...], labels, rate, parameters) -> Predictor``.
    has_rate: whether there is a learning rate, or what stands for one, to choose.
    passes: network passes of one task, see `experiments.costs`.
    guide: its guide, made from a displacement; None: it has none. scouts_by: the optimizer that trained its scouts,
    where the experiment leaves it to the method. head_only: the body stays as it is.
    """

    name: str
    label: str
    family: Family
    own_colour: str = ""
    prepare: Any = None
    adapt: Callable[..., Predictor] | None = None
    has_rate: bool = True
    passes: Callable[..., float] | None = None
    guide: Callable[[Displacement], Guide] | None = None
    scouts_by: OptimizerName = "sgd"
    head_only: bool = False

    @property
    def colour(self) -> str:
        return self.own_colour or self.family.colour


def table(rows: Iterable[Method]) -> Mapping[str, Method]:
    """Rows by name, in their order, which legends follow. ValueError if two have one name."""
    found: dict[str, Method] = {}
    for row in rows:
        if row.name in found:
            raise ValueError(f"two methods are named {row.name!r}")
        found[row.name] = row
    return found


def of_body(displacement: Displacement, **settings: str) -> Guide:
    """The guide without the scouts' head: new classes have a head of their own, which is trained as usual."""
    return displacement.guide(**settings).without("head")


SCRATCH = Method("scratch", "from scratch", FROM_SCRATCH)
FROZEN = Method("frozen", "frozen (linear probe)", FEATURES, head_only=True)
PLAIN = Method("plain", "plain fine-tuning", FINE_TUNING)
NETWORK = Method("guided_network", "guided (network scope)", GUIDED, guide=partial(Displacement.guide, scope="network"))
_tensor = partial(Displacement.guide, scope="tensor")
TENSOR = Method("guided_tensor", "guided (tensor scope)", GUIDED, "#56B4E9", guide=_tensor)
# What 01 and 03 compare, in the order of legends; plain fine-tuning of a random network is training from scratch.
BASIC = table([SCRATCH, FROZEN, PLAIN, NETWORK, TENSOR])

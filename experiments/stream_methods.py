"""What learns a stream in 07, one row per method with its memory and what that keeps; and their ranking."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from experiments.baselines.continual import EWC, L2SP, Memory, Replay, SynapticIntelligence
from experiments.data import SIDE
from experiments.methods import FROZEN, NETWORK, PLAIN, TENSOR, Family, Method, table
from experiments.optimizers import OptimizerName
from experiments.ranking import rank
from experiments.statistics import paired


class Learner(NamedTuple):
    """What a memory is made from."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    strength: float
    capacity: int  # images, where they are kept
    generator: torch.Generator


@dataclass(frozen=True)
class StreamMethod(Method):
    """A method with what it does between arrivals.

    memory: made for every job. strength: what 1 means for its springs, about where that begins to matter; 0: there is
    none to choose. kept: numbers for each parameter of the network, beside the network itself; keeps_images: and those.
    adds_to: the method that differs from it by a guide alone. optimizer: what trains it, by Adam at a hundredth of the
    rate.
    """

    memory: Callable[[Learner], Memory | None] = lambda learner: None
    strength: float = 0.0
    kept: int = 0
    keeps_images: bool = False
    adds_to: str = ""
    optimizer: OptimizerName = "sgd"

    def stored(self, n_values: int, capacity: int) -> int:
        """Numbers kept beside a network of ``n_values`` parameters, ``capacity`` images among them if any are."""
        return self.kept * n_values + self.keeps_images * capacity * SIDE**2


CONTINUAL = Family("continual learning", "#CC79A7")


def _continual(name: str, label: str, colour: str, memory: Callable[[Learner], Memory], **more) -> StreamMethod:
    return StreamMethod(name, label, CONTINUAL, colour, memory=memory, **more)


# L2-SP keeps its anchor; EWC anchor and importance; synaptic intelligence these and the path.
_L2_SP = _continual(
    "l2_sp", "L2-SP", "#E69F00", lambda it: L2SP(it.model, it.strength, it.optimizer), strength=0.1, kept=1
)
_EWC = _continual("ewc", "EWC", "#CC79A7", lambda it: EWC(it.model, it.strength, it.optimizer), strength=3.0, kept=2)
_SYNAPTIC = _continual(
    "synaptic",
    "synaptic intelligence",
    "#5C3A12",
    lambda it: SynapticIntelligence(it.model, it.strength, it.optimizer),
    strength=0.3,
    kept=3,
)


def _by_adam(row: Method, **more) -> StreamMethod:
    """The row with Adam in the place of descent, for scouts, too, if it has any; Adam keeps two moments."""
    names = {"name": f"{row.name}_adam", "label": f"{row.label}, Adam", "scouts_by": "adam", "optimizer": "adam"}
    return StreamMethod(**(vars(row) | names | more))


_REPLAY = _continual("replay", "replay", "#000000", lambda it: Replay(it.capacity, it.generator), keeps_images=True)
_NETWORK = StreamMethod(**vars(NETWORK), kept=1)
METHODS = table(
    [
        StreamMethod(**vars(FROZEN)),
        StreamMethod(**vars(PLAIN)),
        _L2_SP,
        _EWC,
        _SYNAPTIC,
        _REPLAY,
        StreamMethod(**vars(TENSOR), kept=1),
        _NETWORK,
        *(_by_adam(FROZEN), _by_adam(PLAIN, kept=2), _by_adam(TENSOR, kept=3), _by_adam(NETWORK, kept=3)),
        replace(_NETWORK, name="guided_adam_scouts", label="guided, scouts by Adam", scouts_by="adam"),
        replace(_EWC, name="guided_ewc", label="guided + EWC", guide=NETWORK.guide, kept=3, adds_to="ewc"),
        replace(_REPLAY, name="guided_replay", label="guided + replay", guide=NETWORK.guide, kept=1, adds_to="replay"),
    ]
)


def guides(names: Iterable[str]) -> list[str]:
    """Of these methods, those that are guided and nothing else."""
    return [name for name in names if METHODS[name].guide and not METHODS[name].adds_to]


def ranking(frame: pd.DataFrame, seconds: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every method at the end of the stream, best first for each head, with what it gained on the way and its costs.

    ``guided`` is the guided method that was best on the validation streams; ``difference`` is that one minus the
    method, paired over the same streams, with its 95 % interval from ``low`` to ``high``.
    """
    key, accuracy, tuning = ["head", "method"], *(frame[frame["metric"] == m] for m in ("accuracy", "validation"))
    first, last = (accuracy[accuracy["step"] == step] for step in (accuracy["step"].min(), accuracy["step"].max()))
    table = rank(last, tuning, key[:1], key[1:], lambda variant: bool(guides([variant["method"]])), tasks="streams")
    table["guided"] = table["guided"].str[0]
    before, after = (dict(list(rows.groupby(key))) for rows in (first, last))
    table["gain"] = [paired(after[who], before[who]).text for who in table[key].itertuples(index=False, name=None)]
    for metric, costs in {"stored": frame, "step_seconds": seconds}.items():
        if costs is not None:
            means = costs[costs["metric"] == metric].groupby(key)["value"].mean()
            table = table.merge(means.rename(metric), on=key)
    return table

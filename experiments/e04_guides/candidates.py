"""Candidates for a better guide. Scouts go once; every candidate is a pure function of what they leave (`Scouted`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.baselines.learned_guide import learned_guide
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.models import new_head
from experiments.parameters import Head
from experiments.preparations.pretraining import zero_point
from gtl_core.binned import Binned, distance
from gtl_core.guide import Displacement, Guide, normalize
from gtl_core.shaping import free, per_tensor, power, shuffled
from gtl_core.tasks import Episode, labelled, rng, sample_episode, to_float
from gtl_core.training import fit

if TYPE_CHECKING:
    from experiments.e04_guides.run import GuidesParameters

SHIFTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "glyphs": lambda images: images,  # the network is pretrained on printed glyphs instead
    "rotated": lambda images: images.rot90(1, (-2, -1)),
    "inverted": lambda images: 1 - images,
}
N_BINS = 4
TIMES = (0.05, 0.25, 1.0)  # when, as a share of their way, scouts are looked at


class Station(NamedTuple):
    """Where scouts start from; it serves all arenas with this shift and head."""

    seed: int
    shift: str
    head: Head


@dataclass(frozen=True)
class Scouted:
    """All that one scouting pass leaves."""

    displacement: Displacement  # where the scouts ended
    improved: Displacement  # the same, every scout weighing what it improved on held-out drawers
    binned: Binned  # all points that they passed, by distance
    by_time: dict[int, Displacement]  # where they were after so many steps
    learned: Guide
    further: dict[str, Tensor]  # the body trained further on the scouts' classes


def root(displacement: Displacement) -> Guide:
    """Network scope, square root: the root mean square displacement."""
    return power(displacement.guide(), 0.5)


def layers(displacement: Displacement) -> Guide:
    """`root`, the same for all parameters of a tensor."""
    return Guide(normalize(per_tensor(root(displacement))))


def consistent(displacement: Displacement) -> Guide:
    """|sum of d| / sum of |d|: 1 where all scouts moved a parameter the same way, near 0 where each went its own.

    Which class is which is arbitrary, so the head has no direction in common: it is free.
    """
    mean, size = displacement.mean, displacement.mean_abs
    return free(Guide({name: (mean[name].abs() / size[name]).nan_to_num(0).clamp(0, 1) for name in mean}), "head")


def relative(displacement: Displacement) -> Guide:
    """Mean |d| by what was there, |w| + the mean |w| of its tensor, normalised over the network.

    Tensors that are all 0, as a new head may be, are free.
    """
    size = displacement.mean_abs
    there = {name: w.abs() + w.abs().mean() for name, w in displacement.zero_point.items()}
    empty = [name for name, scale in there.items() if not scale.any()]
    values = {name: 0 * size[name] if name in empty else size[name] / scale for name, scale in there.items()}
    return free(Guide(normalize(values)), *empty)


CANDIDATES: dict[str, Callable[[Scouted], Guide]] = {
    "guided_tensor": lambda s: s.displacement.guide(scope="tensor"),
    "guided_network": lambda s: s.displacement.guide(),
    "root": lambda s: root(s.displacement),
    "head_free": lambda s: free(root(s.displacement), "head"),
    "layers": lambda s: layers(s.displacement),
    "consistent": lambda s: consistent(s.displacement),
    "relative": lambda s: relative(s.displacement),
    "improved": lambda s: root(s.improved),
    "distance": lambda s: power(s.binned.guide(), 0.5),
    "shuffled": lambda s: shuffled(root(s.displacement), rng(0, "shuffled")),
    "learned": lambda s: s.learned,
}


def for_ways(guide: Guide, n_way: int) -> Guide:
    """The guide for a head of ``n_way`` classes: which class is which is arbitrary, so each gets the classes' mean."""
    values = {
        name: g.mean(0, keepdim=True).expand(n_way, *g.shape[1:]) if name.startswith("head") else g
        for name, g in guide.items()
    }
    return Guide(values, guide.metadata)


def episodes(
    p: GuidesParameters, station: Station, classes: str, purpose: str, n: int, n_way: int, n_shot: int, n_query: int
) -> list[Episode]:
    """The same for every method and rate: differences are paired."""
    dataset, see = load(p.dataset), SHIFTS[station.shift]
    chosen = split_classes(dataset, station.seed)[classes]
    drawn = (
        sample_episode(dataset.examples, chosen, n_way, n_shot, n_query, rng(station.seed, purpose, i))
        for i in range(n)
    )
    return [Episode(e.classes, see(e.support), see(e.query)) for e in drawn]


def scout_station(p: GuidesParameters, job: tuple[Station, dict[str, Tensor]]) -> Scouted:
    """Everything that the candidates need, from scouts that are each trained once."""
    station, body = job
    model = zero_point(p.pretraining(station), p.scout_n_way, station.head, body)
    shape = (p.scout_n_shot, p.scout_n_query)
    tasks = episodes(p, station, "scouting", "scout", p.n_scouts, p.scout_n_way, *shape)
    displacement, improved = Displacement(model), Displacement(model)
    by_time = {max(1, round(share * p.scout_epochs)): Displacement(model) for share in TIMES}
    # The edges are not known beforehand: those that part the first scout's way into equally many points.
    pilot = [distance(scout, displacement.zero_point) for scout in _way(p, model, tasks[0])]
    binned = Binned(model, np.quantile(pilot, np.arange(1, N_BINS) / N_BINS).tolist())
    for task in tasks:
        for step, scout in enumerate(_way(p, model, task), 1):
            binned.add(scout)
            if step in by_time:
                by_time[step].add(scout)
        alone = Displacement(model)
        if alone.add(scout):
            displacement = displacement + alone
            improved = improved + max(0.0, _loss(model, task) - _loss(scout, task)) * alone
    tasks = episodes(p, station, "scouting", "learned guide", p.learned_tasks, p.scout_n_way, 1, p.scout_n_query)
    learned = learned_guide(model, tasks, n_steps=p.epochs)
    return Scouted(displacement, improved, binned, by_time, learned, _further(p, station, model))


def _way(p: GuidesParameters, model: nn.Module, task: Episode) -> Iterator[nn.Module]:
    """One scout, after each of its steps."""
    scout = copy.deepcopy(model)
    optimizer = torch.optim.SGD(scout.parameters(), lr=p.scout_learning_rate)
    for _ in range(p.scout_epochs):
        fit(scout, *labelled(task.support), optimizer, epochs=1)
        yield scout


@torch.no_grad()
def _loss(model: nn.Module, task: Episode) -> float:
    """On drawers that the scout has not seen."""
    inputs, labels = labelled(task.query)
    return cross_entropy(model(inputs), labels).item()


def _further(p: GuidesParameters, station: Station, model: nn.Module) -> dict[str, Tensor]:
    """The body after pretraining went on with all of the scouts' classes at once, for as many images as scouts saw."""
    dataset = load(p.dataset)
    classes = split_classes(dataset, station.seed)["scouting"]
    inputs, labels = labelled(SHIFTS[station.shift](to_float(dataset.examples[classes])))
    model = copy.deepcopy(model)
    new_head(model, len(classes), "zero", generator=rng(0))
    n_images = p.n_scouts * p.scout_n_way * p.scout_n_shot * p.scout_epochs
    fit(
        model,
        inputs,
        labels,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        epochs=max(1, round(n_images / len(inputs))),
        batch_size=64,
        generator=rng(station.seed, "further"),
        augment=partial(random_affine, strength=0.1, generator=rng(station.seed, "further", "augmentation")),
    )
    return {name: p.detach() for name, p in model.body.named_parameters()}

"""Candidates for a better guide. Scouts go once; every candidate is a pure function of what they leave (`Scouted`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.baselines.learned_guide import learned_guide
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.e04_guides.parameters import SHIFTS, GuidesParameters, StartingPoint
from experiments.methods import BASIC, CONTROL, FEATURES, FINE_TUNING, GUIDED, Family, Method, table
from experiments.models import new_head
from experiments.preparations.pretraining import Body
from gtl_core.guide import Displacement, Guide
from gtl_core.normalization import normalize
from gtl_core.scouting import scout
from gtl_core.shaping import Binned, distance, free, per_tensor, power, shuffled, uniform
from gtl_core.tasks import Episode, labelled, rng, to_float
from gtl_core.training import fit

N_BINS = 4
TIMES = (0.05, 0.25, 1.0)  # when, as a share of their way, scouts are looked at


@dataclass(frozen=True)
class Scouted:
    """All that one scouting pass leaves."""

    body: Body  # where the scouts started
    displacement: Displacement  # where they ended
    improved: Displacement  # the same, every scout weighing what it improved on held-out drawers
    by_adam: Displacement  # where they ended when Adam trained them
    binned: Binned  # all points that they passed, by distance
    by_time: dict[int, Displacement]  # where they were after so many steps
    learned: Guide
    further: Body  # trained further on the scouts' classes


def root(displacement: Displacement | Binned) -> Guide:
    """Network scope, square root: the root mean square displacement."""
    return power(displacement.guide(), 0.5)


def head_free(displacement: Displacement) -> Guide:
    """`root`, but the new head moves as it would without a guide."""
    return free(root(displacement), "head")


def one_for_the_body(displacement: Displacement) -> Guide:
    """`head_free` without its map: every parameter of the body has the mean of the body's g."""
    guide = head_free(displacement)
    return Guide({**guide, **uniform(guide.without("head"))})


def one_per_tensor(displacement: Displacement) -> Guide:
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


@dataclass(frozen=True)
class Candidate(Method):
    """A guide to try, or, without one, a rival.

    made_of: the field of `Scouted` that ``guide`` takes. further: it starts from the body that was trained further on
    the scouts' classes. on_axis: its name on the axis of a figure, where that is not the label.
    """

    made_of: str = "displacement"
    further: bool = False
    on_axis: str = ""

    def start(self, scouted: Scouted) -> tuple[Body, Guide | None]:
        """What its tasks start from."""
        guide = self.guide(getattr(scouted, self.made_of)) if self.guide else None
        return scouted.further if self.further else scouted.body, guide


LEARNED = Family("learned by gradient", "#CC79A7")
_further = partial(Candidate, further=True)
_guided = partial(Candidate, family=GUIDED)
_control = partial(Candidate, family=CONTROL)
METHODS = table(
    [
        Candidate(**vars(BASIC["frozen"])),
        Candidate(**vars(BASIC["plain"])),
        _further("further_frozen", "no guide: trained\nfurther, then frozen", FEATURES, head_only=True),
        _further("further_plain", "no guide: trained\nfurther, then plain", FINE_TUNING),
        Candidate(**vars(BASIC["guided_tensor"]), on_axis="tensor scope"),
        Candidate(**vars(BASIC["guided_network"]), on_axis="network scope"),
        _guided("root", "guided (square root)", own_colour="#000000", guide=root, on_axis="network, square root"),
        _guided("head_free", "the same, head free", guide=head_free),
        _guided("layers", "one g per tensor", guide=one_per_tensor),
        _guided("consistent", "scouts' consistency", guide=consistent),
        _guided("relative", "relative to |w|", guide=relative),
        _guided("improved", "by scouts' improvement", guide=root, made_of="improved"),
        _guided("distance", "binned by distance", guide=root, made_of="binned"),
        _guided("adam_scouts", "head free, scouts by Adam", guide=head_free, made_of="by_adam"),
        _control("shuffled", "shuffled (control)", guide=lambda d: shuffled(root(d), rng(0, "shuffled"))),
        _control("uniform", "one g for the body (control)", guide=one_for_the_body),
        _control("adam_uniform", "one g, scouts by Adam (control)", guide=one_for_the_body, made_of="by_adam"),
        Candidate("learned", "guided (learned)", LEARNED, guide=Guide, made_of="learned", on_axis=LEARNED.label),
    ]
)
CANDIDATES = [name for name, method in METHODS.items() if method.guide]
RIVALS = [name for name in METHODS if name not in CANDIDATES]
BAR = [name for name in RIVALS if not METHODS[name].further]  # a guide is worth having where it beats both of them
BY_SCOUTS = [name for name in CANDIDATES if METHODS[name].family is GUIDED]


def for_ways(guide: Guide, n_way: int) -> Guide:
    """The guide for a head of ``n_way`` classes: which class is which is arbitrary, so each gets the classes' mean."""
    values = {
        name: g.mean(0, keepdim=True).expand(n_way, *g.shape[1:]) if name.startswith("head") else g
        for name, g in guide.items()
    }
    return Guide(values, guide.metadata)


def scout_from(p: GuidesParameters, point_and_body: tuple[StartingPoint, Body]) -> Scouted:
    """Everything that the candidates need, from scouts that are each trained once."""
    point, body = point_and_body
    model = p.zero_point(point, p.scout_n_way, body)
    shape = (p.scout_n_way, p.scout_n_shot, p.scout_n_query)
    tasks = p.episodes(point, "scouting", "scout", p.n_scouts, *shape)
    improved = Displacement(model)
    by_time = {max(1, round(share * p.scout_epochs)): Displacement(model) for share in TIMES}
    # The edges are not known beforehand: those that part the first scout's way into equally many points.
    pilot = [distance(moving, improved.zero_point) for moving in _steps(p, model, tasks[0])]
    binned = Binned(model, np.quantile(pilot, np.arange(1, N_BINS) / N_BINS).tolist())
    for task in tasks:
        for step, moving in enumerate(_steps(p, model, task), 1):
            binned.add(moving)
            if step in by_time:
                by_time[step].add(moving)
        alone = Displacement(model)
        if alone.add(moving):
            improved = improved + max(0.0, _loss(model, task) - _loss(moving, task)) * alone
    improved = improved if improved.count else by_time[p.scout_epochs]  # none improved: none weighs more than another
    by_adam = scout(model, [labelled(task.support) for task in tasks], p.recipe("adam"))
    tasks = p.episodes(point, "scouting", "learned guide", p.learned_tasks, p.scout_n_way, 1, p.scout_n_query)
    learned = learned_guide(model, tasks, n_steps=p.epochs)
    return Scouted(
        body=body,
        displacement=by_time[p.scout_epochs],
        improved=improved,
        by_adam=by_adam,
        binned=binned,
        by_time=by_time,
        learned=learned,
        further=_trained_further(p, point, model),
    )


def _steps(p: GuidesParameters, model: nn.Module, task: Episode) -> Iterator[nn.Module]:
    """One scout, after each of its steps."""
    moving = copy.deepcopy(model)
    optimizer = p.recipe("sgd").make(moving.parameters())
    for _ in range(p.scout_epochs):
        fit(moving, *labelled(task.support), optimizer, epochs=1)
        yield moving


@torch.no_grad()
def _loss(model: nn.Module, task: Episode) -> float:
    """On drawers that the scout has not seen."""
    inputs, labels = labelled(task.query)
    return cross_entropy(model(inputs), labels).item()


def _trained_further(p: GuidesParameters, point: StartingPoint, model: nn.Module) -> Body:
    """The body after pretraining went on with all of the scouts' classes at once, for as many images as scouts saw."""
    examples = load(p.dataset).examples[split_classes(load(p.dataset), point.seed)["scouting"]]
    inputs, labels = labelled(SHIFTS[point.shift](to_float(examples)))
    model = copy.deepcopy(model)
    new_head(model, len(examples), "zero", generator=rng(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    n_images = p.n_scouts * p.scout_n_way * p.scout_n_shot * p.scout_epochs
    augment = partial(random_affine, strength=0.1, generator=rng(point.seed, "further", "augmentation"))
    batches = {"batch_size": 64, "generator": rng(point.seed, "further"), "augment": augment}
    fit(model, inputs, labels, optimizer, epochs=max(1, round(n_images / len(inputs))), **batches)
    return {name: p.detach() for name, p in model.body.named_parameters()}

"""What is compared in 12, one row each: zero points, what else can be learned before a task, and guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.baselines import augmenting, conditional, multitask, reweighting, self_supervised, transfer
from experiments.baselines.compare import Compare
from experiments.baselines.few_shot import Learning, Prepared, Start
from experiments.baselines.transfer import FineTuning, GradualUnfreezing, LowRankAdaptation
from experiments.costs import TRAINING, TWICE
from experiments.data import load
from experiments.data.augmentation import random_affine
from experiments.data.splits import split_classes
from experiments.methods import CONTROL, FINE_TUNING, NETWORK, Family, Method, table
from experiments.models import conv4
from experiments.neighbours import (
    COMPARING,
    HARD_SHARING,
    MULTI_TASK,
    NEIGHBOURS,
    PROTOTYPICAL,
    REPTILE,
    compared,
    guided,
    untrained,
)
from gtl_core.guide import Displacement, Guide
from gtl_core.shaping import uniform
from gtl_core.tasks import Episode, rng, to_float

LEARNED = Family("learned for the task", "#000000")
BATCH = 64  # images of a step where there are no episodes
SIMCLR_STRENGTH = 0.2  # of its views; the usual one, of pretraining, is half of that
WEIGHT_STEPS, AUGMENTATION_STEPS = 10, 5  # of the descent that is learned through
RATES = {"learned_augmentation": 30.0, "meta_weight_net": 3.0}  # times the usual one of Adam: a few numbers, not a body


def mean_of_the_body(displacement: Displacement) -> Guide:
    """The guide without its map: every parameter of the body has the mean of the body's g."""
    guide = displacement.guide()
    return Guide({**guide, **uniform(guide.without("head"))})


# --- how methods learn before any task -----------------------------------------------------------------------------


def _without_labels(name: str, train: Callable[..., Prepared], views: int = 1) -> Learning:
    """views: how often a batch of images goes through the network. Batches are drawn in the place of episodes."""

    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        images, drawn = to_float(s.pretraining.images()).flatten(0, 1), rng(s.pretraining.seed, name)
        return train(model, images, n_steps=len(episodes), learning_rate=s.learning_rate, generator=drawn)

    return Learning(name, learn, lambda s: TRAINING * views * BATCH)


def _simclr(model: nn.Sequential, images: Tensor, *, generator: torch.Generator, **options: Any) -> Prepared:
    augment = partial(random_affine, strength=SIMCLR_STRENGTH, generator=generator)
    return self_supervised.simclr(model, images, augment=augment, batch_size=BATCH, generator=generator, **options)


def _hierarchical(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
    dataset, seed = load(s.pretraining.dataset), s.pretraining.seed
    split = split_classes(dataset, seed)
    classes, drawn = torch.cat([split["pretraining"], split["scouting"]]), rng(seed, "hierarchical sharing")
    names = [dataset.alphabets[c] for c in classes.tolist()]
    alphabets = torch.tensor([sorted(set(names)).index(name) for name in names])
    images = to_float(dataset.examples[classes])
    augment = partial(random_affine, strength=s.pretraining.augmentation, generator=drawn)
    options = {"n_steps": len(episodes), "batch_size": BATCH, "learning_rate": s.learning_rate}
    return multitask.hierarchical_sharing(model, images, alphabets, augment=augment, generator=drawn, **options)


def _shared_private(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
    private = conv4(s.n_way, max(4, s.pretraining.channels // 4), generator=rng(s.pretraining.seed, "private")).body
    options = {"epochs": s.passes // s.passes_per_episode(), "learning_rate": s.learning_rate}
    return multitask.shared_private(model, episodes, private, difference=0.1, **options)


def _reading(name: str, kind: type[nn.Module]) -> Learning:
    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        options = {"generator": rng(s.pretraining.seed, name), "learning_rate": s.learning_rate}
        return conditional.conditional(model, episodes, kind=kind, **options)

    return Learning(name, learn, lambda s: TRAINING * s.n_way * (s.n_shot + s.n_query))


def _through_descent(name: str, train: Callable[..., Prepared], n_steps: int) -> Learning:
    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        options = {"learning_rate": RATES[name] * s.learning_rate, "generator": rng(s.pretraining.seed, name)}
        return train(model, episodes, inner_rate=s.inner_rate, n_steps=n_steps, **options)

    return Learning(name, learn, lambda s: s.n_way * (TWICE * n_steps * s.n_shot + TRAINING * s.n_query))


SIMCLR = _without_labels("simclr", _simclr, views=2)
MASKED = _without_labels("masked", partial(self_supervised.masked_autoencoder, batch_size=BATCH))
HIERARCHICAL = Learning("hierarchical_sharing", _hierarchical, lambda s: TRAINING * BATCH)
SHARED_PRIVATE = replace(HARD_SHARING, name="shared_private", train=_shared_private)
HYPERNETWORK = _reading("hypernetwork", conditional.HyperHead)
IN_CONTEXT = _reading("in_context", conditional.InContext)
AUGMENTATION = _through_descent("learned_augmentation", augmenting.learn_augmentation, AUGMENTATION_STEPS)
WEIGHTS = _through_descent("meta_weight_net", reweighting.learn_weights, WEIGHT_STEPS)
_EVERY = [SIMCLR, MASKED, HARD_SHARING, REPTILE, HIERARCHICAL, SHARED_PRIVATE, PROTOTYPICAL, HYPERNETWORK, IN_CONTEXT]
LEARNINGS = {learning.name: learning for learning in (*_EVERY, AUGMENTATION, WEIGHTS)}
# What a zero point may be besides the pretrained one: made with the budget of pretraining and of scouts together
# from a random network where there are no labels, and with that of scouts from the pretrained one elsewhere.
UNLABELLED = ("simclr", "masked")
ZERO_POINTS = {
    "supervised": "supervised",
    "hard_sharing": "then multi-task",
    "reptile": "then meta-learned",
    "simclr": "contrastive, no labels",
    "masked": "masked images, no labels",
}


# --- how methods learn a task --------------------------------------------------------------------------------------


def _read(kind: type[nn.Module]) -> Callable[[Start], Compare]:
    def reader(start: Start) -> Compare:
        trained = kind(start.model.head.in_features, start.model.head.out_features)
        trained.load_state_dict(start.extra)
        return trained

    return reader


def _rand_augment(n_operations: int) -> Callable[[Start], Callable[[Tensor], Tensor]]:
    def make(start: Start) -> Callable[[Tensor], Tensor]:
        drawn, magnitude = rng(0, "RandAugment"), float(start.extra["magnitude"])
        return lambda images: augmenting.rand_augment(images, n_operations, magnitude, drawn)

    return make


def _learned_amounts(start: Start) -> Callable[[Tensor], Tensor]:
    drawn = rng(0, "learned augmentation")
    return lambda images: augmenting.warp(images, augmenting.normal_amounts(images, start.extra["deviations"], drawn))


def _learned_weights(start: Start) -> Callable[[Tensor, Tensor], Tensor]:
    net = reweighting.WeightNet()
    net.load_state_dict(start.extra)
    return reweighting.weighted(net.requires_grad_(False))


# --- the table -----------------------------------------------------------------------------------------------------


def _tuned(name: str, label: str, family: Family, adapt: Any, **others: Any) -> Method:
    return Method(name, label, family, adapt=adapt, passes=adapt.passes, **others)


CLUSTERS = replace(NEIGHBOURS[NETWORK.name], name="guided_clusters", label="guided, scouts without labels")
ONE_G = guided(Method("uniform", "one g: the guide's mean", CONTROL, guide=mean_of_the_body))
METHODS = table(
    [
        *(NEIGHBOURS[name] for name in ("nearest_mean", "frozen", "plain")),
        _tuned("bitfit", "BitFit", FINE_TUNING, FineTuning(transfer.bitfit)),
        _tuned("lora", "LoRA", FINE_TUNING, LowRankAdaptation()),
        _tuned("gradual_unfreezing", "gradual unfreezing", FINE_TUNING, GradualUnfreezing()),
        _tuned("hierarchical_sharing", "hierarchical sharing", MULTI_TASK, FineTuning(), prepare=HIERARCHICAL),
        _tuned("shared_private", "shared-private", MULTI_TASK, FineTuning(), prepare=SHARED_PRIVATE),
        NEIGHBOURS["prototypical"],
        *(
            untrained(learning.name, label, COMPARING, compared(_read(kind)), prepare=learning)
            for learning, label, kind in (
                (HYPERNETWORK, "hypernetwork", conditional.HyperHead),
                (IN_CONTEXT, "in-context transformer", conditional.InContext),
            )
        ),
        _tuned("rand_augment_1", "RandAugment, 1 operation", LEARNED, FineTuning(augment=_rand_augment(1))),
        _tuned("rand_augment_2", "RandAugment, 2 operations", LEARNED, FineTuning(augment=_rand_augment(2))),
        _tuned(
            "learned_augmentation",
            "learned augmentation",
            LEARNED,
            FineTuning(augment=_learned_amounts),
            prepare=AUGMENTATION,
        ),
        _tuned("meta_weight_net", "Meta-Weight-Net", LEARNED, FineTuning(loss=_learned_weights), prepare=WEIGHTS),
        NEIGHBOURS["guided_tensor"],
        NEIGHBOURS[NETWORK.name],
        CLUSTERS,
        ONE_G,
    ]
)
SEARCHED = ("rand_augment_1", "rand_augment_2")  # the factor is that of their magnitude
AT_EVERY_ZERO_POINT = ("nearest_mean", "frozen", "plain", NETWORK.name, CLUSTERS.name, ONE_G.name)
WITH_WRONG_LABELS = ("frozen", "plain", "meta_weight_net", NETWORK.name, ONE_G.name)
GUIDES = ("guided_tensor", NETWORK.name)  # guidance and nothing else

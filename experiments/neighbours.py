"""Every method of few-shot learning that guidance is compared with, one row each.

Adding one touches this table and the file of its family in `experiments.baselines`. Guidance composes with all of them:
`Guided` goes around any optimizer, from any zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from experiments.baselines import compare, learned_optimizer, meta, multitask, transfer
from experiments.baselines.continual import L2SP
from experiments.baselines.few_shot import Learning, Prepared, Start
from experiments.baselines.transfer import FineTuning, ProbeThenFineTuning
from experiments.costs import FORWARD, TRAINING, TWICE
from experiments.methods import (
    FEATURES,
    FINE_TUNING,
    FROZEN,
    NETWORK,
    PLAIN,
    SCRATCH,
    TENSOR,
    Family,
    Method,
    Predictor,
    table,
)
from experiments.optimizers import make, usual_rate
from gtl_core.tasks import Episode, rng, to_float

MULTI_TASK = Family("multi-task", "#5C3A12")
META_LEARNING = Family("meta-learning", "#000000")
COMPARING = Family("learning to compare", "#CC79A7")

C_PER_RATE = 100  # what stands for a learning rate of descent, so that all try as many values: the classifiers' C
COMPARE_WAYS = 20
REPTILE_SHOTS, REPTILE_STEPS = 10, 5  # of the published 5-way runs
OPTIMIZER_STEPS = 5
OPTIMIZER_SHARE = 8  # its rule runs for every parameter in every step, which takes the time of so many passes

Adapt = Callable[[Start, Tensor, Tensor, float, Any], Predictor]


# --- how methods learn before any task -----------------------------------------------------------------------------


def _descending(name: str, train: Callable[..., Prepared], inner: int) -> Learning:
    """MAML and its kin. inner: passes of one example in a step of the inner descent."""

    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        return train(model, episodes, inner_rate=s.inner_rate, n_steps=s.inner_steps, outer_rate=s.learning_rate)

    return Learning(name, learn, lambda s: s.n_way * (inner * s.inner_steps * s.n_shot + TRAINING * s.n_query))


def _comparing(name: str, train: Callable[..., Prepared], ways: Callable[[Any], int], seeded: bool = False) -> Learning:
    """ways: classes of an episode. seeded: what compares is itself trained, and drawn first."""

    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        drawn = {"generator": rng(s.pretraining.seed, name)} if seeded else {}
        return train(model, episodes, learning_rate=s.learning_rate, **drawn)

    return Learning(
        name,
        learn,
        lambda s: TRAINING * ways(s) * (s.n_shot + s.n_query),
        lambda s: (ways(s), s.n_shot, s.n_query),
    )


def _sharing(name: str, train: Callable[..., Prepared]) -> Learning:
    def learn(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
        return train(model, episodes, s, epochs=s.passes // s.passes_per_episode(), learning_rate=s.learning_rate)

    return Learning(
        name,
        learn,
        lambda s: TRAINING * s.n_tasks * s.n_way * s.task_n_shot,
        lambda s: (s.n_way, s.task_n_shot, 0),
        own_heads=True,
    )


def _hard(model: nn.Sequential, episodes: Sequence[Episode], s: Any, **options: Any) -> Prepared:
    return multitask.hard_sharing(model, episodes, generator=rng(s.pretraining.seed, "sharing"), **options)


def _soft(model: nn.Sequential, episodes: Sequence[Episode], s: Any, **options: Any) -> Prepared:
    return multitask.soft_sharing(model, episodes, strength=0.1, **options)


def _reptile(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
    size, generator = REPTILE_SHOTS * s.n_way // REPTILE_STEPS, rng(s.pretraining.seed, "reptile")
    adam = partial(meta.reptile_adam, learning_rate=s.learning_rate)
    return meta.reptile(model, episodes, optimizer=adam, batch_size=size, generator=generator)


def _learn_rule(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
    rule = learned_optimizer.StepRule(scale=s.inner_rate, generator=rng(s.pretraining.seed, "rule"))
    options = {"n_steps": OPTIMIZER_STEPS, "learning_rate": s.learning_rate}
    return learned_optimizer.learn_optimizer(model, episodes, rule, **options)


def _base_mean(model: nn.Sequential, episodes: Sequence[Episode], s: Any) -> Prepared:
    return transfer.base_mean(model, to_float(s.pretraining.images()).flatten(0, 1))


def _more_ways(s: Any) -> int:
    """More classes than a task will have help (Snell et al. 2017)."""
    return max(COMPARE_WAYS, s.n_way)


HARD_SHARING, SOFT_SHARING = _sharing("hard_sharing", _hard), _sharing("soft_sharing", _soft)
MAML, META_SGD = _descending("maml", meta.maml, TWICE), _descending("meta_sgd", meta.meta_sgd, TWICE)
FOMAML, ANIL = _descending("fomaml", meta.fomaml, TRAINING), _descending("anil", meta.anil, TRAINING)
MATCHING = _comparing("matching", compare.matching, _more_ways)
PROTOTYPICAL = _comparing("prototypical", compare.prototypical, _more_ways)
REPTILE = Learning(
    "reptile", _reptile, lambda s: TRAINING * s.n_way * REPTILE_SHOTS, lambda s: (s.n_way, REPTILE_SHOTS, 0)
)
RULE = Learning(
    "learned_optimizer",
    _learn_rule,
    lambda s: OPTIMIZER_SHARE * TRAINING * OPTIMIZER_STEPS * s.n_way * (s.n_shot + s.n_query),
)
BASE_MEAN = Learning("simple_shot", _base_mean, lambda s: FORWARD * s.pretraining.images().shape[:2].numel(), once=True)
# Not more ways for the squared error of relation networks: with 19 wrong pairs for a right one, it learns to say no.
RELATION = _comparing("relation", compare.relation, attrgetter("n_way"), seeded=True)


# --- how methods learn a task --------------------------------------------------------------------------------------


def task_by_task(adapt: Adapt) -> Adapt:
    """An adaptation to one task [N, ...], done for S tasks [N, S, ...], one after the other."""

    def adapt_all(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        tasks = zip(inputs.unbind(1), labels.expand(-1, inputs.shape[1]).unbind(1), strict=True)
        each = [adapt(start, task.contiguous(), own.contiguous(), rate, p) for task, own in tasks]

        def predict(queries: Tensor) -> Tensor:
            tasks = zip(each, queries.unbind(1), strict=True)
            return torch.stack([predict_one(of_task.contiguous()) for predict_one, of_task in tasks], 1)

        return predict

    return adapt_all


def _nearest_mean(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
    return transfer.nearest_mean(start.model, inputs, labels)


def _simple_shot(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
    return transfer.simple_shot(start.model, inputs, labels, start.extra["mean"])


def _logistic(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
    from sklearn.linear_model import LogisticRegression  # slow to import, and figures import this module

    classifier = LogisticRegression(C=C_PER_RATE * rate, max_iter=1000)
    return transfer.classify_features(start.model, inputs, labels, classifier=classifier)


def _svm(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
    from sklearn.svm import LinearSVC

    classifier = LinearSVC(C=C_PER_RATE * rate, random_state=0)
    return transfer.classify_features(start.model, inputs, labels, classifier=classifier)


def _by_rates(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
    return meta.adapt_by_descent(start.model, inputs, labels, rates=start.extra, n_steps=p.test_steps)


def compared(by: Callable[[Start], compare.Compare]) -> Adapt:
    """Nothing is trained on a task: what ``by`` makes compares queries with the support."""

    def adapt(start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        return compare.compare_all(start.model, inputs, labels, compare=by(start))

    return task_by_task(adapt)


def _relate(start: Start) -> compare.Compare:
    relation = compare.Relation(start.model.head.in_features)
    relation.load_state_dict(start.extra)
    return relation


def _reptile_optimizer(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    """As published, by Adam, with the network of the literature; from conv4 descent does better."""
    if p.backbone == "strided_conv4":
        return meta.reptile_adam(model, usual_rate("adam", rate))
    return transfer.descent(model, start, rate, p)


def _adam(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    return make("adam", model.parameters(), usual_rate("adam", rate))


def _by_rule(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    rule = learned_optimizer.StepRule(scale=p.inner_rate, generator=rng(0))
    rule.load_state_dict(start.extra)
    return learned_optimizer.LearnedOptimizer(model.parameters(), rule)


def _l2_sp(model: nn.Module, optimizer: torch.optim.Optimizer) -> L2SP:
    return L2SP(model, 0.1, optimizer)


def _one_pass(model: nn.Sequential, n: int, p: Any) -> float:
    """Of a task with ``n`` examples on which nothing is trained."""
    return FORWARD * n


# --- the table -----------------------------------------------------------------------------------------------------


def _tuned(row: Method, adapt: FineTuning | ProbeThenFineTuning, **others: Any) -> Method:
    return replace(row, adapt=adapt, passes=adapt.passes, **others)


def guided(row: Method, **others: Any) -> Method:
    """The row with fine-tuning by its own guide."""
    return _tuned(row, FineTuning(guide=row.guide), **others)


def _by_adam(row: Method, **training: Any) -> Method:
    """The row with Adam in the place of descent, for scouts, too, if it has any."""
    names = {"name": f"{row.name}_adam", "label": f"{row.label}, Adam", "scouts_by": "adam"}
    return _tuned(replace(row, **names), FineTuning(_adam, guide=row.guide, **training))


def untrained(name: str, label: str, family: Family, adapt: Adapt, has_rate: bool = False, **others: Any) -> Method:
    """Nothing of the network is trained on a task; with a rate where something else is to be chosen."""
    return Method(name, label, family, adapt=adapt, has_rate=has_rate, passes=_one_pass, **others)


INNER = attrgetter("test_steps")  # what MAML and its kin take on a new task
NEIGHBOURS = table(
    [
        _tuned(SCRATCH, FineTuning()),
        untrained("nearest_mean", "nearest class mean", FEATURES, task_by_task(_nearest_mean)),
        untrained("logistic", "logistic regression", FEATURES, task_by_task(_logistic), has_rate=True),
        untrained("svm", "SVM", FEATURES, task_by_task(_svm), has_rate=True),
        _tuned(PLAIN, FineTuning()),
        _tuned(Method("freeze_1", "1 layer frozen", FINE_TUNING), FineTuning(n_frozen=1)),
        _tuned(Method("freeze_2", "2 layers frozen", FINE_TUNING), FineTuning(n_frozen=2)),
        _tuned(Method("freeze_3", "3 layers frozen", FINE_TUNING), FineTuning(n_frozen=3)),
        _tuned(FROZEN, FineTuning(n_frozen=4)),
        untrained("simple_shot", "SimpleShot", FEATURES, task_by_task(_simple_shot), prepare=BASE_MEAN),
        _tuned(Method("lp_ft", "LP-FT", FINE_TUNING), ProbeThenFineTuning()),
        _tuned(Method("l2_sp", "L2-SP", FINE_TUNING), FineTuning(memory=_l2_sp)),
        _tuned(Method("layerwise", "layer-wise rates", FINE_TUNING), FineTuning(transfer.layerwise)),
        _tuned(Method("hard_sharing", "hard sharing", MULTI_TASK, prepare=HARD_SHARING), FineTuning()),
        _tuned(Method("soft_sharing", "soft sharing", MULTI_TASK, prepare=SOFT_SHARING), FineTuning()),
        _tuned(Method("maml", "MAML", META_LEARNING, prepare=MAML), FineTuning(epochs=INNER)),
        _tuned(Method("fomaml", "FOMAML", META_LEARNING, prepare=FOMAML), FineTuning(epochs=INNER)),
        _tuned(Method("anil", "ANIL", META_LEARNING, prepare=ANIL), FineTuning(n_frozen=4, epochs=INNER)),
        replace(
            untrained("meta_sgd", "Meta-SGD", META_LEARNING, task_by_task(_by_rates), prepare=META_SGD),
            passes=FineTuning(epochs=INNER).passes,
        ),
        _tuned(Method("reptile", "Reptile", META_LEARNING, prepare=REPTILE), FineTuning(_reptile_optimizer)),
        _tuned(
            Method("learned_optimizer", "learned optimizer", META_LEARNING, prepare=RULE, has_rate=False),
            FineTuning(_by_rule, epochs=lambda p: OPTIMIZER_STEPS),
        ),
        untrained("matching", "Matching", COMPARING, compared(lambda start: compare.attention), prepare=MATCHING),
        untrained(
            "prototypical", "Prototypical", COMPARING, compared(lambda start: compare.prototypes), prepare=PROTOTYPICAL
        ),
        untrained("relation", "Relation", COMPARING, compared(_relate), prepare=RELATION),
        guided(TENSOR),
        guided(NETWORK),
        *(_by_adam(PLAIN), _by_adam(FROZEN, n_frozen=4), _by_adam(TENSOR), _by_adam(NETWORK)),
        guided(replace(NETWORK, name="guided_adam_scouts", label="guided, scouts by Adam", scouts_by="adam")),
        guided(replace(NETWORK, name="guided_reptile", label="guided, from Reptile"), prepare=REPTILE),
        guided(replace(NETWORK, name="guided_hard_sharing", label="guided, from hard sharing"), prepare=HARD_SHARING),
    ]
)
LEARNING = {row.prepare.name: row.prepare for row in NEIGHBOURS.values() if row.prepare}

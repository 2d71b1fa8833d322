"""Random patterns to be memorised: learned again in parts (the proof of concept), and by networks of several sizes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from experiments.e11_authors_code.library import METHODS, summed
from experiments.models import multilayer_perceptron
from experiments.protocol import Job, LearningRate, Row, best_to_test, tune_and_test
from experiments.statistics import best_settings
from experiments.workers import parallel
from gtl_core import Displacement, Recipe, scout
from gtl_core._engine import stack
from gtl_core.tasks import rng
from gtl_core.training import fit

if TYPE_CHECKING:
    from experiments.e11_authors_code.run import AuthorsParameters

N_BITS, N_CLASSES, N_IN_PART, BATCH = 25, 10, 4, 200  # the authors'
WIDTH, DEPTH = 80, 4
MOST_EPOCHS = 5000
KNOWN = 0.9  # of a part
TUNED_ON = {"fast": "validation", "careful": "validation_kept"}  # metrics, see `validation`


class Relearning(NamedTuple):
    """The variants of the proof of concept."""

    experiment: str
    method: str


class Memorising(NamedTuple):
    """The variants of networks of several sizes."""

    experiment: str
    method: str
    width: int
    depth: int


class Memorised(NamedTuple):
    """A network that knows most patterns, and what its scouts found on these parts [n_scouts, 4]."""

    zero_point: nn.Sequential
    displacement: Displacement
    parts: Tensor


def random_patterns(n_per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs [10 * n, 25] of zeros and ones and targets [10 * n, 10], one-hot, class after class."""
    inputs = torch.randint(2, (N_CLASSES * n_per_class, N_BITS), generator=generator).float()
    return inputs, one_hot(torch.arange(N_CLASSES).repeat_interleave(n_per_class), N_CLASSES).float()


def random_parts(n: int, generator: torch.Generator) -> Tensor:
    """Some classes of each of ``n`` parts [n, 4]."""
    return torch.stack([torch.randperm(N_CLASSES, generator=generator)[:N_IN_PART] for _ in range(n)])


def in_part(targets: Tensor, part: Tensor) -> Tensor:
    """Which examples [N] are of the part's classes [4]."""
    return targets[:, part].any(1)


@torch.no_grad()
def right(network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest output is the target's, else 0: [N], or [N, S] for a stacked network."""
    return (network(inputs).argmax(-1) == targets.argmax(-1)).float()


def memorising_recipe(learning_rate: float, epochs: int) -> Recipe:
    """Adam on the squared error, in batches of 200."""
    return Recipe(learning_rate, epochs, BATCH, torch.optim.Adam, loss=mse_loss)


def begin(p: AuthorsParameters, seed: int) -> Memorised:
    """Train a network on all patterns until it knows as many as it should; then send scouts, one per part."""
    inputs, targets = random_patterns(p.patterns_per_class, rng(seed, "patterns"))
    sizes = [N_BITS, *[WIDTH] * DEPTH, N_CLASSES]
    model = multilayer_perceptron(sizes, nn.Sigmoid, generator=rng(seed, "zero point"))
    optimizer, order = torch.optim.Adam(model.parameters(), lr=p.scout_learning_rate), rng(seed, "order")
    for _ in range(MOST_EPOCHS):
        fit(model, inputs, targets, optimizer, epochs=1, batch_size=BATCH, generator=order, loss=mse_loss)
        if right(model, inputs, targets).mean() >= p.known_at_first:
            break
    else:
        raise RuntimeError(
            f"after {MOST_EPOCHS} epochs the network does not know {p.known_at_first:.0%} of the patterns"
        )
    parts = random_parts(p.n_scouts, rng(seed, "scouts"))
    tasks = [(inputs[members], targets[members]) for members in (in_part(targets, part) for part in parts)]
    recipe = memorising_recipe(p.scout_learning_rate, p.scout_epochs)
    return Memorised(model, scout(model, tasks, recipe, side_by_side=8), parts)


def relearn(job: Job, start: Memorised) -> Tensor:
    """Learn parts again, side by side, each from the zero point: accuracy [epochs + 1, part/others, parts].

    The test parts are the first of the scouts', as in the authors' program; rates are chosen on other parts.
    """
    p, method = job.parameters, METHODS[job.variant.method]
    parts = start.parts[: p.n_parts]
    if job.purpose == "validation":
        parts = random_parts(p.n_tuning_parts, rng(job.seed, "tuning parts"))
    inputs, targets = random_patterns(p.patterns_per_class, rng(job.seed, "patterns"))
    mine = torch.stack([in_part(targets, part) for part in parts], 1)  # [N, S]
    rows = torch.stack([members.nonzero().flatten() for members in mine.T], 1)
    network = stack([start.zero_point] * len(parts))
    adam = torch.optim.Adam(network.parameters(), lr=job.setting.learning_rate, fused=True)
    guides = [method.guide(start.displacement)] * len(parts) if method.guide else []
    optimizer, order = method.optimizer(adam, network, guides), rng(job.seed, "order again")
    everything = inputs[:, None].expand(-1, len(parts), -1), targets[:, None].expand(-1, len(parts), -1)
    measured = []
    for epoch in range(p.relearning_epochs + 1):
        if epoch > 0:
            task = {"batch_size": BATCH, "generator": order, "loss": summed(mse_loss)}
            fit(network, inputs[rows], targets[rows], optimizer, epochs=1, **task)
        known = right(network, *everything)
        measured.append(torch.stack([(known * who).sum(0) / who.sum(0) for who in (mine, ~mine)]))
    return torch.stack(measured)


def run_relearning(p: AuthorsParameters) -> list[Row]:
    """The proof of concept: rows with the accuracies of `validation` at every rate; at the rate that is `chosen` as
    ``fast`` (``tuned_on``) the accuracy on the ``part`` and on the ``others`` by epoch (``step``); and at the
    ``careful`` one what the others `kept`."""
    seeds = p.seeds()
    begun = parallel(partial(begin, p), seeds, p.workers, "zero points", p.dask_scheduler)
    starts = dict(zip(seeds, begun, strict=True))
    methods = ("plain", "guided_network", "guided_tensor", "guided_gradient", "shuffled")
    variants = [Relearning("patterns", m) for m in methods]
    rows, tests = tune_and_test(
        p,
        variants,
        lambda variant: [LearningRate(rate) for rate in p.learning_rates],
        lambda job: starts[job.seed],
        relearn,
        validation,
        lambda tuning: {v: sorted({chosen(tuning, way)[v] for way in TUNED_ON}) for v in variants},
    )
    choices = {way: chosen(pd.DataFrame(rows), way) for way in TUNED_ON}
    for job, accuracies in tests:
        if choices["fast"][job.variant] == job.setting:
            for epoch in p.measured_epochs():
                for metric, values in zip(("part", "others"), accuracies[epoch].tolist(), strict=True):
                    where = {"tuned_on": "fast", "step": epoch}
                    rows += [job.row(metric, value, task=i, **where) for i, value in enumerate(values)]
        if choices["careful"][job.variant] == job.setting:
            rows += [job.row("kept", v, task=i, tuned_on="careful") for i, v in enumerate(kept(accuracies).tolist())]
    return rows


def validation(job: Job, accuracies: Tensor) -> list[Row]:
    """Rows with means over parts of what `relearn` returns: on the part, over the epochs measured (``validation``) and
    at the end (``validation_end``); on the other classes, at the end (``validation_others``) and as `kept`."""
    part, others = accuracies.mean(2).T
    means = {"validation": part[job.parameters.measured_epochs()[1:]].mean(), "validation_end": part[-1]}
    means |= {"validation_others": others[-1], "validation_kept": kept(accuracies).mean()}
    return [job.row(metric, value.item()) for metric, value in means.items()]


def kept(accuracies: Tensor) -> Tensor:
    """What the other classes have [parts] when 90 % of the part is known, from what `relearn` returns.

    All methods are so compared at the same knowledge of the part. Interpolated between epochs; 0 of a part that is
    never known.
    """
    part, others = accuracies.unbind(1)
    at = (part >= KNOWN).float().argmax(0).clamp(min=1)[None]  # the first such epoch
    (after, before), (end, begin) = ((values.gather(0, at), values.gather(0, at - 1)) for values in (part, others))
    share = ((KNOWN - before).clamp(min=0) / (after - before)).nan_to_num(0)  # 0 / 0 if known from the start
    return torch.where((part >= KNOWN).any(0), begin.lerp(end, share).squeeze(0), 0)


def chosen(tuning: pd.DataFrame, way: str) -> dict[tuple, LearningRate]:
    """The rate of each variant with which it knows the part best on the way, or with which the others keep most."""
    tuning = tuning[tuning["metric"] == TUNED_ON[way]].assign(metric="validation")
    best = best_settings(tuning, Relearning._fields, LearningRate._fields)
    return {variant: LearningRate(*setting) for variant, setting in best.items()}


def memorise(job: Job, start: None) -> Tensor:
    """Networks of one size learn all patterns of their own, from random weights: accuracy [S] at the end.

    Scouts learn 4 of the 10 classes each; what they cost is subtracted from the epochs of guided training.
    """
    p, method, (_, _, width, depth) = job.parameters, METHODS[job.variant.method], job.variant
    n = p.n_networks if job.purpose == "test" else p.n_tuning_networks
    seeds = [(1000 * p.seed + i, job.purpose) for i in range(n)]
    sizes = [N_BITS, *[width] * depth, N_CLASSES]
    models = [multilayer_perceptron(sizes, nn.ReLU, generator=rng(*s, "network", *sizes)) for s in seeds]
    data = [random_patterns(p.patterns_per_class, rng(*s, "patterns")) for s in seeds]
    inputs, targets = (torch.stack(tensors, 1) for tensors in zip(*data, strict=True))
    network, guides, epochs = stack(models), [], p.memorising_epochs
    if method.guide:
        recipe = memorising_recipe(p.scout_learning_rate, p.memorising_scout_epochs)
        for seed, model, (x, y) in zip(seeds, models, data, strict=True):
            members = [in_part(y, part) for part in random_parts(p.n_memorising_scouts, rng(*seed, "scouts"))]
            displacement = scout(model, [(x[m], y[m]) for m in members], recipe, side_by_side=8)
            guides.append(method.guide(displacement))
        epochs -= p.memorising_scout_cost
    adam = torch.optim.Adam(network.parameters(), lr=job.setting.learning_rate, fused=True)
    task = {"batch_size": BATCH, "generator": rng(p.seed, "order"), "loss": summed(mse_loss)}
    fit(network, inputs, targets, method.optimizer(adam, network, guides), epochs=epochs, **task)
    return right(network, inputs, targets).mean(0)


def run_widths(p: AuthorsParameters) -> list[Row]:
    """The third claim: rows with ``validation`` and, at the best rate, ``accuracy``, of other networks and patterns.

    Networks of one size are trained side by side in one job, so that a seed of the table is a network.
    """
    methods = ("plain", "guided_network", "guided_tensor")
    rows, tests = tune_and_test(
        p.model_copy(update={"n_seeds": 1}),
        [Memorising("width", m, width, depth) for depth in p.depths for width in p.widths for m in methods],
        lambda variant: [LearningRate(rate) for rate in p.memorising_rates],
        lambda job: None,
        memorise,
        lambda job, accuracies: [job.row("validation", accuracies.mean().item())],
        lambda tuning: best_to_test(tuning, Memorising, LearningRate),
    )
    for job, accuracies in tests:
        rows += [job.row("accuracy", v, seed=job.seed + i, task=0) for i, v in enumerate(accuracies.tolist())]
    return rows

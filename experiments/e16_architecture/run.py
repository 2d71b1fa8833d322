"""Whether an architecture found on scouts' tasks is worth more than a guide, and whether a guide survives it."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.baselines.architecture import Architecture, made_by_hand, size
from experiments.baselines.few_shot import Start
from experiments.baselines.transfer import FineTuning, descent
from experiments.e16_architecture.preparations import ONE_BY_ONE, Search, Trained, TrainedScouting
from experiments.episodes import Task
from experiments.few_shot import PreparedParameters, episode_rows, tune_and_test_episodes
from experiments.methods import CONTROL, NETWORK, PLAIN, Method, table
from experiments.neighbours import NEIGHBOURS, guided
from experiments.parameters import Count, Rate, Some
from experiments.preparations.pretraining import Pretraining
from experiments.preparations.steps import Step, made
from experiments.protocol import Row
from experiments.statistics import difference, tally
from gtl_core._engine.stacked import stack_guide
from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.shaping import per_tensor, uniform

HAND = "by_hand"
# Made by hand, too: pretrained for as much longer as a search costs; and nearly as large as what may be found.
CONTROLS = ("longer", "wider")
MADE_BY_HAND = {HAND: "made by hand"} | {name: f"made by hand, {name}" for name in CONTROLS}
Searching = Literal[*ONE_BY_ONE, "differentiable"]


def carried(guide: Guide, to: nn.Module) -> dict[str, Tensor]:
    """A guide for another architecture: every tensor has the mean g of its like, in the block as far from the input."""
    depths = [1 + max(_block(name) for name in names) for names in (guide, dict(to.named_parameters()))]
    found = {}
    for name, p in to.named_parameters():
        place = round(_block(name) * (depths[0] - 1) / (depths[1] - 1))
        found[name] = torch.full_like(p, guide[re.sub(r"\d+", str(place), name)].mean().item())
    return found


def _block(name: str) -> int:
    """The number in ``body.conv2.weight``; the head has none."""
    number = re.search(r"\d+", name)
    return int(number[0]) if number else 0


def _by_extra(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    """Descent guided by what the network was started with in the place of its own scouts."""
    guide = stack_guide(Guide(start.extra), len(next(model.parameters())))
    return Guided(descent(model, start, rate, p), model, guide)


def _one_per_tensor(displacement: Displacement) -> Guide:
    return per_tensor(displacement.guide())


def _one(displacement: Displacement) -> Guide:
    return uniform(displacement.guide())


CARRIED = Method("carried", "the same, from the network made by hand", CONTROL, "#CC79A7", adapt=FineTuning(_by_extra))
METHODS = table(
    [
        NEIGHBOURS["nearest_mean"],
        NEIGHBOURS[PLAIN.name],
        NEIGHBOURS[NETWORK.name],
        guided(Method("per_tensor", "one g per tensor", CONTROL, "#56B4E9", guide=_one_per_tensor)),
        CARRIED,
        guided(Method("uniform", "one g: the mean", CONTROL, guide=_one)),
    ]
)


class ArchitectureVariant(NamedTuple):
    """A method with the architecture that was found in one way."""

    found_by: str
    n_way: int
    n_shot: int
    method: str


class ArchitectureParameters(PreparedParameters):
    """See the notebook's parameter cell for what each one means."""

    searches: Some[Searching]
    search_budget: Rate
    search_epochs: Count
    n_search_tasks: Count

    def row(self, variant: ArchitectureVariant) -> Method:
        return METHODS[variant.method]

    def variants(self) -> list[ArchitectureVariant]:
        every = product(self.ways(), map(Task.parse, self.tasks), METHODS)
        return [ArchitectureVariant(by, *task, m) for by, task, m in every if (by, m) != (HAND, CARRIED.name)]

    def ways(self) -> tuple[str, ...]:
        """In which an architecture is found, made by hand first."""
        return (HAND, *CONTROLS, *self.searches)

    def has_factor(self, variant: ArchitectureVariant) -> bool:
        return variant.method == CARRIED.name or super().has_factor(variant)

    def pretraining(self, seed: int) -> Pretraining:
        """Of the network made by hand."""
        return self.scouting(seed, "pretrained", self.heads[0], 2).pretraining

    def search(self, seed: int, found_by: str) -> Search | None:
        if found_by not in self.searches:
            return None
        task = Task.parse(self.tasks[0])
        return Search(
            method=found_by,
            pretraining=self.pretraining(seed),
            n_way=task.n_way,
            n_shot=task.n_shot,
            n_query=self.n_query,
            n_tasks=self.n_search_tasks,
            epochs=self.search_epochs,
            budget=self.search_budget,
        )

    def training(self, seed: int, found_by: str) -> Trained:
        pretraining = self.pretraining(seed)
        if found_by == "longer":
            epochs = round((1 + self.search_budget) * pretraining.epochs)
            pretraining = pretraining.model_copy(update={"epochs": epochs})
        if found_by == "wider":  # two times the channels are nearly four times the multiplications
            pretraining = pretraining.model_copy(update={"channels": 2 * pretraining.channels})
        return Trained(search=self.search(seed, found_by), pretraining=pretraining)

    def scouts(self, seed: int, variant: ArchitectureVariant, factor: float) -> TrainedScouting:
        """Those of its architecture; sent, if its method asks for a guide of its own."""
        by = self.scout_training(variant, factor)
        scouting = self.scouting(seed, "pretrained", self.heads[0], variant.n_way, **by)
        return TrainedScouting(training=self.training(seed, variant.found_by), scouting=scouting)

    def step(self, seed: int, variant: ArchitectureVariant, factor: float) -> Step:
        own = self.scouts(seed, variant, factor)
        return own if self.row(variant).guide else own.training

    def preparations(self) -> list[Step]:
        """Also the scouts of the network made by hand, of which every other one has a guide to try."""
        hand = [v for v in self.variants() if v.found_by == HAND and v.method == NETWORK.name]
        pairs = product(hand, self.seeds(), self.preparation_factors)
        return list(dict.fromkeys([*super().preparations(), *(self.scouts(s, v, f) for v, s, f in pairs)]))

    def start(self, folder: Path, seed: int, variant: ArchitectureVariant, factor: float) -> Start:
        own = self.scouts(seed, variant, factor)
        model = own.training.zero_point(folder, own.scouting)
        if self.row(variant).guide:
            return Start(model, displacement=own.displacement(folder))
        if variant.method != CARRIED.name:
            return Start(model)
        by_hand = self.scouts(seed, variant._replace(found_by=HAND), factor)
        return Start(model, carried(by_hand.displacement(folder).guide(), model))


def run(p: ArchitectureParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `ArchitectureVariant`, architecture, those of `PreparationSetting`, task, metric, value.
    Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: of test episodes (task; see `accuracy_rows`);
    - ``preparation_passes``: images times how often each went through the network (`experiments.costs`); those of a
      search are of the network made by hand;
    - ``tried_score``, see `Search.score`, and ``tried_parameters`` of what a search tried, in that order (task);
    - ``found_parameters`` of what it found, and ``found_multiplications`` of a forward pass, in times those of the
      network made by hand.
    """
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    with made(p.preparations(), p.prepared, p.workers) as folder:
        rows, tested = tune_and_test_episodes(p, folder)
        for job, (accuracies, _) in tested:
            rows += episode_rows(job, accuracies, p.step(job.seed, job.variant, job.setting.factor))
        searched = [row for seed, by in product(p.seeds(), p.ways()) for row in _searched(p, folder, seed, by)]
    return pd.DataFrame([*rows, *searched])


def _searched(p: ArchitectureParameters, folder: Path, seed: int, found_by: str) -> list[Row]:
    """What was tried, and what was found."""
    search, task, by_hand = p.search(seed, found_by), Task.parse(p.tasks[0]), made_by_hand(p.channels)
    key = {"seed": seed, "found_by": found_by} | task._asdict() | {"method": "search"}

    def rows(architecture: Architecture, where: object, **values: float) -> list[Row]:
        about = key | {"architecture": str(architecture), "task": where}
        return [about | {"metric": metric, "value": value} for metric, value in values.items()]

    found = p.training(seed, found_by).architecture(folder)
    relative, n_parameters = size(found, by_hand, task.n_way)
    result = rows(found, "", found_multiplications=relative, found_parameters=n_parameters)
    for i, (architecture, score) in enumerate(search.tried(folder) if search else []):
        n_parameters = size(architecture, by_hand, task.n_way)[1]
        result += rows(architecture, i, tried_score=score, tried_parameters=n_parameters)
    return result


def paired_differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every kind of task: each method with a found architecture minus the same with those made by hand (``against``
    by_hand, longer, wider), and guided training minus every other method with the same architecture (``against`` that).

    Columns: task, found_by, method, against, and those of `statistics.difference`.
    """
    rows = []
    for task, there in frame[frame["metric"] == "accuracy"].groupby(["n_way", "n_shot"], sort=False):
        cells = dict(list(there.groupby(["found_by", "method"], sort=False)))
        pairs = []
        for by, m in cells:
            rivals = () if by == HAND else (HAND,) if by in CONTROLS else MADE_BY_HAND
            pairs += [((by, m), (hand, m), hand) for hand in rivals if (hand, m) in cells]
        pairs += [((by, NETWORK.name), (by, m), m) for by, m in cells if m != NETWORK.name]
        for (by, method), other, against in pairs:
            key = {"task": str(Task(*task)), "found_by": by, "method": method, "against": against}
            rows.append(key | difference(cells[by, method], cells[other], "episodes"))
    return pd.DataFrame(rows)


def verdict(frame: pd.DataFrame) -> str:
    """In words: what searching is worth to each method, and whether guidance is, with any of the architectures."""
    table, lines = paired_differences(frame), []
    by_hand = table["against"].isin(list(MADE_BY_HAND))
    plain = table[by_hand & (table["method"] == PLAIN.name)]
    for (by, task), found in plain.groupby(["found_by", "task"], sort=False):
        parts = [f"{MADE_BY_HAND[row.against]} {row.text} ({row.side})" for row in found.itertuples()]
        lines.append(f"{by}, {task}, plain fine-tuning, minus {'; '.join(parts)}.")
    for rival, found in table[~by_hand].groupby("against", sort=False):
        lines.append(f"Guided minus {rival}: {tally(found['side'], 'architectures and kinds of task')}.")
    return "\n".join(lines)

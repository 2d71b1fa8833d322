"""When the new tasks look different from what was pretrained on: adapt the features, guide the training, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from pydantic import Field, field_validator, model_validator

from experiments.data import load
from experiments.data.splits import split_classes
from experiments.e06_few_shot_neighbours import run as few_shot_neighbours
from experiments.e06_few_shot_neighbours.run import Start, results, row
from experiments.e07_forgetting_neighbours import run as forgetting_neighbours
from experiments.episodes import GROUP, EpisodeParameters, Task
from experiments.parameters import Dataset, Head, Rate, distinct
from experiments.preparations import meta_training
from experiments.preparations.domain_training import DomainTraining, shifted
from experiments.preparations.pretraining import HELD_OUT_DRAWERS, Pretraining
from experiments.preparations.scouting import Scouting
from experiments.preparations.scouting_from import ScoutingFrom
from experiments.preparations.steps import Step, made
from experiments.ranking import accuracy_of, best_first, guided_minus, sides
from experiments.records import read, resolve
from experiments.statistics import best_settings
from gtl_core.guide import Displacement
from gtl_core.tasks import Episode, rng, sample_episode

Target = Literal["as_is", "inverted"]
STRENGTH = {"none": 0.0, "coral": 10.0, "dann": 1.0}  # before the factors

# (alignment, whose classes the scouts learn, method)
METHODS = (
    ("none", "none", "scratch"),
    *product(STRENGTH, ["none"], ("nearest_mean", "frozen", "plain")),
    *product(["none"], ("source", "target"), ("guided_tensor", "guided_network")),
)


class Variant(NamedTuple):
    """A method for one kind of task; ``alignment`` is what pretraining did for the target, ``scouts`` where the scouts'
    classes come from (labelled examples of the target's are more than any alignment is given)."""

    target: Target
    n_way: int
    n_shot: int
    alignment: Literal["none", "coral", "dann"]
    scouts: Literal["none", "source", "target"]
    method: str


class DomainShiftParameters(EpisodeParameters):
    """See the notebook's parameter cell for what each one means."""

    source: Dataset
    targets: tuple[Target, ...] = Field(min_length=1)
    heads: tuple[Head, ...] = Field(min_length=1, max_length=1)
    preparation_factors: tuple[Rate, ...] = Field(min_length=1)

    @field_validator("targets", "preparation_factors")
    @classmethod
    def _distinct_too(cls, values: tuple) -> tuple:
        return distinct(values)

    @model_validator(mode="after")
    def _really_shifted(self) -> DomainShiftParameters:
        if self.source == self.dataset and "as_is" in self.targets:
            raise ValueError(f"targets: {self.dataset} as it is does not differ from the source")
        return self

    def variants(self) -> list[Variant]:
        tasks = [Task.parse(task) for task in self.tasks]
        return [Variant(target, *task, *method) for target, task, method in product(self.targets, tasks, METHODS)]

    def step(self, seed: int, variant: Variant, factor: float) -> Step:
        """The last step of a variant's preparation, with the strength of its alignment, or its scouts' learning rate,
        times ``factor``."""
        untrained = Pretraining(dataset=self.source, seed=seed, channels=self.channels, epochs=0)
        if variant.method == "scratch":
            return untrained
        source = load(self.source)
        n_drawers = source.examples.shape[1] - HELD_OUT_DRAWERS
        n_images = len(split_classes(source, seed)["pretraining"]) * n_drawers
        training = DomainTraining(
            source=self.source,
            target=self.dataset,
            inverted=variant.target == "inverted",
            seed=seed,
            channels=self.channels,
            alignment=variant.alignment,
            strength=factor * STRENGTH[variant.alignment],
            n_steps=max(1, self.pretraining_epochs * n_images // 64),
        )
        if variant.scouts == "none":
            return training
        domain = self.source if variant.scouts == "source" else self.dataset
        scouting = Scouting(
            pretraining=untrained.model_copy(update={"dataset": domain}),
            n_way=variant.n_way,
            head=self.heads[0],
            n_scouts=self.n_scouts,
            n_shot=self.scout_n_shot,
            epochs=self.scout_epochs,
            learning_rate=factor * self.scout_learning_rate,
        )
        inverted = variant.scouts == "target" and variant.target == "inverted"
        return ScoutingFrom(zero_point=training, scouting=scouting, inverted=inverted)

    def factors(self, variant: Variant) -> tuple[float, ...]:
        return (1.0,) if variant.scouts == variant.alignment == "none" else self.preparation_factors

    def rates(self, variant: Variant) -> tuple[float, ...]:
        """0: there is none to choose."""
        return (0.0,) if variant.method == "nearest_mean" else self.learning_rates

    def preparations(self) -> list[Step]:
        steps = [
            self.step(seed, variant, factor)
            for variant, seed in product(self.variants(), self.seeds())
            for factor in self.factors(variant)
        ]
        return list(dict.fromkeys(step for step in steps if not isinstance(step, Pretraining)))


@dataclass(frozen=True)
class Job:
    """Some episodes of one variant under one setting; small enough to send to a worker."""

    parameters: DomainShiftParameters
    seed: int
    variant: Variant
    factor: float
    learning_rate: float
    purpose: Literal["validation", "test"]
    n_episodes: int

    def episodes(self) -> list[Episode]:
        """The same for every method and setting: differences between methods are paired."""
        p, v = self.parameters, self.variant
        dataset = shifted(p.dataset, v.target == "inverted")
        classes = split_classes(dataset, self.seed)[self.purpose]
        return [
            sample_episode(dataset.examples, classes, v.n_way, v.n_shot, p.n_query, rng(self.seed, self.purpose, i))
            for i in range(self.n_episodes)
        ]


def run(parameters: DomainShiftParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `Variant`, factor, learning_rate, task, metric, value. Metrics:

    - ``validation``: mean accuracy over the tuning episodes, for every setting; the best of a variant is then used;
    - ``accuracy``: over each group of ``GROUP`` test episodes (task);
    - ``preparation_passes``: network passes before any task (`baselines.few_shot`).
    """
    p = parameters
    p.check_ways(*(Task.parse(task).n_way for task in p.tasks))
    rows = []
    with made(p.preparations(), p.prepared, p.workers) as folder:
        start_of = partial(_start, folder)
        settings = [(v, f, r) for v in p.variants() for f in p.factors(v) for r in p.rates(v)]
        tuning = [Job(p, s, *setting, "validation", p.n_tuning_episodes) for setting in settings for s in p.seeds()]
        for job, (scores, _) in zip(tuning, results(tuning, start_of, "tuning"), strict=True):
            rows.append(row(job, "validation", scores.mean()))
        best = best_settings(pd.DataFrame(rows), Variant._fields, ("factor", "learning_rate"))
        tests = [
            Job(p, s, Variant(*v), *setting, "test", p.n_episodes) for v, setting in best.items() for s in p.seeds()
        ]
        for job, (scores, _) in zip(tests, results(tests, start_of, "test episodes"), strict=True):
            for task, of_group in enumerate(scores.reshape(-1, GROUP)):
                rows.append(row(job, "accuracy", of_group.mean(), task))
            step = p.step(job.seed, job.variant, job.factor)
            passes = 0 if isinstance(step, Pretraining) else step.total_cost()
            rows.append(row(job, "preparation_passes", passes))
    return pd.DataFrame(rows)


def ranking(frame: pd.DataFrame) -> pd.DataFrame:
    """Every variant, best first for each target and kind of task.

    ``difference`` is guided minus the variant, paired over the same episodes, with its 95 % interval from ``low`` to
    ``high``; ``guided`` is the scope and scouts that were best on the validation episodes.
    """
    rows = []
    test = frame[frame["metric"] == "accuracy"]
    settings = [*Variant._fields, "factor", "learning_rate"]
    best = frame[frame["metric"] == "validation"].groupby(settings)["value"].mean()
    for (target, n_way, n_shot), of_task in test.groupby(["target", "n_way", "n_shot"], sort=False):
        of = dict(list(of_task.groupby(["alignment", "scouts", "method"], sort=False)))
        guides = [key for key in of if key[2].startswith("guided")]
        guided = max(guides, key=lambda key: best[(target, n_way, n_shot, *key)].max())
        for key, values in of.items():
            row = {"target": target, "task": str(Task(n_way, n_shot))}
            row |= dict(zip(("alignment", "scouts", "method"), key, strict=True))
            row |= accuracy_of(values) | {"guided": called(*guided)}
            rows.append(row | guided_minus(of[guided], values, "episodes", GROUP))
    return best_first(rows, ["target", "task"])


def called(alignment: str, scouts: str, method: str) -> str:
    """A variant's name in tables: its method, with what prepared it."""
    return (
        method + (f", {alignment}" if alignment != "none" else "") + (f", {scouts} scouts" if scouts != "none" else "")
    )


def verdict(frame: pd.DataFrame) -> str:
    """In words: for each target and kind of task who is best, and who is above and below guidance."""
    lines = []
    for (target, task), of in ranking(frame).groupby(["target", "task"], sort=False):
        names = [called(*key) for key in of[["alignment", "scouts", "method"]].itertuples(index=False, name=None)]
        of = of.assign(name=names)
        mine = of[of["name"] == of["guided"]].iloc[0]
        lines.append(f"{target}, {task}: best is {of['name'].iloc[0]} with {of['accuracy'].iloc[0]:.3f}.")
        lines.append(f"  {mine['name']} has {mine['accuracy']:.3f}.")
        others = of[~of["method"].str.startswith("guided")]
        for what, group in sides(others).items():
            lines.append(f"  {what}: {'; '.join(group['name']) or 'none'}.")
    return "\n".join(lines)


def choices(results: str) -> pd.DataFrame:
    """The decision guide: what to use in each situation that the tables of 06 to 08 in the folder ``results`` know.

    One row per (situation, choice): ``as pretrained``, the best without a second preparation; ``prepared``, the best
    with one (or, in a stream, with a memory); ``guided``, the scope that validation prefers. With accuracy and its
    interval, and guided minus the choice, paired, as the rankings have them. What a table does not hold is left out.
    The best of many is a little too good, since it was picked on the test tasks themselves.
    """
    rows = []
    for name, described in (
        ("few_shot_neighbours", _few_shot),
        ("domain_shift", _domain_shift),
        ("forgetting_neighbours", _forgetting),
    ):
        if not (resolve(results) / f"{name}.csv").exists():
            continue
        for situation, of in described(read(results, name)).groupby("situation", sort=False):
            others = of[~of["is_guided"]]
            groups = {
                "as pretrained": others[~others["prepared"]],
                "prepared": others[others["prepared"]],
                "guided": of[of["name"] == of["guided"]] if "guided" in of else of[:0],
            }
            for choice, group in groups.items():
                if len(group):
                    best = group.loc[group["accuracy"].idxmax()]
                    numbers = ["accuracy", "accuracy_low", "accuracy_high", "difference", "low", "high", "text"]
                    numbers = [column for column in numbers if column in best]
                    rows.append({"situation": situation, "choice": choice, "name": best["name"]} | dict(best[numbers]))
    return pd.DataFrame(rows)


def tidy_choices(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `choices` as a tidy table: one row per situation, choice and metric."""
    long = table.rename(columns={"name": "method"}).melt(
        ["situation", "choice", "method"],
        ["accuracy", "accuracy_low", "accuracy_high", "difference", "low", "high"],
        var_name="metric",
    )
    return long.assign(seed="").dropna(subset="value")


def advice(table: pd.DataFrame) -> str:
    """The rows of `choices` in words."""
    lines = []
    for situation, of in table.groupby("situation", sort=False):
        by_choice = of.set_index("choice")
        best = of.loc[of["accuracy"].idxmax()]
        lines.append(f"{situation}: {best['name']} ({best['accuracy']:.3f}).")
        if "as pretrained" in by_choice.index and best["choice"] != "as pretrained":
            cheap = by_choice.loc["as pretrained"]
            lines.append(f"  Without a second preparation: {cheap['name']} ({cheap['accuracy']:.3f}).")
        if "guided" in by_choice.index:
            for choice, row in by_choice.drop("guided").iterrows():
                answer = "wins against" if row["low"] > 0 else "loses to" if row["high"] < 0 else "is level with"
                lines.append(f"  Guidance {answer} the best {choice}, {row['name']}: {row['text']}.")
    return "\n".join(lines)


def _few_shot(frame: pd.DataFrame) -> pd.DataFrame:
    table = few_shot_neighbours.ranking(frame)
    table = table[table["zero_point"] == "pretrained"]
    return table.assign(
        situation="similar data, " + table["task"],
        name=table["method"],
        is_guided=table["method"].isin(few_shot_neighbours.GUIDED),
        prepared=table["method"].isin(few_shot_neighbours.META),
    )


def _domain_shift(frame: pd.DataFrame) -> pd.DataFrame:
    table = ranking(frame)
    return table.assign(
        situation=table["target"].map({"as_is": "other origin, ", "inverted": "inverted, "}) + table["task"],
        name=[called(*key) for key in table[["alignment", "scouts", "method"]].itertuples(index=False, name=None)],
        is_guided=table["scouts"] != "none",
        prepared=table["alignment"] != "none",
    )


def _forgetting(frame: pd.DataFrame) -> pd.DataFrame:
    table = forgetting_neighbours.ranking(frame)
    return table.assign(
        situation="one by one, " + table["head"] + " head",
        name=table["method"],
        is_guided=table["method"].str.startswith("guided"),
        prepared=table["stored"] > 0,
    )


def _start(folder: Path, p: DomainShiftParameters, seed: int, variant: Variant, factor: float) -> Start:
    step = p.step(seed, variant, factor)
    untrained = p.step(seed, variant._replace(method="scratch"), 1.0)
    model = meta_training.network(untrained, "conv4", variant.n_way, p.heads[0])
    displacement = None
    if isinstance(step, ScoutingFrom):
        displacement = Displacement.load(folder / f"{step.key}.safetensors")
        model.load_state_dict(displacement.zero_point)
    elif isinstance(step, DomainTraining):
        model.body.load_state_dict(step.body(folder))
    return Start(model, {}, displacement)

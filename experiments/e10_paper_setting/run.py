"""The paper's own setting: a network pretrained on digits, scouts sent to a few digits each, and one example of each of
many characters that nobody has seen. What is it in the guide that helps, and which optimizer wrote it?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from experiments.data import load
from experiments.e10_paper_setting.learning import learn
from experiments.e10_paper_setting.methods import METHODS
from experiments.e10_paper_setting.parameters import TASK, CharacterVariant, PaperSettingParameters
from experiments.methods import FROZEN, NETWORK, PLAIN
from experiments.preparations.steps import made
from experiments.protocol import Job, Row, tune_and_test
from gtl_core.guide import Guide
from gtl_core.tasks import Episode, rng, sample_episode

KEY = list(CharacterVariant._fields)
SETTING = ["learning_rate", "head_rate", "step"]
THRESHOLDS = [i / 2 - 6 for i in range(13)]  # of log10 g


class CharacterSetting(NamedTuple):
    learning_rate: float  # of the body; 0 where it is not trained
    head_rate: float


class CharacterStart(NamedTuple):
    """What a job begins with: the zero point, the guide, if there is one, and how the linear probe is trained best."""

    model: nn.Sequential
    guide: Guide | None
    probe: tuple[CharacterSetting, int] | None


Choice = tuple[CharacterSetting, int]  # and the number of steps
Probes = Mapping[tuple, Choice]  # of each task, see `task_of`


task_of = attrgetter(*TASK)  # of a variant


def run(p: PaperSettingParameters) -> pd.DataFrame:
    """The whole experiment as a tidy frame.

    Columns: seed, those of `CharacterVariant`, those of `CharacterSetting`, task (set of characters), step, metric,
    value; task is empty where it is averaged over. Metrics:

    - ``validation``: mean accuracy on a network's tuning sets, for every setting, after the step that suits it best;
    - ``accuracy``: on each test set, with the setting and the step that are best on the tuning sets;
    - ``accuracy_curve``, ``loss_curve``: of each network, mean over its test sets, after every step with that setting;
      plain fine-tuning with one rate for body and head also with the setting that is best for guided training;
    - ``share_above``: of the guides of the first network, the share of values above 10 to the power of ``step``.
    """
    p.check()
    variants = p.variants()
    probes = [v for v in variants if v.method == FROZEN.name]
    with made(p.preparations(), p.prepared, p.workers) as folder:
        tuning, tested = _tune_and_test(p, folder, probes, {})
        at = {task_of(v): choice for v, choice in best(pd.DataFrame(tuning)).items()}
        more, others = _tune_and_test(p, folder, [v for v in variants if v not in probes], at)
        shares = _shares(p, folder)
    record = pd.DataFrame([*tuning, *more])
    chosen, rows = best(record), []
    for job, curves in [*tested, *others]:
        setting, step = chosen[job.variant]
        if job.setting == setting:
            scores = curves[:, p.steps.index(step), 0]
            rows += [job.row("accuracy", score, task=task, step=step) for task, score in enumerate(scores)]
        for metric, curve in zip(("accuracy_curve", "loss_curve"), curves.mean(0).T, strict=True):
            rows += [job.row(metric, value, task="", step=i) for i, value in zip(p.steps, curve, strict=True)]
    return pd.concat([_at_best_step(record), pd.DataFrame([*rows, *shares])], ignore_index=True)


def _tune_and_test(
    p: PaperSettingParameters, folder: Path, variants: Sequence[CharacterVariant], probes: Probes
) -> tuple[list[Row], list[tuple[Job, np.ndarray]]]:
    """As `tune_and_test`; without ``probes``, these are the linear probes."""
    return tune_and_test(
        p,
        variants,
        settings=partial(_settings, p, probes),
        start=_starts(p, folder, probes),
        measure=learn_characters,
        record=_validation,
        choose=_to_test,
    )


def _settings(p: PaperSettingParameters, probes: Probes, v: CharacterVariant) -> list[CharacterSetting]:
    """One rate for both, or the body's with the head's from the linear probe, which every method then contains."""
    if not METHODS[v.method].has_rate:
        return [CharacterSetting(0.0, 0.0)]
    if not probes:
        return [CharacterSetting(0.0, rate) for rate in p.rates(v)]
    of_head = probes[task_of(v)][0].head_rate
    return [CharacterSetting(rate, rate if v.rates == "one" else of_head) for rate in p.rates(v)]


def _starts(p: PaperSettingParameters, folder: Path, probes: Probes) -> Callable[[Job], CharacterStart]:
    @cache  # read once for all settings
    def start(seed: int, v: CharacterVariant) -> CharacterStart:
        scouting = p.scouting(seed, v)
        guide = METHODS[v.method].guide(scouting.displacement(folder)) if scouting else None
        return CharacterStart(p.pretraining(seed, v).model(folder, v.n_way, v.head), guide, probes.get(task_of(v)))

    return lambda job: start(job.seed, job.variant)


def sets_of_characters(job: Job) -> list[Episode]:
    """The same for every method and setting: differences are paired. Those for tuning are background characters."""
    p, dataset = job.parameters, load(job.parameters.characters)
    is_test = job.purpose == "test"
    classes = (dataset.evaluation == is_test).nonzero().flatten()
    draws = [rng(job.seed, job.purpose, i) for i in range(p.n_sets if is_test else p.n_tuning_sets)]
    return [sample_episode(dataset.examples, classes, job.variant.n_way, 1, p.n_query, draw) for draw in draws]


def learn_characters(job: Job, start: CharacterStart) -> np.ndarray:
    """Accuracy and loss on each set after every step, [sets, steps, 2]."""
    method, optimizer, steps = METHODS[job.variant.method], job.variant.optimizer, job.parameters.steps
    curves = []
    for episode in sets_of_characters(job):
        model = copy.deepcopy(start.model)
        if method.from_probe:
            setting, n_steps = start.probe
            learn(model, METHODS[FROZEN.name], None, optimizer, setting, episode, [n_steps])
        curves.append(learn(model, method, start.guide, optimizer, job.setting, episode, steps))
    return torch.stack(curves).numpy()


def _validation(job: Job, curves: np.ndarray) -> list[Row]:
    steps = zip(job.parameters.steps, curves[..., 0].mean(0), strict=True)
    return [job.row("validation", value, task="", step=step) for step, value in steps]


def best(frame: pd.DataFrame) -> dict[CharacterVariant, Choice]:
    """The setting and the number of steps of each variant with the highest mean ``validation``; of equals the first."""
    tuning = frame[frame["metric"] == "validation"]
    means = tuning.groupby([*KEY, *SETTING], sort=False)["value"].mean()
    found = {}
    for key, scores in means.groupby(level=KEY, sort=False):
        *setting, step = scores.idxmax()[len(KEY) :]
        found[CharacterVariant(*key)] = (CharacterSetting(*setting), int(step))
    return found


def _at_best_step(tuning: pd.DataFrame) -> pd.DataFrame:
    """Of each variant and setting the rows of the step with the highest mean."""
    means = tuning.groupby([*KEY, *SETTING], sort=False)["value"].mean()
    chosen = means.loc[means.groupby(level=[*KEY, *SETTING[:-1]], sort=False).idxmax()].index.to_frame(index=False)
    return tuning.merge(chosen)


def _to_test(tuning: pd.DataFrame) -> dict[CharacterVariant, list[CharacterSetting]]:
    chosen = {v: [setting] for v, (setting, _) in best(tuning).items()}
    guided = {task_of(v): s[0] for v, s in reversed(chosen.items()) if (v.method, v.rates) == (NETWORK.name, "one")}
    for v, settings in chosen.items():
        if (v.method, v.rates) == (PLAIN.name, "one") and guided.get(task_of(v), settings[0]) != settings[0]:
            settings.append(guided[task_of(v)])
    return chosen


def _shares(p: PaperSettingParameters, folder: Path) -> list[Row]:
    rows = []
    for v in p.variants():
        if METHODS[v.method].guide and v.rates == "one":
            guide = METHODS[v.method].guide(p.scouting(p.seeds()[0], v).displacement(folder))
            values = torch.cat([g.flatten() for g in guide.values()])
            job = Job(p, p.seeds()[0], v, CharacterSetting(0.0, 0.0), "test")
            above = [(at, (values > 10**at).float().mean().item()) for at in THRESHOLDS]
            rows += [job.row("share_above", share, task="", step=at) for at, share in above]
    return rows

"""The guide laboratory: what guides look like and what shaping does to them; and the search for a better one, on tasks
after a domain shift."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from experiments.baselines.continual import follow
from experiments.baselines.few_shot import groups, side_by_side
from experiments.e04_guides.anatomy import anatomy, moves
from experiments.e04_guides.candidates import BAR, BY_SCOUTS, CANDIDATES, METHODS, RIVALS, for_ways, scout_from
from experiments.e04_guides.parameters import TUNED_ON, GuidesParameters, ShiftedTask, StartingPoint
from experiments.episodes import SIDE_BY_SIDE, accuracy_rows
from experiments.images import start_from
from experiments.optimizers import OptimizerName
from experiments.parameters import Head
from experiments.preparations.pretraining import Body
from experiments.preparations.steps import made
from experiments.protocol import Job, LearningRate, Row, rates_to_test, tune_and_test
from experiments.statistics import at_chosen_rates, by_seed_and_task, columns_of, mean_interval
from experiments.workers import parallel
from gtl_core.guide import Guide
from gtl_core.tasks import Episode, arrivals_of, labelled, rng
from gtl_core.training import correct

CONDITION = ["arena", "head", "optimizer"]
KEY = ["tuned_on", *CONDITION]
QUESTIONS = (
    ("root", "shuffled", "Does it matter which parameter has which g"),
    ("distance", "root", "Do several guides by distance add to one"),
    ("improved", "root", "Does it help to weigh scouts by what they improved"),
    ("head_free", "root", "Does it help to free the head"),
    ("head_free", "uniform", "Does the map of the body add to its mean"),
    ("adam_scouts", "adam_uniform", "And where Adam trained the scouts"),
    ("adam_scouts", "head_free", "Do scouts by Adam make a better guide"),
)


class GuideVariant(NamedTuple):
    """A method in one condition; the columns of the results that tell one from another."""

    arena: str
    head: Head
    optimizer: OptimizerName
    method: str

    @property
    def task(self) -> ShiftedTask:
        return ShiftedTask.parse(self.arena)

    def starting_point(self, seed: int) -> StartingPoint:
        return StartingPoint(seed, self.task.shift, self.head)


def run(p: GuidesParameters) -> pd.DataFrame:
    """The whole laboratory as a tidy frame.

    Columns: seed, those of `GuideVariant`, learning_rate, task, part, at, metric, value. Of the arenas (`ShiftedTask`):

    - ``validation_first``, ``validation_last``: mean accuracy over the tuning tasks after a stream's first examples and
      at its end, for every learning rate; the same for episodes, whose first examples are all;
    - ``accuracy``: at the end, of test episodes (task; see `accuracy_rows`) or of each stream, for every rate that
      `choose_rates` chooses.

    Rows without an arena describe the first network's guides and the optimizers; see `anatomy` and `moves`.
    """
    p.check_ways(p.scout_n_way, *(condition.task.n_way for condition in p.conditions()))
    points = p.starting_points()
    with made(p.preparations(), p.prepared, p.workers) as folder:
        bodies = [(point, p.pretraining(point).body(folder)) for point in points]
    found = parallel(partial(scout_from, p), bodies, p.workers, "scouting", p.dask_scheduler)
    scouted = dict(zip(points, found, strict=True))
    starts = {(point, m.name): m.start(left) for point, left in scouted.items() for m in METHODS.values()}
    rows, tests = tune_and_test(
        p,
        variants=[GuideVariant(str(c.task), c.head, c.optimizer, m) for c in p.conditions() for m in METHODS],
        settings=lambda variant: p.rates(variant.optimizer),
        start=lambda job: starts[job.variant.starting_point(job.seed), job.variant.method],
        measure=accuracies_at_both_ends,
        record=_validation,
        choose=_rates_to_test,
    )
    for job, scores in tests:
        rows += accuracy_rows(job, scores[:, -1])
    model = p.zero_point(points[0], p.scout_n_way, scouted[points[0]].body)
    (task,) = p.episodes(points[0], "scouting", "scout", 1, p.scout_n_way, p.scout_n_shot, 0)
    about = [*anatomy(scouted[points[0]]), *moves(model, *labelled(task.support))]
    return pd.DataFrame([*rows, *({"seed": points[0].seed} | row for row in about)])


def _validation(job: Job, scores: np.ndarray) -> list[Row]:
    means = zip(("validation_first", "validation_last"), scores.mean(0), strict=True)
    return [job.row(metric, value, task="") for metric, value in means]


def _rates_to_test(tuning: pd.DataFrame) -> dict[tuple, list[LearningRate]]:
    chosen = {}
    for arena, of_arena in tuning.groupby("arena", sort=False):
        chosen |= rates_to_test(of_arena, ShiftedTask.parse(arena).tuned_on)
    return chosen


def accuracies_at_both_ends(job: Job, start: tuple[Body, Guide | None]) -> np.ndarray:
    """On each task after its first examples, which are all that an episode has, and at its end: [tasks, 2]."""
    p, task, (body, guide) = job.parameters, job.variant.task, start
    point, method = job.variant.starting_point(job.seed), METHODS[job.variant.method]
    model = p.zero_point(point, task.n_way, body)
    guide = for_ways(guide, task.n_way) if guide else None
    rate, scores = job.setting.learning_rate, []
    for some in groups(_tasks(job), max(1, SIDE_BY_SIDE // (task.n_way * max(1, task.n_shot)))):
        view, copies, optimizer = start_from(model, guide, rate, len(some), method.head_only, job.variant.optimizer)
        inputs, labels = side_by_side([one.support for one in some])
        inputs, first_epochs = view(inputs), p.epochs
        arrivals = [(inputs, labels)]
        if not task.n_shot:
            arrivals = list(arrivals_of(inputs.unflatten(0, (task.n_way, -1)), "single", rng(job.seed)))
            first_epochs = p.first_epochs
        queries, answers = side_by_side([one.query for one in some])
        queries = view(queries)
        learned = follow(copies, optimizer, arrivals, first_epochs=first_epochs, epochs=p.stream_epochs)
        at_ends = [correct(copies, queries, answers).mean(0) for i in learned if i in (0, len(arrivals) - 1)]
        scores.append(torch.stack([at_ends[0], at_ends[-1]], 1))
    return torch.cat(scores).numpy()


def _tasks(job: Job) -> list[Episode]:
    """All that will arrive in a stream is support."""
    p, task, purpose = job.parameters, job.variant.task, job.purpose
    n_episodes, n_streams = p.n_episodes, p.n_streams
    if purpose == "validation":
        n_episodes, n_streams = p.n_tuning_episodes, p.n_tuning_streams
    how = (purpose, n_episodes, task.n_way, task.n_shot)
    if not task.n_shot:
        how = (f"{purpose} stream", n_streams, task.n_way, 1 + p.n_rounds)
    return p.episodes(job.variant.starting_point(job.seed), purpose, *how, p.n_query)


def _at_best_rates(frame: pd.DataFrame) -> Iterator[tuple[dict[str, str], dict[str, pd.DataFrame]]]:
    """For every way to choose rates and every condition: both as columns, and each method's test rows at its rate."""
    of_arenas = frame[frame["arena"].notna()].drop(columns=["part", "at"])
    for tuned_on in TUNED_ON:
        for condition, rows in at_chosen_rates(of_arenas, tuned_on).groupby(CONDITION, sort=False):
            key = dict(zip(KEY, (tuned_on, *condition), strict=True))
            if tuned_on in ShiftedTask.parse(key["arena"]).tuned_on:
                yield key, dict(list(rows.groupby("method", sort=False)))


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method minus every rival, and minus what the `QUESTIONS` ask about, in every condition, each at its own
    best rate.

    tuned_on: see `choose_rates`; episodes know only ``first``. One row per (tuned_on, arena, head, optimizer, method,
    rival) with the columns of `difference`, for the methods that the table has: it may be older than some.
    """
    rows, others = [], list(dict.fromkeys([*RIVALS, *(other for _, other, _ in QUESTIONS)]))
    for key, test in _at_best_rates(frame):
        tasks = "episodes" if ShiftedTask.parse(key["arena"]).n_shot else "streams"
        values = {method: by_seed_and_task(found) for method, found in test.items()}  # once, not for every pair
        for method, rival in product([*CANDIDATES, *RIVALS], others):
            if method != rival and {method, rival} <= {*test}:
                estimate = mean_interval(values[method] - values[rival])
                compared = columns_of(estimate, test[method]["task"], tasks)
                rows.append(key | {"method": method, "rival": rival} | compared)
    return pd.DataFrame(rows)


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy of every method at its own best rate: one row per key and method.

    ``edge``: whether the rate is the lowest or highest that was tried, so that the method may have wanted another.
    """
    table = pd.DataFrame(
        key | {"method": method, "learning_rate": rows["learning_rate"].iloc[0], "accuracy": rows["value"].mean()}
        for key, test in _at_best_rates(frame)
        for method, rows in test.items()
    )
    tried = frame.groupby("optimizer")["learning_rate"].agg(["min", "max"])
    ends = [table["optimizer"].map(tried[end]) for end in tried]
    return table.assign(edge=(table["learning_rate"] == ends[0]) | (table["learning_rate"] == ends[1]))


def best_on_validation(frame: pd.DataFrame) -> dict[tuple[str, ...], str]:
    """(tuned_on, arena, head, optimizer) -> the scouts' guide with the highest validation accuracy at its best rate."""
    chosen = {}
    for tuned_on in TUNED_ON:
        tuning = frame[frame["metric"] == ("validation_last" if tuned_on == "last" else "validation_first")]
        for condition, rows in tuning.groupby(CONDITION, sort=False):
            if tuned_on in ShiftedTask.parse(condition[0]).tuned_on:
                best = rows.groupby(["method", "learning_rate"])["value"].mean().groupby(level="method").max()
                chosen[(tuned_on, *condition)] = best[best.index.isin(BY_SCOUTS)].idxmax()
    return chosen


def conclusions(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """For each condition the scouts' guide that is best *on validation tasks*, and the learned one, against the rivals.

    table: the `differences`. Choosing among candidates on the test tasks would flatter the winner. One row per
    (tuned_on, arena, head, optimizer, kind); ``answer`` says which of frozen and plain it is above or below; ``passes``
    if it is above both; ``beaten`` if it is below the zero point trained further on the scouts' data.
    """
    by_pair = table.set_index([*KEY, "method", "rival"]).sort_index()
    rows = []
    for key, best in best_on_validation(frame).items():
        for kind, guide in (("scouted", best), ("learned", "learned")):
            against = by_pair.loc[(*key, guide)].loc[RIVALS]
            sides = {word: against.index[against["side"] == word].tolist() for word in ("above", "below")}
            bar = {word: " and ".join(rival for rival in there if rival in BAR) for word, there in sides.items()}
            answer = [f"{word} {rivals}" for word, rivals in bar.items() if rivals]
            row = dict(zip(KEY, key, strict=True)) | {"kind": kind, "guide": guide}
            row |= {f"minus {rival}": text for rival, text in against["text"].items()}
            row |= {"passes": {*BAR} <= {*sides["above"]}, "beaten": not {*sides["below"]} <= {*BAR}}
            rows.append(row | {"answer": ", ".join(answer) or "undecided"})
    return pd.DataFrame(rows)


def above_both(table: pd.DataFrame) -> pd.Series:
    """For every condition and candidate of the `differences`, whether it is above frozen and above plain."""
    against_bar = table[table["rival"].isin(BAR) & table["method"].isin(CANDIDATES)]
    return against_bar.groupby([*KEY, "method"], sort=False)["side"].agg(lambda sides: (sides == "above").all())


def verdict(frame: pd.DataFrame, table: pd.DataFrame) -> str:
    """What this run says, in sentences. table: the `differences`."""
    lines, found = [], conclusions(frame, table)
    for kind, what in (("scouted", "The scouts' guide, chosen on validation tasks,"), ("learned", "The learned guide")):
        rows = found[found["kind"] == kind]
        passed = f"passes the bar in {rows['passes'].sum()} of {len(rows)} arenas (above frozen and plain at once)"
        beaten = f"training further on the scouts' classes, without a guide, beats it in {rows['beaten'].sum()}"
        lines.append(f"{what} {passed}; {beaten}.")
    passes = above_both(table)
    pairs = f"Of all {len(passes)} pairs of candidate and arena, {passes.sum()}"
    lines.append(f"{pairs} pass in hindsight, on the test tasks{':' if passes.any() else '.'}")
    lines += [f"  {key[-1]} ({key[1]}, {key[2]} head, {key[3]}, {key[0]})" for key in passes.index[passes]]
    for one, other, what in QUESTIONS:
        pairs = table[(table["method"] == one) & (table["rival"] == other)]
        if pairs.empty:
            continue
        counts = ", ".join(f"{word} in {sum(pairs['side'] == word)}" for word in ("above", "below", "undecided"))
        mean = 100 * pairs["mean"].mean()
        lines.append(f"{what}? {one} - {other}: {counts} of {len(pairs)} arenas, {mean:+.1f} points on average.")
    moved = frame[frame["metric"] == "moved"].set_index(["method", "part", "at"])["value"]
    gradient, step = (100 * moved["Adam", on, 0.01] / moved["Adam", on, 1.0] for on in ("gradient", "step"))
    guided = f"{gradient:.0f} % of its way if the gradient is guided, {step:.1f} % if the step is."
    return "\n".join([*lines, f"With g = 0.01 everywhere, Adam still makes {guided}"])

"""The guide laboratory: what guides look like and what shaping does to them; candidates for a better one in arenas."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from experiments.e01_one_shot.run import SIDE_BY_SIDE
from experiments.e03_forgetting.run import arrivals_of, follow
from experiments.e04_guides.candidates import (
    CANDIDATES,
    SHIFTS,
    Scouted,
    Station,
    episodes,
    for_ways,
    root,
    scout_station,
)
from experiments.episodes import GROUP, Episodes, Task
from experiments.images import N_DRAWERS, ImageParameters, start_at
from experiments.parameters import Count, Head, distinct
from experiments.preparations.pretraining import Body, Pretraining, zero_point
from experiments.preparations.steps import made
from experiments.statistics import at_chosen_rates, choose_rates, paired
from experiments.workers import parallel
from gtl_core._engine.stacked import stacked_cross_entropy
from gtl_core.guide import Guide
from gtl_core.guided import Guided
from gtl_core.shaping import TEMPERATURES, density, histogram, sparse, temperature
from gtl_core.tasks import labelled, rng
from gtl_core.training import correct, fit

RIVALS = ("frozen", "plain", "further_frozen", "further_plain")
BAR = ("frozen", "plain")
TUNED_ON = ("first", "careful", "last")
CONDITION = ("arena", "head")
EDGES = [i / 4 - 6 for i in range(25)]  # of histograms of log10 g
GRID = [i / 200 for i in range(201)]  # of temperatures' curves
THRESHOLDS = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5)
GS = (0.0, 0.001, 0.01, 0.1, 1.0)  # the same g for every parameter
N_STEPS = 20
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.01),
    "momentum": partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=1e-3),
    "AdamW": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
}


class Arena(NamedTuple):
    """A domain shift between pretraining and everything after it, and the kind of task."""

    shift: str
    n_way: int
    n_shot: int  # 0: a stream of single examples

    @classmethod
    def parse(cls, text: str) -> Arena:
        """``"rotated 5-way 1-shot"`` or ``"none 5-way stream"``; ValueError if it is not of this form."""
        shift, _, task = text.partition(" ")
        if shift not in SHIFTS:
            raise ValueError(f"{text!r}: must begin with one of {', '.join(SHIFTS)}")
        n_way, n_shot = Task.parse(task.replace("stream", "1-shot"))
        return cls(shift, n_way, 0 if task.endswith("stream") else n_shot)

    def __str__(self) -> str:
        return f"{self.shift} {self.n_way}-way {f'{self.n_shot}-shot' if self.n_shot else 'stream'}"

    @property
    def tuned_on(self) -> tuple[str, ...]:
        """Ways to choose a learning rate, see `stats.choose_rates`; an episode's first examples are all that it has."""
        return ("first",) if self.n_shot else TUNED_ON


class GuidesParameters(ImageParameters):
    """See the notebook's parameter cell for what each one means."""

    arenas: tuple[str, ...] = Field(min_length=1)
    n_episodes: Episodes
    n_tuning_episodes: Count
    n_streams: Count
    n_tuning_streams: Count
    n_rounds: Count
    n_query: Count
    epochs: Count
    first_epochs: Count
    stream_epochs: Count
    scout_n_way: Annotated[int, Field(ge=2)]
    scout_n_query: Count
    learned_tasks: Count

    @field_validator("arenas")
    @classmethod
    def _arenas(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(tuple(str(Arena.parse(value)) for value in values))

    @model_validator(mode="after")
    def _possible(self) -> GuidesParameters:
        for arena in map(Arena.parse, self.arenas):
            if arena.shift == self.dataset:
                raise ValueError(f"arenas: '{arena}' is no shift where dataset = {self.dataset!r}")
            if (arena.n_shot or 1 + self.n_rounds) + self.n_query > N_DRAWERS:
                raise ValueError(f"n_query = {self.n_query}: too many for '{arena}' with {N_DRAWERS} drawers")
        if self.scout_n_shot + self.scout_n_query > N_DRAWERS:
            raise ValueError(f"scout_n_query = {self.scout_n_query}: at most {N_DRAWERS - self.scout_n_shot}")
        return self

    def conditions(self) -> list[tuple[Arena, Head]]:
        """The first arena with every head, the others with the first head."""
        first, *others = map(Arena.parse, self.arenas)
        return [(first, head) for head in self.heads] + [(arena, self.heads[0]) for arena in others]

    def stations(self) -> list[Station]:
        conditions = ((arena.shift, head) for arena, head in self.conditions())
        return list(dict.fromkeys(Station(seed, *c) for c, seed in product(conditions, self.seeds())))

    def pretraining(self, station: Station) -> Pretraining:
        dataset = "glyphs" if station.shift == "glyphs" else self.dataset
        return Pretraining(dataset=dataset, seed=station.seed, channels=self.channels, epochs=self.pretraining_epochs)

    def preparations(self) -> list[Pretraining]:
        return list(dict.fromkeys(map(self.pretraining, self.stations())))


@dataclass(frozen=True)
class Job:
    """The tasks of one method in one arena under one learning rate; small enough to send to a worker."""

    parameters: GuidesParameters
    seed: int
    arena: Arena
    head: Head
    method: str
    learning_rate: float
    purpose: Literal["validation", "test"]

    @property
    def station(self) -> Station:
        return Station(self.seed, self.arena.shift, self.head)


def run(parameters: GuidesParameters) -> pd.DataFrame:
    """The whole laboratory as a tidy frame.

    Columns: seed, arena, head, method, learning_rate, task, part, at, metric, value. Of the arenas:

    - ``validation_first``, ``validation_last``: mean accuracy over the tuning tasks after a stream's first examples and
      at its end, for every learning rate; the same for episodes, whose first examples are all;
    - ``accuracy``: at the end, over each group of `GROUP` test episodes or of each stream (task), for every rate that
      `choose_rates` chooses.

    Rows without an arena describe the first network's guides and the optimizers; see `anatomy` and `moves`.
    """
    p = parameters
    p.check_ways(p.scout_n_way, *(arena.n_way for arena, _ in p.conditions()))
    stations, bodies = p.stations(), _bodies(p)
    jobs = [(station, bodies[p.pretraining(station)]) for station in stations]
    done = parallel(partial(scout_station, p), jobs, p.workers, "scouting", p.dask_scheduler)
    scouted = dict(zip(stations, done, strict=True))
    guides = {station: {name: make(s) for name, make in CANDIDATES.items()} for station, s in scouted.items()}

    def scores(jobs: Sequence[Job], description: str) -> list[np.ndarray]:
        starts = []
        for job in jobs:
            body = bodies[p.pretraining(job.station)]
            if job.method.startswith("further"):
                body = scouted[job.station].further
            starts.append((job, body, guides[job.station].get(job.method)))
        return parallel(_run_job, starts, p.workers, description, p.dask_scheduler)

    methods = (*RIVALS, *CANDIDATES)
    tuning = [
        Job(p, seed, arena, head, method, rate, "validation")
        for (arena, head), method, rate, seed in product(p.conditions(), methods, p.learning_rates, p.seeds())
    ]
    rows = []
    for job, score in zip(tuning, scores(tuning, "tuning"), strict=True):
        rows += [_row(job, f"validation_{when}", a) for when, a in zip(("first", "last"), score.mean(0), strict=True)]
    chosen = {tuned_on: choose_rates(pd.DataFrame(rows), tuned_on) for tuned_on in TUNED_ON}
    tests = [
        Job(p, seed, arena, head, method, rate, "test")
        for (arena, head), method, seed in product(p.conditions(), methods, p.seeds())
        for rate in sorted({chosen[tuned_on][str(arena), head, method] for tuned_on in arena.tuned_on})
    ]
    for job, score in zip(tests, scores(tests, "test"), strict=True):
        last = score[:, -1].reshape(-1, GROUP).mean(1) if job.arena.n_shot else score[:, -1]
        rows += [_row(job, "accuracy", a, task=task) for task, a in enumerate(last)]
    first = stations[0]
    model = zero_point(p.pretraining(first), p.scout_n_way, first.head, bodies[p.pretraining(first)])
    task = episodes(p, first, "scouting", "scout", 1, p.scout_n_way, p.scout_n_shot, 0)[0]
    about = [*anatomy(scouted[first]), *moves(model, *labelled(task.support))]
    return pd.DataFrame([*rows, *({"seed": first.seed} | row for row in about)])


def anatomy(scouted: Scouted) -> Iterator[dict[str, object]]:
    """What a guide looks like (network scope, square root), and what shaping makes of it, as rows.

    - ``temperature``: the map itself, g = ``at``; ``below``: share of the guide's values below ``at`` under it;
    - ``bytes``, ``density``: of the sparse guide with threshold ``at`` in a file;
    - ``histogram``: share of the values of a tensor (part) whose log10 is in the bin that begins at ``at``;
    - ``filter``, ``filter_guide``: the first layer's weights and their guide, pixel by pixel (``at``);
    - ``by_time``: movement per parameter of a tensor, by that of the network, after ``at`` steps;
    - ``by_distance``: the same for bin ``at``; ``edge``: its lower edge; ``points``: its share of the points;
    - ``likeness``: correlation of the guides (square root) of bin ``at`` and bin ``part``.
    """
    guide = root(scouted.displacement)
    grid = Guide({"g": torch.tensor(GRID)})
    values = torch.cat([g.flatten() for g in guide.values()])
    for name in TEMPERATURES:
        shaped = temperature(Guide({"all": values}), name)["all"].sort()[0]
        below = torch.searchsorted(shaped, grid["g"], right=True) / len(values)
        for at, g, share in zip(GRID, temperature(grid, name)["g"].tolist(), below.tolist(), strict=True):
            yield {"method": name, "metric": "temperature", "at": at, "value": g}
            yield {"method": name, "metric": "below", "at": at, "value": share}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guide"
        for threshold in THRESHOLDS:
            left = sparse(guide, threshold)
            left.save(path, sparse=threshold > 0)
            stored = {"bytes": path.stat().st_size, "density": density(left)}
            yield from ({"method": "root", "metric": m, "at": threshold, "value": v} for m, v in stored.items())
    logs = Guide({name: (g.clamp(min=1e-6).log10() + 6) / 6 for name, g in guide.items()})
    for name, shares in histogram(logs, [(edge + 6) / 6 for edge in EDGES]).items():
        for at, share in zip(EDGES, shares.tolist(), strict=False):
            yield {"method": "root", "metric": "histogram", "part": name, "at": at, "value": share}
    first = next(iter(guide))
    for metric, tensor in (("filter", scouted.displacement.zero_point[first]), ("filter_guide", guide[first])):
        for at, value in enumerate(tensor.flatten().tolist()):
            yield {"method": "root", "metric": metric, "part": first, "at": at, "value": value}
    bins = [b for b in scouted.binned.bins if b.count]
    for metric, when in (("by_time", scouted.by_time), ("by_distance", dict(enumerate(bins)))):
        for at, displacement in when.items():
            sizes = displacement.mean_abs
            mean = torch.cat([size.flatten() for size in sizes.values()]).mean()
            for name, size in sizes.items():
                yield {
                    "method": "scouts",
                    "metric": metric,
                    "part": name,
                    "at": at,
                    "value": (size.mean() / mean).item(),
                }
    edges = [0.0, *scouted.binned.edges]
    total = sum(b.count for b in bins)
    flat = [torch.cat([g.flatten() for g in root(b).values()]) for b in bins]
    for i, b in enumerate(bins):
        yield {"method": "scouts", "metric": "edge", "at": i, "value": edges[scouted.binned.bins.index(b)]}
        yield {"method": "scouts", "metric": "points", "at": i, "value": b.count / total}
        for j, alike in enumerate(torch.corrcoef(torch.stack(flat))[i].tolist() if len(bins) > 1 else [1.0]):
            yield {"method": "scouts", "metric": "likeness", "part": str(j), "at": i, "value": alike}


def moves(model: nn.Module, inputs: Tensor, labels: Tensor) -> Iterator[dict[str, object]]:
    """How far parameters move in `N_STEPS` steps with the same g everywhere: one row per optimizer (method), g (at) and
    what the guide is applied to (part). The value is the mean |displacement| over all parameters."""
    for (name, optimizer), on, g in product(OPTIMIZERS.items(), ("step", "gradient"), GS):
        moved = copy.deepcopy(model)
        uniform = Guide({n: torch.full_like(p, g) for n, p in model.named_parameters()})
        fit(moved, inputs, labels, Guided(optimizer(moved.parameters()), moved, uniform, on=on), epochs=N_STEPS)
        with torch.no_grad():
            far = torch.cat(
                [(q - p).abs().flatten() for p, q in zip(model.parameters(), moved.parameters(), strict=True)]
            )
        yield {"method": name, "metric": "moved", "part": on, "at": g, "value": far.mean().item()}


def arenas(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the arenas, with the columns that they use."""
    return frame[frame["arena"].notna()].drop(columns=["part", "at"])


def differences(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method minus every rival (and minus ``root`` and ``shuffled``) in every arena, each at its own best rate.

    tuned_on: see `stats.choose_rates`; episodes know only ``first``. One row per (tuned_on, arena, head, method, rival)
    with the mean paired difference in accuracy, its 95 % interval from ``low`` to ``high``, ``n``, and as ``text``.
    """
    rows = []
    for tuned_on in TUNED_ON:
        test = at_chosen_rates(arenas(frame), tuned_on)
        for condition, of in test.groupby(list(CONDITION), sort=False):
            arena = Arena.parse(condition[0])
            if tuned_on not in arena.tuned_on:
                continue
            by_method = dict(list(of.groupby("method")))
            for method, rival in product((*CANDIDATES, *RIVALS), (*RIVALS, "root", "shuffled")):
                if method == rival:
                    continue
                e = paired(by_method[method], by_method[rival])
                n = f"{e.n[0]} seeds x " + (f"{e.n[1] * GROUP} episodes" if arena.n_shot else f"{e.n[1]} streams")
                key = {"tuned_on": tuned_on} | dict(zip(CONDITION, condition, strict=True))
                key |= {"method": method, "rival": rival}
                rows.append(key | {"mean": e.mean, "low": e.low, "high": e.high, "n": n, "text": e.text})
    return pd.DataFrame(rows)


def accuracies(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy of every method at its own best rate: one row per (tuned_on, arena, head, method).

    ``edge``: whether the rate is the lowest or highest that was tried, so that the method may have wanted another.
    """
    rates = sorted(frame["learning_rate"].dropna().unique())
    rows = []
    for tuned_on in TUNED_ON:
        test = at_chosen_rates(arenas(frame), tuned_on)
        for (arena, head, method), of in test.groupby([*CONDITION, "method"], sort=False):
            if tuned_on in Arena.parse(arena).tuned_on:
                rate = of["learning_rate"].iloc[0]
                key = {"tuned_on": tuned_on, "arena": arena, "head": head, "method": method}
                accuracy = of["value"].mean()
                rows.append(key | {"accuracy": accuracy, "learning_rate": rate, "edge": rate in (rates[0], rates[-1])})
    return pd.DataFrame(rows)


def conclusions(frame: pd.DataFrame) -> pd.DataFrame:
    """For each arena the scouted guide that is best *on validation tasks*, and the learned one, against the rivals.

    Choosing among candidates on the test tasks would flatter the winner. One row per (tuned_on, arena, head, kind);
    ``answer`` says which of frozen and plain it is above or below, meaning that the 95 % interval excludes 0;
    ``passes`` if it is above both; ``beaten`` if it is below the zero point trained further on the scouts' data.
    """
    return _conclusions(frame, differences(frame))


def _conclusions(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    table = table.set_index(["tuned_on", *CONDITION, "method", "rival"]).sort_index()
    rows = []
    for key, method in best_on_validation(frame).items():
        for kind, name in (("scouted", method), ("learned", "learned")):
            against = {rival: table.loc[(*key, name, rival)] for rival in RIVALS}
            row = dict(zip(("tuned_on", *CONDITION), key, strict=True)) | {"kind": kind, "guide": name}
            row |= {f"minus {rival}": e["text"] for rival, e in against.items()}
            sides = {rival: side(e["low"], e["high"]) for rival, e in against.items()}
            words = {word: [rival for rival in BAR if sides[rival] == word] for word in ("above", "below")}
            answer = ", ".join(f"{word} {' and '.join(rivals)}" for word, rivals in words.items() if rivals)
            further = any(sides[rival] == "below" for rival in RIVALS if rival not in BAR)
            rows.append(row | {"passes": len(words["above"]) == 2, "beaten": further, "answer": answer or "undecided"})
    return pd.DataFrame(rows)


def side(low: float, high: float) -> str:
    """On which side of 0 an interval lies."""
    return "above" if low > 0 else "below" if high < 0 else "undecided"


def verdict(frame: pd.DataFrame) -> str:
    """What this run says, in sentences."""
    moved = frame[frame["metric"] == "moved"].set_index(["method", "part", "at"])["value"]
    shares = {on: 100 * moved["Adam", on, 0.01] / moved["Adam", on, 1.0] for on in ("gradient", "step")}
    lines = [
        f"With g = 0.01 everywhere, Adam still makes {shares['gradient']:.0f} % of its way if the gradient is guided, "
        f"{shares['step']:.1f} % if the step is."
    ]
    table = differences(frame)
    found = _conclusions(frame, table)
    for kind, what in (("scouted", "the scouts' guide, chosen on validation tasks,"), ("learned", "the learned guide")):
        of = found[found["kind"] == kind]
        passed = f"passes the bar in {of['passes'].sum()} of {len(of)} arenas (above frozen and plain at once)"
        beaten = f"training further on the scouts' classes, without a guide, beats it in {of['beaten'].sum()}"
        lines.append(f"{what} {passed}; {beaten}:")
        lines += [f"  {_where(row):58} {row.guide:15} {row.answer}" for row in of.itertuples()]
    key = ["tuned_on", *CONDITION, "method"]
    lows = table[table["rival"].isin(BAR) & table["method"].isin(CANDIDATES)].groupby(key, sort=False)["low"].min()
    passing = [f"{m} ({arena}, {head} head, {t})" for (t, arena, head, m), low in lows.items() if low > 0]
    lines.append(
        f"Of all {len(lows)} pairs of candidate and arena, {len(passing)} pass in hindsight, on the test tasks:"
    )
    lines += [f"  {pair}" for pair in passing]
    for one, other, what in (
        ("root", "shuffled", "Does it matter which parameter has which g"),
        ("distance", "root", "Do several guides by distance add to one"),
        ("improved", "root", "Does it help to weigh scouts by what they improved"),
        ("head_free", "root", "Does it help to free the head"),
    ):
        pairs = table[(table["method"] == one) & (table["rival"] == other)]
        sides = [side(row.low, row.high) for row in pairs.itertuples()]
        counts = ", ".join(f"{word} in {sides.count(word)}" for word in ("above", "below", "undecided"))
        mean = 100 * pairs["mean"].mean()
        lines.append(f"{what}? {one} - {other}: {counts} of {len(sides)} arenas, {mean:+.1f} points on average.")
    return "\n".join(line[0].upper() + line[1:] for line in lines)


def _where(row) -> str:
    when = f", rate tuned on {row.tuned_on}" if row.arena.endswith("stream") else ""
    return f"{row.arena}, {row.head} head{when}"


def best_on_validation(frame: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """(tuned_on, arena, head) -> the scouted candidate with the highest validation accuracy at its best rate."""
    chosen = {}
    for tuned_on in TUNED_ON:
        tuning = frame[frame["metric"] == ("validation_last" if tuned_on == "last" else "validation_first")]
        means = tuning.groupby([*CONDITION, "method", "learning_rate"], sort=False)["value"].mean()
        best = means.groupby(level=[*CONDITION, "method"], sort=False).max()
        for condition, of in best.groupby(level=list(CONDITION), sort=False):
            if tuned_on in Arena.parse(condition[0]).tuned_on:
                scouted = [name for name in CANDIDATES if name not in ("learned", "shuffled")]
                chosen[tuned_on, *condition] = of.droplevel(list(CONDITION))[scouted].idxmax()
    return chosen


def _bodies(p: GuidesParameters) -> dict[Pretraining, Body]:
    with made(p.preparations(), p.prepared, p.workers) as folder:
        return {step: step.body(folder) for step in p.preparations()}


def _row(job: Job, metric: str, value: float, task: int | str = "") -> dict[str, object]:
    key = {"seed": job.seed, "arena": str(job.arena), "head": job.head, "method": job.method}
    return key | {"learning_rate": job.learning_rate, "task": task, "metric": metric, "value": value}


def _run_job(job_and_start: tuple[Job, dict[str, Tensor], Guide | None]) -> np.ndarray:
    """Accuracy on each task after its first examples and at its end: [tasks, 2]."""
    job, body, guide = job_and_start
    p, arena = job.parameters, job.arena
    n_episodes, n_streams = (
        (p.n_episodes, p.n_streams) if job.purpose == "test" else (p.n_tuning_episodes, p.n_tuning_streams)
    )
    n, n_shot, purpose = n_episodes, arena.n_shot, job.purpose
    if not n_shot:
        n, n_shot, purpose = n_streams, 1 + p.n_rounds, f"{job.purpose} stream"
    tasks = episodes(p, job.station, job.purpose, purpose, n, arena.n_way, n_shot, p.n_query)
    model = zero_point(p.pretraining(job.station), arena.n_way, job.station.head, body)
    guide = None if guide is None else for_ways(guide, arena.n_way)
    size = max(1, SIDE_BY_SIDE // (arena.n_way * max(1, arena.n_shot)))
    scores = []
    for some in (tasks[i : i + size] for i in range(0, n, size)):
        see, trained, optimizer = start_at(model, guide, job.learning_rate, len(some), job.method.endswith("frozen"))
        support = see(torch.stack([task.support for task in some], 2).flatten(0, 1)).unflatten(0, (arena.n_way, -1))
        queries, labels = labelled(torch.stack([task.query for task in some], 2))
        queries = see(queries)
        if arena.n_shot:
            inputs, targets = labelled(support)
            fit(trained, inputs, targets[:, None], optimizer, epochs=p.epochs, loss=stacked_cross_entropy)
            scores.append([correct(trained, queries, labels[:, None]).mean(0)] * 2)
            continue
        arrivals = list(arrivals_of(support, "single", rng(job.seed)))
        by_step = [
            correct(trained, queries, labels[:, None]).mean(0)
            for i in follow(trained, optimizer, arrivals, p.first_epochs, p.stream_epochs)
            if i in (0, len(arrivals) - 1)
        ]
        scores.append(by_step)
    return torch.cat([torch.stack(score, 1) for score in scores]).numpy()

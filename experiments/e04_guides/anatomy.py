"""What a guide looks like, what shaping makes of it, and what becomes of a guide under four optimizers, as rows."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from experiments.e04_guides.candidates import Scouted, root
from experiments.protocol import Row
from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.shaping import TEMPERATURES, Binned, density, histogram, sparse, temperature
from gtl_core.training import fit

EDGES = [i / 4 - 6 for i in range(25)]  # of histograms of log10 g
GRID = [i / 200 for i in range(201)]  # of temperatures' curves
THRESHOLDS = (0.0, 0.01, 0.03, 0.1, 0.3, 0.5)
GS = (0.0, 0.001, 0.01, 0.1, 1.0)  # the same g for every parameter
N_STEPS = 20
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(SGD, lr=0.01),
    "momentum": partial(SGD, lr=0.01, momentum=0.9),
    "Adam": partial(Adam, lr=1e-3),
    "AdamW": partial(AdamW, lr=1e-3, weight_decay=0.1),
}


def _row(method: str, metric: str, at: float, value: float, **part: str) -> Row:
    return {"method": method, "metric": metric} | part | {"at": at, "value": value}


def anatomy(scouted: Scouted) -> Iterator[Row]:
    """What a guide looks like (network scope, square root), and what shaping makes of it.

    - ``temperature``: the map itself, g = ``at``; ``below``: share of the guide's values below ``at`` under it;
    - ``bytes``, ``density``: of the sparse guide with threshold ``at`` in a file;
    - ``histogram``: share of the values of a tensor (part) whose log10 is in the bin that begins at ``at``;
    - ``filter``, ``filter_guide``: the first layer's weights and their guide, pixel by pixel (``at``);
    - ``by_time``: movement per parameter of a tensor, by that of the network, after ``at`` steps;
    - ``by_distance``: the same for bin ``at``; ``edge``: its lower edge; ``points``: its share of the points;
    - ``likeness``: correlation of the guides (square root) of bin ``at`` and bin ``part``.
    """
    guide = root(scouted.displacement)
    yield from _shaped(guide)
    logs = Guide({name: (g.clamp(min=1e-6).log10() + 6) / 6 for name, g in guide.items()})
    for name, shares in histogram(logs, [(edge + 6) / 6 for edge in EDGES]).items():
        for at, share in zip(EDGES, shares.tolist(), strict=False):
            yield _row("root", "histogram", at, share, part=name)
    first = next(iter(guide))
    for metric, tensor in (("filter", scouted.displacement.zero_point[first]), ("filter_guide", guide[first])):
        for at, value in enumerate(tensor.flatten().tolist()):
            yield _row("root", metric, at, value, part=first)
    for at, displacement in scouted.by_time.items():
        yield from _movement("by_time", at, displacement)
    yield from _by_distance(scouted.binned)


def _shaped(guide: Guide) -> Iterator[Row]:
    grid = Guide({"g": torch.tensor(GRID)})
    values = torch.cat([g.flatten() for g in guide.values()])
    for name in TEMPERATURES:
        shaped = temperature(Guide({"all": values}), name)["all"].sort()[0]
        below = torch.searchsorted(shaped, grid["g"], right=True) / len(values)
        for at, g, share in zip(GRID, temperature(grid, name)["g"].tolist(), below.tolist(), strict=True):
            yield _row(name, "temperature", at, g)
            yield _row(name, "below", at, share)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guide"
        for threshold in THRESHOLDS:
            left = sparse(guide, threshold)
            left.save(path, sparse=threshold > 0)
            yield _row("root", "bytes", threshold, path.stat().st_size)
            yield _row("root", "density", threshold, density(left))


def _movement(metric: str, at: int, displacement: Displacement) -> Iterator[Row]:
    sizes = displacement.mean_abs
    mean = torch.cat([size.flatten() for size in sizes.values()]).mean()
    yield from (_row("scouts", metric, at, (size.mean() / mean).item(), part=name) for name, size in sizes.items())


def _by_distance(binned: Binned) -> Iterator[Row]:
    used = [(edge, b) for edge, b in zip([0.0, *binned.edges], binned.bins, strict=True) if b.count]
    for at, (_, displacement) in enumerate(used):
        yield from _movement("by_distance", at, displacement)
    total = sum(b.count for _, b in used)
    guides = torch.stack([torch.cat([g.flatten() for g in root(b).values()]) for _, b in used])
    alike = torch.corrcoef(guides).view(len(used), len(used)).tolist()
    for at, (edge, b) in enumerate(used):
        yield _row("scouts", "edge", at, edge)
        yield _row("scouts", "points", at, b.count / total)
        yield from (_row("scouts", "likeness", at, value, part=str(j)) for j, value in enumerate(alike[at]))


def moves(model: nn.Module, inputs: Tensor, labels: Tensor) -> Iterator[Row]:
    """How far parameters move in `N_STEPS` steps with the same g everywhere: one row per optimizer (method), g (at) and
    what the guide is applied to (part). The value is the mean |displacement| over all parameters."""
    for (name, optimizer), on, g in product(OPTIMIZERS.items(), ("step", "gradient"), GS):
        moved = copy.deepcopy(model)
        uniform = Guide({n: torch.full_like(p, g) for n, p in model.named_parameters()})
        fit(moved, inputs, labels, Guided(optimizer(moved.parameters()), moved, uniform, on=on), epochs=N_STEPS)
        pairs = zip(model.parameters(), moved.parameters(), strict=True)
        far = torch.cat([(q - p).detach().abs().flatten() for p, q in pairs])
        yield _row(name, "moved", g, far.mean().item(), part=on)

"""One network learns one set of characters, and is looked at on the way."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from experiments.baselines.continual import L2SP
from experiments.e10_paper_setting.methods import CharacterMethod
from experiments.optimizers import OptimizerName, make
from gtl_core.guide import Guide
from gtl_core.guided import Guided
from gtl_core.tasks import Episode, labelled
from gtl_core.training import fit


def learn(
    model: nn.Sequential,
    method: CharacterMethod,
    guide: Guide | None,
    optimizer: OptimizerName,
    rates: tuple[float, float],
    episode: Episode,
    steps: Sequence[int],
) -> Tensor:
    """Train ``model``, in place, on the whole support in every step, with learning ``rates`` for body and head.

    Returns accuracy and loss on the queries after each of the increasing ``steps``, [steps, 2].
    """
    (inputs, labels), (queries, answers) = labelled(episode.support), labelled(episode.query)
    if method.trained in ("head", "nothing"):  # then the body's features are the same after every step
        with torch.no_grad():
            inputs, queries = model.body(inputs), model.body(queries)
        if method.trained == "nothing":  # of one example, which is the mean of its class
            return _score(normalize(queries) @ normalize(inputs).T, answers).expand(len(steps), 2)
        model = nn.Sequential(OrderedDict(body=nn.Identity(), head=model.head))
    for p in _left_alone(model.body, method.trained):
        p.requires_grad_(False)
    training = _optimizer(model, optimizer, rates)
    if guide is not None:
        training = Guided(training, model, guide, unguided="free", on=method.on)
    if method.anchor:
        L2SP(model, method.anchor, training)
    curve = []
    for before, after in pairwise([0, *steps]):
        fit(model, inputs, labels, training, epochs=after - before)
        model.eval()
        with torch.no_grad():
            outputs = torch.cat([model(some) for some in queries.split(100)])  # what a cache can hold
            curve.append(_score(outputs, answers))
    return torch.stack(curve)


def _left_alone(body: nn.Module, trained: str) -> list[nn.Parameter]:
    """What is not trained of the body: nothing, the weights, or all but the last layer."""
    if trained == "biases":
        return [p for name, p in body.named_parameters() if not name.endswith("bias")]
    layers = [list(layer.parameters()) for layer in body.children() if list(layer.parameters())]
    return [p for layer in layers[:-1] for p in layer] if trained == "top" else []


def _optimizer(model: nn.Sequential, name: OptimizerName, rates: tuple[float, float]) -> torch.optim.Optimizer:
    parts = zip((model.body, model.head), rates, strict=True)
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": rate} for part, rate in parts]
    return make(name, [group for group in groups if group["params"]], rates[1], fused=True)


def _score(outputs: Tensor, answers: Tensor) -> Tensor:
    """Accuracy and loss."""
    return torch.stack([(outputs.argmax(-1) == answers).float().mean(), cross_entropy(outputs, answers)])

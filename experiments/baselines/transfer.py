"""Transfer learning: a pretrained network used as it is, in part, or as the start of fine-tuning.

Adaptations for `few_shot.Prepared`. Fine-tuning from scratch is `fine_tune` of a network that was never trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from experiments.baselines.continual import Memory
from experiments.baselines.few_shot import Predictor
from gtl_core.training import fit

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


def fine_tune(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    optimizer: MakeOptimizer,
    epochs: int,
    n_frozen: int = 0,
    memory: Callable[[nn.Module], Memory] = lambda model: Memory(),
) -> Predictor:
    """Train a copy of the network on the support.

    optimizer: makes the optimizer for the copy: ``lambda m: Guided(SGD(m.parameters(), lr=0.1), m, guide)``, say.
    n_frozen: how many layers, from the input, stay as they are (see `layers`); all but the head: a linear probe.
        Source: Yosinski et al. 2014.
    memory: a penalty of `continual`, such as ``partial(L2SP, strength=0.1)``.
    """
    model = copy.deepcopy(model)
    _freeze(model, n_frozen)
    penalty = memory(model).penalty
    loss = lambda outputs, targets: cross_entropy(outputs, targets) + penalty()  # noqa: E731
    fit(model, inputs, labels, optimizer(model), epochs=epochs, loss=loss)
    return model.eval()


def probe_then_fine_tune(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, probe: MakeOptimizer, optimizer: MakeOptimizer, epochs: int
) -> Predictor:
    """LP-FT: half of the epochs for the head alone, so that fine-tuning does not distort the features to make up for a
    random head; then all of it. Source: Kumar et al. 2022."""
    probed = fine_tune(model, inputs, labels, optimizer=probe, epochs=epochs // 2, n_frozen=len(layers(model)) - 1)
    return fine_tune(probed, inputs, labels, optimizer=optimizer, epochs=epochs - epochs // 2)


def nearest_mean(model: nn.Module, inputs: Tensor, labels: Tensor) -> Predictor:
    """The network as it is: a query belongs to the class whose mean features are nearest. Nothing is trained.

    Source: Mensink et al. 2013.
    """
    with torch.no_grad():
        features = model.eval().body(inputs)
        means = torch.stack([features[labels == c].mean(0) for c in labels.unique()])
    return lambda queries: -torch.cdist(model.body(queries), means)


def classify_features(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, classifier: ClassifierMixin, normalize: bool = True
) -> Predictor:
    """Feature-based transfer: the body's features, of length 1 if ``normalize``, into a scikit-learn classifier.

    ``LogisticRegression(C=10)``, ``LinearSVC()``, ... Source: Razavian et al. 2014; Tian et al. 2020.
    """

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            found = model.eval().body(images)
        return nn.functional.normalize(found) if normalize else found

    from sklearn.base import clone  # slow to import, and training steps import this module without using it

    fitted = clone(classifier).fit(features(inputs).numpy(), labels.numpy())
    n_way = int(labels.max()) + 1
    return lambda queries: one_hot(torch.from_numpy(fitted.predict(features(queries).numpy())), n_way).float()


def layers(model: nn.Module) -> list[list[nn.Parameter]]:
    """The network's parameters layer by layer from the input; a normalisation belongs to the layer that it follows."""
    found: list[list[nn.Parameter]] = []
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
            found[-1] += own
        elif own:
            found.append(own)
    return found


def layerwise_rates(model: nn.Module, learning_rate: float, decay: float = 2.6) -> list[dict]:
    """Parameter groups for any optimizer: ``learning_rate`` for the last layer, ``decay`` times less per layer below.

    Source: Howard & Ruder 2018, section 3.2 (discriminative fine-tuning).
    """
    deepest = reversed(layers(model))
    return [{"params": layer, "lr": learning_rate / decay**depth} for depth, layer in enumerate(deepest)]


def _freeze(model: nn.Module, n_frozen: int) -> None:
    found = layers(model)
    if not 0 <= n_frozen < len(found):
        raise ValueError(f"n_frozen = {n_frozen}: must be from 0 to {len(found) - 1}, since something must be trained")
    for i, layer in enumerate(found):
        for p in layer:
            p.requires_grad_(i >= n_frozen)

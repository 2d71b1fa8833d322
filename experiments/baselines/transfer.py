"""Transfer learning: a pretrained network used as it is, in part, or as the start of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import one_hot

from experiments.baselines.continual import Memory
from experiments.baselines.few_shot import Prepared, Start, measured
from experiments.costs import FORWARD, TRAINING, shares
from experiments.methods import Predictor
from gtl_core._engine.stacked import stack, stack_guide, stacked_cross_entropy
from gtl_core.guide import Displacement, Guide
from gtl_core.guided import Guided
from gtl_core.tasks import rng
from gtl_core.training import fit

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin


def descent(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    """Plain gradient descent."""
    return torch.optim.SGD(model.parameters(), lr=rate)


@dataclass(frozen=True)
class FineTuning:
    """Training on the support: S networks from one start, side by side, each on a task of its own.

    Training from scratch is the same from a network that was never trained.

    optimizer: ``optimizer(model, start, rate, parameters)``, for the stacked network. n_frozen: how many layers, from
    the input, stay as they are; all but the head: a linear probe (Yosinski et al. 2014). epochs: of the parameters.
    memory: ``memory(model, optimizer)`` makes what holds the network back. guide: scales every step by its values.
    augment: ``augment(start)`` makes what changes the inputs in every step, all layers being trained. loss:
    ``loss(start)`` makes that of the stacked network; None: its cross-entropy.
    """

    optimizer: Callable[[nn.Module, Start, float, Any], torch.optim.Optimizer] = descent
    n_frozen: int = 0
    epochs: Callable[[Any], int] = attrgetter("epochs")
    memory: Callable[[nn.Module, torch.optim.Optimizer], Memory] | None = None
    guide: Callable[[Displacement], Guide] | None = None
    augment: Callable[[Start], Callable[[Tensor], Tensor]] | None = None
    loss: Callable[[Start], Callable[[Tensor, Tensor], Tensor]] | None = None

    def __call__(self, start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        """Adapt to inputs [N, S, ...] and labels [N, 1] or [N, S]; the predictor takes queries [M, S, ...]."""
        fixed, model = two_parts(start.model, self.n_frozen, inputs.shape[1])
        optimizer = self.optimizer(model, start, rate, p)
        if self.guide:
            optimizer = Guided(optimizer, model, stack_guide(self.guide(start.displacement), inputs.shape[1]))
        if self.memory:
            self.memory(model, optimizer)
        augment, loss = (make(start) if make else None for make in (self.augment, self.loss))
        return _train(fixed, model, optimizer, inputs, labels, self.epochs(p), loss or stacked_cross_entropy, augment)

    def passes(self, model: nn.Sequential, n: int, p: Any) -> float:
        """Of one task with ``n`` examples. Frozen layers are passed once; the others are charged by their share of the
        network's multiplications."""
        frozen = sum(shares(model)[: self.n_frozen])
        return n * (FORWARD * frozen + TRAINING * self.epochs(p) * (1 - frozen))


class ProbeThenFineTuning:
    """LP-FT: half of the epochs for the head alone, so that fine-tuning does not distort the features to make up for a
    random head; then all of it. Source: Kumar et al. 2022."""

    def __call__(self, start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        fixed, probe = two_parts(start.model, 4, inputs.shape[1])
        _train(fixed, probe, descent(probe, start, rate, p), inputs, labels, p.epochs // 2)
        fixed, model = two_parts(start.model, 0, inputs.shape[1])
        model.head.load_state_dict(probe.head.state_dict())
        return _train(fixed, model, descent(model, start, rate, p), inputs, labels, p.epochs - p.epochs // 2)

    def passes(self, model: nn.Sequential, n: int, p: Any) -> float:
        """As `FineTuning.passes`: the probe sees features of a pass of their own."""
        head, probed = shares(model)[-1], p.epochs // 2
        return n * (FORWARD * (1 - head) + TRAINING * (probed * head + p.epochs - probed))


class GradualUnfreezing:
    """The head first, then one layer more in each fifth of the epochs, from the last to the first.

    Source: Howard & Ruder 2018 (ULMFiT, section 3.3), without its other two tricks.
    """

    def __call__(self, start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        trained: dict[str, Tensor] = {}
        for n_frozen, epochs in self.phases(p.epochs):
            fixed, model = two_parts(start.model, n_frozen, inputs.shape[1])
            model.load_state_dict(model.state_dict() | trained)
            predict = _train(fixed, model, descent(model, start, rate, p), inputs, labels, epochs)
            trained = model.state_dict()
        return predict

    def passes(self, model: nn.Sequential, n: int, p: Any) -> float:
        """The sum over its phases of `FineTuning.passes`."""
        phases = (FineTuning(n_frozen=k, epochs=lambda _, n=epochs: n) for k, epochs in self.phases(p.epochs))
        return sum(phase.passes(model, n, p) for phase in phases)

    @staticmethod
    def phases(epochs: int) -> list[tuple[int, int]]:
        """How many layers are frozen, and for how many epochs; the last phase has what is left of them."""
        return [(k, epochs // 5) for k in (4, 3, 2, 1)] + [(0, epochs - 4 * (epochs // 5))]


def bitfit(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    """Descent on the head, and in the body on biases alone, those of normalization, too: a guide of ones and zeros.

    Source: Ben Zaken, Goldberg, Ravfogel 2022 (BitFit).
    """
    moves = {name: name.startswith("head.") or name.endswith(".bias") for name, _ in start.model.named_parameters()}
    guide = Guide({name: torch.full_like(q, moves[name]) for name, q in model.named_parameters()})
    return Guided(descent(model, start, rate, p), model, guide)


class LowRank(nn.Module):
    """A stacked network whose body's weights are those that it had plus a product of two thin matrices, ``after`` [S,
    out, rank] and ``before`` [S, rank, in], which are trained, and the head. At first ``after`` is zero.

    Source: Hu et al. 2022 (LoRA), for convolutions as for matrices, whose rows are the weights of one output.
    """

    def __init__(self, model: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.model = model
        weights = {name: q for name, q in model.body.named_parameters() if q.dim() > 2}
        self.names = [f"body.{name}" for name in weights]
        self.after, self.before = nn.ParameterList(), nn.ParameterList()
        for weight in weights.values():
            n_copies, n_outputs, n_inputs = weight.flatten(2).shape
            drawn = torch.randn(rank, n_inputs, generator=generator).to(weight) / n_inputs**0.5
            self.after.append(weight.new_zeros(n_copies, n_outputs, rank))
            self.before.append(drawn.repeat(n_copies, 1, 1))

    def trained(self) -> list[nn.Parameter]:
        return [*self.model.head.parameters(), *self.after, *self.before]

    def forward(self, input: Tensor) -> Tensor:
        weights = dict(self.model.named_parameters())
        changed = {}
        for name, after, before in zip(self.names, self.after, self.before, strict=True):
            changed[name] = weights[name].detach() + (after @ before).view(weights[name].shape)
        return functional_call(self.model, changed, (input,))


@dataclass(frozen=True)
class LowRankAdaptation(FineTuning):
    """Descent on the `LowRank` parts and the head; passes as those of fine-tuning everything."""

    rank: int = 2

    def __call__(self, start: Start, inputs: Tensor, labels: Tensor, rate: float, p: Any) -> Predictor:
        fixed, model = two_parts(start.model, 0, inputs.shape[1])
        adapted = LowRank(model, self.rank, rng(p.seed, "low rank"))
        return _train(fixed, adapted, torch.optim.SGD(adapted.trained(), rate), inputs, labels, self.epochs(p))


def two_parts(model: nn.Sequential, n_frozen: int, n_copies: int) -> tuple[nn.Module, nn.Module]:
    """``n_copies`` of the first ``n_frozen`` layers of the body, and of the rest, side by side."""
    at = n_frozen * ((len(model.body) - 1) // 4)
    rest = nn.Sequential()
    rest.add_module("body", model.body[at:])
    rest.add_module("head", model.head)
    fixed = stack([model.body[:at]] * n_copies) if at else nn.Identity()
    return fixed, stack([rest] * n_copies)


def _train(
    fixed: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: Tensor,
    labels: Tensor,
    epochs: int,
    loss: Callable[[Tensor, Tensor], Tensor] = stacked_cross_entropy,
    augment: Callable[[Tensor], Tensor] | None = None,
) -> Predictor:
    with torch.no_grad():
        inputs = fixed(inputs)
    fit(model, inputs, labels, optimizer, epochs=epochs, loss=loss, augment=augment)
    model.eval()
    return lambda queries: model(fixed(queries))


def nearest_mean(
    model: nn.Module, inputs: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor] = lambda features: features
) -> Predictor:
    """The network as it is: a query belongs to the class whose mean features are nearest. Nothing is trained.

    transform: of features, before anything else. Source: Mensink et al. 2013.
    """
    with torch.no_grad():
        features = transform(model.eval().body(inputs))
        means = torch.stack([features[labels == c].mean(0) for c in labels.unique()])
    return lambda queries: -torch.cdist(transform(model.body(queries)), means)


@measured
def base_mean(model: nn.Module, images: Tensor) -> Prepared:
    """The network as it is, and the mean of its features of ``images`` [N, ...], those of the base classes."""
    with torch.no_grad():
        return Prepared(model, FORWARD * len(images), {"mean": model.eval().body(images).mean(0)})


def simple_shot(model: nn.Module, inputs: Tensor, labels: Tensor, mean: Tensor) -> Predictor:
    """Nearest class mean of features less their ``mean`` over the base classes, at length 1 (CL2N).

    Source: Wang, Chao, Weinberger, van der Maaten 2019 (SimpleShot, section 2).
    """
    return nearest_mean(model, inputs, labels, lambda features: nn.functional.normalize(features - mean))


def classify_features(model: nn.Module, inputs: Tensor, labels: Tensor, *, classifier: ClassifierMixin) -> Predictor:
    """Feature-based transfer: the body's features, at length 1, into a scikit-learn classifier.

    ``LogisticRegression(C=10)``, ``LinearSVC()``, ... Source: Razavian et al. 2014; Tian et al. 2020.
    """

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return nn.functional.normalize(model.eval().body(images))

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


def layerwise(model: nn.Module, start: Start, rate: float, p: Any) -> torch.optim.Optimizer:
    """Descent with `layerwise_rates`, for the stacked ``model`` of which ``start.model`` is one."""
    names = {parameter: name for name, parameter in start.model.named_parameters()}
    copies = dict(model.named_parameters())
    groups = layerwise_rates(start.model, rate)
    return torch.optim.SGD([group | {"params": [copies[names[q]] for q in group["params"]]} for group in groups])

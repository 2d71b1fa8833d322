"""Continual learning: what to do against forgetting while examples arrive one after the other.

A `Memory` stands between the stream and the training; the one that does nothing is plain fine-tuning. Guidance and
frozen layers need no memory: they live in the optimizer and in ``requires_grad``, and combine with all of these.
Every memory works on one network and on stacked ones alike, since springs are elementwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from gtl_core._engine.stacked import stacked_cross_entropy
from gtl_core.training import fit


class Memory:
    """Nothing is remembered."""

    def rehearse(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What is trained on when these examples arrive."""
        return inputs, labels

    def learned(self, inputs: Tensor, labels: Tensor) -> None:
        """Called when training on an arrival has ended."""


def follow(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    arrivals: Iterable[tuple[Tensor, Tensor]],
    memory: Memory | None = None,
    *,
    first_epochs: int,
    epochs: int,
    loss: Callable[[Tensor, Tensor], Tensor] = stacked_cross_entropy,
) -> Iterator[int]:
    """Train on what arrives, in steps on all of an arrival at once; yield its number when it is learned.

    arrivals: pairs of inputs and labels as ``loss`` takes them: [N, S, ...] and [N, 1] (or [N, S]) for S stacked
    networks; [N, ...] and [N] for a single network with ``loss=cross_entropy``.
    """
    memory = memory or Memory()
    for i, arrival in enumerate(arrivals):
        fit(model, *memory.rehearse(*arrival), optimizer, epochs=epochs if i else first_epochs, loss=loss)
        memory.learned(*arrival)
        yield i


class Anchor(Memory):
    """A spring from every parameter to its anchor: strength / 2 * importance * (parameter - anchor)^2.

    Every step of the optimizer is followed by the implicit (proximal) step of the springs, with the optimizer's rate:
    p <- (p + k * anchor) / (1 + k), k = rate * strength * importance. It is stable for any k, where the gradient of the
    same springs, added to the loss's, overshoots from k = 2 on. A guide around the optimizer scales both steps.
    Source: Parikh & Boyd 2014, section 4.2 (proximal gradient).
    """

    def __init__(self, model: nn.Module, strength: float, optimizer: torch.optim.Optimizer) -> None:
        self.strength = strength
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.importance = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self._names = {p: name for name, p in self.parameters.items()}
        self._drop_anchor()
        # Inside of a `Guided`, whose step then contains the springs'.
        getattr(optimizer, "optimizer", optimizer).register_step_post_hook(self._pull)

    def _drop_anchor(self) -> None:
        self.anchor = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def _pull(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                k = group["lr"] * self.strength * self.importance[self._names[p]]
                p.lerp_(self.anchor[self._names[p]], k / (1 + k))


class L2SP(Anchor):
    """Every parameter of the body is equally important, and its anchor stays where it started; the head, which is new,
    decays towards zero with ``head_strength``. Source: Li, Grandvalet, Davoine 2018 (their equation for L2-SP)."""

    def __init__(
        self, model: nn.Module, strength: float, optimizer: torch.optim.Optimizer, head_strength: float = 0.0
    ) -> None:
        super().__init__(model, 1.0, optimizer)
        for name, importance in self.importance.items():
            importance.fill_(strength)
            if name.startswith("head."):
                importance.fill_(head_strength)
                self.anchor[name].zero_()


class EWC(Anchor):
    """Elastic weight consolidation: importance is the diagonal of the Fisher information of what was learned.

    After every arrival the anchor moves to the present parameters and the arrival's Fisher information is added, the
    older one's shrunk by ``decay`` (Schwarz et al. 2018, online EWC; one anchor per arrival, as first published, would
    fill the memory with networks). Source: Kirkpatrick et al. 2017.
    """

    def __init__(self, model: nn.Module, strength: float, optimizer: torch.optim.Optimizer, decay: float = 1.0) -> None:
        super().__init__(model, strength, optimizer)
        self.model, self.decay = model, decay

    def learned(self, inputs: Tensor, labels: Tensor) -> None:
        for name, information in fisher(self.model, self.parameters, inputs).items():
            self.importance[name].mul_(self.decay).add_(information)
        self._drop_anchor()


def fisher(model: nn.Module, parameters: dict[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of ``model``'s predictions, mean over ``inputs``; each stacked network's own.

    Of all labels, each weighted by the probability that the network itself gives it: exact, no sampling.
    """
    information = {name: torch.zeros_like(p, requires_grad=False) for name, p in parameters.items()}
    for example in inputs.split(1):
        log_p = model(example).log_softmax(-1)
        # With the root of its weight inside, the square of the gradient is weighted, for each stacked network.
        for score in (log_p.detach().div(2).exp() * log_p).flatten(0, -2).sum(0):
            gradients = torch.autograd.grad(score, list(parameters.values()), retain_graph=True)
            for total, gradient in zip(information.values(), gradients, strict=True):
                total.addcmul_(gradient, gradient, value=1 / len(inputs))
    return information


class SynapticIntelligence(Anchor):
    """Importance is what moving a parameter has contributed to lowering the loss, per squared distance moved.

    On the way every step adds -gradient * movement; after every arrival, this path integral over the squared way since
    the last one (plus ``damping``) is added to the importance, unless it is negative, and the anchor moves here.
    optimizer: the one that trains; the movements are read off its steps, guided ones and those of the springs too.
    Source: Zenke, Poole, Ganguli 2017 (equations 3 to 5).
    """

    def __init__(self, model: nn.Module, strength: float, optimizer: torch.optim.Optimizer, damping: float = 1e-3):
        super().__init__(model, strength, optimizer)
        self.damping = damping
        self.path = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        optimizer.register_step_pre_hook(lambda *_: self._before_step())
        optimizer.register_step_post_hook(lambda *_: self._after_step())

    @torch.no_grad()
    def _before_step(self) -> None:
        self._before = {name: (p.clone(), p.grad.clone()) for name, p in self.parameters.items()}

    @torch.no_grad()
    def _after_step(self) -> None:
        for name, (before, gradient) in self._before.items():
            self.path[name].sub_(gradient * (self.parameters[name] - before))

    @torch.no_grad()
    def learned(self, inputs: Tensor, labels: Tensor) -> None:
        for name, p in self.parameters.items():
            moved = (p - self.anchor[name]) ** 2 + self.damping
            self.importance[name].add_((self.path[name] / moved).clamp(min=0))
            self.path[name].zero_()
        self._drop_anchor()


class Replay(Memory):
    """Keep up to ``capacity`` examples, each seen one with the same chance, and train on them with every arrival: a
    ceiling, since others may not store any. Source: reservoir sampling (Vitter 1985) as in Chaudhry et al. 2019."""

    def __init__(self, capacity: int, generator: torch.Generator) -> None:
        self.capacity, self.generator = capacity, generator
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.n_seen = 0

    def rehearse(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        every_input, every_label = zip(*self.kept, (inputs, labels), strict=True)
        return torch.cat(every_input), torch.cat(every_label)

    def learned(self, inputs: Tensor, labels: Tensor) -> None:
        for example in zip(inputs.split(1), labels.split(1), strict=True):
            self.n_seen += 1
            place = int(torch.randint(self.n_seen, (), generator=self.generator))
            if len(self.kept) < self.capacity:
                self.kept.append(example)
            elif place < self.capacity:
                self.kept[place] = example

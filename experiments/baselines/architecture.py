"""Architecture search: the network itself is found before any task, on tasks of other classes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.baselines.compare import prototypes
from experiments.costs import multiplications
from experiments.models import new_head
from gtl_core._engine import Blocks
from gtl_core.tasks import Episode, labelled, rng

# What a block may be, each of which halves an image's sides: kernel and stride of its convolution; then pooled or not.
OPERATIONS = {"3x3": (3, 2), "5x5": (5, 2), "1x1 pooled": (1, 1), "3x3 pooled": (3, 1)}
CHANNELS, NORMS, DEPTHS = (8, 16, 32, 64), ("group", "none"), (2, 3, 4, 5)
LARGEST = 4  # times the multiplications of the network made by hand: more is not tried


class Architecture(NamedTuple):
    """A body of blocks: a convolution to ``channels`` maps, maybe GroupNorm, ReLU, and maybe max-pooling."""

    blocks: tuple[str, ...]
    channels: int
    norm: str

    def __str__(self) -> str:
        return f"{' · '.join(self.blocks)}, {self.channels} channels, {self.norm} norm"


Score = Callable[[Architecture], float]  # how good it is
Cost = Callable[[Architecture], float]  # what it takes to find that out


def made_by_hand(channels: int) -> Architecture:
    """`conv4`."""
    return Architecture(("3x3",) * 4, channels, "group")


class Tried(NamedTuple):
    """An architecture, and its score."""

    architecture: Architecture
    score: float


def build(architecture: Architecture, n_way: int, *, generator: torch.Generator) -> nn.Sequential:
    """[N, 1, 28, 28] -> [N, n_way] logits. The layers of block 0 are ``body.conv0``, ``body.norm0`` and so on."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    n_in, side = 1, 28
    for i, operation in enumerate(architecture.blocks):
        for name, layer in _block(operation, n_in, architecture, generator).items():
            layers[f"{name}{i}"] = layer
        n_in, side = architecture.channels, (side + 1) // 2
    layers["flatten"] = nn.Flatten()
    model = nn.Sequential(OrderedDict(body=Blocks(layers), head=nn.Linear(n_in * side**2, n_way)))
    new_head(model, n_way, "random", generator=generator)
    return model


def _block(
    operation: str, n_in: int, a: Architecture, generator: torch.Generator, affine: bool = True
) -> dict[str, nn.Module]:
    kernel, stride = OPERATIONS[operation]
    convolution = nn.Conv2d(n_in, a.channels, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(convolution.bias)
    norm = {"norm": nn.GroupNorm(4, a.channels, affine=affine)} if a.norm == "group" else {}
    pool = {"pool": nn.MaxPool2d(3, 2, 1)} if stride == 1 else {}
    return {"conv": convolution} | norm | {"relu": nn.ReLU()} | pool


def size(architecture: Architecture, by_hand: Architecture, n_classes: int) -> tuple[float, int]:
    """Multiplications of a forward pass, in times those of the network made by hand; and parameters."""
    (own, n_parameters), (of_hand, _) = (_size(a, n_classes) for a in (architecture, by_hand))
    return own / of_hand, n_parameters


@cache
def _size(architecture: Architecture, n_classes: int) -> tuple[int, int]:
    model = build(architecture, n_classes, generator=rng(0))
    return sum(multiplications(model)), sum(p.numel() for p in model.parameters())


class Space(NamedTuple):
    """What may be tried: nothing that is larger than `LARGEST` where ``n_classes`` are told apart."""

    by_hand: Architecture
    n_classes: int

    def allows(self, architecture: Architecture) -> bool:
        n_blocks = len(architecture.blocks)
        return n_blocks in DEPTHS and size(architecture, self.by_hand, self.n_classes)[0] <= LARGEST

    def draw(self, generator: torch.Generator) -> Architecture:
        """Any."""
        while True:
            blocks = [_one(OPERATIONS, generator) for _ in range(_one(DEPTHS, generator))]
            architecture = Architecture(tuple(blocks), _one(CHANNELS, generator), _one(NORMS, generator))
            if self.allows(architecture):
                return architecture

    def mutate(self, a: Architecture, generator: torch.Generator) -> Architecture:
        """With one thing changed: the width, the norm, a block's operation, or a block more or less."""
        changes = [a._replace(channels=n) for n in CHANNELS] + [a._replace(norm=norm) for norm in NORMS]
        for i in range(len(a.blocks) + 1):
            before, after = a.blocks[:i], a.blocks[i:]
            changes += [a._replace(blocks=(*before, new, *after)) for new in OPERATIONS]
            changes += [a._replace(blocks=(*before, new, *after[1:])) for new in OPERATIONS if after]
            changes += [a._replace(blocks=(*before, *after[1:]))] if after else []
        return _one([change for change in changes if change != a and self.allows(change)], generator)


# --- one architecture after the other ------------------------------------------------------------------------------


def random_search(score: Score, cost: Cost, budget: float, space: Space, generator: torch.Generator) -> list[Tried]:
    """Try architectures drawn at random until the ``budget`` is spent. Source: Li & Talwalkar 2019, who found it hard
    to beat."""
    return _until_spent(score, cost, budget, lambda tried: space.draw(generator))


def evolution(
    score: Score,
    cost: Cost,
    budget: float,
    space: Space,
    generator: torch.Generator,
    *,
    population: int = 8,
    sample: int = 3,
) -> list[Tried]:
    """Change the best of a ``sample`` of the last ``population`` architectures, drawn with replacement, again and again
    until the ``budget`` is spent; the first ones are drawn at random.

    Source: Real et al. 2019 (regularized evolution, algorithm 1).
    """

    def propose(tried: Sequence[Tried]) -> Architecture:
        if len(tried) < population:
            return space.draw(generator)
        alive = tried[-population:]
        drawn = torch.randint(population, (sample,), generator=generator).tolist()
        return space.mutate(max((alive[i] for i in drawn), key=lambda one: one.score).architecture, generator)

    return _until_spent(score, cost, budget, propose)


def _until_spent(
    score: Score, cost: Cost, budget: float, propose: Callable[[Sequence[Tried]], Architecture]
) -> list[Tried]:
    """Until something is proposed that what is left cannot pay."""
    tried: list[Tried] = []
    while (left := budget - cost(architecture := propose(tried))) >= 0:
        tried.append(Tried(architecture, score(architecture)))
        budget = left
    return tried


def _one(values: Sequence | dict, generator: torch.Generator):
    return list(values)[int(torch.randint(len(values), (), generator=generator))]


# --- all at once ---------------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    """A block that does all operations, and adds what they put out in the shares softmax(``strengths``).

    Norms have no gains of their own there, which could undo the shares.
    """

    def __init__(self, n_in: int, architecture: Architecture, generator: torch.Generator) -> None:
        super().__init__()
        each = (_block(operation, n_in, architecture, generator, affine=False) for operation in OPERATIONS)
        self.operations = nn.ModuleList(nn.Sequential(OrderedDict(layers)) for layers in each)
        self.strengths = nn.Parameter(torch.zeros(len(OPERATIONS)))

    def forward(self, images: Tensor) -> Tensor:
        shares = self.strengths.softmax(0)
        return sum(share * operation(images) for share, operation in zip(shares, self.operations, strict=True))


def mixture(n_classes: int, by_hand: Architecture, generator: torch.Generator) -> nn.Sequential:
    """A network as deep and wide as the one made by hand, of `Mixture`s."""
    sides = (28 + 2 ** len(by_hand.blocks) - 1) // 2 ** len(by_hand.blocks)
    blocks = [Mixture(by_hand.channels if i else 1, by_hand, generator) for i in range(len(by_hand.blocks))]
    model = nn.Sequential(
        OrderedDict(body=nn.Sequential(*blocks, nn.Flatten()), head=nn.Linear(by_hand.channels * sides**2, n_classes))
    )
    new_head(model, n_classes, "random", generator=generator)
    return model


def differentiable(
    model: nn.Sequential,
    batches: Iterator[tuple[Tensor, Tensor]],
    episodes: Iterator[Episode],
    by_hand: Architecture,
    *,
    n_steps: int,
    learning_rate: float,
    strength_rate: float = 3e-2,
) -> Architecture:
    """Train the `mixture`'s weights on ``batches``, then its strengths on ``episodes`` of other classes by the loss of
    Prototypical networks, in turns, both by Adam; the strongest operation of each block is what stays.

    Source: Liu, Simonyan & Yang 2019 (DARTS, algorithm 1, first order), for a chain of blocks in the place of a cell,
    and without weight decay.
    """
    strengths = [p for name, p in model.named_parameters() if name.endswith("strengths")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("strengths")]
    by_batches = torch.optim.Adam(weights, lr=learning_rate)
    by_episodes = torch.optim.Adam(strengths, lr=strength_rate, betas=(0.5, 0.999))
    for _ in range(n_steps):
        images, labels = next(batches)
        _step(by_batches, cross_entropy(model(images), labels), weights)
        episode = next(episodes)
        (support, named), (queries, answers) = labelled(episode.support), labelled(episode.query)
        features = model.body(torch.cat([support, queries]))
        scores = prototypes(features[: len(support)], named, features[len(support) :])
        _step(by_episodes, cross_entropy(scores, answers), strengths)
    names = list(OPERATIONS)
    return by_hand._replace(blocks=tuple(names[int(strength.argmax())] for strength in strengths))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, trained: Sequence[nn.Parameter]) -> None:
    for p, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        p.grad = gradient
    optimizer.step()

"""Learning to compare: nothing is trained on a new task; a query is compared with the support in a learned space."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss, one_hot

from experiments.baselines.few_shot import Prepared, measured
from experiments.costs import TRAINING
from experiments.methods import Predictor
from gtl_core.tasks import Episode, labelled

Compare = Callable[[Tensor, Tensor, Tensor], Tensor]


def prototypes(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Minus the squared distance to each class's mean. Features [n, d], labels [n], [N, d] -> scores [N, n_way].

    Source: Snell, Swersky, Zemel 2017 (equations 1 and 2).
    """
    members = one_hot(labels).to(support.dtype)
    means = members.T @ support / members.sum(0)[:, None]
    return -((queries[:, None] - means) ** 2).sum(-1)


def attention(support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Log of the support's labels averaged with attention, the softmax of cosine similarities. Shapes as `prototypes`.

    Without the full context embeddings, which made no difference on Omniglot. Source: Vinyals et al. 2016 (matching
    networks, equations 1 and 2).
    """
    log_attention = cosine_similarity(queries[:, None], support, dim=-1).log_softmax(-1)
    other = ~one_hot(labels).bool().T  # [n_way, n]
    return log_attention[:, None].masked_fill(other, -torch.inf).logsumexp(-1)


class Relation(nn.Module):
    """A small network tells, in (0, 1), whether a query belongs to the class that has this sum of support features.

    The published relation module is convolutional; it is dense here, since our features have 1x1 or 2x2 pixels.
    Source: Sung et al. 2018, section 3.
    """

    def __init__(self, n_features: int, hidden: int = 64) -> None:
        super().__init__()
        self.relate = nn.Sequential(
            nn.Linear(2 * n_features, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid(), nn.Flatten(-2)
        )

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        classes = one_hot(labels).to(support.dtype).T @ support
        return self.relate(torch.cat(torch.broadcast_tensors(queries[:, None], classes), -1))


@measured
def learn_to_compare(
    model: nn.Module,
    episodes: Sequence[Episode],
    *,
    compare: Compare = prototypes,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
    learning_rate: float = 1e-3,
) -> Prepared:
    """Train the body, by Adam, so that ``compare`` gives each episode's queries their labels.

    One episode per step; the number of classes need not be that of the tasks to come (Snell et al. train on 60).
    """
    model, compare = copy.deepcopy((model, compare))
    learned = [*model.body.parameters(), *(compare.parameters() if isinstance(compare, nn.Module) else ())]
    optimizer = torch.optim.Adam(learned, lr=learning_rate)
    passes = 0
    for episode in episodes:
        (support, labels), (queries, answers) = labelled(episode.support), labelled(episode.query)
        optimizer.zero_grad()
        loss(compare_all(model, support, labels, compare=compare)(queries), answers).backward()
        optimizer.step()
        passes += TRAINING * (len(support) + len(queries))
    extra = dict(compare.named_parameters()) if isinstance(compare, nn.Module) else {}
    return Prepared(model, passes, extra)


def compare_all(model: nn.Module, inputs: Tensor, labels: Tensor, *, compare: Compare) -> Predictor:
    """Support and queries go through the body as one batch, so that batch statistics are the same for both."""

    def predict(queries: Tensor) -> Tensor:
        features = model.body(torch.cat([inputs, queries]))
        return compare(features[: len(inputs)], labels, features[len(inputs) :])

    return predict


def prototypical(model: nn.Module, episodes: Sequence[Episode], **options) -> Prepared:
    """Prototypical networks (Snell, Swersky, Zemel 2017)."""
    return learn_to_compare(model, episodes, compare=prototypes, **options)


def matching(model: nn.Module, episodes: Sequence[Episode], **options) -> Prepared:
    """Matching networks (Vinyals et al. 2016)."""
    return learn_to_compare(model, episodes, compare=attention, loss=nn.functional.nll_loss, **options)


def relation(model: nn.Module, episodes: Sequence[Episode], *, generator: torch.Generator, **options) -> Prepared:
    """Relation networks (Sung et al. 2018): mean squared error to 1 for the right class and 0 for the others."""
    compare = Relation(model.head.in_features)
    for p in compare.parameters():
        bound = p.shape[-1] ** -0.5
        nn.init.uniform_(p, -bound, bound, generator=generator)

    def squared_error(scores: Tensor, labels: Tensor) -> Tensor:
        return mse_loss(scores, one_hot(labels, scores.shape[-1]).to(scores.dtype))

    return learn_to_compare(model, episodes, compare=compare, loss=squared_error, **options)

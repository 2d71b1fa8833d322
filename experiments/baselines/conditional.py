"""Networks that write the trained network, or its answers, from the examples alone: no descent on a new task.

Both are comparisons in the sense of `baselines.compare`, and are trained as those are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad

from experiments.baselines.compare import learn_to_compare
from experiments.baselines.few_shot import Prepared
from gtl_core.tasks import Episode


class HyperHead(nn.Module):
    """Writes a class's row of a linear head, weights and bias, from the mean of the class's features.

    Features [n, d], labels [n], queries [N, d] -> logits [N, n_way]. Source: Requeima et al. 2019 (CNAPs, section 2.2:
    the classifier's weights by a function of each class's mean), here of the head alone; Ha, Dai, Le 2017.
    """

    def __init__(self, n_features: int, n_way: int, hidden: int = 128) -> None:
        super().__init__()
        self.write = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_features + 1))

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        members = one_hot(labels).to(support.dtype)
        rows = self.write(members.T @ support / members.sum(0)[:, None])  # [n_way, d + 1]
        return queries @ rows[:, :-1].T + rows[:, -1]


class InContext(nn.Module):
    """A small transformer that reads the labelled support and one query, and says the query's class.

    Shapes as `HyperHead`. Every query is read by itself: [N, n + 1, width]. Labels enter as one-hot vectors, none for
    the query. Source: Kirsch et al. 2022 (general-purpose in-context learning); Garnelo et al. 2018 for the question.
    """

    def __init__(self, n_features: int, n_way: int, width: int = 64, n_layers: int = 2) -> None:
        super().__init__()
        self.enter = nn.Linear(n_features + n_way, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.read = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.answer = nn.Linear(width, n_way)

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        n_way = self.answer.out_features
        told = torch.cat([support, one_hot(labels, n_way).to(support.dtype)], 1)
        tokens = torch.cat([told.expand(len(queries), -1, -1), pad(queries, (0, n_way))[:, None]], 1)
        return self.answer(self.read(self.enter(tokens))[:, -1])


def conditional(
    model: nn.Sequential,
    episodes: Sequence[Episode],
    *,
    kind: type[HyperHead] | type[InContext],
    generator: torch.Generator,
    **options: float,
) -> Prepared:
    """The body and what reads its features, trained together on the ``episodes``; see `learn_to_compare`."""
    reader = kind(model.head.in_features, model.head.out_features)
    for name, p in reader.named_parameters():
        if p.dim() > 1:
            nn.init.uniform_(p, -(p.shape[-1] ** -0.5), p.shape[-1] ** -0.5, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    return learn_to_compare(model, episodes, compare=reader, **options)

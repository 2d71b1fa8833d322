"""Networks that write the trained network, or its answers, from the examples alone: no descent on a new task.

Both are comparisons in the sense of `baselines.compare`, and are trained as those are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from experiments.baselines.compare import learn_to_compare
from experiments.baselines.few_shot import Prepared
from gtl_core.tasks import Episode


def scaled(features: Tensor) -> Tensor:
    """Features [..., d] at length sqrt(d), so that each is of size 1: next to those of a deep body labels are too faint
    to be read."""
    return features.shape[-1] ** 0.5 * normalize(features, dim=-1)


class HyperHead(nn.Module):
    """Writes a class's row of a linear head, weights and bias, from the mean of the class's features: what is added to
    that mean.

    Features [n, d], labels [n], queries [N, d] -> logits [N, n_way]. Source: Requeima et al. 2019 (CNAPs, section 2.2:
    the classifier's weights by a function of each class's mean), here of the head alone; Ha, Dai, Le 2017.
    """

    def __init__(self, n_features: int, n_way: int, hidden: int = 128) -> None:
        super().__init__()
        self.write = nn.Sequential(nn.Linear(n_features, hidden), nn.ReLU(), nn.Linear(hidden, n_features + 1))

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        members = one_hot(labels).to(support.dtype)
        means = members.T @ scaled(support) / members.sum(0)[:, None]
        weights, bias = self.write(means).split([means.shape[1], 1], 1)  # [n_way, d], [n_way, 1]
        return scaled(queries) @ (means + weights).T / means.shape[1] ** 0.5 + bias.T


class InContext(nn.Module):
    """A small transformer that reads the labelled support and one query, and says the query's class.

    Shapes as `HyperHead`. Every query is read by itself, behind the support: [N, n + 1, width]. Source: Kirsch et al.
    2022 (general-purpose in-context learning); Garnelo et al. 2018 for the question.
    """

    def __init__(self, n_features: int, n_way: int, width: int = 64, n_layers: int = 2) -> None:
        super().__init__()
        self.show, self.tell = nn.Linear(n_features, width), nn.Linear(n_way, width)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.read = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.answer = nn.Linear(width, n_way)

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        told = scaled(one_hot(labels, self.answer.out_features).to(support.dtype))
        examples = self.show(scaled(support)) + self.tell(told)
        tokens = torch.cat([examples.expand(len(queries), -1, -1), self.show(scaled(queries))[:, None]], 1)
        return self.answer(self.read(tokens)[:, -1])


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

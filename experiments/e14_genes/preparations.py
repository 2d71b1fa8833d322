"""What is made before any new type is seen: networks pretrained on other types of cells, and scouts among those."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from experiments.costs import TRAINING
from experiments.data.genes import NAMES, Cells, load_cells
from experiments.models import multilayer_perceptron
from experiments.optimizers import SCOUT_RATES, OptimizerName, recipe
from experiments.parameters import Count, ParameterError, Rate, Seed
from experiments.preparations.pretraining import Body
from experiments.preparations.scouting import ScoutingStep
from experiments.preparations.steps import Step
from gtl_core.files import read_safetensors, write_safetensors
from gtl_core.scouting import scout
from gtl_core.tasks import rng
from gtl_core.training import fit

N_WAY = 2  # types to be told apart
HIDDEN = (64, 32)
MASKED = 0.3  # share of the genes that are hidden from a network that learns to fill them in

CellName = Literal[*NAMES]
ZeroPoint = Literal["types", "masked", "random"]
Scouts = Literal["pairs", "clusters"]


class Split(NamedTuple):
    """Which types serve which purpose: numbers of types."""

    pretraining: list[int]
    validation: list[int]
    test: list[int]


def split_types(cells: Cells, seed: int, n_enough: int) -> Split:
    """Two types to test on and two to choose settings on, drawn from those with at least ``n_enough`` cells; all others
    for pretraining and scouts. ParameterError if fewer than four have so many, or none are left for pairs."""
    counts = torch.bincount(cells.types, minlength=len(cells.type_names)).tolist()
    enough = [number for number, n in enumerate(counts) if n >= n_enough]
    others = sum(n > 1 for n in counts) - 2 * N_WAY
    if len(enough) < 2 * N_WAY or others < N_WAY:
        raise ParameterError(
            f"{cells.name} has {len(enough)} types with {n_enough} cells or more and {others} others; needed are "
            f"{2 * N_WAY} and {N_WAY}: lower n_shots or n_query"
        )
    drawn = torch.randperm(len(enough), generator=rng(seed, "types"))[: 2 * N_WAY].tolist()
    test, validation = ([enough[i] for i in some] for some in (drawn[:N_WAY], drawn[N_WAY:]))
    return Split([i for i, n in enumerate(counts) if n > 1 and i not in test + validation], validation, test)


def gene_network(n_genes: int, n_way: int, seed: int) -> nn.Sequential:
    """Genes [N, n_genes] -> [N, n_way] logits; named ``body.*`` and ``head.*``."""
    *body, head = multilayer_perceptron([n_genes, *HIDDEN, n_way], nn.ReLU, generator=rng(seed, "network"))
    return nn.Sequential(OrderedDict(body=nn.Sequential(*body), head=head))


class GenePretraining(Step):
    """A network that has learned to name the other types, or to fill in hidden genes of theirs, or nothing yet."""

    kind: Literal["gene_pretraining"] = "gene_pretraining"
    cells: CellName
    seed: Seed
    n_enough: Count  # see `split_types`
    zero_point: ZeroPoint
    n_steps: Count
    batch_size: Count = 64
    learning_rate: Rate = 1e-3

    def cost(self) -> int:
        return 0 if self.zero_point == "random" else TRAINING * self.n_steps * self.batch_size

    def scaled(self) -> tuple[Cells, Split]:
        """All of them, each gene at mean 0 and deviation 1 over those for pretraining; and who serves which purpose."""
        cells = load_cells(self.cells)
        split = split_types(cells, self.seed, self.n_enough)
        mine = cells.expression[torch.isin(cells.types, torch.tensor(split.pretraining))]
        deviation = mine.std(0)
        scaled = (cells.expression - mine.mean(0)) / torch.where(deviation > 0, deviation, 1)
        return Cells(cells.name, scaled.clamp(-10, 10), cells.types, cells.type_names, cells.digest), split

    def examples(self) -> tuple[Tensor, Tensor]:
        """The cells for pretraining [N, n_genes], and their types, counted from 0 [N]."""
        cells, split = self.scaled()
        parts = [cells.of_type(number) for number in split.pretraining]
        labels = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
        return torch.cat(parts), labels

    def make(self, folder: Path) -> None:
        inputs, labels = self.examples()
        n_genes, batches = inputs.shape[1], rng(self.seed, "batches")
        masked = self.zero_point == "masked"
        model = gene_network(n_genes, n_genes if masked else int(labels.max()) + 1, self.seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        for _ in range(self.n_steps if self.zero_point != "random" else 0):
            batch = torch.randint(len(inputs), (self.batch_size,), generator=batches)
            cells = inputs[batch]
            if masked:
                hidden = torch.rand(cells.shape, generator=batches) < MASKED
                fit(model, cells * ~hidden, cells, optimizer, epochs=1, loss=_of_hidden(hidden))
            else:
                fit(model, cells, labels[batch], optimizer, epochs=1)
        write_safetensors(self.path(folder), model.body.state_dict(), {"parameters": self.model_dump()})

    def body(self, folder: Path) -> Body:
        """Of the network that `make` wrote."""
        return read_safetensors(self.path(folder))[0]

    def model(self, folder: Path) -> nn.Sequential:
        """The zero point, with a new head."""
        body = self.body(folder)
        model = gene_network(body["0.weight"].shape[1], N_WAY, self.seed)
        model.body.load_state_dict(body)
        return model


def _of_hidden(hidden: Tensor):
    return lambda outputs, cells: mse_loss(outputs[hidden], cells[hidden])


class GeneScouting(ScoutingStep):
    """Scouts from the zero point: each tells two of the other types apart, or two clusters, without any label."""

    kind: Literal["gene_scouting"] = "gene_scouting"
    pretraining: GenePretraining
    by: Scouts
    n_scouts: Count
    n_shot: Annotated[int, Field(ge=2)]  # cells of each side, where there are as many
    epochs: Count
    optimizer: OptimizerName

    def needs(self) -> list[Step]:
        return [self.pretraining]

    def cost(self) -> int:
        return TRAINING * self.n_scouts * self.epochs * N_WAY * self.n_shot

    def sides(self) -> Tensor:
        """What a scout's two sides are drawn from [N]: numbers of types, or of clusters of cells."""
        inputs, labels = self.pretraining.examples()
        return labels if self.by == "pairs" else clusters(inputs, self.pretraining.seed)

    def tasks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs [N, n_genes] and labels of each scout; the pairs in a random order, again and again."""
        inputs, sides = self.pretraining.examples()[0], self.sides()
        members = [(sides == side).nonzero().flatten() for side in sides.unique()]
        pairs = list(combinations([some for some in members if len(some) > 1], N_WAY))
        order = torch.randperm(len(pairs), generator=rng(self.pretraining.seed, "pairs")).tolist()
        for i in range(self.n_scouts):
            generator = rng(self.pretraining.seed, "scout", i)
            drawn = [
                some[torch.randperm(len(some), generator=generator)[: self.n_shot]]
                for some in pairs[order[i % len(order)]]
            ]
            labels = torch.arange(N_WAY).repeat_interleave(torch.tensor([len(some) for some in drawn]))
            yield inputs[torch.cat(drawn)], labels

    def make(self, folder: Path) -> None:
        training = recipe(self.optimizer, SCOUT_RATES[self.optimizer], self.epochs)
        scout(self.pretraining.model(folder), self.tasks(), training).save(self.path(folder))


def clusters(inputs: Tensor, seed: int, n_components: int = 30, n_clusters: int = 10) -> Tensor:
    """The cluster of each cell [N], by k-means on principal components: the re-run's scouts without labels."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    components = PCA(n_components, svd_solver="full").fit_transform(inputs.numpy())
    found = KMeans(n_clusters, n_init=3, random_state=seed).fit_predict(components)
    return torch.from_numpy(found).long()

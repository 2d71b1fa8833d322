"""Cells, of which each has a type and the expression of many genes: `simulated` (made here, no download) and `pbmc`,
700 blood cells of ten types (Zheng et al. 2017), as scanpy ships them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from experiments.data import DataError
from experiments.data.archives import find

NAMES = ("simulated", "pbmc")
URL = "https://raw.githubusercontent.com/scverse/scanpy/1.11.5/src/scanpy/datasets/"
FILE, MD5 = "10x_pbmc68k_reduced.h5ad", "eeb6a137329c7f6f1cb5ac2568ffd3aa"


@dataclass(frozen=True, eq=False)
class Cells:
    """A set of cells: `expression` is float [n_cells, n_genes], log(1 + counts of a gene per 10,000 of the cell);
    `types` [n_cells] are numbers of `type_names`; `digest` is the sha256 of it all, for the provenance of results."""

    name: str
    expression: Tensor = field(repr=False)
    types: Tensor = field(repr=False)
    type_names: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, name: str, expression: np.ndarray, types: np.ndarray, type_names: Sequence[str]) -> Self:
        """With its digest. DataError if a value is not finite, or if cells and types do not go together."""
        if expression.ndim != 2 or len(expression) != len(types):
            raise DataError(f"{name}: {len(types)} types for expression of shape {expression.shape}")
        if not np.isfinite(expression).all():
            cell, gene = np.argwhere(~np.isfinite(expression))[0]
            raise DataError(f"{name}: the expression of gene {gene} in cell {cell} is {expression[cell, gene]}")
        if len(types) == 0 or not 0 <= types.min() <= types.max() < len(type_names):
            raise DataError(f"{name}: a cell is of none of the {len(type_names)} types")
        table, numbers = np.ascontiguousarray(expression, np.float32), np.ascontiguousarray(types, np.int64)
        about = json.dumps([name, table.shape, list(type_names)]).encode()
        digest = hashlib.sha256(about + table.tobytes() + numbers.tobytes()).hexdigest()
        return cls(name, torch.from_numpy(table), torch.from_numpy(numbers), tuple(type_names), digest)

    def of_type(self, number: int) -> Tensor:
        """The expression of its cells [n, n_genes]."""
        return self.expression[self.types == number]


@cache
def load_cells(name: str) -> Cells:
    """The cells called ``name``, one of `NAMES`. Kept in memory: read only. DataError if they cannot be had."""
    if name not in NAMES:
        raise DataError(f"unknown cells {name!r}: use one of {', '.join(NAMES)}")
    return simulated() if name == "simulated" else read_h5ad(find(URL, FILE, MD5))


def read_h5ad(path: Path) -> Cells:
    """The cells of scanpy's file: the normalised counts that it keeps beside what it computed from them."""
    import h5py  # only those who read such a file need it

    try:
        with h5py.File(path) as file:
            counts, names = file["raw.X"], [name.decode() for name in file["uns/bulk_labels_categories"][:]]
            indptr, columns, values = (counts[part][:] for part in ("indptr", "indices", "data"))
            types = file["obs"]["bulk_labels"].astype(np.int64)
            expression = np.zeros(file["X"].shape, np.float32)
        expression[np.repeat(np.arange(len(types)), np.diff(indptr)), columns] = values
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not scanpy's {FILE} ({error}): remove it and get it again") from error
    return Cells.of("pbmc", expression, types, names)


def simulated(n_types: int = 8, n_cells: int = 60, n_genes: int = 300, seed: int = 0) -> Cells:
    """Counts drawn as sequencing does: every type has programs of genes that it shares with its family, and some of its
    own; a cell's counts are Poisson around them, at a depth of its own."""
    draw = np.random.Generator(np.random.PCG64(seed))  # its stream is the same on all machines
    base = draw.gamma(0.4, 2.0, n_genes)
    family, own = (np.exp(draw.normal(0, 1, (n, n_genes)) * (draw.random((n, n_genes)) < share))
                   for n, share in ((2, 0.2), (n_types, 0.05)))  # fmt: skip
    types = np.arange(n_types).repeat(n_cells)
    rates = base * family[types % 2] * own[types]
    depth = draw.lognormal(0, 0.3, len(types))
    counts = draw.poisson(rates / rates.sum(1, keepdims=True) * 150 * depth[:, None])
    expression = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
    return Cells.of("simulated", expression, types, [f"type {i}" for i in range(n_types)])

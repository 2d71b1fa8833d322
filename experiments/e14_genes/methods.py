"""What tells two types of cells apart from a few of each, one row each: on the genes themselves, or by a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from experiments.methods import (
    CONTROL,
    FEATURES,
    FINE_TUNING,
    FROZEN,
    NETWORK,
    PLAIN,
    TENSOR,
    Family,
    Method,
    of_body,
    table,
)
from gtl_core.shaping import shuffled, uniform
from gtl_core.tasks import rng

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin

ON_GENES = Family("on the genes, no network", "#CC79A7")


@dataclass(frozen=True)
class GeneMethod(Method):
    """A method of telling types apart.

    classifier: what is fitted to the genes, for each of the values that it ``tries`` in place of rates; None: a network
    learns. least: how many cells of each type it needs. trained: of the network. from_probe: it starts from the head
    that the linear probe ended with. anchor: strength of a spring from the body to the zero point.
    """

    classifier: Callable[[float], ClassifierMixin] | None = None
    tries: tuple[float, ...] = ()
    least: int = 1
    trained: Literal["all", "head", "nothing"] = "all"
    from_probe: bool = False
    anchor: float = 0.0


def logistic_regression(inverse_strength: float) -> ClassifierMixin:
    from sklearn.linear_model import LogisticRegression  # slow to import, and networks do not need it

    return LogisticRegression(C=inverse_strength, max_iter=1000)


def shrunken_centroids(threshold: float) -> ClassifierMixin:
    """Class means that are drawn towards the mean of all, gene by gene. Source: Tibshirani et al. 2002."""
    from sklearn.neighbors import NearestCentroid

    return NearestCentroid(shrink_threshold=threshold)


def _row(row: Method, **more: object) -> GeneMethod:
    return GeneMethod(**(vars(row) | more))


# As many values as others have rates in the paper profile.
PENALTIES = (1e-7, 1e-6, 1e-5, 1e-4, 0.01, 1.0, 100.0)  # inverse
THRESHOLDS = (0.01, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)  # in standard deviations of a gene's mean
_on_genes = partial(GeneMethod, family=ON_GENES)
_control = partial(GeneMethod, family=CONTROL)
METHODS = table(
    [
        _on_genes("logistic", "logistic regression", classifier=logistic_regression, tries=PENALTIES),
        _on_genes("shrunken", "shrunken centroids", classifier=shrunken_centroids, tries=THRESHOLDS, least=2),
        GeneMethod("centroid", "nearest centroid", FEATURES, "#F0E442", has_rate=False, trained="nothing"),
        _row(FROZEN, trained="head"),
        _row(PLAIN),
        GeneMethod("lp_ft", "LP-FT", FINE_TUNING, "#E69F00", from_probe=True),
        GeneMethod("l2_sp", "L2-SP", FINE_TUNING, "#666666", anchor=0.1),
        _row(NETWORK, guide=of_body),
        _row(TENSOR, guide=partial(of_body, scope="tensor")),
        _control("shuffled", "values shuffled", guide=lambda d: shuffled(of_body(d), rng(0, "shuffled"))),
        _control("uniform", "one g: the mean", own_colour="#000000", guide=lambda d: uniform(of_body(d))),
    ]
)

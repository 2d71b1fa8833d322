"""How far scouts moved each parameter (`Displacement`) and what that allows later training to move (`Guide`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gtl_core.files import called_otherwise, check_same, digest, named, read_safetensors, trained, write_safetensors
from gtl_core.normalization import accumulator, allow, normalize

STATISTICS = ("square", "abs")


class Displacement:
    """Streaming statistics of `parameters - zero point` over scouts.

    Only sums are kept, so memory does not grow with the number of scouts, and two displacements from the same zero
    point add up: ``a + b`` is what one scouting party would have found that ran the tasks of both. Of a network, only
    parameters that require a gradient are kept.

    ``zero_point`` maps names to a copy of where the scouts started; ``count`` is how many were added (not whole after a
    multiplication), ``diverged`` how many were left out, not finite. ValueError if a parameter is not real.
    """

    def __init__(self, zero_point: nn.Module | Mapping[str, Tensor]) -> None:
        self.zero_point = {name: p.detach().clone() for name, p in trained(zero_point).items()}
        for name, p in self.zero_point.items():
            if not p.is_floating_point():
                raise ValueError(f"'{name}' is {p.dtype}: only parameters of real numbers can be guided")
        self.count: float = 0
        self.diverged = 0
        # Half precision would lose small displacements in a long sum.
        self._sums = {
            statistic: {n: torch.zeros_like(p, dtype=accumulator(p)) for n, p in self.zero_point.items()}
            for statistic in ("signed", *STATISTICS)
        }

    def add(self, scout: nn.Module | Mapping[str, Tensor]) -> bool:
        """Add one trained scout. False, and nothing added, if it diverged (its displacement is not finite)."""
        if isinstance(scout, nn.Module):
            scout = {name: p for name, p in scout.named_parameters() if name in self.zero_point}
        check_same(scout, self.zero_point, "the scout", "the zero point")
        pairs = {n: (p.detach(), self.zero_point[n]) for n, p in scout.items()}
        moved = {n: (p.to(z.device) - z).to(accumulator(p)) for n, (p, z) in pairs.items()}
        squared = {n: d.square() for n, d in moved.items()}
        if not all(torch.isfinite(s).all() for s in squared.values()):
            self.diverged += 1
            return False
        for name, d in moved.items():
            self._sums["signed"][name] += d
            self._sums["abs"][name] += d.abs()
            self._sums["square"][name] += squared[name]
        self.count += 1
        return True

    def __add__(self, other: Displacement | int) -> Displacement:
        if not isinstance(other, Displacement):
            return self if other == 0 else NotImplemented  # where `sum` begins
        if digest(self.zero_point) != digest(other.zero_point):
            raise ValueError("displacements from two different zero points cannot be added")
        added = {kind: {n: s + other._sums[kind][n] for n, s in sums.items()} for kind, sums in self._sums.items()}
        return self._with(added, self.count + other.count, self.diverged + other.diverged)

    def __rmul__(self, weight: float) -> Displacement:
        """``0.5 * a`` counts every scout of ``a`` half: ``0.5 * a + b`` is a weighted mean. ValueError if negative."""
        if not weight >= 0:
            raise ValueError(f"weight = {weight}: must not be negative")
        weighted = {kind: {n: weight * s for n, s in sums.items()} for kind, sums in self._sums.items()}
        return self._with(weighted, weight * self.count, self.diverged)

    __radd__, __mul__ = __add__, __rmul__

    @property
    def mean(self) -> dict[str, Tensor]:
        """Mean signed displacement per parameter: where scouts agree on a direction, it is as large as `mean_abs`."""
        return self._mean("signed")

    @property
    def mean_abs(self) -> dict[str, Tensor]:
        """Mean absolute displacement per parameter."""
        return self._mean("abs")

    @property
    def mean_square(self) -> dict[str, Tensor]:
        """Mean squared displacement per parameter, the statistic of the paper."""
        return self._mean("square")

    def guide(self, scope: str = "network", normalization: str = "max", statistic: str = "square") -> Guide:
        """The guide: mean displacement brought into [0, 1].

        scope: over what the values are normalised, the whole ``network`` or each ``tensor`` by itself (the authors').
        normalization: ``max`` divides by the largest value; ``minmax`` (the authors') subtracts the smallest first,
            so that the least moved parameter of every scope is frozen. Where all values of a scope are equal, minmax is
            undefined and max is used: a lone parameter that moved gets 1, one that did not gets 0. ``zero`` subtracts
            the smallest and ``raw`` nothing; both divide by nothing, so that steps shrink with the displacements.
        statistic: mean ``square`` or mean ``abs`` displacement.

        Raises ValueError if there is no scout to average over, or if no parameter moved.
        """
        allow("statistic", statistic, STATISTICS)
        means = self._mean(statistic)
        if not any(mean.any() for mean in means.values()):  # also where squares of tiny displacements underflow
            raise ValueError("no parameter moved: the scouts did not train the copies that they were given")
        values = normalize(means, scope, normalization)
        settings = {"scope": scope, "normalization": normalization, "statistic": statistic}
        return Guide(values, {"zero_point": digest(self.zero_point), "scouts": self.count, **settings})

    @property
    def moved(self) -> bool:
        """Whether any scout moved any parameter."""
        return any(total.any() for total in self._sums["abs"].values())

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that `load` restores exactly, to be added to others or made a guide of later."""
        tensors = {f"zero_point:{n}": p for n, p in self.zero_point.items()}
        tensors |= {f"{s}:{n}": total for s, sums in self._sums.items() for n, total in sums.items()}
        write_safetensors(path, tensors, {"count": self.count, "diverged": self.diverged})

    @classmethod
    def load(cls, path: str | Path) -> Displacement:
        """Read what `save` wrote, onto the CPU. Raises ValueError for a guide's file, or one of another program."""
        tensors, metadata = read_safetensors(path)
        kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("zero_point", "signed", *STATISTICS)}
        try:
            for key, tensor in tensors.items():
                kind, name = key.split(":", 1)
                kinds[kind][name] = tensor
            displacement = cls(kinds.pop("zero_point"))._with(kinds, metadata["count"], metadata["diverged"])
            for sums in kinds.values():
                check_same(sums, displacement.zero_point, "a sum", "the zero point")
            if not min(displacement.count, displacement.diverged) >= 0:
                raise ValueError("fewer than no scouts")
            return displacement
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a displacement ({error}); if a guide: Guide.load(path)") from None

    def _with(self, sums: dict[str, dict[str, Tensor]], count: float, diverged: int) -> Displacement:
        displacement = Displacement(self.zero_point)
        displacement._sums, displacement.count, displacement.diverged = dict(sums), count, diverged
        return displacement

    def _mean(self, statistic: str) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("the displacement of zero scouts is undefined: add at least one that did not diverge")
        return {name: total / self.count for name, total in self._sums[statistic].items()}


class Guide(Mapping[str, Tensor]):
    """One value g in [0, 1] per parameter: 0 keeps it where it is, 1 lets it train as usual.

    A read-only mapping from parameter name (as in ``model.named_parameters()``) to a tensor of the parameter's shape.
    Made by `Displacement.guide`, or by hand for control experiments: ``Guide({name: torch.ones_like(p), ...})``.
    ``metadata`` tells where it comes from. Values are copied in; ValueError if one is not in [0, 1].
    """

    def __init__(self, values: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> None:
        given = values.values() if isinstance(values, Mapping) else [None]
        if not all(isinstance(g, Tensor) and not g.is_complex() for g in given):
            raise TypeError(f"values: must be a mapping from names to real tensors, and is a {type(values).__name__}")
        for name, g in values.items():
            if not ((g >= 0) & (g <= 1)).all():  # NaN fails both comparisons
                raise ValueError(f"guide values must lie in [0, 1]: '{name}' has {g.min():.3g} to {g.max():.3g}")
        self._values = {name: g.detach().clone() for name, g in values.items()}
        self.metadata: dict[str, Any] = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        n, total = sum(g.numel() for g in self.values()), sum(g.sum().item() for g in self.values())
        return f"Guide({n} values in {len(self)} tensors, mean {total / max(n, 1):.3g}, {self.metadata})"

    def to(self, device: str | torch.device) -> Guide:
        """A copy on another device."""
        return Guide({name: g.to(device) for name, g in self.items()}, self.metadata)

    def without(self, *names: str) -> Guide:
        """The guide without the parameters ``names``, see `named`: `Guided` has ``unguided`` for what has none."""
        return self._of(set(self) - self.named(*names))

    def only(self, *names: str) -> Guide:
        """The guide of the parameters ``names``, see `named`, and of nothing else."""
        return self._of(self.named(*names))

    def renamed(self, rename: Callable[[str], str]) -> Guide:
        """The guide for a network that calls its parameters ``rename(name)``. ValueError if two would be called alike.

        ``guide.renamed(lambda name: name.removeprefix("module."))`` is for the network inside a wrapper.
        """
        if len({rename(name) for name in self}) < len(self):
            raise ValueError("rename gives two parameters one name")
        return Guide({rename(name): g for name, g in self.items()}, self.metadata)

    def named(self, *names: str) -> set[str]:
        """The parameters that ``names`` mean: each a parameter, a module of which all are meant (``head``), or a
        pattern (``*lora_*``). ValueError if one means none."""
        return named(self, names, "guide")

    def _of(self, names: set[str]) -> Guide:
        return Guide({name: g for name, g in self.items() if name in names}, self.metadata)

    def check(self, model: nn.Module, partial: bool = False) -> None:
        """Raise ValueError, naming the parameter, unless the guide has one tensor for each parameter of ``model`` that
        requires a gradient (if it may be ``partial``, for any of them), and none for what is not there."""
        there = dict(model.named_parameters())
        needed = {n: p for n, p in there.items() if n in self or (p.requires_grad and not partial)}
        try:
            check_same(self, needed, "guide", "the model")
        except ValueError as error:
            hint = "guide.without(name) and Guided(..., unguided=...) are for parts of a network that have no guide"
            if pair := called_otherwise(self, there):
                hint = "'{}' is '{}' in the model: give the plain module, or guide.renamed(...)".format(*pair)
            raise ValueError(f"{error} ({hint})") from None

    def save(self, path: str | Path, sparse: bool = False) -> None:
        """Write values, metadata, torch version; if ``sparse``, only values that are not 0 (see `shaping.sparse`)."""
        write_safetensors(path, self._values, {"guide": {**self.metadata, "torch": torch.__version__}}, sparse)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None, partial: bool = False) -> Guide:
        """Read a guide onto the CPU, whatever device it was saved from; with ``model``, check that it fits and put it
        onto the model's device.

        partial: leave out what the model does not have, or has in another shape, such as the head of another task;
        ``metadata["left_out"]`` lists the names, and `Guided` has ``unguided`` for them.
        """
        values, metadata = read_safetensors(path)
        if not isinstance(metadata.get("guide"), dict):
            raise ValueError(f"{path} does not hold a guide; if a displacement: Displacement.load(path).guide()")
        guide = cls(values, metadata["guide"])
        if model is None:
            return guide
        there = dict(model.named_parameters())
        if partial:
            fits = {n for n, g in guide.items() if n in there and g.shape == there[n].shape}
            guide, left_out = guide._of(fits), sorted(set(guide) - fits)
            guide.metadata["left_out"] = left_out
        guide.check(model, partial)
        return cls({name: g.to(there[name].device) for name, g in guide.items()}, guide.metadata)

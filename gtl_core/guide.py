"""How far scouts moved each parameter (`Displacement`) and what that allows later training to move (`Guide`)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

STATISTICS = ("square", "abs")
SCOPES = ("network", "tensor")
NORMALIZATIONS = ("max", "minmax", "zero", "raw")


class Displacement:
    """Streaming statistics of `parameters - zero point` over scouts.

    Only sums are kept, so memory does not grow with the number of scouts, and two displacements from the same zero
    point add up: ``a + b`` is what one scouting party would have found that ran the tasks of both; in ``0.5 * a`` every
    scout counts half.

    ``zero_point`` maps parameter names to a copy of where the scouts started; ``count`` is the number of scouts added,
    ``diverged`` the number left out because they ended non-finite.
    """

    def __init__(self, zero_point: nn.Module | Mapping[str, Tensor]) -> None:
        self.zero_point = {name: p.detach().clone() for name, p in _parameters(zero_point).items()}
        self.count = 0
        self.diverged = 0
        # Half precision would lose small displacements in a long sum.
        self._sums = {
            statistic: {n: torch.zeros_like(p, dtype=_accumulator(p)) for n, p in self.zero_point.items()}
            for statistic in ("signed", *STATISTICS)
        }

    def add(self, scout: nn.Module | Mapping[str, Tensor]) -> bool:
        """Add one trained scout. False, and nothing added, if it diverged (its displacement is not finite)."""
        parameters = _parameters(scout)
        check_same(parameters, self.zero_point, "the scout", "the zero point")
        here = {n: p.detach().to(self.zero_point[n].device) for n, p in parameters.items()}
        moved = {n: (p - self.zero_point[n]).to(_accumulator(p)) for n, p in here.items()}
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

    def __add__(self, other: Displacement) -> Displacement:
        if digest(self.zero_point) != digest(other.zero_point):
            raise ValueError("displacements from two different zero points cannot be added")
        total = Displacement(self.zero_point)
        total.count, total.diverged = self.count + other.count, self.diverged + other.diverged
        for statistic, sums in total._sums.items():
            for name in sums:
                sums[name] = self._sums[statistic][name] + other._sums[statistic][name]
        return total

    def __rmul__(self, weight: float) -> Displacement:
        """``0.5 * a`` counts every scout of ``a`` half: ``0.5 * a + b`` is a weighted mean. ValueError if negative."""
        if not weight >= 0:
            raise ValueError(f"weight = {weight}: must not be negative")
        weighted = Displacement(self.zero_point)
        weighted.count, weighted.diverged = weight * self.count, self.diverged
        for statistic, sums in self._sums.items():
            weighted._sums[statistic] = {name: weight * total for name, total in sums.items()}
        return weighted

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
        _allow("statistic", statistic, STATISTICS)
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
        """Write a safetensors file that `load` restores exactly, to be merged with others or normalised later."""
        tensors = {f"zero_point:{n}": p for n, p in self.zero_point.items()}
        tensors |= {f"{s}:{n}": total for s, sums in self._sums.items() for n, total in sums.items()}
        write_safetensors(path, tensors, {"count": self.count, "diverged": self.diverged})

    @classmethod
    def load(cls, path: str | Path) -> Displacement:
        tensors, metadata = read_safetensors(path)
        if "count" not in metadata:
            raise ValueError(f"{path} holds a guide, not a displacement: Guide.load(path)")
        split: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, name = key.split(":", 1)
            split.setdefault(kind, {})[name] = tensor
        displacement = cls(split.pop("zero_point"))
        displacement._sums = split
        displacement.count, displacement.diverged = metadata["count"], metadata["diverged"]
        return displacement

    def _mean(self, statistic: str) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("the displacement of zero scouts is undefined: add at least one that did not diverge")
        return {name: total / self.count for name, total in self._sums[statistic].items()}


class Guide(Mapping[str, Tensor]):
    """One value g in [0, 1] per parameter: 0 keeps it where it is, 1 lets it train as usual.

    A read-only mapping from parameter name (as in ``model.named_parameters()``) to a tensor of the parameter's shape.
    Made by `Displacement.guide`, or by hand for control experiments: ``Guide({name: torch.ones_like(p), ...})``.
    ``metadata`` tells where it comes from. Values are copied in; raises ValueError if one is not in [0, 1].
    """

    def __init__(self, values: Mapping[str, Tensor], metadata: Mapping[str, object] | None = None) -> None:
        for name, g in values.items():
            if not ((g >= 0) & (g <= 1)).all():  # NaN fails both comparisons
                raise ValueError(f"guide values must lie in [0, 1]: '{name}' has {g.min():.3g} to {g.max():.3g}")
        self._values = {name: g.detach().clone() for name, g in values.items()}
        self.metadata = dict(metadata or {})

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        n = sum(g.numel() for g in self.values())
        mean = sum(g.sum().item() for g in self.values()) / max(n, 1)
        return f"Guide({n} values in {len(self)} tensors, mean {mean:.3g}, {self.metadata})"

    def to(self, device: str | torch.device) -> Guide:
        """A copy on another device."""
        return Guide({name: g.to(device) for name, g in self.items()}, self.metadata)

    def without(self, *names: str) -> Guide:
        """The guide without the parameters ``names``, each a parameter or a module of which all are meant (``head``).

        For a part of the network that the guide says nothing about, as when the new task's head has another shape than
        the zero point's; `Guided` takes ``unguided`` for what becomes of it. ValueError if nothing has such a name.
        """
        left_out = self.named(*names)
        return Guide({n: g for n, g in self.items() if n not in left_out}, self.metadata)

    def named(self, *names: str) -> set[str]:
        """The parameters that ``names`` mean, each a parameter or a module; ValueError if one means none."""
        found: set[str] = set()
        for name in names:
            meant = {n for n in self if n == name or n.startswith(f"{name}.")}
            if not meant:
                raise ValueError(f"guide has no entry for '{name}'")
            found |= meant
        return found

    def check(self, model: nn.Module, partial: bool = False) -> None:
        """Raise ValueError, naming the parameter, unless the guide has exactly one value per parameter of ``model``;
        if it may be ``partial``, per parameter for which it has any."""
        parameters = _parameters(model)
        if partial:
            parameters = {name: p for name, p in parameters.items() if name in self}
        try:
            check_same(self, parameters, "guide", "the model")
        except ValueError as error:
            hint = "guide.without(name) and Guided(..., unguided=...) are for parts of a network that have no guide"
            raise ValueError(f"{error} ({hint})") from None

    def save(self, path: str | Path, sparse: bool = False) -> None:
        """Write a safetensors file: the values, and the metadata with the torch version.

        sparse: write only what is not 0 and where it is: smaller if more than half is 0 (see `shaping.sparse`).
        """
        values, metadata = self._values, {**self.metadata, "torch": torch.__version__}
        if sparse:
            positions = {name: g.flatten().nonzero().flatten() for name, g in values.items()}
            metadata["shapes"] = {name: list(g.shape) for name, g in values.items()}
            values = {f"value:{name}": values[name].flatten()[at] for name, at in positions.items()}
            values |= {f"at:{name}": at.int() for name, at in positions.items()}
        write_safetensors(path, values, metadata)

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> Guide:
        """Read a guide onto the CPU, whatever device it was saved from; with ``model``, check that it fits and put it
        onto the model's device."""
        values, metadata = read_safetensors(path)
        if "count" in metadata:
            raise ValueError(f"{path} holds a displacement, not a guide: Displacement.load(path).guide()")
        if shapes := metadata.pop("shapes", None):
            stored, values = values, {}
            for name, shape in shapes.items():
                value, at = stored[f"value:{name}"], stored[f"at:{name}"].long()
                values[name] = value.new_zeros(shape).flatten().index_copy(0, at, value).view(shape)
        guide = cls(values, metadata)
        if model is None:
            return guide
        guide.check(model)
        return cls({name: guide[name].to(p.device) for name, p in model.named_parameters()}, metadata)


def normalize(values: Mapping[str, Tensor], scope: str = "network", normalization: str = "max") -> dict[str, Tensor]:
    """Values >= 0 of any statistic brought into [0, 1], as `Displacement.guide` says."""
    _allow("scope", scope, SCOPES)
    _allow("normalization", normalization, NORMALIZATIONS)
    normalized = {}
    for names in [list(values)] if scope == "network" else [[name] for name in values]:
        low = min(values[name].min() for name in names)
        high = max(values[name].max() for name in names)
        if normalization in ("max", "raw") or (normalization == "minmax" and low == high):
            low = torch.zeros_like(low)
        width = torch.ones_like(high) if normalization in ("zero", "raw") else high - low
        for name in names:
            normalized[name] = ((values[name] - low) / width).clamp(0, 1) if high > 0 else values[name]
    return normalized


def digest(parameters: nn.Module | Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values: equal exactly when two zero points are the same."""
    sha = hashlib.sha256()
    for name, p in sorted(_parameters(parameters).items()):
        sha.update(f"{name} {p.dtype} {tuple(p.shape)}\n".encode())
        sha.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write atomically: a kill at any moment leaves the old file or the new one."""
    path = Path(path)
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # One metadata key, because safetensors writes several in random order and equal content should be equal bytes.
    header = {"gtl": json.dumps(metadata, sort_keys=True)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes files that nobody else can read, whatever the umask
        save_file(tensors, temporary, header)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors (on the CPU) and metadata of a file written by `write_safetensors`."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get("gtl")
        if metadata is None:
            raise ValueError(f"{path} was not written by gtl_core")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata)  # noqa: SIM118


def _parameters(source: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    # Parameters only: buffers such as BatchNorm's running mean are not trained, so they have no guide.
    return dict(source.named_parameters()) if isinstance(source, nn.Module) else source


def check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, whom: str) -> None:
    for name, p in other.items():
        if name not in one:
            raise ValueError(f"{what} has no entry for '{name}'")
        if one[name].shape != p.shape:
            raise ValueError(f"{what} has shape {tuple(one[name].shape)} for '{name}', {whom} {tuple(p.shape)}")
    for name in one:
        if name not in other:
            raise ValueError(f"{what} has an entry for '{name}', which {whom} does not have")


def _allow(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def _accumulator(p: Tensor) -> torch.dtype:
    return torch.float32 if p.dtype in (torch.float16, torch.bfloat16) else p.dtype

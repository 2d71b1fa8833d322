"""The one writer of files, which replaces them in one go; tensors by name: in files, digested, compared."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write, which takes its place at the end of the ``with``.

    A kill at any moment leaves the old file or the new one, an exception the old one. A link stays one. Raises
    FileNotFoundError if there is no such folder.
    """
    path = Path(path).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path.name}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object], sparse: bool = False
) -> None:
    """Write tensors and JSON metadata, atomically (`replacing`): equal content gives equal bytes.

    sparse: write only what is not 0, and at which position (32 bits): smaller if more than half is 0.
    """
    if sparse:
        positions = {name: t.flatten().nonzero().flatten() for name, t in tensors.items()}
        metadata = {**metadata, "shapes": {name: list(t.shape) for name, t in tensors.items()}}
        tensors = {f"value:{name}": tensors[name].flatten()[at] for name, at in positions.items()}
        tensors |= {f"at:{name}": at.int() for name, at in positions.items()}
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes files that nobody else can read, whatever the umask
        # One metadata key, because safetensors writes several in random order.
        save_file(stored, temporary, {"gtl": json.dumps(metadata, sort_keys=True)})
        temporary.chmod(mode)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that `write_safetensors` wrote; ValueError for any other."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get("gtl")
        if header is None:
            raise ValueError(f"{path} was not written by gtl_core")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata = json.loads(header)
    if shapes := metadata.pop("shapes", None):
        entries, tensors = tensors, {}
        for name, shape in shapes.items():
            value, at = entries[f"value:{name}"], entries[f"at:{name}"].long()
            tensors[name] = value.new_zeros(shape).flatten().index_copy(0, at, value).view(shape)
    return tensors, metadata


def digest(parameters: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values: equal exactly when two zero points are the same."""
    sha = hashlib.sha256()
    for name, p in sorted(parameters.items()):
        sha.update(f"{name} {p.dtype} {tuple(p.shape)}\n".encode())
        # Not `contiguous`, which leaves a single element the stride of the tensor that it was taken from.
        dense = p.detach().cpu().clone(memory_format=torch.contiguous_format)
        sha.update(dense.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor], what: str, whom: str) -> None:
    """Raise ValueError, naming the parameter, unless both have the same names and shapes.

    what, whom: what ``one`` and ``other`` are called in the message.
    """
    for name in (*other, *one):
        if name not in one:
            raise ValueError(f"{what} has no entry for '{name}'")
        if name not in other:
            raise ValueError(f"{what} has an entry for '{name}', which {whom} does not have")
        if one[name].shape != other[name].shape:
            shapes = tuple(one[name].shape), tuple(other[name].shape)
            raise ValueError(f"{what} has shape {shapes[0]} for '{name}', {whom} {shapes[1]}")


def trained(source: nn.Module | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The parameters that training may move: buffers, such as BatchNorm's running mean, follow the data."""
    if not isinstance(source, nn.Module):
        return source
    return {name: p for name, p in source.named_parameters() if p.requires_grad}


def named(tensors: Mapping[str, Tensor], names: Iterable[str], what: str) -> set[str]:
    """The tensors that ``names`` mean, as `Guide.named` says; ``what``: what they are called if one means none."""
    found: set[str] = set()
    for name in names:
        meant = {n for n in tensors if n.startswith(f"{name}.") or fnmatchcase(n, name)}
        if not meant:
            raise ValueError(f"{what} has no entry for '{name}'")
        found |= meant
    return found


def called_otherwise(one: Iterable[str], other: Iterable[str]) -> tuple[str, str] | None:
    """A name of each that differ by what a wrapper puts before, if no name is in both."""
    pairs = itertools.product(one, other) if not {*one} & {*other} else ()
    return next((pair for pair in pairs if pair[0].endswith(f".{pair[1]}") or pair[1].endswith(f".{pair[0]}")), None)

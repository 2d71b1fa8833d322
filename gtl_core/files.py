"""The one writer of files, which replaces them in one go; tensors by name: in files, digested, compared."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
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

MOST_SPARSE = 2**31 - 1  # elements that a position of 32 bits can tell apart


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

    With the names in their order, and a digest of all, by which `read_safetensors` knows a damaged file. sparse: write
    only what is not 0, and at which position (32 bits): smaller if more than half is 0. ValueError if a tensor has more
    elements than that can count, OSError if the file cannot be written.
    """
    about = {"metadata": metadata, "names": list(tensors)}
    if sparse:
        if large := [name for name, t in tensors.items() if t.numel() > MOST_SPARSE]:
            raise ValueError(f"'{large[0]}' has more than {MOST_SPARSE:,} elements: it cannot be stored sparsely")
        positions = {name: t.flatten().nonzero().flatten() for name, t in tensors.items()}
        about["shapes"] = [list(t.shape) for t in tensors.values()]
        tensors = {f"value:{name}": tensors[name].flatten()[at] for name, at in positions.items()}
        tensors |= {f"at:{name}": at.int() for name, at in positions.items()}
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    text = json.dumps(about, sort_keys=True)
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes files that nobody else can read, whatever the umask
        # One metadata key, because safetensors writes several in random order.
        try:
            save_file(stored, temporary, {"gtl": f"{_seal(stored, text)} {text}"})
        except safetensors.SafetensorError as error:  # what the system said, of a full disk for instance
            raise OSError(f"cannot write {path} ({error})") from error
        temporary.chmod(mode)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU, in the order in which they were given) and metadata of a file of `write_safetensors`.

    ValueError, naming the file, for any other, and for one of which a bit is not as it was written. FileNotFoundError
    if there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            seal, _, text = (file.metadata() or {}).get("gtl", "").partition(" ")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or not a safetensors file ({error})") from None
    if not text:
        raise ValueError(f"{path} was not written by gtl_core")
    if seal != _seal(stored, text):
        raise ValueError(f"{path} is damaged: what it holds is not what was written")
    try:
        about = json.loads(text)
        return _tensors(stored, about), dict(about["metadata"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:  # the digest is right: made on purpose
        raise ValueError(f"{path} was not written by gtl_core ({type(error).__name__})") from None


def _tensors(stored: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    if "shapes" not in about:
        return {name: stored[name] for name in about["names"]}
    tensors = {}
    for name, shape in zip(about["names"], about["shapes"], strict=True):
        value, at = stored[f"value:{name}"], stored[f"at:{name}"].long()
        if math.prod(shape) > MOST_SPARSE:
            raise ValueError(f"{name} is too large")
        tensors[name] = value.new_zeros(shape).flatten().index_copy(0, at, value).view(shape)
    return tensors


def _seal(stored: Mapping[str, Tensor], text: str) -> str:
    return hashlib.sha256(f"{digest(stored)} {text}".encode()).hexdigest()


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

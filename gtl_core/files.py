"""How files are written: in one go. Safetensors files with metadata, and digests to tell parameters apart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write, which takes its place at the end of the ``with``.

    A kill at any moment leaves the old file or the new one, an exception the old one. The folder must exist.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and JSON metadata, atomically (`replacing`): equal content gives equal bytes."""
    stored = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes files that nobody else can read, whatever the umask
        # One metadata key, because safetensors writes several in random order.
        save_file(stored, temporary, {"gtl": json.dumps(metadata, sort_keys=True)})
        temporary.chmod(mode)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file that `write_safetensors` wrote; ValueError for any other's."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {}).get("gtl")
        if metadata is None:
            raise ValueError(f"{path} was not written by gtl_core")
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata)  # noqa: SIM118


def digest(parameters: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values: equal exactly when two zero points are the same."""
    sha = hashlib.sha256()
    for name, p in sorted(parameters.items()):
        sha.update(f"{name} {p.dtype} {tuple(p.shape)}\n".encode())
        sha.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()

"""Results as tidy CSV with their provenance beside them, written atomically."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from gtl_core._engine import engine
from gtl_core.files import replacing

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "pillow", "safetensors", "papermill", "snakemake")
_started = time.monotonic()


def resolve(folder: str) -> Path:
    """A folder given in a parameter: relative ones start at the project, wherever the notebook was started from."""
    return ROOT / folder


def write(folder: str, name: str, frame: pd.DataFrame, provenance: Mapping[str, object]) -> None:
    """Write ``<folder>/<name>.csv`` (one row per seed, method, ..., metric and value) and ``<name>.json``.

    The second has the ``provenance`` and the digest of the first, by which `read` knows a damaged table. Each file is
    replaced in one go: a kill at any moment leaves the old one or the new one.
    """
    missing = {"seed", "method", "metric", "value"} - set(frame.columns)
    if missing:
        raise ValueError(f"results '{name}' lack the columns {', '.join(sorted(missing))}")
    target = resolve(folder)
    target.mkdir(parents=True, exist_ok=True)
    # Six digits: below the noise of any experiment here, above the resolution of an accuracy.
    table = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    about = json.dumps({**provenance, "sha256": hashlib.sha256(table.encode()).hexdigest()}, indent=1, sort_keys=True)
    for ending, text in (("csv", table), ("json", about + "\n")):
        with replacing(target / f"{name}.{ending}") as temporary:
            temporary.write_text(text)


def read(folder: str | Path, name: str) -> pd.DataFrame:
    """The tidy results of an experiment. ValueError if they are not what was written."""
    path = resolve(str(folder)) / f"{name}.csv"
    table, about = path.read_bytes(), json.loads(path.with_suffix(".json").read_text())
    if hashlib.sha256(table).hexdigest() != about["sha256"]:
        raise ValueError(f"{path} is not the table that {name}.json tells of: cut off, or edited; make it anew")
    return pd.read_csv(io.BytesIO(table), keep_default_na=False, na_values=[""], dtype={"method": str, "metric": str})


def split(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table that the same parameters give again, and the seconds, which differ from run to run."""
    seconds = frame["metric"].str.endswith("_seconds")
    return frame[~seconds], frame[seconds]


def provenance(parameters: Mapping[str, object], dataset: Mapping[str, str] | None = None) -> dict[str, object]:
    """What produced a result: parameters (seeds included), data, versions, code, machine, seconds since import."""
    return {
        "parameters": dict(parameters),
        "dataset": dataset,
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        # Results themselves are not code: writing them must not make the next experiment's provenance dirty.
        "git": {"commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain", "--", ":!results"))},
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "engine": engine(),
        },
        "wall_seconds": round(time.monotonic() - _started, 1),
    }


def _processor() -> str:
    """Its model, where the system tells: libraries choose their arithmetic by it, and not only by its capabilities."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed package or a downloaded archive has no commit
    return done.stdout.strip()

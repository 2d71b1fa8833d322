"""Make what several notebooks share: a dataset, or trained steps as ``experiments.preparations.steps`` names them."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common


def main() -> None:
    from experiments import data
    from experiments.parameters import ParameterError
    from experiments.preparations.steps import from_command
    from experiments.workers import single_thread

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where each step writes <key>.safetensors")
    parser.add_argument("steps", nargs="*", help="each as `Step.command` writes it")
    parser.add_argument("--dataset", help="load this dataset, so that it is cached")
    args = parser.parse_args()
    single_thread()
    try:
        if args.dataset:
            with said(f"dataset {args.dataset}"):
                data.ensure(args.dataset)
        for step in map(from_command, args.steps):
            with said(common.words(step)):
                args.folder.mkdir(parents=True, exist_ok=True)
                step.make(args.folder)
    except (data.DataError, ParameterError, OSError) as error:  # the last: the disk is full, say
        sys.exit(f"preparation failed: {error}")


@contextmanager
def said(what: str) -> Iterator[None]:
    """Say, once it is done, how long it took."""
    begin = time.monotonic()
    yield
    common.say(f"{what}: done in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()

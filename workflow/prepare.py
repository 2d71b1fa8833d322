"""Make what several notebooks share: a dataset, or a trained step as ``gtl_core.experiments.preparation`` names it."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import common


def main() -> None:
    common.die_with_parent()  # before the slow imports
    from gtl_core import data
    from gtl_core.experiments import preparation
    from gtl_core.experiments.parameters import ParameterError
    from gtl_core.workers import single_thread

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", help="its parameters as canonical JSON")
    parser.add_argument("output", nargs="?", type=Path, help="<folder>/<key>.safetensors")
    parser.add_argument("--dataset", help="load this dataset, so that it is cached")
    args = parser.parse_args()
    begin = time.monotonic()
    single_thread()
    try:
        if args.dataset:
            what = f"dataset {args.dataset}"
            data.load(args.dataset)
        else:
            step = preparation.from_json(args.step)
            what = f"{step.kind} {step.key}"
            args.output.parent.mkdir(parents=True, exist_ok=True)
            step.make(args.output.parent)
    except (data.DataError, ParameterError) as error:
        sys.exit(str(error))
    print(f"{what}: done in {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()

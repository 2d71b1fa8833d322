"""Draw a profile's figures from its tables, without training anything: ``draw_figures.py paper [notebook ...]``."""

from __future__ import annotations

import argparse
import sys
from functools import cache

import common

from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.style import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("notebooks", nargs="*", choices=[[], *EXPERIMENTS], help="default: all that have a table")
    args = parser.parse_args()
    folder = common.ROOT / "results" / args.profile
    chosen = [e for e in EXPERIMENTS.values() if e.figures and (folder / f"{e.name}.csv").exists()]
    if args.notebooks:
        chosen = [EXPERIMENTS[notebook] for notebook in args.notebooks]
    if not chosen:
        sys.exit(f"no tables in {folder.relative_to(common.ROOT)}: run `make PROFILE={args.profile}` first")

    @cache
    def table(name):
        try:
            return records.read(folder, name)
        except (OSError, ValueError) as error:  # damaged, or without its provenance
            sys.exit(str(error))

    def write(stem, figure):
        path = folder / "figures" / f"{stem}.png"
        save(figure, path)
        common.say(str(path.relative_to(common.ROOT)))

    for experiment in chosen:
        for stem, draw in experiment.figures.items():
            write(stem, draw(table(experiment.drawn_from.get(stem, experiment.name))))
    if not args.notebooks:
        from experiments.overview import against_rivals, finding

        comparisons = against_rivals(folder)
        if len(comparisons):
            write("finding", finding(comparisons))


if __name__ == "__main__":
    main()

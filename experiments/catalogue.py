"""All experiments, by notebook: the ``EXPERIMENT`` of every folder ``e<number>_<name>`` here. The only list.

A module that no training step imports, since it loads the drawing libraries.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from experiments.experiment import Experiment

FOLDERS = sorted(path.parent.name for path in Path(__file__).parent.glob("e[0-9][0-9]_*/figures.py"))
_ALL: list[Experiment] = [import_module(f"experiments.{folder}.figures").EXPERIMENT for folder in FOLDERS]
EXPERIMENTS = {experiment.notebook: experiment for experiment in _ALL}

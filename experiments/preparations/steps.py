"""What experiments share is made once: a step is a pure function of its fields, in a file named after their digest."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

from experiments.parameters import ParameterError, Parameters
from experiments.records import resolve
from experiments.workers import parallel


class Step(Parameters):
    """Something that is trained before any task; its fields are all that the result depends on."""

    def needs(self) -> list[Step]:
        """The steps that it starts from."""
        return []

    def make(self, folder: Path) -> None:
        """Train, and write the file `path` beside those of the steps that it needs."""
        raise NotImplementedError

    def cost(self) -> int:
        """Network passes that it takes (see `experiments.costs`), without those of what it needs."""
        raise NotImplementedError

    def total_cost(self) -> int:
        """Network passes with those of what it needs."""
        return self.cost() + sum(step.total_cost() for step in self.needs())

    def path(self, folder: Path) -> Path:
        return folder / f"{self.key}.safetensors"

    def command(self) -> str:
        """The step as one argument of a command line; see `from_command`."""
        return f"{type(self).__module__}:{type(self).__name__} {self.canonical()}"


def from_command(text: str) -> Step:
    """The step of which this is the `Step.command`. Only the module that it names is loaded."""
    where, fields = text.split(" ", 1)
    module, name = where.split(":")
    return getattr(import_module(module), name).model_validate_json(fields)


@contextmanager
def made(steps: Sequence[Step], prepared: str, workers: int) -> Iterator[Path]:
    """The folder that holds all ``steps``: ``prepared``, or, if that is empty, a temporary one, made now.

    Raises ParameterError, naming the folder, if it does not hold them all.
    """
    levels = [list(dict.fromkeys(steps))]
    while needed := list(dict.fromkeys(need for step in levels[-1] for need in step.needs())):
        levels.append(needed)
    # A step may be needed on several levels; the deepest is where it must be made.
    depth = {step: i for i, level in enumerate(levels) for step in level}
    if prepared:
        folder = resolve(prepared)
        if missing := sum(not step.path(folder).exists() for step in levels[0]):
            raise ParameterError(
                f"prepared = {prepared!r}: {missing} of {len(levels[0])} preparations for these parameters are not "
                "there; leave it empty to make them now, or run the batch"
            )
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for level in sorted(set(depth.values()), reverse=True):
            parallel(partial(_make, folder), [s for s, at in depth.items() if at == level], workers, "preparation")
        yield folder


def _make(folder: Path, step: Step) -> None:
    step.make(folder)

"""Parameters are validated before anything is computed; what is wrong with them is said in one line."""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator


def distinct(values: tuple) -> tuple:
    """The values; ValueError if two are equal."""
    if len(set(values)) < len(values):
        raise ValueError("must not name the same value twice")
    return values


Item = TypeVar("Item")
Distinct = Annotated[tuple[Item, ...], AfterValidator(distinct)]
Some = Annotated[tuple[Item, ...], Field(min_length=1), AfterValidator(distinct)]  # at least one


def or_all(names: Iterable[str]) -> BeforeValidator:
    """Lets ``["all"]`` stand for all of the ``names``; anything else stays what it is, to be validated."""
    return BeforeValidator(lambda values: tuple(names) if values in (["all"], ("all",)) else values)


Dataset = Literal["glyphs", "omniglot"]
AnySplit = Literal[Dataset, "omniglot_published"]  # its characters are those of omniglot: never both in one experiment
Head = Literal["zero", "random"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class ParameterError(ValueError):
    """A parameter is unknown or out of range: its name, its value and what is allowed, in one line."""

    def _render_traceback_(self) -> list[str]:
        # Jupyter shows this in place of a traceback, which would lead into the validator and not to the mistake.
        return [f"ParameterError: {self}"]


class Parameters(BaseModel):
    """Base of all parameters: frozen, no unknown names, no NaN, no booleans for numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_boolean_numbers(cls, values: Mapping) -> Mapping:
        for name, value in values.items():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} = {value}: must not be a boolean")
        return values

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> Self:
        """Validate; raises `ParameterError`."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ParameterError("; ".join(cls._in_words(e) for e in error.errors())) from None

    @classmethod
    def _in_words(cls, error: dict) -> str:
        name = ".".join(map(str, error["loc"]))
        if error["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(cls.model_fields)}"
            return f"unknown parameter {name} = {error['input']!r}: {hint}"
        if error["type"] == "missing":
            return f"parameter {name} is missing"
        reason = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
        return f"{name} = {error['input']!r}: {reason}" if name else reason

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, object]) -> Self:
        """Validate the variables of a notebook's parameter cell: call it with ``globals()``.

        Names that papermill injects are checked too, because papermill itself only warns about unknown ones.
        """
        values = {name: namespace[name] for name in cls.model_fields if name in namespace}
        for cell in namespace.get("In", []):
            if cell.startswith("# Parameters"):  # how papermill marks the cell that it injects
                targets = [t for node in ast.parse(cell).body if isinstance(node, ast.Assign) for t in node.targets]
                values |= {t.id: namespace[t.id] for t in targets}
        return cls.parse(values)

    def canonical(self) -> str:
        """The same JSON for the same values, however they were written."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @property
    def key(self) -> str:
        """Short digest of the values: the name under which files made from them are shared."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:12]

    def preparations(self) -> list:
        """What has to be trained before this experiment and may be shared with others; see `preparation`."""
        return []


class Profile(Parameters):
    """What a file of ``config/`` holds: notebooks with the parameters that differ from their own, and on how many cores
    each step runs (all, unless named)."""

    notebooks: dict[str, dict[str, object] | None]
    threads: Count | None = None


class NotebookParameters(Parameters):
    """What every notebook has beside its own parameters; paths are relative to the project."""

    seed: Seed
    results: Annotated[str, Field(min_length=1)]  # folder for the table and its provenance
    prepared: str  # folder with zero points and displacements made before; empty: make them now
    workers: Annotated[int, Field(ge=0)]  # processes; 0: one per core
    dask_scheduler: Annotated[str, Field(pattern=r"^(\w+://\S+:\d+)?$")] = ""  # of a cluster to work on; empty: here


class SeededParameters(NotebookParameters):
    """Of an experiment on several networks."""

    n_seeds: Count

    def seeds(self) -> list[int]:
        """One pretrained network each. Far apart for different ``seed``, so that two runs share none."""
        return [1000 * self.seed + i for i in range(self.n_seeds)]


class TunedParameters(SeededParameters):
    """Of one whose methods try several learning rates."""

    learning_rates: Some[Rate]

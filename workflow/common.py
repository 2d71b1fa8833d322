"""What the launcher and the Snakefile share: the plan of a profile, and which files a step depends on."""

from __future__ import annotations

import ast
import ctypes
import difflib
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.parameters import Profile

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package beside this folder, wherever this was started from
# With this package, jsonschema checks internationalised addresses, of which notebooks have none. It compiles a grammar
# of them when it is imported, which takes longer than all the rest of papermill; jsonschema does without it.
sys.modules.setdefault("rfc3987_syntax", None)

PACKAGES = ("gtl_core", "experiments")
WHERE = ("workers", "dask_scheduler")  # parameters on which no result depends
INJECTED = ("results", "prepared", "workers")  # parameters that the batch sets, not the profile

steps_ran = False  # set by the Snakefile once there is something to do; read by the launcher
alone = False  # set by the launcher if all steps run on this machine, and end with it
stopped = False  # set by it on Ctrl-C
told = False  # set by it once it has said that something failed
errors: list[str] = []  # Snakemake's own


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the batch dies, so that nothing writes results after it (Linux).

    `experiments.workers` has the same for its workers, but would import torch into processes that do not compute.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died just before
        sys.exit(1)


def content(profile: str) -> Profile:
    """The validated `Profile` in ``config/<profile>.yaml``; ValueError in one line."""
    import yaml

    from experiments.parameters import Profile

    path = ROOT / "config" / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise ValueError(f"unknown profile {profile!r}: {hint(profile, known)}")
    try:
        found = yaml.safe_load(path.read_text())
        return Profile.parse(found if isinstance(found, dict) else {})
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path.relative_to(ROOT)}: {' '.join(str(error).split())}") from None


def plan(profile: str) -> dict[str, object]:
    """The validated parameters of every notebook that ``config/<profile>.yaml`` names; ValueError in one line."""
    from experiments.catalogue import EXPERIMENTS

    where = f"config/{profile}.yaml"
    parameters = {}
    for notebook, given in content(profile).notebooks.items():
        given = given or {}
        if notebook not in EXPERIMENTS:
            raise ValueError(f"{where}: unknown notebook {notebook!r}: {hint(str(notebook), EXPERIMENTS)}")
        if taken := set(given) & set(INJECTED):
            raise ValueError(f"{where}: {notebook}: {sorted(taken)[0]} is set by the batch")
        folder = f"results/{profile}"
        values = defaults(notebook) | given | {"results": folder, "prepared": f"{folder}/prepared"}
        try:
            parameters[notebook] = EXPERIMENTS[notebook].parameters.parse(values)
        except ValueError as error:
            raise ValueError(f"{where}: {notebook}: {error}") from None
    return parameters


def users(plan: Mapping[str, Any]) -> dict[Any, set[str]]:
    """What the notebooks share, each step with those that use it: the same step of two notebooks is made once."""
    found: dict[Any, set[str]] = {}
    for notebook, parameters in plan.items():
        todo = parameters.preparations()
        while todo:
            step = todo.pop()
            found.setdefault(step, set()).add(notebook)
            todo += step.needs()
    return found


def together(steps: Mapping[Any, set[str]]) -> list[list[Any]]:
    """Steps alike that need the same and serve the same go into one process, or imports would take longer than they."""
    found: dict[Any, list[Any]] = {}
    for step, notebooks in steps.items():
        key = (step.kind, getattr(step, "method", ""), *step.needs(), *sorted(notebooks)) if step.needs() else step
        found.setdefault(key, []).append(step)
    return list(found.values())


def rule(steps: Sequence[Any]) -> str:
    """The name of the rule that makes them."""
    return f"prepare_{steps[0].key}"


def hint(name: str, known: Iterable[str]) -> str:
    """The closest known name, or all of them."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}"


def code_cells(notebook: Path) -> list[dict]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def defaults(notebook: str) -> dict[str, object]:
    """The values in the cell tagged ``parameters``, which hold where the profile says nothing."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    if not path.is_file():
        raise ValueError(f"{path.relative_to(ROOT)} does not exist")
    sources = [cell["source"] for cell in code_cells(path) if "parameters" in cell["metadata"].get("tags", [])]
    if len(sources) != 1:
        raise ValueError(f"{path.relative_to(ROOT)}: {len(sources)} cells are tagged 'parameters', must be one")
    lines = (node for node in ast.parse(sources[0]).body if isinstance(node, ast.AnnAssign))
    return {line.target.id: ast.literal_eval(line.value) for line in lines}


def say(text: str) -> None:
    """Print a line; on a terminal in the place of the bar that `progress` draws."""
    print("\r\x1b[K" * sys.stdout.isatty() + text, flush=True)


def words(step) -> str:
    """What a preparation step is called where people read."""
    seed = re.search(r'"seed": ?(\d+)', step.canonical())  # its own, or that of what it starts from
    parts = [step.kind.replace("_", " "), getattr(step, "method", ""), f"seed {seed[1]}" if seed else ""]
    return ", ".join(filter(None, parts))


def canonical(parameters) -> str:
    """The same JSON for the same values. Without ``WHERE``: who does the work must not rerun anything."""
    return json.dumps(parameters.model_dump(mode="json", exclude=set(WHERE)), sort_keys=True)


def where(parameters) -> Callable[..., str]:
    """JSON of the rest: for ``params:``, which does not record functions of ``threads``."""
    return lambda wildcards, threads: json.dumps({"workers": threads, "dask_scheduler": parameters.dask_scheduler})


def uses(*starts: str) -> list[str]:
    """The given files (a script, a notebook) or modules, and what they import from the project, and what that imports.

    Found without running anything. Packages here only gather names, so they are not followed into modules that nobody
    asked for: ``from gtl_core import Guided`` uses ``guided.py`` and what that imports, and none of its neighbours;
    ``from gtl_core import plots`` and then ``plots.xor`` uses what the package gathers under that name;
    ``from gtl_core.guided import Guided`` does not even use the package, to which an experiment may be added freely.
    """
    found: set[Path] = set()
    seen: set[tuple[str, str | None]] = set()

    def follow(imports: Iterable[tuple[str, str | None, str | None]]) -> None:
        for module, name, _ in imports:
            visit(module, name)

    def visit(module: str, name: str | None) -> None:
        if name and _file(f"{module}.{name}"):
            module, name = f"{module}.{name}", None
        path = _file(module)
        if path is None or (module, name) in seen:
            return
        seen.add((module, name))
        found.add(path)
        if path.with_suffix(".c").is_file():  # the C of a folder is one library
            found.update(path.parent.glob("*.[ch]"))
        imports = _imports(path.read_text(), module if path.name == "__init__.py" else module.rpartition(".")[0])
        gathered = [i for i in imports if name and i[2] == name]
        follow(gathered if path.name == "__init__.py" and gathered else imports)

    for start in starts:
        if not start.endswith((".py", ".ipynb")):
            visit(start, None)
            continue
        path = ROOT / start
        found.add(path)
        sources = [path.read_text()] if start.endswith(".py") else [cell["source"] for cell in code_cells(path)]
        lines = "\n".join(sources).split("\n")
        follow(_imports("\n".join(line for line in lines if not line.startswith(("%", "!"))), ""))  # IPython's own
    return sorted(str(path.relative_to(ROOT)) for path in found)


def digest(paths: Iterable[str]) -> str:
    """Of the content of files of the project, which decides whether a step runs again, whatever their times say."""
    return hashlib.sha256("".join(map(_digest, sorted(paths))).encode()).hexdigest()


@cache
def _digest(path: str) -> str:
    return path + hashlib.sha256((ROOT / path).read_bytes()).hexdigest()


def _file(module: str) -> Path | None:
    """The file of a module of the project; None for all others."""
    path = ROOT.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((c for c in candidates if module.split(".")[0] in PACKAGES and c.is_file()), None)


@cache  # the same files for every rule: without it, planning takes longer than the first steps
def _imports(source: str, package: str) -> list[tuple[str, str | None, str | None]]:
    """(module, imported name, name it is bound to) of every import statement; relative ones start at ``package``.

    In place of a package whose names are used (``plots.xor``), each of those.
    """
    nodes = list(ast.walk(ast.parse(source)))
    used: dict[str, set[str]] = {}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, set()).add(node.attr)
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(alias.name, None, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                bound, file = alias.asname or alias.name, _file(f"{module}.{alias.name}")
                names = used.get(bound, ()) if file and file.name == "__init__.py" else ()
                found += [(f"{module}.{alias.name}", name, None) for name in sorted(names)]
                found += [] if names else [(module, alias.name, bound)]
    return found

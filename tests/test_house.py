"""The house as DESIGN has it: sizes, one word per thing, no experiment that leans on another one."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("gtl_core", "experiments")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EXPERIMENTS = sorted(path for path in (ROOT / "experiments").glob("e[0-9]*") if path.is_dir())
# What each experiment, or each dataset, has by the same name, since it is the same thing of another one.
INTERFACES = {"run", "verdict", "verdicts", "ranking", "accuracies", "make"}
# Names that were replaced by telling ones.
BANNED = {"see", "of", "Station", "Arena", "SETTLED", "ELSEWHERE", "_way", "_unused", "_extra"}


assert len(EXPERIMENTS) == 16 and len(MODULES) > 50


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every_module(check):
    return pytest.mark.parametrize("path", MODULES, ids=name)(check)


def named(source: str) -> set[str]:
    """What a module gives a name: functions, classes, arguments, variables. Methods have their class's."""
    tree = ast.parse(source)
    methods = {f for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for f in node.body}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node not in methods:
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_the_core_is_small():
    assert sum(len(lines(path)) for path in MODULES if path.relative_to(ROOT).parts[0] == "gtl_core") <= 2200


@pytest.mark.parametrize("module", ["guide", "scouting", "guided"])
def test_the_paper_can_be_read_in_one_sitting(module):
    assert len(lines(ROOT / "gtl_core" / f"{module}.py")) < 250


@every_module
def test_a_file_has_at_most_350_lines_and_a_function_45(path):
    assert len(lines(path)) <= 350
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions if f.end_lineno - f.lineno >= 45}
    assert not long


@every_module
def test_no_replaced_word_comes_back(path):
    source = path.read_text()
    assert not named(source) & BANNED
    assert not re.search(r"guid\w* (matrix|mask)|cousin", source)  # a guide is called a guide


def test_a_name_means_one_thing():
    """No two functions or classes are called the same, wherever they are; private ones are their module's own."""
    where = defaultdict(list)
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name(path))
    twice = {what: paths for what, paths in where.items() if len(paths) > 1 and what not in INTERFACES}
    assert not twice


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda path: path.name)
def test_no_experiment_imports_another_one(folder):
    others = {path.name for path in EXPERIMENTS} - {folder.name}
    for path in folder.rglob("*.py"):
        assert not others & set(re.findall(r"\be\d\d_\w+", path.read_text())), path.name

"""The anatomy of every notebook; that each runs is tested by the batch, which executes them all."""

import ast
import importlib
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from experiments.catalogue import EXPERIMENTS
from experiments.records import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert len(NOTEBOOKS) >= 2


@every_notebook
def test_notebooks_are_thin(path):
    cells = code_cells(path)
    by_hand = [cell for cell in headings(path)["One task by hand"] if cell.cell_type == "code"]
    assert len(cells) - len(by_hand) <= 12
    for cell in cells:
        assert len(cell.source.splitlines()) <= 15 or "parameters" in cell.metadata.get("tags", [])
        assert not re.search(r"^\s*(def|class|!|%)", cell.source, re.MULTILINE)


def test_sources_have_no_outputs():
    subprocess.run([sys.executable, "-m", "nbstripout", "--verify", *NOTEBOOKS], check=True)


@every_notebook
def test_parameter_cell_is_understood_by_papermill_and_complete(path):
    """papermill silently loses lines with union types or a second equals sign."""
    (cell,) = (c for c in code_cells(path) if "parameters" in c.metadata.get("tags", []))
    fields = set(EXPERIMENTS[path.stem].parameters.model_fields)
    assert set(papermill.inspect_notebook(str(path))) == fields
    lines = cell.source.splitlines()
    assert all(re.fullmatch(r"\w+: (str|int|float|bool|list) = .+  # .+", line) for line in lines)
    values = {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}
    EXPERIMENTS[path.stem].parameters.parse(values)


def headings(path) -> dict[str, list]:
    """The cells below each heading of the second level, in order."""
    found: dict[str, list] = {"": []}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## (.+)", cell.source)):
            found[heading[1]] = []
        found[list(found)[-1]].append(cell)
    return found


@every_notebook
def test_the_first_words_are_the_claim_and_the_last_ones_are_for_the_reader(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith(f"# {path.stem[:2]} · ") and "claim" in cells[0].source
    *_, verdict, last = headings(path)
    assert verdict == "Verdict" and last == "What to try next"


@every_notebook
def test_one_task_is_done_by_hand_with_the_public_api_and_is_the_table_s_number(path):
    parts = headings(path)
    order = list(parts)
    assert order.index("One task by hand") < order.index("The whole experiment")
    by_hand = [cell.source for cell in parts["One task by hand"] if cell.cell_type == "code"]
    text = "\n".join(by_hand)
    assert 2 <= len(by_hand) <= 4
    if path.stem != "15_what_to_use":  # which trains nothing
        assert re.search(r"^from gtl_core import .*scout", text, re.MULTILINE) and "scout(" in text
        calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        assert "Guided" in {call.id for call in calls if hasattr(call, "id")} or path.stem == "09_scaling"
    after = "\n".join(cell.source for name in order[order.index("The whole experiment") :] for cell in parts[name])
    assert re.search(r"^assert .*by_hand", after, re.MULTILINE), "the table's row must be compared with by_hand"


def test_papermill_by_hand_stops_with_one_line(tmp_path):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks/03_forgetting.ipynb"]
    done = subprocess.run([*command, "out.ipynb", "-p", "n_scout", "50"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    said = done.stderr.strip().splitlines()[-1]
    assert said == "ParameterError: unknown parameter n_scout = 50: did you mean n_scouts?"


@every_notebook
def test_what_it_imports_exists(path):
    """A name that moved ends the batch, minutes later, and only in the cell that wants it."""
    code = "\n".join(cell.source for cell in code_cells(path))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")

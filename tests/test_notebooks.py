"""The anatomy of every notebook; that each runs is tested by the batch, which executes them all."""

import ast
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
    assert len(cells) <= 12
    for cell in cells:
        assert len(cell.source.splitlines()) <= 15 or "parameters" in cell.metadata.get("tags", [])
        assert not re.search(r"^\s*(def|class|!|%)", cell.source, re.MULTILINE)


@every_notebook
def test_sources_have_no_outputs(path):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(path))
    subprocess.run([sys.executable, "-m", "nbstripout", "--verify", path], check=True)


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


@every_notebook
def test_the_first_words_are_the_claim_and_the_last_cell_is_the_verdict(path):
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source.startswith(f"# {path.stem[:2]} · ") and "claim" in cells[0].source
    assert any(cell.source.startswith("## Verdict") for cell in cells[-4:])


@pytest.mark.parametrize(
    ("parameter", "value", "message"),
    [
        ("n_way", "5000", r"ParameterError: n_way = 5000: at most \d+, the number of \w+ classes of glyphs \(seed 0\)"),
        ("n_scout", "50", r"ParameterError: unknown parameter n_scout = 50: did you mean n_scouts\?"),
    ],
)
def test_papermill_by_hand_stops_with_one_line(tmp_path, parameter, value, message):
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", ROOT / "notebooks/03_forgetting.ipynb"]
    done = subprocess.run([*command, "out.ipynb", "-p", parameter, value], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert re.fullmatch(message, done.stderr.strip().splitlines()[-1])

"""Lake's twenty-way runs by the code in the documentation, on drawings of the embedded characters in their format."""

import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

from experiments.data import load
from experiments.records import ROOT
from gtl_core.tasks import rng

PAGE = (ROOT / "docs/official_runs.md").read_text()
CODE = "".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


def test_the_code_is_short():
    assert 20 < len([line for line in CODE.splitlines() if line.strip()]) <= 40


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of twenty characters, drawn once to learn and once to name, as 105x105 pictures."""
    folder, glyphs, generator = tmp_path_factory.mktemp("all_runs"), load("glyphs"), rng(0)
    new = glyphs.evaluation.nonzero().flatten()
    for name, some in zip(
        ("run01", "run02"), new[torch.randperm(len(new), generator=generator)].split(20), strict=False
    ):
        lines = []
        for part in ("training", "test"):
            (folder / name / part).mkdir(parents=True)
        for i, place in enumerate(torch.randperm(20, generator=generator).tolist()):
            drawings = {f"training/class{place:02}.png": 0, f"test/item{i:02}.png": 1}
            for path, drawer in drawings.items():
                image = Image.fromarray(255 - glyphs.examples[some[place], drawer].numpy()).resize((105, 105))
                image.save(folder / name / path)
            lines.append(f"{name}/test/item{i:02}.png {name}/training/class{place:02}.png")
        (folder / name / "class_labels.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_character_is_found_again_far_above_chance(runs, tmp_path):
    script = tmp_path / "official.py"
    short = {
        'dataset="omniglot"': 'dataset="glyphs"',
        "epochs=15)  #": "epochs=2)  #",
        '"n_scouts": 30': '"n_scouts": 2',
    }
    code = CODE
    for long, shorter in short.items():
        assert long in code
        code = code.replace(long, shorter)
    script.write_text(code)
    command = [sys.executable, script, runs]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    errors = dict(re.findall(r"^(.+): ([\d.]+)% error in 2 runs$", done.stdout, re.MULTILINE))
    assert {*errors} == {"nearest mean", "guided", "plain", "frozen"}
    assert all(float(error) < 80 for error in errors.values()), errors  # chance: 95

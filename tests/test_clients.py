"""The recipes of docs/frameworks.md run as they stand there, each in a process of its own."""

import importlib.util
import os
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from experiments import records
from gtl_core import Guide, Guided

PAGE = (records.ROOT / "docs/frameworks.md").read_text()
_, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)
FOUND = {section.splitlines()[0]: re.search(r"```python\n(.*?)```", section, re.DOTALL) for section in SECTIONS}
RECIPES = {name: found[1] for name, found in FOUND.items() if found}
PREAMBLE = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
NEEDS = {
    "Lightning": "lightning",
    "Hugging Face Trainer": "transformers",
    "accelerate": "accelerate",
    "timm": "torchvision",
}
NEEDS |= {name: "peft" for name in RECIPES if name.startswith("peft")}
# What a guide is for: a step that is neither none nor the whole.
GUIDED = """
from gtl_core import Guided as _Guided
_made = []
_init = _Guided.__init__
_Guided.__init__ = lambda self, *a, **k: (_init(self, *a, **k), _made.append(self))[0]
"""
CHECK = """
assert len(_made) == 1 and _made[0]._partial, "something is guided"
assert _made[0].state, "it has made steps"
"""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(name, tmp_path):
    needed = NEEDS.get(name, "accelerate")  # the others need torch alone, and run with the rest: `make test-clients`
    if not importlib.util.find_spec(needed):
        pytest.skip(f"needs {needed}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(records.ROOT), os.environ.get("PYTHONPATH", "")])}
    script = GUIDED + PREAMBLE + RECIPES[name] + CHECK
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short(name):
    assert len([line for line in RECIPES[name].splitlines() if line]) < 20


@pytest.mark.parametrize("name", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_schedule_free_optimizers_are_refused(name):
    schedulefree = pytest.importorskip("schedulefree")
    model = nn.Linear(3, 2)
    guide = Guide({n: torch.full_like(p, 0.5) for n, p in model.named_parameters()})
    with pytest.raises(ValueError, match=f"Guided cannot wrap {name}"):
        Guided(getattr(schedulefree, name)(model.parameters(), lr=0.1), model, guide)

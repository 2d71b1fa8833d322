"""What the pages say is so: examples run, links lead somewhere, numbers are those of the results."""

import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from experiments import records
from experiments.catalogue import EXPERIMENTS
from experiments.e00_two_parameters import run as two_parameters
from experiments.e01_one_shot import run as one_shot
from experiments.e02_xor import run as xor
from experiments.e03_forgetting import run as forgetting
from experiments.e04_guides import run as guides
from experiments.e05_own_model import run as own_model
from experiments.e06_few_shot_neighbours import run as few_shot_neighbours
from experiments.e07_forgetting_neighbours import run as forgetting_neighbours
from experiments.e08_domain_shift import run as domain_shift
from experiments.e10_paper_setting import verdicts as paper_setting
from experiments.e11_authors_code import run as authors
from experiments.e12_learned_everything import run as learned_everything
from experiments.e14_genes import verdicts as genes
from experiments.e16_architecture import run as architecture
from experiments.experiment import caption
from experiments.overview import against_rivals, finding
from experiments.statistics import paired
from gtl_core import Guide

PAGES = [records.ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md")]
PAGES += sorted((records.ROOT / "docs").glob("*.md"))
TEXT = "".join(page.read_text() for page in PAGES[:2])
EXAMPLE = "".join(re.findall(r"```python\n(.*?)```", (records.ROOT / "docs/own_network.md").read_text(), re.DOTALL))
NUMBER = r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]"


def test_the_example_and_what_follows_it_run_verbatim(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(records.ROOT)}
    subprocess.run([sys.executable, "-W", "error", "-c", EXAMPLE], cwd=tmp_path, env=environment, check=True)
    guide = Guide.load(tmp_path / "guide.safetensors")
    assert guide.metadata["scouts"] == 10 and all(g.any() for g in guide.values())


def test_the_notebook_for_a_reader_s_own_network_runs_the_same_lines():
    cells = nbformat.read(records.ROOT / "notebooks/05_your_own_model.ipynb", as_version=4).cells
    (user_code,) = (cell.source for cell in cells if "AdamW(" in cell.source and cell.cell_type == "code")
    assert user_code in EXAMPLE and len(user_code.splitlines()) < 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]
    assert len(links) >= (5 if page in PAGES[:2] else 0)
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_figure_of_the_results_stands_on_their_page_with_its_caption():
    shown = r"!\[([^\]]+)\]\(results/paper/figures/(\w+)\.png\)\n\n\*([^\n]+)\*\n"
    said = {
        stem: (alternative, below)
        for alternative, stem, below in re.findall(shown, (records.ROOT / "RESULTS.md").read_text())
    }
    captions = {"finding": finding} | {stem: draw for e in EXPERIMENTS.values() for stem, draw in e.figures.items()}
    assert said == {stem: (caption(draw), caption(draw)) for stem, draw in captions.items()}


def test_numbers_are_those_of_the_paper_profile():
    quoted = re.findall(NUMBER, TEXT)
    computed = set(forgetting.verdicts(records.read("results/paper", "forgetting"))["text"])
    episodes = records.read("results/paper", "one_shot")
    computed |= set(one_shot.verdicts(episodes)["text"]) | set(one_shot.saturation(episodes)["text"])
    computed |= set(own_model.verdicts(records.read("results/paper", "own_model"))["text"])
    for name, neighbours in (
        ("few_shot_neighbours", few_shot_neighbours),
        ("forgetting_neighbours", forgetting_neighbours),
        ("domain_shift", domain_shift),
    ):
        computed |= set(neighbours.ranking(records.read("results/paper", name))["text"])
    streams = records.read("results/paper", "forgetting_neighbours")
    computed |= set(re.findall(NUMBER, forgetting_neighbours.verdict(streams)))  # what the guide adds to others
    computed |= set(guides.differences(records.read("results/paper", "guides"))["text"])
    toy = records.read("results/paper", "method")
    cases = dict(list(toy[toy["metric"] == "excess_loss"].groupby(["family", "method"])))
    computed |= {paired(cases[family, "guided"], cases[family, "plain"]).text for family in two_parameters.FAMILIES}
    computed |= set(paper_setting.comparisons(records.read("results/paper", "paper_setting"))["text"])
    code = records.read("results/paper", "authors_code")
    for table in (authors.relearning_table(code), authors.claim_table(code)):
        computed |= set(table["text"])
    computed |= set(genes.guided_minus_rivals(records.read("results/paper", "genes"))["text"])
    learned = records.read("results/paper", "learned_everything")
    for table in (learned_everything.ranking, learned_everything.at_zero_points, learned_everything.with_wrong_labels):
        computed |= set(table(learned)["text"])
    computed |= set(architecture.paired_differences(records.read("results/paper", "architecture"))["text"])
    computed |= set(against_rivals(records.ROOT / "results/paper")["text"])
    assert len(quoted) >= 5
    assert [number for number in quoted if number not in computed] == []


def test_shares_are_those_of_the_paper_profile():
    quoted = re.findall(r"\d+\.\d % \[\d+\.\d, \d+\.\d\]", TEXT)
    table = xor.headline_table(records.read("results/paper", "xor"))[["solved", "low", "high"]] * 100
    library = authors.xor_table(records.read("results/paper", "authors_code"), 100)
    library = 100 * library[["solved", "solved_low", "solved_high"]].set_axis(["solved", "low", "high"], axis=1)
    table = pd.concat([table, library])
    computed = {f"{row.solved:.1f} % [{row.low:.1f}, {row.high:.1f}]" for row in table.itertuples()}
    assert len(quoted) >= 3
    assert [number for number in quoted if number not in computed] == []

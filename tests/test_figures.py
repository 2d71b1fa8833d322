"""What holds for every figure: it says what it shows, and is readable on a page, for colour-blind readers, too."""

import re
import warnings
from itertools import combinations

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb

from experiments import records
from experiments.e02_xor import protocols
from experiments.e04_guides import figures as guides
from experiments.e07_forgetting_neighbours.figures import SHOWN
from experiments.e08_domain_shift.methods import METHODS as SHIFTED
from experiments.e09_scaling.figures import PARTS
from experiments.e10_paper_setting.methods import METHODS as TUNED
from experiments.e11_authors_code.library import METHODS as AUTHORS
from experiments.e12_learned_everything import figures as learned
from experiments.e12_learned_everything.methods import AT_EVERY_ZERO_POINT, WITH_WRONG_LABELS
from experiments.e12_learned_everything.methods import METHODS as LEARNED
from experiments.e16_architecture import figures as architecture
from experiments.methods import BASIC
from experiments.neighbours import NEIGHBOURS
from experiments.stream_methods import METHODS as STREAMED
from experiments.style import WIDTH, Ranked, drawing, forest, headline, save

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its docstrings have escapes of which newer Pythons warn, once, when compiled
    from colorspacious import cspace_convert, deltaE

READABLE = 8  # points, and on a page as wide as WIDTH inches they are that
APART = 12  # CAM02-UCS; just noticeable is 1


def families(methods):
    return {method.family.colour for method in methods.values()}


LEGENDS = {  # colours that stand for different things in one figure
    "01 and 03": {method.colour for method in BASIC.values()},
    "02": {method.colour for method in protocols.METHODS.values()},
    "04": {color for color, line in guides.LINES.values() if line == "-"},
    "06": families(NEIGHBOURS),
    "07": {STREAMED[name].colour for name in SHOWN},
    "08": families(SHIFTED),
    "09": set(PARTS.values()),
    "10": families(TUNED),
    "10, rates": {TUNED[name].colour for name in ("plain", "guided_network", "guided_tensor", "uniform", "binary")},
    "11": {method.colour for method in AUTHORS.values()},
    "12": families(LEARNED),
    "12, zero points": {learned.colour_of(name) for name in AT_EVERY_ZERO_POINT},
    "16": {colour for _, colour, _ in architecture.FOUND_BY.values()},
    "16, guides": {architecture.guide_colour(name) for name in architecture.MINUS_PLAIN},
    "12, wrong labels": {learned.colour_of(name) for name in WITH_WRONG_LABELS},
}


def seen_as(color, deficiency):
    """The colour in sRGB, as it is seen without one kind of cones (Machado et al. 2009)."""
    space = {"name": "sRGB1+CVD", "cvd_type": deficiency, "severity": 100}
    return np.clip(cspace_convert(to_rgb(color), space, "sRGB1"), 0, 1)


@pytest.mark.parametrize("deficiency", ["deuteranomaly", "protanomaly"])
@pytest.mark.parametrize("legend", LEGENDS)
def test_colours_are_told_apart_without_red_or_green(legend, deficiency):
    seen = {color: seen_as(color, deficiency) for color in LEGENDS[legend]}
    near = {pair: deltaE(*map(seen.get, pair), input_space="sRGB1") for pair in combinations(seen, 2)}
    assert {pair: distance for pair, distance in near.items() if distance < APART} == {}


def test_a_change_of_hue_that_is_not_seen_is_found():
    """Red and the green that looks like it."""
    red, green = (seen_as(color, "deuteranomaly") for color in ("#C80000", "#5A6E00"))
    assert (
        deltaE(red, green, input_space="sRGB1") < deltaE(to_rgb("#C80000"), to_rgb("#5A6E00"), input_space="sRGB1") / 2
    )


@pytest.mark.parametrize("path", sorted(records.ROOT.glob("experiments/**/figures.py")), ids=lambda p: p.parent.name)
def test_text_is_readable_at_the_width_of_a_page(path):
    sizes = re.findall(r"(?:fontsize|labelsize)=([\d.]+)", path.read_text())
    with drawing(1, 1, 1.0):
        assert all(float(size) >= READABLE for size in [*sizes, rcParams["font.size"]])
    assert "figsize" not in path.read_text()  # all are WIDTH inches wide


def test_a_figure_says_what_it_shows(tmp_path):
    with drawing(1, 1, 2.0) as (figure, _):
        pass
    with pytest.raises(ValueError, match="headline"):
        save(figure, tmp_path / "silent.png")
    message = "Of 100 % one half, " * 10
    headline(figure, message, "n = 1")
    assert figure.get_figwidth() == WIDTH and figure.get_figheight() > 2.0
    title, note = (text.get_text() for text in figure.texts)
    assert title.replace("\n", " ") == message.strip().replace(" %", "\N{NO-BREAK SPACE}%") and note == "n = 1"
    _, about = figure._repr_png_()
    assert about["alt"] == message


def test_equal_figures_have_equal_bytes(tmp_path):
    for name in ("one", "other"):
        with drawing(1, 1, 2.0, legend=()) as (figure, ((axis,),)):
            axis.plot([1, 2], label="line")
            headline(figure, "A line", "")
        save(figure, tmp_path / f"{name}.png")
    for kind in ("png", "svg"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"other.{kind}").read_bytes()


def test_a_row_far_below_the_others_does_not_squeeze_them():
    rows = [
        Ranked(f"method {i}", "#000000", "", mean, mean - 1, mean + 1)
        for i, mean in enumerate((92, 91, 91, 90, 90, 20))
    ]
    with drawing(1, 1, 2.0) as (_, ((axis,),)):
        forest(axis, rows)
    assert axis.get_xlim()[0] > 70 and [text.get_text() for text in axis.texts] == ["20.0"]

"""The site, built as `make site` builds it (`make test-site`): links, pictures, and what a browser says of it."""

import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from experiments import records
from experiments.catalogue import EXPERIMENTS

pytest.importorskip("furo", reason="needs the site extra: make test-site")
from bs4 import BeautifulSoup

NOTEBOOKS = {f"results/paper/notebooks/{notebook}.html" for notebook in EXPERIMENTS}
LOOKED_AT = ["index.html", "RESULTS.html", "docs/api.html", "docs/parameters.html", *sorted(NOTEBOOKS)[:4]]
WIDTHS = (390, 1280)  # a phone and a desk
# The system's browser stays alone: it asks nobody for anything.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", "-d", folder / "trees"]
    done = subprocess.run([*build, ".", folder / "html"], cwd=records.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, BeautifulSoup]:
    found = {path: BeautifulSoup(path.read_text(), "html.parser") for path in site.rglob("*.html")}
    return {str(path.relative_to(site)): page for path, page in found.items()}


def test_every_experiment_has_its_page(pages):
    assert {"index.html", "RESULTS.html", "docs/api.html", "docs/tables.html"} | NOTEBOOKS <= set(pages)
    names = {cell.get_text() for cell in pages["docs/parameters.html"].select("td:first-child code")}
    assert {name for e in EXPERIMENTS.values() for name in e.parameters.model_fields} <= names


def test_every_link_leads_somewhere(site, pages):
    dead = []
    for name, page in pages.items():
        for tag, attribute in (("a", "href"), ("img", "src"), ("link", "href"), ("script", "src")):
            for element in page.find_all(tag, **{attribute: True}):
                link = urlsplit(element[attribute])
                if link.scheme or not link.path:
                    continue
                if not (site / name).parent.joinpath(unquote(link.path)).exists():
                    dead.append((name, element[attribute]))
    assert dead == []


def test_nothing_is_loaded_from_elsewhere_and_pictures_have_their_texts(pages):
    for name, page in pages.items():
        loads = [
            element.get("src") or element.get("href") for element in page.select("img, script, link[rel=stylesheet]")
        ]
        assert [load for load in loads if load and load.startswith(("http", "//"))] == [], name
        assert [image["src"] for image in page.find_all("img") if not image.get("alt")] == [], name


def test_code_is_folded_except_where_a_task_is_done_by_hand(pages):
    for name in NOTEBOOKS:
        cells = pages[name].select("div.cell")
        folded = [cell for cell in cells if "tag_hide-input" in cell["class"]]
        by_hand = any("by hand" in heading.get_text() for heading in pages[name].select("h2"))
        assert len(folded) > 0 and (len(folded) < len(cells)) == by_hand, name


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=QUIET)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_a_browser_finds_no_fault(site, browser, name, width):
    """No error, no page wider than the screen, no broken picture, and nothing serious or critical by axe-core."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page, said = browser.new_page(viewport={"width": width, "height": 800}), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto((site / name).as_uri())
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).length") == 0
    found = axe.run(page).response["violations"]
    page.close()
    assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []

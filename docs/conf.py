"""The site, `make site`: pages of this repository as they are, executed notebooks, and a reference from the code.

Its source is the whole checkout (`sphinx-build -c docs . build/site`), so links between pages work in both places.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from papermill import inspect_notebook
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "workflow")]

import common  # noqa: E402

from experiments.catalogue import EXPERIMENTS  # noqa: E402
from experiments.experiment import caption  # noqa: E402

logging.getLogger("papermill").setLevel(logging.WARNING)  # it tells of every notebook whose parameters it reads
project = "Guided transfer learning, reproducibly"
copyright = "MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "README"
include_patterns = [
    "README.md",
    "RESULTS.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "data/README.md",
    "results/paper/notebooks/*",
]
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
nb_execution_mode = "off"  # notebooks are published as papermill left them
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "misc.highlighting_failure"]
html_theme = "furo"
html_title = "Guided transfer learning"
html_math_renderer = "mathml"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False

CONTENTS = """
```{{toctree}}
:hidden:
:caption: {}

{}
```
"""
PAGES = {
    "Use it": ["RESULTS", "docs/own_network", "docs/frameworks", "docs/running", "docs/official_runs"],
    "Experiments": [f"results/paper/notebooks/{notebook}" for notebook in sorted(EXPERIMENTS)],
    "Reference": ["docs/api", "docs/parameters", "docs/tables", "data/README", "docs/promises", "CONTRIBUTING"],
}
CAPTIONS = {stem: caption(draw) for e in EXPERIMENTS.values() for stem, draw in e.figures.items()}
BADGES = r"^!\[[^]]*\]\(https.*\n"  # loaded from elsewhere
MENDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<summary aria-label="Toggle hidden content">': "<summary>",
    "<pre>": '<pre tabindex="0">',  # wide ones scroll
    "<table ": '<table tabindex="0" ',
    ' display="block">': ' display="block" tabindex="0">',  # formulas
}


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (_inline, None), (_displayed, None))
    app.add_directive("parameters", ParametersDirective)
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _fields)
    app.connect("build-finished", _finish)


def _inline(translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _displayed(translator, node: nodes.math_block) -> None:
    translator.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def _read(app: Sphinx, name: str, source: list[str]) -> None:
    """Add the contents to the first page, and to notebooks what their readers need of them here."""
    if name == root_doc:
        source[0] = re.sub(BADGES, "", source[0], flags=re.MULTILINE)
        source[0] += "".join(CONTENTS.format(title, "\n".join(pages)) for title, pages in PAGES.items())
    elif (ROOT / f"{name}.ipynb").exists():
        source[0] = json.dumps(_for_reading(json.loads(source[0])))


def _for_reading(notebook: dict) -> dict:
    """Figures have their texts, and code is folded but where one task is done by hand."""
    by_hand = False
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            by_hand = "by hand" in text if re.search("^#", text, re.MULTILINE) else by_hand
            continue
        if not by_hand:
            cell["metadata"].setdefault("tags", []).append("hide-input")
        about = [output.get("metadata", {}).get("image/png", {}) for output in cell["outputs"]]
        drawn = re.findall(r"figures\.(\w+)\(", "".join(cell["source"]))  # by a notebook that is older than the texts
        if texts := [meta["alt"] for meta in about if "alt" in meta] or [CAPTIONS[d] for d in drawn if d in CAPTIONS]:
            cell["metadata"]["mystnb"] = {"image": {"alt": "; ".join(texts)}}
    return notebook


def _fields(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Lines ``name: meaning`` of a docstring as a list of fields, as Sphinx wants them."""
    field, found = re.compile(r"([a-z]\w*(?:, [a-z]\w*)*): (?=\S)"), []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        match = field.match(line) if not following or following.startswith("    ") or field.match(following) else None
        if match and found and found[-1] and not found[-1].startswith((":", " ")):
            found.append("")
        plain = line if "`" in line else line.replace("|", "\\|")
        found.append(f":{match[1]}: {line[match.end() :]}" if match else plain)
    lines[:] = found


def _finish(app: Sphinx, error: Exception | None) -> None:
    """What the theme leaves out for those who use the keyboard or listen; and the first page under its usual name."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        text = page.read_text()
        for tag, with_more in MENDED.items():
            text = text.replace(tag, with_more)
        page.write_text(text)
    shutil.copy(out / f"{root_doc}.html", out / "index.html")


class ParametersDirective(SphinxDirective):
    """The parameters of every notebook: its own values, those of the paper profile, and what each means."""

    def run(self) -> list[nodes.Node]:
        lines, paper = [], common.content("paper").notebooks
        for notebook in sorted(EXPERIMENTS):
            lines += [f"## {notebook}", "", "| name | type | in the notebook | in the paper profile | meaning |"]
            lines += ["|---|---|---|---|---|"]
            there = paper.get(notebook) or {}
            for name, its in inspect_notebook(str(ROOT / f"notebooks/{notebook}.ipynb")).items():
                shown = f"`{there[name]}`" if name in there else ""
                lines.append(
                    f"| `{name}` | {its['inferred_type_name']} | `{its['default']}` | {shown} | {its['help']} |"
                )
            lines.append("")
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)

"""Merge executed notebooks into one HTML page that needs nothing but itself: ``report.py quick page.html *.ipynb``."""

from __future__ import annotations

import argparse
import re
from html import escape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

# JupyterLab's look without the scripts that it loads from elsewhere; formulas become MathML, which browsers know.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>
body { max-width: 60rem; margin: auto; }
img { max-width: 100%; height: auto; }
a { text-decoration: underline !important; }
math { font-size: 85%; }
:root { --jp-cell-editor-background: white; }
nav { display: none; }
@media (min-width: 92rem) {
  nav { display: block; position: fixed; left: 1rem; top: 1rem; width: 14rem; max-height: 95vh; overflow: auto; }
}
</style>{%- endblock -%}
{%- block data_png -%}
{%- set about = output.metadata.get('image/png', {}) -%}
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}" alt="{{ about.alt | escape_html }}">
{%- endblock -%}
"""
FORMULA = r"\$\$(?P<block>[^$]+)\$\$|(?<!\$)\$(?P<inline>[^$\n]+)\$(?!\$)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("output", type=Path)
    parser.add_argument("notebooks", nargs="*", type=Path, help="in reading order")
    args = parser.parse_args()
    outline, answers, cells = [], [], []
    for path in args.notebooks:
        notebook = nbformat.read(path, as_version=4)
        link = f'<a href="#{path.stem}">{escape(title(notebook) or path.stem)}</a>'
        outline.append(link)
        answers += [f"- {link}", *(f"<br>{escape(line)}" for line in answer(notebook))]
        cells += [new_markdown_cell(f'<a id="{path.stem}"></a>'), *notebook.cells]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(FORMULA, formula, cell.source)
    top = [f"# Guided transfer learning: the {args.profile} profile", "", f"<nav>{'<br>'.join(outline)}</nav>", ""]
    cells.insert(0, new_markdown_cell("\n".join([*top, *answers])))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # unique in the page, and the same every time
    merged = new_notebook(cells=cells, metadata={"title": top[0][2:]})
    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(merged)
    args.output.write_text(with_unique_anchors(html))


def formula(found: re.Match[str]) -> str:
    return convert(found["block"] or found["inline"], display="block" if found["block"] else "inline")


def answer(notebook) -> list[str]:
    """The first two lines that are printed under the heading Verdict."""
    below = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            below |= any(line.startswith("## Verdict") for line in cell.source.splitlines())
        elif below and (printed := [o.text for o in cell.outputs if o.output_type == "stream"]):
            return "".join(printed).splitlines()[:2]
    return []


def with_unique_anchors(html: str) -> str:
    """Headings of several notebooks are alike, so each anchor begins with the name of its notebook."""
    stem = ""

    def named(found: re.Match[str]) -> str:
        nonlocal stem
        stem = found["notebook"] or stem
        return found[0] if found["notebook"] else f'{found["before"]}{stem}-{found["anchor"]}"'

    anchors = r'<a id="(?P<notebook>\w+)"></a>|(?P<before><h\d id="|class="anchor-link" href="#)(?P<anchor>[^"]+)"'
    return re.sub(anchors, named, html)


def title(notebook) -> str | None:
    """The first heading."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), None)


if __name__ == "__main__":
    main()

"""Merge executed notebooks into one HTML page that needs nothing but itself: ``report.py quick page.html *.ipynb``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

# JupyterLab's look without the scripts that it loads from elsewhere. So formulas in $...$ stay as they are typed.
TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_css -%}<style>body { max-width: 60rem; margin: auto; }</style>{%- endblock -%}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile")
    parser.add_argument("output", type=Path)
    parser.add_argument("notebooks", nargs="*", type=Path, help="in reading order")
    args = parser.parse_args()
    contents, cells = [], []
    for path in args.notebooks:
        notebook = nbformat.read(path, as_version=4)
        contents.append(f"- [{title(notebook) or path.stem}](#{path.stem})")
        cells += [new_markdown_cell(f'<a id="{path.stem}"></a>'), *notebook.cells]
    top = [f"# Guided transfer learning: the {args.profile} profile", *contents]
    cells.insert(0, new_markdown_cell("\n".join(top)))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # unique in the page, and the same every time
    merged = new_notebook(cells=cells, metadata={"title": top[0][2:]})
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # figures without alternative text
    exporter = HTMLExporter(raw_template=TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(merged)
    args.output.write_text(html)


def title(notebook) -> str | None:
    """The first heading."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line[2:].strip() for line in lines if line.startswith("# ")), None)


if __name__ == "__main__":
    main()

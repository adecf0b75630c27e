"""A report as one HTML file that needs nothing else: no script, no font, no address."""

from __future__ import annotations

from importlib.resources import files

import jinja2

from matl.charts import svg
from matl.report.document import Document


def report_html(document: Document) -> str:
    """Set a document as HTML. Every text is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folder = files("matl.report")
    template = environment.from_string(folder.joinpath("report.html.j2").read_text("utf-8"))
    style = folder.joinpath("report.css").read_text("utf-8")
    return template.render(document=document, style=style, svg=svg)

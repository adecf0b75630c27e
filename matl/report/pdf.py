"""A report as a PDF, with charts drawn as lines; nothing is embedded but a font."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import matplotlib as mpl
from fpdf import FPDF
from fpdf.enums import XPos, YPos
from fpdf.fonts import FontFace

from matl.charts import Chart, Dot, Stroke, Text, outline
from matl.report.document import Block, Document, Facts, Figure, Files, Paragraph, Rows

_MARGIN_MM: Final = 16.0
_INK, _MUTED, _LINE = (31, 41, 51), (82, 96, 109), (221, 227, 232)
_FAMILY: Final = "DejaVu"
_HEADING_MM: Final = 13.0
_MM_PER_POINT: Final = 25.4 / 72.0


def report_pdf(document: Document, *, made_at: datetime) -> bytes:
    """Set a document as PDF."""
    pdf = _Pages(document.title)
    pdf.set_creation_date(made_at)
    pdf.begin(document)
    for part in document.parts:
        pdf.heading(part.title, before=part.blocks[0])
        for block in part.blocks:
            match block:
                case Paragraph(text):
                    pdf.words(text)
                case Facts(rows):
                    pdf.rows((), rows, (0.2, 0.8))
                case Rows(columns, rows, widths):
                    pdf.rows(columns, rows, widths)
                case Figure(chart, caption):
                    pdf.chart(chart)
                    pdf.words(caption, muted=True)
                case Files(summary, _):
                    pdf.words(f"{summary}: its two files are in the HTML report.", muted=True)
    return bytes(pdf.output())


class _Pages(FPDF):
    """Pages with one font, a title on top, and numbers below."""

    def __init__(self, title: str) -> None:
        super().__init__(format="A4")
        fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
        # The core fonts of PDF have neither ε nor κ.
        self.add_font(_FAMILY, "", fonts / "DejaVuSans.ttf")
        self.add_font(_FAMILY, "B", fonts / "DejaVuSans-Bold.ttf")
        self.set_title(title)
        self.set_lang("en")
        self.set_margin(_MARGIN_MM)
        self.set_auto_page_break(True, margin=_MARGIN_MM + 4.0)
        self.alias_nb_pages()
        self._named = title

    def footer(self) -> None:
        """Name and number at the foot of every page."""
        self.set_y(-_MARGIN_MM)
        self._pen(7.5, muted=True)
        self.cell(0, 5, f"{self._named} · page {self.page_no()} of {{nb}}", align="C")

    def begin(self, document: Document) -> None:
        """The title, and figures in a row."""
        self.add_page()
        self._pen(20, bold=True)
        self.cell(0, 10, document.title, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.words(document.subtitle, muted=True)
        self.ln(2)
        top, width = self.get_y(), self.epw / max(1, len(document.tiles))
        for number, (label, value, note) in enumerate(document.tiles):
            x = self.l_margin + number * width
            self.set_draw_color(*_LINE)
            self.rect(x, top, width - 2, 19)
            for y, size, text, bold in (
                (1.5, 7.0, label, False),
                (6.0, 12.0, value, True),
                (12.5, 6.0, note, False),
            ):
                self.set_xy(x + 1.5, top + y)
                self._pen(size, bold=bold, muted=not bold)
                self.multi_cell(width - 5, size * 0.42, text, align="L")
        self.set_xy(self.l_margin, top + 22)

    def heading(self, title: str, *, before: Block) -> None:
        """A section's title, never alone at a page's foot."""
        chart = before.chart if isinstance(before, Figure) else None
        needed = 28.0 if chart is None else chart.height * self.epw / chart.width
        if self.will_page_break(needed + _HEADING_MM):
            self.add_page()
        self.ln(3)
        self._pen(13, bold=True)
        self.cell(0, 8, title, new_x=XPos.LMARGIN, new_y=YPos.NEXT)

    def words(self, text: str, *, muted: bool = False) -> None:
        """A paragraph."""
        self._pen(8.5, muted=muted)
        self.multi_cell(0, 4.4, text, align="L", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
        self.ln(1)

    def rows(
        self,
        columns: tuple[str, ...],
        rows: tuple[tuple[str, ...], ...],
        widths: tuple[float, ...],
    ) -> None:
        """A table, whose headings are repeated on every page."""
        if not rows:
            return
        self._pen(7.2)
        self.set_draw_color(*_LINE)
        count = len(rows[0])
        shares = widths or tuple(1.0 / count for _ in range(count))
        with self.table(
            borders_layout="HORIZONTAL_LINES",
            col_widths=tuple(round(each * 100) for each in shares),
            first_row_as_headings=bool(columns),
            headings_style=FontFace(emphasis="", color=_MUTED),
            line_height=3.8,
            padding=(0.7, 1.2),
            text_align="LEFT",
        ) as table:
            for cells in (*((columns,) if columns else ()), *rows):
                row = table.row()
                for cell in cells:
                    row.cell(cell)
        self.ln(2)

    def chart(self, chart: Chart) -> None:
        """A chart as wide as the text."""
        scale = self.epw / chart.width
        if self.will_page_break(chart.height * scale):
            self.add_page()
        left, top = self.l_margin, self.get_y()
        for mark in chart.marks:
            match mark:
                case Stroke(points, colour, width, dash):
                    self.set_draw_color(colour)
                    self.set_line_width(width * scale)
                    if dash:
                        self.set_dash_pattern(dash=dash[0] * scale, gap=dash[-1] * scale)
                    self.polyline([(left + x * scale, top + y * scale) for x, y in points])
                    self.set_dash_pattern()
                case Dot(colour=colour):
                    self.set_fill_color(colour)
                    corners = [(left + x * scale, top + y * scale) for x, y in outline(mark)]
                    self.polygon(corners, style="F")
                case Text():
                    self._write(mark, left, top, scale)
        self.set_line_width(0.2)
        # Tables are filled with what was used last.
        self.set_fill_color(255)
        self.set_xy(left, top + chart.height * scale + 1.5)

    def _write(self, mark: Text, left: float, top: float, scale: float) -> None:
        self.set_font(_FAMILY, "B" if mark.bold else "", mark.size * scale / _MM_PER_POINT)
        self.set_text_color(mark.colour)
        shift = {"start": 0.0, "middle": 0.5, "end": 1.0}[mark.anchor]
        x = left + mark.x * scale - shift * self.get_string_width(mark.text)
        self.text(x, top + mark.y * scale, mark.text)

    def _pen(self, size: float, *, bold: bool = False, muted: bool = False) -> None:
        self.set_font(_FAMILY, "B" if bold else "", size)
        self.set_text_color(*(_MUTED if muted else _INK))

"""A report as one self-contained page. Pure: the same report and envelope give the same bytes.

The page carries the signed report itself; what a reader sees is made from that, so that
``verify_hipaa.py --check`` can make it again and compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Final

from matl.compliance.control import Finding, Status
from matl.compliance.report import DISCLAIMER, Report
from matl_common.errors import InvalidInputError

_OPENS: Final = '<script type="application/json" id="envelope">'
_CLOSES: Final = "</script>"
_ENVELOPE: Final = re.compile(re.escape(_OPENS) + r"([^<]*)" + re.escape(_CLOSES))

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0 } .of { margin-top: .2rem; opacity: .75 }
.counts span { display: inline-block; margin-right: 1.2rem; font-weight: 600 }
table { border-collapse: collapse; width: 100% } caption { text-align: left; padding: .5rem 0 }
th, td { text-align: left; vertical-align: top; padding: .5rem .6rem }
th, td { border-top: 1px solid var(--line) }
td.evidence { overflow-wrap: anywhere } .small { opacity: .75; font-size: .87em }
.s { font-weight: 700; white-space: nowrap } .PASS { color: #17803d } .FAIL { color: #c42b1c }
.NOT-TESTED { color: #946200 } .ATTESTED { color: #1f6fb2 }
@media (prefers-color-scheme: dark) { .PASS { color: #57c97d } .FAIL { color: #ff7b6e }
.NOT-TESTED { color: #e0b14a } .ATTESTED { color: #7cb8ec } }
""".strip()


def render_page(report: Report, envelope: bytes) -> bytes:
    """The page of a report.

    Args:
        report: what the envelope holds.
        envelope: DSSE JSON with the signed report.
    """
    return "\n".join(_lines(report, envelope)).encode() + b"\n"


def envelope_in(page: bytes) -> bytes:
    """The envelope that a page carries.

    Raises:
        InvalidInputError: it is no page of ours.
    """
    try:
        found = _ENVELOPE.findall(page.decode())
    except UnicodeDecodeError as error:
        raise InvalidInputError("not a report: it is not UTF-8") from error
    if len(found) != 1:
        raise InvalidInputError("not a report: it carries no signed envelope")
    return str(found[0]).encode()


def _lines(report: Report, envelope: bytes) -> Iterator[str]:
    title = f"Technical safeguards of {report.federation}"
    yield "<!doctype html>"
    yield f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<style>{_STYLE}</style></head><body><main>"
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f'<p class="of">Probed on {report.at:%Y-%m-%d at %H:%M:%S} UTC on the machine of '
        f"{report.side.value} {escape(report.node)} by {escape(report.account)}, in "
        f"{report.seconds:.1f} s, with MATL {escape(report.version)}</p>"
    )
    counts = report.verdict.counts
    shown = "".join(f'<span class="{s.value}">{counts[s]} {s.value}</span>' for s in Status)
    yield f'<p class="counts">{shown}</p>'
    yield f"<p>{escape(verdict_sentence(report))}</p>"
    yield f"<p>{escape(DISCLAIMER)}</p>"
    which = "Every control" if report.is_whole else probed_of_all(report)
    yield f"<table><caption>{which}, what was done, and what was found</caption>"
    yield (
        '<thead><tr><th scope="col">Result</th><th scope="col">Control</th>'
        '<th scope="col">Evidence</th></tr></thead><tbody>'
    )
    for each in report.findings:
        yield _row(each)
    yield "</tbody></table>"
    yield (
        "<p class='small'>This page carries the signed report that it was made from. "
        "verify_hipaa.py --check FILE verifies the signature, and makes the page again.</p>"
    )
    yield f"{_OPENS}{envelope.decode()}{_CLOSES}</main></body></html>"


def probed_of_all(report: Report) -> str:
    """How much of a side was looked at."""
    return f"{len(report.findings)} of {report.controls} controls of this side"


def verdict_sentence(report: Report) -> str:
    """What follows, in a sentence; of a part of the controls, it says of how many."""
    verdict = report.verdict
    part = "" if report.is_whole else f"Probed: {probed_of_all(report)}. "
    parts = []
    if verdict.broken:
        parts.append(f"broken: {', '.join(verdict.broken)}")
    if verdict.untested:
        parts.append(f"required, and not tested: {', '.join(verdict.untested)}")
    if not parts:
        which = "" if report.is_whole else " of these"
        return (
            f"{part}No control{which} was found broken, and every required one{which} was tested "
            "or signed for."
        )
    return f"{part}To be dealt with. {'; '.join(parts).capitalize()}."


def _row(finding: Finding) -> str:
    control, outcome = finding.control, finding.outcome
    remedy = f"<br><b>To do:</b> {escape(outcome.remedy)}" if outcome.remedy else ""
    open_still = (
        f'<br><span class="small">Leaves open: {escape(control.leaves_open)}</span>'
        if control.leaves_open
        else ""
    )
    return (
        f'<tr><td class="s {outcome.status.value}">{outcome.status.value}</td>'
        f"<td><b>{escape(control.id)}</b><br>{escape(control.title)}<br>"
        f'<span class="small">{escape(control.cfr)}, {control.level.value}</span></td>'
        f'<td class="evidence">{escape(outcome.evidence)}{remedy}'
        f'<br><span class="small">Done: {escape(control.probe)}</span>{open_still}</td></tr>'
    )

"""A report: what was found, of whom, and when; and its bytes. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from matl.compliance.control import (
    Control,
    Finding,
    Level,
    Outcome,
    Side,
    Status,
    Verdict,
    judge,
)
from matl_common.errors import InvalidInputError
from matl_common.validation import problems_in

FORMAT: Final = 1
PAYLOAD_TYPE: Final = "application/vnd.matl.safeguards.v1"
DISCLAIMER: Final = (
    "Evidence of technical safeguards at one moment, on one machine. It covers what the probes "
    "say that they cover, and says nothing of an organisation's standing under the law."
)


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found.

    Attributes:
        at: when it was over.
        seconds: how long it took.
        federation: whose safeguards these are.
        node: on whose machine the probes ran.
        side: what that node is.
        version: of the software that probed.
        account: who ran it.
        controls: how many that side has.
        findings: a row for each that was probed.
    """

    at: datetime
    seconds: float
    federation: str
    node: str
    side: Side
    version: str
    account: str
    controls: int
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """What follows."""
        return judge(self.findings)

    @property
    def is_whole(self) -> bool:
        """Whether every control of that side was probed."""
        return len(self.findings) == self.controls


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    control: str
    cfr: str
    level: Level
    title: str
    probe: str
    leaves_open: str
    status: Status
    evidence: str
    remedy: str


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    at: datetime
    seconds: float
    federation: str
    node: str
    side: Side
    version: str
    account: str
    probed: int
    controls: int
    exit_status: int
    disclaimer: str
    findings: list[_Row]


def facts_of(report: Report) -> dict[str, Any]:
    """The report as JSON has it."""
    return {
        "format": FORMAT,
        "at": report.at.isoformat(timespec="milliseconds"),
        "seconds": round(report.seconds, 3),
        "federation": report.federation,
        "node": report.node,
        "side": report.side.value,
        "version": report.version,
        "account": report.account,
        "probed": len(report.findings),
        "controls": report.controls,
        "exit_status": report.verdict.exit_status,
        "disclaimer": DISCLAIMER,
        "findings": [_row(each) for each in report.findings],
    }


def encode_report(report: Report) -> bytes:
    """Canonical JSON: what is signed."""
    text = json.dumps(facts_of(report), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def parse_report(data: bytes) -> Report:
    """Parse what ``encode_report`` made, once its signature was verified.

    Raises:
        InvalidInputError: it is none.
    """
    try:
        found = _Document.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInputError(f"no report: {problems_in(error, whole='report')}") from error
    if found.format != FORMAT:
        raise InvalidInputError(f"a report of format {found.format}; this version reads {FORMAT}")
    return Report(
        at=found.at,
        seconds=found.seconds,
        federation=found.federation,
        node=found.node,
        side=found.side,
        version=found.version,
        account=found.account,
        controls=found.controls,
        findings=tuple(
            Finding(
                Control(
                    each.control,
                    each.cfr,
                    each.level,
                    each.title,
                    each.probe,
                    each.leaves_open,
                ),
                Outcome(each.status, each.evidence, each.remedy),
            )
            for each in found.findings
        ),
    )


def _row(finding: Finding) -> dict[str, str]:
    control, outcome = finding.control, finding.outcome
    return {
        "control": control.id,
        "cfr": control.cfr,
        "level": control.level.value,
        "title": control.title,
        "probe": control.probe,
        "leaves_open": control.leaves_open,
        "status": outcome.status.value,
        "evidence": outcome.evidence,
        "remedy": outcome.remedy,
    }

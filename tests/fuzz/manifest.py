"""The signed documents: what is parsed gives the same bytes again, if they were ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matl_common.wire import documents
from tests.fuzz.samples import MANIFEST, PLAN, RECEIPT, SCORE, START
from tests.fuzz.target import Target

_KINDS: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
    (documents.parse_update_manifest, documents.format_update_manifest),
    (documents.parse_study_plan, documents.format_study_plan),
    (documents.parse_round_start, documents.format_round_start),
    (documents.parse_receipt, documents.format_receipt),
    (documents.parse_score_receipt, documents.format_score_receipt),
)


def _run(data: bytes) -> None:
    # The first byte says which document it is.
    parse, form = _KINDS[data[0] % len(_KINDS)] if data else _KINDS[0]
    document = parse(data[1:])
    # Equal but for NaN, which a count may be.
    again = form(document)
    assert form(parse(again)) == again


TARGET = Target(
    run=_run,
    seeds=[
        b"\0" + documents.format_update_manifest(MANIFEST),
        b"\1" + documents.format_study_plan(PLAN),
        b"\2" + documents.format_round_start(START),
        b"\3" + documents.format_receipt(RECEIPT),
        b"\4" + documents.format_score_receipt(SCORE),
    ],
)

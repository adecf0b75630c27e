"""Tables, JSON and text, in whatever encoding."""

from __future__ import annotations

from matl_common.phi.schema import LABELS_SCHEMA
from matl_common.phi.text import scan_csv, scan_json, scan_text
from tests.fuzz.target import Target


def _run(data: bytes) -> None:
    # The first byte tells how the rest is read.
    kind, rest = data[:1], data[1:]
    if kind == b"j":
        found = scan_json(rest)
    elif kind == b"c":
        found = scan_csv(rest, LABELS_SCHEMA)
    else:
        found = scan_text(rest)
    for each in found:
        assert each.where


TARGET = Target(
    run=_run,
    seeds=[
        b"cimage_id,dr_level,mrn\ne1,2,1234567\ne2,9,1234568\n",
        b'j{"patient_id": [1, {"note": "MRN 1234567"}]}',
        b"tPatient: Mary Smith, MRN 1234567, 1961-03-02, +44 20 7946 0958, a@b.org",
    ],
)

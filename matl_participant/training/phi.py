"""The scan for identifiers, before a hospital's data is trained on.

Looks at the labels file and at every image that it lists. The verdict is kept beside the
digest of what was looked at, so that a restart only computes the digest again.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from matl_common.durable import write_atomically
from matl_common.errors import MatlError
from matl_common.ids import Digest, digest_of_file
from matl_common.phi import ocr
from matl_common.phi.content import Look
from matl_common.phi.findings import MIN_KEY_BYTES, ScanReport
from matl_common.phi.scan import SCANNER_VERSION, look_at, merged, scan_folder
from matl_common.phi.schema import LABELS_SCHEMA
from matl_common.vision.dataset import Record
from matl_common.vision.images import BadImageError, load_image
from matl_common.worker import Message, ReportProgress
from matl_participant.training.requests import PhiScan

MAX_PLACES: Final = 20
_PLACES_IN_ERROR: Final = 5
_KEY_BYTES: Final = 32
_SMALL_IMAGE: Final = 16


class IdentifiersFoundError(MatlError):
    """The data holds what may identify patients, and must not be trained on."""


def look_for_identifiers(
    records: Sequence[Record], labels_csv: Path, asked: PhiScan | None, report: ReportProgress
) -> Message:
    """Scan what the labels list, unless it was scanned before.

    Returns:
        What the daemon tells its operator; nothing if no scan was asked for.

    Raises:
        IdentifiersFoundError: something was found, and the policy is to refuse.
    """
    if asked is None:
        return {}
    digest = _digest(records, labels_csv, asked)
    verdict = _kept(asked.folder, digest)
    if verdict is None:
        verdict = _verdict(records, labels_csv, asked, report) | {"digest": digest}
        write_atomically(_verdict_file(asked.folder), [json.dumps(verdict).encode()])
    if asked.policy == "refuse":
        _refuse(verdict)
    return {"phi": {key: value for key, value in verdict.items() if key != "digest"}}


def _verdict(
    records: Sequence[Record], labels_csv: Path, asked: PhiScan, report: ReportProgress
) -> dict[str, Any]:
    key = _key(asked.folder)
    last = -1

    def tell(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // total
        if percent != last:
            last = percent
            report({"scanned_percent": percent})

    images = frozenset(record.path for record in records)
    folder = records[0].path.parent
    table = scan_folder(labels_csv, key=key, schema=LABELS_SCHEMA)
    found = merged((table, scan_folder(folder, key=key, ocr=asked.ocr, only=images, progress=tell)))
    return {
        "findings": len(found.findings) + found.findings_left_out,
        "places": [
            {"place": each.place, "category": each.category.value, "mark": each.mark}
            for each in found.findings[:MAX_PLACES]
        ],
        "not_understood": len(found.files_not_understood),
        "unexamined_labels": [each.reason for each in table.files_not_understood],
        "unexamined_rows": _unexamined(records, found)[:MAX_PLACES],
        "not_tested": list(found.not_tested),
    }


def _unexamined(records: Sequence[Record], found: ScanReport) -> list[int]:
    """Rows whose image can be trained on, though its parts cannot be followed."""
    if not found.files_not_understood:
        return []
    look = Look(LABELS_SCHEMA, ocr=False)
    rows = []
    for record in records:
        _, reason = look_at(record.path, look)
        if reason:
            with suppress(BadImageError):
                load_image(record.path, image_size=_SMALL_IMAGE)
                rows.append(record.row)
    return rows


def _refuse(verdict: Mapping[str, Any]) -> None:
    """Raises IdentifiersFoundError for what was found, or could not be looked at."""
    if verdict["findings"]:
        places = [f"{each['place']}: {each['category']}" for each in verdict["places"]]
        more = verdict["findings"] - len(places[:_PLACES_IN_ERROR])
        raise IdentifiersFoundError(
            "the data holds what may identify patients: "
            + "; ".join(places[:_PLACES_IN_ERROR])
            + (f"; and {more} more" if more else "")
            + '. See "matl phi scan" on the folder, and its --clean; where somebody has judged '
            'each finding harmless, data.phi_scan = "warn" trains nevertheless'
        )
    if verdict["unexamined_labels"]:
        raise IdentifiersFoundError(
            "the labels file cannot be examined for identifiers: "
            f"{verdict['unexamined_labels'][0]}; "
            'write it anew as delimited text, or set data.phi_scan = "warn"'
        )
    if verdict["unexamined_rows"]:
        rows = ", ".join(map(str, verdict["unexamined_rows"]))
        raise IdentifiersFoundError(
            "images cannot be examined for identifiers, though they can be decoded: rows "
            f"{rows} of the labels file; "
            'write these images anew, or set data.phi_scan = "warn"'
        )


def _digest(records: Sequence[Record], labels_csv: Path, asked: PhiScan) -> Digest:
    """Of everything that a verdict depends on."""
    reads = asked.ocr and ocr.is_available()
    sha256 = hashlib.sha256(f"{SCANNER_VERSION}\0{reads}\0{_digest_of(labels_csv)}\n".encode())
    for record in records:
        sha256.update(f"{record.path.name}\0{_digest_of(record.path)}\n".encode())
    return Digest(sha256.hexdigest())


def _digest_of(path: Path) -> str:
    try:
        return digest_of_file(path)
    except OSError:
        return "unreadable"


def _kept(folder: Path, digest: Digest) -> dict[str, Any] | None:
    """The verdict on data of this digest, if the newest is."""
    try:
        verdict = json.loads(_verdict_file(folder).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return verdict if isinstance(verdict, dict) and verdict.get("digest") == digest else None


def _verdict_file(folder: Path) -> Path:
    return folder / "verdict.json"


def _key(folder: Path) -> bytes:
    """The key of this hospital's marks, made the first time."""
    path = folder / "marks.key"
    with suppress(FileNotFoundError):
        key = path.read_bytes()
        if len(key) >= MIN_KEY_BYTES:
            return key
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = secrets.token_bytes(_KEY_BYTES)
    write_atomically(path, [key])
    return key

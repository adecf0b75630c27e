"""A look at the labels file's first line, before anything else starts.

Enough to refuse identifying columns in the first second. No row is read: the training
worker checks those. Messages number columns and never quote them, because a file
without a header has a patient in its first line.
"""

import csv
from pathlib import Path

from matl_common.errors import ConfigurationError

REQUIRED_COLUMNS = ("image_id", "dr_level")
OPTIONAL_COLUMNS = ("group_key",)
_MAX_HEADER_CHARACTERS = 64 << 10


class LabelsRefusedError(ConfigurationError):
    """The labels file cannot be used, or must not be."""


def inspect_data(images: Path, labels: Path) -> tuple[str, ...]:
    """Check that the data is there and that its columns are harmless; return them.

    Raises:
        LabelsRefusedError: something is missing, or a column is not on the allow-list.
    """
    try:
        is_folder = images.is_dir()
    except OSError as error:
        # No word of the path, which is below a data folder.
        raise LabelsRefusedError(
            f"data.images cannot be looked at: {error.strerror}; check the path and its owner"
        ) from error
    if not is_folder:
        raise LabelsRefusedError("data.images is not a folder; check the path and its owner")
    try:
        with labels.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(_MAX_HEADER_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise LabelsRefusedError(
            "the labels file cannot be read; check data.labels, its owner, and that it is a CSV "
            "file in UTF-8"
        ) from error
    return parse_header(first)


def parse_header(line: str) -> tuple[str, ...]:
    """Check the header of a labels file.

    Raises:
        LabelsRefusedError: a column is missing, repeated or not on the allow-list.
    """
    columns = tuple(name.strip().lower() for name in next(csv.reader([line]), []))
    allowed = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
    strange = [str(at) for at, name in enumerate(columns, start=1) if name not in allowed]
    if strange:
        raise LabelsRefusedError(
            f"the labels file may only have the columns {', '.join(allowed)}; remove column "
            f"{', '.join(strange[:20])}, which could identify patients, or add the header line"
        )
    missing = [name for name in REQUIRED_COLUMNS if name not in columns]
    if missing:
        raise LabelsRefusedError(f"the labels file has no column {' and no '.join(missing)}")
    if len(set(columns)) != len(columns):
        raise LabelsRefusedError("the labels file names a column twice")
    return columns


def check_patient_unit(columns: tuple[str, ...], images_per_patient: int | None) -> str | None:
    """Check how images are known to belong to one patient; return a warning, or nothing.

    Raises:
        ConfigurationError: both ways are given, and the second would weaken the update.
    """
    if "group_key" in columns:
        if images_per_patient is not None:
            raise ConfigurationError(
                "the labels have a group_key, so data.images_per_patient must not be set; remove "
                "one of the two"
            )
        return None
    if images_per_patient is not None:
        return None
    return (
        "every image is taken for a patient of its own; if a patient may have several, add a "
        "group_key column or set data.images_per_patient, or the promise to that patient is weaker"
    )

"""The data set of a request: which of its rows can be used, and whether it is still the same.

Nothing here computes features or gradients.
"""

from matl_common.errors import MatlError
from matl_common.ids import Digest
from matl_common.vision.dataset import (
    Labels,
    OnBadImage,
    Record,
    RowDefect,
    SkippedRow,
    bad_row,
    dataset_digest,
    read_labels,
)
from matl_common.vision.images import BadImageError, load_image
from matl_common.vision.requests import ImageSource
from matl_common.worker import ReportProgress
from matl_participant.training.group import ProcessGroup
from matl_participant.training.requests import MeetRequest


class DatasetChangedError(MatlError):
    """The data on disk is not the data that the privacy budget was opened for."""


class PercentReport:
    """Reports whole percents, each once: a daemon's log is no place for numbers of images."""

    def __init__(self, report: ReportProgress) -> None:
        self._report = report
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if percent != self._last:
            self._last = percent
            self._report({"percent": percent})


def labels_of(data: ImageSource) -> Labels:
    """Read the labels.

    Raises:
        LabelsError, BadRowError: as ``read_labels``.
    """
    return read_labels(data.data_dir, data.labels_csv, on_bad_image=data.on_bad_image)


def decodable(
    labels: Labels, data: ImageSource, report: ReportProgress | None
) -> tuple[tuple[Record, ...], tuple[SkippedRow, ...]]:
    """The rows whose images can be decoded, and the others.

    Raises:
        BadRowError: an image cannot be, and ``on_bad_image`` is ``FAIL``.
    """
    usable: list[Record] = []
    skipped = list(labels.skipped)
    tell = PercentReport(report) if report else None
    for number, record in enumerate(labels.records, start=1):
        try:
            load_image(record.path, image_size=data.image_size)
            usable.append(record)
        except BadImageError as error:
            skipped.append(SkippedRow(record.row, RowDefect.CORRUPT))
            if data.on_bad_image is OnBadImage.FAIL:
                raise bad_row(skipped[-1]) from error
        if tell:
            tell(number, len(labels.records))
    skipped.sort(key=lambda row: row.row)
    return tuple(usable), tuple(skipped)


def pinned_records(
    data: ImageSource, expected: Digest, group: ProcessGroup | None = None
) -> tuple[Record, ...]:
    """The rows that ``full`` trains on, in this process and in all others of its group.

    Raises:
        DatasetChangedError: they are not the data set of that digest.
        ProcessesDisagreeError: another process has another.
    """
    usable, _ = decodable(labels_of(data), data, report=None)
    found = dataset_digest(usable)
    if group is not None:
        check_same_data(found, group)
    check_dataset(found, expected)
    return usable


def check_same_data(found: Digest, group: ProcessGroup) -> None:
    """See that all processes have one data set, before any of them computes with it.

    Raises:
        ProcessesDisagreeError: they do not.
    """
    group.check_agreed(
        found.encode(),
        otherwise="the training processes do not find the same images and labels; copy them from "
        "the first node to the others, or mount one folder on all",
    )


def check_dataset(found: Digest, expected: Digest) -> None:
    """Refuse data that the budget was not opened for.

    Raises:
        DatasetChangedError: the digests differ.
    """
    if found != expected:
        raise DatasetChangedError(
            "the images or labels changed since the data set was prepared; restore them, or "
            "prepare again and open a new budget"
        )


def meet(request: MeetRequest, group: ProcessGroup) -> None:
    """See that every node holds the rows that ``full`` will train on.

    Raises:
        ProcessesDisagreeError: one does not.
    """
    nodes = request.resources.nodes
    found = request.dataset_digest
    # On the first node the worker has just computed it.
    if nodes is not None and nodes.rank > 0:
        usable, _ = decodable(labels_of(request.data), request.data, report=None)
        found = dataset_digest(usable)
    check_same_data(found, group)

"""Labels are scanned for identifiers wherever they lie, at a hospital and at the coordinator."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from matl.compliance.audit import coordinator_site, participant_site, probed
from matl.compliance.control import Status
from matl.compliance.probes import deidentification
from matl.compliance.registry import Registry
from matl.compliance.site import Site
from matl_coordinator.config import Holdout
from matl_coordinator.config import load_config as load_coordinator
from matl_participant.config import load_config as load_participant

EXAMPLES = Path(__file__).parents[2] / "deploy" / "examples"
CLEAN = "image_id,dr_level\n"
SABOTAGED = "image_id,dr_level,ssn\nimage_000,1,219-09-9998\n"
BESIDE = "labels_deidentified.csv"


def a_hospital(images: Path, labels: Path | None) -> Site:
    file = EXAMPLES / "participant.toml"
    config = load_participant(file, environment={})
    data = config.data.model_copy(update={"images": images, "labels": labels})
    config = config.model_copy(update={"data": data})
    return participant_site(config, file=file, registry=Registry())


def a_coordinator(images: Path, labels: Path | None, *, is_public: bool = False) -> Site:
    file = EXAMPLES / "coordinator.toml"
    config = load_coordinator(file, environment={})
    change = {"public_images": None, "public_labels": None}
    study = config.study.model_copy(
        update={"public_images": images, "public_labels": labels} if is_public else change
    )
    holdout = None if is_public else Holdout(images=images, labels=labels)
    config = config.model_copy(update={"study": study, "holdout": holdout})
    with ExitStack() as stack:
        return coordinator_site(stack, config, file=file, registry=Registry())


def with_public_images(images: Path, labels: Path | None) -> Site:
    return a_coordinator(images, labels, is_public=True)


SITES = pytest.mark.parametrize("site_of", [a_hospital, a_coordinator, with_public_images])


@SITES
@pytest.mark.parametrize("place", [BESIDE, "images/" + BESIDE, "elsewhere/labels.csv"])
@pytest.mark.parametrize(("text", "status"), [(CLEAN, Status.PASS), (SABOTAGED, Status.FAIL)])
def test_an_identifier_in_the_labels_is_found_wherever_they_lie(
    site_of: Callable[[Path, Path | None], Site],
    place: str,
    text: str,
    status: Status,
    tmp_path: Path,
) -> None:
    images, labels = tmp_path / "images", tmp_path / place
    images.mkdir()
    labels.parent.mkdir(exist_ok=True)
    labels.write_text(text)
    site = site_of(images, labels if labels.name != BESIDE else None)
    found = probed(deidentification.scan, site)
    assert found.status is status, found


@SITES
def test_labels_that_are_not_there_are_not_passed(
    site_of: Callable[[Path, Path | None], Site], tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    assert probed(deidentification.scan, site_of(images, None)).status is Status.FAIL

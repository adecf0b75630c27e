"""The five hospitals of the demonstration, and the coordinator's own sets.

Plans who has which grade, which label the hospital recorded and which camera took the
picture, all as values of a seed; ``matl.demo.fundus.image_set`` writes them. It holds no
real patient, and nothing here trains or evaluates.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from matl.demo.fundus.camera import CAMERAS, Camera
from matl.demo.fundus.contact_sheet import contact_sheet
from matl.demo.fundus.image_set import ForeignFolderError, ImageSet, PlannedImage, write_image_sets
from matl.demo.fundus.lesions import Grade
from matl.demo.fundus.photograph import Eye
from matl_common.errors import ConfigurationError
from matl_common.ids import NodeId

DEMO_PATIENTS: Final = 2100
TUTORIAL_PATIENTS: Final = 21_000
HOLDOUT, TEST, PUBLIC = "holdout", "test", "public"
# With fewer, the smallest hospital would lack a grade.
_MINIMUM_PATIENTS: Final = 105
_ID_BYTES: Final = 8
# Spawn-key slots that no patient number reaches.
_LABEL_STREAM, _ID_STREAM = 2**32 - 1, 2**32 - 2

MislabelKind: TypeAlias = Literal["reverse", "shift", "random"]
LabelMix: TypeAlias = tuple[float, float, float, float, float]


@dataclass(frozen=True, slots=True)
class Mislabelling:
    """How careless a hospital's labels are.

    ``fraction`` of the rows, rounded, are recorded by a wrong rule:

    - ``reverse`` records ``4 - y``: the export lists the grades worst first and the import
      reads them best first. Grade 2 survives it.
    - ``shift`` records ``(y + 1) mod 5``: the column was taken from a picklist whose first
      entry is "not graded", and the last entry wrapped.
    - ``random`` records one of the four other grades: rows were sorted without their labels.
    """

    fraction: float
    kind: MislabelKind

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ConfigurationError(
                f"mislabelled fraction {self.fraction}: give a number from 0 to 1"
            )


CAREFUL: Final = Mislabelling(fraction=0.0, kind="random")
CARELESS: Final = Mislabelling(fraction=1.0, kind="reverse")


@dataclass(frozen=True, slots=True)
class HospitalSpec:
    """One hospital: patients, share of each grade, camera, and its labels' quality.

    ``label_mix`` sums to 1 over grades 0 to 4. ``two_eyed`` patients have both eyes
    photographed, at the same grade, hence one image more each.
    """

    node_id: NodeId
    patients: int
    label_mix: LabelMix
    camera: Camera
    mislabelling: Mislabelling = CAREFUL
    two_eyed: int = 0


@dataclass(frozen=True, slots=True)
class Study:
    """All sets of one demonstration, in values."""

    seed: int
    hospitals: tuple[HospitalSpec, ...]
    holdout: int = 500
    test: int = 500
    public: int = 200

    def image_sets(self) -> tuple[ImageSet, ...]:
        """Plan every folder: the hospitals', then the coordinator's three."""
        # Public images come from cameras no hospital has.
        theirs = tuple(h.camera for h in self.hospitals)
        others = tuple(c for c in CAMERAS.values() if c not in theirs)
        return (
            *(plan_hospital(h, seed=self.seed) for h in self.hospitals),
            plan_balanced(HOLDOUT, self.holdout, theirs, seed=self.seed),
            plan_balanced(TEST, self.test, theirs, seed=self.seed),
            plan_balanced(PUBLIC, self.public, others, seed=self.seed),
        )


# Relative size, share of grades 0 to 4, camera: a screening service, a diabetes clinic, a
# referral centre, a rural screening van, a small general hospital.
_PROFILES: Final[Mapping[str, tuple[int, LabelMix, str]]] = {
    "hospital_a": (10, (0.34, 0.20, 0.20, 0.13, 0.13), "alder"),
    "hospital_b": (5, (0.20, 0.24, 0.24, 0.17, 0.15), "birch"),
    "hospital_c": (3, (0.12, 0.15, 0.23, 0.26, 0.24), "cedar"),
    "hospital_d": (2, (0.40, 0.24, 0.16, 0.11, 0.09), "douglas"),
    "hospital_e": (1, (0.26, 0.20, 0.20, 0.17, 0.17), "elm"),
}


def five_hospitals(
    patients: int, *, careless: Mislabelling = CARELESS, two_eyed_fraction: float = 0.0
) -> tuple[HospitalSpec, ...]:
    """Share ``patients`` among hospitals A to E as 10:5:3:2:1; E is the careless one.

    Raises:
        ConfigurationError: too few patients, or a fraction outside 0 to 1.
    """
    if patients < _MINIMUM_PATIENTS:
        raise ConfigurationError(
            f"{patients} patients are too few for five hospitals: give {_MINIMUM_PATIENTS} or more"
        )
    if not 0 <= two_eyed_fraction <= 1:
        raise ConfigurationError(
            f"two-eyed fraction {two_eyed_fraction}: give a number from 0 to 1"
        )
    sizes = _apportion(patients, [ratio for ratio, _, _ in _PROFILES.values()])
    hospitals = tuple(
        HospitalSpec(
            NodeId(name), size, mix, CAMERAS[camera], two_eyed=round(two_eyed_fraction * size)
        )
        for size, (name, (_, mix, camera)) in zip(sizes, _PROFILES.items(), strict=True)
    )
    return (*hospitals[:-1], replace(hospitals[-1], mislabelling=careless))


def plan_hospital(spec: HospitalSpec, *, seed: int) -> ImageSet:
    """Plan a hospital's images; the true grade stays beside the recorded one."""
    rng = _stream(seed, spec.node_id, _LABEL_STREAM)
    grades = _shuffled_grades(spec.patients, spec.label_mix, rng)
    two_eyed = set(rng.choice(spec.patients, size=spec.two_eyed, replace=False).tolist())
    ids = _random_ids(2 * (spec.patients + spec.two_eyed), _stream(seed, spec.node_id, _ID_STREAM))
    source = _source_number(spec.node_id)
    images: list[PlannedImage] = []
    for patient, grade in enumerate(grades):
        group_key = next(ids)
        first_is_left = bool(rng.random() < 0.5)
        for left in (first_is_left, not first_is_left)[: 1 + (patient in two_eyed)]:
            eye = Eye(seed, source, patient, left)
            images.append(PlannedImage(next(ids), group_key, eye, grade, grade, spec.camera))
    return ImageSet(spec.node_id, _mislabelled(images, spec.mislabelling, rng))


def plan_balanced(name: str, size: int, cameras: Sequence[Camera], *, seed: int) -> ImageSet:
    """Plan a set with every grade and every camera in equal shares, rightly labelled."""
    rng = _stream(seed, name, _LABEL_STREAM)
    ids = _random_ids(2 * size, _stream(seed, name, _ID_STREAM))
    pairs = [(grade, camera) for camera in cameras for grade in Grade]
    source = _source_number(name)
    images = [
        PlannedImage(
            image_id=next(ids),
            group_key=next(ids),
            eye=Eye(seed, source, patient, left=bool(rng.random() < 0.5)),
            grade=pairs[patient % len(pairs)][0],
            recorded_grade=pairs[patient % len(pairs)][0],
            camera=pairs[patient % len(pairs)][1],
        )
        for patient in range(size)
    ]
    order = rng.permutation(size)
    return ImageSet(name, tuple(images[i] for i in order))


def write_study(study: Study, out: Path, *, workers: int, console: Console | None = None) -> None:
    """Write every folder of ``study`` under ``out``, with a progress bar for each.

    Raises:
        ForeignFolderError: a folder is in the way that this did not write.
    """
    sets = study.image_sets()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {s.name: progress.add_task(s.name, total=len(s.images)) for s in sets}
        write_image_sets(
            sets, out, workers=workers, on_image=lambda s: progress.advance(bars[s.name])
        )


def _mislabelled(
    images: Sequence[PlannedImage], rule: Mislabelling, rng: np.random.Generator
) -> tuple[PlannedImage, ...]:
    wrong = set(rng.permutation(len(images))[: round(rule.fraction * len(images))].tolist())
    return tuple(
        replace(image, recorded_grade=_wrong_grade(image.grade, rule.kind, rng))
        if i in wrong
        else image
        for i, image in enumerate(images)
    )


def _wrong_grade(grade: Grade, kind: MislabelKind, rng: np.random.Generator) -> Grade:
    match kind:
        case "reverse":
            return Grade(4 - grade)
        case "shift":
            return Grade((grade + 1) % 5)
        case "random":
            return Grade((grade + int(rng.integers(1, 5))) % 5)


def _shuffled_grades(patients: int, mix: LabelMix, rng: np.random.Generator) -> tuple[Grade, ...]:
    counts = _apportion(patients, mix)
    grades = np.repeat(np.arange(len(Grade)), counts)
    return tuple(Grade(int(g)) for g in rng.permutation(grades))


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Split ``total`` in whole parts close to ``shares`` (largest remainder)."""
    quotas = total * np.asarray(shares, float) / np.sum(shares)
    parts = np.floor(quotas + 1e-9).astype(int)
    for i in np.argsort(parts - quotas, kind="stable")[: total - int(parts.sum())]:
        parts[i] += 1
    return [int(p) for p in parts]


def _random_ids(count: int, rng: np.random.Generator) -> Iterator[str]:
    """Draw distinct ids of 16 hex digits."""
    # A dict, not a set: it keeps the order drawn, the same in every process.
    ids: dict[str, None] = {}
    while len(ids) < count:
        ids[rng.bytes(_ID_BYTES).hex()] = None
    return iter(ids)


def _stream(seed: int, name: str, slot: int) -> np.random.Generator:
    key = (_source_number(name), slot)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _source_number(name: str) -> int:
    """Number a set by its name, so that adding a hospital changes no other's patients."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _main(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write; one subfolder for each set.")],
    patients: Annotated[
        int,
        typer.Option(
            min=_MINIMUM_PATIENTS,
            help=f"Patients of the five hospitals together, shared 10:5:3:2:1. The tutorial's "
            f"study has {TUTORIAL_PATIENTS}.",
        ),
    ] = DEMO_PATIENTS,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the study; same seed, same bytes.")] = 7,
    holdout: Annotated[int, typer.Option(min=0, help="Images the coordinator scores on.")] = 500,
    test: Annotated[int, typer.Option(min=0, help="Images for the final figures.")] = 500,
    public: Annotated[
        int, typer.Option(min=0, help="Public images, from cameras no hospital has.")
    ] = 200,
    wrong_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of hospital_e's labels recorded wrongly.")
    ] = CARELESS.fraction,
    wrong_kind: Annotated[
        MislabelKind,
        typer.Option(help="How they are wrong: 4 - y, (y + 1) mod 5, or any other grade."),
    ] = CARELESS.kind,
    two_eyed_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of patients with a photograph of each eye.")
    ] = 0.0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes to draw with. Default: one a core.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet, five grades by five cameras.")
    ] = None,
) -> None:
    """Write the photographs and labels of five semi-synthetic hospitals.

    Each set is a folder with images/<image_id>.jpg and labels_deidentified.csv (image_id,
    dr_level, group_key): hospital_a to hospital_e, and the coordinator's holdout, test and
    public. A set already there is kept, and an interrupted one taken up. The images are
    semi-synthetic: figures measured on them say nothing about patients.
    """
    console = Console()
    careless = Mislabelling(wrong_fraction, wrong_kind)
    try:
        hospitals = five_hospitals(patients, careless=careless, two_eyed_fraction=two_eyed_fraction)
        study = Study(seed, hospitals, holdout=holdout, test=test, public=public)
        write_study(study, out, workers=workers or usable_cores(), console=console)
    except (ConfigurationError, ForeignFolderError) as error:
        console.print(f"[red]error:[/red] {error}")
        raise typer.Exit(code=2) from error
    if sheet is not None:
        contact_sheet(sheet, study_seed=seed)


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    typer.run(_main)

"""Which runs need not be run: those finished here, and those that are published of the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.results.gather import FIGURES, Run, run_of, runs_in
from matl.simulation.campaign import Finished, Job, fingerprint_of
from matl.simulation.datasets import FEATURES_SUFFIX, DataSet
from matl.simulation.study import ArmName, Study, StudyFile

RunKey = tuple[Study, str, int]


def taken_over(published: Mapping[str, Any], jobs: Sequence[Job]) -> list[Run]:
    """Those runs of ``jobs`` that are published of the same code, data and figures.

    Arms without trust only ask for the code that they carry out. The versions of libraries and
    the processor do not enter: ``make evidence-check`` says whether they change a figure.

    Args:
        published: one study, as ``published_study`` gave it.
        jobs: of the same study file.
    """
    codes = {published.get("fingerprint"), published.get("fingerprint_without_trust")}

    def is_same(job: Job, arm: ArmName) -> bool:
        return published.get("data") == data_digest(job) and not codes.isdisjoint(
            (fingerprint_of(job, ArmName.MATL), fingerprint_of(job, arm))
        )

    if published.get("figures") != list(FIGURES):
        return []
    same = [replace(job, arms=tuple(a for a in job.arms if is_same(job, a))) for job in jobs]
    return runs_in(published["cells"], same)


def data_digest(job: Job) -> str:
    """Names the images, and what else enters; empty where the code's fingerprint has all of it."""
    is_fashion = job.study.data.set == DataSet.FASHION
    return f"{_folder_digest(job.places.fashion) if is_fashion else ''} {job.beside}".strip()


@cache
def _folder_digest(folder: Path) -> str:
    digest = sha256()
    for path in sorted(folder.glob("*.gz")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def feature_files(file: StudyFile, folder: Path) -> list[Path]:
    """The files of features that a study file reads, present or not; none where it has images."""
    sets = dict.fromkeys(study.data.set for study in file.studies)
    return [folder / name for name in sets if name.endswith(FEATURES_SUFFIX)]


def by_key(runs: Iterable[Run]) -> dict[RunKey, Run]:
    """Runs by their study, arm and seed."""
    return {(run.study, run.arm, run.seed): run for run in runs}


def known(jobs: Sequence[Job], finished: Finished, taken: Mapping[RunKey, Run]) -> list[Run]:
    """What is finished here or was taken over, in the order of the jobs, and nothing else."""
    found = []
    for job in jobs:
        for arm in job.arms:
            outcome = finished.get(job, arm)
            run = taken.get((job.study, arm, job.seed))
            if outcome is not None:
                run = run_of(job.study, outcome)
            if run is not None:
                found.append(run)
    return found


def unknown(jobs: Sequence[Job], taken: Mapping[RunKey, Run]) -> list[Job]:
    """The jobs with the arms that were not taken over; without those that have none left."""
    left = [
        replace(job, arms=tuple(a for a in job.arms if (job.study, a, job.seed) not in taken))
        for job in jobs
    ]
    return [job for job in left if job.arms]

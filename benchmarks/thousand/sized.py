"""A study file's first study, with another number of hospitals or rounds."""

from pathlib import Path

from matl.simulation.campaign import Job, jobs_of
from matl.simulation.study import ArmName, read_study


def sized(path: Path, *, hospitals: int, rounds: int, arm: ArmName = ArmName.MEAN) -> Job:
    """Its job under one arm."""
    job = jobs_of(read_study(path))[0]
    study = job.study.model_copy(
        update={
            "hospitals": job.study.hospitals.model_copy(update={"count": hospitals}),
            "training": job.study.training.model_copy(update={"rounds": rounds}),
        }
    )
    return Job(study, job.seed, (arm,), job.places)

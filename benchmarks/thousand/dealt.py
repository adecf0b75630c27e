"""A study's split as files, for an engine that is not ours; trains nothing."""

import json
from pathlib import Path

import numpy as np

from matl.simulation.campaign import Job, images_of
from matl.simulation.federation import prepare
from matl_common.vision.linear_head import fit_projection, project

ARRAYS = ("a", "b", "c", "d")


def deal(job: Job, folder: Path) -> None:
    """Write who owns which images, the first model, and what a round does, into ``folder``."""
    study = job.study
    simulation = prepare(images_of(job), study, seed=job.seed)
    cohort, learner, recipe = simulation.cohort, simulation.learner, study.training
    np.save(folder / "members.npy", np.concatenate(cohort.members))
    np.save(folder / "bounds.npy", np.cumsum([0, *map(len, cohort.members)]))
    np.save(folder / "values.npy", cohort.values)
    np.save(folder / "labels.npy", cohort.labels)
    np.save(folder / "patients.npy", np.array(cohort.patients))
    if recipe.recipe == "head":
        projection = fit_projection(
            cohort.public_values, dimensions=recipe.dimensions, whitening=recipe.whitening
        )
        # As the learner does, of each hospital's own alone.
        inputs = [project(cohort.values[rows], projection) for rows in cohort.members]
        np.save(folder / "inputs.npy", np.concatenate(inputs))
    first, at, arrays = learner.initial(), 0, {}
    schema = learner.plan.schema
    for name, spec in zip(ARRAYS, schema.trainable, strict=False):
        arrays[name] = first[at : at + spec.elements].reshape(spec.shape)
        at += spec.elements
    np.savez(folder / "first.npz", **arrays)  # type: ignore[arg-type]  # the stub's keyword
    privacy = learner.plan.privacy
    told = {
        "hospitals": study.members,
        "arrays": len(arrays),
        "seed": job.seed,
        "recipe": recipe.recipe,
        "rounds": recipe.rounds,
        "steps": recipe.steps,
        "batch": recipe.batch,
        "learning_rate": recipe.learning_rate,
        "noise": privacy.noise_multiplier * privacy.max_grad_norm,
    }
    (folder / "study.json").write_text(json.dumps(told))


def accuracy_of(job: Job, folder: Path) -> float:
    """Of the model that the other engine left in ``folder``, on the study's test images."""
    simulation = prepare(images_of(job), job.study, seed=job.seed)
    with np.load(folder / "last.npz") as found:
        model = np.concatenate([found[name].ravel() for name in sorted(found.files)])
    guesses = simulation.learner.predict(model.astype(np.float32), simulation.cohort.test_values)
    return float((guesses == simulation.cohort.test_labels).mean())

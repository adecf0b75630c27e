"""What can be seen to fail before anything is opened or founded."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

from matl_common.configuration import labels_beside
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist
from matl_common.identity.certificates import Role
from matl_common.protocol import StudyPlan
from matl_coordinator.config import Config
from matl_coordinator.core.robust.dominance import (
    REFUSED_ABOVE,
    Severity,
    check_against_noise,
    noise_ratios,
)
from matl_coordinator.core.weighting import (
    hospitals_wanted,
    strength_of_newcomers,
    strength_wanted,
)
from matl_coordinator.service.judging import fitted

CLASSES = 5
"""Grades of diabetic retinopathy, 0 to 4; the workers' own constant stands beside torch."""

DROPS_DISTANCES = "matl"
"""The rule that leaves its trimming out where noise is longer than any signal."""


def check_paths(config: Config) -> None:
    """Refuse image folders and labels that are not there.

    Raises:
        ConfigurationError: names the key and the path.
    """
    study, holdout = config.study, config.holdout
    folders = {"study.public_images": study.public_images}
    files = {
        "study.public_labels": _labels(study.public_images, study.public_labels),
        "study.weights_file": study.weights_file,
    }
    if holdout is not None:
        folders["holdout.images"] = holdout.images
        files["holdout.labels"] = _labels(holdout.images, holdout.labels)
    for key, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"{key} is {folder}, which is not a folder")
    for key, file in files.items():
        if file is not None and not file.is_file():
            raise ConfigurationError(f"{key}: there is no file {file}")


def _labels(images: Path | None, labels: Path | None) -> Path | None:
    return labels or (None if images is None else labels_beside(images))


def enrolled_participants(allowlist: Allowlist) -> int:
    """How many hospitals may take part."""
    return sum(node.role is Role.PARTICIPANT for node in allowlist.nodes.values())


def check_hospitals(config: Config, allowlist: Allowlist) -> None:
    """Refuse rounds that the enrolled hospitals can never fill, or the rule never aggregate.

    Raises:
        ConfigurationError: the quorum, the least number of participants or the number of
            Byzantine hospitals is too high, the rule needs more updates than a round
            may have, or a label histogram is not one of all grades.
    """
    for node_id, node in sorted(allowlist.nodes.items()):
        counts = node.label_histogram
        if counts is not None and len(counts) != CLASSES:
            raise ConfigurationError(
                f"label_histogram of {node_id} in the allow-list has {len(counts)} numbers; "
                f"give {CLASSES}, the patients of each grade from 0 to {CLASSES - 1}"
            )
    enrolled, rounds = enrolled_participants(allowlist), config.rounds
    for key in ("quorum", "minimum_participants"):
        needed = getattr(rounds, key)
        if needed > enrolled:
            raise ConfigurationError(
                f"rounds.{key} is {needed}, and the allow-list enrols {enrolled} participants; "
                "no round could ever open"
            )
    if 2 * rounds.byzantine >= enrolled:
        raise ConfigurationError(
            f"rounds.byzantine is {rounds.byzantine} of {enrolled} enrolled participants; "
            f"use at most {max(0, (enrolled - 1) // 2)}, less than half of them"
        )
    _check_rule(config, most=min(enrolled, rounds.maximum_participants))


def rule_warnings(config: Config, allowlist: Allowlist) -> tuple[str, ...]:
    """What an operator should know about rule and allow-list before a study relies on them."""
    return (
        *_majority_warnings(config),
        *_newcomers_warnings(config, enrolled_participants(allowlist)),
        *_exclusion_warnings(config, enrolled_participants(allowlist)),
        *_fixed_f_warnings(config),
        *_histogram_warnings(allowlist),
    )


def _majority_warnings(config: Config) -> tuple[str, ...]:
    f, quorum = config.rounds.byzantine, config.rounds.quorum
    if quorum > 2 * f:
        return ()
    warning = (
        f"rounds.quorum = {quorum} lets a round close in which {f} hostile hospitals are not the "
        f"minority: what is claimed holds for rounds of {2 * f + 1} updates and more; set "
        f"rounds.quorum = {2 * f + 1} to have no others"
    )
    return (warning,)


def _newcomers_warnings(config: Config, enrolled: int) -> tuple[str, ...]:
    policy, quorum = config.trust.policy, config.rounds.quorum
    wanted = strength_wanted(enrolled, policy)
    found = strength_of_newcomers(quorum, policy)
    least = hospitals_wanted(enrolled)
    if found >= wanted and quorum >= least:
        return ()
    enough = max(least, math.ceil(wanted / strength_of_newcomers(1, policy)))
    low_enough = math.floor(found * 100) / 100
    other_way = f", or trust.minimum_strength = {low_enough:.2f}" if quorum >= least else ""
    warning = (
        f"rounds.quorum = {quorum} lets a round of {quorum} new hospitals close, whose combined "
        f"trust begins at {found:.2f}; a round below {wanted:.2f}, or of one hospital, is held, "
        f"and the study pauses: set rounds.quorum = {enough}{other_way}"
    )
    return (warning,)


def _exclusion_warnings(config: Config, enrolled: int) -> tuple[str, ...]:
    f, aggregator = config.rounds.byzantine, config.rounds.aggregator
    for excluded in range(1, f + 1):
        if fitted(aggregator, f=f, counting=enrolled - excluded, excluded=excluded) is None:
            warning = (
                f"rounds.rule {aggregator.describe()} needs {aggregator.least_n} updates; once "
                f"{excluded} of {enrolled} hospitals are excluded, every round is held until an "
                "operator acts"
            )
            return (warning,)
    return ()


def _fixed_f_warnings(config: Config) -> tuple[str, ...]:
    return tuple(
        f"{name} is set to withstand f = {f} hospitals, and rounds.byzantine is "
        f"{config.rounds.byzantine}; the trust rule alone stands against the others"
        for name, f in config.rounds.fixed_below_byzantine
    )


def _histogram_warnings(allowlist: Allowlist) -> tuple[str, ...]:
    empty = sorted(
        node_id
        for node_id, node in allowlist.nodes.items()
        if node.label_histogram is not None and not any(node.label_histogram)
    )
    if not empty:
        return ()
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    warning = (
        f"label_histogram of {', '.join(empty[:5])}{more} in the allow-list is all zeros and "
        "counts as unknown; leave it out, or give the patients of each grade"
    )
    return (warning,)


def noise_warnings(config: Config, plan: StudyPlan, allowlist: Allowlist) -> tuple[str, ...]:
    """Judge the rule by the privacy noise that the study's plan puts into updates.

    Raises:
        ConfigurationError: the noise would make the rule choose hostile updates.
    """
    patients = [
        node.enrolled_patients for node in allowlist.nodes.values() if node.role is Role.PARTICIPANT
    ]
    _check_peer_noise(config, plan, patients)
    verdict = check_against_noise(
        config.rounds.aggregator,
        plan.training,
        plan.privacy,
        elements=plan.schema.update_elements,
        patients=patients,
    )
    if verdict.severity is Severity.REFUSAL:
        raise ConfigurationError(f"rounds.rule does not stand this study's noise: {verdict.text}")
    return (verdict.text,) if verdict.severity is Severity.WARNING else ()


def _check_peer_noise(config: Config, plan: StudyPlan, patients: list[int]) -> None:
    """Refuse the rule that leaves its distances out under such noise, where it stands alone."""
    if config.holdout is not None or config.rounds.rule != DROPS_DISTANCES or not patients:
        return
    elements = plan.schema.update_elements
    ratio = median(noise_ratios(plan.training, plan.privacy, elements=elements, patients=patients))
    if ratio > REFUSED_ABOVE:
        raise ConfigurationError(
            f"the median hospital's privacy noise is {ratio:.2g} times as long as the longest "
            f"signal (limit {REFUSED_ABOVE:g}), under which rounds.rule {DROPS_DISTANCES} is a "
            "clipped weighted mean and, without a holdout set, protects from nobody; set "
            "holdout.images, or use a smaller trainable part or a larger epsilon"
        )


def _check_rule(config: Config, *, most: int) -> None:
    rounds, aggregator = config.rounds, config.rounds.aggregator
    least, name = aggregator.least_n, aggregator.describe()
    if least > most:
        raise ConfigurationError(
            f"rounds.rule {name} needs {least} updates, and a round has at most {most}; "
            "choose another rule, or a smaller f"
        )
    if least > rounds.quorum:
        raise ConfigurationError(
            f"rounds.rule {name} needs {least} updates, and rounds.quorum closes a round with "
            f"{rounds.quorum}; set rounds.quorum = {least}"
        )
    if aggregator.most_n is not None and most > aggregator.most_n:
        raise ConfigurationError(
            f"rounds.rule {name} can handle {aggregator.most_n} updates, and a round may have "
            f"{most}; set rounds.maximum_participants = {aggregator.most_n}"
        )

"""What can be seen to fail before anything is opened or founded."""

from __future__ import annotations

from matl_common.configuration import labels_beside
from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import Allowlist
from matl_common.identity.certificates import Role
from matl_coordinator.config import Config


def check_paths(config: Config) -> None:
    """Refuse image folders and labels that are not there.

    Raises:
        ConfigurationError: names the key and the path.
    """
    study, holdout = config.study, config.holdout
    wanted = {"holdout.images": holdout.images, "study.public_images": study.public_images}
    for key, folder in wanted.items():
        if folder is not None and not folder.is_dir():
            raise ConfigurationError(f"{key} is {folder}, which is not a folder")
    labels = {
        "holdout.labels": holdout.labels or labels_beside(holdout.images),
        "study.weights_file": study.weights_file,
    }
    for key, file in labels.items():
        if file is not None and not file.is_file():
            raise ConfigurationError(f"{key}: there is no file {file}")


def check_hospitals(config: Config, allowlist: Allowlist) -> None:
    """Refuse rounds that the enrolled hospitals can never fill.

    Raises:
        ConfigurationError: the quorum, or the least number of participants, is too high.
    """
    enrolled = sum(node.role is Role.PARTICIPANT for node in allowlist.nodes.values())
    for key in ("quorum", "minimum_participants"):
        needed = getattr(config.rounds, key)
        if needed > enrolled:
            raise ConfigurationError(
                f"rounds.{key} is {needed}, and the allow-list enrols {enrolled} participants; "
                "no round could ever open"
            )

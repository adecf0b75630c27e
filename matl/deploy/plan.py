"""What a daemon would run with, as rows for people. Reads files, and opens nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from matl_common.errors import ConfigurationError
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role
from matl_common.identity.key_places import KeyPlace
from matl_coordinator.config import Config as CoordinatorConfig
from matl_coordinator.preflight import check_hospitals, check_paths
from matl_participant.config import Config as ParticipantConfig

Row = tuple[str, str]


def coordinator_plan(config: CoordinatorConfig) -> list[Row]:
    """Which coordinator would run.

    Raises:
        ConfigurationError, InvalidInputError: it would not start.
    """
    check_paths(config)
    allowlist = load_allowlist(config.federation.allowlist)
    check_hospitals(config, allowlist)
    identity, rounds = config.identity, config.rounds
    hospitals = sorted(
        f"{each.node_id} ({each.enrolled_patients} patients)"
        for each in allowlist.nodes.values()
        if each.role is Role.PARTICIPANT
    )
    return [
        ("Would run", f"the coordinator {config.node_id} of {config.federation.id}"),
        ("Study", f"{config.federation.study}, {config.study.rounds} rounds, {config.mode.name}"),
        ("Privacy", f"epsilon {config.study.epsilon:g}, delta {config.study.delta:g}"),
        ("Database", str(config.printable()["database"])),
        ("State", str(config.state_dir)),
        ("Listens", f"{config.listen.address}; metrics {config.listen.metrics or 'nowhere'}"),
        *_keys(
            {
                "TLS": identity.tls_key,
                "signing": identity.signing_key,
                "log": identity.log_key,
                "log encryption": config.log_encryption_key,
            }
        ),
        ("Hospitals", ", ".join(hospitals)),
        ("Rounds", f"quorum {rounds.quorum}, {rounds.rule}, f = {rounds.byzantine}"),
        ("Retention", f"{config.log.retention_years} years, {config.log.compliance.value}"),
    ]


def participant_plan(config: ParticipantConfig) -> list[Row]:
    """Which participant would run.

    Raises:
        ConfigurationError: images, labels or a key are not there.
    """
    identity, coordinator = config.identity, config.coordinator
    keys: dict[str, KeyPlace] = {"TLS": identity.tls_key, "signing": identity.signing_key}
    if identity.witness_key is not None:
        keys["witness"] = identity.witness_key
    _check_there(config, keys)
    attested = "its evidence is verified" if config.attestation else "its word is believed"
    return [
        ("Would run", f"the participant {config.node_id}"),
        ("Coordinator", f"{coordinator.name} at {coordinator.address}; {attested}"),
        ("Images", str(config.data.images)),
        ("Labels", str(config.data.labels_file)),
        (
            "Privacy",
            f"at most epsilon {config.privacy.max_epsilon:g}, delta {config.privacy.max_delta:g}",
        ),
        ("State", str(config.state_dir)),
        *_keys(keys),
        ("Listens", f"metrics {config.daemon.metrics or 'nowhere'}"),
    ]


def _check_there(config: ParticipantConfig, keys: Mapping[str, KeyPlace]) -> None:
    if not config.data.images.is_dir():
        raise ConfigurationError(f"data.images is {config.data.images}, which is not a folder")
    if not config.data.labels_file.is_file():
        raise ConfigurationError(f"data.labels: there is no file {config.data.labels_file}")
    for use, place in keys.items():
        if isinstance(place, Path) and not place.is_file():
            raise ConfigurationError(f"the key for {use}: there is no file {place}")


def _keys(places: dict[str, KeyPlace]) -> Iterator[Row]:
    for use, place in places.items():
        if not isinstance(place, Path):
            held = "in a token"
        elif place.exists():
            held = "software-held"
        elif use == "log encryption":
            held = "is made at the first start"
        else:
            held = "IS NOT THERE"
        yield f"Key, {use}", f"{place} ({held})"

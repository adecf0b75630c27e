"""164.312(c): updates and models are still what was signed and released."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.site import Site, at_coordinator
from matl_common.errors import IntegrityError, InvalidInputError
from matl_common.identity.allowlist import parse_allowlist
from matl_common.identity.keys import spki_pin
from matl_common.ids import digest_of, digest_of_file
from matl_common.protocol import PayloadType
from matl_common.signing import Envelope, verify
from matl_common.tensors import MODEL_SUFFIX
from matl_coordinator.service.story import LoggedEnvelope

NEWEST_UPDATES: Final = 50
NEWEST_MODELS: Final = 5


def updates(site: Site) -> Outcome:
    """Verify signatures and digests again, and see that a changed copy fails."""
    here = at_coordinator(site)
    events = here.log.events
    declared = [each for each in events if each.get("event") == "update_declared"]
    released = [each for each in events if each.get("event") == "model_released"]
    if not declared and not released:
        raise NotTestedError("no update was declared yet", "run a round")
    keys = {spki_pin(key): key for key in _signing_keys(events)}
    checked = declared[-NEWEST_UPDATES:]
    for each in checked:
        _check_update(each, keys)
    models = [
        path
        for each in released[-NEWEST_MODELS:]
        if (path := here.state_dir / "models" / f"{each['model']}{MODEL_SUFFIX}").exists()
    ]
    for path in models:
        _check_model(path)
    return passed(
        f"signatures of the newest {len(checked)} updates and digests of {len(models)} of the "
        f"newest {len(released[-NEWEST_MODELS:])} released models hold (others were put away); "
        "each fails with a byte changed"
    )


def _signing_keys(events: Iterable[Mapping[str, Any]]) -> Iterator[ec.EllipticCurvePublicKey]:
    """Of every node that was ever enrolled, by the allow-lists that the log has."""
    parts: list[str] = []
    for each in events:
        if each.get("event") != "allowlist_read":
            continue
        # Cut in parts, where it is long; the first begins it anew.
        parts = [] if each.get("part", 1) == 1 else parts
        parts.append(str(each.get("allowlist", "")))
        if each.get("part", 1) == each.get("parts", 1):
            for node in parse_allowlist("".join(parts).encode()).nodes.values():
                yield node.signing_key


def _check_update(event: Mapping[str, Any], keys: Mapping[str, ec.EllipticCurvePublicKey]) -> None:
    where = f"the update of {event.get('node')} in round {event.get('round')}"
    try:
        envelope = LoggedEnvelope.model_validate(event.get("manifest")).envelope()
    except (ValueError, InvalidInputError) as error:
        raise BrokenControlError(
            f"{where} has no manifest in the log", "matl audit verify"
        ) from error
    key = keys.get(envelope.keyid)
    if key is None:
        raise BrokenControlError(
            f"{where} is signed with key {envelope.keyid[:16]}, which nobody was enrolled with",
            "quarantine the hospital, and see who changed the allow-list",
        )
    try:
        verify(envelope, key, PayloadType.UPDATE)
    except IntegrityError as error:
        raise BrokenControlError(
            f"{where} is not what its hospital signed", "matl audit verify"
        ) from error
    if not _is_refused(_changed(envelope), key):
        raise BrokenControlError(f"{where} verifies with a byte changed", "do not use this version")


def _changed(envelope: Envelope) -> Envelope:
    payload = bytearray(envelope.payload)
    payload[len(payload) // 2] ^= 1
    return replace(envelope, payload=bytes(payload))


def _is_refused(envelope: Envelope, key: ec.EllipticCurvePublicKey) -> bool:
    try:
        verify(envelope, key, PayloadType.UPDATE)
    except IntegrityError:
        return True
    return False


def _check_model(path: Path) -> None:
    named = path.name.removesuffix(MODEL_SUFFIX)
    if digest_of_file(path) != named:
        raise BrokenControlError(
            f"the released model {named[:16]} is not what lies in its file",
            "restore the file from a backup; hospitals refuse it as it is",
        )
    with path.open("rb") as file:
        head = bytearray(file.read(1 << 16))
    head[-1] ^= 1
    with path.open("rb") as file:
        file.seek(len(head))
        changed = digest_of(bytes(head) + file.read())
    if changed == named:
        raise BrokenControlError("a changed model has the same digest", "do not use this version")

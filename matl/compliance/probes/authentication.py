"""164.312(d): keys do what they are for, and cannot be carried off."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, passed
from matl.compliance.probes.attested import upload
from matl.compliance.site import CoordinatorSite, Site
from matl.doctor.coordinator import coordinator_links
from matl.doctor.examination import Link, examine
from matl.doctor.participant import participant_links
from matl_common.identity.held_keys import HeldKey, load_ed25519_key, load_p256_key, load_tls_key
from matl_common.identity.key_places import KeyPlace, load_wrapping_key

_OF_KEYS = frozenset(
    {
        "TLS key",
        "certificate",
        "name",
        "signing key",
        "log key",
        "log encryption key",
        "witness key",
        "database's password",
        "participants' authority",
    }
)
"""The doctor's links that are about this node's own keys."""


def keys(site: Site) -> Outcome:
    """Go over keys and certificates as the doctor does, and have every key sign a challenge."""
    links = [each for each in _links(site) if each.name in _OF_KEYS]
    found = list(examine(tuple(links)))
    for each in found:
        if each.status == "broken":
            raise BrokenControlError(f"{each.link}: {each.found}", each.remedy)
    signing = _held(site)
    for name, key in signing.items():
        _check_challenge(name, key)
    return passed(
        f"{', '.join(signing)}: each signs a random challenge; "
        + "; ".join(f"{each.link}: {each.found}" for each in found)
    )


def hsm(site: Site) -> Outcome:
    """Ask the tokens what they promise of each key."""
    places = _places(site)
    in_files = [name for name, place in places.items() if isinstance(place, Path)]
    if in_files:
        raise BrokenControlError(
            f"software-held, in files: {', '.join(in_files)}",
            "make keys in a token (matl keygen, pkcs11: URIs) and enrol those; see "
            "docs/certificates.md",
        )
    weak: list[str] = []
    soft: list[str] = []
    holders = set()
    for name, place in places.items():
        key = (
            load_wrapping_key(place) if name == "log encryption key" else _signing_key(name, place)
        )
        holders.add(key.holder)
        for said in key.weaknesses:
            (soft if "CKF_HW_SLOT" in said else weak).append(f"{name}: {said}")
    if weak:
        raise BrokenControlError(weak[0], "make the key in the token, where it stays")
    if soft:
        raise NotTestedError(
            f"{', '.join(places)} cannot leave {', '.join(sorted(holders))}, but its module does "
            "not say that it is hardware",
            "use a token that is a device",
        )
    return passed(
        f"{', '.join(places)}: sensitive, never extractable, in {', '.join(sorted(holders))}"
    )


def mfa(site: Site) -> Outcome:
    """Read who signed for operators' second factor."""
    return upload(site, "mfa", days=365)


def _links(site: Site) -> tuple[Link, ...]:
    if isinstance(site, CoordinatorSite):
        return coordinator_links(site.config, file=site.file, peer=None)
    return participant_links(site.config)


def _places(site: Site) -> Mapping[str, KeyPlace]:
    identity = site.config.identity
    places: dict[str, KeyPlace] = {
        "TLS key": identity.tls_key,
        "signing key": identity.signing_key,
    }
    if isinstance(site, CoordinatorSite):
        places["log key"] = site.config.identity.log_key
        places["log encryption key"] = site.config.log_encryption_key
    elif site.config.identity.witness_key is not None:
        places["witness key"] = site.config.identity.witness_key
    return places


AnyKey = HeldKey[ec.EllipticCurvePublicKey] | HeldKey[Ed25519PublicKey]


def _held(site: Site) -> Mapping[str, AnyKey]:
    return {
        name: _signing_key(name, place)
        for name, place in _places(site).items()
        if name != "log encryption key"
    }


def _signing_key(name: str, place: KeyPlace) -> AnyKey:
    match name:
        case "TLS key":
            return load_tls_key(place)
        case "signing key":
            return load_p256_key(place)
    return load_ed25519_key(place)


def _check_challenge(name: str, key: AnyKey) -> None:
    challenge = os.urandom(32)
    signature, public = key.sign(challenge), key.public_key
    try:
        if isinstance(public, Ed25519PublicKey):
            public.verify(signature, challenge)
        else:
            public.verify(signature, challenge, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise BrokenControlError(
            f"the {name} does not sign for its public key", "replace both halves of the pair"
        ) from error

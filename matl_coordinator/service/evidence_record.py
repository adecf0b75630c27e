"""Evidence as the log keeps it, whole: an auditor judges later what a hospital was shown.

The report is in its own entry, ``evidence_shown``; certificates or collateral, which seldom change,
are in an ``evidence_endorsements`` before it, which it names by digest. Bytes are base64 in lines,
so that entries of any length can be cut into parts.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from pydantic import BaseModel, ConfigDict, ValidationError

from matl_common.attestation.binding import Binding
from matl_common.attestation.evidence import Evidence, Technology, parse_evidence
from matl_common.attestation.verifier import report_digest
from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, digest_of, parse_digest
from matl_coordinator.service.parts import Fact

_LINE_BYTES = 3000
"""A multiple of three, so that the lines of base64 are one text when joined."""


@final
@dataclass(frozen=True, slots=True)
class Recorded:
    """What a hospital was shown, and what it had to be about; for ``verify_evidence``."""

    evidence: Evidence
    binding: Binding


class _Shown(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)

    technology: str
    report: str
    evidence: list[str]
    endorsements: str
    tls_key: list[str]
    nonce: str
    config_digest: str


class _Endorsements(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True)

    content: list[str]


def shown_facts(evidence: Evidence, binding: Binding) -> dict[str, Fact]:
    """What ``evidence_shown`` says of a report.

    Raises:
        InvalidInputError: it is malformed.
    """
    return {
        "technology": evidence.technology.value,
        "simulated": evidence.technology is Technology.SIMULATED,
        "report": report_digest(evidence),
        "evidence": _lines(evidence.report),
        "endorsements": digest_of(evidence.endorsements),
        "tls_key": _lines(binding.tls_spki),
        "nonce": binding.nonce.hex(),
        "config_digest": binding.config_digest,
    }


def endorsements_facts(evidence: Evidence) -> dict[str, Fact]:
    """What ``evidence_endorsements`` says: all that ``shown_facts`` names by digest alone."""
    return {
        "technology": evidence.technology.value,
        "endorsements": digest_of(evidence.endorsements),
        "content": _lines(evidence.endorsements),
    }


def read_recorded(
    shown: Mapping[str, Any], endorsements: Mapping[str, Any], *, federation_id: str
) -> Recorded:
    """Take evidence out of the log again.

    Args:
        shown: facts of an ``evidence_shown``, its parts put together.
        endorsements: those of the ``evidence_endorsements`` that it names.
        federation_id: of the federation whose log it is.

    Raises:
        InvalidInputError: they do not belong together, or do not say what they should.
    """
    try:
        said, endorsed = _Shown.model_validate(shown), _Endorsements.model_validate(endorsements)
        content = _bytes(endorsed.content)
        evidence = parse_evidence(said.technology, _bytes(said.evidence), content)
        binding = Binding(
            _bytes(said.tls_key),
            bytes.fromhex(said.nonce),
            federation_id,
            parse_digest(said.config_digest),
        )
    except (ValidationError, binascii.Error, ValueError) as error:
        raise InvalidInputError("the log's entries do not hold evidence as it was shown") from error
    for name, named, held in (
        ("report", said.report, report_digest(evidence)),
        ("endorsements", said.endorsements, digest_of(content)),
    ):
        _check_same(name, named, held)
    return Recorded(evidence, binding)


def _check_same(name: str, named: str, held: Digest) -> None:
    if named != held:
        raise InvalidInputError(f"the log names {name} {named[:64]}, and holds {held}")


def _lines(data: bytes) -> list[Fact]:
    starts = range(0, len(data), _LINE_BYTES)
    return [base64.b64encode(data[at : at + _LINE_BYTES]).decode() for at in starts]


def _bytes(lines: list[str]) -> bytes:
    return base64.b64decode("".join(lines), validate=True)

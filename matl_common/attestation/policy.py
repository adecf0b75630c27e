"""Which attested machines a verifier accepts: one TOML document, every key checked.

It names what must be found; it never loosens what is always demanded (a chain to the maker's
root, a signature, the binding, debugging off).
"""

from __future__ import annotations

import hashlib
import json
from enum import KEEP, IntFlag
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from matl_common.attestation.evidence import Technology
from matl_common.configuration import Section, load
from matl_common.ids import Digest

MAX_ALLOWED = 64
SHA384_HEX = 96


def _hex(characters: int) -> AfterValidator:
    def check(text: str) -> str:
        if len(text) != characters or set(text) - set("0123456789abcdef"):
            raise ValueError(f"must be {characters} characters of lower-case hexadecimal")
        return text

    return AfterValidator(check)


Sha384 = Annotated[str, _hex(SHA384_HEX)]
Sha256 = Annotated[str, _hex(64)]


class Tcb(Section):
    """Security versions of an AMD platform's firmware (SNP ABI, TCB_VERSION of Milan and Genoa)."""

    bootloader: int = Field(default=0, ge=0, le=255)
    tee: int = Field(default=0, ge=0, le=255)
    snp: int = Field(default=0, ge=0, le=255)
    microcode: int = Field(default=0, ge=0, le=255)

    def __str__(self) -> str:
        return (
            f"bootloader {self.bootloader}, tee {self.tee}, snp {self.snp}, "
            f"microcode {self.microcode}"
        )

    def covers(self, least: Tcb) -> bool:
        """Whether no component is below the one of ``least``."""
        return all(getattr(self, name) >= version for name, version in least)


class SnpPolicy(Section):
    """Accepted AMD SEV-SNP guests."""

    measurements: Annotated[tuple[Sha384, ...], Field(strict=False, max_length=MAX_ALLOWED)]
    """Launch measurements, SHA-384; the guest's must be one of them."""
    minimum_tcb: Tcb
    """No default: what is safe changes with AMD's security bulletins."""
    maximum_vmpl: int = Field(default=0, ge=0, le=3)
    """0 is the most privileged level of a guest."""
    allow_smt: bool = True
    """Whether the guest may run beside another one on the same core."""
    allow_migration_agent: bool = False
    """Whether another guest may hold the right to move this one, memory and all."""


class TdMeasurements(Section):
    """One accepted TD. A register that is left out may have any value."""

    mr_td: Sha384
    rtmr0: Sha384 | None = None
    rtmr1: Sha384 | None = None
    rtmr2: Sha384 | None = None
    rtmr3: Sha384 | None = None


class TdAttribute(IntFlag, boundary=KEEP):
    """Bits of a TD's ATTRIBUTES that can be accepted (Intel TDX Module ABI Specification)."""

    SEPT_VE_DISABLE = 1 << 28
    """The host cannot raise exceptions in the TD by taking its pages away."""
    PKS = 1 << 30
    """Protection keys for supervisor pages."""
    KL = 1 << 31
    """Key Locker."""
    PERFMON = 1 << 63
    """Performance counters."""


class TdxPolicy(Section):
    """Accepted Intel TDX guests."""

    measurements: Annotated[tuple[TdMeasurements, ...], Field(strict=False, max_length=MAX_ALLOWED)]
    statuses: Annotated[tuple[str, ...], Field(strict=False, max_length=16)] = ("UpToDate",)
    """Of the platform's TCB, in Intel's words: ``SWHardeningNeeded``, for example."""
    allowed_attributes: Annotated[
        tuple[Literal["PKS", "KL", "PERFMON"], ...], Field(strict=False, max_length=3)
    ] = ()
    """That a TD may have beyond SEPT_VE_DISABLE, which it must have."""
    allowed_xfam: int = Field(default=0x61AE7, ge=0x3, le=(1 << 63) - 1)
    """Bits of XFAM that may be set. Default: x87, SSE, AVX, AVX-512, PKRU, CET and AMX; tracing,
    user interrupts and branch records are not among them."""
    mr_seams: Annotated[tuple[Sha384, ...], Field(strict=False, max_length=MAX_ALLOWED)] = ()
    """Accepted TDX modules, by MRSEAM; any of Intel's whose status is accepted, if empty."""

    @property
    def accepted_attributes(self) -> TdAttribute:
        """``allowed_attributes`` and SEPT_VE_DISABLE as bits."""
        allowed = (TdAttribute[each] for each in self.allowed_attributes)
        return reduce(or_, allowed, TdAttribute.SEPT_VE_DISABLE)


class Policy(Section):
    """The whole document."""

    allow_simulated: bool = False
    """Accept SIMULATED evidence, which proves nothing; checked against ``sev_snp``."""
    config_digests: Annotated[tuple[Sha256, ...], Field(strict=False, max_length=MAX_ALLOWED)] = ()
    """Configurations of the coordinator that are accepted; any, if empty. Either way the one
    that the report is bound to is logged."""
    sev_snp: SnpPolicy | None = None
    tdx: TdxPolicy | None = None

    @model_validator(mode="after")
    def _accepts_something(self) -> Policy:
        if self.sev_snp is None and self.tdx is None:
            raise ValueError("accepts nothing; add a [sev_snp] or a [tdx] section")
        if self.allow_simulated and self.sev_snp is None:
            raise ValueError("allow_simulated needs a [sev_snp] section to check against")
        return self

    @property
    def digest(self) -> Digest:
        """SHA-256 of the document's meaning: comments and order of keys do not count."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return Digest(hashlib.sha256(canonical.encode()).hexdigest())

    @property
    def technologies(self) -> tuple[Technology, ...]:
        """What it accepts at all."""
        wanted = (
            (Technology.SEV_SNP, self.sev_snp is not None),
            (Technology.TDX, self.tdx is not None),
            (Technology.SIMULATED, self.allow_simulated),
        )
        return tuple(technology for technology, is_wanted in wanted if is_wanted)


def load_policy(path: Path) -> Policy:
    """Read a policy.

    Raises:
        ConfigurationError: unreadable, not TOML, an unknown key, or a value out of range.
    """
    return load(Policy, path, overrides={})

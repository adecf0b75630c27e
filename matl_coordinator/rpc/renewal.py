"""The server's certificate, exchanged while it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from cryptography import x509

from matl_common.errors import ConfigurationError
from matl_common.identity.keys import spki_pin
from matl_common.identity.pkcs11.session import TokenError
from matl_common.identity.renewal import expiry_warning, time_left
from matl_common.identity.tls import ServerIdentity
from matl_coordinator.ports import FileMeter
from matl_coordinator.service.entries import Fact
from matl_coordinator.service.following import follow

REMIND_SECONDS = 24 * 3600.0

log = structlog.get_logger(__name__)


class CertificateFiles:
    """Follows the server's TLS key, certificate and the authority it trusts."""

    def __init__(
        self,
        *,
        identity: ServerIdentity,
        meter: FileMeter,
        note: Callable[[str, dict[str, Fact]], Awaitable[None]],
        clock: Callable[[], datetime],
    ) -> None:
        """``note`` puts an event into the log."""
        self._identity = identity
        self._meter = meter
        self._note = note
        self._clock = clock
        self._asked = asyncio.Event()
        self._reminded_at: datetime | None = None
        # Why the files were refused at the last look.
        self._refused: str | None = None
        # A renewal that the log has yet to take.
        self._unlogged: x509.Certificate | None = None

    def read_now(self) -> None:
        """Do not wait for the next poll."""
        self._asked.set()

    async def run(self) -> None:
        """Follow the files until cancelled."""
        await follow(
            self.look,
            asked=self._asked,
            meter=self._meter,
            file="tls",
            not_logged="renewal_not_logged",
            not_followed="tls_files_not_followed",
        )

    async def look(self) -> None:
        """Read the files and offer new connections what is new in them.

        Raises:
            StoreError: the log did not take it; the next look tries again.
        """
        try:
            renewed = await asyncio.to_thread(self._identity.renew)
        except (ConfigurationError, TokenError) as error:
            self._refuse(str(error))
        else:
            self._refused = None
            self._meter.file_refused("tls", refused=False)
            if renewed:
                self._renewed()
        self._mind_expiry()
        if self._unlogged is not None:
            await self._note("tls_renewed", _facts(self._unlogged))
            self._unlogged = None

    def _refuse(self, reason: str) -> None:
        self._meter.file_refused("tls", refused=True)
        if reason != self._refused:
            remedy = "the files read before are in use; mend them, nothing needs a restart"
            log.error("tls_files_refused", reason=reason, remedy=remedy)
        self._refused = reason

    def _renewed(self) -> None:
        certificate = self._identity.certificate
        self._unlogged, self._reminded_at = certificate, None
        log.info("tls_renewed", **_facts(certificate))

    def _mind_expiry(self) -> None:
        certificate, now = self._identity.lasting, self._clock()
        self._meter.certificate_valid(time_left(certificate, now=now).total_seconds())
        warning = expiry_warning(certificate, now=now)
        minded = self._reminded_at
        if warning and (minded is None or (now - minded).total_seconds() >= REMIND_SECONDS):
            self._reminded_at = now
            log.warning("tls_certificate_expires", reason=warning)


def _facts(certificate: x509.Certificate) -> dict[str, Fact]:
    return {
        "pin": spki_pin(certificate),
        "serial": f"{certificate.serial_number:x}",
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }

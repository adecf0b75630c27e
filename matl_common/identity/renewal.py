"""When a node's certificate has to be renewed, and whether its files have changed."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from matl_common.identity.tls import TlsPlace

WARN_BEFORE = timedelta(days=30)
"""How long before its end a certificate is called to mind."""


def time_left(certificate: x509.Certificate, *, now: datetime) -> timedelta:
    """How long the certificate is still valid; negative once it is not."""
    return certificate.not_valid_after_utc - now


def expiry_warning(certificate: x509.Certificate, *, now: datetime) -> str | None:
    """What to tell the operator about a certificate's end, or nothing yet."""
    left = time_left(certificate, now=now)
    if left > WARN_BEFORE:
        return None
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if left <= timedelta():
        return f"the TLS certificate expired at {until}: every connection is refused; renew it"
    return f"the TLS certificate is valid until {until}; renew it before, nothing restarts for it"


@dataclass(frozen=True, slots=True)
class FileStamps:
    """When files were written last, as far as the file system tells."""

    stamps: tuple[tuple[int, int, int] | None, ...]


def stamps_of(files: TlsPlace) -> FileStamps:
    """Stamps that differ from earlier ones whenever a file was written or replaced since."""
    paths = (files.private_key, files.certificate_chain, files.trusted_authority)
    return FileStamps(tuple(_stamp(each) for each in paths if isinstance(each, Path)))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size

"""The frame of an Intel TDX quote: what its signature covers, and where it ends.

Intel TDX DCAP Quoting Library API, appendix "TD Quote Format", versions 4 and 5; little-endian.
A quote declares the length of each of its parts. Nothing here is believed: ``tdx`` has dcap-qvl
verify the signatures, which ignores what goes on after a part's end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from matl_common.errors import InvalidInputError

_HEADER_BYTES = 48
_TD_REPORT_BYTES = 584
# A body's type and length, and certification data's.
_TYPE_AND_LENGTH = struct.Struct("<HI")
_SIGNATURE_AND_KEY_BYTES = 128
_QE_REPORT_AND_SIGNATURE_BYTES = 448
_QE_REPORT = 6


@dataclass(frozen=True, slots=True)
class QuoteFrame:
    """A quote without a byte more than it declares."""

    signed: bytes
    """Header and body."""


def parse_quote_frame(quote: bytes) -> QuoteFrame:
    """Find the parts of a quote.

    Raises:
        InvalidInputError: another version, a part that is cut short or goes on after its end.
    """
    try:
        signed_end = _signed_end(quote)
        if len(quote) != _end(quote, signed_end):
            raise InvalidInputError(
                f"the TDX quote has {len(quote)} bytes and declares {_end(quote, signed_end)}"
            )
        _check_certification(quote[signed_end + 4 :])
    except struct.error as error:
        raise InvalidInputError("the TDX quote is cut short") from error
    return QuoteFrame(quote[:signed_end])


def without_padding(quote: bytes) -> bytes:
    """The quote without the zeros that fill the buffer it was handed over in.

    Raises:
        InvalidInputError: another version, cut short, or what follows it is not zeros.
    """
    try:
        end = _end(quote, _signed_end(quote))
    except struct.error as error:
        raise InvalidInputError("the TDX quote is cut short") from error
    if len(quote) < end:
        raise InvalidInputError(f"the TDX quote has {len(quote)} bytes and declares {end}")
    if any(quote[end:]):
        raise InvalidInputError(f"the TDX quote ends after {end} bytes, and something follows it")
    return quote[:end]


def _signed_end(quote: bytes) -> int:
    (version,) = struct.unpack_from("<H", quote)
    match version:
        case 4:
            return _HEADER_BYTES + _TD_REPORT_BYTES
        case 5:
            _, length = _TYPE_AND_LENGTH.unpack_from(quote, _HEADER_BYTES)
            return _HEADER_BYTES + _TYPE_AND_LENGTH.size + int(length)
    raise InvalidInputError(f"the TDX quote has version {version}; known are 4 and 5")


def _end(quote: bytes, signed_end: int) -> int:
    (length,) = struct.unpack_from("<I", quote, signed_end)
    return signed_end + 4 + int(length)


def _check_certification(data: bytes) -> None:
    """See that the signature's data end where its certification data do, and these with theirs."""
    kind, length = _TYPE_AND_LENGTH.unpack_from(data, _SIGNATURE_AND_KEY_BYTES)
    begin = _SIGNATURE_AND_KEY_BYTES + _TYPE_AND_LENGTH.size
    if kind != _QE_REPORT:
        raise InvalidInputError("the TDX quote comes without a report of its quoting enclave")
    certification = data[begin:]
    (authentication,) = struct.unpack_from("<H", certification, _QE_REPORT_AND_SIGNATURE_BYTES)
    begin = _QE_REPORT_AND_SIGNATURE_BYTES + 2 + int(authentication)
    _, certificates = _TYPE_AND_LENGTH.unpack_from(certification, begin)
    if not len(certification) == length == begin + _TYPE_AND_LENGTH.size + certificates:
        raise InvalidInputError("the TDX quote's certification data are not as long as declared")

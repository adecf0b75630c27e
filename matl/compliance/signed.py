"""A report signed with the node's signing key, as a page that can be checked."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec

from matl.compliance.page import envelope_in, render_page
from matl.compliance.report import PAYLOAD_TYPE, Report, encode_report, parse_report
from matl_common.errors import IntegrityError
from matl_common.signing import Signer, encode_envelope, parse_envelope, sign, verify


def signed_page(report: Report, signer: Signer) -> bytes:
    """Sign a report, and make its page.

    Raises:
        TokenError: the key's token cannot be used.
    """
    said = encode_report(report)
    envelope = encode_envelope(sign(PAYLOAD_TYPE, said, signer))
    # Of what was signed, which is rounded already: rounding twice can come to another figure.
    return render_page(parse_report(said), envelope)


def checked_page(page: bytes, public_key: ec.EllipticCurvePublicKey) -> Report:
    """The report of a page, once its signature and every byte of the page were verified.

    Raises:
        InvalidInputError: it is no page of a report.
        IntegrityError: another key has signed it, or the page shows something else.
    """
    envelope = envelope_in(page)
    report = parse_report(verify(parse_envelope(envelope), public_key, PAYLOAD_TYPE))
    if render_page(report, envelope) != page:
        raise IntegrityError(
            "the signature holds, but the page shows something else than was signed, or another "
            "version of MATL made it"
        )
    return report

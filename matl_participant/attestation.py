"""Makes sure that what this hospital speaks to is a machine that it accepts.

gRPC does not tell a client which certificate a server presented. So the coordinator says which one
it presents, its evidence has to bind that one's key, and from then on the only trust anchor of the
channel is that certificate: whoever answers has the key that the measured program vouched for. A
man in the middle with another certificate of the same authority can ask for evidence, but not end
a channel that is pinned to somebody else's key.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from matl_common.attestation.binding import NONCE_BYTES, Binding, tls_spki
from matl_common.attestation.evidence import Verdict
from matl_common.attestation.policy import Policy
from matl_common.attestation.verifier import verify_evidence
from matl_common.errors import ConfigurationError, InvalidInputError
from matl_common.identity.certificates import SpiffeId
from matl_common.ids import Digest
from matl_participant.attestation_client import ask_for_evidence
from matl_participant.client import UnavailableError, UntrustedCoordinatorError
from matl_participant.connection import RenewingChannel


@dataclass(frozen=True, slots=True)
class Attested:
    """A verdict, and what it is about."""

    verdict: Verdict
    config_digest: Digest


@dataclass(frozen=True, slots=True)
class Attestation:
    """Asks, judges, and pins the channel."""

    channel: RenewingChannel
    """Of all calls to the coordinator."""
    coordinator: SpiffeId
    policy: Policy
    nonce: Callable[[], bytes] = lambda: secrets.token_bytes(NONCE_BYTES)

    async def attest(self, now: datetime) -> Attested:
        """Have new evidence made, verify it, and speak to nobody else from now on.

        Raises:
            CallError: no answer, or a refusal.
            InvalidInputError: the answer is malformed.
            EvidenceRefusedError: the policy does not accept the machine.
            UntrustedCoordinatorError: the certificate is not this coordinator's.
            ConfigurationError: what verifies this kind of evidence is not installed.
        """
        nonce, address = self.nonce(), self.channel.address
        try:
            async with self.channel.unpinned() as channel:
                said = await ask_for_evidence(channel, nonce)
        except UnavailableError:
            self.channel.failed(address)
            raise
        leaf = coordinators_leaf(
            said.tls_certificates,
            authority=self.channel.authority,
            server_name=self.coordinator.server_name,
            now=now,
        )
        binding = Binding(tls_spki(leaf), nonce, self.coordinator.federation, said.config_digest)
        verdict = verify_evidence(said.evidence, policy=self.policy, binding=binding, now=now)
        self.channel.pin(leaf.public_bytes(Encoding.PEM), address=address)
        return Attested(verdict, said.config_digest)


def coordinators_leaf(
    pem: bytes, *, authority: bytes, server_name: str, now: datetime
) -> x509.Certificate:
    """The server's certificate, if the authority of coordinators issued it for this one.

    The pinned channel trusts this certificate and asks for no issuer, so that is asked here.

    Raises:
        UntrustedCoordinatorError: it did not.
        InvalidInputError: they are no certificates.
        ConfigurationError: the authority's file holds none.
    """
    try:
        trusted = x509.load_pem_x509_certificates(authority)
    except ValueError as error:
        raise ConfigurationError("coordinator.authority holds no certificate in PEM") from error
    try:
        leaf, *others = x509.load_pem_x509_certificates(pem)
        verifier = (
            PolicyBuilder()
            .store(Store(trusted))
            .time(now)
            .build_server_verifier(x509.DNSName(server_name))
        )
        verifier.verify(leaf, others)
    except VerificationError as error:
        raise UntrustedCoordinatorError(
            f"the TLS certificate that the coordinator says it presents is not one of its "
            f"authority for {server_name}"
        ) from error
    except (ValueError, TypeError, x509.InvalidVersion) as error:
        raise InvalidInputError("the coordinator's TLS certificates are malformed") from error
    return leaf

"""Keys and certificates replaced on both sides while a round runs."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from matl.doctor.handshake import shown_certificate
from matl_common.identity.allowlist import Allowlist, encode_allowlist, enrol, load_allowlist
from matl_common.identity.keys import (
    generate_private_key,
    load_private_key,
    spki_pin,
)
from matl_common.identity.tls import TlsFiles, channel_credentials, channel_options
from matl_common.wire import federation_pb2 as pb
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from tests.system.federation import (
    COORDINATOR,
    COORDINATOR_NAME,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
    logged_events,
)
from tests.system.processes import until
from tests.system.renewing import replace_files
from tests.system.story import finish, of, start_hospitals
from tests.system.test_attestation import attested

pytestmark = [pytest.mark.system, pytest.mark.certificates]
CHANGING = HOSPITALS[0]


def enrol_pins(federation: Federation, pins: frozenset[str]) -> None:
    path = federation.keys[COORDINATOR].allowlist
    before = load_allowlist(path)
    changed: Allowlist = enrol(
        before.federation,
        (
            replace(node, pins=pins) if node_id == CHANGING else node
            for node_id, node in before.nodes.items()
        ),
    )
    path.with_suffix(".new").write_bytes(encode_allowlist(changed))
    path.with_suffix(".new").replace(path)


def refusal_of(federation: Federation, files: TlsFiles) -> grpc.StatusCode | None:
    with grpc.secure_channel(
        federation.address, channel_credentials(files), options=channel_options(COORDINATOR_NAME)
    ) as channel:
        try:
            FederationServiceStub(channel).Hello(pb.HelloRequest(version="0"), timeout=30)
        except grpc.RpcError as error:
            return error.code()
    return None


def test_a_round_goes_on_while_both_sides_replace_their_keys(
    tmp_path: Path, material: Material
) -> None:
    federation = found_federation(tmp_path, material, study={"rounds": 2})
    files = federation.keys[CHANGING].tls
    old = TlsFiles(tmp_path / "old.key", tmp_path / "old.crt", files.trusted_authority)
    old.private_key.write_bytes(files.private_key.read_bytes())
    old.certificate_chain.write_bytes(files.certificate_chain.read_bytes())
    new_key, new_server_key = generate_private_key(), generate_private_key()
    old_pin, new_pin = spki_pin(load_private_key(old.private_key)), spki_pin(new_key)
    with ExitStack() as running:
        for node in HOSPITALS:
            federation.control(node).write_text("wait")
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = start_hospitals(federation, running)
        coordinator.wait_for("round_phase", round=1, phase="collecting")
        until(lambda: federation.trainings(CHANGING) == [1], what="the hospital trains")

        enrol_pins(federation, frozenset({old_pin, new_pin}))
        coordinator.wait_for("allowlist_changed", changed=[CHANGING])
        replace_files(federation, CHANGING, new_key)
        hospitals[CHANGING].wait_for("participant.tls_renewed")
        assert refusal_of(federation, old) is None
        enrol_pins(federation, frozenset({new_pin}))
        until(
            lambda: refusal_of(federation, old) is grpc.StatusCode.PERMISSION_DENIED,
            what="the old certificate is refused",
        )

        served = federation.keys[COORDINATOR].tls.certificate_chain
        sound = served.read_bytes()
        served.write_bytes(b"not a certificate")
        coordinator.wait_for("tls_files_refused")
        assert federation.metric("matl_stale_files", file="tls") == 1
        assert refusal_of(federation, files) is None
        served.write_bytes(sound)
        certificate = replace_files(federation, COORDINATOR, new_server_key)
        coordinator.read_again()
        coordinator.wait_for("tls_renewed", serial=f"{certificate.serial_number:x}")
        shown = shown_certificate(
            federation.address, name=COORDINATOR_NAME, trusted=files.trusted_authority
        )
        assert shown == certificate
        assert refusal_of(federation, files) is None
        assert federation.metric("matl_stale_files", file="tls") == 0
        assert 0 < federation.metric("matl_tls_certificate_valid_seconds") <= 7 * 86400

        for node in HOSPITALS:
            federation.control(node).unlink()
        finish(federation, coordinator, hospitals)

    check_two_whole_rounds(federation, new_server_key)


def test_in_attested_mode_a_round_goes_on_too_and_the_new_key_is_attested_before_it_is_used(
    tmp_path: Path, material: Material
) -> None:
    federation = attested(found_federation(tmp_path, material, study={"rounds": 2}))
    new_key, new_server_key = generate_private_key(), generate_private_key()
    old_pin = spki_pin(load_private_key(federation.keys[CHANGING].tls.private_key))
    with ExitStack() as running:
        for node in HOSPITALS:
            federation.control(node).write_text("wait")
        coordinator = running.enter_context(federation.start_coordinator())
        coordinator.wait_for("coordinator_ready")
        hospitals = {
            node: running.enter_context(federation.start_scripted(node, policy="development"))
            for node in HOSPITALS
        }
        coordinator.wait_for("round_phase", round=1, phase="collecting")
        until(lambda: federation.trainings(CHANGING) == [1], what="the hospital trains")
        replace_files(federation, COORDINATOR, new_server_key)
        coordinator.read_again()
        coordinator.wait_for("tls_renewed", pin=spki_pin(new_server_key))
        # The hospital's new key is a new connection, and that ends at the coordinator's new one.
        enrol_pins(federation, frozenset({old_pin, spki_pin(new_key)}))
        coordinator.wait_for("allowlist_changed", changed=[CHANGING])
        replace_files(federation, CHANGING, new_key)
        hospitals[CHANGING].wait_for("participant.tls_renewed")
        enrol_pins(federation, frozenset({spki_pin(new_key)}))
        for node in HOSPITALS:
            federation.control(node).unlink()
        finish(federation, coordinator, hospitals)
        reports = [
            line["report"]
            for line in hospitals[CHANGING].events("participant.coordinator_attested_SIMULATED")
        ]

    check_two_whole_rounds(federation, new_server_key)
    events = logged_events(federation)
    (renewed,) = of(events, "tls_renewed")
    since = events[events.index(renewed) :]
    shown = [each["report"] for each in of(since, "evidence_shown", node=CHANGING)]
    assert shown
    assert set(shown) < set(reports)
    told = [each["event"] for each in since if each.get("node") == CHANGING]
    assert told.index("evidence_shown") < told.index("update_admitted")


def check_two_whole_rounds(
    federation: Federation, new_server_key: ec.EllipticCurvePrivateKey
) -> None:
    """Nobody trained twice for a round, or was left out of one."""
    events = logged_events(federation)
    assert len(of(events, "model_released")) == 2
    assert len(of(events, "tls_renewed", pin=spki_pin(new_server_key))) == 1
    for node in HOSPITALS:
        assert federation.trainings(node) == [1, 2]
    assert len(of(events, "collection_closed")) == 2
    for closed in of(events, "collection_closed"):
        assert set(closed["admitted"]) == set(HOSPITALS)  # type: ignore[call-overload]  # a JSON object

"""What ``matl doctor`` finds beside certificates, which ``test_strangers`` is about."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from matl.cli import app
from matl_common.attestation.simulated import MEASUREMENT
from matl_common.identity.certificates import (
    PARTICIPANT_ROLES,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import generate_private_key, load_private_key, public_key_pem
from matl_common.identity.pkcs11.uri import PIN_VARIABLE
from tests.postgres import free_port
from tests.softhsm import PIN, TokenFolder
from tests.system.diagnosis import broken, diagnosis
from tests.system.federation import (
    COORDINATOR,
    FEDERATION,
    HOSPITALS,
    Federation,
    Material,
    found_federation,
)
from tests.system.test_strangers import with_extension
from tests.system.test_token_key import enrol_in_token, found_in_token

pytestmark = [pytest.mark.system, pytest.mark.certificates]
HOSPITAL = HOSPITALS[0]


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, material: Material
) -> Iterator[Federation]:
    """Yield a federation whose coordinator runs, attested by what is SIMULATED."""
    log = {"compliance": "none"}
    made = found_federation(tmp_path_factory.mktemp("doctor"), material, log=log)
    for name, is_allowed in (("development", "true"), ("genuine", "false")):
        (made.folder / f"{name}.toml").write_text(
            f'allow_simulated = {is_allowed}\n[sev_snp]\nmeasurements = ["{MEASUREMENT}"]\n'
            "minimum_tcb = {}\n"
        )
    policy = str(made.folder / "development.toml")
    attested = replace(made, sections={"attestation": {"attester": "SIMULATED", "policy": policy}})
    with attested.start_coordinator() as coordinator:
        coordinator.wait_for("coordinator_ready")
        yield attested


def hospital(federation: Federation, policy: str = "development") -> Path:
    return federation.participant_config(HOSPITAL, address="", changes={}, policy=policy)


@pytest.mark.attestation
def test_evidence_that_the_policy_accepts_is_called_simulated_first(
    federation: Federation,
) -> None:
    for config in (hospital(federation), federation.coordinator_config):
        links = diagnosis(config)
        assert not broken(links)
        assert links["attestation"]["found"].startswith("SIMULATED, proves nothing: ")


@pytest.mark.attestation
def test_evidence_that_the_policy_does_not_accept_ends_the_conversation(
    federation: Federation,
) -> None:
    links = diagnosis(hospital(federation, policy="genuine"))
    assert broken(links) == ["attestation"]
    assert "is SIMULATED" in links["attestation"]["found"]
    skipped = {name for name, each in links.items() if each["status"] == "skipped"}
    assert skipped == {"coordinator's signing key", "clock", "log key"}


@pytest.mark.attestation
def test_a_hospital_without_a_policy_is_told_what_it_could_verify(federation: Federation) -> None:
    links = diagnosis(hospital(federation, policy=""))
    assert not broken(links)
    assert links["attestation"]["found"] == (
        "the coordinator offers MODE2 by its own word, which is SIMULATED and proves nothing; "
        "nothing is verified, [attestation] names no policy"
    )


@pytest.mark.attestation
def test_a_coordinator_whose_own_policy_does_not_accept_it_is_told(
    federation: Federation, tmp_path: Path
) -> None:
    text = federation.coordinator_config.read_text()
    config = tmp_path / "coordinator.toml"
    config.write_text(text.replace("development.toml", "genuine.toml"))
    links = diagnosis(config)
    assert broken(links) == ["attestation"]
    assert "configured as attested (MODE2), and is not" in links["attestation"]["found"]


@pytest.mark.attestation
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_two_addresses_the_one_that_answers_is_examined_to_the_end(
    federation: Federation, order: tuple[int, int]
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    known = (nobody, federation.address)
    address = ",".join(known[each] for each in order)
    config = federation.participant_config(
        HOSPITAL, address=address, changes={}, policy="development"
    )
    links = diagnosis(config)
    assert broken(links) == [f"connection {nobody}"]
    skipped = [name for name, each in links.items() if each["status"] == "skipped"]
    assert skipped == [f"handshake {nobody}"]
    assert links["attestation"]["found"].startswith("SIMULATED, proves nothing: ")
    # Where nobody answers at all, nothing is said of what only an answer could show.
    address = f"{nobody},127.0.0.1:{free_port()}"
    config = federation.participant_config(HOSPITAL, address=address, changes={})
    assert diagnosis(config)["enrolment"]["status"] == "skipped"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"garbage", "not a public key"),
        (public_key_pem(generate_private_key().public_key()), "does not verify"),
    ],
)
def test_a_wrong_signing_key_of_the_coordinator_is_blamed_on_that_key(
    federation: Federation, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "coordinator-signing.pub"
    path.write_bytes(content)
    links = diagnosis(elsewhere(federation, "coordinator_signing_key", path))
    assert links["enrolment"]["status"] == "ok"
    assert broken(links) == ["coordinator's signing key"]
    assert said in links["coordinator's signing key"]["found"]


def test_a_wrong_key_of_the_log_is_blamed_on_that_key(
    federation: Federation, tmp_path: Path
) -> None:
    path = tmp_path / "log.vkey"
    path.write_text("garbage")
    links = diagnosis(elsewhere(federation, "log_verifier_key", path))
    assert broken(links) == ["log key"]
    assert "not a verifier key" in links["log key"]["found"]


def elsewhere(federation: Federation, name: str, path: Path) -> Path:
    """A hospital's configuration with one of its files at another place."""
    config = hospital(federation)
    old = getattr(federation.keys[HOSPITAL], name)
    config.write_text(config.read_text().replace(f'"{old}"', f'"{path}"'))
    return config


@pytest.mark.parametrize(
    ("side", "name", "link"),
    [
        ("hospital", "signing_key", "signing key"),
        ("hospital", "witness_key", "witness key"),
        ("hospital", "tls.private_key", "TLS key"),
        ("coordinator", "signing_key", "signing key"),
        ("coordinator", "log_key", "log key"),
        ("coordinator", "tls.private_key", "TLS key"),
    ],
)
def test_a_key_that_other_accounts_can_use_is_a_broken_link(
    federation: Federation, side: str, name: str, link: str
) -> None:
    is_hospital = side == "hospital"
    keys = federation.keys[HOSPITAL if is_hospital else COORDINATOR]
    path: Path = keys.tls.private_key if name == "tls.private_key" else getattr(keys, name)
    expect_open(federation, path, link, is_hospital=is_hospital)


@pytest.mark.parametrize("side", ["hospital", "coordinator"])
def test_a_broken_tls_key_is_not_blamed_on_the_signing_key(
    federation: Federation, tmp_path: Path, side: str
) -> None:
    is_hospital = side == "hospital"
    path = federation.keys[HOSPITAL if is_hospital else COORDINATOR].tls.private_key
    text = (hospital(federation) if is_hospital else federation.coordinator_config).read_text()
    assert f'"{path}"' in text
    broken_key = tmp_path / "tls.key"
    broken_key.write_text("garbage")
    broken_key.chmod(0o600)
    config = federation.folder / f"broken-{side}.toml"
    config.write_text(text.replace(f'"{path}"', f'"{broken_key}"'))
    links = diagnosis(config)
    assert broken(links) == ["TLS key"]
    assert links["signing key"]["status"] == "skipped"
    assert links["signing key"]["found"] == "needs: TLS key"


def test_a_coordinators_certificate_for_clients_is_a_broken_link(
    federation: Federation, tmp_path: Path
) -> None:
    path = federation.keys[COORDINATOR].tls.certificate_chain
    issued = x509.load_pem_x509_certificate(path.read_bytes())
    key = load_private_key(federation.folder / "keys" / "coordinator-ca.key")
    for_clients = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    changed = tmp_path / "tls.crt"
    changed.write_bytes(with_extension(issued, for_clients, key).public_bytes(Encoding.PEM))
    config = federation.folder / "for-clients.toml"
    text = federation.coordinator_config.read_text()
    assert f'"{path}"' in text
    config.write_text(text.replace(f'"{path}"', f'"{changed}"'))
    links = diagnosis(config)
    assert broken(links) == ["certificate"]
    assert "lacks serverAuth" in links["certificate"]["found"]


def test_an_operators_configuration_is_called_that(tmp_path: Path) -> None:
    config = tmp_path / "operator.toml"
    config.write_text('[operator]\naddress = "127.0.0.1:1"\n')
    result = CliRunner().invoke(app, ("doctor", "--config", str(config)))
    assert result.exit_code == 2
    assert "is an operator's" in result.output
    assert len(result.output.splitlines()) == 1


def test_a_log_encryption_key_that_other_accounts_can_use_is_a_broken_link(
    federation: Federation,
) -> None:
    path = federation.coordinator_state / "log-encryption.key"
    expect_open(federation, path, "log encryption key", is_hospital=False)


def expect_open(federation: Federation, path: Path, link: str, *, is_hospital: bool) -> None:
    """Open a key's file to others for as long as the doctor looks."""
    config = hospital(federation) if is_hospital else federation.coordinator_config
    path.chmod(0o640)
    try:
        links = diagnosis(config)
    finally:
        path.chmod(0o600)
    assert broken(links) == [link]
    assert "can be used by other accounts (mode 0640)" in links[link]["found"]
    assert links[link]["remedy"] == f"chmod 600 {path}"
    assert not broken(diagnosis(config))


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """Yield a folder that every account can get to, as none of pytest's own is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path


def test_labels_and_images_that_every_account_can_read_are_a_broken_link(
    federation: Federation, public_folder: Path
) -> None:
    images = public_folder / "images"
    images.mkdir(mode=0o700)
    labels = images / "labels_deidentified.csv"
    labels.touch(mode=0o644)
    config = hospital(federation)
    config.write_text(config.read_text().replace(str(federation.images / HOSPITAL), str(images)))
    # Nobody gets to the labels through a folder that is shut.
    assert not broken(diagnosis(config))
    images.chmod(0o755)
    links = diagnosis(config)
    assert broken(links) == ["patients' data"]
    assert links["patients' data"]["remedy"] == f"chmod o-rwx {labels}"
    labels.chmod(0o640)
    assert diagnosis(config)["patients' data"]["remedy"] == f"chmod o-rwx {images}"


def test_a_database_password_that_every_account_can_read_is_a_broken_link(
    federation: Federation, public_folder: Path
) -> None:
    config = public_folder / "coordinator.toml"
    url = "postgresql://matl:canary-password@127.0.0.1/matl"
    config.write_text(f'database = "{url}"\n{federation.coordinator_config.read_text()}')
    config.chmod(0o644)
    links = diagnosis(config)
    assert broken(links) == ["database's password"]
    assert "canary-password" not in str(links)
    config.chmod(0o600)
    assert not broken(diagnosis(config))


@pytest.mark.hsm
def test_what_is_wrong_with_a_token_is_said_of_the_key_that_is_in_it(
    tmp_path: Path, material: Material, tokens: TokenFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found_federation(tmp_path / "federation", material)
    enrol_in_token(federation, tokens, HOSPITAL)
    right = federation.participant_config(HOSPITAL, address="", changes={})
    # The signing key is compared with TLS's.
    keys = ["TLS key", "witness key"]

    def said(change: tuple[str, str] = ("", "")) -> tuple[list[str], str]:
        config = tmp_path / "participant.toml"
        config.write_text(right.read_text().replace(*change))
        links = diagnosis(config)
        found = [each for each in broken(links) if each != "connection"]
        return found, str(links[found[0]]) if found else ""

    assert said()[0] == []
    missing, text = said(("token=hsm", "token=elsewhere"))
    assert missing == keys
    assert "is not there" in text
    assert "tokens that answer: 'hsm'" in text
    with tokens.taken_away():
        missing, text = said()
    assert missing == keys
    assert "is not there" in text
    tokens.restart()
    missing, text = said(("%20witness", "%20nothing"))
    assert missing == ["witness key"]
    assert "correct object or id" in text
    missing, text = said((str(tokens.module), "/nowhere/libpkcs11.so"))
    assert missing == keys
    assert "cannot load the PKCS#11 module /nowhere/libpkcs11.so" in text
    monkeypatch.setenv(PIN_VARIABLE, "")
    missing, text = said()
    assert missing == keys
    assert f"no PIN in the environment variable {PIN_VARIABLE}" in text
    tokens.restart()
    monkeypatch.setenv(PIN_VARIABLE, f"not-{PIN}")
    missing, text = said()
    assert missing == keys
    assert "refuses the PIN" in text
    assert PIN not in text


@pytest.mark.hsm
def test_a_pin_that_other_accounts_can_read_is_a_broken_link(
    tmp_path: Path, material: Material, tokens: TokenFolder
) -> None:
    federation = found_federation(tmp_path / "federation", material)
    enrol_in_token(federation, tokens, HOSPITAL)
    pin = tmp_path / "pin"
    pin.write_text(PIN)
    pin.chmod(0o644)
    config = federation.participant_config(HOSPITAL, address="", changes={})
    text = config.read_text()
    config.write_text(text.replace(f"{tokens.module}", f"{tokens.module}&pin-source={pin}"))
    links = diagnosis(config)
    assert broken(links) == ["TLS key", "witness key", "connection"]
    assert links["TLS key"]["remedy"] == f"chmod 600 {pin}"
    pin.chmod(0o600)
    assert broken(diagnosis(config)) == ["connection"]


@pytest.mark.hsm
def test_either_side_is_examined_where_its_keys_are_in_a_token(
    tmp_path: Path, material: Material, tokens: TokenFolder, running: ExitStack
) -> None:
    federation = found_in_token(tmp_path / "federation", material, tokens)
    enrol_in_token(federation, tokens, HOSPITAL)
    coordinator = running.enter_context(federation.start_coordinator())
    coordinator.wait_for("coordinator_ready")
    config = federation.participant_config(HOSPITAL, address="", changes={})
    assert not broken(diagnosis(config))
    links = diagnosis(federation.coordinator_config)
    assert not broken(links)
    assert "HSM-rooted" in links["handshake"]["found"]

    # The same key with a certificate that another authority signed.
    chain = federation.folder / f"{HOSPITAL}.crt"
    enrolled = x509.load_pem_x509_certificate(chain.read_bytes())
    chain.write_bytes(certified_elsewhere(enrolled))
    links = diagnosis(config)
    assert broken(links) == ["enrolment"]
    assert "not of the participants' authority" in links["enrolment"]["found"]
    coordinator.wait_for("handshake_refused", reason="wrong_authority")


def certified_elsewhere(certificate: x509.Certificate) -> bytes:
    """The certificate's key and name, under an authority of nobody here."""
    now = datetime.now(UTC)
    lifetime = {"not_before": now - timedelta(days=1), "not_after": now + timedelta(days=1)}
    authority = create_authority("somebody else's", roles=PARTICIPANT_ROLES, **lifetime)
    key = certificate.public_key()
    name = SpiffeId(FEDERATION, Role.PARTICIPANT, HOSPITAL)
    issued = issue_certificate(authority, key, name, **lifetime)  # type: ignore[arg-type]  # P-256
    return issued.public_bytes(Encoding.PEM)

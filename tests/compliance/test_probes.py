"""Probes by themselves: what they decide, and those that need no federation."""

import importlib.metadata
import math
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from matl.compliance.audit import probed
from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, Status
from matl.compliance.probes.audit_controls import judge_asked, untold
from matl.compliance.probes.contingency import newest_backup
from matl.compliance.probes.emergency import newest_within
from matl.compliance.probes.inventory import is_as_locked, parse_lock, undeclared
from matl.compliance.probes.privacy import judge_ledgers, judge_spending
from matl.compliance.probes.transmission import (
    check_metrics,
    client_hello,
    is_server_hello,
    judge_database,
)
from matl.compliance.registry import Probes
from matl.compliance.site import Site
from matl_common.identity.certificates import (
    COORDINATOR_ROLES,
    Role,
    SpiffeId,
    create_authority,
    issue_certificate,
)
from matl_common.identity.keys import generate_private_key, private_key_pem
from matl_common.ids import FederationId, NodeId, digest_of
from matl_common.privacy.charges import epsilon_of
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import StudyPlan
from matl_coordinator.backup_manifest import FORMAT, MANIFEST, Manifest, sign_manifest
from matl_participant.core.spending import DatasetSummary, Summary
from tests.fuzz.samples import PLAN
from tests.signers import SoftwareSigner

Told = dict[str, str | int]

RELEASED: list[Told] = [
    {"event": event, "round": 1}
    for event in (
        "round_scheduled",
        "collection_closed",
        "round_scored",
        "model_aggregated",
        "model_released",
    )
]
OF_UPDATE: list[Told] = [
    {"event": event, "round": 1, "node": "hospital_a"}
    for event in ("update_declared", "update_admitted")
]
FOUNDED: list[Told] = [{"event": "study_founded"}]


def test_a_round_that_is_told_whole_lacks_nothing() -> None:
    held = [(1, "hospital_a", "admitted")]
    assert untold({1: "released"}, held, [0, 1], [*FOUNDED, *RELEASED, *OF_UPDATE]) == []


@pytest.mark.parametrize(
    "left_out", [*FOUNDED, *RELEASED, *OF_UPDATE], ids=lambda each: str(each["event"])
)
def test_every_single_entry_that_is_missing_is_named(left_out: Told) -> None:
    events = [each for each in [*FOUNDED, *RELEASED, *OF_UPDATE] if each != left_out]
    lacking = untold({1: "released"}, [(1, "hospital_a", "admitted")], [0, 1], events)
    assert lacking
    named = str(left_out["event"])
    assert any(named in each or "model of round" in each for each in lacking)


def days_of(*days: int) -> list[Told]:
    """A log founded on day 0, and reviews on these days."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    kinds = ["study_founded", *("activity_reviewed" for _ in days)]
    return [
        {"event": kind, "at": (began + timedelta(days=day)).isoformat()}
        for kind, day in zip(kinds, (0, *days), strict=True)
    ]


def reviewed_by(day: int, events: list[Told]) -> Mapping[str, Any]:
    return newest_within(
        timedelta(days=30),
        events,
        kind="activity_reviewed",
        now=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day),
        never="nobody has reviewed it",
        remedy="review it",
    )


def test_what_was_never_done_is_overdue_only_once_the_log_is_old_enough() -> None:
    with pytest.raises(NotTestedError, match="due by 2026-01-31"):
        reviewed_by(30, days_of())
    for events in (days_of(), []):
        with pytest.raises(BrokenControlError, match="nobody has reviewed it"):
            reviewed_by(31, events)


def test_the_last_one_counts_and_not_the_first() -> None:
    assert reviewed_by(70, days_of(10, 40)) == days_of(10, 40)[-1]
    with pytest.raises(BrokenControlError, match="31 days ago"):
        reviewed_by(71, days_of(10, 40))


def test_who_was_not_asked_is_not_vouched_for() -> None:
    whole = Probes(reader_database="postgresql://r@db/matl", retention_database="postgresql://t@db")
    assert judge_asked("refused", whole).status is Status.PASS
    for key in ("reader_database", "retention_database"):
        with pytest.raises(NotTestedError) as told:
            judge_asked("refused", whole.model_copy(update={key: ""}))
        assert key in told.value.remedy


@pytest.mark.parametrize("address", ["", "127.0.0.1:1", "[::1]:1", "localhost:1"])
def test_metrics_may_be_served_in_the_clear_on_this_machine(address: str) -> None:
    check_metrics(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", ":1", "metrics.lan:1"])
def test_metrics_that_others_can_read_are_found_out(address: str) -> None:
    with pytest.raises(BrokenControlError, match="in the clear"):
        check_metrics(address)


def a_summary(*, of_plan: float, together: float | None) -> Summary:
    return Summary(
        study_id="s",
        dataset="retina",
        epsilon_spent=1.0,
        target_epsilon=1.0,
        target_delta=1e-5,
        adjacency="add-or-remove-one",
        unit="patient",
        noise=Noise.GAUSSIAN,
        budget_fraction=of_plan,
        steps_spent=1,
        max_steps=1,
        evaluations_spent=0,
        max_evaluations=0,
        rounds_left=0,
        rounds_acknowledged=1,
        halted=None,
        together=DatasetSummary(2, 1.0, 1e-5, 1.0, together),
    )


def test_a_ledger_that_spent_more_than_it_may_is_found_out_by_plan_and_by_data_set() -> None:
    sound = [a_summary(of_plan=1.0, together=1.0), a_summary(of_plan=0.5, together=None)]
    assert judge_ledgers(sound).status is Status.PASS
    for over in (a_summary(of_plan=1.01, together=None), a_summary(of_plan=0.5, together=1.01)):
        with pytest.raises(BrokenControlError, match="more is spent than is allowed"):
            judge_ledgers([*sound, over])


SIGNER = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
NOON = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)


def a_backup(folder: Path, *, days: int, signer: SoftwareSigner = SIGNER) -> None:
    """One that was made so many days before noon, and copied here just now."""
    manifest = Manifest(
        format=FORMAT,
        version="0.1.0",
        schema="0001",
        made_at=NOON - timedelta(days=days),
        federation="f",
        study="s",
        node="c",
        log_origin="f/c",
        log_size=1,
        log_root=digest_of(b"root"),
        encryption_key="k",
        round=1,
        phase="released",
        has_spool=False,
        sums=digest_of(b"sums"),
    )
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(sign_manifest(manifest, signer))


def test_the_newest_backup_is_the_one_made_last_and_not_the_one_copied_last(
    tmp_path: Path,
) -> None:
    stranger = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
    a_backup(tmp_path / "young", days=2)
    a_backup(tmp_path / "old", days=90)
    a_backup(tmp_path / "foreign", days=0, signer=stranger)
    found = newest_backup(tmp_path, SIGNER.public_key, now=NOON, days=2)
    assert found.folder.name == "young"
    assert found.undated == ("foreign",)
    assert "foreign" in found.besides


def test_an_old_backup_is_none_and_neither_is_a_strangers(tmp_path: Path) -> None:
    def asked(days: int = 7) -> None:
        newest_backup(tmp_path, SIGNER.public_key, now=NOON, days=days)

    with pytest.raises(BrokenControlError, match="there is no backup"):
        asked()
    stranger = SoftwareSigner(ec.generate_private_key(ec.SECP256R1()))
    a_backup(tmp_path / "foreign", days=0, signer=stranger)
    with pytest.raises(BrokenControlError, match="found foreign"):
        asked()
    a_backup(tmp_path / "old", days=8)
    with pytest.raises(BrokenControlError, match="8 days old; 7 are allowed"):
        asked()
    asked(days=8)


@pytest.mark.parametrize("raised", [ValueError("secret"), KeyError("secret"), IndexError()])
def test_a_probe_that_stumbles_gets_its_row_and_repeats_nothing_it_read(
    raised: Exception,
) -> None:
    def stumbling(site: Site) -> Outcome:
        del site
        raise raised

    found = probed(stumbling, cast("Site", None))
    assert found.status is Status.NOT_TESTED
    assert type(raised).__name__ in found.evidence
    assert "secret" not in found.evidence


def test_an_aborted_round_says_so() -> None:
    scheduled = [{"event": "round_scheduled", "round": 2}]
    assert untold({2: "aborted"}, [], [], scheduled) == ["round_aborted of round 2"]


def test_loopback_and_a_socket_stay_on_the_machine() -> None:
    for address in (None, "127.0.0.1", "::1"):
        assert judge_database(address=address, version=None, mode="").status is Status.PASS


@pytest.mark.parametrize(
    ("version", "mode", "said"),
    [
        (None, "verify-full", "not encrypted"),
        ("TLSv1.3", "", "is believed"),
        ("TLSv1.3", "require", "is believed"),
    ],
)
def test_a_database_elsewhere_must_be_the_right_one_over_tls(
    version: str | None, mode: str, said: str
) -> None:
    with pytest.raises(BrokenControlError, match=said):
        judge_database(address="10.0.0.5", version=version, mode=mode)
    found = judge_database(address="10.0.0.5", version="TLSv1.3", mode="verify-full")
    assert found.status is Status.PASS


def test_only_what_others_can_reach_must_be_declared() -> None:
    listening = [("0.0.0.0", 8470), ("127.0.0.1", 5432), ("::1", 1), ("192.0.2.7", 22)]
    assert undeclared(listening, ["0.0.0.0:8470"]) == [("192.0.2.7", 22)]
    assert undeclared(listening, ["0.0.0.0:8470", "192.0.2.7:22"]) == []
    assert undeclared([("0.0.0.0", 22)], ["192.0.2.7:22"]) == [("0.0.0.0", 22)]


def test_a_lock_is_read_by_normalised_names_and_for_this_platform() -> None:
    text = (
        "# a remark\nPyYAML==6.0\n    # via x\nzope.interface==7.1  # why\n"
        "torch==2.14.1 ; python_version >= '3'\ntorch==2.9.1 ; python_version < '3'\n"
    )
    assert parse_lock(text) == {
        "pyyaml": SpecifierSet("==6.0"),
        "zope-interface": SpecifierSet("==7.1"),
        "torch": SpecifierSet("==2.14.1"),
    }


@pytest.mark.parametrize(
    ("version", "is_locked"), [("2.14.1", True), ("2.14.1+cpu", True), ("2.14.2", False)]
)
def test_another_build_of_the_locked_version_is_as_locked(version: str, *, is_locked: bool) -> None:
    assert is_as_locked("torch", version, {"torch": SpecifierSet("==2.14.1")}) is is_locked
    assert not is_as_locked("numpy", version, {"torch": SpecifierSet("==2.14.1")})


def test_what_this_project_pins_is_a_lock() -> None:
    lock = parse_lock((Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8"))
    assert is_as_locked("torch", importlib.metadata.version("torch"), lock)


@given(st.binary(max_size=64))
def test_whatever_comes_back_is_a_server_hello_or_not(answer: bytes) -> None:
    assert is_server_hello(answer) == (len(answer) > 5 and answer[0] == 22 and answer[5] == 2)


@contextmanager
def an_old_server(folder: Path, version: ssl.TLSVersion) -> Iterator[int]:
    """A TLS server that speaks nothing newer."""
    now = datetime.now(UTC)
    authority = create_authority(
        "old", roles=COORDINATOR_ROLES, not_before=now, not_after=now.replace(year=now.year + 1)
    )
    key = generate_private_key()
    name = SpiffeId(FederationId("f"), Role.COORDINATOR, NodeId("c"))
    issued = issue_certificate(
        authority, key.public_key(), name, not_before=now, not_after=now.replace(year=now.year + 1)
    )
    pem = folder / "both.pem"
    pem.write_bytes(private_key_pem(key) + issued.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.maximum_version = version
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            near, _ = listener.accept()
            with near:
                try:
                    context.wrap_socket(near, server_side=True).close()
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(timeout=10)


def said_to(port: int, hello: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(hello)
        return connection.recv(1024)


def test_a_server_that_speaks_tls_1_2_is_found_out(tmp_path: Path) -> None:
    with an_old_server(tmp_path, ssl.TLSVersion.TLSv1_2) as port:
        answer = said_to(port, client_hello(0x0303, server_name="c.f"))
    assert is_server_hello(answer)
    # The version that it agrees to.
    assert answer[9:11] == b"\x03\x03"


def a_plan_for(rounds: int) -> StudyPlan:
    """A plan whose epsilon is what so many updates of a hospital cost."""
    terms = replace(PLAN.privacy, noise=Noise.GAUSSIAN, evaluation=None)
    steps = rounds * PLAN.training.steps_per_round
    return replace(PLAN, privacy=replace(terms, target_epsilon=epsilon_of(terms, steps=steps)))


def test_spending_is_computed_by_the_plan_and_not_read_from_a_flag() -> None:
    found = judge_spending(a_plan_for(3), updates={"hospital_a": 3, "b": 1}, evaluations={})
    assert found.status is Status.PASS
    assert "hospital_a" in found.evidence
    with pytest.raises(BrokenControlError, match="epsilon spent"):
        judge_spending(a_plan_for(3), updates={"hospital_a": 4, "b": 1}, evaluations={})


def test_a_plan_without_noise_is_no_promise() -> None:
    plan = a_plan_for(3)
    for terms in (
        replace(plan.privacy, noise_multiplier=0.0),
        replace(plan.privacy, target_epsilon=math.inf),
    ):
        with pytest.raises(BrokenControlError, match="promises no privacy"):
            judge_spending(replace(plan, privacy=terms), updates={}, evaluations={})

"""Front ends between hospitals and the coordinator that leads: whom it believes, and uploads."""

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401, I001

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from matl_common.identity.allowlist import Allowlist
from matl_common.identity.certificates import Role, SpiffeId
from matl_common.identity.tls import MAX_STREAMS_PER_CONNECTION, ServerIdentity
from matl_common.ids import Digest, NodeId, RoundId
from matl_common.tensors import CHUNK_BYTES, MODEL_SUFFIX
from matl_common.wire import federation_pb2 as pb
from matl_common.wire import ingest_pb2
from matl_common.wire.chunks import format_push
from matl_common.wire.documents import envelope_to_wire
from matl_common.wire.federation_pb2_grpc import FederationServiceStub
from matl_common.wire.operations_pb2 import GetStatusRequest
from matl_common.wire.operations_pb2_grpc import OperationsServiceStub
from matl_coordinator.daemon import EXIT_CONFIGURATION, app, serve_front_end
from matl_coordinator.ingest.config import load_front_end_config
from matl_coordinator.ingest.downloads import Downloads
from matl_coordinator.ingest.leader import Leader
from matl_coordinator.ingest.loan_call import RECEIVE
from matl_coordinator.ingest.metrics import FrontEndMetrics
from matl_coordinator.ingest.relay import NOBODY_LEADS
from matl_coordinator.ingest.server import NOT_ATTESTED, STOPS, FrontEndServer
from matl_coordinator.ingest.uploads import Uploads
from matl_coordinator.rpc.relayed import HEADER
from matl_coordinator.rpc.server import PUSH_CHUNKS
from matl_coordinator.service.loan import Loan
from matl_coordinator.service.reception import SupersededError
from matl_coordinator.store.loans import Loans
from matl_coordinator.store.spool import lent_path
from tests.coordinator.harness import (
    COORDINATOR,
    FEDERATION,
    NODES,
    OPERATOR,
    Running,
    Sealed,
    events_of,
    honest_update,
    make_site,
    next_round,
    seal,
)
from tests.coordinator.served import NAME, Served, served
from tests.front_ends import enrol_front_end
from tests.system.processes import until

Code = grpc.StatusCode
HOSPITAL, OTHER, *_ = NODES
FIRST, SECOND = NodeId("front_1"), NodeId("front_2")
HELLO = "/matl.v1.FederationService/Hello"
CALL_SECONDS = 30.0


@pytest.fixture
def leader(tmp_path: Path) -> Iterator[Served]:
    """Yield a coordinator with two enrolled front ends."""
    site = make_site(tmp_path)
    keys = {name: enrol_front_end(tmp_path / "keys", name) for name in (FIRST, SECOND)}
    site = replace(site.read_again(), nodes={**site.nodes, **keys})
    with served(site) as running:
        yield running


@dataclass(frozen=True)
class FrontEnd:
    """One that runs, in the coordinator's process."""

    served: Served
    """What hospitals see."""
    metrics: FrontEndMetrics
    server: FrontEndServer

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"matl_front_end_{name}") or 0.0


@contextmanager
def front_end(
    leader: Served, name: NodeId, *, address: str = "", models: Path | None = None
) -> Iterator[FrontEnd]:
    """Run a front end before a leader, or before whoever is at ``address``."""
    site, metrics = leader.site, FrontEndMetrics(methods=["FederationService/Hello"])

    async def start() -> tuple[Leader, FrontEndServer, int, asyncio.Task[None]]:
        way = Leader(
            address or f"127.0.0.1:{leader.port}",
            site.nodes[name].tls,
            NAME,
            poll_seconds=0.05,
            timeout_seconds=CALL_SECONDS,
            meter=metrics,
        )
        uploads = Uploads(
            way, Loans(site.config.state_dir / "spool"), idle_seconds=CALL_SECONDS, meter=metrics
        )
        server = FrontEndServer(
            identity=ServerIdentity(site.config.identity.tls),
            leader=way,
            uploads=uploads,
            downloads=Downloads(
                way,
                models or site.config.state_dir / "models",
                idle_seconds=CALL_SECONDS,
                meter=metrics,
            ),
            meter=metrics,
        )
        port = await server.start("127.0.0.1:0")
        return way, server, port, asyncio.create_task(way.run())

    async def end() -> None:
        await server.stop(grace_seconds=0.0)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await way.close()

    way, server, port, following = leader.ask(start())
    try:
        yield FrontEnd(replace(leader, port=port), metrics, server)
    finally:
        leader.ask(end())


@pytest.fixture
def fronts(leader: Served) -> Iterator[tuple[FrontEnd, FrontEnd]]:
    """Yield both."""
    with front_end(leader, FIRST) as first, front_end(leader, SECOND) as second:
        yield first, second


def sealed_update(leader: Served, node: NodeId = HOSPITAL) -> Sealed:
    """An update for the open round."""

    async def make(coordinator: Running) -> Sealed:
        start, *_ = await asyncio.gather(*(next_round(coordinator, each) for each in NODES))
        assert start is not None
        update = honest_update(node, start)
        return seal(coordinator.site, node, start, coordinator.plan, update)

    return leader.ask(make(leader.coordinator))


def declare(channel: grpc.Channel, sealed: Sealed) -> pb.UpdateStatus:
    request = pb.OpenUpdateRequest(
        manifest=envelope_to_wire(sealed.envelope), chunk_hashes=sealed.hashes
    )
    return FederationServiceStub(channel).OpenUpdate(request, timeout=CALL_SECONDS)


def pushing(channel: grpc.Channel, messages: Iterator[bytes]) -> Any:
    """A push under way."""
    method = channel.stream_unary(PUSH_CHUNKS, bytes, pb.UpdateStatus.FromString)
    return method.future(messages, timeout=CALL_SECONDS)


def messages(digest: str, sealed: Sealed, *, begin: int = 0, end: int | None = None) -> list[bytes]:
    chunks = list(enumerate(sealed.chunks))[begin:end]
    return [
        pb.PushChunksRequest(update_digest=digest).SerializeToString(),
        *(format_push(index, chunk) for index, chunk in chunks),
    ]


def push(channel: grpc.Channel, digest: str, sealed: Sealed, **part: int) -> pb.UpdateStatus:
    status = pushing(channel, iter(messages(digest, sealed, **part))).result()
    assert isinstance(status, pb.UpdateStatus)
    return status


def spooled(leader: Served, sealed: Sealed) -> bool:
    """Whether the update is in the spool, byte for byte, and nothing else of its hospital is."""
    files = list((leader.site.config.state_dir / "spool" / "1").glob(f"{HOSPITAL}.*"))
    return [each.name for each in files] == [f"{HOSPITAL}.update"] and files[
        0
    ].read_bytes() == b"".join(sealed.chunks)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), str(caught.value.details())


def hello(channel: grpc.Channel, **options: Any) -> pb.HelloResponse:
    return FederationServiceStub(channel).Hello(
        pb.HelloRequest(version=""), timeout=CALL_SECONDS, **options
    )


def test_an_upload_goes_on_at_another_front_end_where_the_first_one_left_it(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    first, second = fronts
    sealed = sealed_update(leader)
    with first.served.channel(HOSPITAL) as channel:
        opened = declare(channel, sealed)
        assert (opened.durable_chunks, opened.total_chunks) == (0, 3)
        status = push(channel, opened.update_digest, sealed, end=1)
        assert not status.HasField("receipt")
    with second.served.channel(HOSPITAL) as channel:
        assert declare(channel, sealed).durable_chunks == 1
        status = push(channel, opened.update_digest, sealed, begin=1)
        assert status.HasField("receipt")
        # As from the leader itself.
        assert declare(channel, sealed).receipt.payload == status.receipt.payload
    assert spooled(leader, sealed)
    assert first.metric("received_bytes_total") == CHUNK_BYTES
    assert second.metric("kept_bytes_total") == CHUNK_BYTES
    assert second.metric("received_bytes_total") == sum(map(len, sealed.chunks[1:]))


def test_a_hospital_that_went_to_the_leader_first_goes_on_at_a_front_end(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    sealed = sealed_update(leader)
    with leader.channel(HOSPITAL) as channel:
        opened = declare(channel, sealed)
        push(channel, opened.update_digest, sealed, end=2)
    with fronts[0].served.channel(HOSPITAL) as channel:
        assert declare(channel, sealed).durable_chunks == 2
        assert push(channel, opened.update_digest, sealed, begin=2).HasField("receipt")
    assert spooled(leader, sealed)


def test_of_one_update_sent_through_two_front_ends_at_once_the_newer_stream_counts(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    first, second = fronts
    sealed, may_end = sealed_update(leader), threading.Event()

    def slowly(digest: str) -> Iterator[bytes]:
        yield from messages(digest, sealed, end=1)
        may_end.wait(CALL_SECONDS)

    with first.served.channel(HOSPITAL) as one, second.served.channel(HOSPITAL) as two:
        digest = declare(one, sealed).update_digest
        older = pushing(one, slowly(digest))
        until(lambda: first.metric("received_bytes_total") == CHUNK_BYTES, what="a chunk came")
        assert push(two, digest, sealed).HasField("receipt")
        assert refused(older.result) == (Code.ABORTED, "a newer stream took over this update")
        may_end.set()
    assert spooled(leader, sealed)
    admitted = [
        each for each in events_of(leader.coordinator.store) if each["event"] == "update_admitted"
    ]
    assert len(admitted) == 1


def test_a_loan_that_another_followed_gives_nothing_back_and_deletes_nothing(
    leader: Served,
) -> None:
    sealed, intake = sealed_update(leader), leader.coordinator.use_cases.intake
    node = leader.site.allowed(HOSPITAL)

    async def lend(digest: Digest) -> Loan:
        lent = await intake.lend(node, digest)
        assert isinstance(lent, Loan)
        return lent

    with leader.channel(HOSPITAL) as channel:
        digest = Digest(declare(channel, sealed).update_digest)
    older, _ = leader.ask(lend(digest)), leader.ask(lend(digest))
    for late in (intake.complete_lent(node, older), intake.lent_gathered(older)):
        with pytest.raises(SupersededError):
            leader.ask(late)


def test_an_update_that_is_all_there_is_judged_when_it_is_declared_again(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    sealed = sealed_update(leader)
    with fronts[0].served.channel(HOSPITAL) as channel:
        digest = declare(channel, sealed).update_digest
        push(channel, digest, sealed, end=2)
        # As a front end leaves it that is killed after the last chunk.
        (lent,) = (leader.site.config.state_dir / "spool" / "1").glob(f"{HOSPITAL}.*.lent")
        with lent.open("ab") as file:
            file.write(sealed.chunks[2])
    with fronts[1].served.channel(HOSPITAL) as channel:
        assert declare(channel, sealed).HasField("receipt")
    assert spooled(leader, sealed)


def test_a_chunk_that_is_not_the_one_declared_is_refused_and_the_leader_logs_it(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    sealed = sealed_update(leader)
    wrong = Sealed(sealed.envelope, (sealed.chunks[0], sealed.chunks[0], sealed.chunks[2]))
    with fronts[0].served.channel(HOSPITAL) as channel:
        digest = declare(channel, sealed).update_digest
        told = refused(lambda: push(channel, digest, wrong))
        assert told == (Code.DATA_LOSS, "chunk 1 does not match its declared hash")
        assert declare(channel, sealed).durable_chunks == 1
        assert push(channel, digest, sealed, begin=1).HasField("receipt")
    (entry,) = [e for e in events_of(leader.coordinator.store) if e["event"] == "update_refused"]
    assert (entry["node"], entry["code"]) == (HOSPITAL, "wrong_chunks")


def test_what_a_lying_front_end_gives_back_is_not_admitted(leader: Served) -> None:
    sealed = sealed_update(leader)
    with leader.channel(HOSPITAL) as channel:
        digest = declare(channel, sealed).update_digest
    certificate = leader.site.nodes[HOSPITAL].tls.certificate_chain.read_bytes()
    words: list[ingest_pb2.ReceiveRequest] = [ingest_pb2.ReceiveRequest(update_digest=digest)]
    lent = threading.Event()

    def said() -> Iterator[bytes]:
        yield words[0].SerializeToString()
        lent.wait(CALL_SECONDS)
        yield ingest_pb2.ReceiveRequest(complete=True).SerializeToString()

    with leader.channel(FIRST) as channel:
        call = channel.stream_stream(RECEIVE, bytes, ingest_pb2.ReceiveResponse.FromString)(
            said(), metadata=((HEADER, certificate),), timeout=CALL_SECONDS
        )
        loan = next(call).loan
        folder = leader.site.config.state_dir / "spool"
        path = lent_path(folder, RoundId(loan.round_id), HOSPITAL, loan.token)
        path.write_bytes(sealed.chunks[0] + bytes(len(b"".join(sealed.chunks[1:]))))
        lent.set()
        status = next(call).status
    assert not status.HasField("receipt")
    assert status.durable_chunks == 1


def test_everything_else_is_relayed_in_the_callers_own_name(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    with leader.channel(HOSPITAL) as direct, fronts[0].served.channel(HOSPITAL) as relayed:
        assert hello(relayed).study_plan == hello(direct).study_plan
    # Whom a caller names itself is nobody's concern.
    shut_out(leader, OTHER)
    certificate = leader.site.nodes[HOSPITAL].tls.certificate_chain.read_bytes()
    with fronts[0].served.channel(OTHER) as channel:
        code, text = refused(lambda: hello(channel, metadata=((HEADER, certificate),)))
    assert (code, text) == (Code.PERMISSION_DENIED, f"{OTHER} may not take part here: unlisted")


def shut_out(leader: Served, *nodes: NodeId) -> None:
    """Take nodes from the allow-list, as its file is followed."""
    roster = leader.coordinator.roster
    kept = {node: each for node, each in roster.admitting.nodes.items() if node not in nodes}

    async def admit() -> None:
        roster.admit(Allowlist(roster.admitting.federation, kept))

    leader.ask(admit())


def denials(leader: Served) -> list[object]:
    entries = events_of(leader.coordinator.store)
    return [each["reason"] for each in entries if each["event"] == "access_denied"]


def test_a_hospital_may_not_speak_for_another(leader: Served) -> None:
    certificate = leader.site.nodes[OTHER].tls.certificate_chain.read_bytes()
    with leader.channel(HOSPITAL) as channel:
        code, text = refused(lambda: hello(channel, metadata=((HEADER, certificate),)))
    assert (code, text) == (Code.PERMISSION_DENIED, f"{HOSPITAL} may not speak for others")
    assert denials(leader) == ["not_a_front_end"]


def self_signed(leader: Served, node: NodeId) -> bytes:
    """A certificate with a hospital's key, in whosever name, that no authority signed."""
    theirs = x509.load_pem_x509_certificate(
        leader.site.nodes[HOSPITAL].tls.certificate_chain.read_bytes()
    )
    mine = ec.generate_private_key(ec.SECP256R1())
    uri = str(SpiffeId(FEDERATION, Role.PARTICIPANT, node))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    made = (
        x509.CertificateBuilder()
        .subject_name(theirs.subject)
        .issuer_name(theirs.issuer)
        .public_key(theirs.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2099, 1, 1, tzinfo=UTC))
        .add_extension(names, critical=False)
    )
    return made.sign(mine, hashes.SHA256()).public_bytes(Encoding.PEM)


@pytest.mark.parametrize("node", [HOSPITAL, NodeId("made_up")])
def test_what_a_stolen_front_end_certifies_itself_is_refused_in_its_own_name(
    leader: Served, node: NodeId
) -> None:
    with leader.channel(FIRST) as channel:
        forged = self_signed(leader, node)
        code, text = refused(lambda: hello(channel, metadata=((HEADER, forged),)))
    assert (code, text) == (
        Code.PERMISSION_DENIED,
        "the relayed certificate is not of the participants' authority",
    )
    told = [e for e in events_of(leader.coordinator.store) if e["event"] == "access_denied"]
    assert [(each["reason"], each["node"]) for each in told] == [("not_certified", FIRST)]


def test_an_operator_gives_no_orders_through_a_front_end(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    with fronts[0].served.channel(OPERATOR) as channel:
        status = OperationsServiceStub(channel).GetStatus
        told = refused(lambda: status(GetStatusRequest(), timeout=CALL_SECONDS))
    assert told == (
        Code.PERMISSION_DENIED,
        "a front end speaks for hospitals alone; dial the coordinator",
    )
    assert denials(leader) == ["not_for_front_ends"]


def test_a_front_end_may_ask_nothing_for_itself(leader: Served) -> None:
    with leader.channel(FIRST) as channel:
        code, _ = refused(lambda: hello(channel))
    assert code is Code.PERMISSION_DENIED
    assert denials(leader) == ["role_not_allowed"]


def test_only_front_ends_are_lent_updates(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    for door in (leader, fronts[0].served):
        with door.channel(HOSPITAL) as channel:
            method = channel.stream_stream(RECEIVE, bytes, bytes)
            code, _ = refused(partial(next, method(iter([b""]), timeout=CALL_SECONDS)))
            assert code is Code.PERMISSION_DENIED


def test_a_front_end_does_not_pass_on_evidence_of_another_machine(
    fronts: tuple[FrontEnd, FrontEnd],
) -> None:
    with fronts[0].served.channel(HOSPITAL) as channel:
        attest = FederationServiceStub(channel).Attest
        told = refused(lambda: attest(pb.AttestRequest(nonce=bytes(32)), timeout=CALL_SECONDS))
    assert told == (Code.FAILED_PRECONDITION, NOT_ATTESTED)


def pull(channel: grpc.Channel, digest: str, *, offset: int = 0) -> bytes:
    blocks = FederationServiceStub(channel).PullModel(
        pb.PullModelRequest(digest=digest, offset=offset), timeout=CALL_SECONDS
    )
    return b"".join(each.data for each in blocks)


def base_model(leader: Served) -> Path:
    """The first model's file."""
    (path,) = (leader.site.config.state_dir / "models").glob(f"*{MODEL_SUFFIX}")
    return path


def test_a_model_is_sent_from_the_folder_here_or_by_the_leader_where_it_is_not_there_yet(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd], tmp_path: Path
) -> None:
    path = base_model(leader)
    with fronts[0].served.channel(HOSPITAL) as channel:
        assert pull(channel, path.stem) == path.read_bytes()
        assert pull(channel, path.stem, offset=1000) == path.read_bytes()[1000:]
        sent = 2 * path.stat().st_size - 1000
        assert fronts[0].metric("sent_bytes_total") == sent
    with front_end(leader, FIRST, models=tmp_path) as behind:
        with behind.served.channel(HOSPITAL) as channel:
            assert pull(channel, path.stem) == path.read_bytes()
        assert behind.metric("sent_bytes_total") == 0


def test_a_model_is_sent_to_nobody_whom_the_leader_would_not_send_it(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd], tmp_path: Path
) -> None:
    path, unknown = base_model(leader), "0" * 64
    (tmp_path / f"{unknown}{MODEL_SUFFIX}").write_bytes(b"not a model of this study")
    with front_end(leader, FIRST, models=tmp_path) as mistaken:
        with mistaken.served.channel(HOSPITAL) as channel:
            assert refused(lambda: pull(channel, unknown))[0] is Code.NOT_FOUND
        assert mistaken.metric("sent_bytes_total") == 0
    with fronts[0].served.channel(OPERATOR) as channel:
        assert refused(lambda: pull(channel, path.stem))[0] is Code.PERMISSION_DENIED
    shut_out(leader, HOSPITAL)
    with fronts[0].served.channel(HOSPITAL) as channel:
        assert refused(lambda: pull(channel, path.stem))[0] is Code.PERMISSION_DENIED
    assert fronts[0].metric("sent_bytes_total") == 0


def test_a_download_under_way_ends_when_its_hospital_is_shut_out(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    # Larger than what is under way between the two.
    large = base_model(leader).with_name("1" * 64 + MODEL_SUFFIX)
    with large.open("wb") as file:
        file.truncate(256 << 20)
    with fronts[0].served.channel(HOSPITAL) as channel:
        blocks = FederationServiceStub(channel).PullModel(
            pb.PullModelRequest(digest=large.name.removesuffix(MODEL_SUFFIX)),
            timeout=CALL_SECONDS,
        )
        next(blocks)
        shut_out(leader, HOSPITAL)
        assert refused(lambda: list(blocks))[0] is Code.PERMISSION_DENIED
    assert fronts[0].metric("sent_bytes_total") < 256 << 20


def waiting(channel: grpc.Channel) -> Any:
    """A long poll under way."""
    request = pb.AwaitRoundRequest(have_round=1, wait_seconds=60)
    return FederationServiceStub(channel).AwaitRound.future(request, timeout=60.0)


def test_a_hospital_that_is_shut_out_is_cut_off_at_front_ends_as_well(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    sealed, may_end = sealed_update(leader), threading.Event()

    def slowly(digest: str) -> Iterator[bytes]:
        yield from messages(digest, sealed, end=1)
        may_end.wait(CALL_SECONDS)

    with fronts[0].served.channel(HOSPITAL) as channel:
        digest = declare(channel, sealed).update_digest
        polling, sending = waiting(channel), pushing(channel, slowly(digest))
        first = fronts[0]
        until(lambda: first.metric("received_bytes_total") == CHUNK_BYTES, what="a chunk came")
        shut_out(leader, HOSPITAL)
        for call in (polling.result, sending.result, lambda: hello(channel)):
            assert refused(call)[0] is Code.PERMISSION_DENIED
        may_end.set()


def test_a_front_end_that_is_shut_out_relays_no_more_and_hospitals_may_try_another(
    leader: Served, fronts: tuple[FrontEnd, FrontEnd]
) -> None:
    first, second = fronts
    sealed_update(leader)
    with first.served.channel(HOSPITAL) as channel:
        polling = waiting(channel)
        until(lambda: first.metric("calls_under_way") == 1, what="the call came")
        hello(channel)
        shut_out(leader, FIRST)
        for call in (polling.result, lambda: hello(channel)):
            assert refused(call) == (Code.UNAVAILABLE, NOBODY_LEADS)
    until(lambda: not first.metric("leader_reachable"), what="it notices")
    with second.served.channel(HOSPITAL) as channel:
        hello(channel)


def test_without_a_leader_callers_are_told_so(leader: Served) -> None:
    with ExitStack() as opened:
        front = opened.enter_context(front_end(leader, FIRST, address="127.0.0.1:1"))
        channel = opened.enter_context(front.served.channel(HOSPITAL))
        assert refused(lambda: hello(channel)) == (Code.UNAVAILABLE, NOBODY_LEADS)
        assert front.metric("leader_reachable") == 0


def test_the_leader_is_found_at_its_other_address(leader: Served) -> None:
    address = f"127.0.0.1:1, 127.0.0.1:{leader.port}"
    with front_end(leader, FIRST, address=address) as front:
        until(lambda: front.metric("leader_reachable") == 1, what="it is found")
        with front.served.channel(HOSPITAL) as channel:
            hello(channel)


def test_who_waits_is_sent_away_when_a_front_end_stops(leader: Served) -> None:
    sealed_update(leader)
    with front_end(leader, FIRST) as front, front.served.channel(HOSPITAL) as channel:
        polling = waiting(channel)
        until(lambda: front.metric("calls_under_way") == 1, what="the call came")
        hello(channel)
        leader.ask(front.server.stop(grace_seconds=CALL_SECONDS))
        assert refused(polling.result) == (Code.UNAVAILABLE, STOPS)


async def test_a_connection_to_the_leader_has_room_for_so_many_calls_and_is_closed_after_them(
    leader: Served,
) -> None:
    way = Leader(
        f"127.0.0.1:{leader.port}",
        leader.site.nodes[FIRST].tls,
        NAME,
        poll_seconds=1.0,
        timeout_seconds=CALL_SECONDS,
        meter=FrontEndMetrics(methods=[]),
    )
    with ExitStack() as first:
        lines = [first.enter_context(way.line()) for _ in range(MAX_STREAMS_PER_CONNECTION)]
        assert len(set(map(id, lines))) == 1
        with way.line() as another:
            assert another is not lines[0]
        with way.line() as anew:
            assert anew is not another
    await way.close()


@pytest.fixture
def configured(leader: Served, tmp_path: Path) -> Path:
    """A front end's file."""
    shown, own = leader.site.config.identity, leader.site.nodes[FIRST].tls
    path = tmp_path / "front-end.toml"
    path.write_text(f"""
spool = "{leader.site.config.state_dir / "spool"}"
federation = {{ id = "{FEDERATION}", coordinator = "{COORDINATOR}" }}
listen = {{ address = "127.0.0.1:0", metrics = "" }}
[identity]
tls_key = "{shown.tls_key}"
tls_certificate = "{shown.tls_certificate}"
participant_authority = "{shown.participant_authority}"
[leader]
address = "127.0.0.1:{leader.port}"
tls_key = "{own.private_key}"
tls_certificate = "{own.certificate_chain}"
coordinator_authority = "{own.trusted_authority}"
""")
    return path


def test_what_is_in_effect_is_printed(configured: Path) -> None:
    shown = CliRunner().invoke(app, ["ingest", "--config", str(configured), "--print-config"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["leader"]["poll_seconds"] == 1.0


def test_a_front_end_without_its_spool_does_not_start(configured: Path, tmp_path: Path) -> None:
    text = re.sub('spool = ".*"', f'spool = "{tmp_path / "nowhere"}"', configured.read_text())
    configured.write_text(text)
    assert serve_front_end(load_front_end_config(configured)) == EXIT_CONFIGURATION
